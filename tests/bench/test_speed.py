"""The run to a fixed quality stops at its goal, and its clock stands still at scoring."""

import sys
import time
from pathlib import Path

import pytest

from tests.runs.test_training import tiny

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
speed = pytest.importorskip("speed")


def scripted(answers: list[float], seconds: float):
    """A judge that takes its time and says what it is told."""

    def judge(plan):
        time.sleep(seconds)
        return {"frechet": answers.pop(0)}

    return judge


GOAL = speed.Goal("dcgan", 100, lambda scores: scores["frechet"] <= 1, "Frechet distance at most 1")


@pytest.mark.accept
def test_it_stops_where_the_goal_is_reached_and_scoring_does_not_count():
    result = speed.run(tiny("dcgan"), GOAL, scripted([3, 2, 1, 0], 2.0), looks=4, limit=600)
    assert (result["reached"], result["images"]) == (
        True,
        240,
    )  # the third of four looks at 320 images
    assert [line["frechet"] for line in result["history"]] == [3, 2, 1]
    assert result["scoring_seconds"] >= 6
    assert result["seconds"] == result["history"][-1]["seconds"] <= result["trained_seconds"]
    steps = [line["seconds"] for line in result["history"]]
    assert steps == sorted(steps)


def test_a_goal_that_is_not_reached_is_said_to_be_so():
    result = speed.run(tiny("dcgan"), GOAL, scripted([3, 3], 0.0), looks=2, limit=600)
    assert (result["reached"], result["seconds"], len(result["history"])) == (False, None, 2)
    assert (
        len(speed.run(tiny("dcgan"), GOAL, scripted([3, 3], 0.2), looks=2, limit=0.1)["history"])
        <= 1
    )


def test_goals_are_what_the_readme_says():
    stacked = speed.GOALS["stacked-mnist"].reached
    assert stacked({"modes": 1000, "kl_data": 0.1})
    assert not stacked({"modes": 999, "kl_data": 0.05})
    assert not stacked({"modes": 1000, "kl_data": 0.11})


def test_scores_of_a_short_training_on_mnist(real_data, monkeypatch, capsys):
    monkeypatch.setenv("GANFAST_DATA", str(real_data))
    flags = "--kimg 0.2 --count 150 --reals 300 --width 8 --looks 1 --device cpu --no-record"
    assert speed.main(["mnist", *flags.split()]) == 1
    shown = capsys.readouterr().out
    assert "frechet" in shown
    assert "mnist dcgan: Frechet distance at most 0.2: not reached" in shown
