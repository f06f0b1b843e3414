"""Scores of pictures against a data set, by one protocol.

What is compared with what, and by which network, is part of every result.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ganfast.data import Pack, PackInfo, open_data, recognise
from ganfast.data.lookup import has_test
from ganfast.data.source import RULES
from ganfast.errors import InputError
from ganfast.evaluate.ceiling import COMPONENTS, MOST, PixelGaussian
from ganfast.evaluate.extractor import Extractor
from ganfast.evaluate.names import told_apart
from ganfast.evaluate.scores import ClassScores, Frechet, kernel_distance, nearest, neighbourhoods
from ganfast.evaluate.sources import Fakes, classes_like, shuffled
from ganfast.evaluate.tails import class_recalls, cluster_centres, cluster_spread
from ganfast.images import Pictures

NEIGHBOURS = 5  # k of precision, recall, density, coverage
LEAST = 100  # pictures below which no score means anything
_MOST_REALS = 60_000  # reference pictures
_MOST_NEIGHBOURS = 10_000  # features of each side whose neighbours are looked for
_MOST_COPIES = 500  # fakes, and held-out reals, whose nearest real is looked for
_CHUNK = 500
_SPLIT = 2**31 - 1  # the shuffle that splits the reference
VERSION = 1  # of the definitions below: part of the protocol
Chunks = Iterator[tuple[Pictures, np.ndarray | None]]  # pictures, and their classes


@dataclass(frozen=True)
class Result:
    """Scores of one source of pictures, and what they mean."""

    name: str
    protocol: dict[str, Any]
    scores: dict[str, float]
    against: "Evaluation"
    sheet: Pictures  # the first pictures, uint8 (N, H, W, C)
    copies: Pictures  # fakes closest to a real, each before that real
    class_recalls: dict[
        str, float
    ]  # of each class that reals of the reference have; {} = no labels

    @property
    def floor(self) -> dict[str, float]:
        """The same scores of reals outside the reference: as many as were scored, or all."""
        return self.against.floor_of(self.protocol["fakes"]) | {"copy_ratio": 1.0}

    @property
    def floor_pictures(self) -> int:
        """How many reals the floor is made of."""
        return min(self.protocol["fakes"], self.protocol["held_out"])

    @property
    def ceiling(self) -> float:
        """Frechet distance of as many pictures from a Gaussian fitted to the reference's pixels."""
        return self.against.ceiling_of(self.protocol["fakes"])

    @property
    def protocol_id(self) -> str:
        """Everything that a score depends on, in one line; equal ids are comparable."""
        p = self.protocol
        return (
            f"v{p['version']} {p['data']}/{p['split']} {p['reals']} reals {p['fakes']} fakes "
            f"{p['extractor']}@{p['extractor_sha256'][:8]} {told_apart(p)}"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain enough for JSON: null for a score that is infinite or missing."""
        return {
            "name": self.name,
            "protocol": self.protocol,
            "scores": _plain(self.scores),
            "class_recalls": self.class_recalls,
            "floor": _plain(self.floor),
            "floor_pictures": self.floor_pictures,
            "ceiling": self.ceiling,
            "protocol_id": self.protocol_id,
        }


def _plain(scores: dict[str, float]) -> dict[str, float | None]:
    return {
        name: scores[name] if math.isfinite(scores.get(name, math.inf)) else None
        for name in ("kernel_std", *scores)
    }


class Evaluation:
    """A reference and its feature network; `score` takes any number of sources.

    Floor and ceiling are computed when they are first asked for.

    Args:
        pack: the reference. Where the set is divided, all of this split (60,000 at most); else a
            random half of it.
        held_out: pictures for the floor; None takes the other half of the pack.
        extractor: the feature network.
        fakes: pictures to score from each source; at most half of an undivided set.
        seed: of the split into halves and of the ceiling.

    Raises:
        InputError: too few reals.
    """

    def __init__(
        self,
        pack: Pack,
        held_out: Pack | None,
        extractor: Extractor,
        fakes: int = 10_000,
        seed: int = 0,
    ) -> None:
        self.pack, self.extractor, self.seed = pack, extractor, seed
        self.other = held_out or pack
        order = shuffled(len(pack.images), seed, _SPLIT)
        half = len(order) // 2
        self.divided = held_out is not None
        if held_out:
            self.positions = order[:_MOST_REALS]
            self.held_out = shuffled(len(held_out.images), seed, _SPLIT)[:fakes]
            self.fakes = fakes
        else:
            self.positions, self.held_out = order[:half], order[half:]
            self.fakes = min(fakes, len(self.held_out))
        self.frechet = Frechet(extractor.dim, extractor.device)
        self._enough("reference", len(self.positions))
        self._enough("held-out reals", len(self.held_out))
        self._enough("fakes", self.fakes)
        self._floors: dict[int, dict[str, float]] = {}
        self._ceilings: dict[int, float] = {}
        counts, chunks = ClassScores(self._classes), self._reals(self.pack, self.positions)
        self.features = self._read(chunks, self.frechet.reference, counts)
        self.class_counts = counts.counts

    def _enough(self, what: str, count: int) -> None:
        least = max(LEAST, self.extractor.dim + 1)
        if count < least:
            raise InputError(
                f"{count} pictures ({what}) are too few: with {self.extractor.dim} features "
                f"scores need {least} or more on each side, 10,000 to be worth comparing"
            )

    def _reals(self, pack: Pack, positions: np.ndarray, labelled: bool = False) -> Chunks:
        for rows in _in_chunks(positions):
            labels = pack.labels[rows] if labelled and pack.labels is not None else None
            yield np.ascontiguousarray(np.asarray(pack.images[rows]).transpose(0, 2, 3, 1)), labels

    def _read(
        self, chunks: Chunks, distance: Callable[[Tensor], None], classes: ClassScores
    ) -> Tensor:
        """Features of the first pictures; ``distance`` and ``classes`` get those of all."""
        first: list[Tensor] = []
        for pictures, labels in chunks:
            answer = self.extractor(pictures)
            distance(answer.features)
            if sum(map(len, first)) < _MOST_NEIGHBOURS:
                first.append(answer.features)
            if answer.logits is not None and self._classes:
                classes.add(answer.logits, labels)
        return torch.cat(first)[:_MOST_NEIGHBOURS]

    @property
    def _classes(self) -> int:
        return len(self.pack.info.classes) if self.extractor.judges_labels else 0

    @property
    def floor(self) -> dict[str, float]:
        """Scores of as many held-out reals as pictures are scored."""
        return self.floor_of(self.fakes)

    @property
    def ceiling(self) -> float:
        """Frechet distance of as many pictures from a Gaussian fitted to the reference's pixels."""
        return self.ceiling_of(self.fakes)

    def floor_of(self, count: int) -> dict[str, float]:
        """Scores of so many held-out reals, or of all there are: distances depend on how many."""
        count = min(count, len(self.held_out))
        if count not in self._floors:
            chunks = self._reals(self.other, self.held_out[:count], labelled=True)
            self._floors[count], *_ = self._scores(chunks, [])
        return self._floors[count]

    def ceiling_of(self, count: int) -> float:
        """Frechet distance of so many pictures from the Gaussian."""
        if count not in self._ceilings:
            for start in range(0, count, _CHUNK):
                drawn = self._gaussian.draw(start, min(start + _CHUNK, count), self.seed)
                self.frechet.add(self.extractor(drawn).features)
            self._ceilings[count] = self.frechet.distance()
        return self._ceilings[count]

    @cached_property
    def _gaussian(self) -> PixelGaussian:
        """Fitted to the reference, of which no more is read than the fit looks at."""
        rows = np.sort(self.positions)
        most = max(2, MOST // int(np.prod(self.pack.images.shape[1:])))
        step = max(1, -(-len(rows) // most))
        return PixelGaussian(np.asarray(self.pack.images[rows[::step]]))

    @cached_property
    def _centres(self) -> Tensor:
        return cluster_centres(self.features, self.seed)

    def _recalls(self, recalled: Tensor) -> dict[str, float]:
        """By the class of the reals behind the first features; {} where they have no labels."""
        if self.pack.labels is None:
            return {}
        names = self.pack.info.classes
        labels = self.pack.labels[np.concatenate(list(_in_chunks(self.positions)))]
        shares = class_recalls(recalled, labels[: len(recalled)], len(names))
        return {n: share for n, share in zip(names, shares, strict=True) if share is not None}

    def _scores(
        self, chunks: Chunks, first: list[Pictures]
    ) -> tuple[dict[str, float], int, dict[str, float]]:
        """Scores, how many neighbours were compared, and recalls by class; ``first`` gets the first
        pictures."""

        def remembered() -> Chunks:
            for pictures, labels in chunks:
                if sum(map(len, first)) < _MOST_COPIES:
                    first.append(pictures)
                yield pictures, labels

        classes = ClassScores(self._classes)
        features = self._read(remembered(), self.frechet.add, classes)
        # Precision and density depend on how many features there are of each side: equally many.
        both = min(len(features), len(self.features))
        mean, deviation = kernel_distance(self.features, features, self.seed)
        scores = {"frechet": self.frechet.distance(), "kernel": mean}
        if deviation is not None:
            scores["kernel_std"] = deviation
        near, recalled = neighbourhoods(self.features[:both], features[:both], NEIGHBOURS)
        scores |= near | {"cluster_spread": cluster_spread(self.features, features, self._centres)}
        if recalls := self._recalls(recalled):
            scores["class_recall"] = float(np.mean(list(recalls.values())))
            scores["class_recall_least"] = min(recalls.values())
        if self._classes:
            scores |= classes.scores(self.class_counts)
        return scores, both, recalls

    def score(self, source: Fakes, fakes: int = 0) -> Result:
        """Draw from a source and score it.

        Args:
            fakes: how many, 0 = as many as the evaluation was made for; a folder may give fewer.

        Raises:
            InputError: too few pictures, or of another size than the reference.
        """
        info = self.pack.info
        if problem := other_shape(source.name, source.shape, info):
            raise InputError(problem)
        count = min(fakes or self.fakes, source.count or 2**62)
        self._enough(source.name, count)
        same, drawn = source.classes == info.classes, source.facts
        if source.classes and info.classes and not same:
            evenly = ", drawn evenly" if source.labels is None else ""
            drawn = drawn | {"classes": f"its own{evenly}"}

        def chunks() -> Chunks:
            for start in range(0, count, _CHUNK):
                stop = min(start + _CHUNK, count)
                labels = self._classes_of(source, start, stop)
                yield source.pictures(start, stop, labels), labels if same else None

        first: list[Pictures] = []
        scores, both, recalls = self._scores(chunks(), first)
        some = np.concatenate(first)[:_MOST_COPIES]
        scores["copy_ratio"], copies = self._memorised(some)
        protocol = self._protocol(count, both, drawn)
        return Result(source.name, protocol, scores, self, some[:64], copies, recalls)

    def _classes_of(self, source: Fakes, start: int, stop: int) -> np.ndarray | None:
        """The classes that pictures have, else those to ask for.

        They are drawn as often as in the reference, and evenly where its classes are others.
        """
        if source.labels is not None:
            return source.labels[start:stop]
        if not source.classes:
            return None
        counts: np.ndarray = np.ones(len(source.classes))
        if source.classes == self.pack.info.classes and self.pack.labels is not None:
            counts = np.bincount(self.pack.labels[self.positions], minlength=len(counts))
        return classes_like(counts, self.seed, start, stop)

    def _memorised(self, fakes: Pictures) -> tuple[float, Pictures]:
        """Median distance of fakes to their nearest real over that of held-out reals, in pixels.

        The second result is the closest pairs. A set that is not divided was trained on as a whole:
        all of it is searched, and a held-out real is no neighbour of its own.
        """
        own = np.sort(self.held_out[: len(fakes)])
        reals = np.asarray(self.other.images[own]).transpose(0, 2, 3, 1)
        both = np.concatenate([fakes, reals])
        flat = torch.from_numpy(both.reshape(len(both), -1)).float()
        searched = np.sort(self.positions) if self.divided else np.arange(len(self.pack.images))
        itself = torch.full((len(flat),), -1)
        if not self.divided:
            itself[len(fakes) :] = torch.from_numpy(own)
        chunks = self._reals(self.pack, searched)
        stored = (torch.from_numpy(p.reshape(len(p), -1)).float() for p, _ in chunks)
        distance, where = nearest(flat, stored, itself)
        of_fakes, of_reals = distance[: len(fakes)], distance[len(fakes) :]
        closest = torch.argsort(of_fakes)[:32].numpy()
        pairs = []
        for fake, row in zip(closest, searched[where[closest].numpy()], strict=True):
            pairs += [fakes[fake], self.pack.images[row].transpose(1, 2, 0)]
        return float(of_fakes.median() / of_reals.median().clamp_min(1e-12)), np.stack(pairs)

    def _protocol(self, count: int, both: int, drawn: dict[str, Any]) -> dict[str, Any]:
        info = self.pack.info
        return {
            "version": VERSION,
            "data": info.name,
            "source_hash": info.source_hash,
            "split": info.split,
            "size": info.size,
            "reals": len(self.positions),
            "held_out": len(self.held_out),
            "fakes": count,
            "neighbours": f"k={NEIGHBOURS} among {both}+{both}",
            "ceiling": f"{COMPONENTS}-component pixel Gaussian",
            "extractor": self.extractor.name,
            "extractor_sha256": self.extractor.sha256,
            "preprocessing": self.extractor.preprocessing,
            "published": self.extractor.published,
            "evaluation_seed": self.seed,
            "drawn": drawn,
        }


def _in_chunks(positions: np.ndarray) -> Iterator[np.ndarray]:
    """The positions in the order in which the reals are read."""
    for start in range(0, len(positions), _CHUNK):
        yield np.sort(positions[start : start + _CHUNK])


def other_shape(name: str, shape: tuple[int, ...], info: PackInfo) -> str:
    """What is wrong with pictures (H, W, C) of another shape than the reference; "" = nothing."""
    if shape == (info.size, info.size, info.channels):
        return ""
    height, width, channels = shape
    return (
        f"{name} has pictures of {width}x{height}x{channels} "
        f"and {info.name} of {info.size}x{info.size}x{info.channels}"
    )


def open_reference(
    data: str,
    size: int = 0,
    channels: int = 0,
    root: str | None = None,
    rules: int = RULES,
    verify: bool = True,
    **how: Any,
) -> tuple[Pack, Pack | None]:
    """Training pictures, and those of the test split where the set has one.

    Args:
        root, rules, how: as of `ganfast.data.open_data`.
        verify: hash the training pictures; those of the test split always are.

    Raises:
        InputError: the data cannot be used as asked for, or its test split is there and damaged.
    """
    how |= {"root": root, "rules": rules}
    pack = open_data(data, size=size, channels=channels, verify=verify, **how)
    if not has_test(recognise(data, root).by_rules(rules)):
        return pack, None
    how |= {"size": pack.info.size, "channels": pack.info.channels}
    return pack, open_data(data, split="test", **how)
