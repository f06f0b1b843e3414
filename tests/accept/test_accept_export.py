"""Every preset in every precision: the exported graph draws the run's pictures within the gates."""

from dataclasses import replace
from itertools import product

import pytest

from ganfast.presets import FROM_LATENTS, preset_config
from ganfast.runs.run import Run
from tests.small_runs import tiny

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from ganfast import train
from ganfast.export import export_bundle
from ganfast.export.bundle.parity import GATES
from ganfast.export.verify import verify_bundle
from tests.small_bundle import assert_rows_of_parity

pytestmark = pytest.mark.accept
MODELS = ("dcgan", "mlp")


def matrix():
    """Presets by architectures; a preset in the other's architecture is a long proof."""
    for preset, model in product(FROM_LATENTS, MODELS):
        yield pytest.param(
            (preset, model),
            id=f"{preset}-{model}",
            marks=[pytest.mark.full] * (model != preset_config(preset).model),
        )


@pytest.fixture(scope="module", params=matrix())
def run(request, tmp_path_factory) -> Run:
    preset, model = request.param
    folder = tmp_path_factory.mktemp(f"{preset}-{model}") / "run"
    train(replace(tiny(preset, out=folder), model=model), quiet=True)
    return Run.open(folder)


@pytest.mark.parametrize(
    "precision",
    [pytest.param(p, marks=[pytest.mark.full] * (p in ("tf32", "bf16"))) for p in GATES],
)
def test_every_preset_and_precision_keeps_its_gate(run, precision, tmp_path):
    bundle = export_bundle(run, tmp_path / "b", precision)
    assert_rows_of_parity(bundle)
    assert not any(each.missed(GATES[precision]) for each in bundle.manifest.parity)
    assert bool(bundle.manifest.lint["onnxruntime-cpu"]) == (precision == "bf16")
    verify_bundle(bundle.folder, bundle.manifest.digest)
    worst = max(bundle.manifest.parity, key=lambda row: row.mean_lsb)
    print(f"{run.config.preset} {run.config.model} {precision}: {worst}")
