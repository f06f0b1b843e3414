"""A small convolutional classifier of the data at hand: feature extractor and judge of labels."""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ganfast.data import Pack
from ganfast.device import prepared
from ganfast.latents import Purpose
from ganfast.random import permute, uniform

FEATURES = 64
_BATCH = 128
_SHIFT = 2  # pixels by which training pictures are moved at most, in each direction


class Classifier(nn.Module):
    """Pictures (N, C, S, S) in [-1, 1] -> features (N, 64) and logits (N, classes).

    Features are the means of the last layer's maps.
    """

    def __init__(self, size: int, channels: int, classes: int) -> None:
        super().__init__()
        halvings = max(1, math.ceil(math.log2(size / 8)))  # down to 5 to 8 pixels
        layers: list[nn.Module] = []
        widths = [16, *[32] * (halvings - 1), 32, FEATURES]
        for number, (before, after) in enumerate(pairwise([channels, *widths])):
            layers += [nn.Conv2d(before, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after)]
            layers += [nn.ReLU(), nn.MaxPool2d(2)] if number < halvings else [nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(FEATURES, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.layers(x).mean((2, 3))
        return features, self.head(features)


def train_classifier(
    pack: Pack,
    seed: int,
    epochs: int,
    device: torch.device,
    progress: Callable[[str, int, int], None] | None = None,
    positions: np.ndarray | None = None,
) -> Classifier:
    """Train on the pictures at ``positions`` of a pack (None = all), moved by up to 2 pixels, with
    AdamW, cross entropy and a one-cycle rate.

    On a CPU the weights are a function of (pack, seed, epochs, positions, threads).
    """
    assert pack.labels is not None
    among = torch.from_numpy(np.arange(len(pack.images)) if positions is None else positions)
    count, labels = len(among), torch.from_numpy(np.array(pack.labels)).to(device)
    batch = min(_BATCH, max(2, count // 8))

    def batches() -> Batches:
        for epoch in range(epochs):
            position = torch.arange(count)
            order = permute(position, count, seed, Purpose.JUDGE, torch.full_like(position, epoch))
            u = uniform(seed, Purpose.JUDGE, position + epoch * count, 3)
            moves = (u * torch.tensor([5, 5, 2])).long()
            for rows in order[: count // batch * batch].view(-1, batch):
                chosen = among[rows]
                x = as_input(_chosen(pack, chosen), device)
                yield moved(x, moves[rows[0]], pack.info.flip), labels[chosen.to(device)]

    shape = pack.info.size, pack.info.channels, len(pack.info.classes)
    return fitted(*shape, seed, device, epochs * (count // batch), batches(), progress)


Batches = Iterator[tuple[Tensor, Tensor]]  # pictures (N, C, S, S) in [-1, 1], classes int64 (N,)


def fitted(
    size: int,
    channels: int,
    classes: int,
    seed: int,
    device: torch.device,
    steps: int,
    batches: Batches,
    progress: Callable[[str, int, int], None] | None = None,
) -> Classifier:
    """A new classifier after one step on each of ``steps`` batches; ``seed`` gives its weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Classifier(size, channels, classes)
    prepared(net, device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, max(2, steps))
    net.train()
    for done, (x, labels) in enumerate(batches, 1):
        loss = F.cross_entropy(net(x)[1], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if progress and done % 20 == 0:
            progress("training a classifier", done, steps)
    return net.eval().requires_grad_(False)


def as_input(pictures: Tensor, device: torch.device) -> Tensor:
    """uint8 (N, C, H, W) to float32 in [-1, 1] on a device, channels last in memory."""
    return pictures.to(device).float().div_(127.5).sub_(1).to(memory_format=torch.channels_last)


def moved(x: Tensor, move: Tensor, flip: bool) -> Tensor:
    """A batch shifted by move[:2] - 2 pixels into black; mirrored if ``flip`` and move[2]."""
    dy, dx, mirror = move.tolist()
    height, width = x.shape[2:]
    x = F.pad(x, (_SHIFT,) * 4, value=-1.0)[:, :, dy : dy + height, dx : dx + width]
    return x.flip(3) if flip and mirror else x


def accuracy(net: Classifier, pack: Pack) -> float:
    """Share of a pack's pictures whose most probable class is theirs."""
    assert pack.labels is not None
    device = net.head.weight.device
    right = 0
    with torch.no_grad():
        for start in range(0, len(pack.images), 500):
            rows = torch.arange(start, min(start + 500, len(pack.images)))
            _, logits = net(as_input(_chosen(pack, rows), device))
            classes = logits.argmax(1).cpu().numpy()
            right += int((classes == pack.labels[start : start + 500]).sum())
    return right / len(pack.images)


def _chosen(pack: Pack, rows: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pack.images[rows.numpy()]))
