"""Pictures in a NumPy file: .npy, or .npz with its usual names.

Shapes: (N, H, W), (N, H, W, C) and (N, C, H, W) with C 1 or 3.
Types: uint8, or floats that fill [0, 1] or [-1, 1].
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ganfast.data.files import file_identity, first_bytes
from ganfast.data.pictures import colour, preparation, prepare_array
from ganfast.data.source import Selection, Source, Wanted, class_names, counted
from ganfast.errors import InputError

# tried in this order; else the only array that can be pictures
PICTURES = ("images", "x_train", "arr_0")
LABELS = ("labels", "y_train")


@dataclass(frozen=True)
class Arrays(Source):
    path: Path
    kind = "arrays"
    flip = False

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", "test", "all") if "test" in self._sets else ("all",)

    @cached_property
    def _sets(self) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
        """Split -> pictures (N, H, W, C) in the dtype of the file, and labels."""
        try:
            loaded = np.load(self.path, mmap_mode="r", allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                arrays = {"images": loaded}
            else:
                with loaded:
                    arrays = {k: v for k, v in loaded.items() if isinstance(v, np.ndarray)}
        # Exception: unzipping, and Python's tokenizer in NumPy's header parser, raise many kinds
        except Exception as error:
            raise InputError(
                f"{self.path} is no readable NumPy file ({error}): it is {first_bytes(self.path)}"
            ) from error
        main = next((name for name in PICTURES if name in arrays), None)
        if main is None:
            candidates = [name for name, array in arrays.items() if array.ndim in (3, 4)]
            if len(candidates) != 1:
                shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
                raise InputError(
                    f"no pictures found in {self.path}, it holds {shapes or 'nothing'}: "
                    "name the array 'images'"
                )
            main = candidates[0]
        labels = next((arrays[name] for name in LABELS if name in arrays), None)
        sets = {"train": self._checked(arrays[main], labels)}
        if main == "x_train" and "x_test" in arrays:
            sets["test"] = self._checked(arrays["x_test"], arrays.get("y_test"))
        return sets

    def _checked(
        self, pictures: np.ndarray, labels: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        shape = pictures.shape
        if pictures.ndim == 3:
            pictures = pictures[..., None]
        elif pictures.ndim == 4 and shape[3] not in (1, 3) and shape[1] in (1, 3):
            pictures = pictures.transpose(0, 2, 3, 1)
        channels_fit = pictures.ndim == 4 and pictures.shape[3] in (1, 3)
        if not channels_fit or not len(pictures) or min(pictures.shape[1:3]) < 8:
            raise InputError(
                f"{self.path} holds an array of shape {shape}: pictures are (N, H, W), "
                "(N, H, W, C) or (N, C, H, W), N at least 1, H and W at least 8, C 1 or 3"
            )
        if pictures.dtype != np.uint8 and pictures.dtype.kind != "f":
            raise InputError(
                f"{self.path} holds {pictures.dtype} pictures: uint8, or floats in [0, 1] or "
                "[-1, 1], are read"
            )
        if labels is not None:
            labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
            if labels.shape != shape[:1] or labels.dtype.kind not in "iu":
                raise InputError(
                    f"{self.path} holds {labels.dtype} labels of shape {labels.shape}: "
                    f"{shape[0]} whole numbers were expected, one per picture"
                )
        return pictures, labels

    @cached_property
    def _low(self) -> int | None:
        """Where the range of float pictures begins, 0 or -1 (it ends at 1); None for uint8.

        Reads every value.
        """
        if all(pictures.dtype == np.uint8 for pictures, _ in self._sets.values()):
            return None
        low = min(float(pictures.min()) for pictures, _ in self._sets.values())
        high = max(float(pictures.max()) for pictures, _ in self._sets.values())
        if not (-1 <= low <= high <= 1):  # NaN fails too
            raise InputError(
                f"{self.path} holds floats from {low:g} to {high:g}: "
                "scale them to [0, 1] or [-1, 1]"
            )
        return 0 if low >= 0 else -1

    def _chosen(self, split: str) -> tuple[np.ndarray, np.ndarray | None]:
        sets = list(self._sets.values()) if split == "all" else [self._sets[split]]
        if len(sets) == 1:
            return sets[0]
        labels = [labels for _, labels in sets if labels is not None]
        try:
            pictures = np.concatenate([pictures for pictures, _ in sets])
        except ValueError as error:
            raise InputError(
                f"x_train and x_test of {self.path} differ in shape: choose split train or test"
            ) from error
        return pictures, np.concatenate(labels) if len(labels) == len(sets) else None

    def natural(self, split: str) -> tuple[int, int]:
        _, height, width, channels = self._chosen(split)[0].shape
        return channels, min(height, width)

    def _describe(self, split: str) -> str:
        pictures, labels = self._chosen(split)
        count, height, width, channels = pictures.shape
        scaled = "" if self._low is None else f", floats in [{self._low}, 1] scaled to 0..255"
        classes = "no classes"
        if labels is not None:
            classes = counted(len(class_names(labels, str(self.path))), "class")
        what = f"{counted(count, 'picture')} {width}x{height} {colour(channels)}"
        return f"NumPy array in {self.path} ({what}{scaled}, {classes})"

    def identity(self, wanted: Wanted) -> str:
        return file_identity(self.path)

    def select(self, wanted: Wanted) -> Selection:
        pictures, labels = self._chosen(wanted.split)
        _, height, width, channels = pictures.shape
        low = self._low
        scaled = "" if low is None else f", [{low}, 1] scaled to 0..255"
        own = f"{width}x{height} {colour(channels)}{scaled}"
        unchanged = (height, width, channels) == (wanted.size, wanted.size, wanted.channels)

        def read(start: int, stop: int) -> np.ndarray:
            batch = pictures[start:stop]
            if low is not None:
                greys = (batch.astype(np.float64) - low) * (255 / (1 - low))
                batch = np.rint(greys).astype(np.uint8)
            return prepare_array(batch, wanted.size, wanted.channels)

        return Selection(
            count=len(pictures),
            channels=wanted.channels,
            labels=None if labels is None else labels.astype(np.int64),
            classes=() if labels is None else class_names(labels, str(self.path)),
            preparation=preparation(own, wanted.size, wanted.channels, unchanged),
            read=read,
        )
