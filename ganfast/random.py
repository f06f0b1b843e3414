"""All randomness of a run: pure functions of (seed, purpose, image counter).

Nothing here has a state to save. A step that shows pictures [n, n + batch) draws these rows of
each purpose, so that a checkpoint stores one counter. The same numbers come up after a resume, on
any device, and on any number of ranks.
"""

import torch
from torch import Tensor

from ganfast.kernels.latents import coins, grains, latents, philox_words, uniforms
from ganfast.kernels.shuffle import permute
from ganfast.latents import Purpose

__all__ = ["coin", "device_generator", "noise", "normal", "permute", "scalar_seed", "uniform"]


def normal(
    seed: int, purpose: Purpose, index: Tensor, dim: int, out: Tensor | None = None
) -> Tensor:
    """float32 (N, dim) standard normals for image counters ``index``, int64 (N,).

    ``out``: where they go, (groups, rows, dim) with groups * rows = N, whose last two dimensions
    are contiguous; None = a new tensor. So for the next two.
    """
    return latents(seed, purpose, index, dim, out)


def uniform(
    seed: int, purpose: Purpose, index: Tensor, dim: int = 1, out: Tensor | None = None
) -> Tensor:
    """float32 (N, dim) in [0, 1), multiples of 2**-24, for image counters ``index``, int64 (N,)."""
    return uniforms(seed, purpose, index, dim, out)


def coin(seed: int, purpose: Purpose, index: Tensor, out: Tensor | None = None) -> Tensor:
    """bool (N, 1), true with probability 1/2: whether `uniform` is below 1/2."""
    return coins(seed, purpose, index, 1, out)


def noise(seed: int, purpose: Purpose, index: Tensor, dim: int) -> Tensor:
    """As `uniform`, in multiples of 2**-13: four numbers a word, finer than a picture's greys."""
    return grains(seed, purpose, index, dim)


def device_generator(device: torch.device) -> torch.Generator:
    """The generator that layers on a device draw from.

    To seed it takes 1 us; `torch.manual_seed` seeds the generators of all devices and takes 150.
    """
    if device.type == "cuda":
        torch.cuda.init()
        return torch.cuda.default_generators[device.index or 0]
    return torch.default_generator


def scalar_seed(seed: int, purpose: Purpose, index: int) -> int:
    """A 63-bit seed for a generator that keeps its own state."""
    return int(philox_words(seed, purpose, torch.tensor([index]), 1)) & (2**63 - 1)
