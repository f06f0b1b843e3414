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
    """``step(weights, inputs)``: gradients of the parameters by name, and statistics. It changes
    nothing, so it can be compiled."""

    def __init__(
        self,
        critic: nn.Module,
        loss: LossConfig,
        penalties: Sequence[PenaltyConfig],
        autocast: torch.dtype | None = None,
    ) -> None:
        self.whole = _Whole(critic, loss, penalties, autocast)
        self.trainable = [
            f"critic.{name}" for name, p in critic.named_parameters() if p.requires_grad
        ]

    def __call__(
        self, weights: dict[str, Tensor], inputs: Inputs
    ) -> tuple[dict[str, Tensor], Stats]:
        """``weights``: parameters and buffers by name."""
        given = {f"critic.{name}": value.detach() for name, value in weights.items()}
        leaves = [given[name].requires_grad_() for name in self.trainable]
        with torch.enable_grad(), LeanDerivatives(), held_power_iteration(self.whole.critic):
            # see lean.wanted
            views = {
                name: leaf.view_as(leaf) for name, leaf in zip(self.trainable, leaves, strict=True)
            }
            with holding(self.whole, given | views):
                total, stats = self.whole(inputs)
            found = torch.autograd.grad(total, leaves, materialize_grads=True)
        named = {
            name.removeprefix("critic."): g for name, g in zip(self.trainable, found, strict=True)
        }
        return named, {name: value.detach() for name, value in stats.items()}


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
