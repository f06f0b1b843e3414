"""The GAN iteration in plain PyTorch, as one would write it without ganfast: naive, tuned, compiled, captured.

Only what is measured against: networks and the formulas of losses and penalties are ganfast's, so that all compute the same, but
no engine, no kernel, no statistics beside the loss. Pictures lie on the device, which draws all random numbers: no loader.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ganfast.bench.problem import Inputs, Problem
from ganfast.config import LossConfig
from ganfast.engine.compiled import compiled
from ganfast.losses import class_loss, critic_loss, generator_loss, loss_of
from ganfast.models import judge
from ganfast.models.parts import held_power_iteration
from ganfast.penalties import input_gradient, penalise, penalty_at, penalty_of, points_of
from ganfast.tensors import full_precision

Step = Callable[[], object]


@torch.no_grad()
def clip_weights(critic: nn.Module, limit: float) -> None:
    """WGAN, arXiv:1701.07875, algorithm 1: every weight into [-limit, limit]; 0 = leave them."""
    if limit:
        parameters: list[Tensor] = list(critic.parameters())
        torch._foreach_clamp_min_(parameters, -limit)
        torch._foreach_clamp_max_(parameters, limit)


class Plain:
    """Critic and generator phase of one problem; a phase is pictures and latents, fakes, gradients, Adam, and what follows it.

    Args:
        problem: what to compute.
        tuned: channels last, loss rows in one forward pass where the critic allows it, fused Adam, the problem's precision; else
            fp32, contiguous, three forward passes, Adam as torch makes it.
        compile: torch.compile the loss and its gradients.
        graph: capture each phase in a CUDA graph.
    """

    def __init__(
        self, problem: Problem, tuned: bool = True, compile: bool = False, graph: bool = False
    ) -> None:
        self.problem, self.tuned = problem, tuned
        c, device = problem.config, problem.device
        layout = torch.channels_last if tuned else torch.contiguous_format
        self.generator, self.critic = (moved(net, device, layout) for net in problem.networks(0))
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        self.layout = layout
        self.pictures = torch.from_numpy(problem.pack.images).to(device)
        self.labels = (
            None
            if problem.pack.labels is None
            else torch.from_numpy(problem.pack.labels).to(device)
        )
        self._fed = {
            "critic": self._drawn()
        }  # by phase: a captured one fills the tensors of its own
        self.autocast = problem.autocast if tuned else None
        how: dict[str, Any] = {"betas": (c.optim.beta1, c.optim.beta2)}
        if tuned:
            how |= {"fused": True, "capturable": graph}
        self.adam_generator = torch.optim.Adam(
            self.generator.parameters(), c.optim.lr_generator, **how
        )
        self.adam_critic = torch.optim.Adam(self.critic.parameters(), c.optim.lr_critic, **how)
        self.batch_norm = any(
            isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.critic.modules()
        )
        self._critic_gradients = self._gradients_of_critic(compile)
        self._generator_loss = (
            torch.compile(self.generator_loss) if compile else self.generator_loss
        )
        self.phases: dict[str, Step] = {
            "critic": self.critic_phase,
            "generator": self.generator_phase,
        }
        self.ahead = 1
        if graph:
            self.phases = {name: captured(phase) for name, phase in self.phases.items()}

    def rewind(self) -> None:
        """Nothing is drawn ahead."""

    def used(self, phase: str) -> Inputs:
        """What the last call of a phase was fed."""
        return self._fed[phase]

    def _drawn(self) -> Inputs:
        c, device = self.problem.config, self.problem.device
        index = torch.randint(len(self.pictures), (c.batch,), device=device)
        real = (
            self.pictures[index].float().div_(127.5).sub_(1).contiguous(memory_format=self.layout)
        )
        z, eps = (
            torch.randn(c.batch, c.net.latent, device=device),
            torch.rand(c.batch, device=device),
        )
        noise = torch.rand_like(real) if self.problem.draws_noise else None
        return Inputs(real, z, eps, noise, None if self.labels is None else self.labels[index])

    def critic_phase(self) -> None:
        given = self._fed["critic"] = self._drawn()
        with torch.no_grad(), autocast(self.problem.device, self.autocast):
            fake = pictures(self.generator, given.z, given.labels)
        self._critic_gradients(fake, given)
        self.adam_critic.step()
        clip_weights(self.critic, self.problem.config.loss.clip)

    def generator_phase(self) -> None:
        """Of the classes last shown, as in training."""
        shown = self._fed["critic"]
        given = self._fed["generator"] = replace(shown, z=torch.randn_like(shown.z))
        real = given.real if loss_of(self.problem.config.loss).pairs else None
        self.adam_generator.zero_grad()
        self._generator_loss(given.z, given.labels, real).backward(
            inputs=list(self.generator.parameters())
        )
        self.adam_generator.step()
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.average.parameters()), list(self.generator.parameters()), 1e-3
            )

    def generator_loss(self, z: Tensor, labels: Tensor | None, real: Tensor | None) -> Tensor:
        return whole_generator_loss(
            self.generator, self.critic, self.problem.config.loss, z, labels, real, self.autocast
        )

    def critic_loss(
        self,
        critic: nn.Module,
        fake: Tensor,
        real: Tensor,
        points: Tensor | None,
        labels: Tensor | None,
    ) -> Tensor:
        """Loss and penalty; ``real`` and ``fake`` are detached, ``points`` those of a penalty that has its own."""
        c = self.problem.config
        penalty = c.penalty if c.penalty.active else None
        pictures = penalty_of(penalty).pictures if penalty else ()
        held = {
            name: x.requires_grad_()
            for name, x in (("real", real), ("fake", fake))
            if name in pictures
        }
        with autocast(self.problem.device, self.autocast):
            if self.tuned and not self.batch_norm and not held:  # one forward of 2 N rows
                both = None if labels is None else torch.cat((labels, labels))
                said = judge(critic, torch.cat((real, fake)), both)
                scores = list(said.score.chunk(2))
                classes: list[Any] = (
                    [None, None] if said.classes is None else list(said.classes.chunk(2))
                )
            else:
                first = judge(critic, real, labels)
                with held_power_iteration(critic):
                    second = judge(critic, fake, labels)
                scores, classes = [first.score, second.score], [first.classes, second.classes]
            with held_power_iteration(critic):
                total = critic_loss(c.loss, scores[0], scores[1]).mean()
                for name, x in held.items():
                    gradient = input_gradient(scores[0] if name == "real" else scores[1], x)
                    total = total + penalise(c.penalty, gradient)[0].mean()
                if points is not None and penalty:
                    total = (
                        total
                        + penalty_at(penalty, critic, points.requires_grad_(), labels)[0].mean()
                    )
        if classes[0] is not None and labels is not None:
            named = class_loss(full_precision(classes[0]), labels).mean()
            if c.loss.class_fakes:
                named = named + class_loss(full_precision(classes[1]), labels).mean()
            total = total + c.loss.class_weight * named
        return total

    def _gradients_of_critic(self, compile: bool) -> Callable[[Tensor, Inputs], None]:
        """What fills .grad of the critic from a batch of fakes and what else the phase was fed."""
        penalty, critic = self.problem.config.penalty, self.critic
        parameters = list(critic.parameters())

        def points(fake: Tensor, given: Inputs) -> Tensor | None:
            penalties = (penalty,) if penalty.active else ()
            batches = points_of(penalties, given.real, fake, given.eps, given.noise)
            return batches[0] if batches else None

        if not compile or not penalty.active:
            loss = torch.compile(self.critic_loss) if compile else self.critic_loss

            def run(fake: Tensor, given: Inputs) -> None:
                self.adam_critic.zero_grad()
                loss(
                    critic, fake.detach(), given.real.detach(), points(fake, given), given.labels
                ).backward(inputs=parameters)

            return run
        whole = _Whole(
            critic, self.critic_loss
        )  # torch.compile does not differentiate twice: the whole step becomes one graph
        trained = {f"critic.{name}" for name, _ in critic.named_parameters()}

        def gradients(
            weights: dict[str, Tensor],
            fake: Tensor,
            real: Tensor,
            at: Tensor | None,
            labels: Tensor | None,
        ) -> list[Tensor]:
            leaves = {
                name: w.detach().requires_grad_() for name, w in weights.items() if name in trained
            }
            given = {name: w for name, w in weights.items() if name not in trained} | leaves
            with torch.enable_grad():
                total = functional_call(
                    whole,
                    given,
                    (fake.detach(), real.detach(), None if at is None else at.detach(), labels),
                )
                return list(torch.autograd.grad(total, list(leaves.values())))

        step = compiled(gradients)

        def run_compiled(fake: Tensor, given: Inputs) -> None:
            weights = {
                f"critic.{n}": w.detach()
                for n, w in (*critic.named_parameters(), *critic.named_buffers())
            }
            found = step(weights, fake, given.real, points(fake, given), given.labels)
            for p, g in zip(parameters, found, strict=True):
                p.grad = (
                    g if g.stride() == p.stride() else torch.empty_like(p).copy_(g)
                )  # fused Adam walks both by address

        return run_compiled


class _Whole(nn.Module):
    def __init__(self, critic: nn.Module, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.critic, self._loss = critic, loss

    def forward(self, *args: Any) -> Tensor:
        return self._loss(self.critic, *args)


def whole_generator_loss(
    generator: nn.Module,
    critic: nn.Module,
    loss: LossConfig,
    z: Tensor,
    labels: Tensor | None,
    real: Tensor | None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """What the generator minimises, 0-d. ``real``: what the relativistic loss pairs fakes with, None under the others."""
    with autocast(z.device, dtype), held_power_iteration(critic):
        said = judge(critic, pictures(generator, z, labels), labels)
        paired = None if real is None else judge(critic, real, labels).score
    total = generator_loss(loss, said.score, paired).mean()
    if said.classes is not None and labels is not None:
        total = total + loss.class_weight_generator * class_loss(said.classes, labels).mean()
    return total


def pictures(generator: nn.Module, z: Tensor, labels: Tensor | None) -> Tensor:
    """As torch draws them, without what ganfast's own steps do to be quicker."""
    return full_precision(generator(z) if labels is None else generator(z, labels))


def autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def moved(net: nn.Module, device: torch.device, layout: torch.memory_format) -> nn.Module:
    return net.to(device).to(memory_format=layout)  # type: ignore[call-overload]


def captured(phase: Step) -> Step:
    """The phase as one replay of a CUDA graph, after warm-up on a side stream. Replayed once: other phases read what it fills."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            phase()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        phase()
    graph.replay()
    return graph.replay
