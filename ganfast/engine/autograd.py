"""The critic step by autograd for any critic, without what torch's second derivatives waste."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ganfast.config import LossConfig, PenaltyConfig
from ganfast.engine.lean import LeanDerivatives
from ganfast.engine.objective import Inputs, Stats
from ganfast.engine.reference import whole_loss
from ganfast.models.members import holding
from ganfast.models.parts import held_power_iteration


class AutogradStep:
    """``step(weights, inputs)``: gradients by the names of the parameters that have influence, and
    statistics.

    It changes nothing, so it can be compiled.
    """

    def __init__(
        self,
        critic: nn.Module,
        loss: LossConfig,
        penalties: Sequence[PenaltyConfig],
        autocast: torch.dtype | None = None,
    ) -> None:
        self.whole = _Whole(critic, loss, penalties, autocast)
        named = critic.named_parameters()
        self.trainable = [f"critic.{name}" for name, p in named if p.requires_grad]

    def __call__(
        self, weights: dict[str, Tensor], inputs: Inputs
    ) -> tuple[dict[str, Tensor], Stats]:
        """``weights``: parameters and buffers by name."""
        tensors = {f"critic.{name}": value.detach() for name, value in weights.items()}
        leaves = {name: tensors[name].requires_grad_() for name in self.trainable}
        with torch.enable_grad(), LeanDerivatives(), held_power_iteration(self.whole.critic):
            # Views, because of a leaf `lean.leads_to` could not tell whether a pass leads to it.
            views = {name: leaf.view_as(leaf) for name, leaf in leaves.items()}
            with holding(self.whole, tensors | views):
                total, stats = self.whole(inputs)
            gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        names = [name.removeprefix("critic.") for name in self.trainable]
        detached = {name: value.detach() for name, value in stats.items()}
        pairs = zip(names, gradients, strict=True)
        return {name: g for name, g in pairs if g is not None}, detached


class _Whole(nn.Module):
    """The critic's whole loss as a module, so that its weights can be handed in."""

    def __init__(
        self,
        critic: nn.Module,
        loss: LossConfig,
        penalties: Sequence[PenaltyConfig],
        autocast: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.critic, self._arguments, self._autocast = critic, (loss, tuple(penalties)), autocast

    def forward(self, inputs: Inputs) -> tuple[Tensor, Stats]:
        return whole_loss(self.critic, *self._arguments, inputs, self._autocast)
