"""What a phase launches: every operation with its FLOPs and the bytes that it must move."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from ganfast.flops import FlopCount


@dataclass(frozen=True)
class Operation:
    """One that launches something."""

    name: str
    flops: float
    bytes: float  # of what it reads and writes
    channels: tuple[int, int] = (0, 0)  # of a convolution's weights


class OperationCount(FlopCount):
    """Lists what runs while active: ``with OperationCount() as count: phase()``, then ``count.operations``; views are none."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

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


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


def _bytes(tensors: list[Tensor]) -> int:
    return sum(x.nbytes for x in tensors)
