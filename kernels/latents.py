"""Counter-based random numbers on any device: words, uniforms and normals as a pure function of
(seed, stream, index).

Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), in the
convention of NumPy: row `index` holds the words of `np.random.Philox(key=[seed, stream],
counter=[0, index, 0, 0])`. Because no state is kept, a picture is the same in any batch, and a
resumed run draws what an uninterrupted one would have drawn.

The reference is plain torch integer operations: int64 arithmetic wraps like uint64, only shifts
need a mask. It runs on every device, compiles and can be captured. `ganfast.latents` is the same
function in NumPy, for a sampler without torch.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ganfast.kernels._triton import blocks, jit, launch, tl, use_triton

_LOW32 = 0xFFFFFFFF
_ROUNDS = 10


def _signed(word: int) -> int:
    return word - (1 << 64) if word >= 1 << 63 else word


_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)  # key increments: golden ratio, sqrt(3) - 1


def _keys(seed: int, stream: int, round_: int) -> list[int]:
    """The two 64-bit keys of a round."""
    steps = zip((seed, stream), _WEYL, strict=True)
    return [(key + round_ * step) % (1 << 64) for key, step in steps]


def philox_words(seed: int, stream: int, index: Tensor, count: int) -> Tensor:
    """Raw 64-bit words.

    Args:
        seed, stream: the key, each 0 <= k < 2**64.
        index: rows, int64, (N,).
        count: words per row.

    Returns:
        int64 (N, count): the bits of NumPy's uint64 words.
    """
    plain = type(index) is Tensor and index.dtype == torch.int64 and index.device.type == "cpu"
    on_host = plain and not torch.compiler.is_compiling()
    return (_words_on_host if on_host else _words_on_device)(seed, stream, index, count)


def _words_on_device(seed: int, stream: int, index: Tensor, count: int) -> Tensor:
    """The definition of `philox_words`."""
    blocks = -(-count // 4)
    # NumPy advances the counter before its first block.
    block = torch.arange(1, blocks + 1, device=index.device)
    c0 = block.expand(len(index), blocks).reshape(-1)
    c1 = index[:, None].expand(len(index), blocks).reshape(-1)
    c2 = c3 = torch.zeros_like(c0)
    for round_ in range(_ROUNDS):
        k0, k1 = map(_signed, _keys(seed, stream, round_))
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
    return torch.stack([c0, c1, c2, c3], dim=1).view(len(index), blocks * 4)[:, :count]


def _multiply(a: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """High and low 64 bits of the 128-bit product, from 32-bit halves."""
    m0, m1 = multiplier & _LOW32, multiplier >> 32
    a0, a1 = a & _LOW32, (a >> 32) & _LOW32
    middle = a1 * m0 + ((a0 * m0 >> 32) & _LOW32)
    carry = (middle & _LOW32) + a0 * m1
    return a1 * m1 + ((middle >> 32) & _LOW32) + ((carry >> 32) & _LOW32), a * _signed(multiplier)


# Blocks of four words that NumPy makes together, so that a round's arrays stay in the caches.
_CHUNK = 1 << 13
_HALF = np.uint64(32)


def _words_on_host(seed: int, stream: int, index: Tensor, count: int) -> Tensor:
    """In half the time with NumPy's unsigned words: shifts need no masks, sums are in place."""
    blocks, rows = -(-count // 4), index.numpy().view(np.uint64)
    words = np.empty((len(rows), blocks, 4), np.uint64)
    keys = [[np.uint64(k) for k in _keys(seed, stream, round_)] for round_ in range(_ROUNDS)]
    step = max(1, _CHUNK // max(1, blocks))
    for start in range(0, len(rows), step):
        some = rows[start : start + step]
        c0 = np.tile(np.arange(1, blocks + 1, dtype=np.uint64), len(some))
        c1 = np.repeat(some, blocks)
        c2, c3 = np.zeros_like(c0), np.zeros_like(c0)
        for k0, k1 in keys:
            high0, low0 = _multiply_on_host(c0, _MULTIPLIERS[0])
            high1, low1 = _multiply_on_host(c2, _MULTIPLIERS[1])
            high1 ^= c1
            high1 ^= k0
            high0 ^= c3
            high0 ^= k1
            c0, c1, c2, c3 = high1, low1, high0, low0
        chunk = words[start : start + step].reshape(-1, 4)
        for k, word in enumerate((c0, c1, c2, c3)):
            chunk[:, k] = word
    return torch.from_numpy(words.view(np.int64).reshape(len(rows), blocks * 4)[:, :count])


def _multiply_on_host(
    a: NDArray[np.uint64], multiplier: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """High and low 64 bits of the 128-bit product, from 32-bit halves."""
    m0, m1 = np.uint64(multiplier & _LOW32), np.uint64(multiplier >> 32)
    a0, high = a & _LOW32, a >> _HALF
    middle = a0 * m0
    middle >>= _HALF
    middle += high * m0
    a0 *= m1
    a0 += middle & _LOW32
    a0 >>= _HALF
    high *= m1
    middle >>= _HALF
    high += middle
    high += a0
    return high, a * np.uint64(multiplier)


def _exact_uniforms(seed: int, stream: int, index: Tensor, count: int) -> Tensor:
    """Uniforms in [0, 1) with 53 random bits, float64 (N, count). Arguments as `philox_words`."""
    return ((philox_words(seed, stream, index, count) >> 11) & ((1 << 53) - 1)).double() * 2.0**-53


def latents_reference(seed: int, stream: int, index: Tensor, count: int) -> Tensor:
    """Standard normals, float32 (N, count), by Box-Muller in float64. See `philox_words`."""
    pairs = _exact_uniforms(seed, stream, index, count + count % 2)
    radius = torch.sqrt(-2.0 * torch.log1p(-pairs[:, 0::2]))  # 1 - u lies in (0, 1]: never log(0)
    angle = 2.0 * math.pi * pairs[:, 1::2]
    normals = torch.empty(pairs.shape, dtype=torch.float32, device=index.device)
    # Written in place, because to stack them takes a CPU longer than cosine and sine.
    normals[:, 0::2] = radius * torch.cos(angle)
    normals[:, 1::2] = radius * torch.sin(angle)
    return normals[:, :count].contiguous()


def uniforms_reference(seed: int, stream: int, index: Tensor, count: int) -> Tensor:
    """Uniforms in [0, 1) with 24 random bits, float32 (N, count). See `philox_words`."""
    parts = _exact_uniforms(seed, stream, index, count) * 2.0**24
    return parts.floor().float() * 2.0**-24  # without floor a float32 may round up to 1


def coins_reference(seed: int, stream: int, index: Tensor, count: int) -> Tensor:
    """Whether a uniform is below 1/2, bool (N, count). See `philox_words`."""
    return _exact_uniforms(seed, stream, index, count) < 0.5


def grains_reference(seed: int, stream: int, index: Tensor, count: int) -> Tensor:
    """Uniforms in [0, 1) with 13 random bits, four from a word, float32 (N, count). See
    `philox_words`."""
    words = (_exact_uniforms(seed, stream, index, -(-count // 4)) * 2.0**52).to(torch.int64)
    parts = torch.stack([(words >> shift) & 0x1FFF for shift in (39, 26, 13, 0)], dim=2)
    return parts.flatten(1)[:, :count].float() * 2.0**-13


@jit
def philox_block(c0, c1, k0, k1, m0, m1, w0, w1):
    """The four words of the counters (c0, c1, 0, 0), uint64. The rest is `philox_numbers`."""
    c2 = c0 * 0
    c3 = c2
    # Cast by function, because a key of 1 comes as a constant, which has no `.to`.
    key0, key1 = tl.cast(k0, tl.uint64), tl.cast(k1, tl.uint64)
    mul0, mul1 = m0.to(tl.uint64), m1.to(tl.uint64)
    for _ in tl.static_range(10):
        high0, high1 = tl.umulhi(c0, mul0), tl.umulhi(c2, mul1)
        low0, low1 = c0 * mul0, c2 * mul1
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
        key0 += w0.to(tl.uint64)
        key1 += w1.to(tl.uint64)
    return c0, c1, c2, c3


def philox_numbers(seed: int, stream: int) -> list[int]:
    """Keys, multipliers and increments as int64 bits, in which a kernel takes them."""
    words = (seed % (1 << 64), stream % (1 << 64), *_MULTIPLIERS, *_WEYL)
    return [_signed(word) for word in words]


@jit
def _turn(u):
    """cos and sin of u turns, 0 <= u < 1, float64. The library's reduce arguments of any size, in
    memory instead of registers.

    u is a nearest quarter turn, exactly, and a rest of at most an eighth, whose Taylor series end
    below float64's last place.
    """
    quarter = tl.floor(4.0 * u + 0.5)
    x = 6.283185307179586 * (u - 0.25 * quarter)
    y = x * x
    sine, cosine = y * 0.0 + 1.0, y * 0.0 + 1.0
    # 1 - y/(2 3) (1 - y/(4 5) (...)), and 1 - y/(1 2) (1 - y/(3 4) (...))
    for k in tl.static_range(9):
        sine = 1.0 - y * sine * (1.0 / ((18 - 2 * k) * (19 - 2 * k)))
        cosine = 1.0 - y * cosine * (1.0 / ((17 - 2 * k) * (18 - 2 * k)))
    sine *= x
    k = quarter.to(tl.int32) & 3
    cos = tl.where(k == 0, cosine, tl.where(k == 1, -sine, tl.where(k == 2, -cosine, sine)))
    sin = tl.where(k == 0, sine, tl.where(k == 1, cosine, tl.where(k == 2, -sine, -cosine)))
    return cos, sin


@jit
def _normals(word0, word1):
    """Two standard normals of two words, float64, by Box-Muller."""
    u0 = (word0 >> 11).to(tl.float64) * 1.1102230246251565e-16  # 2^-53
    u1 = (word1 >> 11).to(tl.float64) * 1.1102230246251565e-16
    radius = tl.sqrt(-2.0 * tl.log(1.0 - u0))  # 1 - u is exact, and never 0
    cos, sin = _turn(u1)
    return radius * cos, radius * sin


@jit
def _number(word, KIND: tl.constexpr):
    if KIND == "uniform":
        number = (word >> 40).to(tl.float32) * 5.9604644775390625e-08  # 2^-24
    else:  # a coin
        number = (word >> 63) == 0
    return number


@jit
def _store_grains(at, word, left, inside):
    """The four numbers of a word, the uppermost first, of which ``left`` exist."""
    for k in tl.static_range(4):
        grain = ((word >> (51 - 13 * k)) & 0x1FFF).to(tl.float32) * 0.0001220703125  # 2^-13
        tl.store(at + k, grain, mask=inside & (left > k))


@jit
def _draw_kernel(
    index_ptr,
    out_ptr,
    N,
    COUNT,
    PER_ROW,
    GROUP,
    STRIDE,
    k0,
    k1,
    m0,
    m1,
    w0,
    w1,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """N Philox blocks of four words, one an element: numbers of row j // PER_ROW. GROUP rows lie
    behind each other, groups STRIDE elements apart."""
    j = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = j < N
    row, block = j // PER_ROW, j % PER_ROW
    index = tl.load(index_ptr + row, mask=inside, other=0).to(tl.uint64)
    c0, c1, c2, c3 = philox_block((block + 1).to(tl.uint64), index, k0, k1, m0, m1, w0, w1)
    begin = out_ptr + row // GROUP * STRIDE + row % GROUP * COUNT
    if KIND == "grain":
        at, left = begin + block * 16, COUNT - block * 16
        _store_grains(at, c0, left, inside)
        _store_grains(at + 4, c1, left - 4, inside)
        _store_grains(at + 8, c2, left - 8, inside)
        _store_grains(at + 12, c3, left - 12, inside)
    else:
        if KIND == "normal":
            n0, n1 = _normals(c0, c1)
            n2, n3 = _normals(c2, c3)
        else:
            n0, n1 = _number(c0, KIND), _number(c1, KIND)
            n2, n3 = _number(c2, KIND), _number(c3, KIND)
        at, left = begin + block * 4, COUNT - block * 4
        kind = out_ptr.dtype.element_ty
        tl.store(at, n0.to(kind), mask=inside)
        tl.store(at + 1, n1.to(kind), mask=inside & (left > 1))
        tl.store(at + 2, n2.to(kind), mask=inside & (left > 2))
        tl.store(at + 3, n3.to(kind), mask=inside & (left > 3))


_BLOCK = 128
Reference = Callable[[int, int, Tensor, int], Tensor]
# What is drawn: its type, how many numbers a word makes, its definition.
KINDS: dict[str, tuple[torch.dtype, int, Reference]] = {
    "normal": (torch.float32, 1, latents_reference),
    "uniform": (torch.float32, 1, uniforms_reference),
    "coin": (torch.bool, 1, coins_reference),
    "grain": (torch.float32, 4, grains_reference),
}


def draw_triton(kind: str, seed: int, stream: int, index: Tensor, out: Tensor) -> None:
    """The launcher: fill ``out`` (groups, rows, count), where groups * rows = N, with numbers of a
    kind in `KINDS`. Groups may lie apart in memory."""
    _, rows, count = out.shape
    per_row = blocks(count, 4 * KINDS[kind][1])
    whole = len(index) * per_row  # multiplied here: in the kernel the product would have 32 bits
    numbers = (whole, count, per_row, rows, out.stride(0), *philox_numbers(seed, stream))
    flags, grid = {"KIND": kind, "BLOCK": _BLOCK}, (blocks(whole, _BLOCK),)
    launch(
        _draw_kernel, grid, index.device, index.contiguous(), out, *numbers, **flags, num_warps=4
    )


_draw = torch.library.custom_op("ganfast::draw", draw_triton, mutates_args=("out",))


def _drawn(
    kind: str, seed: int, stream: int, index: Tensor, count: int, out: Tensor | None = None
) -> Tensor:
    dtype, _, reference = KINDS[kind]
    if not use_triton(index):
        numbers = reference(seed, stream, index, count)
        return numbers if out is None else out.copy_(numbers.view_as(out))
    filled = out
    if filled is None:
        filled = torch.empty(1, len(index), count, dtype=dtype, device=index.device)
    _draw(kind, _signed(seed), _signed(stream), index, filled)
    return filled[0] if out is None else filled


def latents(seed: int, stream: int, index: Tensor, count: int, out: Tensor | None = None) -> Tensor:
    """Standard normals, float32 (N, count). See `philox_words`.

    A device's are within one unit in the last place of the reference's.

    Args:
        out: where they go, (groups, rows, count) with groups * rows = N, whose last two dimensions
            are contiguous; None = a new tensor.
    """
    return _drawn("normal", seed, stream, index, count, out)


def uniforms(
    seed: int, stream: int, index: Tensor, count: int, out: Tensor | None = None
) -> Tensor:
    """Uniforms in [0, 1) with 24 bits, float32 (N, count), to the bit the reference's; ``out`` as
    of `latents`."""
    return _drawn("uniform", seed, stream, index, count, out)


def coins(seed: int, stream: int, index: Tensor, count: int, out: Tensor | None = None) -> Tensor:
    """Whether a uniform is below 1/2, bool (N, count), to the bit the reference's; ``out`` as of
    `latents`."""
    return _drawn("coin", seed, stream, index, count, out)


def grains(seed: int, stream: int, index: Tensor, count: int) -> Tensor:
    """Uniforms in [0, 1) with 13 bits, four from a word, float32 (N, count), to the bit the
    reference's."""
    return _drawn("grain", seed, stream, index, count)
