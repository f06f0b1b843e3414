"""Packs: a source is read once and kept as one memory-mapped array in the cache.

The key in a pack's folder name is a hash of the source's identity and of every argument that
changes the pictures. So a changed file, size or attribute is another pack. `manifest.py` says what
lies in the folder, `build.py` how it gets there.
"""

import hashlib
import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from ganfast.data import pictures
from ganfast.data.build import Progress, build
from ganfast.data.lookup import recognise
from ganfast.data.manifest import SCHEMA, Pack, PackInfo, load_pack, verify_pack
from ganfast.data.source import RULES, Recognised, Source, Wanted, cache_dir, counted
from ganfast.errors import InputError

__all__ = ["Pack", "PackInfo", "load_pack", "open_data", "pack_preview", "verify_pack"]

SMALLEST, LARGEST = 8, 1024  # picture sizes that can be asked for


def open_data(
    name_or_path: str,
    *,
    size: int = 0,
    channels: int = 0,
    attributes: Sequence[str] = (),
    split: str = "train",
    root: str | Path | None = None,
    cache: str | Path | None = None,
    progress: Progress | None = None,
    skip_corrupt: bool = False,
    transpose: bool = False,
    rules: int = RULES,
    verify: bool = True,
) -> Pack:
    """Recognise a source, pack it unless a valid pack of it is cached, and map the pack.

    Args:
        name_or_path: digits, mnist, stacked-mnist, celeba, a name in `lookup.places`, or a path.
        size: side of the square pictures, 8 to 1024; 0: digits 16, CelebA and folders 64.
        channels: 1 or 3 converts; 0: the source's own.
        attributes: CelebA attributes; k of them make 2**k classes, the first is most significant.
        split: "train", "test", "val" or "all". Of an undivided set "train" is the same as "all".
        root: folder in which names are looked up first.
        cache: folder of packs and downloads; default as of `cache_dir`.
        progress: called with (what, done, total) while packing.
        skip_corrupt: leave out pictures that cannot be read, and count them in `PackInfo.skipped`.
        transpose: make rows of arrays and IDX pictures columns, as EMNIST needs.
        rules: that find classes and splits: `PackInfo.rules` of a run that goes on.
        verify: hash a cached pack, and pack again where a byte changed; else see `Pack.verify`.

    Raises:
        InputError: the data cannot be used as asked for; says why.
        RunError: the pack cannot be written, and not for want of space or permission.
    """
    whole = recognise(name_or_path, root, cache).by_rules(rules)
    source, wanted = whole.packed_as(_wanted(whole, size, channels, attributes, split, transpose))
    try:
        candidates = _candidates(source, wanted, skip_corrupt)
        recognised = source.sentence(wanted)
    except OSError as error:  # a file that vanished or may not be read
        raise InputError(f"{name_or_path!r} cannot be read: {error}") from error
    packs, name = cache_dir(cache) / "packs", re.sub(r"[^\w.-]+", "-", source.name, flags=re.ASCII)
    # a glob, as channels = 0 becomes 1 or 3 only when the pictures are read
    shape = f"{wanted.size}x{wanted.size}x{wanted.channels or '*'}"
    for folder in (path for *_, k in candidates for path in packs.glob(f"{name}-{shape}-{k}")):
        try:
            return whole.composed(_recognised(load_pack(folder, verify), recognised))
        except InputError as error:
            warnings.warn(f"{error}; packing again", RuntimeWarning, stacklevel=2)
    source, identity, key = candidates[-1]
    selection = source.select(wanted)
    info = PackInfo(
        name=source.name,
        kind=source.kind,
        recognised=recognised,
        count=selection.count,
        channels=selection.channels,
        size=wanted.size,
        classes=selection.classes,
        flip=source.flip,
        split=wanted.split,
        attributes=wanted.attributes,
        preparation=selection.preparation,
        source_hash=identity,
        rules=source.rules,
    )
    final = packs / f"{name}-{wanted.size}x{wanted.size}x{selection.channels}-{key}"
    build(final, info, selection, progress or _silent, skip_corrupt)
    return whole.composed(_recognised(load_pack(final), recognised))


def _silent(what: str, done: int, total: int) -> None:
    """No progress is shown."""


def _recognised(pack: Pack, sentence: str) -> Pack:
    """The pack with the sentence about its source as it is now: the source may have moved."""
    if skipped := len(pack.info.skipped):
        sentence += f", {counted(skipped, 'corrupt picture')} left out"
    return replace(pack, info=replace(pack.info, recognised=sentence))


def _candidates(
    source: Source, wanted: Wanted, skip_corrupt: bool
) -> list[tuple[Source, str, str]]:
    """(source, identity, key) of the packs that serve; the last one is made where there is none.

    A pack of an older version serves where the first rules find the same. With ``skip_corrupt`` a
    pack of all pictures serves too, as there was nothing to skip; skipping may empty a class. A run
    records the channels that 0 became: the pack that was made for 0 serves where it has as many.
    """
    before = source.as_before(wanted) if isinstance(source, Recognised) else source
    made = []
    for each, suffix in ((before, ""), (source, "-skip"))[: 1 + skip_corrupt]:
        identity = each.identity(wanted)
        if wanted.transpose:
            identity = hashlib.sha256(f"{identity} transposed".encode()).hexdigest()
        for asked in dict.fromkeys((replace(wanted, channels=0), wanted)):
            made.append((each, identity, _key(each, identity, asked) + suffix))
    return made


def _wanted(
    source: Source, size: int, channels: int, attributes: Sequence[str], split: str, transpose: bool
) -> Wanted:
    if channels not in (0, 1, 3):
        raise InputError(
            f"channels is {channels}: expected 1 (grey), 3 (colour) or 0 (as the pictures are)"
        )
    chosen = (attributes,) if isinstance(attributes, str) else tuple(attributes)
    if chosen and source.kind != "celeba":
        raise InputError(
            f"attributes {', '.join(chosen)} were given, but {source.name} is not CelebA: "
            "leave them out"
        )
    split = source.check_split(split)
    own_channels, own_size = source.natural(split)
    if not SMALLEST <= (size or own_size) <= LARGEST:
        own = "" if size else ", the pictures' own"
        raise InputError(
            f"size is {size or own_size}{own}: "
            f"expected {SMALLEST} to {LARGEST}, or 0 for the pictures' own"
        )
    if transpose and source.kind not in ("idx", "arrays"):
        raise InputError(f"transpose is for IDX files and arrays; leave it out for {source.name}")
    return Wanted(size or own_size, channels or own_channels, chosen, split, transpose)


def _key(source: Source, identity: str, wanted: Wanted) -> str:
    asked = {name: value for name, value in asdict(wanted).items() if name != "transpose"}
    parts = [SCHEMA, pictures.VERSION, source.kind, identity, asked]
    parts += [source.rules] if source.rules > 1 else []
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def pack_preview(pack: Pack, count: int = 64, seed: int = 0) -> np.ndarray:
    """Pictures to look at, uint8 (min(count, N), H, W, C).

    They are spread evenly over the classes and sorted by class.
    """
    if count < 1:
        raise InputError(f"count is {count}: a preview needs at least 1 picture")
    labels = np.zeros(len(pack.images), np.int64) if pack.labels is None else pack.labels
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]  # by class, shuffled within
    _, first, of_class = np.unique(labels[order], return_index=True, return_inverse=True)
    # a class gives one picture per turn, until it has no more
    turn = np.arange(len(order)) - first[of_class]
    chosen = order[np.sort(np.argsort(turn, kind="stable")[:count])]
    return np.stack([pack.images[i].transpose(1, 2, 0) for i in chosen])
