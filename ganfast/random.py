"""All randomness of a run: pure functions of (seed, purpose, image counter).

Nothing here has a state to save. A step that shows pictures [n, n + batch) draws these rows of
each purpose, so that a checkpoint stores one counter. The same numbers come up after a resume, on
any device, and on any number of ranks.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ganfast.kernels.latents import latents, philox_words, uniforms
from ganfast.latents import Purpose


def normal(seed: int, purpose: Purpose, index: Tensor, dim: int) -> Tensor:
    """float32 (N, dim) standard normals for image counters ``index``, int64 (N,)."""
    return latents(seed, purpose, index, dim)


def uniform(seed: int, purpose: Purpose, index: Tensor, dim: int = 1) -> Tensor:
    """float32 (N, dim) in [0, 1) for image counters ``index``, int64 (N,)."""
    parts = uniforms(seed, purpose, index, dim) * 2.0**24
    return parts.floor().float() * 2.0**-24  # without floor a float32 may round up to 1


def noise(seed: int, purpose: Purpose, index: Tensor, dim: int) -> Tensor:
    """As `uniform`, in multiples of 2**-13: four numbers a word, finer than a picture's greys."""
    words = (uniforms(seed, purpose, index, -(-dim // 4)) * 2.0**52).to(torch.int64)
    parts = torch.stack([(words >> shift) & 0x1FFF for shift in (39, 26, 13, 0)], dim=2)
    return parts.flatten(1)[:, :dim].float() * 2.0**-13


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


_SHUFFLE_ROUNDS = 64
_PARTNER, _SWAP = 0x9E3779B9, 0x85EBCA6B  # what a round adds to its two keys
_WORD = 0xFFFFFFFF


def permute(
    position: Tensor, size: Tensor | int, seed: int, purpose: Purpose, epoch: Tensor
) -> Tensor:
    """Where a keyed shuffle of [0, size) sends each position.

    Every (seed, purpose, epoch) has an exact permutation of its own.
    Swap-or-not (Hoang, Morris, Rogaway, CRYPTO 2012): round r pairs x with K_r - x mod size and
    swaps the pair or not by one keyed bit of the larger. Each round is its own inverse, so any
    round function gives a permutation. All is elementwise: no sort, no table, no loop that depends
    on data. A CUDA graph can therefore capture it; a CPU, which captures nothing, uses NumPy.

    Args:
        position: int64 (N,), 0 <= position < size.
        size: int or int64 (N,), >= 1, < 2**31.
        epoch: int64 (N,), which shuffle each position belongs to.

    Returns:
        int64 (N,) in [0, size).
    """
    permuted = _permuted_on_host if position.device.type == "cpu" else _permuted_on_device
    return permuted(position, size, seed, purpose, epoch)


def _permuted_on_device(
    position: Tensor, size: Tensor | int, seed: int, purpose: Purpose, epoch: Tensor
) -> Tensor:
    """The definition of `permute`, which a graph can capture."""
    key = philox_words(seed, purpose, epoch, 2) & _WORD
    x = position
    for round_ in range(_SHUFFLE_ROUNDS):
        partner = (_mix((key[:, 0] + round_ * _PARTNER) & _WORD) - x) % size
        larger = torch.maximum(x, partner)
        swap = _mix(larger ^ _mix((key[:, 1] + round_ * _SWAP) & _WORD)) & 0x10000
        x = torch.where(swap != 0, partner, x)
    return x


def _mix(x: Any) -> Any:
    """The finaliser of MurmurHash3 (public domain constants), of 32-bit words in int64 tensors or
    arrays: every bit reaches every other.
    """
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & _WORD
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & _WORD
    return x ^ (x >> 16)


_ROWS = 1 << 14  # positions shuffled together on a CPU: a round's arrays stay in its caches


def _permuted_on_host(
    position: Tensor, size: Tensor | int, seed: int, purpose: Purpose, epoch: Tensor
) -> Tensor:
    """The same permutation in a fifth of the time.

    NumPy computes in words of 32 bits, which torch lacks; the keys of an epoch are made once.
    """
    epochs, which = np.unique(epoch.numpy(), return_inverse=True)
    key = (philox_words(seed, purpose, torch.from_numpy(epochs), 2) & _WORD).numpy()
    rounds = np.arange(_SHUFFLE_ROUNDS)[:, None]
    pairing, swapping = (
        _mix((key[:, k] + rounds * step) & _WORD) for k, step in ((0, _PARTNER), (1, _SWAP))
    )  # (rounds, epochs)
    salts = swapping.astype(np.uint32)
    shuffled = np.empty(len(position), np.int64)
    for start in range(0, len(shuffled), _ROWS):
        rows = slice(start, start + _ROWS)
        keys = which[rows] if len(epochs) > 1 else slice(None)
        if isinstance(size, Tensor):
            sizes = size.numpy()[rows]
            offset = pairing[:, keys] % sizes
        else:
            sizes = np.array([size])
            offset = (pairing % size)[:, keys]
        x = position.numpy()[rows].astype(np.uint32)
        shuffled[rows] = _rounds(
            x, sizes.astype(np.uint32), offset.astype(np.uint32), salts[:, keys]
        )
    return torch.from_numpy(shuffled)


def _rounds(
    x: NDArray[np.uint32],
    size: NDArray[np.uint32],
    offset: NDArray[np.uint32],
    salt: NDArray[np.uint32],
) -> NDArray[np.uint32]:
    """The rounds of `permute` modulo 2**32; ``offset``, ``salt`` (rounds, N), or (rounds, 1)."""
    for round_ in range(_SHUFFLE_ROUNDS):
        partner = offset[round_] - x
        np.minimum(partner, partner + size, out=partner)  # a negative one is 2**32 less: far larger
        bits = np.maximum(x, partner)
        bits ^= salt[round_]
        bits ^= bits >> 16
        bits *= np.uint32(0x85EBCA6B)
        bits ^= bits >> 13
        bits *= np.uint32(0xC2B2AE35)  # bit 16 is done: what `_mix` adds last does not reach it
        partner -= x
        partner *= (bits >> 16) & 1
        x += partner
    return x
