"""A keyed shuffle: every (seed, stream, epoch) has an exact permutation of [0, size) of its own.

Swap-or-not (Hoang, Morris, Rogaway, CRYPTO 2012): round r pairs x with K_r - x mod size and swaps
the pair or not by one keyed bit of the larger. Each round is its own inverse, so any round function
gives a permutation. All is elementwise: no sort, no table, no loop that depends on data.

The definition is plain torch on int64. A GPU runs it in one kernel, a CPU in NumPy; both compute
in words of 32 bits, which torch lacks.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ganfast.kernels._triton import blocks, jit, launch, tl, use_triton
from ganfast.kernels.latents import philox_block, philox_numbers, philox_words

_ROUNDS = 64
_PARTNER, _SWAP = 0x9E3779B9, 0x85EBCA6B  # what a round adds to its two keys
_WORD = 0xFFFFFFFF


def permute_reference(
    position: Tensor, size: Tensor | int, seed: int, stream: int, epoch: Tensor
) -> Tensor:
    """The definition; arguments as `permute`."""
    key = philox_words(seed, stream, epoch, 2) & _WORD
    x = position
    for round_ in range(_ROUNDS):
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


@jit
def _mixed(x):
    """`_mix` of uint32, whose products wrap by themselves."""
    x = (x ^ (x >> 16)) * 0x85EBCA6B
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    return x ^ (x >> 16)


@jit
def _shuffle_kernel(
    position_ptr,
    size_ptr,
    epoch_ptr,
    out_ptr,
    N,
    size,
    k0,
    k1,
    m0,
    m1,
    w0,
    w1,
    SIZES: tl.constexpr,
    ROUNDS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``size_ptr`` is read where SIZES says that every position has a size of its own. Keys,
    multipliers and increments are those of `philox_block`."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < N
    x = tl.load(position_ptr + i, mask=inside, other=0).to(tl.uint32)
    epoch = tl.load(epoch_ptr + i, mask=inside, other=0).to(tl.uint64)
    if SIZES:
        n = tl.load(size_ptr + i, mask=inside, other=1).to(tl.uint32)
    else:
        n = tl.cast(size, tl.uint32)  # by function, because a size of 1 comes as a constant
    c0, c1, _, _ = philox_block(epoch * 0 + 1, epoch, k0, k1, m0, m1, w0, w1)
    pairing, swapping = c0.to(tl.uint32), c1.to(tl.uint32)
    for _ in range(ROUNDS):
        offset = _mixed(pairing) % n
        partner = tl.where(offset >= x, offset - x, offset + (n - x))
        swap = _mixed(tl.maximum(x, partner) ^ _mixed(swapping)) & 0x10000
        x = tl.where(swap != 0, partner, x)
        pairing += 0x9E3779B9
        swapping += 0x85EBCA6B
    tl.store(out_ptr + i, x.to(tl.int64), mask=inside)


_BLOCK = 128


def permute_triton(
    position: Tensor, size: int, sizes: Tensor | None, seed: int, stream: int, epoch: Tensor
) -> Tensor:
    """The launcher; arguments as `permute`, of which ``sizes`` replace ``size`` where given."""
    position, epoch = position.contiguous(), epoch.contiguous()
    out = torch.empty_like(position)
    given = position if sizes is None else sizes.contiguous()
    arguments = (position, given, epoch, out, len(out), size, *philox_numbers(seed, stream))
    flags = {"SIZES": sizes is not None, "ROUNDS": _ROUNDS, "BLOCK": _BLOCK, "num_warps": 4}
    launch(_shuffle_kernel, (blocks(len(out), _BLOCK),), out.device, *arguments, **flags)
    return out


_op = torch.library.custom_op("ganfast::permute", permute_triton, mutates_args=())


@_op.register_fake
def _(
    position: Tensor, size: int, sizes: Tensor | None, seed: int, stream: int, epoch: Tensor
) -> Tensor:
    return torch.empty_like(position, memory_format=torch.contiguous_format)


def permute(position: Tensor, size: Tensor | int, seed: int, stream: int, epoch: Tensor) -> Tensor:
    """Where the shuffle sends each position.

    Args:
        position: int64 (N,), 0 <= position < size.
        size: int or int64 (N,), >= 1, < 2**31.
        seed, stream: the key, each 0 <= k < 2**64.
        epoch: int64 (N,), which shuffle each position belongs to.

    Returns:
        int64 (N,) in [0, size).
    """
    if use_triton(position):
        one, each = (0, size) if isinstance(size, Tensor) else (size, None)
        seed, stream = philox_numbers(seed, stream)[:2]  # as int64, which an operation takes
        return _op(position, one, each, seed, stream, epoch)
    on_cpu = position.device.type == "cpu"
    return (_permuted_on_host if on_cpu else permute_reference)(position, size, seed, stream, epoch)


_ROWS = 1 << 14  # positions shuffled together on a CPU: a round's arrays stay in its caches


def _permuted_on_host(
    position: Tensor, size: Tensor | int, seed: int, stream: int, epoch: Tensor
) -> Tensor:
    """The same permutation in a fifth of the definition's time; the keys of an epoch are made
    once."""
    epochs, which = np.unique(epoch.numpy(), return_inverse=True)
    key = (philox_words(seed, stream, torch.from_numpy(epochs), 2) & _WORD).numpy()
    rounds = np.arange(_ROUNDS)[:, None]
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
    """The rounds modulo 2**32; ``offset``, ``salt`` (rounds, N), or (rounds, 1)."""
    for round_ in range(_ROUNDS):
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
