"""Named recipes: a function for each preset gives its `Config` for the data set at hand.

Values that are not from the paper were measured on two CPU cores.
A new preset is one function below, named by `@_preset`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, NamedTuple

from ganfast.config import (
    Config,
    LossConfig,
    NetConfig,
    OptimConfig,
    PenaltyConfig,
    TaskConfig,
    TaskKind,
)
from ganfast.errors import InputError
from ganfast.fields import Schedule


class Kimg(NamedTuple):
    """Length of a run, thousand real images, by the pictures: what the presets were tried with."""

    digits: float  # 1,797 of 16x16, grey
    mnist: float  # 60,000 of 28x28, grey
    large: float  # faces at 64x64 and more, in colour


@dataclass(frozen=True)
class Preset:
    """A recipe."""

    name: str
    paper: str
    line: str  # one line for `ganfast presets`
    kimg: Kimg
    make: Callable[[str], Config]  # kind of data (digits, mnist, celeba or other) -> config


PRESETS: dict[str, Preset] = {}


def _preset(
    name: str, paper: str, line: str, kimg: Kimg
) -> Callable[[Callable[[str], Config]], Callable[[str], Config]]:
    """Enters the function below it into `PRESETS`."""

    def enter(make: Callable[[str], Config]) -> Callable[[str], Config]:
        PRESETS[name] = Preset(name, paper, line, kimg, make)
        return make

    return enter


# DCGAN section 4
_ADAM_GAN = OptimConfig(lr_generator=2e-4, lr_critic=2e-4, beta1=0.5, beta2=0.999, critic_steps=1)
_ADAM_R1 = OptimConfig(lr_generator=2e-4, lr_critic=2e-4, beta1=0.0, beta2=0.99, critic_steps=1)
_BATCH_NORM = NetConfig(critic_norm="batch", init="dcgan")


def _fitted(config: Config, kind: str, lr: float = 0.0) -> Config:
    """What small grey pictures allow: small batches, and rates that fall to 0 over the last half.

    ``lr`` is for both networks, where the paper's rate is slower than need be (0 = the paper's).
    The latent has 16 numbers: after 100 kimg of unconditional wgan-gp on MNIST a classifier was
    sure of 62% of the pictures, and of 55% with 64 numbers.
    """
    if kind not in ("digits", "mnist"):
        return config
    optim = replace(config.optim, decay_from=0.5)
    if lr:
        optim = replace(optim, lr_generator=lr, lr_critic=lr, beta1=0.5)
    net = replace(config.net, latent=16)
    return replace(config, batch=32, ema_kimg=20.0, net=net, optim=optim)


@_preset(
    "gan",
    "Goodfellow 2014, arXiv:1406.2661",
    "the original: two MLPs, non-saturating loss",
    Kimg(400, 1200, 5000),
)
def _gan(kind: str) -> Config:
    # Dropout as in the paper's discriminator: without it about 1% of the digits drawn
    # unconditionally were zeros.
    net = NetConfig(critic_dropout=0.3)
    config = Config(model="mlp", loss=LossConfig("non-saturating"), net=net, optim=_ADAM_GAN)
    return replace(_fitted(config, kind, lr=4e-4), batch=64)


@_preset(
    "dcgan",
    "Radford 2015, arXiv:1511.06434",
    "convolutions and batch normalisation",
    Kimg(150, 300, 5000),
)
def _dcgan(kind: str) -> Config:
    config = Config(loss=LossConfig("non-saturating"), net=_BATCH_NORM, optim=_ADAM_GAN)
    return _fitted(config, kind)


@_preset(
    "acgan",
    "Odena 2016, arXiv:1610.09585",
    "class-conditional, the critic also names the class",
    Kimg(100, 150, 5000),
)
def _acgan(kind: str) -> Config:
    # R1 in place of the paper's batch norms: with those the generator came to draw one picture a
    # class on MNIST (std of 40 threes: 4 grey levels; with R1 35; of real ones 39).
    penalty = PenaltyConfig("r1", weight=1.0)
    config = Config(
        loss=LossConfig("non-saturating"), penalty=penalty, optim=_ADAM_GAN, conditional="auxiliary"
    )
    if kind == "celeba":
        config = replace(config, attributes=("Male", "Smiling"))
    return _fitted(config, kind, lr=5e-4)


@_preset(
    "wgan",
    "Arjovsky 2017, arXiv:1701.07875",
    "Wasserstein critic with clipped weights",
    Kimg(300, 400, 10000),
)
def _wgan(kind: str) -> Config:
    # The paper uses RMSProp, as momentum is unstable under clipping; Adam has none at beta1 = 0.
    optim = OptimConfig(lr_generator=5e-4, lr_critic=5e-4, beta1=0.0, beta2=0.99, critic_steps=5)
    config = Config(loss=LossConfig("wasserstein", clip=0.01), net=_BATCH_NORM, optim=optim)
    return _fitted(config, kind)


@_preset(
    "wgan-gp",
    "Gulrajani 2017, arXiv:1704.00028",
    "Wasserstein critic with a gradient penalty",
    Kimg(200, 250, 10000),
)
def _wgan_gp(kind: str) -> Config:
    # The paper's code has rates of 1e-4 or 2e-4, five critic steps and beta1 = 0: few and small
    # generator steps. On faces at 32x32, one seed, 42 to 52 kimg, recall was 0.00 with these at
    # 2e-4, 0.17 with 1e-3 and beta1 = 0.5, and 0.52 with one critic step as well. With weights
    # from N(0, 0.02) it was 0.47, and the Frechet distance half.
    small = kind in ("digits", "mnist")
    steps, net = (5, NetConfig()) if small else (1, NetConfig(init="dcgan"))
    optim = replace(_ADAM_GAN, lr_generator=1e-3, lr_critic=1e-3, beta2=0.9, critic_steps=steps)
    optim = replace(optim, decay_from=0.5)
    penalty = PenaltyConfig("wgan-gp", weight=10.0)
    loss = LossConfig("wasserstein")
    config = Config(loss=loss, penalty=penalty, net=net, optim=optim, batch=32)
    return _fitted(config, kind)


@_preset(
    "dragan",
    "Kodali 2017, arXiv:1705.07215",
    "gradient penalty around the reals",
    Kimg(150, 300, 5000),
)
def _dragan(kind: str) -> Config:
    penalty = PenaltyConfig("dragan", weight=10.0)
    config = Config(loss=LossConfig("non-saturating"), penalty=penalty, optim=_ADAM_GAN)
    return _fitted(config, kind)


@_preset(
    "hinge",
    "Miyato 2018, arXiv:1802.05957",
    "hinge loss, spectral normalisation",
    Kimg(150, 300, 5000),
)
def _hinge(kind: str) -> Config:
    net, optim = NetConfig(critic_norm="spectral"), replace(_ADAM_GAN, beta1=0.0)
    return _fitted(Config(loss=LossConfig("hinge"), net=net, optim=optim), kind)


@_preset("lsgan", "Mao 2016, arXiv:1611.04076", "least squares", Kimg(150, 300, 5000))
def _lsgan(kind: str) -> Config:
    # He's initial weights: from N(0, 0.02) the generator came to draw one picture a class on MNIST
    # (std of 40 threes: 3 grey levels after 120 kimg; with He's 34 after 200; of real ones 39).
    net = NetConfig(critic_norm="batch")
    config = Config(loss=LossConfig("least-squares"), net=net, optim=_ADAM_GAN)
    return _fitted(config, kind)


@_preset(
    "r1",
    "Mescheder 2018, arXiv:1801.04406",
    "non-saturating with zero-centred penalty on the reals",
    Kimg(150, 300, 5000),
)
def _r1(kind: str) -> Config:
    penalty = PenaltyConfig("r1", weight=1.0)
    config = Config(loss=LossConfig("non-saturating"), penalty=penalty, optim=_ADAM_R1)
    return _fitted(config, kind)


@_preset(
    "rpgan",
    "Huang 2025, arXiv:2501.05441",
    "relativistic pairing with R1 and R2",
    Kimg(150, 300, 5000),
)
def _rpgan(kind: str) -> Config:
    penalty = PenaltyConfig("r1+r2", weight=1.0)
    config = Config(loss=LossConfig("relativistic"), penalty=penalty, optim=_ADAM_R1)
    return _fitted(config, kind)


@_preset(
    "r3",
    "Huang 2025, arXiv:2501.05441",
    "residual, no norms; relativistic pairing, R1 and R2",
    Kimg(60, 60, 5000),
)
def _r3(kind: str) -> Config:
    # The paper's schedules at 64x64, whose 20,000 kimg become the length of the run.
    # The paper has 2 blocks a stage.
    penalty = PenaltyConfig("r1+r2", weight=Schedule(2.0, 0.2))
    rate = Schedule(2e-4, 5e-5)
    optim = replace(_ADAM_R1, lr_generator=rate, lr_critic=rate, beta2=Schedule(0.9, 0.99))
    net = NetConfig(blocks=1, latent=64, generator_norm="none")
    loss = LossConfig("relativistic")
    # The paper's batch is 256 and more: too few steps for a run on a CPU.
    config = Config(model="r3", loss=loss, penalty=penalty, net=net, optim=optim, batch=32)
    if kind not in ("digits", "mnist"):
        return config
    # Fréchet distance after 16 kimg of MNIST, one seed: 0.85 with these; 3.4 with a rate of 1e-3 to
    # 2.5e-4 and gamma of 2 to 0.2; 2.3 with 1e-3, falling to 0 in the last half, and a gamma of 1.
    rate, penalty = Schedule(2e-3, 1e-4), replace(penalty, weight=Schedule(1.0, 0.1))
    optim = replace(optim, lr_generator=rate, lr_critic=rate)
    fitted = _fitted(replace(config, penalty=penalty), kind)
    return replace(fitted, optim=optim)


def _made_from(task: TaskKind, loss: LossConfig) -> Config:
    """A run that makes pictures from others."""
    return Config(
        loss=loss,
        penalty=PenaltyConfig("r1", weight=1.0),
        net=NetConfig(latent=16, width=24, generator_norm="none"),
        optim=replace(_ADAM_R1, lr_generator=1e-3, lr_critic=5e-4, decay_from=0.5),
        task=TaskConfig(task),
        conditional="no",
        batch=32,
    )


@_preset(
    "superres",
    "Ledig 2017, arXiv:1609.04802",
    "a picture from a smaller one: --task.scale",
    Kimg(60, 120, 200),
)
def _superres(kind: str) -> Config:
    # MNIST, 7 to 28 pixels, one thread, 172 s: Frechet distance 0.37 with these, and 0.94 by the
    # distance alone in 163 s.
    return _made_from("superres", LossConfig("non-saturating", pixel=5.0, pixel_only_kimg=30.0))


@_preset(
    "inpaint",
    "Pathak 2016, arXiv:1604.07379",
    "a picture with a hole filled: --task.hole",
    Kimg(60, 120, 200),
)
def _inpaint(kind: str) -> Config:
    # Faces, 64 pixels, hole of 32: docs/guides/make-from.md has what was tried.
    loss = LossConfig("non-saturating", pixel=10.0, pixel_only_kimg=4.0)
    config = _made_from("inpaint", loss)
    return replace(config, net=replace(config.net, width=16))


@_preset(
    "deblur",
    "Kupyn 2018, arXiv:1711.07064",
    "a sharp picture from a blurred one: --task.blur",
    Kimg(60, 120, 200),
)
def _deblur(kind: str) -> Config:
    return _made_from("deblur", LossConfig("non-saturating", pixel=10.0, pixel_only_kimg=5.0))


# Presets whose pictures come from latents alone.
FROM_LATENTS = tuple(n for n, p in PRESETS.items() if p.make("other").task.kind == "none")

# Sets whose name says what the pictures are -> the field of `Kimg`. A path does not say it.
_LENGTHS = {"digits": "digits", "mnist": "mnist", "stacked-mnist": "mnist", "celeba": "large"}
_PASSES = 1000  # most passes over a set: a choice, no training set it


def data_kind(data: str) -> str:
    """Which of the tuned kinds a `--data` value is: digits, mnist, celeba or other."""
    name = "/".join(data.rstrip("/").split("/")[-2:]).lower()  # .../MNIST/raw is MNIST too
    return next((kind for kind in ("digits", "mnist", "celeba") if kind in name), "other")


def preset_config(name: str, data: str = "digits", **fields: Any) -> Config:
    """The config of a preset for a data set.

    ``kimg`` is 0 where ``data`` is a path: `suited_kimg` follows from its pictures then.

    Args:
        fields: other values, as `Config.replace` takes them.

    Raises:
        InputError: no such preset or field, which names the closest; a value that cannot be used.
    """
    if name not in PRESETS:
        close = get_close_matches(name, PRESETS, 1, cutoff=0.4)
        hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(PRESETS)}"
        raise InputError(f"unknown preset {name!r}: {hint}")
    preset = PRESETS[name]
    kimg = getattr(preset.kimg, _LENGTHS[data]) if data in _LENGTHS else 0.0
    config = replace(preset.make(data_kind(data)), preset=name, data=data, kimg=kimg)
    return config.replace(**fields) if fields else config  # that needs PyYAML


def suited_kimg(preset: str, kind: str, size: int, channels: int, count: int) -> float:
    """Thousand real images that a preset shows of such pictures where the config's kimg is 0.

    Digits, MNIST and CelebA have the lengths they were tried with. The length for other pictures
    lies between MNIST's and that of faces, by the numbers in a picture, and shows no picture more
    than 1,000 times. Both rules are choices: no training was made to set them.

    Args:
        kind: of the source: digits, idx, stacked-mnist, celeba, folder or arrays.
        size, channels, count: of the pictures that are trained on.

    Raises:
        InputError: the preset is none of ganfast's.
    """
    if preset not in PRESETS:
        raise InputError(f"kimg is 0, and preset {preset!r} names no length: set kimg above 0")
    lengths = PRESETS[preset].kimg
    if kind in _LENGTHS:
        return float(getattr(lengths, _LENGTHS[kind]))
    grey, faces = 28 * 28, 64 * 64 * 3
    share = min(1.0, max(0.0, (size * size * channels - grey) / (faces - grey)))
    kimg = min(lengths.mnist + share * (lengths.large - lengths.mnist), count * _PASSES / 1000)
    return float(f"{kimg:.2g}")


class Winner(NamedTuple):
    """The preset with the least Fréchet distance of all that were trained on a set for as long."""

    data: str
    minutes: float  # of one CPU thread
    preset: str
    values: Mapping[str, Any]  # how it was trained (`benchmarks/quality.py`), beside its own values
    record: str  # in benchmarks/results


_FACES = {"batch": 32, "optim.decay_from": 0.5}
# What `ganfast train --minutes` chooses from. A newer record replaces a row, or adds one.
WINNERS = (
    Winner("mnist", 5, "dcgan", {}, "quality-mnist.jsonl"),
    Winner(
        *("stacked-mnist", 6, "wgan-gp", {"conditional": "no", "net.latent": 48}),
        "quality-stacked-mnist.jsonl",
    ),
    Winner("celeba", 15, "dcgan", _FACES, "quality-celeba-64.jsonl"),
    Winner("celeba", 52, "dcgan", _FACES, "quality-celeba-64-long.jsonl"),  # of one preset
)


def winner(data: str, channels: int, minutes: float) -> Winner:
    """The row of `WINNERS` for pictures: its budget is the nearest by ratio.

    Grey pictures go by MNIST, and others by faces. StackedMNIST has a row of its own.
    """
    like = data if data == "stacked-mnist" else "mnist" if channels == 1 else "celeba"
    rows = [row for row in WINNERS if row.data == like]
    return min(rows, key=lambda row: abs(math.log(minutes / row.minutes)))


def budget_config(preset: str, data: str, channels: int, minutes: float) -> Config:
    """The config to plan from: as the preset was trained on the set of `winner`; kimg is 0.

    ``preset``: "" = that of the winner. Another one has its own values for such pictures.
    """
    from ganfast.configfile import overlay  # here: presets can be read without PyYAML

    row, kind = winner(data, channels, minutes), data_kind(data)
    if row.data != "celeba":
        kind = "mnist"
    elif kind != "celeba":
        kind = "other"
    name = preset or row.preset
    preset_config(name)  # refuses what is no preset
    config = replace(PRESETS[name].make(kind), preset=name, data=data, kimg=0.0)
    return overlay(config, row.values, row.record) if name == row.preset else config
