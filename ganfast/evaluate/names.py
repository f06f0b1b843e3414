"""What runs, checkpoints and folders are called side by side."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import chain, count
from typing import Any


def numbered(names: Sequence[str]) -> list[str]:
    """Names of which no two are equal: a second "a" becomes "a (2)"."""
    unique: list[str] = []
    for name in names:
        candidates = chain([name], (f"{name} ({number})" for number in count(2)))
        unique.append(next(candidate for candidate in candidates if candidate not in unique))
    return unique


def told_apart(protocol: Mapping[str, Any]) -> str:
    """The end of a protocol id: what was drawn, and a hash of all that the protocol says."""
    drawn = ",".join(f"{k}={v}" for k, v in protocol["drawn"].items() if k != "images")
    whole = json.dumps({**protocol, "drawn": drawn}, sort_keys=True, default=str)
    return f"{drawn} #{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def shortened(paths: Sequence[str]) -> list[str]:
    """The last part of every path, or as many parts as tell it from all others."""
    parts = [path.rstrip("/").split("/") for path in paths]

    def unique(own: list[str], depth: int) -> bool:
        return sum(other[-depth:] == own[-depth:] for other in parts) == 1

    depths = [next((d for d in range(1, len(own)) if unique(own, d)), len(own)) for own in parts]
    return ["/".join(own[-depth:]) for own, depth in zip(parts, depths, strict=True)]
