"""What changes from step to step by the image counter alone: rates, decays, penalty, average.

Everything here is computed on the host, in float64, for the steps that `Feed` draws ahead.
"""

import math

import torch
from torch import Tensor

from ganfast.config import Config
from ganfast.fields import Schedule
from ganfast.training.ema import ema_decay


def value_at(value: float | Schedule, images: Tensor, kimg: float) -> Tensor:
    """A config's value at the steps from ``images`` on, float64 like ``images``.

    Args:
        value: a constant, or first + (last - first) f(t), t being the part of the move that is
            done, in [0, 1]; f(t) = t (linear) or (1 - cos(pi t)) / 2 (cosine).
        images: reals shown before each step, int64 of any shape.
        kimg: length of the run, over which a schedule without a length of its own moves.
    """
    if not isinstance(value, Schedule):
        return torch.full(images.shape, value, dtype=torch.float64)
    done = (images.double() / 1000 / (value.over_kimg or kimg)).clamp(0, 1)
    if value.shape == "cosine":
        done = (1 - torch.cos(math.pi * done)) / 2
    return value.first + (value.last - value.first) * done


def run_factor(config: Config, images: Tensor) -> Tensor:
    """Factor on both learning rates of the steps from ``images`` on, float64 in [0, 1].

    1, with a linear rise at the start and a linear fall at the end where the config asks for them.
    The first step of a warm-up already moves.
    """
    done, whole = images.double() / 1000, config.kimg
    factor = torch.ones_like(done)
    if config.optim.warmup_kimg:
        step = config.batch * config.optim.critic_steps / 1000
        factor = ((done + step) / config.optim.warmup_kimg).clamp(max=1)
    start = config.optim.decay_from * whole
    if start < whole:
        factor = factor * ((whole - done) / (whole - start)).clamp(0, 1)
    return factor


def scheduled_values(config: Config, images: Tensor) -> dict[str, Tensor]:
    """What the steps from ``images`` on need, float64 like ``images``, by name.

    ``critic`` and ``generator`` are learning rates and ``decay`` is what stays of the average.
    ``beta2``, ``penalty_share`` and ``augment_p`` are there only where the config has a schedule
    for them.
    """
    optim, penalty, step = config.optim, config.penalty, config.batch * config.optim.critic_steps

    def at(value: float | Schedule, when: Tensor = images) -> Tensor:
        return value_at(value, when, config.kimg)

    factor = run_factor(config, images)
    values = {
        "critic": factor * at(optim.lr_critic),
        "generator": factor * at(optim.lr_generator),
        # The average follows the step, and so sees its images.
        "decay": ema_decay(step, images + step, at(config.ema_kimg, images + step)),
    }
    if isinstance(optim.beta2, Schedule):
        values["beta2"] = at(optim.beta2)
    if penalty.active and isinstance(penalty.weight, Schedule):
        values["penalty_share"] = at(penalty.weight) / penalty.full_weight
    if isinstance(config.augment_p, Schedule) and config.augment == "on":
        values["augment_p"] = at(config.augment_p)
    return values
