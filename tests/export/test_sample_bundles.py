"""`ganfast sample` and `ganfast bench sample` on bundles: the run's pictures, back ends."""

import json

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from ganfast.cli import main
from ganfast.export.bundle.bundle import golden_file, open_bundle, write_bundle
from ganfast.export.bundle.manifest import GOLDEN
from ganfast.export.drawing.bench_sample import measure
from ganfast.export.drawing.latency import bucket_costs, machine, store
from ganfast.export.drawing.source import BundleSource
from tests.small_bundle import small_bundle


@pytest.fixture
def bundle(tmp_path):
    return small_bundle(tmp_path / "b", classes=3, channels=3)


def arrays(path):
    with np.load(path) as found:
        return {name: found[name] for name in found.files}


def test_a_bundle_is_sampled_like_a_run(bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "a.npz"
    assert main(f"sample b -n 7 --seed 3 --labels class2,0 --first 1 --out {out}".split()) == 0
    found = arrays(out)
    assert found["labels"].tolist() == [0, 2, 0, 2, 0, 2, 0], "in turn by index, which begins at 1"
    source = BundleSource(bundle.folder)
    np.testing.assert_array_equal(found["images"], source.sample_labelled(7, 3, [2, 0], first=1)[0])
    whole = source.sample_labelled(8, 3, [2, 0])[0]
    np.testing.assert_array_equal(found["images"], whole[1:])
    source.close()
    assert main(["sample", "b", "-n", "6", "--balanced", "--out", str(out)]) == 0
    assert arrays(out)["labels"].tolist() == [0, 1, 2, 0, 1, 2]
    assert main(["sample", "b", "-n", "4", "--seed", "9"]) == 0
    assert (tmp_path / "b-seed9.png").exists()
    expected = set("manifest.json model.onnx golden.safetensors".split())
    assert {path.name for path in (tmp_path / "b").iterdir()} == expected
    open_bundle(bundle.folder)
    assert (
        main(f"sample b -n 2 --interpolate 3 --labels 1 --out {out} --backend torch".split()) == 0
    )
    assert arrays(out)["images"].shape == (6, 8, 8, 3)
    assert main(["sample", "b", "--digest", bundle.manifest.digest, "-n", "1"]) == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-n", "0"], "n is 0"),
        (["-n", "1000000000000"], "so many pictures take"),
        (["--labels", "cat"], "there is no class 'cat'; "),
        (["--labels", "7"], "there is no class 7; small has 3"),
        (["--psi", "3"], "psi is 3.0"),
        (["--checkpoint", "12"], "leave --checkpoint out"),
        (["--digest", "sha256:12"], "expected sha256:12"),
        (["--digest", ""], "another bundle, or a changed one"),
        (["--backend", "fast"], "backend is 'fast'"),
        (["--device", "tpu"], "device is 'tpu'"),
        (["--direction", "1"], "a bundle, whose weights no direction is read from; give the run"),
    ],
)
def test_bad_input_is_one_sentence(arguments, sentence, bundle, capsys):
    assert main(["sample", str(bundle.folder), *arguments]) == 2
    said = capsys.readouterr().err.strip()
    assert sentence in said
    assert "\n" not in said


@pytest.mark.parametrize(
    "flags",
    [["--digest", "sha256:1"], ["--digest", ""], ["--backend", "torch"], ["--strict"]],
    ids=" ".join,
)
def test_a_run_takes_no_flags_of_bundles(tmp_path, flags, capsys):
    assert main(["sample", str(tmp_path), *flags]) == 2
    assert "go with a bundle" in capsys.readouterr().err


def test_strict_refuses_where_the_first_back_end_cannot_be_used(tmp_path, capsys):
    engines = {"k": {"flavour": "rtx", "version": "1.0", "capability": "8.6", "gpu": ""}}
    own = small_bundle(tmp_path / "b", engines=engines, files={"engines/k": b"plan"})
    wrong = golden_file(own.golden(), 255 - own.golden()["images"])
    mixed = write_bundle(
        tmp_path / "m",
        own.manifest,
        {path: own.read(path) for path in own.manifest.files} | {GOLDEN: wrong},
    )
    ask = f"sample {mixed.folder} -n 1 --device cpu --out {tmp_path / 'x.npz'}".split()
    assert main(ask) == 2
    said = capsys.readouterr().err
    assert "onnxruntime-cpu" in said
    assert "torch-cpu" in said, "every back end was tried"
    assert main([*ask, "--strict"]) == 2
    said = capsys.readouterr().err
    assert "golden samples differ" in said
    assert "torch-cpu" not in said, "the first one decides"
    assert main(["sample", str(own.folder), *ask[2:], "--backend", "rtx"]) == 2
    assert "there is no GPU here that could run an engine" in capsys.readouterr().err


def test_bench_sample_writes_what_load_sampler_reads(bundle, capsys):
    assert (
        main(f"bench sample {bundle.folder} --device cpu --threads 1 --seconds 0.02".split()) == 0
    )
    said = capsys.readouterr().out
    table = bundle.latency()
    assert (table["machine"], table["threads"]) == (machine(), 1)
    assert {(r["back_end"], r["batch"], r["concurrency"]) for r in table["rows"]} == {
        (name, b, c)
        for name in ("onnxruntime-cpu", "torch-cpu")
        for b in (1, 4, 16)
        for c in (1, 4)
    }
    for row in table["rows"]:
        assert 0 < row["p50"] <= row["p90"] <= row["p99"] <= row["p99.9"]
        assert row["requests"] >= 5
        assert row["images_per_second"] > 0
        assert ("compute" in row) == (row["concurrency"] == 1)
        assert f"{row['p50'] * 1e3:9.3f}" in said
    alone = {
        r["batch"]: r["p50"]
        for r in table["rows"]
        if r["back_end"] == "torch-cpu" and r["concurrency"] == 1
    }
    assert bucket_costs(bundle, "torch-cpu") == alone
    before = (bundle.folder / "latency.json").read_bytes()
    arguments = "--device cpu --threads 1 --seconds 0.01 --backend onnxruntime --batches 3".split()
    assert main(["bench", "sample", str(bundle.folder), *arguments, "--keep"]) == 0
    assert (bundle.folder / "latency.json").read_bytes() == before
    assert main(["bench", "sample", str(bundle.folder), *arguments, "--concurrency", "1"]) == 0
    more = bundle.latency()
    assert [row for row in more["rows"] if row["batch"] != 3] == table["rows"], (
        "what was measured before stays"
    )
    expected = [("onnxruntime-cpu", 1)]
    assert [(r["back_end"], r["concurrency"]) for r in more["rows"] if r["batch"] == 3] == expected
    store(bundle, {**table, "rows": [{**table["rows"][0], "p50": 7.0}]})
    expected = [{**row, "p50": 7.0} if row == table["rows"][0] else row for row in more["rows"]]
    assert bundle.latency()["rows"] == expected
    store(bundle, {**table, "threads": 2, "rows": table["rows"][:1]})
    assert bundle.latency() == {**table, "threads": 2, "rows": table["rows"][:1]}, (
        "other threads are another table"
    )
    content = json.loads(before)
    content["table"]["rows"][0]["p50"] = 1e-9
    (bundle.folder / "latency.json").write_text(json.dumps(content))
    assert bundle.latency() == {}, "a damaged table chooses nothing"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--backend", "tensorrt", "--device", "cpu"], "there is no GPU here"),
        (["--backend", "fast"], "backend is 'fast'"),
        (["--seconds", "0"], "seconds 0"),
        (["--seconds", "inf"], "seconds inf"),
        (["--seconds", "nan"], "seconds nan"),
        (["--concurrency", "0"], "must be above 0"),
        (["--batches", "1,x"], "batches is '1,x'; expected whole numbers"),
    ],
)
def test_bad_benchmarks_are_one_sentence(arguments, sentence, bundle, capsys):
    assert main(["bench", "sample", str(bundle.folder), *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_bench_needs_a_subject(capsys):
    assert main(["bench", "everything"]) == 2
    assert "unknown benchmark 'everything'" in capsys.readouterr().err


def test_parts_of_a_latency_add_up(bundle):
    table, _ = measure(bundle, ["onnxruntime"], "cpu", 1, 0.05, (1,), (16,))
    (row,) = table["rows"]
    assert 0.2 < (row["enqueue"] + row["compute"] + row["copy"]) / row["p50"] < 5, (
        "the same work, measured apart"
    )
