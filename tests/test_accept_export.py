"""Every preset in every precision: the exported graph draws the run's pictures at batch 1, 3, 8 and 64, within the gates."""

import pytest

from ganfast.presets import PRESETS
from ganfast.run import Run

from .test_training import tiny

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from ganfast import train
from ganfast.export import export_bundle
from ganfast.export.parity import GATES
from ganfast.export.verify import verify_bundle

pytestmark = pytest.mark.accept


@pytest.fixture(scope="module", params=PRESETS)
def run(request, tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp(request.param) / "run"
    train(tiny(request.param, out=folder), quiet=True)
    return Run.open(folder)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_every_preset_and_precision_keeps_its_gate(run, precision, tmp_path):
    bundle = export_bundle(run, tmp_path / "b", precision)
    assert [(each.batch, each.pictures) for each in bundle.manifest.parity] == [(1, 64), (3, 64), (8, 64), (64, 64)]
    assert not any(each.missed(GATES[precision]) for each in bundle.manifest.parity)
    assert not bundle.manifest.lint["onnxruntime-cpu"]
    verify_bundle(bundle.folder, bundle.manifest.digest)
