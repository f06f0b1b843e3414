"""The end of a critic's walk: scores, the loss, and its deltas at what the last layers return."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ganfast.config import LossConfig
from ganfast.engine.layers import Gradients, Weights
from ganfast.engine.lean import LeanDerivatives
from ganfast.engine.objective import objective
from ganfast.engine.rows import Rows
from ganfast.engine.walking.steps import Walk
from ganfast.models import Judgement
from ganfast.models.members import holding


class Logits:
    """The end of a critic that was walked whole: its score, and class logits if there are some."""

    def __init__(self, walk: Walk, loss: LossConfig, answers: list[Tensor], rows: Rows) -> None:
        self.rows, self.answers = rows, answers
        self.gradients: Gradients = {}  # no weights: a walked critic's belong to its steps
        leaves = [a.detach().requires_grad_() for a in answers]
        real, fake = rows.groups[:2]
        with torch.enable_grad():
            score, classes = walk.judge(leaves, len(rows.pictures))
            both = [
                Judgement(score[group], None if classes is None else classes[group])
                for group in (real, fake)
            ]
            labels = (None, None) if rows.labels is None else (rows.labels[real], rows.labels[fake])
            total, stats = objective(loss, both[0], both[1], *labels)
            # Where a picture has one score, its delta is the slope of the loss at the score.
            alone = len(answers) == 1 + (classes is not None)
            several = not alone or score.numel() != answers[0].numel()
            wanted = [*leaves, score] if several else leaves
            slopes = torch.autograd.grad(
                rows.scaled(total), wanted, retain_graph=several, materialize_grads=True
            )
            self.slopes = slopes[: len(leaves)]
            self.score_slopes = slopes[-1 if several else 0].flatten()  # (rows,)
            self._units: Sequence[Tensor] = ()
            if several:
                self._units = torch.autograd.grad(score.sum(), leaves, materialize_grads=True)
        self.stats = {name: value.detach() for name, value in stats.items()}

    def unit(self) -> list[Tensor]:
        """Deltas of the sum of scores, for the penalised rows."""
        if self._units:
            return [unit[self.rows.penalised] for unit in self._units]
        score, *classes = (a[self.rows.penalised] for a in self.answers)
        return [torch.ones_like(score), *(torch.zeros_like(c) for c in classes)]

    def adjoint(self, tangents: Sequence[Tensor] = ()) -> Sequence[Tensor]:
        """Deltas of the loss, for all rows; the penalty sends nothing back through logits."""
        return self.slopes


class Tail:
    """The end of a critic that only autograd can take: unknown heads, couplings between samples."""

    def __init__(
        self,
        walk: Walk,
        loss: LossConfig,
        compute: torch.dtype | None,
        weights: Weights,
        answers: list[Tensor],
        rows: Rows,
    ) -> None:
        tail = walk.tail
        assert tail is not None
        self.rows = rows
        self.gradients: Gradients = {}
        self._own = {name: weights[name].detach().requires_grad_() for name in tail.weights}
        self._leaves = [a.detach().requires_grad_() for a in answers]
        kind, compute = rows.pictures.device.type, compute
        with torch.enable_grad(), LeanDerivatives():
            used = {
                name: leaf.view_as(leaf) for name, leaf in self._own.items()
            }  # see lean.leads_to
            judgements = []
            # One call for reals, fakes, and each batch of points: statistics are a batch's own.
            for group in rows.groups:
                labels = []
                if tail.takes_labels and rows.labels is not None:
                    labels = [rows.labels[group]]
                parts = [leaf[group].clone() for leaf in self._leaves]
                counts = [rows.count] * tail.batches
                given = [used.get(name, weights[name]) for name in tail.given]
                computed = torch.autocast(kind, compute, enabled=compute is not None)
                with computed, holding(tail.module, used):
                    answer = tail.module(*parts, *labels, *counts, *given)
                judgements.append(walk.judge(answer, rows.count))
            real, fake = rows.groups[:2]
            both = (None, None) if rows.labels is None else (rows.labels[real], rows.labels[fake])
            self._total, stats = objective(loss, judgements[0], judgements[1], *both)
            groups = zip(judgements, rows.groups, strict=True)
            penalised = [j.score for j, group in groups if group.start >= rows.start]
            self._delta: tuple[Tensor, ...] = ()
            if penalised:
                scores = torch.cat(penalised).sum()
                self._delta = torch.autograd.grad(
                    scores, self._leaves, create_graph=True, materialize_grads=True
                )
        self.stats = {name: value.detach() for name, value in stats.items()}

    def unit(self) -> list[Tensor]:
        return [d[self.rows.penalised].detach() for d in self._delta]

    def adjoint(self, tangents: Sequence[Tensor] = ()) -> Sequence[Tensor]:
        """Deltas of loss and tangents, for all rows. Sets the gradients of the tail's weights."""
        with torch.enable_grad(), LeanDerivatives():
            whole = self.rows.scaled(self._total)
            for t, d in zip(tangents, self._delta, strict=False):
                whole = whole + (t.detach() * d[self.rows.penalised]).sum()
            leaves = [*self._leaves, *self._own.values()]
            gradients = torch.autograd.grad(whole, leaves, materialize_grads=True)
        count = len(self._leaves)
        self.gradients = dict(zip(self._own, gradients[count:], strict=True))
        return gradients[:count]
