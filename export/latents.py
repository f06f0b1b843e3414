"""Latents as a pure function of (seed, stream, index), in NumPy: what a sampler draws from, with no torch installed.

The words of row `index` are those of `np.random.Philox(key=[seed, stream], counter=[0, index, 0, 0])`; uniforms have 53 bits;
normals are Box-Muller in float64, rounded once to float32. So picture (seed, index) is the same in any batch, thread and back end.
`np.random.Philox` itself would need one object a row; this draws all rows at once.
"""

import numpy as np
from numpy.typing import NDArray

_LOW32 = np.uint64(0xFFFFFFFF)
_MULTIPLIERS = (np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157))
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)


def philox_words(seed: int, stream: int, index: NDArray[np.integer], count: int) -> NDArray[np.uint64]:
    """Raw words, uint64 (N, count), for rows ``index`` (N,) of the key ``(seed, stream)``, each 0 <= k < 2**64."""
    blocks = -(-count // 4)
    index = np.asarray(index).astype(np.uint64)
    c0 = np.tile(np.arange(1, blocks + 1, dtype=np.uint64), len(index))  # NumPy advances the counter before its first block
    c1 = np.repeat(index, blocks)
    c2, c3 = np.zeros_like(c0), np.zeros_like(c0)
    for round_ in range(10):
        k0, k1 = (np.uint64((key + round_ * step) % (1 << 64)) for key, step in zip((seed, stream), _WEYL, strict=True))
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
    return np.stack([c0, c1, c2, c3], axis=1).reshape(len(index), blocks * 4)[:, :count]


def _multiply(a: NDArray[np.uint64], m: np.uint64) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """High and low words of the 128-bit product, from 32-bit halves."""
    shift = np.uint64(32)
    a0, a1, m0, m1 = a & _LOW32, a >> shift, m & _LOW32, m >> shift
    middle = a1 * m0 + (a0 * m0 >> shift)
    carry = (middle & _LOW32) + a0 * m1
    return a1 * m1 + (middle >> shift) + (carry >> shift), a * m


def latents(seed: int, index: NDArray[np.integer], dim: int, stream: int = 0) -> NDArray[np.float32]:
    """Standard normal latents, float32 (N, dim).

    Args:
        seed: 0 <= seed < 2**64.
        index: which pictures, (N,) integers >= 0; (seed, index) names a picture for good.
        dim: latent size of the generator.
        stream: 0 is what users sample from; training and evaluation use others, so that they never meet.
    """
    words = philox_words(seed, stream, index, dim + dim % 2)
    pairs = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
    radius = np.sqrt(-2.0 * np.log1p(-pairs[:, 0::2]))  # 1 - u lies in (0, 1]: never log(0)
    angle = 2.0 * np.pi * pairs[:, 1::2]
    normals = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=2)
    return normals.reshape(len(words), -1)[:, :dim].astype(np.float32)


_CLASS_STREAM = 13  # of the key (seed, stream); see ganfast.random.Purpose


def random_classes(seed: int, index: NDArray[np.integer], count: int) -> NDArray[np.int64]:
    """A class for each picture, int64 (N,) in [0, count), uniform, and as fixed by (seed, index) as its latent."""
    words = philox_words(seed, _CLASS_STREAM, index, 1)[:, 0]
    return ((words >> np.uint64(11)).astype(np.float64) * 2.0**-53 * count).astype(np.int64)
