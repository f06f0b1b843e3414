"""Networks by name, or a user's own: `build` makes both from a config and the shape of the data."""

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ganfast.config import Config
from ganfast.errors import InputError
from ganfast.log import logger
from ganfast.models.dcgan import dcgan_critic, dcgan_generator
from ganfast.models.made_from import begin_at_skip, made_from
from ganfast.models.mlp import mlp_critic, mlp_generator
from ganfast.models.parts import Judgement, dcgan_init, fits, he_init, spectral
from ganfast.models.r3 import r3_critic, r3_generator, r3_init
from ganfast.models.resnet import resnet_critic, resnet_generator
from ganfast.tasks import task_of
from ganfast.tensors import full_precision

__all__ = ["Judgement", "NetSpec", "build_critic", "build_generator", "judge"]


@dataclass(frozen=True)
class NetSpec:
    """What a network is built for. A user's class is called as ``MyCritic(spec)`` or
    ``MyGenerator(spec)``.

    A critic maps (N, channels, size, size) in [-1, 1] to (N,) or (N, 1) scores, or to (scores,
    class logits (N, classes)) for ``conditional == "auxiliary"``; for "projection" it is called
    with labels (N,) as second argument. A generator maps z (N, latent), and labels (N,) where
    ``classes > 0``, to pictures in [-1, 1].

    Where ``given`` is not (), the generator's last argument is a condition (N, k, h, w) as
    `ganfast.tasks.scaled` makes it, and what the critic maps has ``shown`` channels more, behind
    the picture's.
    """

    size: int  # side in pixels
    channels: int  # 1 or 3
    classes: int  # 0 = no classes
    conditional: str  # "no", "projection" or "auxiliary"
    width: int
    latent: int
    generator_norm: str = "batch"
    critic_norm: str = "none"
    critic_dropout: float = 0.0
    init: str = "he"
    model: str = "dcgan"
    blocks: int = 0  # residual blocks a stage; 0 = as many as the family has
    given: tuple[int, ...] = ()  # (h, w, k) of what a picture is made from; () = latents alone
    shown: int = 0  # channels of it that the critic is shown, at the picture's size

    @staticmethod
    def of(config: Config, size: int, channels: int, classes: int, conditional: str) -> "NetSpec":
        """The spec of a config whose automatic values are resolved."""
        net = config.net
        norms = net.generator_norm, net.critic_norm, net.critic_dropout
        classes = classes if conditional != "no" else 0
        sizes = size, channels, classes, conditional, net.width, net.latent
        spec = NetSpec(*sizes, *norms, net.init, config.model, net.blocks)
        task = task_of(config, size, channels)
        return replace(spec, given=task.given, shown=task.shown) if task else spec


@dataclass(frozen=True)
class Family:
    """Networks by one name. A new family: a row of `FAMILIES`."""

    critic: Callable[..., nn.Module]
    generator: Callable[..., nn.Module]
    he: Callable[[nn.Module], object] = he_init  # what ``init == "he"`` does
    residual: bool = False  # has blocks to count, and halves the side exactly
    largest: int = 128  # side in pixels
    cpu_width: int = 32  # of networks on a CPU whose width is not given


FAMILIES = {
    "dcgan": Family(dcgan_critic, dcgan_generator),
    "mlp": Family(mlp_critic, mlp_generator),
    # Blocks at full resolution make channels dear: with 32 of them resnet takes 8 times the work of
    # dcgan on MNIST, and r3 16 times.
    "resnet": Family(resnet_critic, resnet_generator, residual=True, largest=256, cpu_width=16),
    "r3": Family(r3_critic, r3_generator, r3_init, residual=True, largest=256, cpu_width=16),
}
_NAMES = ", ".join(FAMILIES)


def cpu_width(model: str) -> int:
    """The width of a model's networks on a CPU, where none is given."""
    return min(family.cpu_width for family in _families(model))


def largest_side(model: str) -> int:
    """The largest pictures, in pixels a side, that the named networks of a model make."""
    return min(family.largest for family in _families(model))


def _families(model: str) -> list[Family]:
    named = [FAMILIES[part] for part in model.split(",") if part in FAMILIES]
    return named or [FAMILIES["dcgan"]]


def build_generator(spec: NetSpec) -> nn.Module:
    """z (N, latent) -> pictures; initial weights come from torch's generator as it stands."""
    family, own = _parse(spec.model, spec)
    if "generator" in own:
        return _construct(own["generator"], spec)
    more = _checked(family, spec)
    shape = spec.size, spec.channels, spec.width
    if spec.given:
        made = made_from(*shape, spec.latent, spec.classes, spec.given)
        _initialise(made, family, spec)
        begin_at_skip(made)
        return made
    make, classes = FAMILIES[family].generator, spec.classes
    net = make(*shape, spec.generator_norm, spec.latent, classes, **more)
    return _initialise(net, family, spec)


def build_critic(spec: NetSpec) -> nn.Module:
    """Pictures -> scores; initial weights come from torch's generator as it stands."""
    family, own = _parse(spec.model, spec)
    if "critic" in own:
        critic: Any = _construct(own["critic"], spec)
        critic.takes_labels = spec.conditional == "projection"
        return cast(nn.Module, critic)
    more = _checked(family, spec)
    shape = spec.size, spec.channels + spec.shown, spec.width
    classes = spec.classes, spec.conditional
    make = FAMILIES[family].critic
    net = make(*shape, spec.critic_norm, *classes, spec.critic_dropout, **more)
    _initialise(net, family, spec)
    # After the initial weights, which it hides behind its estimates.
    return spectral(net) if spec.critic_norm == "spectral" else net


def judge(critic: nn.Module, x: Tensor, labels: Tensor | None = None) -> Judgement:
    """Any critic's answer in one form, in float32 or more: score (N,), class logits (N, K) or
    None."""
    answer = critic(x, labels) if getattr(critic, "takes_labels", False) else critic(x)
    return as_judgement(answer, len(x), averages_scores(critic))


def averages_scores(critic: nn.Module) -> bool:
    """Whether the critic says that a picture's score is the mean of all that it returns."""
    return bool(getattr(critic, "averages_scores", False))


def as_judgement(answer: Any, count: int, averaged: bool = False) -> Judgement:
    """What a critic returned for ``count`` pictures in one form.

    ``averaged``: the answer, or the score of a `Judgement`, is one or several maps of scores, each
    (N, ...). A picture's score is the mean over each map (PatchGAN, arXiv:1611.07004, section 3.2),
    then over the maps (scales, arXiv:1711.11585).
    """
    score, classes = answer, None
    if isinstance(answer, Judgement) or (isinstance(answer, tuple | list) and not averaged):
        score, classes = (*answer, None)[:2] if len(answer) in (1, 2) else (None, None)
    maps = score if averaged and isinstance(score, tuple | list) else [score]
    if not maps or not all(isinstance(part, Tensor) for part in maps):
        raise InputError(
            f"the critic returned {_described(answer)}; expected scores, or (scores, class logits)"
        )
    for part in maps:
        if not part.is_floating_point():
            raise InputError(f"the critic returned scores of {part.dtype}; expected floating point")
        if averaged and (not part.dim() or len(part) != count):
            raise InputError(
                f"the critic returned a map of scores {tuple(part.shape)} for {count} pictures; "
                "expected the pictures along the first axis"
            )
    if averaged:
        means = [full_precision(part).reshape(count, -1).mean(1) for part in maps]
        score = torch.stack(means).mean(0) if len(means) > 1 else means[0]
    if score.numel() != count:
        raise InputError(
            f"the critic returned scores of shape {tuple(score.shape)} for {count} pictures; "
            "expected one each, or averages_scores = True as an attribute of the critic"
        )
    if classes is not None and not (isinstance(classes, Tensor) and _is_logits(classes, count)):
        raise InputError(
            f"the critic returned {_described(classes)} beside its scores; expected class logits "
            "(N, classes), or averages_scores = True where a picture has several scores"
        )
    return Judgement(
        full_precision(score.reshape(count)), None if classes is None else full_precision(classes)
    )


def _is_logits(classes: Tensor, count: int) -> bool:
    return classes.dim() == 2 and len(classes) == count and classes.shape[1] > 1


def _described(answer: Any) -> str:
    if isinstance(answer, Tensor):
        return f"a tensor {tuple(answer.shape)}"
    if isinstance(answer, tuple | list):
        parts = ", ".join(map(_described, answer[:3])) + (", ..." if len(answer) > 3 else "")
        return f"{type(answer).__name__} [{parts}]"
    return f"a {type(answer).__name__}"


def _initialise(net: nn.Module, family: str, spec: NetSpec) -> nn.Module:
    if spec.init != "torch":
        {"he": FAMILIES[family].he, "dcgan": dcgan_init}[spec.init](net)
    return net


def _checked(family: str, spec: NetSpec) -> dict[str, int]:
    """What the family's functions take beside the others' arguments. Raises InputError."""
    row = FAMILIES[family]
    if not 16 <= spec.size <= row.largest:
        raise InputError(
            f"size is {spec.size}; the {family} networks make pictures of 16 to {row.largest} "
            "pixels: set --size"
        )
    if row.residual and not fits(spec.size):
        near = sorted(filter(fits, range(16, row.largest + 1)), key=lambda s: abs(s - spec.size))
        raise InputError(
            f"size is {spec.size}; the {family} networks halve the side exactly until it is 4 to "
            f"7: set --size to {near[0]} or {near[1]}"
        )
    if spec.blocks and not row.residual:
        raise InputError(
            f"blocks is {spec.blocks}; the {family} networks have no residual blocks: "
            "set --net.blocks 0, or --model resnet or r3"
        )
    return {"blocks": spec.blocks} if spec.blocks else {}


def _parse(model: str, spec: NetSpec) -> tuple[str, dict[str, Any]]:
    """The family, and a user's own classes by "generator" and "critic"."""
    family, own = "dcgan", {}
    for part in model.split(","):
        if part in FAMILIES:
            family = part
            continue
        module_name, _, name = part.partition(":")
        if not name or not module_name or module_name.startswith("."):
            raise InputError(
                f"model is {part!r}; expected {_NAMES}, or your own class as my.module:Critic"
            )
        own["generator" if "generator" in name.lower() else "critic"] = _load(module_name, name)
    return family, own


def _load(module_name: str, name: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:  # a module beside the user, as `python script.py` would find it
        sys.path.insert(0, here)
    if module_name not in sys.modules:  # a run from elsewhere may name it
        logger.warning("model %s:%s is code, which is run now", module_name, name)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module does when it is imported
        raise InputError(
            f"model {module_name}:{name}: {error}; expected an importable module, here or installed"
        ) from error
    if not hasattr(module, name):
        raise InputError(f"model {module_name}:{name}: the module has no {name}")
    return getattr(module, name)


def _construct(cls: Any, spec: NetSpec) -> nn.Module:
    try:
        net = cls(spec)
    except Exception as error:
        raise InputError(
            f"{cls.__name__}(spec) raised {type(error).__name__}: {error}; it is built for {spec}"
        ) from error
    if not isinstance(net, nn.Module):
        raise InputError(
            f"{cls.__name__}(spec) gave {type(net).__name__}; expected a torch.nn.Module"
        )
    return net


@torch.no_grad()
def try_out(generator: nn.Module, critic: nn.Module, spec: NetSpec) -> None:
    """One forward of two pictures through networks of a user's own, in evaluation mode.

    Raises:
        InputError: they do not fit each other or the data; says which and how.
    """
    labels = torch.arange(2) % spec.classes if spec.classes else None
    height, width, channels = spec.given or (0, 0, 0)
    given = [torch.zeros(2, channels, height, width)] if spec.given else []
    training = generator.training, critic.training
    for name, net in (("generator", generator), ("critic", critic)):
        net.eval()
        try:
            if name == "generator":
                z = torch.zeros(2, spec.latent)
                pictures = net(z, *given) if labels is None else net(z, labels, *given)
            else:
                shown = pictures.new_zeros(2, spec.shown, *pictures.shape[2:])
                judgement = judge(net, torch.cat([pictures, shown], 1), labels)
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"the {name} of {spec.model} fails on two pictures: {' '.join(str(error).split())}"
            ) from error
    shape = (2, spec.channels, spec.size, spec.size)
    if tuple(pictures.shape) != shape:
        raise InputError(
            f"the generator of {spec.model} drew {tuple(pictures.shape)} for two latents; "
            f"expected {shape}"
        )
    if spec.conditional == "auxiliary" and (
        judgement.classes is None or tuple(judgement.classes.shape) != (2, spec.classes)
    ):
        raise InputError(
            f"the critic of {spec.model} gives no class logits (2, {spec.classes}) for two "
            "pictures: a class head must"
        )
    generator.train(training[0])
    critic.train(training[1])


def parameter_count(net: nn.Module) -> int:
    """Trainable numbers."""
    return sum(p.numel() for p in net.parameters() if p.requires_grad)
