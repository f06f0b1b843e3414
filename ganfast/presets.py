"""Named recipes: each a `Config` for the data set at hand. Values not from the paper were measured on two CPU cores."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches

from ganfast.config import Config, LossConfig, NetConfig, OptimConfig, PenaltyConfig
from ganfast.errors import InputError


@dataclass(frozen=True)
class Preset:
    """A recipe: ``make(kind)`` gives its config for data of that kind (digits, mnist, celeba or other)."""

    name: str
    paper: str
    line: str  # one line for `ganfast presets`
    make: Callable[[str], Config]


_ADAM_GAN = OptimConfig(
    lr_generator=2e-4, lr_critic=2e-4, beta1=0.5, beta2=0.999, critic_steps=1
)  # DCGAN section 4
_ADAM_R1 = OptimConfig(lr_generator=2e-4, lr_critic=2e-4, beta1=0.0, beta2=0.99, critic_steps=1)
_BATCH_NORM = NetConfig(critic_norm="batch", init="dcgan")


def _fitted(
    config: Config, kind: str, digits: float, mnist: float, large: float, lr: float = 0.0
) -> Config:
    """Length in thousand images for each kind of data, and what small grey pictures allow.

    Those take small batches, rates that fall to 0 over the last half, ``lr`` for both networks where the paper's is slower than
    need be (0 = the paper's), and a latent of 16: after 100 kimg of unconditional wgan-gp on MNIST a classifier was
    sure of 62% of the pictures, with a latent of 64 of 55%.
    """
    kimg = {"digits": digits, "mnist": mnist}.get(kind, large)
    if kind not in ("digits", "mnist"):
        return replace(config, kimg=kimg)
    optim = replace(config.optim, decay_from=0.5)
    if lr:
        optim = replace(optim, lr_generator=lr, lr_critic=lr, beta1=0.5)
    return replace(
        config, kimg=kimg, batch=32, ema_kimg=20.0, net=replace(config.net, latent=16), optim=optim
    )


def _gan(kind: str) -> Config:
    # Dropout as in the paper's discriminator: without it about 1% of the digits drawn unconditionally were zeros.
    config = Config(
        model="mlp",
        loss=LossConfig("non-saturating"),
        net=NetConfig(critic_dropout=0.3),
        optim=_ADAM_GAN,
    )
    return replace(_fitted(config, kind, 400, 1200, 5000, lr=4e-4), batch=64)


def _dcgan(kind: str) -> Config:
    return _fitted(
        Config(loss=LossConfig("non-saturating"), net=_BATCH_NORM, optim=_ADAM_GAN),
        kind,
        150,
        300,
        5000,
    )


def _acgan(kind: str) -> Config:
    # R1 in place of the paper's batch norms: with those the generator came to draw one picture a class on MNIST (std of 40 threes:
    # 4 grey levels; with R1 35; of real ones 39).
    penalty = PenaltyConfig("r1", weight=1.0)
    config = Config(
        loss=LossConfig("non-saturating"), penalty=penalty, optim=_ADAM_GAN, conditional="auxiliary"
    )
    if kind == "celeba":
        config = replace(config, attributes=("Male", "Smiling"))
    return _fitted(config, kind, 100, 150, 5000, lr=5e-4)


def _wgan(kind: str) -> Config:
    # The paper uses RMSProp because momentum is unstable under clipping: Adam with beta1 = 0 has none either.
    optim = OptimConfig(lr_generator=5e-4, lr_critic=5e-4, beta1=0.0, beta2=0.99, critic_steps=5)
    config = Config(loss=LossConfig("wasserstein", clip=0.01), net=_BATCH_NORM, optim=optim)
    return _fitted(config, kind, 300, 400, 10000)


def _wgan_gp(kind: str) -> Config:
    optim = OptimConfig(
        lr_generator=2e-4, lr_critic=2e-4, beta1=0.0, beta2=0.9, critic_steps=5
    )  # the paper's image code
    config = Config(
        loss=LossConfig("wasserstein"), penalty=PenaltyConfig("wgan-gp", weight=10.0), optim=optim
    )
    return _fitted(config, kind, 200, 250, 10000, lr=1e-3)


def _dragan(kind: str) -> Config:
    penalty = PenaltyConfig("dragan", weight=10.0)
    return _fitted(
        Config(loss=LossConfig("non-saturating"), penalty=penalty, optim=_ADAM_GAN),
        kind,
        150,
        300,
        5000,
    )


def _hinge(kind: str) -> Config:
    config = Config(
        loss=LossConfig("hinge"),
        net=NetConfig(critic_norm="spectral"),
        optim=replace(_ADAM_GAN, beta1=0.0),
    )
    return _fitted(config, kind, 150, 300, 5000)


def _lsgan(kind: str) -> Config:
    # He's initial weights: from N(0, 0.02) the generator came to draw one picture a class on MNIST (std of 40 threes: 3 grey levels
    # after 120 kimg; with He's 34 after 200; of real ones 39).
    net = NetConfig(critic_norm="batch")
    return _fitted(
        Config(loss=LossConfig("least-squares"), net=net, optim=_ADAM_GAN), kind, 150, 300, 5000
    )


def _r1(kind: str) -> Config:
    penalty = PenaltyConfig("r1", weight=1.0)
    return _fitted(
        Config(loss=LossConfig("non-saturating"), penalty=penalty, optim=_ADAM_R1),
        kind,
        150,
        300,
        5000,
    )


def _rpgan(kind: str) -> Config:
    penalty = PenaltyConfig("r1+r2", weight=1.0)
    return _fitted(
        Config(loss=LossConfig("relativistic"), penalty=penalty, optim=_ADAM_R1),
        kind,
        150,
        300,
        5000,
    )


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            "gan",
            "Goodfellow 2014, arXiv:1406.2661",
            "the original: two MLPs, non-saturating loss",
            _gan,
        ),
        Preset(
            "dcgan",
            "Radford 2015, arXiv:1511.06434",
            "convolutions and batch normalisation",
            _dcgan,
        ),
        Preset(
            "acgan",
            "Odena 2016, arXiv:1610.09585",
            "class-conditional, the critic also names the class",
            _acgan,
        ),
        Preset(
            "wgan",
            "Arjovsky 2017, arXiv:1701.07875",
            "Wasserstein critic with clipped weights",
            _wgan,
        ),
        Preset(
            "wgan-gp",
            "Gulrajani 2017, arXiv:1704.00028",
            "Wasserstein critic with a gradient penalty",
            _wgan_gp,
        ),
        Preset(
            "dragan", "Kodali 2017, arXiv:1705.07215", "gradient penalty around the reals", _dragan
        ),
        Preset(
            "hinge", "Miyato 2018, arXiv:1802.05957", "hinge loss, spectral normalisation", _hinge
        ),
        Preset("lsgan", "Mao 2016, arXiv:1611.04076", "least squares", _lsgan),
        Preset(
            "r1",
            "Mescheder 2018, arXiv:1801.04406",
            "non-saturating with zero-centred penalty on the reals",
            _r1,
        ),
        Preset(
            "rpgan", "Huang 2025, arXiv:2501.05441", "relativistic pairing with R1 and R2", _rpgan
        ),
    )
}


def data_kind(data: str) -> str:
    """Which of the tuned kinds a `--data` value is: digits, mnist, celeba or other."""
    name = "/".join(data.rstrip("/").split("/")[-2:]).lower()  # .../MNIST/raw is MNIST too
    return next((kind for kind in ("digits", "mnist", "celeba") if kind in name), "other")


def preset_config(name: str, data: str = "digits") -> Config:
    """The config of a preset for a data set.

    Raises:
        InputError: no such preset; names the closest.
    """
    if name not in PRESETS:
        close = get_close_matches(name, PRESETS, 1, cutoff=0.4)
        hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(PRESETS)}"
        raise InputError(f"unknown preset {name!r}: {hint}")
    return replace(PRESETS[name].make(data_kind(data)), preset=name, data=data)
