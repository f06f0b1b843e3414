"""Counter-based random numbers on any device: words, uniforms and normals as a pure function of (seed, stream, index).

Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), in the convention of NumPy: row `index`
holds the words of `np.random.Philox(key=[seed, stream], counter=[0, index, 0, 0])`. Because no state is kept, a picture is
the same in any batch, and a resumed run draws what an uninterrupted one would have drawn.

Plain torch integer operations: int64 arithmetic wraps like uint64, only shifts need a mask. It runs on every device, compiles and
can be captured. `ganfast.export.latents` is the same function in NumPy, for a sampler without torch.
"""

import math

import torch
from torch import Tensor

_LOW32 = 0xFFFFFFFF
_ROUNDS = 10


def _signed(word: int) -> int:
    return word - (1 << 64) if word >= 1 << 63 else word


_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)  # key increments: golden ratio, sqrt(3) - 1


def philox_words(seed: int, stream: int, index: Tensor, count: int) -> Tensor:
    """Raw 64-bit words.

    Args:
        seed, stream: the key, each 0 <= k < 2**64.
        index: rows, int64, (N,).
        count: words per row.

    Returns:
        int64 (N, count): the bits of NumPy's uint64 words.
    """
    blocks = -(-count // 4)
    block = torch.arange(1, blocks + 1, device=index.device)  # NumPy advances the counter before its first block
    c0 = block.expand(len(index), blocks).reshape(-1)
    c1 = index[:, None].expand(len(index), blocks).reshape(-1)
    c2 = c3 = torch.zeros_like(c0)
    for round_ in range(_ROUNDS):
        k0, k1 = (_signed((key + round_ * step) % (1 << 64)) for key, step in zip((seed, stream), _WEYL, strict=True))
        (high0, low0), (high1, low1) = _multiply(c0, _MULTIPLIERS[0]), _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
    return torch.stack([c0, c1, c2, c3], dim=1).view(len(index), blocks * 4)[:, :count]


def _multiply(a: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """High and low 64 bits of the 128-bit product, from 32-bit halves."""
    m0, m1 = multiplier & _LOW32, multiplier >> 32
    a0, a1 = a & _LOW32, (a >> 32) & _LOW32
    middle = a1 * m0 + ((a0 * m0 >> 32) & _LOW32)
    carry = (middle & _LOW32) + a0 * m1
    return a1 * m1 + ((middle >> 32) & _LOW32) + ((carry >> 32) & _LOW32), a * _signed(multiplier)


def uniforms_reference(seed: int, stream: int, index: Tensor, count: int) -> Tensor:
    """Uniforms in [0, 1) with 53 random bits, float64 (N, count). Arguments as `philox_words`."""
    return ((philox_words(seed, stream, index, count) >> 11) & ((1 << 53) - 1)).double() * 2.0**-53


def latents_reference(seed: int, stream: int, index: Tensor, count: int) -> Tensor:
    """Standard normals by Box-Muller in float64, rounded once to float32 (N, count). Arguments as `philox_words`."""
    pairs = uniforms_reference(seed, stream, index, count + count % 2)
    radius = torch.sqrt(-2.0 * torch.log1p(-pairs[:, 0::2]))  # 1 - u lies in (0, 1]: never log(0)
    angle = 2.0 * math.pi * pairs[:, 1::2]
    normals = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=2)
    return normals.flatten(1)[:, :count].float()
