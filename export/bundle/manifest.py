"""The description of a bundle, `manifest.json`. Needs no torch, and nothing beside NumPy.

Its digest, "sha256:...", covers everything in it, and so the hashes of all other files: who pins it
pins every byte. The file has one form only, so that any changed byte shows, even white space.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from ganfast.errors import InputError
from ganfast.export.bundle.parity import GATES, Parity
from ganfast.outside import parse_json

SCHEMA = 2
PRECISIONS = tuple(GATES)
MANIFEST, MODEL, GOLDEN = "manifest.json", "model.onnx", "golden.safetensors"
MAX_BUCKET = 4096
_HASH = re.compile(r"[0-9a-f]{64}")


_SINCE_2 = ("condition", "output", "task")
Content = bytes  # FileFacts has a field of that name


@dataclass(frozen=True)
class FileFacts:
    """A file of the bundle, by its path relative to it."""

    sha256: str
    bytes: int

    @staticmethod
    def of(data: Content) -> "FileFacts":
        return FileFacts(hashlib.sha256(data).hexdigest(), len(data))

    def __str__(self) -> str:
        return f"{self.bytes:,} bytes, sha256 {self.sha256[:12]}..."


@dataclass(frozen=True)
class Input:
    """An array that the graph takes, with a row for each picture."""

    name: str
    dtype: str
    shape: tuple[int, ...]  # of a row
    below: int = 0  # whole numbers are 0 .. below - 1
    order: str = ""  # of a condition's channels: grey or RGB, with +mask where one lies behind them

    @property
    def masked(self) -> bool:
        """Whether the last channel is a mask: 255 = known, 0 = hole."""
        return self.order.endswith("+mask")

    def zeros(self, count: int) -> np.ndarray:
        """``count`` rows."""
        return np.zeros((count, *self.shape), self.dtype)


def tasks_differ(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> bool:
    """Whether two bundles make pictures from others in different ways.

    Older bundles lack fields of newer ones. How many pictures were held out changes no graph.
    """
    if before is None or after is None:
        return before is not after
    both = (before.keys() & after.keys()) - {"holdout"}
    return any(before[name] != after[name] for name in both)


def graph_inputs(latent: int, classes: int, condition: Input | None = None) -> tuple[Input, ...]:
    """The one table of what a graph takes, in its order; labels only where there are classes."""
    labels = [Input("labels", "int64", (), classes)] if classes else []
    given = [condition] if condition else []
    return (Input("z", "float32", (latent,)), *labels, Input("psi", "float32", ()), *given)


def condition_input(shape: Sequence[int], order: str, dtype: str = "uint8") -> Input:
    """What a picture is made from: (h, w, k) of a picture, or float32 (P, 2) of points."""
    return Input("condition", dtype, tuple(shape), 256 if dtype == "uint8" else 0, order)


@dataclass(frozen=True)
class Manifest:
    """A trained generator as a file: its inputs and outputs, its origin, and how exact it is.

    Inputs of the graph: z (N, latent) float32, standard normal; labels (N,) int64 where there are
    classes; psi (N,) float32, 0 to 2, the factor of z; where pictures are made from others,
    condition (N, h, w, k) uint8. Output: images (N, size, size, channels) uint8, 0 to 255, colour
    order RGB.
    """

    name: str  # of the run, for titles
    latent: int
    classes: tuple[str, ...]  # a label indexes it; () for a generator without classes
    size: int  # side of a picture, pixels
    channels: int  # 1 grey, 3 RGB
    precision: str  # of the graph: fp32, tf32 (fp32's graph, computed in tf32), fp16, bf16 or int8
    buckets: tuple[int, ...]  # batch sizes to be fast at, ascending
    crop: str  # how the training pictures were prepared, in words
    files: dict[str, FileFacts] = field(default_factory=dict)  # all but the manifest itself
    # seed and count: golden.safetensors holds the rows 0 .. count - 1 of the seed
    golden: dict[str, int] = field(default_factory=dict)
    parity: tuple[Parity, ...] = ()  # as measured when it was exported
    # target -> why it cannot take the graph; [] where it can
    lint: dict[str, list[str]] = field(default_factory=dict)
    # key -> facts; the engine is the file engines/<key>
    engines: dict[str, dict[str, Any]] = field(default_factory=dict)
    # ganfast.models.NetSpec of a network of ganfast's own; None for a user's
    network: dict[str, Any] | None = None
    versions: dict[str, str] = field(default_factory=dict)  # of the packages that made it
    # preset, images shown, hashes of config, data and weights
    training: dict[str, Any] = field(default_factory=dict)
    ganfast: str = ""
    condition: Input | None = None  # what pictures are made from beside latents
    task: dict[str, Any] | None = None  # how such conditions were made in training: kind and so on
    schema: int = SCHEMA

    @property
    def color_order(self) -> str:
        return "RGB" if self.channels == 3 else "grey"

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of one picture: (size, size, channels)."""
        return (self.size, self.size, self.channels)

    @property
    def inputs(self) -> tuple[Input, ...]:
        return graph_inputs(self.latent, len(self.classes), self.condition)

    @property
    def outputs(self) -> tuple[Input, ...]:
        return (Input("images", "uint8", self.shape),)

    @property
    def digest(self) -> str:
        """ "sha256:..." of everything here."""
        return _digest(self._plain())

    def to_bytes(self) -> bytes:
        """The content of manifest.json."""
        plain = self._plain()
        return _text({"digest": _digest(plain)} | plain)

    def _plain(self) -> dict[str, Any]:
        derived: dict[str, Any] = {
            "inputs": [_described(each) for each in self.inputs],
            "outputs": [_described(each) for each in self.outputs],
            "color_order": self.color_order,
            "value_range": [0, 255],
            "latent_distribution": "standard normal",
            "psi_range": [0, 2],
        }
        if given := self.condition:
            derived["condition"] = {
                "dtype": given.dtype,
                "shape": given.shape,
                "order": given.order,
            }
        # Clips and text are other kinds, so that they need no schema of their own.
        derived["output"] = {"kind": "picture", "shape": self.shape, "vocabulary": None}
        # Tuples become lists, as when read back.
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self) | derived))
        for name in _SINCE_2 if self.schema == 1 else ():
            del plain[name]
        return plain

    @staticmethod
    def from_bytes(data: bytes, source: str = MANIFEST) -> "Manifest":
        """Read manifest.json.

        Raises:
            InputError: a changed byte, a schema of a later version, paths that leave the bundle,
                values that cannot be.
        """
        plain = _parsed(data, source)
        schema = plain.get("schema")
        if isinstance(schema, int) and schema > SCHEMA:
            raise InputError(
                f"{source} has schema {schema}; this version of ganfast reads up to {SCHEMA}: "
                "install a newer ganfast"
            )
        if type(schema) is not int or schema < 1:
            raise InputError(f"{source} has schema {schema!r}; expected 1 to {SCHEMA}")
        digest = plain.pop("digest", None)
        try:
            unchanged = digest == _digest(plain) and _text({"digest": digest} | plain) == data
        except ValueError:  # NaN, which the writer does not write
            unchanged = False
        if not unchanged:
            raise InputError(
                f"{source} was changed after the export: its digest is not that of its content; "
                "export again"
            )
        try:
            if schema > 1 and (kind := plain["output"]["kind"]) != "picture":
                raise InputError(
                    f"{source} is of a generator of {kind}; this version of ganfast draws "
                    "pictures: install a newer ganfast"
                )
            manifest = _built(plain)
            manifest._check(source)
            if manifest._plain() != plain:
                raise ValueError("inputs and outputs are not those of its fields")
        except InputError:
            raise
        except Exception as error:  # values of any kind in any place
            raise InputError(f"{source} is no manifest of ganfast: {error!r}") from error
        return manifest

    def _check(self, source: str) -> None:
        for path in (*self.files, *(f"engines/{key}" for key in self.engines)):
            refuse_outside(path, source)
        for path, facts in self.files.items():
            if not _HASH.fullmatch(facts.sha256) or type(facts.bytes) is not int or facts.bytes < 0:
                raise ValueError(f"{path} has no hash and size")
        missing = {MODEL, GOLDEN, *(f"engines/{key}" for key in self.engines)} - set(self.files)
        if missing:
            raise InputError(f"{source} names no {', '.join(sorted(missing))}; export again")
        if self.precision not in PRECISIONS:
            raise InputError(
                f"{source} has precision {self.precision!r}; "
                f"expected one of {', '.join(PRECISIONS)}"
            )
        counts = {"latent": self.latent, "size": self.size, "golden": self.golden["count"]}
        for name, value in counts.items():
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} is {value!r}")
        if self.channels not in (1, 3):
            raise ValueError(f"channels is {self.channels!r}")
        if self.condition:
            _check_condition(self.condition, "RGB" if self.channels == 3 else "grey", self.channels)
        if not all(isinstance(name, str) for name in self.classes):
            raise ValueError("classes are no names")
        if not all(isinstance(facts, dict) for facts in self.engines.values()):
            raise ValueError("engines have no facts")
        check_buckets(self.buckets)


def check_buckets(buckets: tuple[int, ...]) -> None:
    """Raises InputError unless they are batch sizes in ascending order."""
    good = all(type(b) is int and 1 <= b <= MAX_BUCKET for b in buckets) and list(
        buckets
    ) == sorted(set(buckets))
    if not buckets or not good:
        raise InputError(
            f"buckets are {list(buckets)}; expected ascending batch sizes from 1 to {MAX_BUCKET}, "
            "such as 1,8,64"
        )


def refuse_outside(path: str, source: str) -> None:
    """Raises InputError for a path that is not plainly inside the bundle."""
    parts = PurePosixPath(path).parts
    if (
        not parts
        or path != "/".join(parts)
        or ".." in parts
        or re.search(r"[\\:\0\ud800-\udfff]", path)
    ):
        raise InputError(
            f"{source} names {path!r}, which is not a plain path inside the bundle; do not use it"
        )


def _described(array: Input) -> dict[str, Any]:
    return {"name": array.name, "dtype": array.dtype, "shape": ["N", *array.shape]}


def _check_condition(condition: Input, color: str, channels: int) -> None:
    numbers, order = condition.shape, condition.order
    good = all(type(n) is int and n > 0 for n in numbers)
    if condition.dtype == "uint8":
        good &= (
            numbers[2:] == (channels + condition.masked,) and order.removesuffix("+mask") == color
        )
    if not good or condition.dtype not in ("uint8", "float32"):
        raise ValueError(f"condition is {condition}")


def _built(plain: Mapping[str, Any]) -> Manifest:
    later = _SINCE_2 if plain["schema"] == 1 else ()
    known = {item.name for item in fields(Manifest)} - set(later)
    values = {name: plain[name] for name in known}
    if given := values.get("condition"):
        values["condition"] = condition_input(given["shape"], given["order"], given["dtype"])
    values["files"] = {path: FileFacts(**facts) for path, facts in plain["files"].items()}
    values["parity"] = tuple(
        Parity(**{**row, "histogram": tuple(row["histogram"])}) for row in plain["parity"]
    )
    return Manifest(
        **{**values, "classes": tuple(plain["classes"]), "buckets": tuple(plain["buckets"])}
    )


def _parsed(data: bytes, source: str) -> dict[str, Any]:
    try:
        plain = parse_json(data)
    except ValueError as error:
        raise InputError(f"{source} is damaged: it is not JSON ({error})") from error
    if not isinstance(plain, dict):
        raise InputError(f"{source} is damaged: it holds no JSON object")
    return plain


def _digest(plain: Mapping[str, Any]) -> str:
    return f"sha256:{hashlib.sha256(_text(plain)).hexdigest()}"


def _text(plain: Mapping[str, Any]) -> bytes:
    return (json.dumps(plain, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
