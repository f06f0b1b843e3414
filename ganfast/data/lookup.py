"""Which source of pictures a name or a path means."""

import os
from pathlib import Path

from ganfast.data import arrays, celeba, files, folder, idx
from ganfast.data.digits import Digits
from ganfast.data.source import Source, cache_dir, did_you_mean
from ganfast.data.stacked import StackedMnist
from ganfast.errors import InputError


def places(root: str | Path | None = None, cache: str | Path | None = None) -> list[Path]:
    """The folders in which a bare name such as "mnist" is looked up, first one first."""
    chosen = [Path(p).expanduser() for p in (root, os.environ.get("GANFAST_DATA")) if p]
    return [*chosen, cache_dir(cache) / "data"]


def recognise(
    name_or_path: str | Path, root: str | Path | None = None, cache: str | Path | None = None
) -> Source:
    """The source that a name or a path means.

    Names are "digits", "mnist", "stacked-mnist", "celeba", and folders in one of the `places`.

    Raises:
        InputError: nothing of that name, or nothing in it that is recognised.
    """
    text = str(name_or_path)
    if not text:
        raise InputError("the data was given as an empty text: give a path, or a name like digits")
    if text == "digits":
        return Digits()
    if text == "stacked-mnist":
        return StackedMnist(recognise("mnist", root, cache))
    try:
        if len(Path(text).parts) == 1 and text not in (".", "..") and not text.startswith("~"):
            return _recognise_name(text, places(root, cache))
        path = Path(text).expanduser()
        if not path.exists() and not idx.find_sets(path):
            raise InputError(
                f"{path} does not exist: "
                "give a folder, a .zip, .npz or .npy file, or a name like digits"
            )
        return recognise_path(path)
    # unreadable, a null byte in the path, no such ~user
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{text!r} cannot be opened as data: {error}") from error


def _recognise_name(name: str, folders: list[Path]) -> Source:
    spellings = {"mnist": ("mnist", "MNIST"), "celeba": ("celeba", "CelebA")}.get(name, (name,))
    # a folder "mnist" without IDX files in it is passed over
    kind = {"mnist": "idx", "celeba": "celeba"}.get(name)
    for path in [where / spelling for where in folders for spelling in spellings] + [Path(name)]:
        if path.exists():
            source = recognise_path(path)
            if kind in (None, source.kind):
                return source
    names = {p.name for where in folders if where.is_dir() for p in where.iterdir()}
    names = {other for other in names if not other.startswith(".")}
    names |= {"digits", "mnist", "stacked-mnist", "celeba"}
    near = did_you_mean(name, sorted(names - {name}))
    looked = ", ".join(str(where / name) for where in folders)
    fetch = "`digits` needs no files"
    if name == "mnist":
        fetch = "`ganfast data fetch mnist` downloads MNIST"
    raise InputError(
        f"no data named {name!r}{near}: looked for {looked} and ./{name}; "
        f"give a path with --data PATH, or the folder that holds it with --data-root; {fetch}"
    )


def recognise_path(path: Path) -> Source:
    """The source that lies at an existing path."""
    path = Path(os.path.abspath(path))  # "." and ".." have no name
    if idx.find_sets(path):
        return idx.Idx(path)
    if not path.is_dir() and not path.is_file():
        raise InputError(
            f"{path} is neither a folder nor a regular file: "
            "give a folder, a .zip, .npz or .npy file, or a name like digits"
        )
    if path.is_dir():
        for name in arrays.USPS.values():
            if (path / name).is_file():
                return arrays.Arrays(path / name)
        faces = celeba.find_pictures(path)
        return celeba.CelebA(faces) if faces else folder.Folder(path)
    if path.suffix.lower() == ".zip":
        return celeba.CelebA(path) if path.name == celeba.ZIP_NAME else folder.Folder(path)
    if path.suffix.lower() in (".npy", ".npz") or path.name in arrays.USPS.values():
        return arrays.Arrays(path)
    if "ubyte" in path.name:
        raise InputError(
            f"{path} is one file of an IDX set: give the folder it lies in, {path.parent}"
        )
    if path.suffix.lower() in files.SUFFIXES:
        raise InputError(f"{path} is a single picture: give a folder or a .zip of pictures")
    raise InputError(
        f"{path} is {files.first_bytes(path)}: "
        "expected a folder of pictures, CelebA or IDX files, or a .zip, .npz or .npy"
    )


def has_test(source: Source) -> bool:
    """Whether a source has pictures of a test split, whole or damaged.

    Its training pictures could be read before.
    """
    if "test" not in source.splits:
        return False
    if isinstance(source, StackedMnist):
        return has_test(source.digits)
    if isinstance(source, idx.Idx):
        return source.has("test")
    if isinstance(source, celeba.CelebA):
        try:
            source.describe("test")
        except InputError:  # the table of splits, which could be read, names no picture of it
            return False
    return True
