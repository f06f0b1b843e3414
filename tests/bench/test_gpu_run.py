"""`make gpu` where there is no GPU: deadlines, exit code, the resumed training, the targets.

Records that the targets are judged by are made up.
"""

import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ganfast.bench import records
from ganfast.bench.targets import Row, failures, judged
from ganfast.config import LogConfig
from tests.programs import python
from tests.runs.test_training import tiny

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
gpu_run = pytest.importorskip("gpu_run")
gpu_train = pytest.importorskip("gpu_train")

# Targets


def train_record(
    seconds: dict, preset="wgan-gp", size=28, width=64, batch=64, failed=None, matrix=1e12, **more
) -> records.Record:
    """``seconds``: (phase, variant) -> median, or (median, what else the measurement holds)."""
    measured = []
    for (phase, variant), value in seconds.items():
        median, extra = value if isinstance(value, tuple) else (value, {})
        measured.append(records.measurement(phase, variant, [median] * 5, **extra))
    conditions = {"preset": preset, "size": size, "width": width, "batch": batch, "device": "cuda"}
    return (
        records.make(
            "train",
            f"train-{preset}-{size}",
            conditions,
            measured,
            {"matrix_flops": matrix},
            failed,
        )
        | more
    )


def kernel_record(cases: dict, failed=None, **more) -> records.Record:
    """``cases``: name -> seconds of torch.compile and of triton, least bytes, share of the copy."""
    measured = []
    for case, (compiled, triton, least, share) in cases.items():
        for name, seconds in (("compile", compiled), ("triton", triton)):
            for cache in ("cold", "hot"):  # with a hot cache all is well
                one = records.measurement(
                    cache, name, [seconds if cache == "cold" else 1e-9] * 5, case=case
                )
                measured.append(
                    one | {"least_bytes": least, "share_of_copy": share if cache == "cold" else 1.0}
                )
    return records.make("kernels", "kernels-cuda", {"device": "cuda"}, measured, {}, failed) | more


def row_of(text: str, *of_run: records.Record, why=None) -> Row:
    (row,) = [row for row in judged(of_run, why or {}) if text in row.target]
    return row


ITERATION = {
    ("iteration", name): s
    for name, s in (("naive", 8.1), ("tuned", 4.1), ("tuned-graph", 3.0), ("compiled-graph", 1.4))
}


@pytest.mark.parametrize(("ours", "outcome"), [(1.0, "holds"), (1.1, "does not hold")])
def test_an_iteration_is_compared_with_the_fastest_rival_by_the_fastest_of_ours(ours, outcome):
    """Of 1.3x, 1.4 / 1.0 is enough and 1.4 / 1.1 is not; of 4x, 4.1 / 1.0 and 4.1 / 1.1."""
    record = train_record(
        ITERATION | {("iteration", "ganfast"): 5.0, ("iteration", "ganfast-graph"): ours}
    )
    row = row_of("MNIST, batch 64, width 64: at least 1.3x the best captured", record)
    assert (row.outcome, row.figure) == (
        outcome,
        f"{1.4 / ours:.2f}x compiled-graph, by ganfast-graph",
    )
    assert row_of("MNIST, batch 64, width 64: at least 4x tuned", record).outcome == outcome
    assert row_of("at least 4x naive", record).outcome == "holds"
    assert row_of("CelebA-64, batch 128, width 64: at least 5x", record).outcome == "not measured"


def test_a_rival_that_is_missing_makes_a_target_unknown_but_not_one_that_is_missed_already():
    without = {key: value for key, value in ITERATION.items() if key[1] != "compiled-graph"}
    for ours, outcome in ((1.0, "not measured"), (2.9, "does not hold")):
        record = train_record(
            without | {("iteration", "ganfast"): ours},
            failed={"compiled-graph": "RunError: gradients are off"},
        )
        row = row_of("MNIST, batch 64, width 64: at least 1.3x the best captured", record)
        assert row.outcome == outcome
        assert "without compiled-graph (RunError: gradients are off)" in row.figure
    assert row_of("train-wgan-gp-28: compiled-graph", record) == Row(
        "train-wgan-gp-28: compiled-graph", "does not hold", "RunError: gradients are off"
    )
    assert (
        row_of("MNIST, batch 64, width 64: at least 1.3x JAX", record).figure
        == "jax: not among what was measured"
    )


def test_jax_that_is_not_installed_is_named_and_is_no_failure():
    absent, broken = "InputError: JAX is not installed", "RunError: gradients of the critic are off"
    for reason, outcome in ((absent, "not measured"), (broken, "does not hold")):
        record = train_record({("iteration", "ganfast"): 1.0}, failed={"jax": reason})
        assert row_of("train-wgan-gp-28: jax", record).outcome == outcome
        assert bool(failures(record)) is (reason == broken)
    assert failures(
        train_record(
            {}, failed={"ganfast-graph": "InputError: the critic phase cannot be captured"}
        )
    )


def test_what_was_stopped_is_not_measured():
    stopped = train_record({("critic", "ganfast"): 1.0}, partial=True)
    row = row_of("at least 4x naive", stopped)
    assert row.outcome == "not measured"
    assert "stopped before it" in row.figure
    assert (
        row_of("at least 4x naive", why={"bench": "part bench: skipped"}).figure
        == "part bench: skipped"
    )


@pytest.mark.parametrize(
    ("step", "cost", "outcome"), [(1.79, 1.44, "holds"), (1.81, 1.46, "does not hold")]
)
def test_a_penalty_costs_what_the_step_takes_over_the_one_without(step, cost, outcome):
    def record(preset, seconds):
        times = {("critic", "ganfast"): 9.0, ("critic without penalty", "ganfast"): 1.0}
        times |= {
            ("critic", "ganfast-graph"): seconds,
            ("critic without penalty", "ganfast-graph"): 1.0,
        }
        return train_record(times, preset, 64, 64, 128)

    both = record("wgan-gp", step), record("rpgan", cost)
    assert row_of("WGAN-GP's critic step", *both)[1:] == (outcome, f"{step:.2f}x, of ganfast-graph")
    assert row_of("R1 + R2's critic step", *both)[1:] == (outcome, f"{cost:.2f}x, of ganfast-graph")


@pytest.mark.parametrize(("seconds", "outcome"), [(2.4, "holds"), (2.6, "does not hold")])
def test_the_share_of_the_matrix_peak_takes_the_flops_that_were_counted(seconds, outcome):
    """1e12 FLOPs in 2.4 s of a peak of 1e12 a second are 42%, in 2.6 s 38%."""
    times = {("critic", "ganfast"): (5.0, {"flops": 1e12}), ("critic", "ganfast-graph"): seconds}
    row = row_of(
        "at least 40% of the matrix peak", train_record(times, size=64, width=128, batch=512)
    )
    assert row[1:] == (outcome, f"{1 / seconds:.0%}, by ganfast-graph")


@pytest.mark.parametrize(("busy", "outcome"), [(150e-6, "holds"), (151e-6, "does not hold")])
def test_gpu_time_is_that_of_the_replayed_variant_whatever_the_gaps(busy, outcome):
    times = {("critic", "ganfast"): (0.1e-3, {"busy_s": 1e-6, "launches": 9})}
    row = "GPU time of wgan-gp's replayed critic phase, MNIST"
    assert row_of(row, train_record(times)).outcome == "not measured"
    times[("critic", "ganfast-graph")] = (1e-3, {"busy_s": busy, "launches": 70})
    assert row_of(row, train_record(times))[1:] == (
        outcome,
        f"{busy * 1e6:.0f} us in 70 launches, of ganfast-graph",
    )
    times[("critic", "ganfast-graph")] = (1e-3, {"profiler": "RuntimeError: not allowed"})
    assert row_of(row, train_record(times))[1:] == ("not measured", "RuntimeError: not allowed")


def test_of_two_records_of_a_setting_the_fuller_one_is_judged():
    quick = train_record({("iteration", "ganfast-graph"): 1.0, ("iteration", "tuned-graph"): 3.0})
    full = train_record(ITERATION | {("iteration", "ganfast-graph"): 1.0})
    for both in ((quick, full), (full, quick)):
        row = row_of("MNIST, batch 64, width 64: at least 1.3x the best captured", *both)
        assert row.figure == "1.40x compiled-graph, by ganfast-graph"


@pytest.mark.parametrize(
    ("second", "outcome", "mean"), [(0.51, "holds", "1.01x"), (0.49, "does not hold", "0.99x")]
)
def test_a_kernel_is_judged_by_the_geometric_mean_with_a_cold_cache(second, outcome, mean):
    """Twice as fast on one tensor, half as fast on the other; the arithmetic mean would be 1.25."""
    cases = {"latents 8x128": (2.0, 1.0, 1e6, 1.0), "latents 9x128": (second, 1.0, 1e6, 1.0)}
    row = row_of("latents at least 1.0x", kernel_record(cases))
    assert row.outcome == outcome
    assert row.figure.startswith(mean)
    partial = row_of("latents at least 1.0x", kernel_record(cases, partial=True)).outcome
    assert partial == ("not measured" if outcome == "holds" else "does not hold")
    assert row_of("adam_ema at least", kernel_record(cases, {"adam_ema 20": "RunError: x"}))[
        1:
    ] == ("not measured", "adam_ema 20: RunError: x")


def test_bandwidth_counts_large_tensors_alone_and_every_kind_of_them():
    """A tensor of 403 MB, one of 50 MB."""
    large = {
        f"{name} 1536x128x32x32": (1.0, 1.0, 2.0625 * 403e6, 0.7)
        for name in ("bias_act", "bias_act_delta", "bias_act_tangent")
    }
    small = {"bias_act 384x64x32x32": (1.0, 1.0, 2.0625 * 50e6, 0.1)}
    assert row_of("bias_act at least 70%", kernel_record(large | small)).outcome == "holds"
    slow = {"bias_act_delta 1536x128x32x32": (1.0, 1.0, 2.0625 * 403e6, 0.69)}
    assert row_of("bias_act at least 70%", kernel_record(large | slow))[1:] == (
        "does not hold",
        "69%, bias_act_delta 1536x128x32x32",
    )
    del large["bias_act_tangent 1536x128x32x32"]
    assert row_of("bias_act at least 70%", kernel_record(large | small)).outcome == "not measured"
    for share, outcome in ((0.71, "holds"), (0.69, "does not hold")):
        cases = {
            "gradient_penalty 4096x3x64x64": (1.0, 1.0, 4e8, share),
            "gradient_penalty 64x1x28x28": (1.0, 1.0, 4e5, 0.1),
        }
        assert (
            row_of("gradient_penalty 4096x3x64x64 at least 70%", kernel_record(cases)).outcome
            == outcome
        )
        assert (
            row_of("gradient_penalty 512x3x256x256 at least 70%", kernel_record(cases)).outcome
            == "not measured"
        )


@pytest.mark.parametrize(
    ("micro", "faster", "roof", "outcome"),
    [(100, 2.0, 0.4, "holds"), (101, 1.99, 0.39, "does not hold")],
)
def test_sampler_targets(micro, faster, roof, outcome):
    ratios = {
        "GPU time of batch 1, us": micro,
        "auto over the faster layout of eager, batch 1": faster,
        "share of the roof": roof,
    }
    record = records.make("sampler", "sampler-gpu", {}, []) | {"derived": {"ratios": ratios}}
    for text in ("at most 100 us", "at least 2x eager", "batch 512: at least 40% of the roof"):
        assert row_of(text, record).outcome == outcome


# Parts


def session(out: Path, limit=60.0, **parts):
    """Parts are functions, of 60 s each, and bench of 240."""
    made = {name: gpu_run.Part(240 if name == "bench" else 60, run) for name, run in parts.items()}
    return gpu_run.Session(out, made, limit, "a GPU that is pretended")


def test_commands_of_a_part_share_its_seconds_and_what_they_started_ends_with_them(tmp_path):
    run, began = gpu_run.Deadline(1.5), time.monotonic()
    sleeper = "[sys.executable, '-c', 'import time; time.sleep(60)']"
    child = f"import subprocess, sys, time; p = subprocess.Popen({sleeper});"
    outcome = run(
        "-c", f"{child} open({str(tmp_path / 'pid')!r}, 'w').write(str(p.pid)); time.sleep(60)"
    )
    assert outcome.word == "stopped"
    assert "the 1.5 s of the part are over" in outcome.why
    assert run("-c", "raise SystemExit(1)").why.endswith(
        "not begun, the 1.5 s of the part are over"
    )
    assert time.monotonic() - began < 20
    state = Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat")
    for _ in range(50):
        if not state.exists() or state.read_text().split()[2] == "Z":
            break
        time.sleep(0.1)
    else:
        pytest.fail("a process of the part is left")


def test_a_command_that_fails_is_named_with_its_code_and_what_it_said_last():
    run = gpu_run.Deadline(60)
    assert run("-c", "pass") == gpu_run.PASSED
    code = "print('it is off\\n'); raise SystemExit(3)"
    assert run("-c", code) == gpu_run.Outcome("failed", f"-c {code}: it is off (exit 3)")
    assert run("-c", "raise SystemExit(1)").why == "-c raise SystemExit(1): no output (exit 1)"


def test_what_a_command_prints_is_logged_and_it_is_told_where_records_go(tmp_path, capfd):
    code = "import os, sys; print(os.environ['GANFAST_RECORDS']); print('wrong', file=sys.stderr)"
    with open(tmp_path / "log", "wb") as log:
        gpu_run.Deadline(60, tmp_path / "records", log)("-c", code)
    expected = {str(tmp_path / "records"), "wrong"}
    assert set((tmp_path / "log").read_text().split()) == expected
    assert expected <= set(capfd.readouterr().out.split())


def test_tests_that_were_stopped_did_not_pass():
    assert gpu_run.tests(lambda *_: gpu_run.Outcome("stopped", "over"), False) == gpu_run.Outcome(
        "failed", "over"
    )


def test_parts_share_the_limit_and_leave_what_they_do_not_need(tmp_path):
    """Of 60 s for 60 : 240 : 60 the first has 10 s. It needs none, so the second has 48 of 60."""
    seconds = {}

    def part(name):
        def run(deadline, tiny):
            seconds[name] = deadline._seconds
            return gpu_run.PASSED

        return run

    names = ("smoke", "bench", "rest")
    assert session(tmp_path, **{name: part(name) for name in names}).run() == 0
    assert seconds == pytest.approx({"smoke": 10, "bench": 48, "rest": 60}, rel=0.02)


def test_the_summary_tells_of_every_part_while_one_is_under_way(tmp_path, capsys):
    """What a SIGKILL finds, and what a part measured before it was over."""
    found = []

    def smoke(deadline, tiny):
        records.write(train_record({("critic", "ganfast"): 1.0}), deadline.records)
        return gpu_run.Outcome("failed", "it broke")

    def bench(deadline, tiny):
        found.append((tmp_path / "summary.txt").read_text())
        keep = records.keeper(deadline.records)
        keep(train_record({("critic", "ganfast"): 1.0}) | {"name": "in the middle"})
        deadline._look()
        found.append((tmp_path / "summary.txt").read_text())
        found.append([record["name"] for record in records.read_all(tmp_path / "gpu.jsonl")])
        raise SystemExit(143)  # as SIGTERM does

    with pytest.raises(SystemExit):
        session(tmp_path, smoke=smoke, bench=bench, rest=None).run()
    for text in (*found[:2], (tmp_path / "summary.txt").read_text(), capsys.readouterr().out):
        assert re.search(r"^failed +smoke .* it broke$", text, re.MULTILINE)
        assert re.search(r"^stopped +bench .* under way", text, re.MULTILINE)
        assert re.search(r"^not begun +rest ", text, re.MULTILINE)
    assert "in the middle, stopped before its end" in found[1]
    assert found[2] == ["in the middle", "train-wgan-gp-28"]


def test_an_archive_that_is_there_grows(tmp_path):
    def part(deadline, tiny):
        name = f"record {len(list(deadline.records.iterdir()))}"
        records.write(train_record({}) | {"name": name}, deadline.records)
        return gpu_run.PASSED

    for _ in range(2):
        session(tmp_path, smoke=part, rest=part).run()
    names = [record["name"] for record in records.read_all(tmp_path / "gpu.jsonl")]
    assert names == ["record 0", "record 1"] * 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("gpu.jsonl", "gpu.log", "summary.txt")
    ]


def test_a_record_that_is_replaced_while_it_is_read_costs_nothing(tmp_path, monkeypatch):
    """The partial record has gone, and the whole one was not there when the folder was listed."""
    made = session(tmp_path)
    records.keeper(made.records)(train_record({}))
    read, times = records.read, []

    def replaced(path):
        times.append(path.name)
        if len(times) == 1:
            records.write(train_record({}), made.records)
        return read(path)

    monkeypatch.setattr(records, "read", replaced)
    (record,) = made.measured()
    assert "partial" not in record
    assert [".partial" in name for name in times] == [True, False]


def test_an_output_that_nobody_reads_does_not_block_a_command(tmp_path, monkeypatch):
    class Closed:
        def write(self, line):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=Closed()))
    code = "for i in range(20000): print('a line that fills a pipe of 64 kB')"
    with open(tmp_path / "log", "wb") as log:
        assert gpu_run.Deadline(60, tmp_path, log)("-c", code) == gpu_run.PASSED
    assert len((tmp_path / "log").read_text().splitlines()) == 20000


def test_a_summary_that_breaks_costs_no_record(tmp_path, monkeypatch):
    def part(deadline, tiny):
        records.write(train_record({}), deadline.records)
        return gpu_run.PASSED

    monkeypatch.setattr(gpu_run.Session, "summary", lambda self, records: 1 / 0)
    assert session(tmp_path, smoke=part).run() == 1
    assert len(records.read_all(tmp_path / "gpu.jsonl")) == 1
    assert "ZeroDivisionError" in (tmp_path / "summary.txt").read_text()


@pytest.mark.parametrize(
    ("word", "failed", "code"),
    [
        ("passed", {}, 0),
        ("skipped", {}, 0),
        ("stopped", {}, 0),
        ("failed", {}, 1),
        ("passed", {"tuned-graph": "RunError: off"}, 1),
    ],
)
def test_exit_code_1_is_for_what_ran_and_failed(word, failed, code, tmp_path, capsys):
    missed = ITERATION | {("iteration", "ganfast"): 8.1}  # no target of an iteration holds

    def bench(deadline, tiny):
        records.write(train_record(missed, failed=failed), deadline.records)
        return gpu_run.Outcome(word, "why it was so")

    assert session(tmp_path, bench=bench).run() == code
    shown = capsys.readouterr().out
    assert f"{word:10}bench" in shown
    grey = "does not hold wgan-gp iteration, MNIST, batch 64, width 64"
    assert f"{grey}: at least 4x naive eager: 1.00x naive, by ganfast" in shown
    assert (
        "not measured  latents at least 1.0x torch.compile, cold cache: part kernels: not asked for"
        in shown
    )
    faces = "not measured  wgan-gp iteration, CelebA-64, batch 128, width 64"
    assert f"{faces}: at least 1.3x JAX: part bench: {word} why it was so" in shown


def test_two_calls_take_twelve_minutes_and_have_every_part():
    assert gpu_run.CALLS["all"] == tuple(gpu_run.PARTS)
    seconds = [gpu_run.asked(call, "")[1] for call in ("first", "second")]
    assert sum(seconds) <= 720
    assert gpu_run.asked("bench", "90") == ({"bench": gpu_run.PARTS["bench"]}, 90.0)


@pytest.mark.parametrize(
    ("arguments", "out", "sentence"),
    [
        (["nonsense"], "", "PART is 'nonsense'; expected first, second, all, or one of smoke, "),
        (["first", "abc"], "", "LIMIT is 'abc'; expected the seconds of all parts together"),
        (["first", "-1"], "", "LIMIT is '-1'; expected"),
        (["first", "inf"], "", "LIMIT is 'inf'; expected"),
        (["first"], "", "needs an NVIDIA GPU, and torch"),
        (["first", "--tiny"], "/proc/nothing", "OUT is '/proc/nothing', which cannot be written"),
    ],
)
def test_what_cannot_be_run_is_one_sentence(arguments, out, sentence, monkeypatch, capsys):
    monkeypatch.setenv("OUT", out)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as error:
        gpu_run.main(arguments)
    assert error.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"make gpu: {sentence}")
    assert len(said.splitlines()) == 1


def test_the_tests_that_come_first_and_the_kernels_are_there():
    assert {Path(name).name for name in gpu_run.KERNEL_TESTS} == {
        f"test_{name}.py" for name in gpu_run._TESTED.split()
    }
    done = python("-m", "pytest", "-q", "--collect-only", *gpu_run.FIRST_TESTS, cwd=gpu_run.ROOT)
    assert f"{len(gpu_run.FIRST_TESTS)} tests collected" in done.stdout, done.stdout


def test_nothing_that_make_gpu_imports_needs_tyro_or_cattrs():
    """Machines with a GPU and torch often lack them; what is imported inside a function counts."""
    tested = [*gpu_run.KERNEL_TESTS, "tests/gpu/test_gpu.py", "tests/gpu/test_gpu_sampler.py"]
    modules = [name.removesuffix(".py").replace("/", ".") for name in tested]
    scripts = "gpu_run gpu_parts gpu_train gpu_quick bench_sampler speed"
    code = f"""
import sys
for name in ("tyro", "cattrs", "cattr", "attrs", "attr", "docstring_parser"):
    sys.modules[name] = None  # importing it is an error from here on
sys.path.insert(0, "benchmarks")
from importlib import import_module
for name in {[*scripts.split(), *modules]!r}:
    import_module(name)
import gpu_train
from ganfast.cli import main
assert main("bench kernels to_uint8 --device cpu --no-compile --rounds 5".split()) == 0
"""
    done = python("-c", code, cwd=gpu_run.ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.accept
def test_the_rehearsal_loses_nothing(tmp_path):
    """Whole and killed, without tyro and cattrs, as `make gpu-rehearsal` runs it."""
    blocks = "import sys\nfor name in ('tyro', 'cattrs'):\n    sys.modules[name] = None\n"
    (tmp_path / "sitecustomize.py").write_text(blocks)
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "benchmarks/gpu_rehearsal.py"]
    environment["PYTHONPATH"] += os.pathsep + str(gpu_run.ROOT)
    began = time.monotonic()
    done = subprocess.run(
        command, cwd=gpu_run.ROOT, env=environment, capture_output=True, text=True
    )
    print(done.stdout, f"{time.monotonic() - began:.0f} s")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("nothing is missing") == 4


# The resumed training


def config_in(folder: Path):
    config = tiny("wgan-gp")
    return replace(
        config,
        out=str(folder / "run"),
        log=LogConfig(every=1, save_kimg=0.5 * config.kimg, tensorboard=False),
    )


def test_a_resumed_training_begins_with_what_was_saved(tmp_path):
    wrong, figures = gpu_train.resumed(config_in(tmp_path))
    assert wrong == []
    assert figures["gap"] == 0  # on a CPU
    assert 0 < figures["resumed_at"] < 1000 * tiny("wgan-gp").kimg


def test_moments_that_a_resume_loses_are_seen(tmp_path, monkeypatch):
    real = gpu_train.restore

    def forgets(state, contents, images, where):
        real(state, contents, images, where)
        for entry in state.optimizer_critic.state.values():
            entry["exp_avg_sq"].zero_()

    monkeypatch.setattr(gpu_train, "restore", forgets)
    wrong, _ = gpu_train.resumed(config_in(tmp_path))
    assert wrong
    assert all(line.startswith("optimizer_critic.") and "exp_avg_sq" in line for line in wrong)


def test_classes_of_the_pictures_made_for_a_gpu_differ():
    pack = gpu_train.generated(600)
    images, labels = pack["images"], pack["labels"]
    assert images.shape == (600, 28, 28)
    means = np.stack([images[labels == k].mean(0) for k in range(10)])
    assert min(np.abs(a - b).mean() for i, a in enumerate(means) for b in means[:i]) > 5


def test_seconds_to_a_quality_leave_out_what_is_no_training():
    """10,000 pictures at 5,000 a second, then 10,000 at 10,000; the clock of the log says more."""
    lines = [
        {"images": 10_000, "seconds": 50.0, "images_per_second": 5000.0},
        {"images": 10_000, "seconds": 60.0, "score/frechet": 3.1},
        {"images": 20_000, "seconds": 70.0, "images_per_second": 10_000.0},
        {"images": 20_000, "seconds": 90.0, "score/frechet": 3.0},
    ]
    found = gpu_train.to_quality(lines)
    assert (found["reached"], found["images"], found["seconds"]) == (True, 20_000, 3.0)
    assert found["curve"] == [[10_000, 2.0, 3.1], [20_000, 3.0, 3.0]]
    found = gpu_train.to_quality(lines[:3])
    assert (found["reached"], found["images"], found["seconds"]) == (False, None, None)


def test_a_training_without_torchmetrics_is_resumed_and_its_quality_unknown(tmp_path, monkeypatch):
    monkeypatch.setenv("GANFAST_RECORDS", str(tmp_path))
    find, made = gpu_train.importlib.util.find_spec, []
    missing = lambda n, *more: None if n == "torchmetrics" else find(n, *more)  # noqa: E731
    monkeypatch.setattr(gpu_train.importlib.util, "find_spec", missing)
    monkeypatch.setattr(gpu_train, "generated", lambda count: small_discs())
    monkeypatch.setattr(gpu_train, "record", lambda *args, **facts: made.append(facts))
    assert gpu_train.main("--device cpu --kimg 1 --width 4".split()) == 0
    record = records.make("resume", "resume-wgan-gp-cuda", {}, []) | {"derived": made[0]}
    row = row_of("discs to their quality", record)
    assert row[1:] == ("not measured", "not scored, torchmetrics is missing")


def test_a_training_that_is_scored_resumes_from_what_was_saved(tmp_path, monkeypatch):
    """`resumed` removes the last checkpoint: scorings must not leave one behind the saved one."""
    monkeypatch.setenv("GANFAST_RECORDS", str(tmp_path))
    made = []
    monkeypatch.setattr(gpu_train, "generated", lambda count: small_discs())
    monkeypatch.setattr(gpu_train, "_LOOK", 0.6)
    monkeypatch.setattr(gpu_train, "record", lambda *args, **facts: made.append(facts["result"]))
    assert gpu_train.main("--device cpu --kimg 1 --width 4".split()) == 0
    (result,) = made
    assert result["wrong"] == []
    assert result["resumed_at"] == pytest.approx(950, abs=160)
    assert [images for images, _, _ in result["curve"]] == [640, 1120]


def small_discs() -> dict[str, np.ndarray]:
    return _generated(1000)


_generated = gpu_train.generated
