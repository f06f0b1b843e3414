"""Steps that the kernels take as one: convolution with bias, then leaky ReLU."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from ganfast.engine.layers import Conv, ConvAct, LeakyReLU
from ganfast.engine.walking.steps import Step, Walk


def fused(walk: Walk, weights: Mapping[str, Tensor]) -> Walk:
    """The walk with a convolution and the leaky ReLU behind it as one step.

    They stay two where another step reads the value between them. ``weights`` by name, for their
    shapes: a sample's bits fill whole bytes where the channels are a multiple of 8.
    """
    readers = Counter(i for step in walk.steps for i in step.inputs)
    readers.update(walk.tail.inputs if walk.tail else walk.outputs)
    steps: list[Step] = []
    for step in walk.steps:
        before = steps[-1] if steps else None
        conv = before.layer if before is not None else None
        if (
            isinstance(step.layer, LeakyReLU)
            and before is not None
            and type(conv) is Conv
            and conv.bias is not None
            and step.inputs == (before.output,)
            and readers[before.output] == 1
            and weights[conv.weight].shape[0] % 8 == 0
        ):
            whole = ConvAct(conv.weight, conv.bias, conv.shape, step.layer.slope)
            steps[-1] = replace(before, layer=whole, output=step.output)
        else:
            steps.append(step)
    return replace(walk, steps=steps)
