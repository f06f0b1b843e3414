"""A bundle in place of a run, for `ganfast sample` and `ganfast score`. NumPy only."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ganfast.export.drawing.lanes import Pictures
from ganfast.export.drawing.rows import chosen_labels, refuse_huge
from ganfast.export.drawing.sampler import load_sampler
from ganfast.latents import class_list, picture_index


class BundleSource:
    """The methods of `ganfast.runs.run.Run` that draw, for a bundle. Close it."""

    def __init__(
        self,
        path: Path | str,
        device: str = "auto",
        backend: str = "auto",
        digest: str | None = None,
        strict: bool = False,
    ) -> None:
        self.folder = Path(path)
        self.sampler = load_sampler(path, device, backend, digest, strict)
        self.classes, self.latent = self.sampler.manifest.classes, self.sampler.manifest.latent

    def sample_labelled(
        self,
        n: int,
        seed: int = 0,
        labels: Sequence[int] | None = None,
        psi: float = 1.0,
        first: int = 0,
        checkpoint: str = "",
        device: str = "auto",
    ) -> tuple[Pictures, NDArray[np.int64] | None]:
        refuse_huge(self.sampler.manifest, n)
        index = picture_index(n, seed, first)
        chosen = self.labels_of(index, seed, labels)
        return self.sampler.sample(n, seed, chosen, psi, first=first), chosen

    def draw(
        self,
        z: NDArray[np.float32],
        labels: NDArray[np.int64] | None = None,
        psi: float = 1.0,
        checkpoint: str = "",
        device: str = "auto",
    ) -> Pictures:
        return self.sampler.draw(z, labels, psi)

    def apply(
        self,
        condition: Pictures,
        seed: int = 0,
        first: int = 0,
        psi: float = 1.0,
        labels: Sequence[int] | None = None,
        checkpoint: str = "",
        device: str = "auto",
    ) -> Pictures:
        chosen = None
        if labels is not None:
            chosen = self.labels_of(picture_index(len(condition), seed, first), seed, labels)
        return self.sampler.apply(condition, seed, first, psi, chosen)

    def labels_of(
        self, index: NDArray[np.int64], seed: int, labels: Sequence[int] | None
    ) -> NDArray[np.int64] | None:
        """The class of each picture: ``labels`` in turn, or as (seed, index) fixes them."""
        if labels is None:
            return chosen_labels(self.sampler.manifest, None, seed, index)
        numbers = chosen_labels(self.sampler.manifest, labels, seed, np.arange(len(labels)))
        return None if numbers is None else numbers[index % len(numbers)]

    def class_list(self) -> str:
        return class_list(self.classes)

    def sheet(self, seed: int) -> Path:
        """Where pictures go by default: beside the bundle, which stays as it was exported."""
        return self.folder.resolve().with_name(f"{self.folder.resolve().name}-seed{seed}.png")

    def close(self) -> None:
        self.sampler.close()


class BundleFakes:
    """Pictures of a bundle to be scored, drawn by its own sampler on any back end."""

    labels: np.ndarray | None = None

    def __init__(self, path: Path, seed: int, psi: float) -> None:
        self.sampler = load_sampler(path)
        m = self.sampler.manifest
        self.seed, self.psi, self.name, self.count = seed, psi, str(path), None
        self.shape = (m.size, m.size, m.channels)
        self.classes = tuple(m.classes)
        self.facts: dict[str, Any] = {
            "seed": seed,
            "psi": psi,
            "backend": self.sampler.backend_name,
            "bundle": m.digest,
        }

    def pictures(self, start: int, stop: int, labels: np.ndarray | None) -> Pictures:
        classes = labels if self.classes else None
        pictures: Pictures = self.sampler.sample(
            stop - start, seed=self.seed, psi=self.psi, first=start, labels=classes
        )
        return pictures
