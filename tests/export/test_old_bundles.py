"""Bundles of earlier versions open and draw their pictures, for ever. Never regenerate one."""

from pathlib import Path

import numpy as np
import pytest

from ganfast.cli import main
from ganfast.errors import RunError
from ganfast.export.bundle.bundle import golden_file, open_bundle, write_bundle
from ganfast.export.bundle.manifest import GOLDEN, MODEL, SCHEMA
from ganfast.latents import latents, random_classes

FOLDER = Path(__file__).parents[1] / "fixtures" / "bundles"
DIGESTS = {
    "schema-1": "sha256:41780fea981243a91b9b58cf6cb280cc327082addf4fe8265faeb8ad0a910f0d",
    "schema-2": "sha256:e95c087ff78250a559be9ebd0dc3ce3544311bdcab3146bfa81e4dd19b7c70a0",
}


def test_there_is_one_of_every_schema():
    assert (
        set(DIGESTS)
        == {f"schema-{number}" for number in range(1, SCHEMA + 1)}
        == {p.name for p in FOLDER.iterdir()}
    )


@pytest.mark.parametrize("name", DIGESTS)
def test_an_old_bundle_opens_and_its_rows_are_still_those_of_its_seed(name):
    bundle = open_bundle(FOLDER / name, DIGESTS[name])
    m, golden = bundle.manifest, bundle.golden()
    assert m.shape == (16, 16, 1)
    index = np.arange(m.golden["count"])
    np.testing.assert_array_max_ulp(golden["z"], latents(m.golden["seed"], index, m.latent), 1)
    np.testing.assert_array_equal(
        golden["labels"], random_classes(m.golden["seed"], index, len(m.classes))
    )
    assert golden["images"].std() > 30, "pictures, not a grey field"


@pytest.mark.parametrize("name", DIGESTS)
def test_an_old_bundle_draws_its_golden_pictures(name, capsys):
    pytest.importorskip("onnxruntime")
    assert main(["verify", str(FOLDER / name), "--digest", DIGESTS[name]]) == 0
    assert f"is as exported, {DIGESTS[name]}" in capsys.readouterr().out
    assert main(["inspect", str(FOLDER / name)]) == 0
    assert capsys.readouterr().out == (FOLDER / name / "manifest.json").read_text()


def test_verify_refuses_pictures_that_are_not_the_golden_ones(tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    from ganfast.export.verify import verify_bundle

    old = open_bundle(FOLDER / "schema-1")
    golden = old.golden()
    images = golden["images"].copy()
    images[5, 3, 4, 0] ^= 4  # one value of one picture, hashes right
    files = {MODEL: old.model_bytes(), GOLDEN: golden_file(golden, images)}
    wrong = write_bundle(tmp_path / "b", old.manifest, files)
    with pytest.raises(
        RunError, match="fp32 misses its gate: onnxruntime-cpu at batch 1: max [345] LSB"
    ):
        verify_bundle(wrong.folder)
    assert main(["verify", str(wrong.folder)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_verify_refuses_another_digest(capsys):
    assert main(["verify", str(FOLDER / "schema-1"), "--digest", "sha256:" + "0" * 64]) == 2
    said = capsys.readouterr().err
    assert "another bundle, or a changed one" in said
    assert DIGESTS["schema-1"] in said
