"""A config made definite: data opened, networks built, the cost counted. Nothing is written."""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from ganfast.config import Conditional, Config, EngineName, run_folder
from ganfast.data.heldout import held_out_share
from ganfast.data.lookup import absolute
from ganfast.data.pack import Pack, PackInfo, open_data
from ganfast.data.resident import ResidentData
from ganfast.data.source import RULES
from ganfast.device import autocast_of, find_device, prepared, resolved
from ganfast.engine import make_critic_step, make_drawing, make_generator_step
from ganfast.engine.check import nothing_changed
from ganfast.engine.choice import refuse_batch_norm
from ganfast.environment import has_compiler
from ganfast.errors import InputError
from ganfast.flops import FlopCount, PeakBytes
from ganfast.latents import Purpose
from ganfast.models import NetSpec, build_critic, build_generator, parameter_count, try_out
from ganfast.models.members import has_batch_norm, is_known
from ganfast.outside import read_json
from ganfast.presets import suited_kimg
from ganfast.random import scalar_seed
from ganfast.tasks import Task, task_of
from ganfast.training.augmentation import refuse_adaptive
from ganfast.training.phases import refuse_graphs
from ganfast.training.state import State

PackingProgress = Callable[[str, int, int], None]


# FLOPs of a training. wgan-gp on MNIST gained 0.24 s a kimg and lost 40 s to the compiler on one
# core, with an empty cache (2026-11-30): 12 TFLOP are even.
_WORTH_COMPILING = 15e12
_FEW = 1000  # pictures up to which augment auto is on


@dataclass
class Plan:
    """What `train` runs and `--dry-run` prints."""

    config: Config  # nothing automatic left but the device
    folder: Path
    device: torch.device
    pack: Pack
    data: ResidentData
    spec: NetSpec
    state: State
    # How the run was computed that it goes on with: "engine", "compile"; None = it begins.
    computed: Mapping[str, Any] | None = None

    @property
    def autocast(self) -> torch.dtype | None:
        """The type the networks compute in, None for float32."""
        return autocast_of(self.config)

    @property
    def engine(self) -> EngineName:
        """That of the config; where it says "auto", that of the run so far, if it has one."""
        asked, before = self.config.engine, (self.computed or {}).get("engine")
        known: dict[Any, EngineName] = {name: name for name in get_args(EngineName)}
        return known.get(before, asked) if asked == "auto" else asked

    @cached_property
    def task(self) -> Task | None:
        """What pictures are made from; None = latents alone."""
        return task_of(self.config, self.spec.size, self.spec.channels)

    @cached_property
    def compile(self) -> bool:
        """Whether steps are compiled: as asked, else as the run was so far, else on a GPU, and on a
        CPU where the run is long enough to gain the time that compiling takes."""
        if self.config.sync_batchnorm:  # whose exchange no graph of a compiler holds
            return False
        if self.config.compile != "auto":
            return self.config.compile == "on"
        if self.device.type == "cuda":
            return True
        if self.computed is not None:
            return self.computed.get("compile") is True
        return has_compiler() and self._gains_by_compiling()

    def _gains_by_compiling(self) -> bool:
        images, nets = self.config.kimg * 1000, (self.state.generator, self.state.critic)
        # No layer uses a weight more than once a pixel: most trainings are too short by far.
        most = 30 * images * sum(map(parameter_count, nets)) * self.spec.size**2
        if most < _WORTH_COMPILING or not all(map(is_known, nets)):
            return False
        with nothing_changed(nn.ModuleList(nets)):
            return count_cost(self).flops_per_image * images >= _WORTH_COMPILING

    def batch(self, count: int) -> tuple[Tensor, Tensor | None]:
        """The first ``count`` pictures (N, C, H, W), with their labels (N,) where classes are
        learnt."""
        pictures, labels = self.data.batch(0, count)
        return pictures, labels if self.config.conditional != "no" else None

    def conditions(self, pictures: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """What the task makes of the first pictures for the generator, and for the critic; None,
        None without a task."""
        if self.task is None:
            return None, None
        index = torch.arange(len(pictures), device=pictures.device)
        given = self.task.derive(pictures, index, self.config.seed)
        return given, self.task.show(given)

    def describe(self) -> str:
        """One line on what is about to run."""
        c, features = self.config, f", {self.task}" if self.task else ""
        if c.conditional != "no":
            how = {"projection": "projection", "auxiliary": "a class head"}[c.conditional]
            features += f", {self.data.classes} classes by {how}"
        if self.data.flip:
            features += ", mirrored"
        if c.augmented:
            how = "as the scores ask for" if c.augment == "adaptive" else f"p = {c.augment_p:g}"
            features += f", augmented ({how})"
        if self.task and c.loss.pixel_only_kimg:
            alone = c.loss.pixel_only_kimg
            until = f" up to {alone:g} kimg" if alone < c.kimg else ""
            features += f", without a critic{until}"
        return (
            f"{c.preset} at {c.size}x{c.size}x{c.channels}{features} on {self.device}, "
            f"{c.precision}, batch {c.batch}, {c.kimg:g} kimg -> {self.folder}"
        )


def make_plan(
    config: Config,
    progress: PackingProgress | None = None,
    parent: str | Path = "",
    pack: Pack | None = None,
) -> Plan:
    """Open the data, or take ``pack`` for it, build the networks and their optimizers.

    The pictures of a run that goes on, or of the ``parent`` of a fork, keep their classes.

    Raises:
        InputError: anything in the config that cannot be done with this data on this machine.
    """
    device = find_device(config.device)
    refuse_graphs(config.cuda_graphs, device)
    pack = pack or open_data(
        config.data,
        size=config.size,
        channels=config.channels,
        progress=progress,
        rules=_recorded_rules(Path(parent or run_folder(config))),
        **config.data_options(),
        verify=False,  # a training does it in a thread
    )
    info, conditional = pack.info, _conditional(config, pack)
    length = config.kimg or own_length(config.preset, info)
    config = replace(
        config,
        data=absolute(config.data, config.data_root or None),
        data_root=os.path.abspath(os.path.expanduser(config.data_root)) if config.data_root else "",
        out=str(run_folder(config)),
        kimg=length,
        size=info.size,
        channels=info.channels,
        conditional=conditional,
    )
    config = resolved(config, device)
    flip = info.flip if config.flip == "auto" else config.flip == "on"
    share = held_out_share(config, info.rules)
    if config.task.kind != "none":
        config = replace(config, task=replace(config.task, holdout=share))
    chosen = config.balanced, config.imbalance, share
    data = ResidentData(pack, device, config.seed, flip, *chosen)
    if config.batch > data.count:
        raise InputError(
            f"batch is {config.batch}, but {info.name} has only {data.count} pictures to train on; "
            "set --batch lower"
        )
    if config.augment == "auto":
        few = data.count <= _FEW and config.task.kind == "none"
        config = replace(config, augment="on" if few else "off")
    refuse_adaptive(config)

    spec = NetSpec.of(config, info.size, info.channels, len(info.classes), config.conditional)
    torch.manual_seed(scalar_seed(config.seed, Purpose.INIT, 0))
    generator, critic = build_generator(spec), build_critic(spec)
    if ":" in config.model:
        try_out(generator, critic, spec)
    if config.penalty.active:
        refuse_batch_norm(critic, config.penalty.kind)
    if spec.given and has_batch_norm(generator):
        raise InputError(
            f"the generator of {config.model} has a batch norm, whose averaged statistics are made "
            "from latents alone: use another norm for a run that makes pictures from others"
        )
    generator, critic = (prepared(net, device).train() for net in (generator, critic))
    state = State.of(generator, critic, config, autocast_of(config))
    return Plan(config, run_folder(config), device, pack, data, spec, state)


def own_length(preset: str, info: PackInfo) -> float:
    """Thousand images that a preset shows of these pictures by itself, by `suited_kimg`."""
    return suited_kimg(preset, info.kind, info.size, info.channels, info.count)


def _recorded_rules(folder: Path) -> int:
    """The rules that found the classes of a run; those of this version where there is no run."""
    record = folder / "data.json"
    if not record.exists():
        return RULES
    data = read_json(record)
    return data.get("rules", 1) if isinstance(data, dict) else 1  # `Run.open` refuses the rest


def _conditional(config: Config, pack: Pack) -> Conditional:
    """How classes are learnt once "auto" is decided; InputError where there are none to learn."""
    conditional = config.conditional
    if conditional == "auto":
        conditional = "projection" if pack.info.classes else "no"
    if conditional != "no" and not pack.info.classes:
        raise InputError(
            f"conditional is {conditional}, but {pack.info.name} has no classes; "
            "give --attributes for celeba, sub-folders as classes, "
            "or --conditional no with a preset other than acgan"
        )
    return conditional


@dataclass(frozen=True)
class Cost:
    """What training costs, counted on two real pictures and scaled."""

    flops_per_image: float  # floating-point operations per real image shown, all steps together
    # Weights, gradients, Adam's moments, the average, and the state that a divergence goes back to.
    state_bytes: int
    activation_bytes: int  # the most that one step has alive beside the state
    data_bytes: int  # pictures


def count_cost(plan: Plan) -> Cost:
    """Run critic and generator steps on two and on four pictures under counters.

    Gradients are filled, weights are not moved.
    """
    c, state = plan.config, plan.state
    critic_step = make_critic_step(
        state.critic, c.loss, c.penalty, plan.autocast, plan.engine, compile=False, check=False
    )
    generator_step = make_generator_step(state.generator, state.critic, c.loss, plan.autocast)

    def measured(batch: int) -> tuple[float, int]:
        """FLOPs of a generator step with its critic steps, and the most bytes of one step."""
        real, labels = plan.batch(batch)
        given, shown = plan.conditions(real)
        z = torch.zeros(batch, c.net.latent, device=plan.device).normal_()
        drawing = FlopCount()
        with drawing:
            fake = make_drawing(state.generator, plan.autocast)(z, labels, given)
        counts = []
        for step in (
            lambda: critic_step(real, fake, labels, with_penalty=True, condition=shown),
            lambda: critic_step(real, fake, labels, with_penalty=False, condition=shown),
            lambda: generator_step(z, labels, real, given=given, shown=shown),
        ):
            flops, peak = FlopCount(), PeakBytes()
            with flops, peak:
                step()
            counts.append((flops.total, peak.total))
        (penalised, peak_penalised), (plain, _), (generated, peak_generated) = counts
        turn = drawing.total + plain + (penalised - plain) / c.penalty.interval
        return c.optim.critic_steps * turn + generated, max(peak_penalised, peak_generated)

    # Two batch sizes tell what grows with the batch from what does not: half-precision weights.
    (flops_2, peak_2), (flops_4, peak_4) = measured(2), measured(4)
    activations = peak_2 + (peak_4 - peak_2) * (c.batch // c.accumulate - 2) // 2
    weights = sum(p.nbytes for net in (state.generator, state.critic) for p in net.parameters())
    average = sum(p.nbytes for p in state.average.parameters())
    return Cost(
        (flops_4 - flops_2) / 2 / c.optim.critic_steps,
        7 * weights + 2 * average,
        max(0, activations),
        plan.pack.images.nbytes,
    )


def figure(value: float) -> str:
    """Three significant digits, never in exponents: 0.00412, 3.14, 1,230."""
    places = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{float(f'{value:.3g}'):,.{places}f}"


def dry_run_report(plan: Plan) -> str:
    """Config, parameter counts, FLOPs and memory for a person; the config is valid YAML."""
    from ganfast.configfile import to_yaml

    cost, c, state = count_cost(plan), plan.config, plan.state
    memory = cost.state_bytes + cost.activation_bytes + cost.data_bytes
    return "\n".join(
        (
            to_yaml(c).rstrip(),
            f"# data        {plan.pack.info.recognised}",
            f"# run         {plan.describe()}",
            f"# generator   {parameter_count(state.generator):,} parameters",
            f"# critic      {parameter_count(state.critic):,} parameters",
            f"# work        {figure(cost.flops_per_image / 1e6)} MFLOP per image, "
            f"{figure(cost.flops_per_image * c.kimg / 1e9)} TFLOP in all",
            f"# memory      about {figure(memory / 1e6)} MB: "
            f"pictures {figure(cost.data_bytes / 1e6)}, "
            f"weights and optimizers {figure(cost.state_bytes / 1e6)}, "
            f"activations {figure(cost.activation_bytes / 1e6)}",
        )
    )
