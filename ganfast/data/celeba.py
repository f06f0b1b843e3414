"""CelebA, aligned and cropped, as its authors distribute it: pictures with two tables beside them.

    img_align_celeba.zip or img_align_celeba/   JPEGs, 178x218
    list_attr_celeba.txt      a count; 40 attribute names; per picture its file and 40 times 1 or -1
    list_eval_partition.txt   per picture its file and 0 (train), 1 (val) or 2 (test)

The tables may also be gzipped or zipped, or the .csv of Kaggle's copy. They may list more pictures
than there are; a picture that they do not list is an error. Without the second table the set is not
divided; the first one is needed for classes only.
"""

import hashlib
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path

import numpy as np

from ganfast.data.files import LARGEST, PictureFiles, file_identity, read_table, slashed
from ganfast.data.pictures import preparation, reader
from ganfast.data.source import Prepared, Reading, Recognised, Wanted, counted, did_you_mean
from ganfast.errors import InputError

ZIP_NAME = "img_align_celeba.zip"
FOLDER_NAME = "img_align_celeba"
ATTRIBUTES = "list_attr_celeba.txt"
PARTITION = "list_eval_partition.txt"
PART = {"0": "train", "1": "val", "2": "test"}
MOST_ATTRIBUTES = 8  # make 256 classes; 40 would make 10**12


def find_table(folder: Path, name: str) -> Path | None:
    names = (name, name.replace(".txt", ".csv"))
    paths = (folder / f"{name}{suffix}" for name in names for suffix in ("", ".gz", ".zip"))
    return next((path for path in paths if path.is_file()), None)


def find_pictures(path: Path) -> Path | None:
    """The zip or folder of pictures of a CelebA set in `path`, if there is one."""
    if path.name == FOLDER_NAME and not (path / FOLDER_NAME).is_dir():
        has_table = find_table(path.parent, ATTRIBUTES) or find_table(path.parent, PARTITION)
        return path if has_table else None
    if (path / ZIP_NAME).is_file():
        return path / ZIP_NAME
    return path / FOLDER_NAME if (path / FOLDER_NAME).is_dir() else None


@dataclass(frozen=True)
class CelebA(Recognised):
    path: Path  # the pictures' zip or folder; the tables lie beside it
    kind = "celeba"
    flip = True

    @property
    def name(self) -> str:
        folder = self.path.parent.name.lower()
        return folder if "celeba" in folder else "celeba"

    @property
    def splits(self) -> tuple[str, ...]:
        return (*PART.values(), "all") if find_table(self.path.parent, PARTITION) else ("all",)

    def check_split(self, split: str) -> str:
        if split in ("val", "test"):
            self._table(PARTITION, f"split {split!r}")
        return super().check_split(split)

    @cached_property
    def _files(self) -> PictureFiles:
        return PictureFiles(self.path)

    @cached_property
    def _pictures(self) -> dict[str, str]:
        """File name -> name within the zip or folder, in file-name order."""
        bases = {name: slashed(name).rpartition("/")[2] for name in self._files.names}
        if len(set(bases.values())) < len(bases):
            base, _ = Counter(bases.values()).most_common(1)[0]
            raise InputError(
                f"{self.path} holds more than one {base}: CelebA's file names are unique"
            )
        return {base: name for name, base in sorted(bases.items(), key=lambda item: item[1])}

    def _table(self, name: str, needed_for: str) -> Path:
        if path := find_table(self.path.parent, name):
            return path
        other = name.replace("txt", "csv")
        way_out = "; split 'all' does without" if name == PARTITION else ""
        raise InputError(
            f"{self.path.parent} has no {name} (nor {other}, .gz, .zip), "
            f"which {needed_for} needs{way_out}"
        )

    def natural(self, split: str) -> tuple[int, int]:
        return 3, 64

    def identity(self, wanted: Wanted) -> str:
        parts = [self._files.identity]
        if wanted.split != "all":
            parts.append(file_identity(self._table(PARTITION, f"split {wanted.split!r}")))
        if wanted.attributes:
            parts.append(file_identity(self._table(ATTRIBUTES, "a class of attributes")))
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def _part_of(self) -> dict[str, str]:
        """File name -> split."""
        table = self._table(PARTITION, "a split")
        part_of = {}
        for number, line in enumerate(_lines(table), start=1 + _is_csv(table)):
            fields = line.split()
            if len(fields) != 2 or fields[1] not in PART:
                raise InputError(
                    f"{table}, line {number} is {line[:60]!r}: "
                    "a file name and 0, 1 or 2 was expected"
                )
            part_of[fields[0]] = PART[fields[1]]
        _refuse_missing(self._pictures, part_of, table)
        return part_of

    def _read(self, wanted: Wanted) -> Reading:
        part_of = {} if wanted.split == "all" else self._once(self._part_of)
        part = [part_of.get(picture, "all") for picture in self._pictures]
        chosen = [p for p, split in zip(self._pictures, part, strict=True) if split == wanted.split]
        if not chosen:
            raise InputError(
                f"no pictures found for split {wanted.split!r} in {self.path}, by {PARTITION}: "
                "try split 'all'"
            )
        names, by = attribute_classes(wanted.attributes), ""
        if not names:
            table = find_table(self.path.parent, ATTRIBUTES)
            known = (
                f"--attributes names none of its {len(_attribute_names(table))}" if table else ""
            )
            by = known or f"there is no {ATTRIBUTES}"
        whole = "" if self.splits != ("all",) else f", undivided, as there is no {PARTITION}"
        gone = max(0, len(part_of) - len(part))
        return Reading(
            what=f"CelebA in {self.path.parent}",
            rows=chosen,
            count=len(chosen),
            facts=(f"from {self.path.name}{whole}",),
            values=self._labels(chosen, wanted.attributes) if names else None,
            names=names,
            by=by,
            parts=Counter(part),
            left_out=(f"{counted(gone, 'picture')} of the tables, which are not here",)
            * (gone > 0),
        )

    def _prepared(self, wanted: Wanted, reading: Reading) -> Prepared:
        channels, names = wanted.channels or 3, [self._pictures[base] for base in reading.rows]
        own = preparation("aligned face, full width", wanted.size, channels)
        return channels, own, reader(self._files, names, wanted.size, channels)

    def _labels(self, chosen: list[str], attributes: tuple[str, ...]) -> np.ndarray:
        """The attributes as binary digits, the most significant first, int64 (len(chosen),)."""
        table = self._table(ATTRIBUTES, "a class of attributes")
        names = _attribute_names(table)
        for attribute in attributes:
            if attribute not in names:
                known = f": {table.name} has {', '.join(names[:8])}, ..."
                near = did_you_mean(attribute, names) or known
                raise InputError(f"unknown attribute {attribute!r}{near}")
        columns = [1 + names.index(attribute) for attribute in attributes]

        lines = _lines(table)
        if len(lines) - 2 != int(lines[0]):
            raise InputError(
                f"{table} announces {lines[0].strip()} rows and has {len(lines) - 2}: "
                "download it again"
            )
        label_of = {}
        for number, line in enumerate(lines[2:], start=3 - _is_csv(table)):
            fields = line.split()
            values = [fields[column] for column in columns] if len(fields) == 1 + len(names) else []
            if not values or not {"1", "-1"}.issuperset(values):
                expected = f"a file name and {len(names)} times 1 or -1"
                raise InputError(
                    f"{table}, line {number} is {line[:60]!r}...: {expected} was expected"
                )
            digits = "".join("1" if value == "1" else "0" for value in values)
            label_of[fields[0]] = int(digits, base=2)
        _refuse_missing(chosen, label_of, table)
        return np.array([label_of[picture] for picture in chosen], dtype=np.int64)


def attribute_classes(attributes: tuple[str, ...]) -> tuple[str, ...]:
    """Names of classes: ("Male",) -> ("not Male", "Male"); the last attribute changes fastest."""
    if len(set(attributes)) < len(attributes) or len(attributes) > MOST_ATTRIBUTES:
        raise InputError(
            f"attributes {', '.join(attributes)}: expected at most {MOST_ATTRIBUTES} different "
            "ones, each doubles the classes"
        )
    if not attributes:
        return ()
    return tuple(", ".join(names) for names in product(*((f"not {a}", a) for a in attributes)))


def _is_csv(table: Path) -> bool:
    return ".csv" in table.suffixes


def _lines(table: Path, limit: int = LARGEST) -> list[str]:
    """The lines of a table as the authors wrote it, whose .csv at Kaggle has a line of titles."""
    lines = read_table(table, limit).splitlines()
    if not _is_csv(table):
        return lines
    titles, *rows = (line.replace(",", " ") for line in lines or [""])
    head = [str(len(rows)), titles.partition(" ")[2]] if "attr" in table.name else []
    return [*head, *rows]


def _attribute_names(table: Path) -> list[str]:
    lines = _lines(table, limit=1 << 16)
    names = lines[1].split() if len(lines) > 1 else []
    # Python refuses to read a number of thousands of digits
    if not names or not lines[0].strip().isdecimal() or len(lines[0]) > 100:
        raise InputError(
            f"{table} begins with {' / '.join(lines[:2])[:60]!r}: "
            "a count and a line of names was expected"
        )
    return names


def _refuse_missing(pictures: Collection[str], rows: Collection[str], table: Path) -> None:
    missing = [picture for picture in pictures if picture not in rows]
    if missing:
        raise InputError(
            f"{counted(len(missing), 'picture')} without a row in {table}, {missing[0]} first: "
            "use the table that came with the pictures, or leave these pictures out"
        )
