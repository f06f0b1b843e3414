"""Conditional runs: resumed to the bit, applied, shown and scored on held-out pictures."""

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ganfast.cli import main
from ganfast.config import LossConfig, TaskConfig
from ganfast.data import heldout
from ganfast.data.heldout import held_out_pictures
from ganfast.data.pack import open_data
from ganfast.data.resident import held_out
from ganfast.errors import InputError
from ganfast.evaluate.classifier import train_classifier
from ganfast.evaluate.extractor import Features
from ganfast.evaluate.paired import PairedEvaluation, paired_table
from ganfast.evaluate.pairs import Pairs
from ganfast.presets import preset_config
from ganfast.runs.run import Run
from ganfast.runs.source import of_run
from ganfast.runs.train import train
from ganfast.training.plan import make_plan
from tests.small_runs import assert_same_run, few_digits, files, newest, tensors, tiny

CPU = torch.device("cpu")


def conditional(preset: str, data: str, out, **changes):
    """160 pictures by the distance alone, then 160 with the critic; 30 of 150 digits held out."""
    config = preset_config(preset, "digits")
    loss = replace(config.loss, pixel_only_kimg=0.16)
    task = replace(config.task, holdout=0.2, hole="boxes")
    optim = replace(config.optim, decay_from=1.0)  # a longer run begins like a shorter one
    made = tiny(preset, data, out, loss=loss, task=task, optim=optim, **changes)
    return replace(made, log=replace(made.log, keep=0))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return few_digits(tmp_path_factory.mktemp("digits") / "few.npz")


@pytest.fixture(scope="module", params=["superres", "inpaint"])
def run(request, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / request.param
    return train(conditional(request.param, data, out), quiet=True)


def test_a_resumed_run_is_the_same_to_the_bit(run, data, tmp_path):
    """Stopped within the first part, and within the second."""
    kind = run.config.task.kind
    for kimg in (0.08, 0.24, 0.32):
        config = conditional(kind, data, tmp_path / "stopped", kimg=kimg)
        stopped = train(config, quiet=True)
    assert_same_run(run.folder, stopped.folder)


def test_the_critic_rests_in_the_first_part(run):
    start, first, last = (
        tensors(run.checkpoint_folder / name, "critic")
        for name in ("000000080", "000000160", "000000320")
    )
    assert all(torch.equal(start[name], first[name]) for name in start)
    assert not all(torch.equal(last[name], first[name]) for name in start)


def test_held_out_pictures_are_never_trained_on(data, tmp_path):
    plan = make_plan(conditional("superres", data, tmp_path / "run"))
    _, held = held_out_pictures(plan.config, plan.pack)
    shown = plan.data.positions(torch.arange(240)).unique().numpy()
    assert len(held) == 30
    assert sorted([*held, *shown]) == list(range(150))


def test_one_picture_at_least_is_held_out_and_a_test_split_that_comes_later_changes_nothing(
    data, tmp_path, monkeypatch
):
    assert len(held_out(20, 0.02, 0)) == 1
    config = conditional("superres", data, tmp_path / "run")
    for test, holdout in ((False, 0.2), (True, 0.0)):
        monkeypatch.setattr(heldout, "has_test", lambda _, test=test: test)
        plan = make_plan(config)
        assert plan.config.task.holdout == holdout
        assert plan.data.count == 150 * (1 - holdout)
        if not test:
            _, held = held_out_pictures(plan.config, plan.pack)
    monkeypatch.setattr(heldout, "has_test", lambda _: True)
    recorded = replace(config, task=replace(config.task, holdout=0.2))
    np.testing.assert_array_equal(held_out_pictures(recorded, plan.pack)[1], held)


def test_a_picture_depends_on_its_condition_and_latent_alone(run):
    shape = run.spec().given
    condition = np.random.default_rng(0).integers(0, 256, (40, *shape), dtype=np.uint8)
    condition[..., 1:] = np.where(condition[..., 1:] > 127, 255, 0)
    drawn = run.apply(condition, seed=3, first=5)
    assert drawn.shape == (40, 16, 16, 1)
    assert np.array_equal(run.apply(condition[7:9], seed=3, first=12), drawn[7:9])
    if shape[2] == 2:
        known = condition[..., 1:] == 255
        assert np.array_equal(drawn[known], condition[..., :1][known])
    for wrong, said in (
        (condition[:, :-1], "expected uint8"),
        (condition.astype(np.float32), "the condition is float32"),
        ([[1]], "the condition is list"),
    ):
        with pytest.raises(InputError, match=said):
            run.apply(wrong)
    if shape[2] == 2:
        with pytest.raises(InputError, match="the mask holds 7; expected 255 = known"):
            run.apply(np.full_like(condition, 7))


def test_sample_and_judge_refuse_and_name_what_to_do(run, capsys):
    assert main(["sample", str(run.folder)]) == 2
    assert "`apply`" in capsys.readouterr().err
    with pytest.raises(InputError, match="beside what it was made from"):
        run.critic()


class Means:
    """An extractor of four numbers a picture, which are its logits."""

    name, sha256, dim, device = "means", "0" * 64, 4, CPU
    judges_labels, preprocessing = False, "none"

    def __call__(self, pictures):
        flat = torch.from_numpy(pictures).float().flatten(1)
        means = torch.stack([p.mean(1) for p in flat.chunk(4, 1)], 1)
        return Features(means, means)


def test_scores_stand_beside_a_baseline_and_a_floor(run, data):
    plan = make_plan(run.config)
    pairs = Pairs.of(plan.task, plan.config, plan.pack, CPU, 1000)
    evaluation = PairedEvaluation(pairs, Means())
    scored = evaluation.run(of_run(run, "", 0, 1.0, "cpu"))
    again = evaluation.run(of_run(run, "", 0, 1.0, "cpu"))
    baseline, floor = evaluation.baseline(), evaluation.floor()
    assert scored == again
    assert floor.scores["psnr"] == pytest.approx(60)
    assert scored.scores["diversity"] > 0
    assert evaluation.run(of_run(run, "", 0, 0.0, "cpu")).scores["diversity"] == 0
    own = {"superres": "consistency", "inpaint": "hole_psnr"}[run.config.task.kind]
    assert baseline.scores[own] < floor.scores[own]
    # A condition never changes, so that another order of the same pictures scores the same.
    order = np.arange(len(pairs))[::-1]
    pairs.positions = pairs.positions[order]
    assert evaluation.baseline().scores == pytest.approx(baseline.scores)
    text = paired_table([baseline, scored, floor])
    assert f"{len(pairs)} held-out" in text
    assert str(plan.task) in text


def test_what_a_score_depends_on_is_in_the_table_and_its_id(run):
    plan = make_plan(run.config)
    for holdout, kind in ((0.2, "held-out"), (0.0, "trained-on")):
        config = replace(plan.config, task=replace(plan.config.task, holdout=holdout))
        pairs = Pairs.of(plan.task, config, plan.pack, CPU, 30)
        evaluation = PairedEvaluation(pairs, Means())
        averaged, trained = (evaluation.run(of_run(run, "", 0, 1, "cpu", ema)) for ema in (1, 0))
        assert f" 30 {kind}," in averaged.protocol_id
        assert f"floor: the {kind} pictures" in paired_table([averaged])
        assert averaged.protocol_id != trained.protocol_id
        assert "label_accuracy" not in averaged.scores
    floor = evaluation.floor()
    evaluation.extractor.judges_labels, evaluation.extractor.preprocessing = True, "size=8"
    assert evaluation.floor().protocol_id != floor.protocol_id
    assert "label_accuracy" in evaluation.floor().scores


def test_eval_asks_the_pictures_of_the_run_where_they_lie_now(
    run, data, tmp_path, monkeypatch, capsys
):
    moved, same, more = (tmp_path / name for name in ("run", "same", "more"))
    shutil.copytree(run.folder, moved)
    config = (moved / "config.yaml").read_text()
    (moved / "config.yaml").write_text(config.replace(data, str(tmp_path / "gone" / "few.npz")))
    same.mkdir()
    shutil.copy(data, same / "few.npz")
    more.mkdir()
    with np.load(data) as file:
        np.savez(more / "few.npz", **{k: np.concatenate([v, v[:1]]) for k, v in file.items()})
    learned = []

    def extractor(*arguments):
        learned.append(arguments[-1])
        return Means()

    monkeypatch.setattr("ganfast.evaluate.extractors.find_extractor", extractor)
    flags = "--need-labels --size 16 --transpose"
    for line, said in (
        (f"{moved} --data-root {same}", "30 held-out pictures are too few.*--task.holdout"),
        (f"{moved} --data-root {same} -n 20", "-n is 20, and scores need 100"),
        (f"{moved} --data-root {more}", "was trained on other pictures than few.npz has now"),
        (f"{moved} {flags}", f"leave {', '.join(flags.replace(' 16', '').split())} out"),
        (f"{same} {moved}", f"{same} is no run of the task"),
    ):
        assert main(["eval", *line.split()]) == 2
        assert re.search(said, capsys.readouterr().err)
    assert not learned
    monkeypatch.setattr("ganfast.evaluate.paired.LEAST", 30)
    assert main(["eval", str(moved), "--data-root", str(same), "--no-ema"]) == 0
    assert "30 held-out" in capsys.readouterr().out
    _, held = held_out_pictures(run.config, open_data(data))
    assert sorted([*held, *learned[0]]) == list(range(150))


def test_a_classifier_learns_from_the_pictures_at_its_positions_alone(data):
    pack = open_data(data)
    rows = np.arange(0, 150, 2)
    blank = np.array(pack.images)
    blank[1::2] = 0
    one, other = (
        train_classifier(p, 0, 1, CPU, None, rows) for p in (pack, replace(pack, images=blank))
    )
    assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


def test_grids_show_held_out_pictures_and_a_resumed_run_the_same(run):
    with Image.open(run.folder / "samples" / f"{newest(run.folder).name}.png") as sheet:
        assert sheet.size == (3 * (8 * 18 + 2), 3 * (8 * 18 + 2))


def test_other_runs_go_on_without_the_fields(data, tmp_path):
    """A run of before the fields were there: its config and its checkpoints lack them."""
    train(tiny("dcgan", data, tmp_path / "old"), quiet=True)
    config = (tmp_path / "old/config.yaml").read_text()
    assert "task:\n" in config
    lines = config.splitlines()
    start = lines.index("task:")
    end = next(i for i in range(start + 1, len(lines)) if not lines[i].startswith(" "))
    kept = [x for x in lines[:start] + lines[end:] if "pixel" not in x]
    (tmp_path / "old/config.yaml").write_text("\n".join(kept) + "\n")
    assert Run.open(tmp_path / "old").config.task == TaskConfig()
    assert Run.open(tmp_path / "old").config.loss == LossConfig("non-saturating")
    before = files(newest(tmp_path / "old"))
    train(tiny("dcgan", data, tmp_path / "old"), quiet=True)
    assert files(newest(tmp_path / "old")) == before
