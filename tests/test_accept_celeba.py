"""Faces at 64x64 with an attribute as class, on the real half-size set: starts, stops, resumes and improves on its first grid."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ganfast.data import open_data
from ganfast.run import Run


def statistics_of(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of pictures uint8 (N, 64, 64, 3) averaged down to 8 x 8, as float64."""
    small = pictures.astype(np.float64).reshape(-1, 8, 8, 8, 8, 3).mean((2, 4)).reshape(len(pictures), -1)
    return small.mean(0), np.cov(small, rowvar=False)


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Frechet distance between the Gaussians of two sets of pictures (8 x 8 colour thumbnails)."""
    from scipy.linalg import sqrtm

    (mean_a, cov_a), (mean_b, cov_b) = statistics_of(a), statistics_of(b)
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real))


@pytest.mark.full
def test_faces_start_resume_and_improve(real_data, tmp_path):
    out = tmp_path / "faces"
    data = real_data / "celeba-half"
    flags = ["wgan-gp", "--data", str(data), "--size", "64", "--attributes", "Smiling", "--kimg", "60", "--out", str(out)]
    command = [sys.executable, "-m", "ganfast", "train", *flags]

    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not list(out.glob("checkpoints/0*/state.json")):
        time.sleep(1)
        assert first.poll() is None, first.stderr.read()
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=300) == 143
    stopped = Run.open(out).find("")

    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"resuming {out} at {int(stopped.name) / 1000:g} kimg" in done.stderr

    run = Run.open(out)
    assert run.classes == ("not Smiling", "Smiling")
    images = open_data(str(data), size=64, attributes=["Smiling"]).images
    reals, others = (images[k : k + 2000].transpose(0, 2, 3, 1) for k in (0, 2000))
    sheets = sorted(Path(out / "samples").glob("0*.png"))
    start = tiles(sheets[0])
    drawn = run.sample(2000, seed=1)
    before, after = frechet(np.repeat(start, 32, 0)[:2000], reals), frechet(drawn, reals)
    floor = frechet(others, reals)
    print(f"thumbnail Frechet distance: first grid {before:,.0f}, after 60 kimg {after:,.0f}, other reals {floor:,.0f}")
    assert floor < after  # else it measures nothing
    assert after < before / 4
    assert drawn.std(0).mean() > 20  # faces differ from one another


def tiles(sheet: Path, side: int = 64, gap: int = 2) -> np.ndarray:
    """The pictures of a sample grid."""
    pixels = np.asarray(Image.open(sheet))
    rows, columns = (pixels.shape[0] - gap) // (side + gap), (pixels.shape[1] - gap) // (side + gap)
    return np.stack([
        pixels[gap + y * (side + gap) : gap + y * (side + gap) + side, gap + x * (side + gap) : gap + x * (side + gap) + side]
        for y in range(rows) for x in range(columns)
    ])  # fmt: skip
