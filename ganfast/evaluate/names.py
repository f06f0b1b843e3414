"""What runs, checkpoints and folders are called side by side."""

from collections.abc import Sequence
from itertools import count


def numbered(names: Sequence[str]) -> list[str]:
    """Names of which no two are equal: a second "a" becomes "a (2)"."""
    found: list[str] = []
    for name in names:
        more = (f"{name} ({number})" for number in count(2))
        found.append(
            name if name not in found else next(other for other in more if other not in found)
        )
    return found


def shortened(paths: Sequence[str]) -> list[str]:
    """The last part of each path, or as many as tell it from all others."""
    parts = [path.rstrip("/").split("/") for path in paths]

    def unique(own: list[str], depth: int) -> bool:
        return sum(other[-depth:] == own[-depth:] for other in parts) == 1

    depths = [next((d for d in range(1, len(own)) if unique(own, d)), len(own)) for own in parts]
    return ["/".join(own[-depth:]) for own, depth in zip(parts, depths, strict=True)]
