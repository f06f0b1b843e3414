"""The generator's exponential moving average, with its half-life counted in images, and its BatchNorm statistics."""

import copy

import torch
from torch import Tensor, nn

from ganfast.engine import draw
from ganfast.random import Purpose, normal

RAMP = 0.1  # early in a run the half-life is at most this fraction of the images seen, so that the start is forgotten


def average_of(generator: nn.Module) -> nn.Module:
    """A copy that its optimizer moves after the generator; never trained itself."""
    return copy.deepcopy(generator).eval().requires_grad_(False)


def ema_decay(step_images: int, images: Tensor, half_life_kimg: float) -> Tensor:
    """What stays of the average at an update, beta = 0.5 ** (step_images / half-life in images).

    Args:
        step_images: images shown since the last update.
        images: images shown in all, int64 of any shape; the half-life is at most a tenth of them.
        half_life_kimg: thousand images; 0 makes the average a copy.

    Returns:
        float64 like ``images``, in [0, 1).
    """
    half_life = (images.double() * RAMP).clamp(max=half_life_kimg * 1000)
    return torch.exp2(-step_images / half_life)  # of a half-life of 0: exp2(-inf) = 0


@torch.no_grad()
def reestimate_batchnorm(net: nn.Module, seed: int, latent: int, classes: int, batches: int = 4, batch: int = 256) -> None:
    """Give every BatchNorm of ``net`` the statistics of its own inputs, from latents fixed by ``seed``.

    An average of weights has activations of its own: running statistics copied from the trained generator do not fit them.
    Classes are drawn equally often. Leaves ``net`` in evaluation mode; networks without BatchNorm are left as they are.
    """
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    momenta = [m.momentum for m in norms]
    for module in norms:
        module.reset_running_stats()
        module.momentum = None  # a plain mean over the batches
    net.train()
    device = next(net.parameters()).device
    for number in range(batches):
        index = torch.arange(number * batch, (number + 1) * batch, device=device)
        draw(net, normal(seed, Purpose.BATCHNORM, index, latent), index % classes if classes else None)
    net.eval()
    for module, momentum in zip(norms, momenta, strict=True):
        module.momentum = momentum
