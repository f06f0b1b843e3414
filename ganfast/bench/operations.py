"""What a phase launches: every operation with its FLOPs and the bytes that it must move."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from ganfast import random
from ganfast.flops import FlopCount
from ganfast.kernels import latents


@dataclass(frozen=True)
class Operation:
    """One that launches something."""

    name: str
    flops: float
    bytes: float  # of what it reads and writes
    channels: tuple[int, int] = (0, 0)  # of a convolution's weights
    numpy: bool = False  # a pass of NumPy's over a chunk that stays in the caches


class OperationCount(FlopCount):
    """Lists what runs while active: ``with OperationCount() as count: phase()``, then ``count.operations``; views are none.

    Random words and shuffles, which a CPU makes in NumPy, are listed as torch's operations that another device makes them of; with
    ``numpy`` as passes of NumPy's.
    """

    def __init__(self, numpy: bool = False) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self._numpy, self._real = numpy, (latents._words_on_host, random._permuted_on_host)

    def __enter__(self) -> Any:
        words, permuted = latents._words_on_device, random._permuted_on_device
        _make_with(self._words if self._numpy else words, self._permuted if self._numpy else permuted)
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        _make_with(*self._real)

    def _words(self, seed: int, stream: int, index: Tensor, count: int) -> Tensor:
        words = self._real[0](seed, stream, index, count)
        self._list("philox", latents.HOST_PASSES, 8 * len(index) * -(-count // 4))
        return words

    def _permuted(self, position: Tensor, *how: Any) -> Tensor:
        permuted = self._real[1](position, *how)
        self._list("shuffle", random.HOST_PASSES, 4 * len(position))
        return permuted

    def _list(self, name: str, passes: int, size: int) -> None:
        """Passes that read twice and write once what takes ``size`` bytes."""
        self.operations += [Operation(name, 0.0, 3.0 * size, numpy=True)] * passes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self.total
        out = super().__torch_dispatch__(func, types, args, kwargs)
        made = _tensors(out)
        known = zip(args, func._schema.arguments, strict=False)
        changed = _tensors([x for x, argument in known if argument.alias_info and argument.alias_info.is_write])
        name = str(func.overloadpacket).removeprefix("aten.")
        if not func.is_view and not name.startswith(("empty", "new_empty", "detach")) and (made or changed):
            moved = _bytes(made or changed)
            gathers = name.startswith(("index", "gather", "embedding", "copy_"))  # reads what it writes, not all that it is given
            read = moved if gathers else _bytes(_tensors((args, kwargs)))
            weights = _tensors(args)[1 if name == "convolution" else 2].shape[:2] if name.startswith("convolution") else (0, 0)
            self.operations.append(Operation(name, self.total - before, moved + read, (int(weights[0]), int(weights[1]))))
        return out


def _make_with(words: Any, permuted: Any) -> None:
    latents._words_on_host, random._permuted_on_host = words, permuted


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


def _bytes(tensors: list[Tensor]) -> int:
    return sum(x.nbytes for x in tensors)
