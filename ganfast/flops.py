"""Exact operation counts by torch's FLOP formulas, of convolutions and matrix products that run."""

import weakref
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


class FlopCount(TorchDispatchMode):
    """Counts while active: ``with FlopCount() as count: step()``, then ``count.total``.

    A multiply-add is 2 operations. torch's own `FlopCounterMode` hooks modules in a way that
    `torch.autograd.grad`, and so a gradient penalty, does not allow.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket is torch.ops.aten.convolution_backward:
            self.total += convolution_backward_flops(*args)
        elif func.overloadpacket in flop_registry:
            self.total += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


def convolution_backward_flops(dy: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> int:
    """Data and weight gradient cost as much as the forward pass, each.

    torch's own formula counts groups as one large convolution, which is too much.
    ``rest`` ends with groups and the mask (data, weight, bias); a transposed convolution swaps the
    roles of ``x`` and ``dy``.
    """
    transposed, mask = rest[4], rest[-1]
    outputs = x if transposed else dy
    products = weight.numel() * outputs.shape[0] * prod(outputs.shape[2:])
    return 2 * products * (bool(mask[0]) + bool(mask[1]))


class PeakBytes(TorchDispatchMode):
    """The most bytes that new tensors take at any time while active.

    Used as ``with PeakBytes() as peak: step()``, then ``peak.total``. A storage counts once, from
    the operation that makes it to its end. Memory that an operation borrows while it runs does not
    count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self._alive: dict[int, tuple[weakref.ref[Any], int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = (t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor))
        borrowed = {tensor.untyped_storage()._cdata for tensor in inputs}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self._alive and key not in borrowed:
                    end = partial(self._ended, key)
                    self._alive[key] = weakref.ref(storage, end), storage.nbytes()
        self.total = max(self.total, sum(size for _, size in self._alive.values()))
        return out

    def _ended(self, key: int, _: Any) -> None:
        self._alive.pop(key, None)
