"""A CUDA graph's stand-in on a CPU: records what a function does, plays it on the same tensors."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from ganfast.kernels import latents, shuffle

# A captured stream may not wait for the device: these give the host a value, or a size.
HOST_READS = {
    *"_local_scalar_dense nonzero is_nonzero equal masked_select unique_dim _unique2 item".split()
}


class Tape(TorchDispatchMode):
    """Records every operation with its very tensors; played back, each writes where it wrote.

    Random words and shuffles are a GPU's here: a CPU's come from NumPy, which no graph would see.
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []
        self._words = pytest.MonkeyPatch()

    def __enter__(self) -> Any:
        self._words.setattr(shuffle, "_permuted_on_host", shuffle.permute_reference)
        self._words.setattr(latents, "_words_on_host", latents._words_on_device)
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self._words.undo()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        assert name not in HOST_READS, f"{name} reads a value on the host"
        result = func(*args, **(kwargs or {}))
        self.steps.append(
            (
                func,
                args,
                kwargs or {},
                [t for t in tree_flatten(result)[0] if isinstance(t, Tensor)],
            )
        )
        return result

    @torch.no_grad()
    def play(self) -> None:
        for func, args, kwargs, outputs in self.steps:
            again = [t for t in tree_flatten(func(*args, **kwargs))[0] if isinstance(t, Tensor)]
            for old, new in zip(outputs, again, strict=True):
                if (
                    new.data_ptr() != old.data_ptr() and old.numel()
                ):  # views and in-place operations write there by themselves
                    old.copy_(new)
