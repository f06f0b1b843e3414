"""The weights that a network computes with, and the way back from their gradients to its parameters."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized


class EffectiveWeights:
    """``values``: every tensor by the name that its layer has for it, detached; where there is a parametrisation, what that makes.

    Making them improves each spectral normalisation in training mode by its one power iteration a critic step.
    """

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.values = {name: p.detach() for name, p in net.named_parameters()}
        self._made: dict[str, Tensor] = {}
        for path, module in net.named_modules():
            if is_parametrized(module):
                for tensor in module.parametrizations:
                    name = f"{path}.{tensor}" if path else tensor
                    with torch.enable_grad():
                        self._made[name] = getattr(module, tensor)
                    self.values[name] = self._made[name].detach()

    def parameter_gradients(self, gradients: Mapping[str, Tensor]) -> list[Tensor | None]:
        """From gradients of the effective weights to those of the trainable parameters, in their order; None = 0."""
        made = [name for name in self._made if name in gradients and self._made[name].requires_grad]
        parameters = [(name, p) for name, p in self.net.named_parameters() if p.requires_grad]
        through: dict[str, Tensor | None] = {}
        if made:
            names = [name for name, _ in parameters if ".parametrizations." in f".{name}"]
            originals = [p for name, p in parameters if name in names]
            outputs = [self._made[name] for name in made]
            found = torch.autograd.grad(outputs, originals, [gradients[n].to(self._made[n].dtype) for n in made], allow_unused=True)
            through = dict(zip(names, found, strict=True))
        return [through[name] if through.get(name) is not None else gradients.get(name) for name, _ in parameters]
