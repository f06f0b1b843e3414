"""The command line: every answer is a result or one sentence, and the exit code says which."""

import errno
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from ganfast import Config, __version__, configfile, preset_config
from ganfast.cli import HELP, main
from ganfast.errors import RunError
from ganfast.presets import PRESETS
from tests.programs import python


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path, monkeypatch):
    """A folder of its own for every test: what a command drops where it stands is seen."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(capsys):
    """Run a command line: (exit code, standard output, standard error)."""

    def run(line: str) -> tuple[int, str, str]:
        code = main(shlex.split(line))
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def refused(run):
    """Run a refused command line: exit code 2, one sentence, empty standard output, no files."""

    def refused(line: str) -> str:
        before = sorted(Path().rglob("*"))
        code, out, err = run(line)
        assert (code, out) == (2, ""), err
        assert re.fullmatch(r"ganfast: [^\n]+\n", err), err
        assert "Traceback" not in err
        assert sorted(Path().rglob("*")) == before
        return err

    return refused


def dry(out: str) -> tuple[Config, dict[str, float]]:
    """The config and the figures of a --dry-run."""
    number = r"([\d.,]+)"
    found = re.search(
        rf"# generator +{number} parameters\n# critic +{number} parameters\n"
        rf"# work +{number} MFLOP per image, {number} TFLOP in all\n"
        rf"# memory +about {number} MB: "
        rf"pictures {number}, weights and optimizers {number}, activations {number}",
        out,
    )
    assert found, out
    names = "generator, critic, per image, in all, memory, pictures, state, activations".split(", ")
    config = configfile.overlay(Config(), yaml.safe_load(out), "--dry-run")
    numbers = (float(text.replace(",", "")) for text in found.groups())
    return config, dict(zip(names, numbers, strict=True))


# Help


@pytest.mark.parametrize("line", ["", "--help", "-h", "help"])
def test_help_is_a_result(line, run):
    assert run(line) == (0, HELP, "")


def test_help_needs_no_torch_and_no_second():
    code = (
        "import sys; from ganfast.cli import main; main(['--help']); "
        "sys.exit('torch' in sys.modules)"
    )
    done = python("-X", "importtime", "-c", code, check=True)
    imports = [line.split("|") for line in done.stderr.splitlines() if line.count("|") == 2]
    assert sum(int(own.rsplit(":", 1)[1]) for own, _, _ in imports[1:]) < 1_000_000, (
        "microseconds spent importing"
    )
    assert done.stdout == HELP


@pytest.mark.parametrize(
    "line",
    (
        "train bogus | train --kimg x | train --config none.yaml | presets | "
        "presets show wgan | data info digits"
    ).split(" | "),
)
def test_light_commands_and_refusals_load_no_torch(line):
    code = (
        f"import sys; from ganfast.cli import main; main({shlex.split(line)!r}); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def commands_in_help() -> list[str]:
    """Every command line of a help text without optional parts: "train", "data fetch mnist", ..."""
    from ganfast.commands.data import HELP as _DATA_HELP

    shown = re.findall(
        r"ganfast ((?:train|sample|presets|data|env)\b(?!:)[^\n,]*?)(?=  |,|\n|$)",
        HELP + _DATA_HELP,
    )
    shown = [
        line.replace("[PRESET]", "").replace("info|pack|preview|fetch", "info").strip()
        for line in shown
    ]
    return sorted({line if line.endswith("--help") else f"{line} --help" for line in shown})


@pytest.mark.parametrize("line", commands_in_help())
def test_every_command_that_help_shows_exists(line, run):
    code, out, err = run(line)
    assert (code, err) == (0, "")
    assert "--help" in out or "ganfast data" in out


def test_help_shows_every_command():
    lines = commands_in_help()
    assert {line.split()[0] for line in lines} == {"train", "sample", "presets", "data", "env"}
    expected = set("info pack preview fetch --help".split())
    assert {line.split()[1] for line in lines if line.startswith("data")} == expected


@pytest.mark.parametrize("preset", ["wgan-gp", "dcgan"])
@pytest.mark.parametrize("data", ["mnist", "celeba"])
def test_help_of_a_preset_shows_its_own_values_as_defaults(preset, data, run):
    code, out, _ = run(f"train {preset} --data {data} --help")
    assert code == 0
    text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", out).split())
    config = preset_config(preset, data)

    def default(flag: str) -> str:
        return re.search(rf" --{flag} .*?\(default: (.*?)\)", text).group(1)

    assert default("data") == data
    assert float(default("kimg")) == config.kimg
    assert float(default("optim.beta1")) == config.optim.beta1
    assert float(default("optim.lr-critic")) == config.optim.lr_critic
    assert int(default("optim.critic-steps")) == config.optim.critic_steps
    assert default("penalty.kind") == config.penalty.kind
    assert default("net.critic-norm") == config.net.critic_norm
    assert default("loss.kind") == config.loss.kind


def test_help_explains_every_flag(run):
    _, out, _ = run("train --help")
    text = re.sub(r"[│╭╮╰╯─]|-{3,}", " ", out)
    flags = re.findall(r"^\s+--([a-z][\w.-]*)", text, re.M)
    assert len(flags) > 40
    for flag in ("data", "out", "kimg", "batch", "size", "seed", "device", "precision"):
        assert flag in flags
    for part in re.split(r"\n\s+--", text)[1:]:
        assert len(part.split("(default")[0].split()) > 3, f"nothing said of --{part}"


def test_help_describes_every_group_by_its_own_docstring(run):
    """tyro would print the comment above a field for groups that follow without a blank line."""
    _, out, _ = run("train --help")
    for group in (f.type for f in fields(Config) if is_dataclass(f.type)):
        assert f" {group.__doc__.splitlines()[0]}" in out, group


def test_version(run):
    assert run("--version") == (0, f"{__version__}\n", "")


# Refusals: (command line, what must be in the sentence)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("trian", "unknown command 'trian': did you mean train?"),
        ("frobnicate", "unknown command 'frobnicate'.*train, sample, .*env"),
        ("--kimg 3", "unknown command '--kimg'.*ganfast --help"),
        ("train wgan-pg", "unknown preset 'wgan-pg': did you mean wgan-gp"),
        ("train --preset xyzzy", "unknown preset 'xyzzy': expected one of gan, dcgan, .*rpgan"),
        ("train runs/nowhere", "unknown preset 'runs/nowhere'"),
        ("train dcgan --preset wgan", "dcgan and --preset wgan: give one"),
        ("train wgan-gp extra", "extra.*ganfast train wgan-gp --help"),
        ("train --kmig 3", "--kmig.*did you mean --kimg"),
        ("train --optim.lr-critc 3", "--optim.lr-critc.*did you mean --optim.lr-critic"),
        ("train --kimg abc", "--kimg is 'abc'; expected a number"),
        ("train --batch 1.5", "--batch is '1.5'; expected a whole number"),
        ("train --precision fp8", "fp8.*--precision.*fp32.*bf16"),
        ("train --penalty.kind wgangp", "wgangp.*--penalty.kind.*wgan-gp"),
        ("train --kimg", "--kimg needs a value"),
        ("train --data", "--data: expected one argument.*--help"),
        ("train --config", "--config: expected one argument.*--help"),
        ("train --dry-run=yes", "--dry-run.*yes"),
        ("train --kimg -1", "kimg is -1.0; expected .* or 0 to choose"),
        ("train --kimg nan", "kimg is nan; expected a finite number"),
        ("train --seed -1", "seed is -1; expected 0 or more"),
        ("train --batch 0", "batch is 0; expected 2 or more"),
        ("train --size 4", "size is 4; expected 8 to 1024"),
        ("train --channels 2", "channels is 2; expected 1 .*3"),
        ("train --optim.beta1 1", "beta1 is 1.0; expected 0 or more and below 1"),
        ("train dcgan --penalty.kind r1", "critic_norm batch with penalty r1.*use critic_norm"),
        ("train --data nowhere", "no data named 'nowhere': looked for .*--data PATH.*--data-root"),
        ("train --data digit", "did you mean digits"),
        ("train --data ./not/there.zip", "not/there.zip does not exist"),
        ("train --device cuda:99", "device is 'cuda:99', but .*use cpu or auto"),
        ("train --device tpu", "device is 'tpu'; expected auto, cpu, cuda"),
        ("train --device meta", "device is 'meta'; ganfast runs on cpu and cuda"),
        (
            "train --cuda-graphs on --device cpu",
            "cuda_graphs is on, but the device is cpu; use auto or off",
        ),
        ("train --fork elsewhere", "runs/wgan-gp-digits is not a run directory"),
        ("train --checkpoint", "--checkpoint: expected one argument"),
        ("run chekc", "unknown command run 'chekc': did you mean check"),
        ("run check nowhere", "nowhere is not a run directory"),
        ("train --batch 5000", "batch is 5000, but digits has only 1797 .*--batch"),
        ("train --size 12", "size is 12; .*16 to 128"),
        ("train --attributes Smiling", "attributes Smiling .*digits is not CelebA"),
        ("train --model nowhere:Critic", "model nowhere:Critic: No module named 'nowhere'"),
        (
            "train --model mlpp",
            "model is 'mlpp'; expected dcgan, mlp, resnet, r3, or .*my.module:Critic",
        ),
        ("train --config nowhere.yaml", "config nowhere.yaml cannot be read: No such file"),
        ("sample", "required: run .*ganfast sample --help"),
        ("sample nowhere", "nowhere is not a run directory.*ganfast train"),
        ("sample nowhere -n many", "-n: invalid int value: 'many'"),
        ("sample nowhere --sede 3", "--sede"),
        ("presets show wgan-pg", "unknown preset 'wgan-pg': did you mean"),
        ("presets show", "required: preset"),
        ("presets wgan-gp", "wgan-gp.*ganfast presets --help"),
        ("data inof digits", "unknown command data 'inof': did you mean info"),
        ("data info", "required: data"),
        ("data info nowhere", "no data named 'nowhere'"),
        ("data pack digits --size 3", "size is 3: expected 8 to 1024"),
        ("data pack digits --channels 2", "channels is 2: expected 1"),
        ("data pack digits --split half", "unknown split 'half'.*train, test, val, all"),
        ("data preview digits -n 0", "count is 0"),
        ("data fetch imagenet", "'imagenet' cannot be downloaded: only mnist"),
        ("env --yaml", "--yaml.*ganfast env --help"),
    ],
)
def test_bad_input_is_one_sentence_with_the_value_and_the_way_out(line, said, refused):
    assert re.search(said, refused(line))


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("train --kimg", "--kimg needs a value"),
        ("train --kimg abc", "--kimg is 'abc'; expected a number"),
        ("train --kmig 3", "Unrecognized options: --kmig, 3; did you mean --kimg?"),
    ],
)
def test_a_sentence_is_the_same_wherever_the_output_goes(line, sentence, encoding):
    """tyro frames its messages with lines, or in ASCII where standard output has no lines."""
    command = [sys.executable, "-m", "ganfast", *line.split()]
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    said = f"ganfast: {sentence} (see ganfast train wgan-gp --help)\n"
    assert (done.returncode, done.stderr) == (2, said)


@pytest.mark.parametrize("line", ["train --config bad.yaml", "train --config bad.yaml --dry-run"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kmig: 3", "unknown field kmig in bad.yaml: did you mean kimg"),
        ("preset: wgan-pg", "unknown preset 'wgan-pg'"),
        ("kimg: lots", "kimg in bad.yaml is 'lots'; expected a number"),
        ("kimg: -3", "kimg is -3.0; expected .* or 0 to choose"),
        ("optim: 3\noptim.beta1: 0.5", "optim in bad.yaml is 3; expected a group of fields"),
        ("", "config bad.yaml holds nothing; expected fields and values"),
        ("!!python/object/apply:os.system ['touch hacked']", "config bad.yaml is not YAML"),
    ],
)
def test_a_bad_config_file_is_one_sentence_with_the_field_and_the_file(line, text, said, refused):
    """A few of those in tests/test_config.py, as the shell shows them."""
    Path("bad.yaml").write_text(text)
    assert re.search(said, refused(line))


def test_a_config_file_that_is_no_text_or_a_folder_is_bad_input(refused):
    Path("binary.yaml").write_bytes(b"\xff\xfe\x00kimg")
    assert "config binary.yaml is not YAML" in refused("train --config binary.yaml")
    Path("folder.yaml").mkdir()
    assert "config folder.yaml cannot be read" in refused("train --config folder.yaml")


def test_places_that_cannot_be_written_are_bad_input(refused):
    Path("file").write_text("mine")
    Path("full").mkdir()
    Path("full/thesis.txt").write_text("mine")
    for name in ("file", "full"):
        said = f"{name} exists and is not a run directory; choose another --out"
        assert said in refused(f"train --out {name}")
    assert "file/run cannot be written" in refused("train --out file/run")
    assert "file/sheet.png cannot be written" in refused("data preview digits --out file/sheet.png")


def test_what_goes_wrong_while_running_is_one_sentence_too_and_exit_code_1(run, monkeypatch):
    def fails(error):
        def fail(*_, **__):
            raise error

        return fail

    for error, said in (
        (RunError("the loss is\nnot a number; lower it"), "the loss is not a number; lower it"),
        (OSError(5, "Input/output error", "runs/x"), "runs/x: Input/output error"),
    ):
        monkeypatch.setattr("ganfast.runs.train.train", fails(error))
        assert run("train") == (1, "", f"ganfast: {said}\n")


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT], ids=errno.errorcode.get
)
def test_no_space_and_no_permission_are_bad_input_with_a_way_out(number, run, monkeypatch):
    def full(*_, **__):
        raise OSError(number, os.strerror(number), "there/sheet.png")

    monkeypatch.setattr("ganfast.environment.environment", full)
    said = f"ganfast: there/sheet.png: {os.strerror(number)}; mend that, or choose another place\n"
    assert run("env") == (2, "", said)


@pytest.mark.parametrize(
    ("module", "package", "line"),
    [
        ("tyro", "tyro", "train"),
        ("PIL", "Pillow", "data preview digits --out x.png"),
        ("yaml", "PyYAML", "presets show wgan-gp"),
    ],
)
def test_a_package_that_is_missing_is_one_sentence(module, package, line):
    code = (
        f"import sys; sys.modules[{module!r}] = None\n"  # as where it is not installed
        f"from ganfast.cli import main; sys.exit(main({line.split()!r}))"
    )
    done = python("-c", code)
    said = (
        f"ganfast: `ganfast {line.split()[0]}` needs {package}, which is not installed: "
        f"pip install {package}\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)


def test_another_module_that_is_missing_is_a_bug(monkeypatch):
    def missing(*_, **__):
        raise ModuleNotFoundError("No module named 'ganfast.nothing'", name="ganfast.nothing")

    monkeypatch.setattr("ganfast.runs.train.train", missing)
    with pytest.raises(ModuleNotFoundError):
        main(["train"])


def test_a_bug_is_not_dressed_up_as_bad_input(monkeypatch):
    monkeypatch.setattr("ganfast.runs.train.train", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["train"])


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_a_lack_of_memory_is_no_bug(error, run, monkeypatch):
    def grows():
        raise error

    monkeypatch.setattr("ganfast.environment.environment", grows)
    said = f"ganfast: env does not fit into memory: {str(error) or 'none is left'}\n"
    assert run("env") == (2, "", said)


def test_ctrl_c_outside_of_training_is_130(run, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("ganfast.environment.environment", interrupted)
    assert run("env") == (130, "", "")


def test_a_reader_that_leaves_early_is_no_error():
    command = (
        f"{shlex.quote(sys.executable)} -m ganfast presets | head -n 1; exit ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_module_gives_the_process_its_exit_code():
    done = python("-m", "ganfast", "train", "wgan-pg")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "ganfast: unknown preset 'wgan-pg': did you mean wgan-gp?\n"


# Where values come from


def resolved(run, line: str) -> Config:
    code, out, err = run(f"train {line} --dry-run")
    assert (code, err) == (0, "")
    return dry(out)[0]


def test_a_preset_yields_to_a_file_and_a_file_to_flags(run):
    Path("mine.yaml").write_text(
        "preset: dcgan\nkimg: 7\nseed: 11\noptim: {beta1: 0.25}\nnet.width: 8\n"
    )
    config = resolved(run, "--config mine.yaml --seed 12 --optim.beta2 0.5")
    dcgan = preset_config("dcgan")
    assert (config.preset, config.loss, config.net.critic_norm) == ("dcgan", dcgan.loss, "batch"), (
        "from the preset"
    )
    assert (config.kimg, config.optim.beta1, config.net.width) == (7, 0.25, 8), "from the file"
    assert (config.seed, config.optim.beta2) == (12, 0.5), "from flags"
    assert config.optim.lr_critic == dcgan.optim.lr_critic, (
        "a group named in the file keeps its other fields"
    )


def test_a_preset_on_the_command_line_wins_over_the_files(run):
    Path("mine.yaml").write_text("preset: dcgan\nkimg: 7\n")
    config = resolved(run, "r1 --config mine.yaml")
    assert (config.preset, config.penalty.kind, config.kimg) == ("r1", "r1", 7)


@pytest.mark.parametrize(
    "line",
    [
        "lsgan --kimg 2",
        "--kimg 2 --preset lsgan",
        "--preset=lsgan --kimg=2",
        "lsgan --preset lsgan --kimg 2",
    ],
)
def test_a_preset_may_be_given_as_a_word_or_a_flag(line, run):
    assert resolved(run, line) == resolved(run, "lsgan --kimg 2")
    assert resolved(run, line).loss.kind == "least-squares"


def test_a_file_with_the_words_yaml_takes_for_bools_means_the_words(run):
    Path("mine.yaml").write_text("conditional: no\nflip: off\n")
    assert resolved(run, "--config mine.yaml").flip == "off"
    Path("mine.yaml").write_text("flip: on\n")
    assert resolved(run, "--config mine.yaml").flip == "on"


def test_the_size_of_the_data_decides_the_length_unless_given(run):
    Path("mine.yaml").write_text("seed: 1\n")
    assert preset_config("wgan-gp", "mnist").kimg != preset_config("wgan-gp", "digits").kimg
    for line in ("wgan-gp --data mnist --help", "wgan-gp --config mine.yaml --data mnist --help"):
        _, out, _ = run(f"train {line}")
        assert f"(default: {preset_config('wgan-gp', 'mnist').kimg:g}" in " ".join(out.split())


def test_without_arguments_train_trains_wgan_gp_on_digits(run, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "ganfast.runs.train.train", lambda config, quiet, *_: asked.append((config, quiet))
    )
    assert run("train")[0] == run("train --quiet --out here")[0] == 0
    plain = preset_config("wgan-gp", "digits")
    assert asked == [(plain, False), (replace(plain, out="here"), True)]


def test_a_run_directory_is_its_own_config(run, monkeypatch):
    asked = []
    monkeypatch.setattr("ganfast.runs.train.train", lambda config, *_: asked.append(config))
    config = replace(preset_config("acgan"), seed=5, kimg=3.0, out="runs/mine")
    Path("runs/mine").mkdir(parents=True)
    configfile.write(config, Path("runs/mine/config.yaml"))
    lines = "--out runs/mine | runs/mine | --out=runs/mine | --config runs/mine/config.yaml"
    for line in lines.split(" | "):
        assert run(f"train {line}")[0] == 0
    Path("runs/mine").rename("runs/moved")
    assert run("train runs/moved --kimg 4")[0] == 0
    assert asked == [config] * 4 + [replace(config, out="runs/moved", kimg=4.0)]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_config_survives_yaml_to_the_bit(preset):
    changes = {"attributes": ("Smiling", "No_Beard"), "kimg": 1 / 3, "data": "no", "out": "1e3"}
    config = replace(preset_config(preset, "celeba"), seed=2**62, **changes)
    configfile.write(config, Path("config.yaml"))
    assert configfile.read(Path("config.yaml")) == config
    assert list(Path().iterdir()) == [Path("config.yaml")], "written beside, then renamed"


# --dry-run


def test_dry_run_writes_nothing_and_its_config_is_the_resolved_one(run):
    code, out, err = run("train wgan-gp --net.width 8 --seed 3 --dry-run")
    assert (code, err) == (0, "")
    assert list(Path().iterdir()) == []
    config, figures = dry(out)
    preset = preset_config("wgan-gp", "digits")
    of_digits = {"size": 16, "channels": 1, "conditional": "projection", "augment": "off"}
    of_digits["out"] = "runs/wgan-gp-digits"
    net, precision = replace(preset.net, width=8), config.precision
    assert config == replace(preset, seed=3, net=net, precision=precision, **of_digits)
    assert figures["generator"] > figures["critic"] > 0
    assert figures["per image"] > 0
    Path("again.yaml").write_text(out)
    assert resolved(run, "--config again.yaml") == config


@pytest.fixture
def figures(run):
    return lambda line: dry(run(f"train {line} --dry-run")[1])[1]


def test_dry_run_figures_scale_as_they_must(figures):
    base = figures("wgan-gp --batch 256 --kimg 1000")
    batch = figures("wgan-gp --batch 512 --kimg 1000")
    length = figures("wgan-gp --batch 256 --kimg 2000")
    wide = figures("wgan-gp --batch 256 --kimg 1000 --net.width 64")
    bare = figures("wgan-gp --batch 256 --kimg 1000 --penalty.kind none")
    assert base["activations"] > 10
    assert base["in all"] > 1
    assert batch["activations"] == pytest.approx(2 * base["activations"], abs=1.5)
    assert batch["per image"] == base["per image"]
    assert length["in all"] == pytest.approx(2 * base["in all"], abs=0.1)
    assert base["in all"] == pytest.approx(base["per image"] * 1e6 * 1e6 / 1e12, rel=0.01)
    assert 3 < wide["per image"] / base["per image"] <= 4.05, (
        "most layers have width in and width out"
    )
    assert 3 < wide["critic"] / base["critic"] <= 4.05
    assert bare["per image"] < base["per image"]
    assert bare["critic"] == base["critic"]
    for found in (base, batch, length, wide, bare):
        expected = pytest.approx(found["pictures"] + found["state"] + found["activations"], abs=2)
        assert found["memory"] == expected


def test_small_figures_of_a_dry_run_are_not_rounded_to_nothing(figures):
    small = figures("wgan-gp --kimg 0.5 --net.width 8 --batch 16")
    assert [name for name, value in small.items() if value <= 0] == []


def test_dry_run_counts_parameters_as_the_networks_have_them(figures):
    from ganfast.models import NetSpec, build_critic, build_generator

    config = preset_config("acgan", "digits")
    config = replace(config, net=replace(config.net, width=8))
    spec = NetSpec.of(config, 16, 1, 10, "auxiliary")
    found = figures("acgan --net.width 8")
    assert found["generator"] == sum(p.numel() for p in build_generator(spec).parameters())
    assert found["critic"] == sum(p.numel() for p in build_critic(spec).parameters())


def test_lazy_penalties_cost_less_but_not_nothing(figures):
    each, lazy, none = (
        figures(f"r1 --net.width 64 {flags}")["per image"]
        for flags in ("", "--penalty.interval 4", "--penalty.kind none")
    )
    assert none < lazy < each
    assert lazy - none == pytest.approx((each - none) / 4, abs=0.15)


# The other commands


def test_presets_lists_all_with_their_papers(run):
    code, out, err = run("presets")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    names = "gan dcgan acgan wgan wgan-gp dragan hinge lsgan r1 rpgan r3".split()
    names += ["superres", "inpaint", "deblur"]
    assert [line.split()[0] for line in lines] == names
    for line in lines:
        assert re.search(r" [A-Z][a-z]+ 20\d\d, arXiv:\d{4}\.\d{4,5}$", line), line
        assert len(line) <= 120


@pytest.mark.parametrize("preset", PRESETS)
def test_a_shown_preset_is_a_config_file(preset, run):
    code, out, err = run(f"presets show {preset} --data mnist")
    assert (code, err) == (0, "")
    Path("shown.yaml").write_text(out)
    assert configfile.read(Path("shown.yaml")) == preset_config(preset, "mnist")


def test_a_shown_preset_loads_through_config(run):
    Path("shown.yaml").write_text(run("presets show hinge")[1])
    assert resolved(run, "--config shown.yaml") == resolved(run, "hinge")


def test_data_info_and_pack_say_what_was_recognised(run):
    code, out, _ = run("data info digits")
    assert (code, out.count("\n")) == (0, 1)
    assert "1,797 pictures 8x8 grey, 10 classes" in out
    for line in ("data pack digits", "data info digits --size 20 --channels 3"):
        code, out, _ = run(line)
        assert code == 0
        assert out.splitlines()[1].startswith(
            "1,797 pictures " + ("20x20x3" if "--size" in line else "16x16x1")
        )
        counts = [int(n) for n in re.findall(r"= \d \((\d+)\)", out)]
        assert (len(counts), sum(counts)) == (10, 1797)


def test_data_preview_writes_a_sheet_of_as_many_pictures_as_asked(run):
    assert run("data preview digits -n 12 --out new/look.png")[:2] == (0, "new/look.png\n")
    sheet = np.asarray(Image.open("new/look.png"))
    assert sheet.shape == (3 * (3 * 18 + 2), 3 * (4 * 18 + 2))
    assert sheet.max() > 200, "digits are white"


def test_data_finds_a_users_folder_by_name_under_its_root(run):
    for name in ("cat", "dog"):
        for i in range(3):
            path = Path(f"root/pets/{name}/{i}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((9, 9, 3), i * 40, np.uint8)).save(path)
    code, out, _ = run("data info pets --data-root root")
    assert code == 0
    assert "6 pictures" in out
    assert "2 classes" in out


def test_env_as_json_holds_versions_and_devices(run):
    code, out, err = run("env --json")
    assert (code, err) == (0, "")
    facts = json.loads(out)
    import torch

    assert facts["ganfast"] == __version__
    # the index may name a build, 2.11.0+cu130, that the package's own metadata leaves out
    assert facts["torch"].split("+")[0] == str(torch.__version__).split("+")[0]
    assert facts["cores"] == os.cpu_count()
    named = "python platform cpu gpu driver cuda compiler numpy triton tensorrt commit"
    assert facts.keys() >= set(named.split())
    assert all(value is None or isinstance(value, str | int | float) for value in facts.values())


def test_env_shows_every_fact_on_a_line(run):
    facts, (code, out, err) = json.loads(run("env --json")[1]), run("env")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == list(facts)
    assert f"torch           {facts['torch']}" in out


# One run from end to end


def test_train_sample_and_resume_as_a_user_would(run):
    flags = "--kimg 0.32 --batch 32 --net.width 4 --log.no-tensorboard"
    code, out, err = run(f"train dcgan {flags}")
    assert (code, out) == (0, "")
    assert "scikit-learn's handwritten digits" in err
    assert "dcgan at 16x16x1, 10 classes by projection on cpu" in err
    assert "done: 0.32 kimg" in err
    assert Path("runs/dcgan-digits/config.yaml").exists(), "the default place"
    advice = re.search(r"draw more +ganfast (sample .*)", err).group(1)
    assert run(advice)[:2] == (0, "grid.png\n"), "what a run advises works as printed"
    _, _, again = run(f"train dcgan {flags}")
    assert "resuming runs/dcgan-digits at 0.32 kimg: already complete; --kimg 150 goes on" in again
    for more, start in (
        ("", "runs/dcgan-digits is complete at 0.32 kimg; --kimg 150 goes on"),
        ("--kimg 0.4", "goes on with runs/dcgan-digits at 0.32 kimg"),
        ("--out runs/new", "begins runs/new"),
        ("--kimg 0.4 --net.width 5 --force", "forced: net.width was 4, now 5"),
    ):
        assert start in run(f"train dcgan {flags} {more} --dry-run")[1].splitlines()[-1]
    fork = "--out runs/dcgan-digits --fork runs/new --dry-run"
    assert "000000320" in run(f"train {fork} --kimg 0.4")[1].splitlines()[-1]
    assert "give a higher --kimg" in run(f"train {fork}")[2]
    code, out, refused = run(f"train dcgan {flags} --net.width 5 --dry-run")
    assert (code, "# memory" in out, "net.width was 4, now 5" in refused) == (2, True, True)
    code, _, longer = run("train runs/dcgan-digits --kimg 0.4")
    assert "resuming runs/dcgan-digits at 0.32 kimg" in longer
    assert "done: 0.416 kimg" in longer
    assert run("train dcgan --net.width 5")[0] == 2
