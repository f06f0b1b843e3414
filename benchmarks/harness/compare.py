"""`ganfast bench compare`: two records, or this checkout against another revision of it."""

import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ganfast.bench import stats
from ganfast.bench.records import Record, keyed, lasting
from ganfast.bench.setting import Setting
from ganfast.bench.stats import Ratio
from ganfast.bench.worker import Worker
from ganfast.errors import InputError

Key = tuple[str, str, str]
PHASES = ("critic", "generator", "draw")  # of --base: all that an iteration consists of


def of_records(old: Record, new: Record) -> dict[Key, Ratio]:
    """New over old for everything that both measured.

    Raises:
        InputError: not comparable. They are about different things, or their calibration loops
            differ by 3% or more.
    """
    before, after = (lasting(record["conditions"], "rounds", "proof") for record in (old, new))
    differing = [name for name in sorted(before | after) if before.get(name) != after.get(name)]
    if old["kind"] != new["kind"] or differing:
        raise InputError(
            f"not comparable: {old['name']} and {new['name']} differ in "
            f"{', '.join(differing) or 'kind'}; measure the same thing twice"
        )
    loops = [record["calibration"].get("loop_s") for record in (old, new)]
    if not all(loops):
        raise InputError(
            f"not comparable: a record of {old['name']} has no calibration loop, which those of "
            "bench train and kernels have; measure again with these, or use --base REV"
        )
    gap = float(np.median(loops[1]) / np.median(loops[0]))
    if abs(np.log(gap)) >= np.log1p(stats.CALIBRATIONS):
        raise InputError(
            f"not comparable: the calibration loop took {gap:.3f} times as long in the second "
            f"record; expected within {stats.CALIBRATIONS:.0%}: another machine, or a busier one; "
            "use --base REV, which interleaves"
        )
    was, now = keyed(old), keyed(new)
    ratios = {
        key: stats.unpaired_ratio(m["samples"], now[key]["samples"])
        for key, m in was.items()
        if key in now and m["unit"] == "s" and m["samples"] and now[key]["samples"]
    }
    if not ratios:
        raise InputError(
            f"not comparable: {old['name']} and {new['name']} have no samples of the same "
            "measurement"
        )
    return ratios


class Side(Protocol):
    def sample(self, phase: str) -> float: ...
    def close(self) -> None: ...


def interleave(
    make_old: Callable[[], Side],
    make_new: Callable[[], Side],
    phases: tuple[str, ...],
    starts: int,
    rounds: int,
) -> dict[Key, Ratio]:
    """Fresh processes of both sides take turns.

    The side that goes first changes from start to start and from round to round.
    """
    makers = make_old, make_new
    samples: dict[str, tuple[list[list[float]], list[list[float]]]] = {p: ([], []) for p in phases}
    for start in range(starts):
        sides = {i: makers[i]() for i in ((0, 1) if start % 2 == 0 else (1, 0))}
        try:
            for phase in phases:
                for i in (0, 1):
                    samples[phase][i].append([])
                for turn in range(rounds):
                    for i in (0, 1) if (turn + start) % 2 == 0 else (1, 0):
                        samples[phase][i][-1].append(sides[i].sample(phase))
        finally:
            for side in sides.values():
                side.close()
    return {("", phase, "ganfast"): stats.paired_ratio(*pairs) for phase, pairs in samples.items()}


def with_base(
    revision: str,
    setting: Setting,
    starts: int,
    rounds: int,
    threads: int,
    checkout: Path | None = None,
) -> dict[Key, Ratio]:
    """This checkout over another revision of it, in a git worktree while it is measured."""
    here, fields = checkout or Path(__file__).resolve().parents[2], setting.asdict()
    with _ended_by_signals(), worktree(here, revision) as base:
        sides = (lambda: Worker(base, fields, threads), lambda: Worker(here, fields, threads))
        return interleave(*sides, PHASES, starts, rounds)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM ends what is inside as Ctrl-C does, so that no worktree is left behind.

    Only the main thread may set a signal's handler; in another thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def worktree(checkout: Path, revision: str) -> Any:
    """A folder with a revision of the repository that ``checkout`` belongs to.

    Raises:
        InputError: no such revision, or no git repository.
    """

    def git(*arguments: str, check: bool) -> None:
        command = ["git", "worktree", *arguments]
        subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=check)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "base"
        try:
            git("add", "--detach", str(folder), revision, check=True)
        except FileNotFoundError as error:
            raise InputError("--base needs git, which is not installed") from error
        except subprocess.CalledProcessError as error:
            reason = (error.stderr.strip().splitlines() or ["git said nothing"])[-1]
            raise InputError(
                f"base is {revision!r}; expected a revision of the checkout in {checkout}: {reason}"
            ) from error
        try:
            yield folder
        finally:
            git("remove", "--force", str(folder), check=False)


def table(ratios: Mapping[Key, Ratio]) -> str:
    names = {key: f"{key[0]} {key[1]}".strip() for key in ratios}
    width = max(12, *(len(name) + 2 for name in names.values()))
    lines = [f"{'phase':{width}}{'variant':26}{'new / old':>10}   {stats.CONFIDENCE:.0%} interval"]
    for key, r in ratios.items():
        interval = f"[{r.low:.3f}, {r.high:.3f}]"
        lines.append(f"{names[key]:{width}}{key[2]:26}{r.value:10.3f}   {interval}  {r.verdict}")
    return "\n".join(lines)
