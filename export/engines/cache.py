"""Engines that were built here, kept between processes: by content key, below a size cap."""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ganfast.export.bundle.bundle import exclusive, write_file
from ganfast.export.bundle.manifest import FileFacts


class EngineCache:
    """A folder of engines: ``<key>`` with its facts in ``<key>.json``.

    When it grows too large, the engine whose last use is the longest ago goes first.
    """

    def __init__(self, folder: Path | str, cap_bytes: int = 4 << 30) -> None:
        self.folder = Path(folder)
        self.cap_bytes = cap_bytes

    def get(self, key: str, facts: Mapping[str, Any]) -> tuple[bytes | None, str]:
        """An engine, or None and why not.

        Args:
            key: of `ganfast.export.engines.engines`.
            facts: what the key was made from, to tell what differs from the engines that are there.
        """
        try:
            entry = json.loads((self.folder / f"{key}.json").read_bytes())
            data = (self.folder / key).read_bytes()
            if FileFacts.of(data) != FileFacts(entry["sha256"], entry["bytes"]):
                return None, f"engine {key} in {self.folder} is damaged"
        except FileNotFoundError:
            return None, self._miss(facts)
        except (OSError, ValueError, KeyError, TypeError) as error:
            return None, f"engine {key} in {self.folder} cannot be read: {error}"
        with suppress(OSError):  # the folder may be read-only
            os.utime(self.folder / key)
        return data, ""

    def put(self, key: str, data: bytes, facts: Mapping[str, Any]) -> None:
        """Keep an engine, and drop old ones until all fit below the cap.

        Raises OSError where the folder cannot be written.
        """
        with exclusive(self.folder / "engines", wait=True):
            write_file(self.folder / key, data)
            entry = asdict(FileFacts.of(data)) | {"facts": dict(facts)}
            text = json.dumps(entry, indent=1, sort_keys=True)
            write_file(self.folder / f"{key}.json", text.encode())
            self._shrink(key)

    def _shrink(self, newest: str) -> None:
        engines = [
            path.with_suffix("")
            for path in self.folder.glob("*.json")
            if path.with_suffix("").exists()
        ]
        engines.sort(key=lambda path: (path.name == newest, path.stat().st_mtime))
        total = sum(path.stat().st_size for path in engines)
        for path in engines[:-1]:
            if total <= self.cap_bytes:
                break
            total -= path.stat().st_size
            path.with_suffix(".json").unlink()
            path.unlink()

    def _miss(self, facts: Mapping[str, Any]) -> str:
        """How the most similar engine of the folder differs."""
        expected, best = _flat(facts), dict[str, Any]()

        def likeness(other: Mapping[str, Any]) -> int:
            return sum(other.get(name) == value for name, value in expected.items())

        for path in self.folder.glob("*.json"):
            try:
                best = max(best, _flat(json.loads(path.read_bytes())["facts"]), key=likeness)
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                continue
        if not best:
            return f"no engine in {self.folder} yet"
        differing = "; ".join(
            f"{name} is {value}, there {best.get(name)}"
            for name, value in expected.items()
            if best.get(name) != value
        )
        return f"no engine in {self.folder} for this: {differing or 'its files are gone'}"


def _flat(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Nested facts by their own names, which are what a reader can act on."""
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        flat |= value if isinstance(value, Mapping) else {name: value}
    return flat
