"""A critic as the explicit engine computes it: steps, each a layer between values, and a tail."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor, fx

from ganfast.engine.layers import Layer
from ganfast.engine.norms import BatchNorm
from ganfast.models import Judgement, as_judgement

Value = int  # an entry of the list of values that a walk fills; 0 is the picture


@dataclass
class Step:
    """value[output] = layer(values[inputs]). A layer for labels also reads
    ``label_index(labels)``."""

    name: str  # where it stands in the module
    layer: Layer
    inputs: tuple[Value, ...]
    output: Value
    label_index: Callable[[Tensor], Tensor] | None = None
    node: fx.Node | None = None  # of a trace


@dataclass
class Tail:
    """The end of a critic that is not walked: from some values to the answer.

    The module takes the values, the labels if ``takes_labels``, the number of pictures
    ``batches`` times, and the weights ``given``. ``weights`` are those that learn.
    """

    module: fx.GraphModule
    inputs: tuple[Value, ...]
    takes_labels: bool
    weights: tuple[str, ...]
    given: tuple[str, ...] = ()
    batches: int = 0


@dataclass
class Making:
    """Weights that a forward makes of others: ``module(*weights[reads])`` gives ``made``."""

    module: fx.GraphModule
    reads: tuple[str, ...]
    made: tuple[str, ...]


def _judgement(answers: Sequence[Tensor], count: int) -> Judgement:
    """Of a score, and class logits if there are some."""
    return as_judgement(answers[0] if len(answers) == 1 else tuple(answers), count)


@dataclass
class Walk:
    """A critic as steps, then either its outputs or a tail."""

    steps: list[Step] = field(default_factory=list)
    outputs: tuple[Value, ...] = ()  # of which `judge` makes a judgement; () with a tail
    tail: Tail | None = None
    refused: list[str] = field(default_factory=list)  # "name (kind)" of what the tail had to take
    making: Making | None = None
    # From the outputs, and the number of pictures, to a judgement.
    judge: Callable[[Sequence[Tensor], int], Judgement] = _judgement

    @property
    def curved(self) -> bool:
        """Whether a linearisation depends on its input. A penalty then has more terms."""
        return self.tail is not None or any(step.layer.curved for step in self.steps)

    @property
    def separable(self) -> bool:
        """Whether samples are known not to meet: then some can be computed without the others."""
        mixes = any(step.layer.mixes for step in self.steps)
        return self.tail is None and not self.draws and not mixes

    @property
    def draws(self) -> bool:
        """Whether a layer draws random numbers. A sample's numbers then depend on its batch."""
        return any(step.layer.draws for step in self.steps)

    @property
    def normed(self) -> list[BatchNorm]:
        """The batch norms, whose running statistics a step moves."""
        return [step.layer for step in self.steps if isinstance(step.layer, BatchNorm)]

    @property
    def learning(self) -> int:
        """How many layers have weights."""
        return sum(bool(step.layer.weights) for step in self.steps)

    @property
    def count(self) -> int:
        return 1 + max((step.output for step in self.steps), default=0)


class CannotWalk(Exception):
    """Why the explicit engine does not take a critic."""
