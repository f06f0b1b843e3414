"""A set of pictures with classes as files: a folder for each class, and a table of labels."""

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ganfast import disk
from ganfast.errors import InputError, cannot_write
from ganfast.images import Pictures, png

Named = tuple[str, int, Pictures]  # file name without folder, class, picture (H, W, C)


def write_set(
    out: Path, classes: Sequence[str], pictures: Iterable[Named], facts: dict[str, Any]
) -> None:
    """Write ``out``/CLASS/NAME, labels.csv (file, label, class) and set.json; all of it or nothing.

    set.json has ``facts``, the count of each class, and a digest: sha256 of labels.csv followed by
    the sha256 of every picture file, in the order of the table.

    Raises:
        InputError: ``out`` exists or cannot be written, or a class cannot name a folder.
    """
    check_place(out, classes)
    beside, counts = out.with_name(f".{out.name}.part"), dict.fromkeys(classes, 0)
    table, hashes = io.StringIO(), []
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(("file", "label", "class"))
    try:
        disk.ensure_directory(out.parent)
        disk.make_directory(beside)
        for name in classes:
            disk.make_directory(beside / name)
        for file, label, picture in pictures:
            data, folder = png(picture), classes[label]
            (beside / folder / file).write_bytes(data)
            rows.writerow((f"{folder}/{file}", label, folder))
            hashes.append(hashlib.sha256(data).digest())
            counts[folder] += 1
        labels = table.getvalue().encode()
        digest = hashlib.sha256(b"".join((labels, *hashes))).hexdigest()
        whole = facts | {"counts": counts, "digest": f"sha256:{digest}"}
        disk.write_file(beside / "labels.csv", labels)
        disk.write_file(beside / "set.json", (json.dumps(whole, indent=1) + "\n").encode())
        disk.publish(beside, out)
    except OSError as error:
        raise cannot_write(str(out), error, "free some space, or give another --out") from error
    finally:
        disk.remove(beside)


def check_place(out: Path, classes: Sequence[str]) -> None:
    """Raise InputError unless a set with these classes can be written there."""
    if out.exists() or out.is_symlink():
        raise InputError(f"{out} exists, and a set is never mixed with other files: remove it")
    known: set[str] = set()
    for name in classes:
        plain = name.isprintable() and not set(name) & set('/\\:*?"<>|')
        fits = 0 < len(name.encode()) <= 200 and name[0] != "." and name[-1] not in " ."
        if not (plain and fits) or name.casefold() in known:
            raise InputError(
                f"the class {name!r} cannot name a folder: draw it into arrays instead, "
                "with `ganfast sample --balanced --out FILE.npz`"
            )
        known.add(name.casefold())
