"""Inception-v3 as the FID's feature network, from the user's weights.

The network is of arXiv:1512.00567, the FID of Heusel 2017, arXiv:1706.08500. The file is the one
that FIDs are computed with in PyTorch: a state dict made from TensorFlow's graph of 2015-12-05.
pytorch-fid and torch-fidelity offer it as ...inception-2015-12-05-6726825d.pth; the name ends with
the start of its sha256.

That graph is not the published network to the letter: average pools leave the padding out, the last
block pools by maximum, there are 1008 classes. Pictures are resized to 299x299 (bilinear, corners
not aligned, no antialiasing) and scaled to [-1, 1]. Features are the 2048 means after the last
block.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ganfast.errors import InputError
from ganfast.evaluate.extractor import Preprocessing

FEATURES, CLASSES = 2048, 1008
SHA256 = "6726825d"  # how the hash of the known file begins
PREPROCESSING = Preprocessing(size=299, channels=3, mean=(127.5,), std=(127.5,), antialias=False)

# A layer is (name, channels out, kernel height, kernel width, stride). A branch is layers one after
# the other; where its last element is a list, these layers stand side by side. Kernels of stride 1
# keep the size, those of stride 2 are not padded.
Layer = tuple[str, int, int, int, int]
Branch = list[Layer | list[Layer]]


def _pooled(channels: int) -> Branch:
    return [("branch_pool", channels, 1, 1, 1)]


def _double(last_stride: int) -> Branch:
    return [
        ("branch3x3dbl_1", 64, 1, 1, 1),
        ("branch3x3dbl_2", 96, 3, 3, 1),
        ("branch3x3dbl_3", 96, 3, 3, last_stride),
    ]


def _block_35(pool: int) -> list[Branch]:
    fives: Branch = [("branch5x5_1", 48, 1, 1, 1), ("branch5x5_2", 64, 5, 5, 1)]
    return [[("branch1x1", 64, 1, 1, 1)], fives, _double(1), _pooled(pool)]


def _block_17(squeezed: int) -> list[Branch]:
    once: Branch = [
        ("branch7x7_1", squeezed, 1, 1, 1),
        ("branch7x7_2", squeezed, 1, 7, 1),
        ("branch7x7_3", 192, 7, 1, 1),
    ]
    twice: Branch = [
        ("branch7x7dbl_1", squeezed, 1, 1, 1),
        ("branch7x7dbl_2", squeezed, 7, 1, 1),
        ("branch7x7dbl_3", squeezed, 1, 7, 1),
        ("branch7x7dbl_4", squeezed, 7, 1, 1),
        ("branch7x7dbl_5", 192, 1, 7, 1),
    ]
    return [[("branch1x1", 192, 1, 1, 1)], once, twice, _pooled(192)]


def _block_8() -> list[Branch]:
    def fork(name: str) -> list[Layer]:
        return [(f"{name}a", 384, 1, 3, 1), (f"{name}b", 384, 3, 1, 1)]

    once: Branch = [("branch3x3_1", 384, 1, 1, 1), fork("branch3x3_2")]
    twice: Branch = [
        ("branch3x3dbl_1", 448, 1, 1, 1),
        ("branch3x3dbl_2", 384, 3, 3, 1),
        fork("branch3x3dbl_3"),
    ]
    return [[("branch1x1", 320, 1, 1, 1)], once, twice, _pooled(192)]


_SHRINK_35: list[Branch] = [[("branch3x3", 384, 3, 3, 2)], _double(2), []]
_SHRINK_17: list[Branch] = [
    [("branch3x3_1", 192, 1, 1, 1), ("branch3x3_2", 320, 3, 3, 2)],
    [
        ("branch7x7x3_1", 192, 1, 1, 1),
        ("branch7x7x3_2", 192, 1, 7, 1),
        ("branch7x7x3_3", 192, 7, 1, 1),
        ("branch7x7x3_4", 192, 3, 3, 2),
    ],
    [],
]
_BLOCKS = {  # name -> channels in, pool in front of the last branch, branches
    "Mixed_5b": (192, "average", _block_35(32)),
    "Mixed_5c": (256, "average", _block_35(64)),
    "Mixed_5d": (288, "average", _block_35(64)),
    "Mixed_6a": (288, "shrink", _SHRINK_35),
    "Mixed_6b": (768, "average", _block_17(128)),
    "Mixed_6c": (768, "average", _block_17(160)),
    "Mixed_6d": (768, "average", _block_17(160)),
    "Mixed_6e": (768, "average", _block_17(192)),
    "Mixed_7a": (768, "shrink", _SHRINK_17),
    "Mixed_7b": (1280, "average", _block_8()),
    "Mixed_7c": (2048, "maximum", _block_8()),
}


class Convolution(nn.Module):
    """Convolution, batch norm with eps 0.001, ReLU."""

    def __init__(
        self, before: int, after: int, height: int, width: int, stride: int = 1, padded: bool = True
    ) -> None:
        super().__init__()
        padding = (height // 2, width // 2) if padded else 0
        self.conv = nn.Conv2d(before, after, (height, width), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(after, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Mixed(nn.Module):
    """Branches beside each other, the last behind a pool."""

    def __init__(self, before: int, pool: str, branches: list[Branch]) -> None:
        super().__init__()
        self.pool, self.branches = pool, branches
        for branch in branches:
            channels = before
            for step in branch:
                layers = step if isinstance(step, list) else [step]
                for name, after, height, width, stride in layers:
                    layer = Convolution(channels, after, height, width, stride, stride == 1)
                    self.add_module(name, layer)
                channels = layers[-1][1]

    def forward(self, x: Tensor) -> Tensor:
        outputs: list[Tensor] = []
        for branch in self.branches:
            y = self._pooled(x) if branch is self.branches[-1] else x
            for step in branch:
                if isinstance(step, list):
                    outputs += [self.get_submodule(layer[0])(y) for layer in step]
                else:
                    y = self.get_submodule(step[0])(y)
            if not branch or not isinstance(branch[-1], list):
                outputs.append(y)
        return torch.cat(outputs, 1)

    def _pooled(self, x: Tensor) -> Tensor:
        if self.pool == "average":
            return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return F.max_pool2d(x, 3, 1, 1) if self.pool == "maximum" else F.max_pool2d(x, 3, 2)


class Inception(nn.Module):
    """(N, 3, 299, 299) in [-1, 1] -> features (N, 2048), and logits (N, 1008)."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, 3, 2, padded=False)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3, 3, padded=False)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3, 3)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1, 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3, 3, padded=False)
        for name, facts in _BLOCKS.items():
            self.add_module(name, Mixed(*facts))
        self.fc = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.max_pool2d(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))), 3, 2)
        x = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, 2)
        for name in _BLOCKS:
            x = self.get_submodule(name)(x)
        features = x.mean((2, 3))
        return features, self.fc(features)


def load_inception(path: Path) -> Inception:
    """The network with the weights of a .pth, which is read without running code from it.

    Raises:
        InputError: the file is no state dict, or not that of this network; names what is missing.
    """
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of several types for damaged and for foreign files
        detail = str(error).splitlines()[0]
        raise InputError(f"{path} is no readable file of weights: {detail}") from error
    weights = weights if isinstance(weights, dict) else {}
    net = Inception()
    own = {n: v for n, v in net.state_dict().items() if not n.endswith("num_batches_tracked")}
    for name, value in own.items():
        shape = tuple(value.shape)
        if tuple(getattr(weights.get(name), "shape", (-1,))) != shape:
            raise InputError(
                f"{path} is not the Inception-v3 of the FID: it has no {name} of shape {shape}"
            )
    net.load_state_dict({name: weights[name] for name in own}, strict=False)
    return net
