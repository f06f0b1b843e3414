"""`ganfast run check` names every kind of damage, passes a sound run, and touches nothing."""

import json
import os
import shutil
from pathlib import Path

import pytest

from ganfast import locks
from ganfast.cli import main
from ganfast.config import ScoreConfig
from ganfast.runs import checkpoint as checkpoints
from ganfast.runs.train import train
from tests.programs import python
from tests.small_runs import STEADY, files, tiny


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    train(tiny("dcgan", data, out, optim=STEADY), quiet=True)
    checkpoints.keep_best(out / "checkpoints" / "000000240", 1.0, "test")
    return out


@pytest.fixture
def run(trained, tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, "run")
    return Path("run")


@pytest.fixture
def check(capsys):
    """(exit code, standard output, standard error) of a check, which must have changed nothing."""

    def check(*args: str) -> tuple[int, str, str]:
        def state():
            return {
                p: (p.stat().st_mtime_ns, p.stat().st_size) for p in Path("run").rglob("*")
            }, files(Path("run"))

        before = state()
        code = main(["run", "check", "run", *args])
        assert state() == before
        return code, *capsys.readouterr()

    return check


def test_a_sound_run_is_called_so_with_what_can_be_resumed(run, check):
    code, out, err = check()
    assert (code, err) == (0, "")
    for name in ("000000160", "000000240", "000000320"):
        assert f"checkpoint  {name} whole\n" in out
    assert "best        000000240\nlog         20 lines\n" in out
    assert out.endswith("resume      complete at 0.32 kimg\n")
    facts = json.loads(check("--json")[1])
    expected = (True, "000000320", None, [])
    assert (facts["sound"], facts["resumable"], facts["held_by"], facts["problems"]) == expected


@pytest.mark.accept
def test_scores_and_diagnoses_at_a_logged_step_are_no_damage(tmp_path, monkeypatch, check):
    """Each has a line of its own, with the counter of the step."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ganfast.runs.writer.Diagnosis.__call__", lambda *_: "a test's sentence")
    scored = ScoreConfig(every_kimg=0.08, count=100)
    train(tiny("dcgan", "digits", "run", optim=STEADY, score=scored), quiet=True)
    lines = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    kinds = [{"score/frechet", "diagnosis", "images_per_second"} & line.keys() for line in lines]
    assert {"score/frechet"} in kinds
    assert {"diagnosis"} in kinds
    assert len({line["images"] for line in lines}) == 20 < len(lines)
    assert check()[0] == 0
    edit("run/log.jsonl", lambda x: [x[0], x[0], *x[1:]])
    assert "line 2 is of 16 images, the one before of 16" in check()[1]


def edit(path: str, change) -> None:
    lines = Path(path).read_text().splitlines()
    Path(path).write_text("".join(line + "\n" for line in change(lines)))


def flip(path: str) -> None:
    content = bytearray(Path(path).read_bytes())
    content[len(content) // 2] ^= 1
    Path(path).write_bytes(content)


LATE, MID = "run/checkpoints/000000320", "run/checkpoints/000000240"


def edited(change):
    return lambda: edit("run/log.jsonl", change)


# name: (what happens, what can be resumed, what the command says)
DAMAGES = """
a byte of the newest  | 240 | critic.safetensors was changed after
a byte of an older    | 320 | ema.safetensors was changed after
a missing file        | 240 | ema.safetensors cannot be read
a missing state       | 240 | state.json is missing
renamed               | 240 | says that it is of 320 images
a lost line           | 320 | 9 lines up to 0.16 kimg and had 10
a line twice          | 320 | line 5 is of 64 images, the one before
a line of rubbish     | 320 | line 4 is not what was
a short log           | 320 | 15 lines up to 0.32 kimg and had 20
no log                | 320 | log.jsonl is missing
no best               | 320 | best.json names no checkpoint that is there
a history of rubbish  | 320 | history.jsonl is damaged
"""
DONE = (
    lambda: flip(f"{LATE}/critic.safetensors"),
    lambda: flip(f"{MID}/ema.safetensors"),
    lambda: Path(f"{LATE}/ema.safetensors").unlink(),
    lambda: Path(f"{LATE}/state.json").unlink(),
    lambda: Path(LATE).rename("run/checkpoints/000000400"),
    edited(lambda x: x[:3] + x[4:]),
    edited(lambda x: x[:4] + x[3:]),
    edited(lambda x: [*x[:3], "{", *x[4:]]),
    edited(lambda x: x[:15]),
    lambda: Path("run/log.jsonl").unlink(),
    lambda: shutil.rmtree(MID),
    lambda: Path("run/history.jsonl").write_text("{"),
)
DAMAGES = [[cell.strip() for cell in line.split("|")] for line in DAMAGES.strip().splitlines()]
DAMAGES = {
    name: (do, f"{int(images):09d}", said)
    for do, (name, images, said) in zip(DONE, DAMAGES, strict=True)
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_what_is_left_to_resume_too(damage, run, check):
    do, resumable, said = DAMAGES[damage]
    do()
    code, out, err = check()
    assert code == 1
    assert said in out
    assert said in err
    assert err.startswith("ganfast: run is damaged: ")
    assert f"`ganfast train --out run` goes on from {int(resumable) / 1000:g} kimg" in err
    facts = json.loads(check("--json")[1])
    assert (facts["sound"], facts["resumable"], len(facts["problems"])) == (False, resumable, 1)


def test_nothing_to_resume_is_said(run, check):
    for path in Path("run/checkpoints").glob("0*"):
        flip(str(path / "generator.safetensors"))
    code, out, err = check()
    assert code == 1
    assert "and 2 more; no checkpoint can be resumed" in err
    shutil.rmtree("run/checkpoints")
    code, out, err = check()
    assert (code, err) == (0, "")
    assert out.endswith("there is no checkpoint yet: `ganfast train --out run` begins anew\n")


def test_a_log_that_goes_on_after_the_newest_checkpoint_is_no_damage(run, check):
    """As a killed process leaves it: the lines are written again."""
    shutil.rmtree(LATE)
    with open("run/log.jsonl", "a") as log:
        log.write('{"images": 3')
    assert check()[::2] == (0, "")


@pytest.mark.parametrize("name", ["config.yaml", "data.json"])
def test_what_is_no_run_is_refused(name, run, check):
    Path("run", name).unlink()
    code, out, err = check()
    assert (code, out) == (2, "")
    assert name in err


def test_a_directory_without_a_config_is_refused_before_torch_is_imported(tmp_path):
    code = (
        "import sys; from ganfast.cli import main\n"
        "for line in (['run', 'check', 'nowhere'], ['run', 'chekc'], ['sample', 'nowhere']):\n"
        "    assert main(line) == 2\n"
        "assert 'torch' not in sys.modules"
    )
    done = python("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "nowhere is not a run directory" in done.stderr
    assert (
        "unknown command run 'chekc': expected one of check" in done.stderr
        or "did you mean check" in done.stderr
    )


def test_the_holder_is_named_and_a_file_left_behind_holds_nobody_up(run, check):
    with locks.locked(run / locks.NAME, "run"):
        code, out, _ = check()
        assert code == 0
        assert f"held by     process {os.getpid()} on " in out
        assert json.loads(check("--json")[1])["held_by"].startswith(f"process {os.getpid()} on ")
    (run / locks.NAME).write_text('{"pid": 1, "host": "gone", "since": "long ago"}')
    assert "held by" not in check()[1]


def test_returns_forks_and_what_was_set_aside_are_shown(run, check, capsys):
    assert main(["train", "run", "--checkpoint", "240", "--quiet"]) == 0
    assert (
        main(["train", "run", "--fork", "other", "--kimg", "0.336", "--ema-kimg", "2", "--quiet"])
        == 0
    )
    capsys.readouterr()
    code, out, _ = check()
    assert code == 0
    assert "set aside   000000320\n" in out
    assert ", at 0.24 kimg: return\n" in out
    assert main(["run", "check", "other"]) == 0
    out = capsys.readouterr().out
    assert (
        f": fork of {Path('run').resolve()}, checkpoint 000000320 "
        "(kimg was 0.32, now 0.336; ema_kimg was" in out
    )


@pytest.mark.parametrize(
    ("file", "text", "sentence"),
    [
        ("history.jsonl", "5\n", "history.jsonl is damaged: line 1 is no event"),
        ("history.jsonl", '{"event": "force", "changed": {"a": 1}}\n', "line 1 is no event"),
        (
            "checkpoints/best.json",
            '{"checkpoint": "000000320", "score": 1' + "0" * 400 + ', "metric": "x"}',
            "names no checkpoint",
        ),
        (
            "data.json",
            '{"size": 16, "channels": 1, "classes": null, "source_hash": 5}',
            "is of a wrong kind",
        ),
        (
            "data.json",
            '{"size": "ab", "channels": 1, "classes": [], "source_hash": "x"}',
            "is of a wrong kind",
        ),
    ],
)
def test_small_files_that_are_no_longer_what_they_were(file, text, sentence, run, check):
    (run / file).write_text(text)
    code, out, err = check()
    assert code == (2 if file == "data.json" else 1)
    assert sentence in out + err


def test_a_fork_line_that_lost_a_word_is_still_told(run, check):
    (run / "history.jsonl").write_text(
        '{"event": "fork", "of": "x", "bheckpoint": "y", "images": 5}\n'
    )
    assert "of x, checkpoint None" in check()[1]


def test_a_log_that_is_a_directory_is_a_problem_beside_others(run, check):
    (run / "log.jsonl").unlink()
    (run / "log.jsonl").mkdir()
    code, out, _ = check()
    assert (code, "log.jsonl cannot be read" in out, "resume " in out) == (1, True, True)
