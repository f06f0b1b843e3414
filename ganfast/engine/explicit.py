"""The critic step without autograd: forward, delta pass, tangent pass, one weight gradient a layer
over all rows together.

A penalty on the input gradient g(x) is differentiated by Pearlmutter's identity (1994): with u = d
penalty / d g held fixed, d penalty / d W = d <u, g> / d W, and <u, g> is the tangent of the score
in direction u. In a piecewise-linear critic this is, at each layer, the weight gradient that pairs
the tangent t at its input with the delta at its output, as the loss's pairs the input h with the
loss's delta. Curved layers add to the adjoint of h what a change of h does to the tangent.

Work, in forward passes of N pictures: WGAN-GP 10 (curved 12), R1 7 (9), R1+R2 8 (12); autograd
takes 12, 9, 12.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from ganfast.config import LossConfig, PenaltyConfig
from ganfast.engine.heads import Logits, Tail
from ganfast.engine.layers import (
    Block,
    Blocks,
    Conv,
    ConvAct,
    Gradients,
    Kept,
    Layer,
    Linear,
    Weights,
)
from ganfast.engine.maps import LabelRows, unfolded
from ganfast.engine.objective import Inputs, Stats, penalty_stats
from ganfast.engine.rows import Rows
from ganfast.engine.walking.steps import Step, Value, Walk
from ganfast.engine.weights import MadeWeights, added
from ganfast.kernels.gradient_penalty import gradient_penalty
from ganfast.penalties import penalty_of, segments_of
from ganfast.tensors import full_precision

ByValue = dict[Value, Tensor]
# blocks of rows: inputs, deltas, deltas that the bias sees; and which rows the first two are of.
# Without inputs where the layer reads none.
Pairs = tuple[list[Tensor], list[Tensor], Blocks, list[slice]]
ALL = slice(None)


class ExplicitStep:
    """``step(weights, inputs)`` returns the gradient of every weight that the walk names, and
    statistics. It changes nothing.

    A third argument may bring weights that are in the type to compute in already; a fourth brings
    the numbers of layers that draw, as `draws.Draws` makes them. A fifth may bring the share of
    each row in the biases, as `bias_shares` makes it: made here it is made for every layer.
    """

    def __init__(
        self,
        walk: Walk,
        loss: LossConfig,
        penalties: Sequence[PenaltyConfig],
        compute: torch.dtype | None = None,
    ) -> None:
        self.walk, self.loss, self.penalties, self.compute = walk, loss, penalties, compute
        self.bare = _bare(walk)
        self.last_read = {i: k for k, step in enumerate(walk.steps) for i in step.inputs}
        self.needed = {
            i
            for step in walk.steps
            if (step.layer.weights and step.layer.pairs) or step.layer.curved
            for i in step.inputs
        }
        self.needed |= set(walk.tail.inputs if walk.tail else walk.outputs)
        self.overwritten = _overwritten(walk)

    def __call__(
        self,
        weights: Weights,
        inputs: Inputs,
        ready: Weights = MappingProxyType({}),
        drawn: Mapping[Value, Tensor] = MappingProxyType({}),
        shares: Tensor | None = None,
    ) -> tuple[Gradients, Stats]:
        walk, rows = self.walk, Rows.of(inputs, self.penalties)
        made = MadeWeights(walk.making, weights)
        weights = made.weights
        w = self._cast(weights, ready)
        values, kept = self._forward(w, rows, drawn)
        places = walk.tail.inputs if walk.tail else walk.outputs
        answers = [values[v] for v in places]
        head: Logits | Tail
        if walk.tail:
            head = Tail(walk, self.loss, self.compute, weights, answers, rows)
        else:
            head = Logits(walk, self.loss, answers, rows)
        done = _Forward(w, values, kept, rows, head, places, shares)
        stats: Stats = {}
        if not self.penalties:
            gradients = self._without_penalty(done)
        elif not walk.curved and (rows.shared <= 0 or len(places) == 1):
            gradients, stats = self._with_one_delta_pass(done)
        else:
            gradients, stats = self._with_two_delta_passes(done)
        return made.back(added(gradients, head.gradients)), head.stats | stats

    def _without_penalty(self, done: "_Forward") -> Gradients:
        seeds = done.seeded(done.head.adjoint())
        adjoint, _, settled = self._backward(done, seeds, ALL, None, done.shares)

        def pair(out: Value, i: Value | None, a: Tensor) -> Pairs:
            return [] if i is None else [done.values[i]], [a], [Block(a)], [ALL]

        return added(self._gradients(done, adjoint, pair), settled)

    def _with_one_delta_pass(self, done: "_Forward") -> tuple[Gradients, Stats]:
        """The pass is seeded by the loss on its own rows, and by 1 on the penalised rows.

        A row that loss and penalty share has one logit: the loss's delta there is the slope of the
        loss at that logit times the unit delta.
        """
        rows, shared = done.rows, done.rows.shared
        slopes = done.head.adjoint()
        seeds = [
            torch.cat([s[: rows.start], one])
            for s, one in zip(slopes, done.head.unit(), strict=True)
        ]
        assert isinstance(done.head, Logits)
        slope = done.head.score_slopes[rows.start : rows.loss]
        alone = len(rows.pictures) - rows.start - len(slope)
        bias = done.shares
        if bias is None or shared:
            bias = torch.cat([slope.new_ones(rows.start), slope, slope.new_zeros(alone)])
        delta, g, settled = self._backward(done, done.seeded(seeds), ALL, rows.penalised, bias)
        direction, stats = self._penalise(g, rows)
        over = set() if shared else self.overwritten
        tangent = self._tangent(done, direction, over)

        own, both = slice(0, rows.start), slice(rows.start, rows.loss)

        def pair(out: Value, i: Value | None, d: Tensor) -> Pairs:
            biases = [Block(d[own]), *([Block(d[both], slope)] if shared else [])]
            if i is None:
                return [], [d], biases, [ALL]
            h, t = done.values[i], tangent[i]
            if not shared:
                if i not in over:
                    h[rows.penalised] = t  # in place: nobody reads those rows any more
                return [h], [d], biases, [ALL]
            inputs = [h[own], _plus(t[:shared], h[both], slope), t[shared:]]
            return inputs, [d], biases, [ALL]

        return added(self._gradients(done, delta, pair), settled), stats

    def _with_two_delta_passes(self, done: "_Forward") -> tuple[Gradients, Stats]:
        """The unit pass for the penalty; after the tangents, the adjoint of loss and penalty."""
        rows, head = done.rows, done.head
        delta, g, _ = self._backward(done, done.seeded(head.unit()), rows.penalised, rows.penalised)
        direction, stats = self._penalise(g, rows)
        tangent = self._tangent(done, direction)
        reached = slice(0, None if self.walk.curved else rows.loss)
        seeds = [s[reached] for s in head.adjoint([tangent[v] for v in done.places])]
        bend = _Bend(tangent, delta, rows.start)
        adjoint, _, settled = self._backward(done, done.seeded(seeds), reached, None, None, bend)

        def pair(out: Value, i: Value | None, a: Tensor) -> Pairs:
            inputs = [] if i is None else [done.values[i][reached], tangent[i]]
            return inputs, [a, delta.pop(out)], [Block(a)], [reached, rows.penalised]

        return added(self._gradients(done, adjoint, pair), settled), stats

    def _cast(self, weights: Weights, ready: Weights) -> Weights:
        """Weights in the type to compute in; those of norms stay in float32, as under autocast."""
        if self.compute is None:
            return weights
        names = {
            name
            for layer in (unfolded(step.layer) for step in self.walk.steps)
            if isinstance(layer, Conv | Linear)
            for name in (layer.weight, layer.bias)
        }
        return {
            name: ready.get(name, value).to(self.compute) if name in names else value
            for name, value in weights.items()
        }

    def _forward(
        self, w: Weights, rows: Rows, drawn: Mapping[Value, Tensor]
    ) -> tuple[dict[Value, Tensor], dict[Value, Kept]]:
        """All values, and what each layer keeps of them for its derivatives."""
        values, kept = {0: rows.pictures}, {}
        for k, step in enumerate(self.walk.steps):
            x = [values[i] for i in step.inputs]
            if step.label_index is not None and rows.labels is not None:
                x.append(step.label_index(rows.labels))
            if step.layer.draws:
                x.append(drawn[step.output])
            values[step.output], kept[step.output] = step.layer.forward(w, *x)
            del x
            self._let_go(values, k)
        return values, kept

    def _let_go(self, values: ByValue, step: int) -> None:
        """Drop what no later step of a pass reads and no weight gradient needs."""
        for value in self.walk.steps[step].inputs:
            if self.last_read[value] == step and value not in self.needed:
                values.pop(value, None)

    def _backward(
        self,
        done: "_Forward",
        seeds: ByValue,
        rows: slice,
        picture_rows: slice | None,
        bias_weight: Tensor | None = None,
        bend: "_Bend | None" = None,
    ) -> tuple[ByValue, Tensor, Gradients]:
        """Deltas at the outputs of steps for ``rows``, at the pictures for ``picture_rows`` (None =
        no delta), and the gradients that `Layer.settle` completed.

        Only penalised rows need the delta of the picture, so what leads to it alone is computed for
        them alone.
        """
        w, kept = done.w, done.kept
        pending, deltas = dict(seeds), {}
        settled: Gradients = {}

        def narrowed(d: Tensor) -> Tensor:
            return d if picture_rows is None or picture_rows == rows else d[picture_rows]

        for step in reversed(self.walk.steps):
            if step.output not in pending:
                continue
            mine = _sliced(kept[step.output], rows)
            delta, complete = step.layer.settle(w, mine, pending.pop(step.output), bias_weight)
            settled = added(settled, complete)
            if step.layer.weights or step.layer.curved:
                deltas[step.output] = delta
            reached = rows
            if all(i in self.bare for i in step.inputs):
                if picture_rows is None:
                    continue
                reached = picture_rows
                delta = delta if step.output in self.bare else narrowed(delta)
            mine = _sliced(kept[step.output], reached)
            before = step.layer.delta(*_narrowed(step, done.rows, w, mine), delta)
            for i, d in zip(step.inputs, before, strict=False):
                if bend is not None and step.layer.curved:
                    d = bend.added(step.layer, kept[step.output], i, step.output, d)
                if i == 0 and done.rows.conditioned:
                    d = done.rows.of_picture(d)
                if i in self.bare and reached == rows:
                    if picture_rows is None:
                        continue
                    d = narrowed(d)
                pending[i] = pending[i] + d if i in pending else d
        return deltas, pending.get(0, torch.empty(0)), settled

    def _tangent(
        self, done: "_Forward", direction: Tensor, over: Collection[Value] = ()
    ) -> ByValue:
        """The tangents of all values for a direction at the pictures of the penalised rows.

        Those of ``over`` are written over the values themselves, in the penalised rows.
        """
        tangents = {0: done.rows.unmoved(direction)}
        for k, step in enumerate(self.walk.steps):
            kept = _sliced(done.kept[step.output], done.rows.penalised)
            inputs, w = [tangents[i] for i in step.inputs], done.w
            if _is_narrow(step, done.rows):
                inputs, (w, kept) = [direction], _narrowed(step, done.rows, w, kept)
            tangent = step.layer.tangent
            if step.output in over:
                assert isinstance(step.layer, ConvAct)
                tangent = step.layer.tangent_over_output
            tangents[step.output] = tangent(w, kept, *inputs)
            del inputs
            self._let_go(tangents, k)
        return tangents

    def _penalise(self, g: Tensor, rows: Rows) -> tuple[Tensor, Stats]:
        """Directions of the penalised rows, from their input gradients and in their type.

        A penalty holds the gradient by the picture before its transform y = A x + b: A^T g, and its
        direction u moves what the critic sees by A u.
        """
        n, g = rows.count, rows.back(g)
        directions: dict[int, Tensor] = {}
        values, norms = [], []
        for penalty, segments in zip(self.penalties, segments_of(self.penalties), strict=True):
            for segment in segments:
                k = rows.segments.index(segment)
                zero_centred = penalty_of(penalty).formula == "zero-centred"
                shape = penalty.full_weight, penalty.target, penalty.one_sided, zero_centred
                value, norm, u = gradient_penalty(
                    g[k * n : (k + 1) * n], *shape, penalty.interval / n
                )
                values.append(value if rows.penalty_share is None else value * rows.penalty_share)
                norms.append(norm)
                directions[k] = full_precision(directions[k]) + u if k in directions else u
        direction = torch.cat([directions[k] for k in range(len(rows.segments))])
        if rows.penalty_share is not None:
            direction = direction * rows.penalty_share
        return rows.scaled(rows.through(direction)), penalty_stats(values, norms)

    def _gradients(
        self,
        done: "_Forward",
        deltas: ByValue,
        pair: Callable[[Value, Value | None, Tensor], Pairs],
    ) -> Gradients:
        """All weight gradients; ``pair`` says which inputs meet which deltas. Frees the deltas."""
        total: Gradients = {}
        for step in self.walk.steps:
            if step.layer.weights and step.output in deltas:
                out, before = step.output, step.inputs[0] if step.layer.pairs else None
                blocks, delta, biases, rows = pair(out, before, deltas.pop(out))
                if not blocks:  # nor are the deltas joined for a layer that does not read them
                    blocks = delta = delta[:1]
                both = done.w, _joined(blocks), _joined(delta)
                if isinstance(step.layer, LabelRows):
                    labels = [done.kept[out][0][some] for some in rows]
                    more = step.layer.by_label(*both, torch.cat(labels))
                else:
                    more = step.layer.gradients(*both, biases)
                total = added(total, more)
        return total


@dataclass
class _Forward:
    """What the forward pass leaves for the passes behind it."""

    w: Weights
    values: ByValue
    kept: dict[Value, Kept]
    rows: Rows
    head: Logits | Tail
    places: tuple[Value, ...]  # the values that the head reads
    shares: Tensor | None = None

    def seeded(self, seeds: Sequence[Tensor]) -> ByValue:
        """By value; one that a critic returns twice has the sum."""
        total: ByValue = {}
        for place, seed in zip(self.places, seeds, strict=True):
            total[place] = total[place] + seed if place in total else seed
        return total


@dataclass
class _Bend:
    """What curved layers add to an adjoint that covers the penalised rows."""

    tangent: ByValue
    delta: ByValue
    start: int

    def added(self, layer: Layer, kept: Kept, before: Value, after: Value, d: Tensor) -> Tensor:
        kept = _sliced(kept, slice(self.start, None))
        more = layer.second(kept, self.tangent[before], self.delta[after])
        return torch.cat([d[: self.start], d[self.start :] + more]) if self.start else d + more


def bias_shares(real: Tensor, penalties: Sequence[PenaltyConfig]) -> Tensor:
    """float32 (rows,): 1 for the loss's 2N rows, 0 for the points of penalties."""
    n, points = len(real), sum(penalty_of(p).points is not None for p in penalties)
    shares = torch.zeros((2 + points) * n, device=real.device)
    shares[: 2 * n] = 1
    return shares


def _bare(walk: Walk) -> set[Value]:
    """The picture, and values made of it without weights: only a penalty needs their deltas."""
    bare = {0}
    for step in walk.steps:
        if not step.layer.weights and all(i in bare for i in step.inputs):
            bare.add(step.output)
    return bare


def _overwritten(walk: Walk) -> set[Value]:
    """Values whose penalised rows nobody but weight gradients reads after the delta pass.

    `ConvAct` keeps bits for its own tangent, and a convolution or linear layer behind it reads the
    tangent alone.
    """
    read = set(walk.tail.inputs if walk.tail else walk.outputs)
    read |= {i for s in walk.steps if not isinstance(s.layer, Conv | Linear) for i in s.inputs}
    fused = {step.output for step in walk.steps if isinstance(step.layer, ConvAct)}
    return fused - read


def _is_narrow(step: Step, rows: Rows) -> bool:
    """Whether a step is a convolution of what the critic is shown, a condition included.

    Deltas and tangents are those of the picture, so that its channels are enough for them.
    """
    plain = isinstance(step.layer, Conv) and step.layer.shape.groups == 1
    return rows.conditioned and step.inputs == (0,) and plain


def _narrowed(step: Step, rows: Rows, w: Weights, kept: Kept) -> tuple[Weights, Kept]:
    """Weights and kept values of a step for its delta and tangent, by the picture's channels."""
    if not _is_narrow(step, rows):
        return w, kept
    assert isinstance(step.layer, Conv)
    name, shape_only = step.layer.weight, torch.empty_like(rows.of_picture(kept[0]))
    return {**w, name: rows.of_picture(w[name]).clone()}, (shape_only, *kept[1:])


def _sliced(kept: Kept, rows: slice) -> Kept:
    return kept if rows == ALL else tuple(k[rows] for k in kept)


def _joined(blocks: list[Tensor]) -> Tensor:
    blocks = [b for b in blocks if len(b)]
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)


def _plus(t: Tensor, h: Tensor, factor: Tensor) -> Tensor:
    """t plus each row of ``h`` by its number."""
    factor = factor.view(-1, *[1] * (h.dim() - 1))
    return torch.addcmul(t, h, factor) if t.dtype == h.dtype == factor.dtype else t + h * factor
