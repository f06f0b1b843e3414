"""`make gpu-quick` where there is no GPU: its text, its refusals, its packages, the notebook."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ganfast.bench import records

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
gpu_quick = pytest.importorskip("gpu_quick")
gpu_run = pytest.importorskip("gpu_run")

ROOT = gpu_run.ROOT
PASSED, FAILED = gpu_run.PASSED, gpu_run.Outcome("failed", "x" * 300 + " RuntimeError: no image")
GPU = {
    "gpu": "NVIDIA T4",
    "driver": "570.1",
    "cuda": "13.0",
    "cudnn": 91002,
    "torch": "2.11.0",
    "triton": "3.6.0",
    "python": "3.12",
    "ganfast": "0.1.0",
    "commit": "0123456789ab",
}


def record(name: str, measurements, failed=None, conditions=None, derived=None) -> records.Record:
    made = records.make(name.split("-")[0], name, conditions or {}, measurements, {}, failed)
    made["environment"] |= GPU
    made["utc"] = "2026-12-01T10:00:00+00:00"
    return made | {"derived": derived or {}}


def kernel_case(case: str, triton: float, eager: float, share: float) -> list[dict]:
    both = {"triton": triton, "eager": eager}
    one = [
        records.measurement(cache, name, [seconds if cache == "cold" else 9.0], case=case)
        for name, seconds in both.items()
        for cache in ("cold", "hot")
    ]
    return [m | {"share_of_copy": share} for m in one]


def whole() -> list[records.Record]:
    """What the five parts record, made up."""
    cases = kernel_case("latents 8x128", 1.0, 2.0, 0.5) + kernel_case(
        "latents 9x128", 1.0, 3.0, 0.7
    )
    cases += kernel_case("to_uint8 8x3x4x4", 2.0, 1.0, 0.25)
    setting = {"preset": "wgan-gp", "size": 28, "channels": 1, "batch": 64, "width": 64}
    iterations = [
        records.measurement("iteration", name, [seconds])
        for name, seconds in (("tuned", 4e-3), ("tuned-graph", 2e-3), ("ganfast-graph", 1e-3))
    ]
    result = {"precision": "fp32", "kimg": 20.0, "spread": 60.0}
    sampled = [records.measurement("", f"batch {n}", [n * 1e-4]) for n in (1, 64)]
    return [
        record("kernels-cuda", cases),
        record(
            "training-wgan-gp",
            [records.measurement("", "whole", [6.25])],
            conditions={"captured": True},
            derived={"result": result},
        ),
        record("train-wgan-gp-28x1", iterations, conditions=setting | {"precision": "fp32"}),
        record("sample-onnxruntime", sampled, derived={"back_end": "onnxruntime-cuda"}),
    ]


def test_the_text_tells_what_was_measured():
    ended = dict.fromkeys(gpu_quick.PARTS, (PASSED, 20.0))
    ended["tensorrt"] = gpu_run.Outcome("skipped", "tensorrt could not be installed"), 31.4
    assert gpu_quick.text_of(whole(), ended).splitlines() == [
        "ganfast 0.1.0 gpu-quick, commit 0123456789ab, 2026-12-01",
        "NVIDIA T4, torch 2.11.0, CUDA 13.0, cuDNN 91002, driver 570.1, triton 3.6.0, Python 3.12",
        "kernels: 3 cases agree with their definitions",
        "  latents             2.00 to 3.00x eager, 50% to 70% of a copy's rate",
        "  to_uint8            0.50 to 0.50x eager, 25% to 25% of a copy's rate",
        "training: wgan-gp in fp32, captured, 20 kimg in 6.2 s with start and samples",
        "wgan-gp 28x28x1, batch 64, width 64, fp32; an iteration, median",
        "  tuned                 4.000 ms, 1.00x tuned eager",
        "  tuned-graph           2.000 ms, 2.00x tuned eager",
        "  ganfast-graph         1.000 ms, 4.00x tuned eager",
        "sampler by onnxruntime-cuda, a request: batch 1 0.100 ms, batch 64 6.400 ms",
        "tensorrt: skipped after 31 s, tensorrt could not be installed",
    ]


@pytest.mark.parametrize("failures", [0, 5, 200])
def test_the_text_has_at_most_40_lines_whatever_fails(failures):
    """And each part that failed is told of, by the end of what it said."""
    made = whole()[:failures]
    if made:
        made[0]["failed"] = {f"case {i}": "RunError: " + "y" * 200 for i in range(failures)}
    ended = dict.fromkeys(gpu_quick.PARTS, (FAILED, 3.0))
    lines = gpu_quick.text_of(made, ended).splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 110
    for name in gpu_quick.PARTS:
        (line,) = [line for line in lines if line.startswith(f"{name}: failed after 3 s, ...")]
        assert line.endswith("RuntimeError: no image")
    if failures == 200:
        assert len(lines) == 40
        assert re.fullmatch(r"and \d+ lines more", lines[-1])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [([], "needs an NVIDIA GPU, and torch "), (["abc"], "LIMIT is 'abc'; expected the seconds")],
)
def test_what_cannot_be_run_is_one_sentence(arguments, sentence, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks/gpu_quick.py"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as error:
        gpu_quick.main(arguments)
    assert error.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"make gpu-quick: {sentence}")
    assert len(said.splitlines()) == 1


class Runs:
    """A deadline that notes its commands; ``words`` are the outcomes of the first ones."""

    def __init__(self, records: Path, *words: str) -> None:
        self.records, self.commands, self._words = records, [], list(words)

    def __call__(self, *arguments: str):
        self.commands.append(arguments)
        return gpu_run.Outcome(self._words.pop(0) if self._words else "passed")


@pytest.mark.parametrize(("word", "outcome"), [("passed", "passed"), ("failed", "skipped")])
def test_a_missing_package_is_installed_beside_and_its_absence_is_no_failure(
    word, outcome, tmp_path, monkeypatch
):
    import numpy as np

    monkeypatch.setattr(gpu_quick, "_installed", lambda package: package == "onnx")
    run = Runs(tmp_path, word)
    assert gpu_quick.onnxruntime(run, False).word == outcome
    pip = run.commands[0]
    assert pip[:3] == ("-m", "pip", "install")
    assert pip[pip.index("--target") + 1] == str(tmp_path / "work" / "site")
    assert pip[-2:] == ("onnxscript", "onnxruntime-gpu")
    pins = Path(pip[pip.index("--constraint") + 1]).read_text()
    assert pins == f"numpy=={np.__version__}\n"
    assert len(run.commands) == (2 if word == "passed" else 1)
    if word == "passed":
        assert "onnxruntime" in run.commands[1]


def test_all_takes_five_minutes():
    assert gpu_run.seconds_of("", gpu_quick.PARTS) <= 300


@pytest.mark.accept
def test_everything_that_a_cpu_can_do_runs(tmp_path):
    """Kernels' definitions, a training, an iteration, the exported generator by ONNX Runtime."""
    environment = os.environ | {"OUT": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "benchmarks/gpu_quick.py", "--tiny"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    text = (tmp_path / "summary.txt").read_text()
    assert text in done.stdout
    for start in ("kernels: 2 cases agree", "training: wgan-gp in fp32", "  tuned ", "  ganfast "):
        assert f"\n{start}" in text
    assert "\nsampler by onnxruntime-cpu, a request: batch 1 " in text
    kinds = [record["kind"] for record in records.read_all(tmp_path / "gpu.jsonl")]
    assert sorted(kinds) == ["kernels", "sample", "train", "training"]


def test_the_notebook_is_one_and_its_targets_exist():
    notebook = json.loads((ROOT / "benchmarks" / "gpu_quick.ipynb").read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 4)
    assert notebook["metadata"].keys() <= {"accelerator", "kernelspec", "language_info"}
    assert notebook["metadata"]["kernelspec"].keys() >= {"name", "display_name"}
    commands = []
    for cell in notebook["cells"]:
        code = cell["cell_type"] == "code"
        more = {"outputs", "execution_count"} if code else set()
        assert cell.keys() == {"cell_type", "metadata", "source"} | more
        assert all(isinstance(line, str) for line in cell["source"])
        if code:
            assert cell["outputs"] == []
            lines = "".join(cell["source"]).splitlines()
            commands += [line[1:].split() for line in lines if line.startswith("!")]
            compile("\n".join(line for line in lines if line[0:1] != "!"), "cell", "exec")
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    made = [words for words in commands if words[0] == "make"]
    assert [words[3] for words in made] == ["gpu-quick"]
    assert "gpu-quick" in targets
    # The folder that is printed from is the one that results go to.
    assert str(gpu_quick.RESULTS.relative_to(ROOT)) in json.dumps(notebook)
