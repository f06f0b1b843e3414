"""Scores of what conditional runs make of held-out pictures, beside a baseline and the pictures."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ganfast.errors import InputError
from ganfast.evaluate.evaluation import LEAST
from ganfast.evaluate.extractor import Extractor
from ganfast.evaluate.names import shortened, told_apart
from ganfast.evaluate.pairs import Pair, Pairs
from ganfast.evaluate.scores import Frechet, kernel_distance
from ganfast.evaluate.sources import Generated
from ganfast.kernels.to_uint8 import to_uint8
from ganfast.tasks import levels, psnr

VERSION = 1  # of the definitions below: part of the protocol
_MOST_REALS = 10_000  # training pictures that distances are to
_ROWS = {  # score -> what the table calls it, and its format
    "psnr": ("PSNR, dB", ".2f"),
    "ssim": ("SSIM", ".4f"),
    "l1": ("L1, grey levels", ".2f"),
    "consistency": ("consistency, dB", ".2f"),
    "hole_psnr": ("PSNR in the hole, dB", ".2f"),
    "known_equal": ("known pixels kept", ".2%"),
    "frechet": ("Frechet distance", ".3f"),
    "kernel": ("kernel distance", ".4f"),
    "label_accuracy": ("classes read right", ".2%"),
    "diversity": ("diversity, grey levels", ".2f"),
}
Made = Callable[[Pair], Tensor]


@dataclass(frozen=True)
class PairedResult:
    """Scores of one column of the table."""

    name: str
    scores: dict[str, float]
    protocol: dict[str, Any]

    @property
    def protocol_id(self) -> str:
        """Everything that a score depends on, in one line; equal ids are comparable."""
        p = self.protocol
        return (
            f"paired v{p['version']} {p['task']} {p['data']}/{p['split']} "
            f"{p['held_out']} {p['pictures']}, {p['reals']} reals "
            f"{p['extractor']}@{p['extractor_sha256'][:8]} {told_apart(p)}"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain enough for JSON."""
        return {
            "name": self.name,
            "protocol": self.protocol,
            "scores": self.scores,
            "protocol_id": self.protocol_id,
        }


def refuse_few(pairs: Pairs, asked: int) -> None:
    """Raise InputError for fewer pictures than scores need; ``asked`` for as many at most."""
    if asked < LEAST:
        raise InputError(f"-n is {asked}, and scores need {LEAST} pictures or more: leave -n out")
    if len(pairs) < LEAST:
        undivided = pairs.pack is pairs.train
        raise InputError(
            f"{len(pairs)} {pairs.kind} pictures are too few: scores need {LEAST} or more; "
            + ("train with a higher --task.holdout" if undivided else "the test split needs more")
        )


class PairedEvaluation:
    """Scores pictures made from the conditions of held-out ones.

    ``psnr``, ``ssim``, ``l1`` and the task's own are means over pictures, on uint8's levels.
    Distances are of their features to those of training pictures. ``diversity`` is the mean
    difference of two latents, in the hole where there is one.
    """

    def __init__(self, pairs: Pairs, extractor: Extractor) -> None:
        self.pairs, self.extractor = pairs, extractor
        self.frechet = Frechet(extractor.dim, extractor.device)
        rows = pairs.trained_on
        rows = np.sort(rows[:: -(-len(rows) // _MOST_REALS)])
        found = []
        for start in range(0, len(rows), 500):
            stored = np.asarray(pairs.train.images[rows[start : start + 500]])
            found.append(extractor(np.ascontiguousarray(stored.transpose(0, 2, 3, 1))).features)
        self.features = torch.cat(found)
        self.frechet.reference(self.features)

    def baseline(self) -> PairedResult:
        """The task's rule of thumb."""
        made = self._scores(lambda pair: self.pairs.task.baseline(pair.given, self.pairs.mean))
        return self._result("baseline", made, {})

    def floor(self) -> PairedResult:
        """The held-out pictures themselves."""
        return self._result("floor", self._scores(lambda pair: pair.real), {})

    def run(self, made: Generated) -> PairedResult:
        """A generator in evaluation mode."""
        pairs, seed = self.pairs, made.seed

        def drawn(seed: int) -> Made:
            return lambda pair: pairs.drawn(made.net, made.latent, pair, seed, made.psi)

        scores = self._scores(drawn(seed))
        apart = []
        for pair in pairs:
            one, other = (levels(drawn(s)(pair)) for s in (seed, seed + 1))
            free = pairs.task.free(pair.given).expand_as(one)
            apart.append(((one - other).abs() * free).flatten(1).sum(1) / free.flatten(1).sum(1))
        scores["diversity"] = 127.5 * float(torch.cat(apart).mean())
        return self._result(made.name, scores, made.facts)

    def _scores(self, made: Made) -> dict[str, float]:
        """Means over all pairs of what ``made`` makes of them."""
        from torchmetrics.functional.image import structural_similarity_index_measure as ssim

        found: dict[str, list[Tensor]] = {}
        features = []
        for pair in self.pairs:
            drawn = levels(made(pair))
            error = (drawn - pair.real).abs().flatten(1).mean(1)
            values = {"psnr": psnr(drawn, pair.real), "l1": 127.5 * error}
            similar = ssim(drawn, pair.real, data_range=2.0, reduction="none")
            assert isinstance(similar, Tensor)
            values["ssim"] = similar
            values |= self.pairs.task.scores(drawn, pair.real, pair.given)
            answer = self.extractor(to_uint8(drawn).cpu().numpy())
            features.append(answer.features)
            known = self.pairs.pack.labels if self.extractor.judges_labels else None
            if answer.logits is not None and known is not None:
                rows = self.pairs.positions[pair.first : pair.first + len(drawn)]
                labels = torch.from_numpy(np.asarray(known)[rows])
                values["label_accuracy"] = (answer.logits.argmax(1).cpu() == labels).float()
            for name, value in values.items():
                found.setdefault(name, []).append(value)
        scores = {name: float(torch.cat(parts).double().mean()) for name, parts in found.items()}
        whole = torch.cat(features)
        self.frechet.add(whole)
        kernel, _ = kernel_distance(self.features, whole)
        return scores | {"frechet": self.frechet.distance(), "kernel": kernel}

    def _result(self, name: str, scores: dict[str, float], drawn: dict[str, Any]) -> PairedResult:
        pairs, info = self.pairs, self.pairs.pack.info
        positions = hashlib.sha256(np.sort(pairs.positions).tobytes()).hexdigest()
        protocol = {
            "version": VERSION,
            "task": str(pairs.task),
            "data": info.name,
            "source_hash": info.source_hash,
            "split": "held out" if len(pairs.trained_on) < len(pairs.train.images) else info.split,
            "size": info.size,
            "pictures": pairs.kind,
            "held_out": len(pairs),
            "held_out_sha256": positions,
            "reals": len(self.features),
            "extractor": self.extractor.name,
            "extractor_sha256": self.extractor.sha256,
            "preprocessing": self.extractor.preprocessing,
            "drawn": drawn,
        }
        return PairedResult(name, scores, protocol)


def paired_table(results: Sequence[PairedResult]) -> str:
    """Scores in rows; baseline, runs and floor in columns; protocol ids of the runs below."""
    rows = [["", *shortened([r.name for r in results])]]
    for key, (title, form) in _ROWS.items():
        if any(key in r.scores for r in results):
            cells = [format(r.scores[key], form) if key in r.scores else "-" for r in results]
            rows.append([title, *cells])
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = []
    for title, *cells in rows:
        cells = [cell.rjust(width) for cell, width in zip(cells, others, strict=True)]
        lines.append("  ".join([title.ljust(first), *cells]))
    kind = results[0].protocol["pictures"]
    lines.append(f"floor: the {kind} pictures themselves; 60 dB of PSNR mean equal or nearly")
    return "\n".join(
        [*lines, *(f"{r.name}: {r.protocol_id}" for r in results if r.protocol["drawn"])]
    )
