"""What a training's numbers say of it, in one sentence a problem, with what usually helps."""

from collections.abc import Iterable, Mapping
from typing import Any

from ganfast.config import Config

# A window is so many generator steps, and has so many lines at least. Nothing is said before there
# are 2.5 windows, and what happens behind 7.5 is not the start. These and the limits below were set
# by short trainings of the presets (docs/guides/curves.md has the figures).
_WINDOW, _LINES = 400, 10
_FIRST, _START = 2.5, 7.5
_WON = 0.98  # accuracy, of reals and of fakes each, from which on the critic wins
_STAYS = 0.95  # share of the widest gap between scores, below which the generator catches up
_REPEATED = 0.3  # spread below which the generator repeats itself
_RISES = 1.1  # times that the spread grows in a window where the generator recovers

WON = "the critic wins from the start"
REPEATS = "the generator repeats itself"
STILL = "nothing has moved"
_NEEDED = ("critic/real_accuracy", "critic/fake_accuracy", "critic/wasserstein", "generator/spread")


class Diagnosis:
    """Judges the lines of a log as they come; each problem is told once in a run.

    Args:
        config: of the run.
        records: the lines that a resumed run has logged; a problem that they show was told.
    """

    def __init__(self, config: Config, records: Iterable[Mapping[str, Any]] = ()) -> None:
        self._config = config
        steps = max(_WINDOW, _LINES * config.log.every)
        self._window = steps * config.batch * config.optim.critic_steps  # images
        self._seen: list[dict[str, float]] = []
        self._told = False
        for record in records:
            self(record)

    def due(self, images: int) -> bool:
        """Whether so many images, shown in one go, are enough to judge by."""
        return images >= _FIRST * self._window

    def __call__(self, record: Mapping[str, Any]) -> str:
        """The sentence on a problem that this line makes certain; "" = none, or one was told."""
        try:
            # As the log holds them: a resumed run decides by the same numbers.
            numbers = {n: float(f"{record[n]:.6g}") for n in ("images", *_NEEDED)}
        except (KeyError, TypeError, ValueError):  # a line of scores, or of an earlier version
            return ""
        images = numbers["images"]
        starts = images <= _START * self._window
        oldest = 0.0 if starts else images - self._window
        self._seen = [seen for seen in self._seen if seen["images"] > oldest] + [numbers]
        if self._told or len(self._seen) < _LINES or not self.due(int(images)):
            return ""
        sentence = self._repeats() or (self._won() if starts else "")
        self._told = bool(sentence)
        return sentence

    def _won(self) -> str:
        """Accuracy alone does not tell: that of a relativistic critic is 1 in good trainings, too.
        There the gap between the scores falls."""
        windows = self._windows()
        now, gaps = windows[-1], [_mean(window, "critic/wasserstein") for window in windows]
        known = min(_mean(now, f"critic/{of}_accuracy") for of in ("real", "fake"))
        if known < _WON or gaps[-1] < _STAYS * max(gaps):
            return ""
        slower = "lower --optim.lr-critic"
        if not self._config.penalty.active:
            slower = f"{self._with_r1()}, or {slower}"
        return (
            f"{WON}: it knows {known:.1%} of reals and fakes, and the gap between their scores, "
            f"{gaps[-1]:.3g}, is as wide as ever; what usually helps is {slower} "
            f"(now {self._config.optim.lr_critic:g})"
        )

    def _repeats(self) -> str:
        window = self._windows()[-1]
        middle = len(window) // 2
        early, late = (_mean(w, "generator/spread") for w in (window[:middle], window[middle:]))
        if max(early, late) > _REPEATED or late > _RISES * early:
            return ""
        other = "--loss.kind relativistic"
        if not self._config.penalty.active:
            other = self._with_r1()
        return (
            f"{REPEATS}: its pictures differ {late:.2g} times as much as reals do; "
            f"what usually helps is {other}, or lower --optim.lr-generator "
            f"(now {self._config.optim.lr_generator:g})"
        )

    def _windows(self) -> list[list[dict[str, float]]]:
        """The lines so far in windows, of which the last is full and the first may not be."""
        end, windows = self._seen[-1]["images"], dict[float, list[dict[str, float]]]()
        for numbers in self._seen:
            windows.setdefault((end - numbers["images"]) // self._window, []).append(numbers)
        return list(windows.values())

    def _with_r1(self) -> str:
        flags = "--penalty.kind r1 --penalty.weight 1"
        batch_norm = self._config.net.critic_norm == "batch"  # which a penalty forbids
        return f"--net.critic-norm none {flags}" if batch_norm else flags


def still(names: Iterable[str], config: Config, images: int) -> str:
    """The sentence on networks whose weights are those of the start."""
    rates = {"generator": config.optim.lr_generator, "critic": config.optim.lr_critic}
    moved = [f"--optim.lr-{name} (now {rates[name]:g})" for name in names]
    nets = " and the ".join(names)
    return (
        f"{STILL} in the {nets}: after {images / 1000:g} kimg the norm of all weights is "
        f"that of the start; what usually helps is to raise {' and '.join(moved)}"
    )


def _mean(records: list[dict[str, float]], name: str) -> float:
    return sum(record[name] for record in records) / len(records)
