"""Numbers that a forward multiplies its activations by, as factors of the weights behind them.

A gain behind an activation is a pass over a tensor in the forward, the delta and the tangent pass.
As a factor of the filter that reads it, it is next to nothing.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import fx

from ganfast.engine.layers import Conv, Linear, Scale
from ganfast.engine.maps import Folded, unfolded
from ganfast.engine.walking.functions import Fixed
from ganfast.engine.walking.record import shape_of
from ganfast.engine.walking.steps import Step, Walk

# Makes and names another fixed tensor: a function of one and a number, before a node.
Make = Callable[[Callable[..., torch.Tensor], Fixed, fx.Node, float], Fixed]
_MOST = 8  # weights that a reader may have for each number of a sample that it reads


def gains_in_weights(walk: Walk, fixed: dict[str, Fixed], make: Make) -> None:
    """Take the scales out of the steps whose readers are all convolutions and linear layers.

    ``fixed``: by name, what is made without pictures.
    """
    ends = {*walk.outputs, *(walk.tail.inputs if walk.tail else ())}
    for scale in [step for step in walk.steps if type(step.layer) is Scale]:
        assert isinstance(scale.layer, Scale)
        readers = [step for step in walk.steps if scale.output in step.inputs]
        if scale.output in ends or not all(_takes_gain(scale, r, fixed) for r in readers):
            continue
        for reader in readers:
            layer, node = unfolded(reader.layer), reader.node
            assert isinstance(layer, Conv | Linear)
            assert node is not None
            weight = make(torch.mul, fixed[layer.weight], node, scale.layer.factor)
            fixed[weight.name] = weight
            learnt = tuple(weight.name if n == layer.weight else n for n in layer.weights)
            scaled = replace(layer, weight=weight.name)
            scaled.weights = learnt
            folded = reader.layer
            new = Folded(scaled, folded.channels) if isinstance(folded, Folded) else scaled
            inputs = tuple(scale.inputs[0] if i == scale.output else i for i in reader.inputs)
            walk.steps[walk.steps.index(reader)] = replace(reader, layer=new, inputs=inputs)
        walk.steps.remove(scale)


def _takes_gain(scale: Step, reader: Step, fixed: dict[str, Fixed]) -> bool:
    """Whether the reader is linear, by a weight that is small beside what it reads."""
    layer = unfolded(reader.layer)
    if not isinstance(layer, Conv | Linear) or scale.node is None or reader.node is None:
        return False
    weight, sample = fixed[layer.weight].shape, shape_of(scale.node)[1:]
    return torch.Size(weight).numel() <= _MOST * torch.Size(sample).numel()
