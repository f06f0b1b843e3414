"""The FLOPs of a critic step by each engine, counted where nothing is computed."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

from ganfast.config import EngineName, LossConfig, PenaltyConfig
from ganfast.engine.autograd import AutogradStep
from ganfast.engine.explicit import ExplicitStep
from ganfast.engine.objective import Inputs
from ganfast.engine.reference import whole_loss
from ganfast.engine.walking.steps import Walk
from ganfast.engine.weights import EffectiveWeights
from ganfast.flops import FlopCount
from ganfast.models.members import holding, named_tensors
from ganfast.models.parts import held_power_iteration

ORDER: tuple[EngineName, ...] = ("explicit", "autograd", "reference")
# Where nothing is saved, eager torch has the shortest way on a CPU: explicit took up to 1.07 of its
# time with norms and with max pooling, autograd up to 1.12 (32x32, batch 16, one thread).
EAGER_ORDER: tuple[EngineName, ...] = ("reference", "explicit", "autograd")
SAME = 1.02  # counts whose ratio is less are the same


def fewest(flops: Mapping[EngineName, int], eager: bool) -> EngineName:
    """The engine with the fewest FLOPs. Of several, the first in `EAGER_ORDER` where ``eager``,
    which is neither compiled nor on a GPU, else in `ORDER`."""
    least = min(flops.values())
    order = EAGER_ORDER if eager else ORDER
    return next(name for name in order if name in flops and flops[name] <= SAME * least)


def step_flops(
    critic: nn.Module,
    loss: LossConfig,
    penalties: Sequence[PenaltyConfig],
    inputs: Inputs,
    walked: Walk | None,
    constants: Mapping[str, Tensor],
    autocast: torch.dtype | None = None,
) -> dict[EngineName, int]:
    """FLOPs of one step by each engine that can take the critic, on tensors without numbers.

    No generator, buffer or power iteration moves. ``constants`` as of `FrontEnd`.
    """
    counts: dict[EngineName, int] = {}
    learnt = [name for name, p in critic.named_parameters() if p.requires_grad]
    fake = FakeTensorMode()

    def without_numbers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: fake.from_tensor(x.detach()) for name, x in tensors.items()}

    own, known = without_numbers(dict(named_tensors(critic))), without_numbers(constants)
    given = Inputs(*tree_map_only(Tensor, fake.from_tensor, tuple(inputs)))
    with fake, held_power_iteration(critic):

        def reference() -> None:
            leaves = {name: own[name].detach().requires_grad_() for name in learnt}
            with torch.enable_grad(), holding(critic, own | leaves):
                total, _ = whole_loss(critic, loss, penalties, given, autocast)
                torch.autograd.grad(total, list(leaves.values()), allow_unused=True)

        def autograd() -> None:
            AutogradStep(critic, loss, penalties, autocast)(own, given)

        def explicit() -> None:
            assert walked is not None
            with torch.no_grad(), holding(critic, own):
                weights = EffectiveWeights(critic).values | known
                ExplicitStep(walked, loss, penalties, autocast)(weights, given)

        steps: dict[EngineName, Callable[[], None]] = {
            "reference": reference,
            "autograd": autograd,
            "explicit": explicit,
        }
        for name, step in steps.items():
            if name != "explicit" or walked is not None:
                with FlopCount() as count:
                    step()
                counts[name] = count.total
    return counts
