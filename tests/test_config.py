"""Configs: presets are valid, wrong values are refused by name, YAML gives back what it got."""

import dataclasses
import re
import textwrap
from functools import partial
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ganfast import configfile
from ganfast.config import (
    Config,
    GuardConfig,
    LogConfig,
    LossConfig,
    NetConfig,
    OptimConfig,
    PenaltyConfig,
    ScoreConfig,
    TaskConfig,
)
from ganfast.errors import InputError
from ganfast.fields import Schedule, flatten
from ganfast.presets import PRESETS, data_kind, preset_config, suited_kimg
from tests.programs import python

DATA = ["digits", "mnist", "celeba", "my/folder", "pictures.zip", "/data/celeba-half/"]
PATHS = DATA[3:]
# Thousand real images on digits, MNIST and CelebA: what the committed figures were trained for.
LENGTHS = {
    "gan": (400, 1200, 5000), "dcgan": (150, 300, 5000), "acgan": (100, 150, 5000),
    "wgan": (300, 400, 10000), "wgan-gp": (200, 250, 10000), "dragan": (150, 300, 5000),
    "hinge": (150, 300, 5000), "lsgan": (150, 300, 5000), "r1": (150, 300, 5000),
    "rpgan": (150, 300, 5000),
    "r3": (60, 60, 5000),
}  # fmt: skip


def refusal(call, *args, **kwargs):
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


def overlaid(text, base=None):
    return configfile.overlay(base or Config(), yaml.safe_load(text), "test.yaml")


# Presets.


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_makes_a_config_for_every_kind_of_data(name, data):
    config = preset_config(name, data)
    assert config.preset == name
    assert config.data == data
    assert (config.kimg == 0) == (data in PATHS)
    if name in LENGTHS and data not in PATHS:
        assert config.kimg == LENGTHS[name][DATA.index(data)]
    assert dataclasses.replace(config) == config  # checked again


PICTURES = [  # kind of the source, size, channels, count -> length of wgan-gp and of r1
    (("digits", 16, 1, 1797), (200, 150)),
    (("digits", 32, 1, 1797), (200, 150)),
    (("idx", 28, 1, 60_000), (250, 300)),
    (("stacked-mnist", 28, 3, 128_000), (250, 300)),
    (("celeba", 64, 3, 10_000), (10_000, 5000)),
    (("folder", 64, 3, 300), (300, 300)),  # photographs: a thousand passes, not ten thousand kimg
    (("folder", 128, 3, 50_000), (10_000, 5000)),
    (("folder", 32, 3, 50_000), (2200, 1200)),  # between: 0.199 of the way from MNIST to faces
    (("arrays", 16, 1, 60_000), (250, 300)),
    (("folder", 64, 3, 20), (20, 20)),
]


@pytest.mark.parametrize(("pictures", "expected"), PICTURES, ids=str)
def test_the_length_follows_from_what_the_pictures_are(pictures, expected):
    assert (suited_kimg("wgan-gp", *pictures), suited_kimg("r1", *pictures)) == expected


def test_a_preset_of_nobody_names_no_length():
    assert "set kimg above 0" in refusal(suited_kimg, "mine", "folder", 64, 3, 100)


@pytest.mark.parametrize(
    ("data", "kind"),
    [*zip(DATA, ["digits", "mnist", "celeba", "other", "other", "celeba"], strict=True)],
)
def test_the_kind_of_data_is_read_off_its_name(data, kind):
    assert data_kind(data) == kind


def test_presets_are_what_their_papers_say():
    # Small grey pictures have rates of their own.
    made = {name: preset_config(name, "faces.zip") for name in PRESETS}
    wgan_gp = made["wgan-gp"]
    expected = ("wasserstein", "wgan-gp", 10.0)
    assert (wgan_gp.loss.kind, wgan_gp.penalty.kind, wgan_gp.penalty.weight) == expected
    assert wgan_gp.optim.beta2 == 0.9
    assert wgan_gp.penalty.target == 1
    assert not wgan_gp.penalty.one_sided
    assert made["wgan"].loss.clip == 0.01
    assert made["wgan"].optim.critic_steps == 5
    assert (made["dcgan"].net.critic_norm, made["dcgan"].net.init, made["dcgan"].optim.beta1) == (
        "batch",
        "dcgan",
        0.5,
    )
    assert made["acgan"].conditional == "auxiliary"
    assert (made["hinge"].loss.kind, made["hinge"].net.critic_norm) == ("hinge", "spectral")
    assert made["lsgan"].loss.kind == "least-squares"
    assert (made["gan"].model, made["gan"].loss.kind) == ("mlp", "non-saturating")
    assert (made["r1"].penalty.kind, made["r1"].loss.kind) == ("r1", "non-saturating")
    assert (made["rpgan"].penalty.kind, made["rpgan"].loss.kind) == ("r1+r2", "relativistic")
    r3 = made["r3"]
    assert (r3.model, r3.loss.kind, r3.penalty.kind) == ("r3", "relativistic", "r1+r2")
    assert (r3.optim.lr_generator, r3.optim.lr_critic, r3.optim.beta1) == (
        *(Schedule(2e-4, 5e-5), Schedule(2e-4, 5e-5)),
        0.0,
    )
    assert (r3.optim.critic_steps, r3.penalty.interval) == (1, 1)
    assert (r3.net.latent, r3.net.generator_norm, r3.net.critic_norm) == (64, "none", "none")
    assert r3.penalty.weight == Schedule(2.0, 0.2)  # the paper's at 64x64, over the run
    assert r3.optim.beta2 == Schedule(0.9, 0.99)
    assert (made["dragan"].penalty.kind, made["dragan"].penalty.weight) == ("dragan", 10.0)
    for config in made.values():
        assert config.net.critic_norm != "batch" or not config.penalty.active


def test_an_unknown_preset_is_refused_with_the_closest():
    assert "wgan-gp" in refusal(preset_config, "wgangp")
    assert "'zzzz'" in refusal(preset_config, "zzzz")
    for name in PRESETS:
        assert name in refusal(preset_config, "zzzz")


# Values.


@pytest.mark.parametrize(
    ("cls", "values", "named"),
    [
        (NetConfig, {"width": -1}, ["width", "-1"]),
        (NetConfig, {"latent": 0}, ["latent", "0", "1 or more"]),
        (NetConfig, {"latent": 10**9}, ["latent", "1000000000", "65536 at most"]),
        (NetConfig, {"width": 10**6}, ["width", "1000000", "65536 at most"]),
        (NetConfig, {"critic_norm": "group"}, ["critic_norm", "'group'", "spectral"]),
        (NetConfig, {"generator_norm": "spectral"}, ["generator_norm", "'spectral'", "batch"]),
        (NetConfig, {"init": "orthogonal"}, ["init", "'orthogonal'", "dcgan"]),
        (LossConfig, {"kind": "wgan"}, ["kind", "'wgan'", "wasserstein"]),
        (LossConfig, {"class_weight": -0.5}, ["class_weight", "-0.5"]),
        (LossConfig, {"clip": -0.01}, ["clip", "-0.01"]),
        (LossConfig, {"kind": "minimax", "label_smoothing": 0.5}, ["label_smoothing", "0.5"]),
        (
            LossConfig,
            {"kind": "hinge", "label_smoothing": 0.1},
            ["label_smoothing", "hinge", "probabilities"],
        ),
        (PenaltyConfig, {"kind": "gp"}, ["kind", "'gp'", "wgan-gp"]),
        (PenaltyConfig, {"weight": -1.0}, ["weight", "-1.0"]),
        (PenaltyConfig, {"target": -1.0}, ["target", "-1.0"]),
        (PenaltyConfig, {"weight": float("nan")}, ["weight", "nan", "finite"]),
        (PenaltyConfig, {"interval": 0}, ["interval", "0", "1 or more"]),
        (OptimConfig, {"lr_critic": 0.0}, ["lr_critic", "0.0", "above 0"]),
        (OptimConfig, {"lr_generator": -1e-4}, ["lr_generator", "-0.0001"]),
        (OptimConfig, {"lr_generator": float("inf")}, ["lr_generator", "inf"]),
        (OptimConfig, {"beta1": 1.0}, ["beta1", "1.0", "below 1"]),
        (OptimConfig, {"beta2": -0.1}, ["beta2", "-0.1"]),
        (OptimConfig, {"lr_critic": Schedule(1e-4, -1e-4)}, ["lr_critic", "0.0001 to -0.0001"]),
        (OptimConfig, {"lr_critic": Schedule(0.0, 0.0)}, ["lr_critic", "0.0 to 0.0", "above 0"]),
        (OptimConfig, {"beta2": Schedule(0.9, 1.0)}, ["beta2", "0.9 to 1.0", "below 1"]),
        (PenaltyConfig, {"weight": Schedule(1.0, -1.0)}, ["weight", "1.0 to -1.0"]),
        (partial(Schedule, 1.0, 2.0), {"over_kimg": -1.0}, ["over_kimg", "-1.0"]),
        (partial(Schedule, 1.0, 2.0), {"shape": "step"}, ["shape", "'step'", "cosine"]),
        (partial(Schedule, 1.0), {"last": float("nan")}, ["last", "nan", "finite"]),
        (OptimConfig, {"critic_steps": 0}, ["critic_steps", "0"]),
        (OptimConfig, {"decay_from": 1.5}, ["decay_from", "1.5"]),
        (OptimConfig, {"warmup_kimg": -1.0}, ["warmup_kimg", "-1.0"]),
        (LogConfig, {"every": 0}, ["every", "0"]),
        (LogConfig, {"keep": -1}, ["keep", "-1"]),
        (Config, {"kimg": -1.0}, ["kimg", "-1.0", "or 0 to choose"]),
        (Config, {"kimg": float("nan")}, ["kimg", "nan"]),
        (Config, {"batch": 0}, ["batch", "0"]),
        (Config, {"seed": -1}, ["seed", "-1"]),
        (Config, {"seed": 2**63}, ["seed", str(2**63)]),
        (Config, {"size": 7}, ["size", "7", "8 to 1024"]),
        (Config, {"size": 1025}, ["size", "1025"]),
        (Config, {"channels": 2}, ["channels", "2", "3 (colour)"]),
        (Config, {"imbalance": 0.5}, ["imbalance", "0.5"]),
        (Config, {"ema_kimg": -1.0}, ["ema_kimg", "-1.0"]),
        (Config, {"precision": "fp8"}, ["precision", "'fp8'", "bf16"]),
        (Config, {"conditional": "yes"}, ["conditional", "'yes'", "projection"]),
        (Config, {"flip": "maybe"}, ["flip", "'maybe'"]),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_values_out_of_range_are_refused_by_name_and_value(cls, values, named):
    message = refusal(cls, **values)
    for part in named:
        assert part in message


def test_values_at_the_ends_of_their_ranges_are_taken():
    OptimConfig(beta1=0.0, beta2=0.999, decay_from=0.0, lr_critic=1e-12)
    OptimConfig(decay_from=1.0)
    LossConfig("minimax", label_smoothing=0.49)
    Config(seed=2**63 - 1, size=8, imbalance=1.0)
    Config(size=1024, channels=3, ema_kimg=0.0, kimg=0.001)
    PenaltyConfig("r1", weight=0.0, target=0.0)


@pytest.mark.parametrize("kind", ["wgan-gp", "dragan", "r1", "r2", "r1+r2"])
def test_batch_norm_under_a_penalty_is_refused_with_the_alternatives(kind):
    message = refusal(Config, net=NetConfig(critic_norm="batch"), penalty=PenaltyConfig(kind))
    for part in ("batch", kind, "layer", "instance", "spectral", "penalty none"):
        assert part in message
    # An inactive one disturbs nothing.
    Config(net=NetConfig(critic_norm="batch"), penalty=PenaltyConfig(kind, weight=0.0))
    for norm in ("none", "layer", "instance", "spectral"):
        Config(net=NetConfig(critic_norm=norm), penalty=PenaltyConfig(kind))


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().batch = 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().optim.beta1 = 0.5


def test_flat_names():
    flat = flatten(Config(batch=3, optim=OptimConfig(beta1=0.25)))
    assert flat["batch"] == 3
    assert flat["optim.beta1"] == 0.25
    assert not any(dataclasses.is_dataclass(value) for value in flat.values())
    groups = (
        NetConfig,
        LossConfig,
        PenaltyConfig,
        OptimConfig,
        LogConfig,
        ScoreConfig,
        GuardConfig,
        TaskConfig,
    )
    assert len(flat) == sum(len(dataclasses.fields(c)) for c in (Config, *groups)) - len(groups)


# YAML.


@pytest.mark.parametrize("data", ["digits", "celeba"])
@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_a_file(tmp_path, name, data):
    config = dataclasses.replace(
        preset_config(name, data), attributes=("Male", "Smiling"), balanced=True
    )
    configfile.write(config, tmp_path / "config.yaml")
    assert configfile.read(tmp_path / "config.yaml") == config
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]
    assert list(yaml.safe_load(configfile.to_yaml(config))) == [
        f.name for f in dataclasses.fields(Config)
    ]


schedules = st.builds(
    Schedule,
    *(st.floats(1e-12, 0.9), st.floats(1e-12, 0.9)),
    over_kimg=st.floats(0, 1e9),
    shape=st.sampled_from(["cosine", "linear"]),
)


@settings(max_examples=60, deadline=None)
@given(
    rate=st.floats(1e-12, 1.0) | schedules,
    kimg=st.floats(1e-6, 1e9),
    seed=st.integers(0, 2**63 - 1),
    text=st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=12),
    attributes=st.lists(st.sampled_from(["Male", "No", "5", "1e-4", "é, b", "null"]), max_size=3),
    flag=st.booleans(),
    kind=st.sampled_from(["r1", "wgan-gp", "none"]),
)
def test_any_config_survives_a_file(
    tmp_path_factory, rate, kimg, seed, text, attributes, flag, kind
):
    config = Config(
        kimg=kimg,
        seed=seed,
        data=text,
        out=text[::-1],
        attributes=tuple(attributes),
        balanced=flag,
        penalty=PenaltyConfig(kind, one_sided=flag),
        optim=OptimConfig(lr_critic=rate, beta2=rate if isinstance(rate, Schedule) else 0.5),
    )
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    configfile.write(config, path)
    assert configfile.read(path) == config


def test_a_file_may_name_a_few_fields_nested_or_dotted():
    base = Config(batch=7, optim=OptimConfig(beta1=0.25, beta2=0.75))
    nested = overlaid("optim: {beta1: 0.5}\nkimg: 3", base)
    assert nested == overlaid("optim.beta1: 0.5\nkimg: 3", base)
    assert (nested.optim.beta1, nested.optim.beta2, nested.batch, nested.kimg) == (0.5, 0.75, 7, 3)
    both = overlaid("optim: {beta1: 0.5}\noptim.beta2: 0.9\nnet.latent: 5")
    assert (both.optim.beta1, both.optim.beta2, both.net.latent) == (0.5, 0.9, 5)
    assert overlaid("optim.beta2: 0.9\noptim: {beta1: 0.5}") == overlaid(
        "optim: {beta1: 0.5, beta2: 0.9}"
    )


def test_numbers_that_yaml_takes_for_text_are_numbers():
    assert isinstance(yaml.safe_load("1e-4"), str)
    config = overlaid("optim: {lr_critic: 1e-4, lr_generator: 2e-4}\nkimg: 5e2\nbatch: '32'")
    assert config.optim.lr_critic == 1e-4
    assert config.optim.lr_generator == 2e-4
    assert config.kimg == 500
    assert config.batch == 32
    whole = overlaid("kimg: 3").kimg
    assert isinstance(whole, float)
    assert whole == 3


def test_a_schedule_is_one_word():
    config = overlaid("optim: {lr_critic: '2e-4,5e-5'}\nema_kimg: 0,500,2e4,linear")
    assert config.optim.lr_critic == Schedule(2e-4, 5e-5)
    assert config.ema_kimg == Schedule(0.0, 500.0, 20_000.0, "linear")
    assert overlaid("penalty.weight: 2,3").penalty.full_weight == 3.0
    assert overlaid("optim.lr_critic: 1e-4", config).optim.lr_critic == 1e-4
    whole = Schedule(2, 1, 100, "linear")
    assert Schedule.parse(str(whole)) == whole
    assert str(Schedule.parse(str(whole))) == str(whole) == "2.0,1.0,100.0,linear"
    assert (str(Schedule(1.0, 0.5)), f"{Schedule(1e-4, 2e-4):g}") == ("1.0,0.5", "0.0001 to 0.0002")


def test_a_config_is_changed_by_keywords_as_a_file_changes_it():
    config = preset_config("r1", kimg=3, optim={"lr_critic": 0.5}, net={"width": "8"})
    assert config == overlaid("{kimg: 3, optim.lr_critic: 0.5, net.width: 8}", preset_config("r1"))
    assert config.replace() == config
    assert (config.replace(seed=7).seed, config.seed) == (7, 0)
    with pytest.raises(InputError, match="did you mean kimg"):
        config.replace(kimgs=3)


@pytest.mark.parametrize("word", ["0,0002", "0,5", "1,5"])
def test_a_rate_with_a_decimal_comma_is_no_schedule(word):
    with pytest.raises(InputError, match="point"):
        overlaid(f"optim.lr_critic: {word}")


def test_attributes_may_be_a_list_or_one_name():
    assert overlaid("attributes: [Male, Smiling]").attributes == ("Male", "Smiling")
    assert overlaid("attributes: Male").attributes == ("Male",)
    assert overlaid("attributes: []").attributes == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kmig: 3", "unknown field kmig in test.yaml: did you mean kimg"),
        ("bach: 3", "unknown field bach in test.yaml: did you mean batch"),
        ("xyzzy: 3", "unknown field xyzzy in test.yaml: known here: .*kimg"),
        ("3: 4", "unknown field 3 in test.yaml: known here"),
        ("optim: {lr_critc: 1}", "field optim.lr_critc in test.yaml: did you mean optim.lr_critic"),
        ("optim.lr_critc: 1", "field optim.lr_critc in test.yaml: did you mean optim.lr_critic"),
        ("penalty.wieght: 1", "field penalty.wieght in test.yaml: did you mean penalty.weight"),
        ("ema_kimg: 1,x", "ema_kimg in test.yaml is '1,x'; expected a number, or a schedule"),
        ("ema_kimg: [1, 2]", "ema_kimg in test.yaml is .*; expected a number, or a schedule"),
        ("ema_kimg: '1,2,3,linear,4'", "has 5 parts; expected first,last,kimg,shape"),
        ("kimg: lots", "kimg in test.yaml is 'lots'; expected a number"),
        ("kimg: true", "kimg in test.yaml is True; expected a number"),
        ("kimg: [3]", "kimg in test.yaml is .*; expected a number"),
        ("kimg:", "kimg in test.yaml is None; expected a number"),
        ("kimg: .nan", "kimg is nan; expected a finite number"),
        ("kimg: -3", "kimg is -3.0; expected .* or 0 to choose"),
        ("batch: 1.5", "batch in test.yaml is 1.5; expected a whole number"),
        ("batch: .inf", "batch in test.yaml is inf; expected a whole number"),
        ("batch: .nan", "batch in test.yaml is nan; expected a whole number"),
        ("batch: yes", "batch in test.yaml is True; expected a whole number"),
        ("batch: many", "batch in test.yaml is 'many'; expected a whole number"),
        ("batch:", "batch in test.yaml is None; expected a whole number"),
        ("batch: [3]", r"batch in test.yaml is \[3\]; expected a whole number"),
        ("batch: -3", "batch is -3; expected"),
        ("batch.size: 3", "batch in test.yaml is {'size': 3}; expected a whole number"),
        ("seed: .nan", "seed in test.yaml is nan; expected a whole number"),
        ("out:", "out in test.yaml is None; expected text"),
        ("data: [digits]", r"data in test.yaml is \['digits'\]; expected text"),
        ("data: {name: digits}", "data in test.yaml is {'name': 'digits'}; expected text"),
        ("balanced: maybe", "balanced in test.yaml is 'maybe'; expected true or false"),
        ("balanced: 'no'", "balanced in test.yaml is 'no'; expected true or false"),
        ("balanced: 1", "balanced in test.yaml is 1; expected true or false"),
        ("attributes: 3", "attributes in test.yaml is 3; expected a list of names"),
        ("attributes: [[Male]]", "attributes in test.yaml is .*Male"),
        (
            "penalty.kind: gp",
            "penalty.kind in test.yaml is 'gp'; expected one of none, wgan-gp, r1",
        ),
        ("penalty.kind: yes", "penalty.kind in test.yaml is True; expected one of none"),
        ("precision: 16", "precision in test.yaml is 16; expected one of"),
        ("optim: 3", "optim in test.yaml is 3; expected a group of fields"),
        ("optim:", "optim in test.yaml is None; expected a group of fields"),
        ("optim: 3\noptim.beta1: 0.5", "optim in test.yaml is 3; expected a group of fields"),
    ],
)
def test_a_wrong_field_or_value_is_refused_with_its_name_and_the_way_out(text, said):
    assert re.search(said, refusal(overlaid, text))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"[1, 2]", "holds a list; expected fields and values"),
        (b"just words", "holds a str; expected fields and values"),
        (b"", "holds nothing; expected fields and values"),
        (b"kimg: [", "is not YAML"),
        (b"kimg: 1\n\tbatch: 2", "is not YAML"),
        (b"!!python/object/apply:os.system ['touch hacked']", "is not YAML"),
        (b"\xff\xfe\x00kimg", "is not YAML"),
        (b"bach: 3", "did you mean batch"),
    ],
)
def test_files_that_are_no_config_are_refused_by_path(data, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_bytes(data)
    message = refusal(configfile.read, Path("c.yaml"))
    assert "c.yaml" in message
    assert said in message
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"], "YAML makes no objects"


def test_a_config_file_that_cannot_be_read_is_refused_by_path(tmp_path):
    (tmp_path / "c.yaml").mkdir()
    for path in (tmp_path / "c.yaml", tmp_path / "c.yaml" / "d"):
        assert "c.yaml" in refusal(configfile.read, path)


def test_differences_are_by_dotted_name():
    old, new = Config(), Config(batch=5, optim=OptimConfig(beta1=0.5))
    assert configfile.differences(old, new) == {"batch": (old.batch, 5), "optim.beta1": (0.0, 0.5)}
    assert configfile.differences(new, new) == {}


# Imports.

BLOCKER = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise AssertionError(f"{{name}} was imported")
sys.meta_path.insert(0, Blocker())
"""


def run_without(blocked, code):
    script = BLOCKER.format(blocked=blocked) + textwrap.dedent(code)
    done = python("-c", script)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_configs_and_presets_need_the_standard_library_only():
    blocked = "torch tyro cattrs cattr attrs attr yaml numpy rich PIL triton".split()
    code = """
        import ganfast, ganfast.config, ganfast.presets
        print(ganfast.preset_config("wgan-gp", data="mnist").penalty.kind, ganfast.Config().model)
    """
    assert run_without(blocked, code).split() == ["wgan-gp", "dcgan"]
    with pytest.raises(AssertionError, match="torch was imported"):  # the check can fail
        run_without(blocked, "import ganfast.penalties")


def test_drawing_latents_and_saving_pictures_needs_no_torch(tmp_path):
    code = f"""
        import numpy as np
        from ganfast.latents import latents, random_classes
        from ganfast.images import grid, save_png
        z = latents(3, np.arange(4), 8)
        random_classes(3, np.arange(4), 10)
        save_png(grid((z.reshape(4, 4, 2, 1) > 0).astype(np.uint8) * 255), r"{tmp_path}/a.png")
        print(z.shape)
    """
    assert (
        run_without(["torch", "tyro", "cattrs", "triton", "onnxruntime"], code).strip() == "(4, 8)"
    )
    assert (tmp_path / "a.png").exists()


def test_writing_a_config_needs_no_cattrs_and_reading_no_torch(tmp_path):
    code = f"""
        from pathlib import Path
        from ganfast import Config, configfile
        configfile.write(Config(batch=9), Path(r"{tmp_path}/c.yaml"))
    """
    run_without(["torch", "tyro", "cattrs"], code)
    code = f"""
        from pathlib import Path
        from ganfast import configfile
        print(configfile.read(Path(r"{tmp_path}/c.yaml")).batch)
    """
    assert run_without(["torch", "tyro"], code).strip() == "9"
