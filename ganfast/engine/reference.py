"""The critic step by its definition, in eager autograd: what every faster engine is compared with."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ganfast.config import LossConfig, PenaltyConfig
from ganfast.log import logger
from ganfast.losses import accuracy, class_loss, critic_loss, wasserstein_estimate
from ganfast.models import judge
from ganfast.models.parts import held_power_iteration
from ganfast.penalties import input_gradient, interpolate, norm, penalty_at, perturb, zero_centred_penalty

CriticStep = Callable[..., dict[str, Tensor]]


def make_critic_step(
    critic: nn.Module,
    loss: LossConfig,
    penalty: PenaltyConfig,
    autocast: torch.dtype | None = None,
    compile: bool = False,
) -> CriticStep:
    """A callable that fills ``.grad`` of the critic's parameters with the gradient of its whole loss.

    Args:
        critic: scores pictures (N, C, H, W); see `ganfast.models.NetSpec` for what it may return.
        loss, penalty: what to minimise.
        autocast: run the critic in this type (bfloat16), the penalty staying in float32; None = as it is.
        compile: torch.compile steps without a penalty. Steps with one stay eager, which is said once: torch refuses to
            differentiate a compiled critic twice.

    Returns:
        ``step(real, fake, labels=None, eps=None, noise=None, with_penalty=True)``: real and fake (N, C, H, W) in [-1, 1],
        labels int64 (N,) shared by each real and its fake, eps (N,) in [0, 1] for WGAN-GP, noise like real in [0, 1) for DRAGAN;
        both are drawn from torch's generator where they are needed and not given. It returns 0-d tensors and waits for nothing:
        loss, wasserstein, real_score, fake_score; with a penalty also penalty, gradient_norm and gradient_norm_max; with a class
        head class_loss and class_accuracy.
    """

    def whole_loss(
        real: Tensor, fake: Tensor, labels: Tensor | None, kind: str, eps: Tensor | None, noise: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.autocast(real.device.type, autocast, enabled=autocast is not None):
            real_said = judge(critic, real, labels)  # reals and fakes apart: batch statistics are those of each on its own
            with held_power_iteration(critic):
                fake_said = judge(critic, fake, labels)
                if kind == "wgan-gp":
                    eps = torch.rand(len(real), device=real.device) if eps is None else eps
                    values, norms = penalty_at(penalty, critic, interpolate(real, fake, eps), labels)
                elif kind == "dragan":
                    noise = torch.rand_like(real) if noise is None else noise
                    values, norms = penalty_at(penalty, critic, perturb(real, noise), labels)
                elif kind != "none":  # R1, R2: at the very points that the loss scores, sharing their forward
                    scored = ((real_said.score, real), (fake_said.score, fake))
                    gradients = [input_gradient(score, x) for score, x in scored if x.requires_grad]
                    values = torch.stack([zero_centred_penalty(penalty, g) for g in gradients]).sum(0)
                    norms = norm(torch.cat(gradients))

        total = critic_loss(loss, real_said.score, fake_said.score).mean()
        stats = {
            "loss": total,
            "wasserstein": wasserstein_estimate(real_said.score, fake_said.score),
            "real_score": real_said.score.mean(),
            "fake_score": fake_said.score.mean(),
        }
        if real_said.classes is not None and fake_said.classes is not None and labels is not None:
            named = class_loss(real_said.classes, labels).mean()
            if loss.class_fakes:
                named = named + class_loss(fake_said.classes, labels).mean()
            stats |= {"class_loss": named, "class_accuracy": accuracy(real_said.classes, labels)}
            total = total + loss.class_weight * named
        if kind != "none":
            stats |= {"penalty": values.mean(), "gradient_norm": norms.mean(), "gradient_norm_max": norms.max()}
            total = total + penalty.interval * values.mean()  # lazy: rarer, as much heavier
        return total, stats

    compiled_loss = torch.compile(whole_loss) if compile else whole_loss
    if compile and penalty.active:
        logger.warning("--compile: critic steps with penalty %s stay eager, torch cannot differentiate them twice", penalty.kind)

    def step(
        real: Tensor,
        fake: Tensor,
        labels: Tensor | None = None,
        eps: Tensor | None = None,
        noise: Tensor | None = None,
        with_penalty: bool = True,
    ) -> dict[str, Tensor]:
        kind = penalty.kind if with_penalty and penalty.active else "none"
        real = real.detach().requires_grad_(kind in ("r1", "r1+r2"))
        fake = fake.detach().requires_grad_(kind in ("r2", "r1+r2"))  # never a path back into the generator
        total, stats = (compiled_loss if kind == "none" else whole_loss)(real, fake, labels, kind, eps, noise)
        fill_gradients(critic, total)
        return {name: value.detach() for name, value in stats.items()}

    return step


def fill_gradients(net: nn.Module, loss: Tensor) -> None:
    """.grad of every parameter of ``net``, and of nothing else; 0 where the loss does not depend on it.

    Each lies in memory as its parameter does. A double backward returns weight gradients with strides of their own, and fused Adam
    walks gradient and weight by address: it would move every weight by the gradient of another.
    """
    parameters = [p for p in net.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if parameter.grad is None:
            parameter.grad = torch.empty_like(parameter)
        if gradient is None:
            parameter.grad.zero_()
        else:
            parameter.grad.copy_(gradient)
