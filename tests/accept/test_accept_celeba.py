"""Real CelebA faces at 64x64: a run stops, resumes, nears the reals; a recipe beats a Gaussian."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from ganfast.evaluate.evaluation import Evaluation, open_reference
from ganfast.evaluate.extractor import Extractor, Features
from ganfast.evaluate.extractors import find_extractor
from ganfast.evaluate.sources import Generated
from ganfast.runs.run import Run
from ganfast.runs.source import of_run
from ganfast.training.plan import make_plan

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
quality = pytest.importorskip("quality")
TRAIN = [sys.executable, "-m", "ganfast", "train"]


class Thumbnails(Extractor):
    """Pictures averaged down to 8 x 8 show colours and poses long before there is any texture."""

    name, sha256, preprocessing, dim = "thumbnails", "0" * 64, "8 x 8 means", 192

    def extract(self, pictures):
        return Features(F.avg_pool2d(pictures.permute(0, 3, 1, 2).float(), 8).flatten(1), None)


def untrained(run: Run) -> Generated:
    """The generator that the run began with."""
    net = make_plan(run.config).state.average
    return Generated(net, run.latent, (64, 64, 3), run.classes, seed=1, psi=1.0)


@pytest.mark.full
def test_faces_start_resume_and_improve(real_data, tmp_path):
    out = tmp_path / "faces"
    data = real_data / "celeba-half"
    flags = f"wgan-gp --data {data} --size 64 --attributes Smiling --kimg 60 --out {out}".split()

    first = subprocess.Popen([*TRAIN, *flags], stderr=subprocess.PIPE, text=True)
    while not list(out.glob("checkpoints/0*/state.json")):
        time.sleep(1)
        assert first.poll() is None, first.stderr.read()
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=300) == 143
    stopped = Run.open(out).find("")

    done = subprocess.run([*TRAIN, *flags], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"resuming {out} at {int(stopped.name) / 1000:g} kimg" in done.stderr

    run = Run.open(out)
    assert run.classes == ("not Smiling", "Smiling")
    evaluation = Evaluation(
        *open_reference(str(data), size=64, attributes=["Smiling"]), Thumbnails(), 2000
    )
    start, end = (
        evaluation.score(source).scores["frechet"]
        for source in (untrained(run), of_run(run, "", 1, 1.0, "cpu"))
    )
    floor = evaluation.floor["frechet"]
    print(
        f"Frechet distance of thumbnails: untrained {start:,.0f}, after 60 kimg {end:,.0f}, "
        f"other reals {floor:,.0f}"
    )
    assert floor < end < start / 4
    assert run.sample(2000, seed=1).std(0).mean() > 20  # faces differ from one another


@pytest.mark.full
def test_faces_of_a_recipe_are_closer_to_reals_than_the_pixel_gaussian(real_data, tmp_path):
    """Not half as long as the recipe: 160 kimg, some 25 minutes of one thread."""
    config = tmp_path / "recipe.yaml"
    config.write_text(json.dumps(quality.recipe("celeba-64", "dcgan")))
    flags = ["--config", str(config), "--kimg", "160", "--data-root", str(real_data)]
    subprocess.run([*TRAIN, *flags, "--out", str(tmp_path / "faces"), "--quiet"], check=True)
    pack, held_out = open_reference("celeba-half", size=64, root=str(real_data))
    weights = real_data / "squeezenet" / "squeezenet_v1.0_decoded.npz"
    evaluation = Evaluation(
        pack, held_out, find_extractor(str(weights), pack, torch.device("cpu")), 2000
    )
    found = evaluation.score(of_run(Run.open(tmp_path / "faces"), "", 1, 1.0, "cpu")).scores[
        "frechet"
    ]
    floor, ceiling = evaluation.floor["frechet"], evaluation.ceiling
    print(
        f"Frechet distance of SqueezeNet's features: {found:,.0f}, "
        f"floor {floor:,.0f}, ceiling {ceiling:,.0f}"
    )
    assert floor < ceiling / 5  # else it measures nothing
    assert floor < found < ceiling
