"""Latents as a pure function of (seed, stream, index), in NumPy: a sampler needs no torch.

The words of row `index` are those of
`np.random.Philox(key=[seed, stream], counter=[0, index, 0, 0])`.
Uniforms have 53 bits; normals are Box-Muller in float64, rounded once to float32. So picture
(seed, index) is the same in any batch, thread and back end.
"""

import threading
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ganfast.errors import InputError


class Purpose(IntEnum):
    """The stream of the key (seed, stream). Never renumber: runs would not be reproducible."""

    SAMPLE = 0  # what users sample from
    CRITIC_LATENT = 1  # fakes of the critic step
    GENERATOR_LATENT = 2  # fakes of the generator step
    EPSILON = 4  # WGAN-GP interpolates
    NOISE = 5  # DRAGAN perturbations
    FLIP = 6
    ORDER = 7
    BALANCED_ORDER = 8
    BATCHNORM = 9  # latents that the EMA's BatchNorm statistics are estimated from
    INIT = 10  # initial weights
    IMBALANCE = 11
    SAMPLE_CLASS = 13  # classes of what users sample, where none is asked for
    JUDGE = 14  # a classifier that judges: order and shifts of the pictures it learns from
    STACK = 16  # which digits make a picture of stacked-mnist
    AUGMENT = 17  # transforms of what the critic sees
    DEGRADE = 18  # what a task makes its conditions with: holes, noise
    HOLDOUT = 19  # which pictures are never trained on


_own = threading.local()  # a generator for each thread: to set its state takes 2 us, to make one 20
_ELEVEN = np.uint64(11)


def _philox() -> tuple[np.random.Philox, Any]:
    """This thread's generator, and a state to fill in and set."""
    if not hasattr(_own, "philox"):
        state: Any = {
            "bit_generator": "Philox",
            "state": {"counter": np.zeros(4, np.uint64), "key": np.zeros(2, np.uint64)},
            "buffer": np.zeros(4, np.uint64),
            "buffer_pos": 4,
            "has_uint32": 0,
            "uinteger": 0,
        }
        _own.philox = np.random.Philox(0), state
    pair: tuple[np.random.Philox, Any] = _own.philox
    return pair


def philox_words(
    seed: int, stream: int, index: NDArray[np.integer], count: int
) -> NDArray[np.uint64]:
    """Raw words, uint64 (N, count), for rows ``index`` (N,) of the key ``(seed, stream)``.

    Seed, stream and indices lie in [0, 2**64).
    """
    philox, state = _philox()
    counter, key = state["state"]["counter"], state["state"]["key"]
    key[0], key[1] = seed, stream
    words = np.empty((len(index), count), np.uint64)
    for row, picture in enumerate(index):
        counter[1] = picture
        philox.state = state
        words[row] = philox.random_raw(count)
    return words


def latents(
    seed: int, index: NDArray[np.integer], dim: int, stream: int = Purpose.SAMPLE
) -> NDArray[np.float32]:
    """Standard normal latents, float32 (N, dim).

    Args:
        seed: 0 <= seed < 2**64.
        index: which pictures, (N,) integers >= 0; (seed, index) names a picture for good.
        dim: latent size of the generator.
        stream: 0 is what users sample from; training and evaluation have streams of their own.
    """
    words = philox_words(seed, stream, index, dim + dim % 2)
    pairs = (words >> _ELEVEN) * 2.0**-53
    radius = np.sqrt(-2.0 * np.log1p(-pairs[:, 0::2]))  # 1 - u lies in (0, 1]: never log(0)
    angle = (2.0 * np.pi) * pairs[:, 1::2]
    normals = np.empty(words.shape, np.float32)
    np.multiply(radius, np.cos(angle), out=normals[:, 0::2], casting="same_kind")
    np.multiply(radius, np.sin(angle), out=normals[:, 1::2], casting="same_kind")
    return normals[:, :dim] if dim % 2 == 0 else np.ascontiguousarray(normals[:, :dim])


def random_classes(seed: int, index: NDArray[np.integer], count: int) -> NDArray[np.int64]:
    """A class for each picture, int64 (N,) in [0, count), uniform; (seed, index) fixes it."""
    words = philox_words(seed, Purpose.SAMPLE_CLASS, index, 1)[:, 0]
    return ((words >> _ELEVEN).astype(np.float64) * 2.0**-53 * count).astype(np.int64)


def check_seed(seed: Any) -> None:
    """Raises InputError unless it names a stream of latents."""
    if not isinstance(seed, int | np.integer) or not 0 <= seed < 2**64:
        raise InputError(f"seed is {seed!r}; expected 0 or more, below 2**64")


def picture_range(n: Any, seed: Any, first: Any) -> tuple[int, int]:
    """``n`` and ``first`` as Python's integers, which never overflow.

    Raises:
        InputError: a value that names no picture.
    """
    if not isinstance(n, int | np.integer) or n < 1:
        raise InputError(f"n is {n!r}; expected how many pictures to draw, 1 or more")
    check_seed(seed)
    if not isinstance(first, int | np.integer) or not 0 <= int(first) < 2**63 - int(n):
        raise InputError(
            f"first is {first!r}; expected the index of a picture, 0 or more, "
            "that of the last below 2**63"
        )
    return int(n), int(first)


def picture_index(n: Any, seed: Any, first: Any) -> NDArray[np.int64]:
    """The indices of ``n`` pictures from ``first`` on, int64 (n,); raises as `picture_range`."""
    n, first = picture_range(n, seed, first)
    return np.arange(first, first + n, dtype=np.int64)


def class_list(classes: Sequence[str]) -> str:
    """ "0 = zero, 1 = one, ..." for messages."""
    names = [f"{i} = {name}" for i, name in enumerate(classes[:12])]
    return ", ".join(names + ["..."] * (len(classes) > 12))
