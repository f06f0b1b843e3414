"""A small classifier trained on the spot to >= 99% on MNIST's test set: the judge of the generated digits."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ganfast.data.pack import Pack, open_data


def classifier() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, 1, 1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, 1, 1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * 49, 10),
    )  # fmt: skip


def as_input(pictures: np.ndarray) -> torch.Tensor:
    """uint8 (N, 28, 28, 1) or (N, 1, 28, 28) to float (N, 1, 28, 28) in [-1, 1]."""
    return torch.from_numpy(np.array(pictures)).reshape(-1, 1, 28, 28).float() / 127.5 - 1


def train_judge(root: str, epochs: int = 3) -> tuple[nn.Module, float]:
    """The classifier and its test accuracy."""
    train, test = (open_data("mnist", split=split, root=root) for split in ("train", "test"))
    torch.manual_seed(0)
    net = classifier().to(memory_format=torch.channels_last)
    steps = epochs * (len(train.images) // 128)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, steps)
    labels = torch.from_numpy(np.array(train.labels))
    for _ in range(epochs):
        for index in torch.randperm(len(labels))[: steps // epochs * 128].view(-1, 128):
            index = index.sort().values
            x = as_input(train.images[index.numpy()]).to(memory_format=torch.channels_last)
            loss = F.cross_entropy(net(x), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    net.eval()
    return net, accuracy(net, test)


@torch.no_grad()
def probabilities(net: nn.Module, pictures: np.ndarray) -> torch.Tensor:
    """Class probabilities (N, 10)."""
    return torch.cat([net(part).softmax(1) for part in as_input(pictures).split(500)])


def accuracy(net: nn.Module, test: Pack) -> float:
    found = probabilities(net, test.images).argmax(1).numpy()
    return float((found == np.asarray(test.labels)).mean())


@dataclass(frozen=True)
class Verdict:
    sure: float  # share of pictures on which the judge is >= 0.9 sure
    shares: tuple[float, ...]  # of each digit, as the judge sees them


def verdict(net: nn.Module, pictures: np.ndarray) -> Verdict:
    p = probabilities(net, pictures)
    counts = torch.bincount(p.argmax(1), minlength=10) / len(p)
    return Verdict(float((p.max(1).values >= 0.9).float().mean()), tuple(counts.tolist()))
