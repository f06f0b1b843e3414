"""SqueezeNet 1.0 as a feature network (Iandola 2016, arXiv:1602.07360), from the user's weights.

Weights are an .npz of `<layer>/weight` (out, in, h, w) and `<layer>/bias` in float32: the Caffe
model with layers conv1, fire2 .. fire9 (conv1x1_1, conv1x1_2, conv3x3_2) and conv_final. Input is
BGR, 0..255 minus (104, 117, 123). Pooling rounds up, as Caffe does. Features are the 512 channel
means after fire9. A distance between them is no FID: that name belongs to Inception.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ganfast.errors import InputError
from ganfast.evaluate.extractor import Preprocessing
from ganfast.outside import reading

FEATURES = 512
PREPROCESSING = Preprocessing(size=0, channels=3, mean=(104.0, 117.0, 123.0), std=(1.0,), bgr=True)
_FIRES = {2: (96, 16, 64), 3: (128, 16, 64), 4: (128, 32, 128), 5: (256, 32, 128)}
_FIRES |= {6: (256, 48, 192), 7: (384, 48, 192), 8: (384, 64, 256), 9: (512, 64, 256)}


class Fire(nn.Module):
    """Squeeze to few channels, expand by 1x1 and 3x3 convolutions side by side."""

    def __init__(self, before: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.conv1x1_1 = nn.Conv2d(before, squeezed, 1)
        self.conv1x1_2 = nn.Conv2d(squeezed, expanded, 1)
        self.conv3x3_2 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        squeezed = self.conv1x1_1(x).relu()
        return torch.cat([self.conv1x1_2(squeezed), self.conv3x3_2(squeezed)], 1).relu()


class SqueezeNet(nn.Module):
    """(N, 3, H, W) prepared -> features (N, 512)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 96, 7, 2)
        for number, shape in _FIRES.items():
            self.add_module(f"fire{number}", Fire(*shape))
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.conv1(x).relu())
        for number in _FIRES:
            x = self.get_submodule(f"fire{number}")(x)
            if number in (4, 8):
                x = self.pool(x)
        return x.mean((2, 3))


def load_squeezenet(path: Path) -> SqueezeNet:
    """The network with the weights of an .npz.

    Raises:
        InputError: the file is no .npz, or does not hold SqueezeNet 1.0; names what is missing.
    """
    net = SqueezeNet()
    with reading(path, problem="is no .npz file"), np.load(path, allow_pickle=False) as file:
        weights = {name.replace("/", "."): torch.from_numpy(file[name]) for name in file.files}
    own = net.state_dict()
    for name, value in own.items():
        if name not in weights or weights[name].shape != value.shape:
            raise InputError(
                f"{path} is not SqueezeNet 1.0: "
                f"it has no {name.replace('.', '/')} of shape {tuple(value.shape)}"
            )
    net.load_state_dict({name: weights[name] for name in own})
    return net
