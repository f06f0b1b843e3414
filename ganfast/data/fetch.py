"""Download MNIST: four files with known checksums, from the first mirror that has them."""

import hashlib
import http.client
import os
import tempfile
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from threading import Thread

from ganfast.data.files import what_is
from ganfast.data.source import cache_dir, did_you_mean
from ganfast.errors import InputError, RunError

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
MD5 = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}
TIMEOUT = 30.0  # seconds without a byte
LONGEST = 600.0  # seconds for a file, however steadily a byte now and then comes
LARGEST = 64 << 20  # bytes; six times the largest of the four
CHUNK = 1 << 18


def fetch(
    name: str,
    root: str | Path | None = None,
    mirrors: Sequence[str] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Path:
    """Download a data set into <root>/<name>, except files that are there with the right checksum.

    Args:
        name: "mnist".
        root: folder for data sets; default: data/ in the cache, where names are looked up.
        mirrors: base URLs, tried in order; default `MIRRORS`.
        progress: called with (what, bytes done, bytes in total; 0 if the server does not say).

    Returns:
        The folder with the files.

    Raises:
        InputError: there is no such set to download.
        RunError: no mirror served a file as it should be, or the folder cannot be written.
    """
    folder = (Path(root).expanduser() if root else cache_dir() / "data") / name
    if name == "celeba":
        raise InputError(
            "CelebA cannot be downloaded for you, its terms ask for your consent: get "
            "img_align_celeba.zip, list_attr_celeba.txt and list_eval_partition.txt from its home "
            f"page (mmlab.ie.cuhk.edu.hk), and put them into {folder}"
        )
    if name != "mnist":
        raise InputError(
            f"{name!r} cannot be downloaded{did_you_mean(name, ['mnist'])}: only mnist can"
        )
    order = list(MIRRORS if mirrors is None else mirrors)
    for file, md5 in MD5.items():
        path = folder / file
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not path.is_file() or hashlib.md5(path.read_bytes()).hexdigest() != md5:
                _fetch_file(file, folder, order, progress or (lambda what, done, total: None))
        except OSError as error:
            raise RunError(f"{folder} cannot be written: {error}") from error
    return folder


def _fetch_file(
    file: str, folder: Path, mirrors: list[str], progress: Callable[[str, int, int], None]
) -> None:
    """Try the mirrors in order. One that works moves to the front: a dead one costs one wait."""
    reasons = []
    for mirror in list(mirrors):
        try:
            url = mirror.rstrip("/") + "/" + file
            data = _in_time(partial(_download, url, file, progress))
        # ValueError: not a URL, or not this file
        except (OSError, http.client.HTTPException, ValueError) as error:
            reasons.append(f"{mirror} {error}")
            continue
        mirrors.remove(mirror)
        mirrors.insert(0, mirror)
        _write(folder / file, data)
        return
    tried = "; ".join(reasons) or "there is no mirror to ask"
    raise RunError(
        f"{file} could not be downloaded: {tried}. "
        f"Check the network, or put the file into {folder} yourself"
    )


def _in_time(download: Callable[[], bytes]) -> bytes:
    """What ``download`` returns or raises; a TimeoutError after `LONGEST` seconds.

    It runs in a thread, which nothing waits for: no timeout of a socket bounds the whole.
    """
    outcome: Future[bytes] = Future()

    def run() -> None:
        try:
            outcome.set_result(download())
        except BaseException as error:
            outcome.set_exception(error)

    Thread(target=run, daemon=True).start()
    try:
        return outcome.result(LONGEST)
    except TimeoutError:
        if outcome.done():  # a socket's own
            raise
        raise TimeoutError(f"was not done after {LONGEST:g} seconds") from None


def _download(url: str, file: str, progress: Callable[[str, int, int], None]) -> bytes:
    """The bytes of a file in `MD5`. Raises ValueError, which describes other bytes that came."""
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() else 0
        data = bytearray()
        while chunk := response.read(CHUNK):
            data += chunk
            progress(f"downloading {file}", len(data), total)
            if len(data) > LARGEST:
                raise ValueError(f"served more than {LARGEST:,} bytes")
    if len(data) < total:
        raise ValueError(f"broke off after {len(data):,} of {total:,} bytes")
    if (md5 := hashlib.md5(data).hexdigest()) != MD5[file]:
        kind = what_is(bytes(data[:64]))
        raise ValueError(f"served {kind}, {len(data):,} bytes, md5 {md5} instead of {MD5[file]}")
    return bytes(data)


def _write(path: Path, data: bytes) -> None:
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o644)  # mkstemp keeps others out
        os.replace(partial, path)
    finally:
        Path(partial).unlink(missing_ok=True)
