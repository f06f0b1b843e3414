"""What samples say: median and percentiles, whether the machine was quiet, how sure a ratio is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

# A quiet machine stays below this: (p80 - p20) / median, and the drift between the halves of a run.
SPREAD = 0.1
CALIBRATIONS = 0.03  # calibration loops of two comparable records differ by less than this
EFFECT = 0.03  # a ratio within this of 1 is no difference, however narrow its interval
CONFIDENCE = 0.99
_TAILS = 50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)  # percentiles

Verdict = Literal["faster", "slower", "same", "not comparable"]


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """Median, 20th and 80th percentile."""
    low, median, high = np.percentile(seconds, (20, 50, 80))
    return {"p20": float(low), "median": float(median), "p80": float(high)}


def noise(series: Sequence[Sequence[float]]) -> dict[str, float | bool]:
    """Spread and drift of a run (medians over its lists of samples), and the flag they set."""
    spreads, drifts = [], []
    for seconds in series:
        if len(seconds) < 2:
            continue
        s = summary(seconds)
        spreads.append((s["p80"] - s["p20"]) / s["median"])
        half = len(seconds) // 2
        drifts.append(abs(float(np.log(np.median(seconds[:half]) / np.median(seconds[half:])))))
    spread, drift = (float(np.median(x)) if x else 0.0 for x in (spreads, drifts))
    return {"spread": spread, "drift": drift, "noisy": spread > SPREAD or drift > SPREAD}


@dataclass(frozen=True)
class Ratio:
    """Time of the new over time of the old, with a confidence interval."""

    value: float
    low: float
    high: float

    @property
    def verdict(self) -> Verdict:
        """Different only where the whole interval lies beyond what no one would notice."""
        if self.low > 1 + EFFECT:
            return "slower"
        return "faster" if self.high < 1 / (1 + EFFECT) else "same"


def paired_ratio(
    old: Sequence[Sequence[float]], new: Sequence[Sequence[float]], seed: int = 0
) -> Ratio:
    """From interleaved samples: one pair of lists for every fresh start of both sides.

    The median ratio of a start's rounds is one observation, because medians of one program move
    between fresh processes. The interval is Student's over the starts. With one start it is the
    percentile bootstrap over blocks of rounds.
    """
    starts = [np.log(np.array(n) / np.array(o)) for o, n in zip(old, new, strict=True)]
    if len(starts) == 1:
        return _ratio(np.median(starts[0]), *np.percentile(_bootstrap(starts[0], seed), _TAILS))
    medians = np.array([np.median(x) for x in starts])
    half = _student(len(medians) - 1) * medians.std(ddof=1) / len(medians) ** 0.5
    return _ratio(medians.mean(), medians.mean() - half, medians.mean() + half)


def unpaired_ratio(old: Sequence[float], new: Sequence[float], seed: int = 0) -> Ratio:
    """From two records: percentile bootstrap of the ratio of medians, over blocks of samples."""
    before, after = (np.log(np.array(x)) for x in (old, new))
    medians = _bootstrap(after, seed) - _bootstrap(before, seed + 1)
    return _ratio(np.median(after) - np.median(before), *np.percentile(medians, _TAILS))


def _ratio(*logarithms: float) -> Ratio:
    return Ratio(*(float(np.exp(x)) for x in logarithms))


def _bootstrap(values: np.ndarray, seed: int, draws: int = 4000) -> np.ndarray:
    """Medians of resampled values, (draws,).

    Neighbours stay together: a slow second hits several samples in a row.
    """
    n = len(values)
    block = max(1, round(n ** (1 / 3)))
    random = np.random.default_rng(seed)
    start = random.integers(0, n, (draws, -(-n // block)))
    index = (start[:, :, None] + np.arange(block)) % n
    return np.median(values[index.reshape(draws, -1)[:, :n]], axis=1)


# Two-sided 99% points of Student's distribution by degrees of freedom, from 1 on.
_STUDENT = [63.657, 9.925, 5.841, 4.604, 4.032, 3.707, 3.499, 3.355, 3.250, 3.169, 3.106, 3.055]
_STUDENT += [3.012, 2.977, 2.947, 2.921, 2.898, 2.878]


def _student(freedom: int) -> float:
    return _STUDENT[min(max(freedom, 1), len(_STUDENT)) - 1]
