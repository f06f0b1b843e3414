"""Targets of the fuzzers: each turns bytes into files, and calls the reader of such files.

The reader ends well or with an error of ganfast's own. A target takes (data, folder), raises any
other error of the reader, and writes into the folder only. `SEEDS` are honest inputs to begin with:
mutated headers, counts, names and lengths lie nearer to them than noise does.
"""

import bz2
import gzip
import hashlib
import io
import json
import os
import struct
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from ganfast import configfile
from ganfast.config import Config
from ganfast.data import open_data
from ganfast.errors import InputError, RunError
from ganfast.export.bundle.manifest import GOLDEN, MANIFEST
from ganfast.export.bundle.tensors import write_tensors

CUT = b"\n--8<--\n"  # between the files that one input holds
FIXTURES = Path(__file__).parents[1] / "fixtures"


def parts(data: bytes, count: int) -> list[bytes]:
    """The files in an input; those that it lacks are empty."""
    files = data.split(CUT, count - 1)
    return files + [b""] * (count - len(files))


def idx(data: bytes, folder: Path) -> None:
    """Pictures and labels of an IDX set, gzipped and whole if the first byte is high."""
    packed = data[:1] > b"\x7f"
    for name, content in zip(
        ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"), parts(data[1:], 2), strict=True
    ):
        (folder / name).write_bytes(gzip.compress(content, 1, mtime=0) if packed else content)
    open_data(str(folder), cache=folder / "cache")


def gzipped_idx(data: bytes, folder: Path) -> None:
    """The same, the bytes being those of the .gz files."""
    for name, content in zip(
        ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"), parts(data, 2), strict=True
    ):
        (folder / name).write_bytes(content)
    open_data(str(folder), cache=folder / "cache")


def celeba(data: bytes, folder: Path) -> None:
    """Both tables of a CelebA set with two pictures.

    The first byte chooses the split, and whether the tables are text, .gz or .zip of any bytes.
    """
    (folder / "img_align_celeba").mkdir()
    for name in ("000001.png", "000002.png"):
        (folder / "img_align_celeba" / name).write_bytes(PICTURE)
    kind = (data[:1] or b"\0")[0]
    suffix = ("", "", ".gz", ".zip")[kind % 4]
    for name, content in zip(
        ("list_attr_celeba.txt", "list_eval_partition.txt"), parts(data[1:], 2), strict=True
    ):
        (folder / f"{name}{suffix}").write_bytes(content)
    split = ("train", "all", "val", "test")[kind // 4 % 4]
    open_data(
        str(folder), size=8, attributes=("Male", "Smiling"), split=split, cache=folder / "cache"
    )


def zipped(data: bytes, folder: Path) -> None:
    """A zip of pictures."""
    (folder / "pictures.zip").write_bytes(data)
    open_data(str(folder / "pictures.zip"), size=8, cache=folder / "cache")


def picture(data: bytes, folder: Path) -> None:
    """A folder with a picture of any bytes beside an honest one."""
    (folder / "set").mkdir()
    (folder / "set" / "a.png").write_bytes(PICTURE)
    (folder / "set" / "b.png").write_bytes(data)
    open_data(str(folder / "set"), size=8, cache=folder / "cache")


def labels(data: bytes, folder: Path) -> None:
    """StyleGAN's dataset.json beside two pictures."""
    (folder / "set").mkdir()
    for name in ("a.png", "b.png"):
        (folder / "set" / name).write_bytes(PICTURE)
    (folder / "set" / "dataset.json").write_bytes(data)
    open_data(str(folder / "set"), size=8, cache=folder / "cache")


def libsvm(data: bytes, folder: Path) -> None:
    """USPS, its lines packed if the first byte is high."""
    packed = bz2.compress(data[1:]) if data[:1] > b"\x7f" else data[1:]
    (folder / "usps.bz2").write_bytes(packed)
    open_data(str(folder), cache=folder / "cache")


def kaggle(data: bytes, folder: Path) -> None:
    """Both tables of Kaggle's copy of CelebA."""
    (folder / "img_align_celeba").mkdir()
    (folder / "img_align_celeba" / "000001.png").write_bytes(PICTURE)
    for name, content in zip(("attr_celeba", "eval_partition"), parts(data, 2), strict=True):
        (folder / f"list_{name}.csv").write_bytes(content)
    open_data(str(folder), size=8, attributes=("Male",), cache=folder / "cache")


def config(data: bytes, folder: Path) -> None:
    """A config file, and what a run writes of it read back."""
    (folder / "config.yaml").write_bytes(data)
    read = configfile.read(folder / "config.yaml")
    configfile.write(read, folder / "again.yaml")
    assert configfile.differences(read, configfile.read(folder / "again.yaml")) == {}
    assert isinstance(read, Config)


def checkpoint(data: bytes, folder: Path) -> None:
    """state.json and a file of tensors, sealed with right hashes if the first byte is high."""
    from ganfast.runs import checkpoint as checkpoints

    place = folder / "checkpoints" / "000000160"
    place.mkdir(parents=True)
    state, tensors = parts(data[1:], 2)
    if data[:1] > b"\x7f":
        state = _resealed(state, tensors)
    (place / "state.json").write_bytes(state)
    for part in checkpoints.PARTS:
        (place / f"{part}.safetensors").write_bytes(tensors)
    checkpoints.newest_whole(folder / "checkpoints")
    checkpoints.best(folder / "checkpoints")


def _resealed(state: bytes, tensors: bytes) -> bytes:
    from ganfast.runs import checkpoint as checkpoints

    with suppress(ValueError, RecursionError):
        facts = json.loads(state)
        if isinstance(facts, dict):
            facts.pop("sha256", None)
            if isinstance(facts.get("files"), dict):
                for listed in facts["files"].values():
                    if isinstance(listed, dict):
                        listed |= {
                            "bytes": len(tensors),
                            "sha256": hashlib.sha256(tensors).hexdigest(),
                        }
            return checkpoints._sealed(facts)
    return state


def bundle(data: bytes, folder: Path) -> None:
    """Manifest and golden samples of a bundle, with right hashes if the first byte is high."""
    from ganfast.export.bundle.bundle import open_bundle
    from ganfast.export.bundle.manifest import _digest, _text

    manifest, golden = parts(data[1:], 2)
    if data[:1] > b"\x7f":
        with suppress(ValueError, RecursionError):
            plain = json.loads(manifest)
            if isinstance(plain, dict):
                plain.pop("digest", None)
                if isinstance(plain.get("files"), dict) and GOLDEN in plain["files"]:
                    plain["files"][GOLDEN] = {
                        "bytes": len(golden),
                        "sha256": hashlib.sha256(golden).hexdigest(),
                    }
                manifest = _text({"digest": _digest(plain)} | plain)
    (folder / MANIFEST).write_bytes(manifest)
    (folder / GOLDEN).write_bytes(golden)
    (folder / "model.onnx").write_bytes(
        (FIXTURES / "bundles" / "schema-1" / "model.onnx").read_bytes()
    )
    open_bundle(folder).golden()


def in_memory() -> str | None:
    """A folder whose files are synced to no disk; None where there is none: the usual one then."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def refused(
    target: Callable[[bytes, Path], None], data: bytes, folder: Path
) -> InputError | RunError | None:
    """Run a target; the error of ganfast's own that ended it, if any. Any other is raised."""
    try:
        target(data, folder)
    except (InputError, RunError) as error:
        assert len(str(error)) < 5000, "one sentence, however long the value"
        return error
    return None


def _png(value: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def _zip(compression: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for number, name in enumerate(("one/a.png", "two/b.png")):
            archive.writestr(zipfile.ZipInfo(name), _png(80 * number), compression)
    return file.getvalue()


def _pictures_as(kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(file, kind)
    return file.getvalue()


PICTURE = _png(99)
_IDX = (
    struct.pack(">4I", 0x803, 2, 8, 8)
    + bytes(range(128))
    + CUT
    + struct.pack(">2I", 0x801, 2)
    + b"\x01\x00"
)
_TABLES = (
    b"2\r\nMale Smiling \r\n000001.png  1 -1\r\n000002.png -1  1\r\n",
    b"000001.png 0\n000002.png 0\n",
)


_USPS = b"\n".join(
    b"%d " % digit + b" ".join(b"%d:%.3f" % (place, 0.1) for place in range(1, 257))
    for digit in (1, 10)
)


def _checkpoint_seed(schema: int) -> bytes:
    place = next((FIXTURES / "runs" / f"schema-{schema}" / "checkpoints").glob("0*"))
    tensors = write_tensors({"0.weight": np.ones((3, 2), np.float32), "1.step": np.ones(1)})
    return (place / "state.json").read_bytes() + CUT + tensors


def _bundle_seed() -> bytes:
    place = FIXTURES / "bundles" / "schema-1"
    return (place / MANIFEST).read_bytes() + CUT + (place / GOLDEN).read_bytes()


TARGETS: dict[str, Callable[[bytes, Path], None]] = {
    target.__name__: target
    for target in (
        idx,
        gzipped_idx,
        celeba,
        zipped,
        picture,
        labels,
        libsvm,
        kaggle,
        config,
        checkpoint,
        bundle,
    )
}
SEEDS: dict[str, list[bytes]] = {
    "idx": [b"\0" + _IDX, b"\xff" + _IDX],
    "gzipped_idx": [CUT.join(gzip.compress(part, mtime=0) for part in _IDX.split(CUT))],
    "celeba": [
        b"\0" + CUT.join(_TABLES),
        b"\x05" + CUT.join(_TABLES),
        b"\x02" + CUT.join(gzip.compress(table, mtime=0) for table in _TABLES),
    ],
    "zipped": [
        _zip(kind)
        for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    ],
    "picture": [
        PICTURE,
        *(_pictures_as(kind) for kind in ("JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")),
    ],
    "labels": [
        b'{"labels": [["a.png", 0], ["b.png", 7]]}',
        b'{"labels": {"a.png": 1}}',
        b'{"labels": null}',
    ],
    "libsvm": [lead + _USPS for lead in (b"\0", b"\xff")] + [b"\0" + bz2.compress(_USPS)],
    "kaggle": [
        b"image_id,Male,Bald\n000001.png,-1,1\n" + CUT + b"image_id,partition\n000001.png,0"
    ],
    "config": [
        configfile.to_yaml(Config()).encode(),
        b"kimg: 1e-4\noptim.beta1: 0.5\nnet: {width: 8, critic_norm: layer}\n"
        b"attributes: [a, b]\nseed: 0x1F\n",
        b"attributes: [&b b, *b]\nsize: 2001-01-01\nflip: !!bool no\n",
    ],
    "checkpoint": [
        lead + _checkpoint_seed(schema) for lead in (b"\0", b"\xff") for schema in (1, 2)
    ],
    "bundle": [lead + _bundle_seed() for lead in (b"\0", b"\xff")],
}
