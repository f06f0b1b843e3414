"""Pictures in a NumPy file: .npy, or .npz with its usual names; and USPS, in the form of LIBSVM.

Shapes: (N, H, W), (N, H, W, C) and (N, C, H, W) with C 1 or 3.
Types: uint8, or floats that fill [0, 1] or [-1, 1].
"""

import bz2
import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ganfast.data.files import LARGEST, file_identity, first_bytes
from ganfast.data.pictures import colour, prepared_array
from ganfast.data.source import SPLITS, Prepared, Reading, Recognised, Wanted, check_numbers
from ganfast.errors import InputError

# Names of pictures and of their labels by split: the first that the file has, in any case. Where
# there is none of the training split, the only array that can be pictures is taken.
NAMES = {
    "train": (
        ("images", "x_train", "train_images", "arr_0", "x", "data", "imgs"),
        ("labels", "y_train", "train_labels", "targets", "y"),
    ),
    "test": (("x_test", "test_images"), ("y_test", "test_labels")),
    "val": (("x_val", "val_images"), ("y_val", "val_labels")),
}
OLDEST = ("labels", "y_train", "y_test")  # names of labels under the first rules
# A float that is a rounding, half a grey at most, outside of its range changes no byte.
SLACK = 0.5 / 255
USPS = {"train": "usps.bz2", "test": "usps.t.bz2"}

Set = tuple[np.ndarray, np.ndarray | None, str]  # pictures, labels, why there are none


@dataclass(frozen=True)
class Arrays(Recognised):
    path: Path
    kind = "arrays"
    flip = False

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def splits(self) -> tuple[str, ...]:
        sets = self._once(self._sets)
        return (*sets, "all") if len(sets) > 1 else ("all",)

    @cached_property
    def _arrays(self) -> dict[str, np.ndarray]:
        try:
            if usps := self._usps():
                both = [_libsvm(path, split) for split, path in usps.items()]
                return {name: array for part in both for name, array in part.items()}
            loaded = np.load(self.path, mmap_mode="r", allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return {"images": loaded}
            with loaded:
                return {k: v for k, v in loaded.items() if isinstance(v, np.ndarray)}
        # Exception: unzipping, and Python's tokenizer in NumPy's header parser, raise many kinds
        except Exception as error:
            kind = "LIBSVM" if self._usps() else "NumPy"
            raise InputError(
                f"{self.path} is no readable {kind} file ({error}): it is {first_bytes(self.path)}"
            ) from error

    def _usps(self) -> dict[str, Path]:
        paths = {split: self.path.with_name(name) for split, name in USPS.items()}
        both = {split: path for split, path in paths.items() if path.is_file()}
        return both if self.path.name in USPS.values() else {}

    def _sets(self) -> dict[str, Set]:
        """Split -> pictures (N, H, W, C) in the dtype of the file, and labels."""
        arrays, sets = self._arrays, {}
        lower = {name.lower(): name for name in arrays}
        for split in SPLITS[:-1]:
            pictures, labels = (
                [lower[name] for name in names if name in lower] for names in NAMES[split]
            )
            if split == "train" and not pictures:
                pictures = [name for name, array in arrays.items() if array.ndim in (3, 4)]
                if len(pictures) != 1:
                    shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
                    raise InputError(
                        f"no pictures found in {self.path}, it holds {shapes or 'nothing'}: "
                        "name the array 'images'"
                    )
            if self.rules == 1:
                labels = [name for name in labels if name in OLDEST]
            if pictures:
                sets[split] = self._set(arrays[pictures[0]], labels[0] if labels else "")
        return sets

    def _set(self, pictures: np.ndarray, labels: str) -> Set:
        checked = self._checked(pictures)
        if not labels:
            return checked, None, ""
        try:
            return checked, self._class_numbers(self._arrays[labels], len(pictures)), ""
        except InputError:
            if labels.lower() in OLDEST:
                raise
            held = self._arrays[labels]
            return checked, None, f"{labels} ({held.dtype} {held.shape}) names none"

    def _checked(self, pictures: np.ndarray) -> np.ndarray:
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
        return pictures

    def _class_numbers(self, labels: np.ndarray, count: int) -> np.ndarray:
        labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
        if labels.shape != (count,) or labels.dtype.kind not in "iuU":
            raise InputError(
                f"{self.path} holds {labels.dtype} labels of shape {labels.shape}: "
                f"{count} whole numbers or names were expected, one per picture"
            )
        if labels.dtype.kind != "U":
            check_numbers(labels, str(self.path))
        return labels

    @cached_property
    def _range(self) -> tuple[float, float]:
        """The lowest and the highest value of the pictures; reads all of them."""
        arrays = [pictures for pictures, *_ in self._once(self._sets).values()]
        return min(float(a.min()) for a in arrays), max(float(a.max()) for a in arrays)

    def _low(self) -> int | None:
        """Where the range of float pictures begins, 0 or -1 (it ends at 1); None for uint8."""
        if all(pictures.dtype == np.uint8 for pictures, *_ in self._once(self._sets).values()):
            return None
        (low, high), slack = self._range, 0 if self.rules == 1 else SLACK
        if not (-1 - slack <= low <= high <= 1 + slack):  # NaN fails too
            raise InputError(
                f"{self.path} holds floats from {low:g} to {high:g}: "
                "scale them to [0, 1] or [-1, 1]"
            )
        return 0 if low >= -slack else -1

    def _chosen(self, split: str) -> Set:
        sets = self._once(self._sets)
        chosen = list(sets.values()) if split == "all" else [sets[split]]
        if len(chosen) == 1:
            return chosen[0]
        labels = [labels for _, labels, _ in chosen if labels is not None]
        try:
            pictures = np.concatenate([pictures for pictures, *_ in chosen])
        except ValueError as error:
            raise InputError(
                f"the splits of {self.path} differ in shape: choose one of {', '.join(sets)}"
            ) from error
        why = "not every split has labels" if labels else ""
        both = np.concatenate(labels) if len(labels) == len(chosen) else None
        return pictures, both, why

    def natural(self, split: str) -> tuple[int, int]:
        _, height, width, channels = self._chosen(split)[0].shape
        return channels, min(height, width)

    def identity(self, wanted: Wanted) -> str:
        hashes = [file_identity(path) for path in self._usps().values()]
        if not hashes:
            return file_identity(self.path)
        return hashlib.sha256(" ".join(hashes).encode()).hexdigest()

    def _read(self, wanted: Wanted) -> Reading:
        pictures, labels, why = self._chosen(wanted.split)
        count, height, width, channels = pictures.shape
        low, sets = self._low(), self._once(self._sets)
        scaled = () if low is None else (f"floats in [{low}, 1] scaled to 0..255",)
        return Reading(
            what=f"{'USPS' if self._usps() else 'NumPy array'} in {self.path}",
            rows=(wanted.split, low),
            count=count,
            facts=(f"{width}x{height} {colour(channels)}", *scaled),
            values=labels,
            by=why,
            parts={split: len(pictures) for split, (pictures, *_) in sets.items()},
        )

    def _prepared(self, wanted: Wanted, reading: Reading) -> Prepared:
        pictures, (_, low) = self._chosen(wanted.split)[0], reading.rows
        own = reading.facts[0]
        if low is not None:
            own += f", [{low}, 1] scaled to 0..255"
        return prepared_array(pictures, own, wanted, low)


def _libsvm(path: Path, split: str) -> dict[str, np.ndarray]:
    """16x16 floats in [-1, 1] and digits; a line is the digit + 1, then 256 times index:value."""
    with bz2.open(path, "rt") as file:
        rows = [line.replace(":", " ").split() for line in file.read(LARGEST).splitlines()]
    table = np.array(rows, np.float32)
    labels = table[:, 0].astype(np.int64) - 1
    return {f"x_{split}": table[:, 2::2].reshape(-1, 16, 16), f"y_{split}": labels}
