"""Exact operation counts: what torch's FLOP formulas say of every convolution and matrix product that runs."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class FlopCount(TorchDispatchMode):
    """Counts while active: ``with FlopCount() as count: step()``, then ``count.total``. A multiply-add is 2 operations.

    torch's own `FlopCounterMode` follows modules with hooks that `torch.autograd.grad`, and so a gradient penalty, does not allow.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            self.total += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


class KeptBytes(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes that a forward pass keeps for its backward pass, each storage once and parameters not at all."""

    def __init__(self, *nets: nn.Module) -> None:
        self._parameters = {p.untyped_storage().data_ptr() for net in nets for p in net.parameters()}
        self._storages: dict[int, int] = {}
        super().__init__(self._remember, lambda tensor: tensor)

    def _remember(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._parameters:
            self._storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    @property
    def total(self) -> int:
        return sum(self._storages.values())
