"""Refitting a bundle's graph equals exporting the new weights; what does not fit is refused."""

import sys
from dataclasses import replace

import pytest

from ganfast import train
from ganfast.cli import main
from ganfast.errors import RunError
from ganfast.export.bundle.bundle import open_bundle
from ganfast.export.bundle.manifest import GOLDEN
from ganfast.runs.run import Run
from tests.export.test_export import one_model, trained

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from ganfast.export import export_bundle, refit_bundle
from tests.programs import ganfast


@pytest.fixture(scope="module", params=["dcgan", "mlp"])
def run(request, tmp_path_factory) -> Run:
    classes = {"dcgan": "projection", "mlp": "no"}[request.param]
    return Run.open(trained(tmp_path_factory.mktemp("run") / "r", request.param, classes).folder)


accept = pytest.mark.accept
CASES = [
    ("dcgan", "fp16"),
    ("mlp", "fp32"),
    pytest.param("dcgan", "fp32", marks=accept),
    pytest.param("mlp", "fp16", marks=accept),
]


@pytest.mark.parametrize(("run", "precision"), CASES, indirect=["run"])
def test_refitted_is_exported(run, precision, tmp_path):
    old = export_bundle(run, tmp_path / "old", precision, (1, 4), "160", "mine")
    exported = export_bundle(run, tmp_path / "exported", precision, (1, 4), "320", "mine")
    assert old.model_bytes() != exported.model_bytes()
    before = old.manifest.digest
    line = f"refit {old.folder} --from {run.folder} --checkpoint 320 --out {tmp_path / 'new'}"
    assert ganfast(line) == 0
    new = open_bundle(tmp_path / "new")
    assert new.model_bytes() == exported.model_bytes()
    assert new.read(GOLDEN) == exported.read(GOLDEN) != old.read(GOLDEN)
    assert new.manifest.digest == exported.manifest.digest != before
    assert open_bundle(old.folder).manifest.digest == before
    assert main(["verify", str(new.folder)]) == 0


@one_model
def test_what_does_not_fit_is_refused_in_one_sentence(run, tmp_path, capsys, monkeypatch):
    bundle, eight = export_bundle(run, tmp_path / "b"), export_bundle(run, tmp_path / "i8", "int8")
    wide = replace(
        run.config, out=str(tmp_path / "wide"), net=replace(run.config.net, width=6), kimg=0.032
    )
    far = replace(
        run.config, out=str(tmp_path / "far"), net=replace(run.config.net, latent=9), kimg=0.032
    )
    for config in (wide, far):
        train(config, quiet=True)
    folder, new = str(bundle.folder), ["--out", str(tmp_path / "new")]
    capsys.readouterr()
    cases = [
        (
            [str(eight.folder), "--from", str(run.folder), *new],
            "is int8, whose scales belong to its weights",
        ),
        ([folder, "--from", str(tmp_path / "wide"), *new], "has another network than"),
        ([folder, "--from", str(tmp_path / "far"), *new], "has latent 9, the bundle 8"),
        ([folder, "--from", str(tmp_path), *new], "is not a run directory"),
        ([str(tmp_path), "--from", str(run.folder), *new], "is not a bundle"),
        ([folder, "--from", str(run.folder), "--checkpoint", "7", *new], "no checkpoint 7 in"),
        ([folder, "--from", str(run.folder), "--out", folder], "is a bundle already"),
    ]
    for args, sentence in cases:
        assert main(["refit", *args]) == 2
        said = capsys.readouterr().err
        assert sentence in said
        assert said.count("\n") == 1
    # As of a user's: nothing is known.
    monkeypatch.setattr("ganfast.export.exporter.network", lambda run: bundle.manifest.network)
    assert main(["refit", folder, "--from", str(tmp_path / "wide"), *new]) == 2
    assert "of the shape that" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@one_model
def test_a_missing_package_is_named_with_the_extra_that_brings_it(
    run, tmp_path, capsys, monkeypatch
):
    bundle = export_bundle(run, tmp_path / "b")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as if it was not installed
    for args in (["refit", "--from", str(run.folder), "--out", str(tmp_path / "new")], ["verify"]):
        assert main([*args, str(bundle.folder)]) == 2
        assert 'needs onnxruntime: pip install "ganfast[export]"' in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@one_model
def test_engines_of_the_old_weights_are_left_behind_with_a_line(run, tmp_path, caplog):
    from ganfast.export.bundle.bundle import write_bundle

    old = export_bundle(run, tmp_path / "b", checkpoint="160")
    files = {path: old.read(path) for path in old.manifest.files} | {
        "engines/k1": b"weights inside"
    }
    old = write_bundle(old.folder, replace(old.manifest, engines={"k1": {}}), files, overwrite=True)
    new = refit_bundle(old.folder, run, tmp_path / "new")
    assert not new.manifest.engines
    assert "engines" not in str(new.manifest.files)
    assert caplog.text.count("hold its old weights") == 1


@one_model
def test_a_refit_that_misses_the_gate_writes_nothing(run, tmp_path, monkeypatch):
    old = export_bundle(run, tmp_path / "b")
    real = Run.draw
    monkeypatch.setattr(Run, "draw", lambda self, *rest: 255 - real(self, *rest))
    with pytest.raises(RunError, match="fp32 misses its gate"):
        refit_bundle(old.folder, run, tmp_path / "new")
    assert not (tmp_path / "new").exists()
