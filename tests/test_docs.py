"""README and docs/: their code runs, what they name exists, and their sentences are short.

A fenced block of `sh` or `python` is run as it stands, in one folder for all pages, README first.
A comment above it may say more:

    <!-- not run: why -->     its commands are parsed, and nothing is run
    <!-- accept: why -->      run by `make accept` only
    <!-- session: name -->    run by a test of its own below
    <!-- file: name.py -->    written to that file

Trainings are cut to ten steps, except under `make accept`.
"""

import contextlib
import io
import pkgutil
import re
import shlex
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ganfast.cli import main
from ganfast.commands.parsing import Parser
from ganfast.presets import PRESETS

ROOT = next(path for path in Path(__file__).parents if (path / "pyproject.toml").exists())
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if "_build" not in page.parts]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
MARKS = ("not run", "accept", "session", "file")
SESSIONS = ("penalty", "recipe")
CODE = ("sh", "python")
MARK = r"<!-- ([\w ]+)(?:: (.*))? -->\n"
FENCE = re.compile(rf"^(?:{MARK})?```(\S*).*\n((?:.*\n)*?)```$", re.MULTILINE)
SHORT = "0.32"  # kimg: ten steps of 32 pictures
WORDS_OF_A_SENTENCE, WORDS_OF_README = 35, 1600

every_page = pytest.mark.parametrize("page", PAGES, ids=NAMES)


@dataclass(frozen=True)
class Block:
    place: str
    language: str
    text: str
    mark: str  # "" = run it
    why: str


def blocks_of(page: Path) -> list[Block]:
    blocks, text = [], page.read_text()
    for match in FENCE.finditer(text):
        mark, why, language, body = match.groups(default="")
        line = text.count("\n", 0, match.start()) + 1
        blocks.append(Block(f"{page.relative_to(ROOT)}:{line}", language, body, mark, why))
    return blocks


def commands_of(block: Block) -> list[list[str]]:
    lines = [shlex.split(line, comments=True) for line in block.text.splitlines()]
    return [line for line in lines if line]


BLOCKS = [block for page in PAGES for block in blocks_of(page) if block.language in CODE]


@every_page
def test_every_block_is_run_or_says_why_not(page):
    assert page.read_text().count("\n```") % 2 == 0
    for block in blocks_of(page):
        assert block.language in (*CODE, "text") or block.language.startswith("{"), block.place
        assert block.mark in ("", *MARKS), block
        assert bool(block.mark) == bool(block.why), f"{block.place}: say why, or name it"
        assert block.mark != "session" or block.why in SESSIONS, block


@every_page
def test_no_code_stands_outside_of_fences(page):
    for line in outside_of_fences(page).splitlines():
        assert not re.match(r" {4,}(ganfast|python|make|import|from) ", line), line


def test_the_mark_of_a_block_is_seen():
    """The tests above would pass on pages whose marks nobody reads."""
    assert {block.mark for block in BLOCKS} == {"", *MARKS}
    assert len(BLOCKS) > 50


class Parsed(BaseException):
    """A command line was understood. No command takes a BaseException for an error of its own."""


@pytest.fixture
def only_parse(tmp_path, monkeypatch):
    """The real parsers, and nothing behind them."""
    import tyro

    understood, parse, overlay = Parsed(), Parser.parse_args, tyro.cli

    def stop_after(real):
        def parsed(*args, **kwargs):
            real(*args, **kwargs)
            raise understood

        return parsed

    monkeypatch.chdir(tmp_path)
    Path("runs/digits").mkdir(parents=True)
    Path("runs/digits/config.yaml").write_text("preset: wgan-gp\ndata: digits\n")
    Path("photos").mkdir()  # --minutes looks at the pictures before it parses
    Image.new("RGB", (64, 64)).save("photos/one.png")
    monkeypatch.setattr(Parser, "parse_args", stop_after(parse))
    monkeypatch.setattr(tyro, "cli", stop_after(overlay))


def test_every_command_line_is_understood(only_parse, capsys):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for block in (block for block in BLOCKS if block.language == "sh"):
        for words in commands_of(block):
            if "=" in words[0]:  # a variable of the environment
                del words[0]
            match words:
                case ["ganfast", *rest]:
                    assert_understood(rest, f"{block.place}: {shlex.join(words)}", capsys)
                case ["make", target, *_]:
                    assert target in targets, block.place
                case ["pip", "install", *what]:
                    named = [name for word in what for name in re.findall(r"\[(.*)\]", word)]
                    assert set(named) <= set(extras), block.place
                case ["python", "-m", module, *_]:
                    path = ROOT / module.replace(".", "/")
                    candidates = path.with_suffix(".py"), path / "__main__.py"
                    assert any(candidate.exists() for candidate in candidates), block.place
                case ["python", script, *_]:
                    assert (ROOT / script).exists(), block.place
                case _:
                    pytest.fail(f"{block.place}: {words[0]} is no command that these pages use")


def assert_understood(words, place, capsys):
    try:
        code = main(words)
    except Parsed:
        return
    said = capsys.readouterr()
    assert code == 0, f"{place}\n{said.err}"
    assert words[-1] == "--help", f"{place}: was not parsed"


def test_a_command_line_with_a_mistake_is_not_understood(only_parse, capsys):
    wrong = "train --kimg many", "sample", "exprot a", "bench train --round 3", "train --wait 1"
    for line in wrong:
        with pytest.raises(AssertionError, match="ganfast"):
            assert_understood(shlex.split(line), line, capsys)


class Workplace:
    """The folder in which pages are run."""

    short = True  # trainings are cut

    def run(self, page: Path, marks: tuple[str, ...] = ("", "file")) -> None:
        names: dict[str, object] = {}
        for block in blocks_of(page):
            if block.mark not in marks or block.language not in CODE:
                continue
            if block.mark == "file":
                Path(block.why).write_text(block.text)
            elif block.language == "python":
                self.python(block, names)
            else:
                for words in commands_of(block):
                    self.command(words, block.place)

    def python(self, block: Block, names: dict[str, object]) -> None:
        text = re.sub(r"kimg=\d+", f"kimg={SHORT}", block.text) if self.short else block.text
        exec(compile(text, block.place, "exec"), names)

    def command(self, words: list[str], place: str) -> None:
        assert words[0] == "ganfast", f"{place}: {words[0]} is not run; mark the block"
        if words[1] == "train" and self.short:
            words = [*words, "--kimg", SHORT]
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(words[1:])
        assert code == 0, f"{place}: {shlex.join(words)}\n{out.getvalue()}{err.getvalue()}"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, request):
    """README has been run here: there are runs/digits and digits.bundle."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("pages"))
        patch.setenv("MPLBACKEND", "Agg")
        patch.setattr(sys, "path", list(sys.path))
        place = Workplace()
        place.run(PAGES[0])
        yield place
        sys.modules.pop("mynets", None)


def to_run(page: Path) -> bool:
    return any(b.mark == "" and b.language in CODE for b in blocks_of(page))


RUN = [page for page in PAGES[1:] if to_run(page)]


@pytest.mark.parametrize("page", RUN, ids=[str(page.relative_to(ROOT)) for page in RUN])
def test_what_a_page_shows_runs(workplace, page):
    workplace.run(page)


@pytest.mark.accept
def test_readme_and_tutorial_run_uncut_and_the_slow_blocks_of_all_pages(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place, tutorial = Workplace(), ROOT / "docs" / "start" / "tutorial.md"
    place.short = False
    for page in (PAGES[0], tutorial):
        place.run(page, ("", "file", "accept"))
    place.short = True
    for page in PAGES[1:]:
        if page != tutorial:
            place.run(page, ("accept",))


def session(name: str) -> list[str]:
    found = [block.text for block in BLOCKS if (block.mark, block.why) == ("session", name)]
    assert found
    return found


def test_the_two_lines_give_the_gradients_of_the_plain_script():
    plain, two_lines = session("penalty")
    torch.manual_seed(0)
    batch = [torch.rand(7, 1, 28, 28) * 2 - 1 for _ in range(2)]
    script: dict = {"batches": []}
    exec(plain, script)
    gradients = []
    for lines in ("", two_lines):
        exec(lines, script)
        script["optimizer"].zero_grad()
        torch.manual_seed(1)  # the same interpolates
        script["critic_step"](*batch)
        gradients.append([p.grad.clone() for p in script["critic"].parameters()])
    assert type(script["critic_step"]).__name__ == "CriticStep"
    assert script["critic_step"].choice.engine == "explicit"
    scale = max(g.abs().max() for g in gradients[0])
    for expected, actual in zip(*gradients, strict=True):
        assert (expected - actual).abs().max() <= 2e-5 * scale
    before = [p.clone() for p in script["critic"].parameters()]
    script["optimizer"].step()  # the gradients are where the optimizer of the script looks
    moved = zip(before[:-1], script["critic"].parameters(), strict=False)
    assert not any(torch.equal(a, b) for a, b in moved)


def test_readme_shows_the_same_two_lines():
    (shown,) = [b.text for b in blocks_of(PAGES[0]) if "make_critic_step" in b.text]
    assert shown == session("penalty")[1]


def test_the_recipe_without_ganfast_draws_what_the_sampler_draws(workplace):
    from ganfast.export import load_sampler
    from ganfast.latents import latents, random_classes

    (recipe,) = session("recipe")
    assert "ganfast" not in recipe.replace("as sampler.sample", "")
    names: dict = {}
    exec(recipe, names)
    with load_sampler("digits.bundle", device="cpu") as sampler:
        np.testing.assert_array_equal(names["images"], sampler.sample(64, seed=7, psi=0.7))
    for dim in (1, 2, 7, 16):
        for seed in (0, 7, 2**64 - 1):
            index = np.array([0, 1, 5, 2**63 - 1])
            own = np.stack([names["latent"](seed, int(i), dim) for i in index])
            np.testing.assert_array_equal(own, latents(seed, index, dim))
            classes = [names["random_class"](seed, int(i), 10) for i in index]
            assert classes == random_classes(seed, index, 10).tolist()


def outside_of_fences(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def sentences_of(page: Path) -> list[str]:
    """Without code, tables, formulas and comments; a list item begins a sentence."""
    text = re.sub(r"<!--.*?-->|\$\$.*?\$\$", "", outside_of_fences(page), flags=re.DOTALL)
    text = re.sub(r"^(\||!\[|#).*$", "", text, flags=re.MULTILINE)  # rows, pictures, headings
    text = re.sub(r"\$[^$\n]+\$|`[^`\n]+`", "code", text)  # one word
    text = re.sub(r"\]\([^)]*\)", "]", text)
    paragraphs = re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", text)
    sentences = [s for p in paragraphs for s in re.split(r"(?<=[.!?])\s+", p)]
    return [" ".join(sentence.split()) for sentence in sentences if sentence.strip()]


@every_page
def test_sentences_are_short(page):
    long = [s for s in sentences_of(page) if len(s.split()) > WORDS_OF_A_SENTENCE]
    assert not long, "\n".join(long)


def test_a_long_sentence_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("- " + "word " * 20 + "\n- " + "word " * 36 + "\n\n`" + "word " * 40 + "`\n")
    assert [len(s.split()) for s in sentences_of(page)] == [21, 37, 1]


def test_readme_is_one_page():
    text = PAGES[0].read_text()
    assert len(text.split()) < WORDS_OF_README
    first_screen = "\n".join(text.splitlines()[:15])
    assert "GPU" in first_screen
    assert "never-ran.md" in first_screen


@every_page
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith(("http:", "https:", "#")):
            path, _, anchor = target.partition("#")
            there = (page.parent / path).resolve()
            assert there.is_relative_to(ROOT), target
            assert there.exists(), target
            assert not anchor or anchor in anchors_of(there), target


def anchors_of(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in heads}


@every_page
def test_files_that_are_named_exist(page):
    folders = "ganfast|kernels|export|benchmarks|tests|docs"
    for name in re.findall(rf"`((?:{folders})/[\w/.*-]+)`", outside_of_fences(page)):
        if name not in ("docs/_build",):
            assert list(ROOT.glob(name.rstrip("/"))), name


@every_page
def test_included_code_is_found(page):
    for block in blocks_of(page):
        if block.language != "{literalinclude}":
            continue
        source = (page.parent / include_of(page, block)).resolve().read_text()
        options = dict(re.findall(r"^:([\w-]+): ?(.*)$", block.text, re.MULTILINE))
        symbol = options.pop("pyobject", "").split(".")[-1]
        assert re.search(rf"^ *(def|class) {symbol}", source, re.MULTILINE), block.place
        options.pop("dedent", "")
        for text in options.values():
            assert source.count(text) == 1, f"{block.place}: {text!r}"


def include_of(page: Path, block: Block) -> str:
    line = page.read_text().splitlines()[int(block.place.rpartition(":")[2]) - 1]
    return line.split()[-1]


def test_every_field_of_the_config_is_explained(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_ext"))
    import generated

    text = generated.config()
    assert "| `--penalty.weight` | `10.0` | float or schedule | lambda of wgan-gp" in text
    rows = [line for line in text.splitlines() if line.startswith("| `--")]
    from ganfast.config import Config
    from ganfast.fields import flatten

    assert len(rows) == len(flatten(Config()))
    assert all(len(row.rstrip(" |").rpartition(" | ")[2]) > 5 for row in rows), rows


def test_names_of_the_api_page_can_be_imported():
    text = (ROOT / "docs" / "reference" / "api.md").read_text()
    entries = re.findall(r"^\.\. auto\w+:: ([\w.]+)(?:\n   :members: (.*))?$", text, re.MULTILINE)
    assert len(entries) > 20
    for name, members in entries:
        found = pkgutil.resolve_name(name)
        for member in filter(None, members.split(", ")):
            assert hasattr(found, member), f"{name}.{member}"


def test_reference_pages_name_what_generates_them(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_ext"))
    import generated

    text = "\n".join(page.read_text() for page in PAGES)
    names = re.findall(r"<!-- generated: (\w+) -->", text)
    assert sorted(names) == ["commands", "config", "presets"]
    assert all(callable(getattr(generated, name)) for name in names)
    assert generated.presets().count("\n- on `digits`: `") == len(PRESETS)
