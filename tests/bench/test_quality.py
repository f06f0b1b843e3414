"""Recipes and their records.

Every table of docs/results/quality.md is made from the records, and every recipe can be read.
"""

import json
import re
import sys
from pathlib import Path

import pytest

from ganfast import configfile
from ganfast.config import Config
from ganfast.errors import InputError
from ganfast.presets import PRESETS, WINNERS, budget_config, preset_config

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
quality = pytest.importorskip("quality")

MARKED = r"<!-- quality:(\S+) -->\n(.*?)\n<!-- end -->"
TABLES = re.findall(MARKED, quality.PAGE.read_text(), re.DOTALL)


@pytest.mark.parametrize(("data", "shown"), TABLES, ids=[data for data, _ in TABLES])
def test_tables_of_the_page_are_those_of_the_records(data, shown):
    assert shown == quality.table(data)


def test_no_set_with_records_is_left_out_of_the_page():
    recorded = {
        path.stem.removeprefix("quality-") for path in quality.RESULTS.glob("quality-*.jsonl")
    }
    recorded.remove("celeba-64-long")  # a training of its own, beside the table
    assert recorded == {data for data, _ in TABLES}


def test_a_table_is_written_between_its_marks_only(tmp_path):
    page = tmp_path / "quality.md"
    page.write_text("before\n<!-- quality:mnist -->\nold\n<!-- end -->\nafter\n<!-- end -->\n")
    quality.write("mnist", page)
    text = page.read_text()
    assert text.startswith("before\n<!-- quality:mnist -->\n| preset |")
    assert text.endswith("|\n<!-- end -->\nafter\n<!-- end -->\n")
    with pytest.raises(SystemExit, match="has no line <!-- quality:celeba-64 -->"):
        quality.write("celeba-64", page)


def test_every_set_has_a_recipe_of_every_preset_that_can_be_read():
    for data, known in quality.KIMG.items():
        assert set(known) <= set(PRESETS)  # a preset is one file: its recipe may follow
        for preset in known:
            mapping = quality.recipe(data, preset)
            base = preset_config(mapping.pop("preset"), mapping["data"])
            config = configfile.overlay(base, mapping, "the recipe")
            assert (config.preset, config.net.width, config.log.keep) == (preset, 32, 0)
    with pytest.raises(InputError, match="mnist has no recipe of nope"):
        quality.recipe("mnist", "nope")


@pytest.mark.parametrize("data", quality.KIMG)
def test_recorded_runs_were_trained_by_the_recipes(data):
    """The table of recipes may not drift from what the figures were measured with."""
    for record in quality.read(data):
        mapping = quality.recipe(data, record["preset"])
        base = preset_config(mapping.pop("preset"), mapping["data"])
        config = configfile.overlay(base, mapping, "the recipe")
        names = ("kimg", "batch", "net", "loss", "penalty", "ema_kimg")
        recorded = {name: record["config"][name] for name in names}
        # A field that is younger than the record had its default.
        wrong = configfile.differences(configfile.overlay(Config(), recorded, "a record"), config)
        wrong = {name: both for name, both in wrong.items() if name.split(".")[0] in names}
        assert not wrong, (record["preset"], record["seed"])


@pytest.mark.parametrize("row", WINNERS, ids=lambda row: f"{row.data} {row.minutes:g}")
def test_what_minutes_choose_from_is_what_the_records_say(row):
    lines = (quality.RESULTS / row.record).read_text().splitlines()
    best = min(map(json.loads, lines), key=lambda record: record["last"]["scores"]["frechet"])
    assert best["preset"] == row.preset
    assert best["cpu_seconds"] / 60 == pytest.approx(row.minutes, rel=0.05)
    channels = 1 if row.data == "mnist" else 3
    config = budget_config("", row.data, channels, row.minutes)
    names = ("batch", "net", "loss", "penalty", "optim", "ema_kimg")
    recorded = {name: best["config"][name] for name in names}
    trained = configfile.overlay(config, recorded, "a record")
    # The width is planned.
    assert set(configfile.differences(config, trained)) == {"net.width"}
