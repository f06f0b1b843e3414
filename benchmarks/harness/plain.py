"""The GAN iteration in plain PyTorch, as one would write it without ganfast.

Naive, tuned, compiled or captured. It is only measured against. Networks and the formulas of losses
and penalties are ganfast's, so that all compute the same, but there is no engine, no kernel, and no
statistics beside the loss. Pictures lie on the device, which draws all random numbers: no loader.
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
from ganfast.fields import ends
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
    """Critic and generator phase of one problem.

    A phase is pictures and latents, fakes, gradients, Adam, and what follows it.

    Args:
        problem: what to compute.
        tuned: channels last, loss rows in one forward pass where the critic allows it, fused Adam,
            the problem's precision; else fp32, contiguous, three forward passes, Adam as torch
            makes it.
        compile: torch.compile the loss and its gradients.
        graph: capture each phase in a CUDA graph.
    """

    def __init__(
        self, problem: Problem, tuned: bool = True, compile: bool = False, graph: bool = False
    ) -> None:
        self.problem, self.tuned = problem, tuned
        c, device = problem.config, problem.device
        self.layout = torch.channels_last if tuned else torch.contiguous_format
        nets = problem.networks(0)
        self.generator, self.critic = (moved(net, device, self.layout) for net in nets)
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        pack = problem.pack
        self.pictures = torch.from_numpy(pack.images).to(device)
        self.labels = None if pack.labels is None else torch.from_numpy(pack.labels).to(device)
        # By phase: a captured one fills the tensors of its own.
        self._fed = {"critic": self._drawn()}
        self.autocast = problem.autocast if tuned else None
        options: dict[str, Any] = {"betas": (c.optim.beta1, ends(c.optim.beta2)[0])}
        if tuned:
            options |= {"fused": True, "capturable": graph}
        # One for each network, as ganfast has; enabled in float16 only.
        half = self.autocast == torch.float16
        self.scalers = {
            name: torch.amp.GradScaler(device.type, 2.0**12, enabled=half)
            for name in ("critic", "generator")
        }
        adam = torch.optim.Adam
        self.adam_generator = adam(
            self.generator.parameters(), ends(c.optim.lr_generator)[0], **options
        )
        self.adam_critic = adam(self.critic.parameters(), ends(c.optim.lr_critic)[0], **options)
        batch_norms = nn.modules.batchnorm._BatchNorm
        self.batch_norm = any(isinstance(m, batch_norms) for m in self.critic.modules())
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
        real = self.pictures[index].float().div_(127.5).sub_(1)
        real = real.contiguous(memory_format=self.layout)
        z = torch.randn(c.batch, c.net.latent, device=device)
        eps = torch.rand(c.batch, device=device)
        noise = torch.rand_like(real) if self.problem.draws_noise else None
        return Inputs(real, z, eps, noise, None if self.labels is None else self.labels[index])

    def critic_phase(self) -> None:
        inputs = self._fed["critic"] = self._drawn()
        with torch.no_grad(), autocast(self.problem.device, self.autocast):
            fake = pictures(self.generator, inputs.z, inputs.labels)
        self._critic_gradients(fake, inputs)
        self._step("critic", self.adam_critic)
        clip_weights(self.critic, self.problem.config.loss.clip)

    def generator_phase(self) -> None:
        """Of the classes last shown, as in training."""
        shown = self._fed["critic"]
        inputs = self._fed["generator"] = replace(shown, z=torch.randn_like(shown.z))
        real = inputs.real if loss_of(self.problem.config.loss).pairs else None
        self.adam_generator.zero_grad()
        loss = self._generator_loss(inputs.z, inputs.labels, real)
        loss = self.scalers["generator"].scale(loss)
        loss.backward(inputs=list(self.generator.parameters()))
        self._step("generator", self.adam_generator)
        with torch.no_grad():
            averages, weights = self.average.parameters(), self.generator.parameters()
            torch._foreach_lerp_(list(averages), list(weights), 1e-3)

    def _step(self, network: str, adam: torch.optim.Optimizer) -> None:
        self.scalers[network].step(adam)
        self.scalers[network].update()

    def generator_loss(self, z: Tensor, labels: Tensor | None, real: Tensor | None) -> Tensor:
        nets, loss = (self.generator, self.critic), self.problem.config.loss
        return whole_generator_loss(nets, loss, z, labels, real, self.autocast)

    def critic_loss(
        self,
        critic: nn.Module,
        fake: Tensor,
        real: Tensor,
        points: Tensor | None,
        labels: Tensor | None,
    ) -> Tensor:
        """Loss and penalty.

        ``real`` and ``fake`` are detached, ``points`` those of a penalty that has its own.
        """
        c = self.problem.config
        penalty = c.penalty if c.penalty.active else None
        penalised = penalty_of(penalty).pictures if penalty else ()
        sources = {"real": real, "fake": fake}
        held = {name: x.requires_grad_() for name, x in sources.items() if name in penalised}
        with autocast(self.problem.device, self.autocast):
            if self.tuned and not self.batch_norm and not held:  # one forward of 2 N rows
                both = None if labels is None else torch.cat((labels, labels))
                answer = judge(critic, torch.cat((real, fake)), both)
                scores, logits = answer.score.chunk(2), answer.classes
                classes: tuple[Tensor | None, ...] = (None, None)
                if logits is not None:
                    classes = logits.chunk(2)
            else:
                first = judge(critic, real, labels)
                with held_power_iteration(critic):
                    second = judge(critic, fake, labels)
                scores, classes = (first.score, second.score), (first.classes, second.classes)
            with held_power_iteration(critic):
                total = critic_loss(c.loss, scores[0], scores[1]).mean()
                for name, x in held.items():
                    gradient = input_gradient(scores[0] if name == "real" else scores[1], x)
                    total = total + penalise(c.penalty, gradient)[0].mean()
                if points is not None and penalty:
                    value, _ = penalty_at(penalty, critic, points.requires_grad_(), labels)
                    total = total + value.mean()
        of_real, of_fake = classes
        if of_real is not None and of_fake is not None and labels is not None:
            error = class_loss(full_precision(of_real), labels).mean()
            if c.loss.class_fakes:
                error = error + class_loss(full_precision(of_fake), labels).mean()
            total = total + c.loss.class_weight * error
        return total

    def _points(self, fake: Tensor, inputs: Inputs) -> Tensor | None:
        penalty = self.problem.config.penalty
        penalties = (penalty,) if penalty.active else ()
        batches = points_of(penalties, inputs.real, fake, inputs.eps, inputs.noise)
        return batches[0] if batches else None

    def _gradients_of_critic(self, compile: bool) -> Callable[[Tensor, Inputs], None]:
        """What fills .grad of the critic from a batch of fakes and the other inputs."""
        critic, parameters = self.critic, list(self.critic.parameters())
        if compile and self.problem.config.penalty.active:
            return self._compiled_gradients()
        loss = torch.compile(self.critic_loss) if compile else self.critic_loss

        def run(fake: Tensor, inputs: Inputs) -> None:
            self.adam_critic.zero_grad()
            points, real = self._points(fake, inputs), inputs.real.detach()
            value = loss(critic, fake.detach(), real, points, inputs.labels)
            self.scalers["critic"].scale(value).backward(inputs=parameters)

        return run

    def _compiled_gradients(self) -> Callable[[Tensor, Inputs], None]:
        """The whole step as one graph: torch.compile does not differentiate twice."""
        critic, whole = self.critic, _Whole(self.critic, self.critic_loss)
        parameters = {f"critic.{name}": p for name, p in critic.named_parameters()}
        buffers = {f"critic.{name}": b for name, b in critic.named_buffers()}

        def gradients(
            weights: dict[str, Tensor],
            fake: Tensor,
            real: Tensor,
            points: Tensor | None,
            labels: Tensor | None,
            scale: Tensor | None,
        ) -> list[Tensor]:
            leaves = {name: weights[name].detach().requires_grad_() for name in parameters}
            points = None if points is None else points.detach()
            with torch.enable_grad():
                arguments = (fake.detach(), real.detach(), points, labels)
                total = functional_call(whole, weights | leaves, arguments)
                total = total if scale is None else total * scale
                return list(torch.autograd.grad(total, list(leaves.values())))

        step, scaler = compiled(gradients), self.scalers["critic"]
        one = torch.ones((), device=self.problem.device) if scaler.is_enabled() else None

        def run(fake: Tensor, inputs: Inputs) -> None:
            weights = {name: w.detach() for name, w in (parameters | buffers).items()}
            points = self._points(fake, inputs)
            scale = None if one is None else scaler.scale(one)
            filled = step(weights, fake, inputs.real, points, inputs.labels, scale)
            for p, g in zip(parameters.values(), filled, strict=True):
                # Fused Adam walks weight and gradient by address.
                p.grad = g if g.stride() == p.stride() else torch.empty_like(p).copy_(g)

        return run


class _Whole(nn.Module):
    def __init__(self, critic: nn.Module, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.critic, self._loss = critic, loss

    def forward(self, *args: Any) -> Tensor:
        return self._loss(self.critic, *args)


def whole_generator_loss(
    nets: tuple[nn.Module, nn.Module],
    loss: LossConfig,
    z: Tensor,
    labels: Tensor | None,
    real: Tensor | None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """What the generator minimises, 0-d.

    Args:
        nets: generator and critic.
        real: what the relativistic loss pairs fakes with, None under the others.
    """
    generator, critic = nets
    with autocast(z.device, dtype), held_power_iteration(critic):
        answer = judge(critic, pictures(generator, z, labels), labels)
        paired = None if real is None else judge(critic, real, labels).score
    total = generator_loss(loss, answer.score, paired).mean()
    if answer.classes is not None and labels is not None:
        total = total + loss.class_weight_generator * class_loss(answer.classes, labels).mean()
    return total


def pictures(generator: nn.Module, z: Tensor, labels: Tensor | None) -> Tensor:
    """As torch draws them, without what ganfast's own steps do to be quicker."""
    return full_precision(generator(z) if labels is None else generator(z, labels))


def autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def moved(net: nn.Module, device: torch.device, layout: torch.memory_format) -> nn.Module:
    return net.to(device).to(memory_format=layout)  # type: ignore[call-overload]


def captured(phase: Step) -> Step:
    """The phase as one replay of a CUDA graph, after warm-up on a side stream.

    It is replayed once, because a capture executes nothing and other phases read what it fills.
    """
    from ganfast.device import capturing  # here: older revisions, which are compared with, lack it

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            phase()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with capturing(graph):
        phase()
    graph.replay()
    return graph.replay
