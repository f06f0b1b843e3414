"""Recipes and their records.

Every table of docs/results/quality.md is made from the records, and every recipe can be read.
"""

import json
import re
import sys
from pathlib import Path

import pytest

from ganfast import configfile
from ganfast.presets import PRESETS, preset_config

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
quality = pytest.importorskip("quality")

MARKED = r"<!-- quality:(\S+) -->\n(.*?)\n<!-- end -->"
TABLES = re.findall(MARKED, quality.PAGE.read_text(), re.DOTALL)


@pytest.mark.parametrize(("data", "shown"), TABLES, ids=[data for data, _ in TABLES])
def test_tables_of_the_page_are_those_of_the_records(data, shown):
    assert shown == quality.table(data)


def test_no_set_with_records_is_left_out_of_the_page():
    recorded = {json.loads(path.read_text())["data"] for path in quality.RESULTS.glob("*.json")}
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


@pytest.mark.parametrize("data", ["mnist", "stacked-mnist", "celeba-64"])
def test_every_preset_has_a_recipe_that_can_be_read(data):
    found = {path.stem: path for path in (quality.HERE / "recipes" / data).glob("*.yaml")}
    assert set(found) == set(PRESETS)
    for preset, path in found.items():
        mapping = configfile.read_mapping(path)
        assert mapping.pop("preset") == preset
        config = configfile.overlay(preset_config(preset, mapping["data"]), mapping, str(path))
        assert (config.net.width, config.log.keep) == (32, 0)
