"""Reading files that may be anything: folders and zips of pictures, gzipped tables, web pages.

Functions here return bytes or text, or raise InputError, whatever a user's disk holds.
"""

import gzip
import hashlib
import json
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath

from ganfast.errors import InputError
from ganfast.outside import plain_file

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
)
LARGEST = 256 << 20  # bytes in one picture or table: more is a mistake or an attack
# what zipfile and gzip raise
UNREADABLE = (OSError, EOFError, RuntimeError, struct.error, zlib.error, zipfile.BadZipFile)


def what_is(head: bytes) -> str:
    """What the first bytes of a file say it is, for an error message."""
    if not head:
        return "an empty file"
    kinds = {
        b"\x1f\x8b": "a gzip file",
        b"PK": "a zip archive",
        b"\xff\xd8\xff": "a JPEG",
        b"\x89PNG": "a PNG",
    }
    is_page = head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<head", b"<?xml"))
    other = "a saved web page (HTML)" if is_page else "a file of unknown kind"
    kind = next((kind for magic, kind in kinds.items() if head.startswith(magic)), other)
    return f"{kind} that begins with {head[:16]!r}"


def first_bytes(path: Path) -> str:
    with open(path, "rb") as file:
        return what_is(file.read(64))


def file_identity(path: Path) -> str:
    """sha256 of a file's bytes; of a big file's size, time, beginning and end."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        if size <= LARGEST:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256(f"{size} {path.stat().st_mtime_ns} ".encode() + file.read(1 << 20))
        file.seek(-(1 << 20), os.SEEK_END)
        digest.update(file.read())
    return digest.hexdigest()


def read_table(path: Path, limit: int = LARGEST) -> str:
    """The text of a table: plain, gzipped, or alone in a zip; at most `limit` bytes of it."""
    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                data = inflated(archive, path.stem, limit)
        else:
            with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
                data = file.read(limit)
        if what_is(data[:64]).startswith("a saved web page"):
            raise InputError(f"{path} is {what_is(data[:64])}: download it again")
        return data.decode()
    except KeyError as error:
        raise InputError(f"{path} does not contain {path.stem}") from error
    except (*UNREADABLE, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}): it is {first_bytes(path)}") from error


def inflated(archive: zipfile.ZipFile, name: str, limit: int = LARGEST) -> bytes:
    """At most `limit` bytes of an entry, and no more in memory than the zip declares of it."""
    entry = archive.getinfo(name)
    # Only deflate stops at the bytes that are asked for: 4 kB of bzip2 can become gigabytes.
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise zipfile.BadZipFile(f"{name} is not compressed by deflate, as zips usually are")
    with archive.open(entry) as file:
        return file.read(min(limit, entry.file_size + 1))


class PictureFiles:
    """The pictures in a folder or a zip, by relative name, sorted.

    Hidden files and other kinds of files are passed over.
    """

    def __init__(self, path: Path):
        self.path = path
        self._is_zip = not path.is_dir()

    @cached_property
    def _zip(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self.path)  # reading from several threads is safe: it locks
        except (*UNREADABLE, ValueError) as error:
            raise InputError(
                f"{self.path} is not a readable zip ({error}): it is {first_bytes(self.path)}"
            ) from error

    @cached_property
    def _entries(self) -> dict[str, tuple[int, int]]:
        """Name -> size, and the CRC of a picture in a zip or the time of one in a folder."""
        try:
            entries = self._in_zip() if self._is_zip else _in_folder(self.path, "", frozenset())
            return dict(sorted(entries))
        except OSError as error:  # a link that leads nowhere, a folder that may not be read
            raise InputError(f"not all of {self.path} can be read: {error}") from error

    def _in_zip(self) -> Iterator[tuple[str, tuple[int, int]]]:
        for entry in self._zip.infolist():
            # Nothing is ever unpacked to disk; but only a broken or hostile tool writes such names.
            name = entry.filename.replace("\\", "/")
            if name.startswith("/") or name[1:2] == ":" or ".." in name.split("/"):
                raise InputError(
                    f"{self.path} has the entry {entry.filename!r}: "
                    "it points outside the zip, refused"
                )
            if not name.endswith("/") and is_picture(entry.filename):
                yield entry.filename, (entry.file_size, entry.CRC)

    @property
    def names(self) -> list[str]:
        """Relative names with forward slashes, sorted. Raises InputError when there is none."""
        if not self._entries:
            kinds = " ".join(sorted(SUFFIXES))
            raise InputError(
                f"no pictures found in {self.path}: looked for {kinds}, sub-folders included"
            )
        return list(self._entries)

    @property
    def identity(self) -> str:
        """sha256 of names, sizes and CRCs or times: no picture is read."""
        return hashlib.sha256(json.dumps(self._entries).encode()).hexdigest()

    def read(self, name: str) -> bytes:
        """The bytes of one picture file. Raises InputError naming it."""
        size, _ = self._entries[name]
        if size > LARGEST:
            raise InputError(
                f"{name} in {self.path} has {size:,} bytes: a picture may have {LARGEST:,}"
            )
        try:
            path = self.path / name
            return inflated(self._zip, name) if self._is_zip else plain_file(path, LARGEST)
        except Exception as error:
            raise InputError(f"{name} in {self.path} cannot be read: {error}") from error


def _in_folder(
    folder: Path, prefix: str, above: frozenset[str]
) -> Iterator[tuple[str, tuple[int, int]]]:
    """Linked folders are followed, up to where a link leads back to a folder it came from."""
    here = os.path.realpath(folder)
    if here in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir() and not is_hidden(entry.name):
                yield from _in_folder(Path(entry.path), f"{prefix}{entry.name}/", above | {here})
            elif is_picture(entry.name):
                info = entry.stat()
                if not stat.S_ISREG(info.st_mode):  # to read a pipe would wait for ever
                    raise InputError(
                        f"{entry.path} is no regular file, as a picture is; move it elsewhere"
                    )
                yield prefix + entry.name, (info.st_size, info.st_mtime_ns)


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def is_picture(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in SUFFIXES and not any(map(is_hidden, path.parts))
