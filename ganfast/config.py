"""What a run is: frozen dataclasses. Every field says its unit and what 0, "" or "auto" means, and is checked on construction.

Plain Python on purpose: no torch, no tyro, so that a config can be read and made anywhere.
Values come from a preset (`ganfast.presets`), then a YAML file, then flags.
"""

import math
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from ganfast.errors import InputError

Norm = Literal["none", "batch", "layer", "instance", "spectral"]
LossKind = Literal[
    "minimax", "non-saturating", "least-squares", "hinge", "wasserstein", "relativistic"
]
Conditional = Literal["auto", "no", "projection", "auxiliary"]
EngineName = Literal["auto", "reference", "autograd", "explicit"]
ScoreName = Literal[
    "frechet",
    "kernel",
    "precision",
    "recall",
    "density",
    "coverage",
    "classifier_score",
    "label_accuracy",
    "kl_uniform",
    "kl_data",
    "modes",
]
PROBABILITY_LOSSES = ("minimax", "non-saturating")  # those whose row in `ganfast.losses` says so
PenaltyKind = Literal["none", "wgan-gp", "r1", "r2", "r1+r2", "dragan"]


class _Checked:
    """Refuses values outside a field's `Literal`, and what `check` finds wrong."""

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            choices, value = get_args(hint), getattr(self, name)
            if choices and all(isinstance(c, str) for c in choices) and value not in choices:
                raise InputError(f"{name} is {value!r}; expected one of {', '.join(choices)}")
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(f"{name} is {value}; expected a finite number")
            if isinstance(value, int) and not -(2**63) <= value < 2**63:
                raise InputError(f"{name} is {value}; expected less than 2**63")
            if isinstance(value, str) and "\0" in value:
                raise InputError(f"{name} is {value!r}; expected no null byte")
        self.check()

    def check(self) -> None:
        """Raises InputError for values that cannot be used."""

    def _at_least(self, least: float, *names: str) -> None:
        for name in names:
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; expected {least:g} or more")


@dataclass(frozen=True)
class NetConfig(_Checked):
    """Generator and critic."""

    width: int = 0  # channels of the layer at full resolution (units of a hidden layer / 8 for mlp); 0 = 32 on a CPU, 64 on a GPU
    latent: int = 128  # numbers a picture is made from
    generator_norm: Literal["none", "batch", "layer", "instance"] = (
        "batch"  # between the generator's layers
    )
    critic_norm: Norm = "none"  # "batch" is refused together with a gradient penalty; "spectral" normalises the weights
    critic_dropout: float = (
        0.0  # share of the critic's hidden units dropped at random while training; 0 = none
    )
    init: Literal["he", "dcgan", "torch"] = (
        "he"  # initial weights: He's normal, N(0, 0.02) of the DCGAN paper, or torch's own
    )

    def check(self) -> None:
        self._at_least(0, "width")
        if not 0 <= self.critic_dropout < 1:
            raise InputError(
                f"critic_dropout is {self.critic_dropout}; expected a share from 0 to below 1"
            )
        self._at_least(1, "latent")


@dataclass(frozen=True)
class LossConfig(_Checked):
    """What critic and generator minimise."""

    kind: LossKind = "wasserstein"  # adversarial loss of both networks
    class_weight: float = (
        1.0  # weight of the class loss in the critic (only with an auxiliary class head); 0 = off
    )
    class_weight_generator: float = 1.0  # the same in the generator
    class_fakes: bool = False  # the critic learns classes from fakes too, as in the ACGAN paper; it then excuses wrong ones
    label_smoothing: float = 0.0  # the target of a real is 1 - this (one-sided; minimax and non-saturating only); 0 = off
    clip: float = 0.0  # critic weights are clipped to [-clip, clip] after each step (WGAN); 0 = off

    def check(self) -> None:
        self._at_least(0, "class_weight", "class_weight_generator", "label_smoothing", "clip")
        if self.label_smoothing >= 0.5:
            raise InputError(
                f"label_smoothing is {self.label_smoothing}; expected less than 0.5, usually 0.1"
            )
        if self.label_smoothing and self.kind not in PROBABILITY_LOSSES:
            raise InputError(
                f"label_smoothing needs probabilities: loss {self.kind} has none; set it to 0"
            )


@dataclass(frozen=True)
class PenaltyConfig(_Checked):
    """How the critic's gradient with respect to its input is held."""

    kind: PenaltyKind = "none"  # where the gradient is held: interpolates, reals (r1), fakes (r2), around the reals (dragan)
    weight: float = 10.0  # lambda of wgan-gp and dragan; gamma of r1 and r2 (the loss gains gamma / 2 * |grad|^2); 0 = off
    target: float = 1.0  # gradient norm that wgan-gp and dragan ask for, >= 0; r1 and r2 ask for 0
    one_sided: bool = False  # wgan-gp and dragan: punish only norms above the target
    interval: int = 1  # critic steps from one penalty to the next, its weight multiplied by it (lazy); 1 = every step

    def check(self) -> None:
        self._at_least(0, "weight", "target")
        self._at_least(1, "interval")

    @property
    def active(self) -> bool:
        return self.kind != "none" and self.weight > 0


@dataclass(frozen=True)
class OptimConfig(_Checked):
    """Adam, its schedule, and how the two networks take turns."""

    lr_generator: float = 1e-4  # learning rate of the generator, > 0
    lr_critic: float = 1e-4  # learning rate of the critic, > 0
    beta1: float = 0.0  # Adam's decay of the first moment, both networks; 0 = no momentum
    beta2: float = 0.9  # Adam's decay of the second moment, both networks
    critic_steps: int = 5  # critic steps per generator step
    warmup_kimg: float = 0.0  # thousand real images over which both rates rise from 0; 0 = none
    decay_from: float = (
        1.0  # fraction of the run after which both rates fall linearly to 0 at its end; 1 = never
    )

    def check(self) -> None:
        self._at_least(0, "warmup_kimg")
        self._at_least(1, "critic_steps")
        for name in ("lr_generator", "lr_critic"):
            if getattr(self, name) <= 0:
                raise InputError(f"{name} is {getattr(self, name)}; expected a rate above 0")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected 0 or more and below 1")
        if not 0 <= self.decay_from <= 1:
            raise InputError(f"decay_from is {self.decay_from}; expected a fraction from 0 to 1")


@dataclass(frozen=True)
class LogConfig(_Checked):
    """What is written while training, and how often."""

    every: int = 20  # generator steps from one line of log.jsonl to the next
    sample_kimg: float = (
        0.0  # thousand real images from one sample grid to the next; 0 = 20 grids in the run
    )
    save_kimg: float = (
        0.0  # thousand real images from one checkpoint to the next; 0 = 10 checkpoints in the run
    )
    keep: int = 3  # latest checkpoints kept; 0 = all
    tensorboard: bool = True  # also write TensorBoard events

    def check(self) -> None:
        self._at_least(1, "every")
        self._at_least(0, "sample_kimg", "save_kimg", "keep")


@dataclass(frozen=True)
class ScoreConfig(_Checked):
    """Scores while training, of the averaged generator against the training's data; the best checkpoint is kept."""

    every_kimg: float = (
        0.0  # thousand real images from one scoring, and its checkpoint, to the next; 0 = never
    )
    count: int = 2000  # pictures drawn each time, from the same latents; at most the held-out half where a set is not divided
    by: ScoreName = "frechet"  # the score whose best checkpoint is kept
    extractor: str = (
        "auto"  # feature network: auto, mnist, local, or a file, as `ganfast eval` takes it
    )
    preprocessing: str = ""  # of a TorchScript or ONNX file; "" = none

    def check(self) -> None:
        self._at_least(0, "every_kimg")
        self._at_least(100, "count")


@dataclass(frozen=True)
class GuardConfig(_Checked):
    """When a training has diverged, and how often it may go back to the last state that the guard passed.

    The second time, and later, since a checkpoint it goes back to that checkpoint, or the start.

    The limits are out of a healthy run's reach and in that of an explosion, which is exponential. In 12 kimg of MNIST by any preset
    weights grew at most 1.01-fold from look to look, no gradient had a norm above 51, no number of the log was above 32
    (benchmarks/guard_margins.py). Adam moves a weight by about its rate a step: weights drawn from N(0, 0.02) can grow 6-fold
    in 100 steps at a rate of 1e-3.
    """

    every: int = (
        100  # generator steps from one look at all weights to the next; 0 = only before checkpoints
    )
    growth: float = 100.0  # times that the norm of a network's weights may grow from one look to the next; 0 = no limit
    gradient: float = 1e8  # norm that the gradient of one weight tensor may have; 0 = no limit
    statistic: float = 1e8  # magnitude that a number in the log may have; 0 = no limit
    tries: int = 3  # times the run goes back from one checkpoint to the next before it gives up; 0 = gives up at once

    def check(self) -> None:
        self._at_least(0, "every", "gradient", "statistic", "tries")
        if self.growth and self.growth <= 1:
            raise InputError(
                f"growth is {self.growth}; expected a factor above 1, or 0 for no limit"
            )


@dataclass(frozen=True)
class Config(_Checked):
    """One training run."""

    preset: str = "wgan-gp"  # where the values came from; kept for the record
    data: str = "digits"  # digits, mnist, celeba, a name under the data root, or a path: folder, zip, .npy, .npz
    out: str = ""  # run directory; "" = runs/<preset>-<data>; an existing run there is resumed
    # Thousand real images shown to the critic in all; may be fractional; 0 = what suits the pictures
    kimg: float = 100.0
    batch: int = 64  # real images per critic step
    size: int = 0  # picture side in pixels, 8 to 1024 (the networks of ganfast: 16 to 128); 0 = the data's own
    seed: int = 0  # of everything random, 0 or more
    device: str = "auto"  # auto = cuda where there is one, else cpu; or cpu, cuda, cuda:1
    precision: Literal["auto", "fp32", "bf16"] = (
        "auto"  # of the networks; auto = bf16 on a GPU that has it, else fp32
    )

    skip_corrupt: bool = False  # train without pictures that cannot be read, and count them; else the first one is an error
    data_root: str = (
        ""  # where names of data sets are looked up first; "" = $GANFAST_DATA, then the cache
    )
    channels: int = 0  # 1 = grey, 3 = colour; 0 = the data's own
    attributes: tuple[
        str, ...
    ] = ()  # celeba: attributes whose combinations are the classes; () = no classes
    conditional: Conditional = (
        "auto"  # how classes are learnt; auto = projection where the data has classes, else no
    )
    balanced: bool = False  # draw every class equally often
    imbalance: float = 0.0  # make the set long-tailed: the first class keeps this many times as many as the last; 0 = as it is
    flip: Literal["auto", "on", "off"] = (
        "auto"  # mirror at random; auto = only where the data allows (faces, not digits)
    )

    model: str = "dcgan"  # dcgan, mlp, or your own: my.module:Critic,my.module:MyGenerator (names with "generator" generate)
    net: NetConfig = field(default_factory=NetConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    penalty: PenaltyConfig = field(default_factory=PenaltyConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    ema_kimg: float = (
        5.0  # half-life of the generator's moving average, thousand real images; 0 = no average
    )
    engine: EngineName = "auto"  # how the critic's gradients are computed; auto = the fastest that can take the critic
    compile: Literal["auto", "on", "off"] = (
        "auto"  # compile the steps; auto = on a GPU; half a minute or so to start
    )
    cuda_graphs: Literal["auto", "on", "off"] = (
        "auto"  # replay each phase as one CUDA graph; auto = on a GPU where it can be
    )
    log: LogConfig = field(default_factory=LogConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)

    def check(self) -> None:
        self._at_least(2, "batch")  # batch statistics of one picture are none
        self._at_least(0, "size", "seed", "ema_kimg")
        if self.kimg < 0:
            raise InputError(
                f"kimg is {self.kimg}; expected thousand real images to train on, or 0 to choose"
            )
        if self.channels not in (0, 1, 3):
            raise InputError(
                f"channels is {self.channels}; expected 1 (grey), 3 (colour) or 0 (the data's own)"
            )
        if self.size and not 8 <= self.size <= 1024:
            raise InputError(
                f"size is {self.size}; expected 8 to 1024 pixels, or 0 for the data's own"
            )
        if self.imbalance and self.imbalance < 1:
            raise InputError(
                f"imbalance is {self.imbalance}; expected a ratio of 1 or more, or 0 to keep the set as it is"
            )
        if self.penalty.active and self.net.critic_norm == "batch":
            raise InputError(
                f"critic_norm batch with penalty {self.penalty.kind}: a batch-normalised critic has no gradient per sample; "
                "use critic_norm none, layer, instance or spectral, or penalty none"
            )


def run_folder(config: Config) -> Path:
    """Where a run goes: config.out, or runs/<preset>-<data>."""
    return Path(
        config.out or f"runs/{config.preset}-{Path(config.data.rstrip('/')).stem or 'data'}"
    )


def require_run(folder: Path | str) -> None:
    """Refuse, before anything heavy is imported, what is no run directory.

    Raises:
        InputError: there is no config.yaml; names the runs that there are.
    """
    if not (Path(folder) / "config.yaml").exists():
        known = sorted(str(p.parent) for p in Path("runs").glob("*/config.yaml"))
        hint = f"runs here: {', '.join(known)}" if known else "train one with `ganfast train`"
        raise InputError(f"{folder} is not a run directory (it has no config.yaml); {hint}")


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """{"optim.beta1": 0.0, ...} of a config dataclass."""
    flat: dict[str, Any] = {}
    for item in fields(config):
        value = getattr(config, item.name)
        flat |= (
            flatten(value, f"{prefix}{item.name}.")
            if is_dataclass(value)
            else {prefix + item.name: value}
        )
    return flat
