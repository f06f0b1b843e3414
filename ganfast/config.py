"""What a run is: frozen dataclasses, whose fields are checked on construction.

The comment above or behind a field says its unit and what 0, "" or "auto" means. The reference
pages and --help print these comments; --help would also give a comment above a field to a group
that follows without a blank line.
Neither torch nor tyro is imported here, so that a config can be read and made anywhere.
Values come from a preset (`ganfast.presets`), then a YAML file, then flags.
"""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

from ganfast.errors import ONE_FILE, InputError
from ganfast.fields import Checked, Schedule, ends, is_group, parts_of

T = TypeVar("T")

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
TaskKind = Literal["none", "superres", "inpaint", "deblur"]
_WIDEST = 1 << 16  # units and numbers of a network


@dataclass(frozen=True)
class NetConfig(Checked):
    """Generator and critic."""

    # channels of the layer at full resolution (mlp: units of a hidden layer / 8);
    # 0 = 32 on a CPU (resnet and r3: 16), 64 on a GPU
    width: int = 0
    # residual blocks a stage (r3, resnet); 0 = as in the papers: 2 of r3, 1 of resnet
    blocks: int = 0
    latent: int = 128  # numbers a picture is made from
    # between the generator's layers
    generator_norm: Literal["none", "batch", "layer", "instance"] = "batch"
    # "batch" is refused together with a gradient penalty; "spectral" normalises the weights
    critic_norm: Norm = "none"
    # share of the critic's hidden units dropped at random while training; 0 = none
    critic_dropout: float = 0.0
    # initial weights: He's normal, N(0, 0.02) of the DCGAN paper, or torch's own
    init: Literal["he", "dcgan", "torch"] = "he"

    def check(self) -> None:
        self._at_least(0, "width", "blocks")
        if not 0 <= self.critic_dropout < 1:
            raise InputError(
                f"critic_dropout is {self.critic_dropout}; expected a share from 0 to below 1"
            )
        self._at_least(1, "latent")
        # Far above any use; a stranger's config would fill the memory before weights are compared.
        for name in ("width", "blocks", "latent"):
            if getattr(self, name) > _WIDEST:
                raise InputError(f"{name} is {getattr(self, name)}; expected {_WIDEST} at most")


@dataclass(frozen=True)
class LossConfig(Checked):
    """What critic and generator minimise."""

    kind: LossKind = "wasserstein"  # adversarial loss of both networks
    # weight of the class loss in the critic (only with an auxiliary class head); 0 = off
    class_weight: float = 1.0
    class_weight_generator: float = 1.0  # the same in the generator
    # the critic learns classes from fakes too, as in the ACGAN paper; it then excuses wrong ones
    class_fakes: bool = False
    # the target of a real is 1 - this (one-sided; minimax and non-saturating only); 0 = off
    label_smoothing: float = 0.0
    clip: float = 0.0  # critic weights are clipped to [-clip, clip] after each step (WGAN); 0 = off
    # weight of the mean distance |drawn - real| per number in [-1, 1] in the generator; needs a
    # task; 0 = off
    pixel: float = 0.0
    # thousand real images at the start, in which the generator minimises that distance alone and
    # the critic rests; 0 = none
    pixel_only_kimg: float = 0.0

    def check(self) -> None:
        weights = "class_weight", "class_weight_generator", "pixel"
        self._at_least(0, *weights, "label_smoothing", "clip", "pixel_only_kimg")
        if self.pixel_only_kimg and not self.pixel:
            raise InputError(
                f"pixel_only_kimg is {self.pixel_only_kimg:g} and pixel is 0, so that the "
                "generator would learn nothing there: set pixel above 0, usually 20"
            )
        if self.label_smoothing >= 0.5:
            raise InputError(
                f"label_smoothing is {self.label_smoothing}; expected less than 0.5, usually 0.1"
            )
        if self.label_smoothing and self.kind not in PROBABILITY_LOSSES:
            raise InputError(
                f"label_smoothing needs probabilities: loss {self.kind} has none; set it to 0"
            )


@dataclass(frozen=True)
class PenaltyConfig(Checked):
    """How the critic's gradient with respect to its input is held."""

    # where the gradient is held: interpolates, reals (r1), fakes (r2), around the reals (dragan)
    kind: PenaltyKind = "none"
    # lambda of wgan-gp and dragan; gamma of r1 and r2 (the loss gains gamma / 2 * |grad|^2);
    # 0 = off; or a schedule
    weight: float | Schedule = 10.0
    target: float = 1.0  # gradient norm that wgan-gp and dragan ask for, >= 0; r1 and r2 ask for 0
    one_sided: bool = False  # wgan-gp and dragan: punish only norms above the target
    # critic steps from one penalty to the next, its weight multiplied by it (lazy); 1 = every step
    interval: int = 1

    def check(self) -> None:
        self._at_least(0, "weight", "target")
        self._at_least(1, "interval")

    @property
    def active(self) -> bool:
        return self.kind != "none" and self.full_weight > 0

    @property
    def full_weight(self) -> float:
        """The weight, or the largest of its schedule, of which a step has a share."""
        return max(ends(self.weight))


@dataclass(frozen=True)
class OptimConfig(Checked):
    """Adam, its schedule, and how the two networks take turns."""

    lr_generator: float | Schedule = 1e-4  # learning rate of the generator, > 0; or a schedule
    lr_critic: float | Schedule = 1e-4  # learning rate of the critic, > 0; or a schedule
    beta1: float = 0.0  # Adam's decay of the first moment, both networks; 0 = no momentum
    # Adam's decay of the second moment, both networks; or a schedule
    beta2: float | Schedule = 0.9
    critic_steps: int = 5  # critic steps per generator step
    warmup_kimg: float = 0.0  # thousand real images over which both rates rise from 0; 0 = none
    # fraction of the run after which both rates fall linearly to 0 at its end; 1 = never
    decay_from: float = 1.0

    def check(self) -> None:
        self._at_least(0, "warmup_kimg")
        self._at_least(1, "critic_steps")
        for name in ("lr_generator", "lr_critic"):
            first, last = ends(getattr(self, name))
            if first < 0 or last < 0 or first == last == 0:
                raise InputError(f"{name} is {getattr(self, name)}; expected a rate above 0")
            if first != last and max(first, last) > 1:  # "0,5" was meant as 0.5, not as 0 to 5
                raise InputError(
                    f"{name} is {getattr(self, name)}; expected 1 at most, with a decimal point"
                )
        for name in ("beta1", "beta2"):
            if not 0 <= min(ends(getattr(self, name))) <= max(ends(getattr(self, name))) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected 0 or more and below 1")
        if not 0 <= self.decay_from <= 1:
            raise InputError(f"decay_from is {self.decay_from}; expected a fraction from 0 to 1")


@dataclass(frozen=True)
class TaskConfig(Checked):
    """What pictures are made from, beside latents."""

    # none = latents alone; superres = a smaller picture; inpaint = a picture with a hole; deblur =
    # a blurred and noisy picture
    kind: TaskKind = "none"
    scale: int = 4  # superres: side of a picture over that of the smaller one: 2, 4 or 8
    # inpaint: a square in the middle, or one to three rectangles drawn anew for each picture
    hole: Literal["centre", "boxes"] = "centre"
    # inpaint: side of the square, and the most that a rectangle's sides have, over the picture's
    hole_share: float = 0.5
    blur: float = 1.5  # deblur: standard deviation of the Gaussian, pixels; 0 = no blur
    noise: float = 2.0  # deblur: standard deviation of normal noise, grey levels; 0 = none
    # share of the pictures that is never trained on, where the set has no test split; 0 = none
    holdout: float = 0.02

    def check(self) -> None:
        self._at_least(0, "blur", "noise")
        if self.scale not in (2, 4, 8):
            raise InputError(f"scale is {self.scale}; expected 2, 4 or 8")
        if not 0 < self.hole_share < 1:
            raise InputError(f"hole_share is {self.hole_share}; expected above 0 and below 1")
        if not 0 <= self.holdout < 1:
            raise InputError(f"holdout is {self.holdout}; expected a share from 0 to below 1")


@dataclass(frozen=True)
class LogConfig(Checked):
    """What is written while training, and how often."""

    every: int = 20  # generator steps from one line of log.jsonl to the next
    # thousand real images from one sample grid to the next; 0 = 20 grids in the run
    sample_kimg: float = 0.0
    # thousand real images from one checkpoint to the next; 0 = 10 checkpoints in the run
    save_kimg: float = 0.0
    keep: int = 3  # latest checkpoints kept; 0 = all
    tensorboard: bool = True  # also write TensorBoard events

    def check(self) -> None:
        self._at_least(1, "every")
        self._at_least(0, "sample_kimg", "save_kimg", "keep")


@dataclass(frozen=True)
class ScoreConfig(Checked):
    """Scores while training: of the averaged generator against the training's data.

    The checkpoint with the best score is kept.
    """

    # thousand real images from one scoring, and its checkpoint, to the next; 0 = never
    every_kimg: float = 0.0
    # pictures drawn each time, from the same latents;
    # at most the held-out half where a set is not divided
    count: int = 2000
    by: ScoreName = "frechet"  # the score whose best checkpoint is kept
    # feature network: auto, mnist, local, or a file, as `ganfast eval` takes it
    extractor: str = "auto"
    preprocessing: str = ""  # of a TorchScript or ONNX file; "" = none

    def check(self) -> None:
        self._at_least(0, "every_kimg")
        self._at_least(100, "count")


@dataclass(frozen=True)
class GuardConfig(Checked):
    """When a training has diverged, and how often it may go back.

    The first time since a checkpoint the run goes back to the last state that the guard passed.
    From the second time on it goes back to that checkpoint, or to the start where there is none.

    A healthy run stays far below the limits; an explosion is exponential and soon reaches them.
    In 12 kimg of MNIST by any preset weights grew at most 1.01-fold from look to look. No gradient
    had a norm above 51, and no number of the log was above 32 (benchmarks/results/*margins.jsonl).
    Adam moves a weight by about its rate a step: weights drawn from N(0, 0.02) can grow 6-fold in
    100 steps at a rate of 1e-3.
    """

    # generator steps from one look at all weights to the next; 0 = only before checkpoints
    every: int = 100
    # times that the norm of a network's weights may grow from one look to the next; 0 = no limit
    growth: float = 100.0
    gradient: float = 1e8  # norm that the gradient of one weight tensor may have; 0 = no limit
    statistic: float = 1e8  # magnitude that a number in the log may have; 0 = no limit
    # times the run goes back between two checkpoints before it gives up; 0 = gives up at once
    tries: int = 3

    def check(self) -> None:
        self._at_least(0, "every", "gradient", "statistic", "tries")
        if self.growth and self.growth <= 1:
            raise InputError(
                f"growth is {self.growth}; expected a factor above 1, or 0 for no limit"
            )


@dataclass(frozen=True)
class Config(Checked):
    """One training run."""

    preset: str = "wgan-gp"  # where the values came from; kept for the record
    # digits, mnist, celeba, a name under the data root, or a path: folder, zip, .npy, .npz
    data: str = "digits"
    out: str = ""  # run directory; "" = runs/<preset>-<data>; an existing run there is resumed
    # thousand real images shown to the critic in all; may be fractional;
    # 0 = what suits the pictures
    kimg: float = 100.0
    batch: int = 64  # real images per critic step
    # parts that a batch is computed in, one after another, with the gradient of the whole; batch
    # norm has the statistics of a part
    accumulate: int = 1
    # batch norm over the rows of all ranks that share a batch, on GPUs; else a rank has its own
    sync_batchnorm: bool = False
    # picture side in pixels, 8 to 1024 (the networks of ganfast: 16 to 128; resnet and r3: 16 to
    # 256, 4 to 7 times a power of two); 0 = the data's own
    size: int = 0
    seed: int = 0  # of everything random, 0 or more
    device: str = "auto"  # auto = cuda where there is one, else cpu; or cpu, cuda, cuda:1
    # of the networks; auto = bf16 on a GPU that has it, else fp32; fp16 is for GPUs without bf16,
    # with a loss scale, and auto never takes it: it has not run on a GPU yet
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"

    # train without pictures that cannot be read, and count them; else the first one is an error
    skip_corrupt: bool = False
    # where names of data sets are looked up first; "" = $GANFAST_DATA, then the cache
    data_root: str = ""
    channels: int = 0  # 1 = grey, 3 = colour; 0 = the data's own
    # celeba: attributes whose combinations are the classes; () = no classes
    attributes: tuple[str, ...] = ()
    # make rows of the pictures columns, in IDX files and arrays: EMNIST is stored lying
    transpose: bool = False
    # how classes are learnt; auto = projection where the data has classes, else no
    conditional: Conditional = "auto"
    balanced: bool = False  # draw every class equally often
    # make the set long-tailed: the first class keeps this many times as many as the last;
    # 0 = as it is
    imbalance: float = 0.0
    # mirror at random; auto = only where the data allows (faces, not digits)
    flip: Literal["auto", "on", "off"] = "auto"

    # transform what the critic sees at random: colour, translation, cutout (DiffAugment);
    # auto = on for sets of at most 1,000 pictures; adaptive = as often as the critic's scores ask
    # for (ADA)
    augment: Literal["auto", "off", "on", "adaptive"] = "auto"
    # probability of each transform where augment is on; or a schedule
    augment_p: float | Schedule = 0.6
    # adaptive: thousand real images in which the probability can rise from 0 to 1
    augment_kimg: float = 50.0

    # dcgan, mlp, resnet, r3, or your own: my.module:Critic,my.module:MyGenerator
    # (a class with "generator" in its name generates)
    model: str = "dcgan"

    net: NetConfig = field(default_factory=NetConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    penalty: PenaltyConfig = field(default_factory=PenaltyConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    # half-life of the generator's moving average, thousand real images; 0 = no average; or a
    # schedule
    ema_kimg: float | Schedule = 5.0
    # how the critic's gradients are computed; auto = the fastest that can take the critic
    engine: EngineName = "auto"
    # compile the steps; auto = on a GPU, and on a CPU from 15 TFLOP of training on, where a C++
    # compiler is found; half a minute or so to start
    compile: Literal["auto", "on", "off"] = "auto"
    # replay each phase as one CUDA graph; auto = on a GPU where it can be
    cuda_graphs: Literal["auto", "on", "off"] = "auto"

    task: TaskConfig = field(default_factory=TaskConfig)
    log: LogConfig = field(default_factory=LogConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)

    def replace(self, **fields: Any) -> "Config":
        """A copy with other values: ``kimg=40, optim={"lr_critic": 5e-4}``.

        Raises:
            InputError: no such field, which names the closest; a value that cannot be used.
        """
        from ganfast.configfile import overlay

        return overlay(self, fields, "replace")

    def data_options(self) -> dict[str, Any]:
        """How `ganfast.data.open_data` reads the pictures, beside their size and channels."""
        return {
            "attributes": self.attributes,
            "root": self.data_root or None,
            "skip_corrupt": self.skip_corrupt,
            "transpose": self.transpose,
        }

    def check(self) -> None:
        self._at_least(2, "batch")  # one picture has no batch statistics
        self._at_least(1, "accumulate")
        parts_of(self.batch, self.accumulate)
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
                f"imbalance is {self.imbalance}; expected a ratio of 1 or more, "
                "or 0 to keep the set as it is"
            )
        if not 0 <= min(ends(self.augment_p)) <= max(ends(self.augment_p)) <= 1:
            raise InputError(f"augment_p is {self.augment_p}; expected a probability from 0 to 1")
        if self.augment_kimg <= 0:
            raise InputError(
                f"augment_kimg is {self.augment_kimg}; expected thousand real images, above 0"
            )
        if self.penalty.active and self.net.critic_norm == "batch":
            raise InputError(
                f"critic_norm batch with penalty {self.penalty.kind}: "
                "a batch-normalised critic has no gradient per sample; "
                "use critic_norm none, layer, instance or spectral, or penalty none"
            )

        tasked = self.task.kind != "none"
        for name, value, refused in (
            ("loss.pixel", self.loss.pixel, not tasked),
            ("score.every_kimg", self.score.every_kimg, tasked),
            ("augment", self.augment, tasked and self.augmented),
        ):
            if value and refused:
                raise InputError(
                    f"{name} is {value}, which a run with task {self.task.kind} does not have: "
                    f"set it to {'off' if name == 'augment' else 0}"
                )

    @property
    def augmented(self) -> bool:
        """Whether the critic sees transformed pictures; `make_plan` decides "auto"."""
        return self.augment in ("on", "adaptive")


def run_folder(config: Config) -> Path:
    """Where a run goes: config.out, or runs/<preset>-<data>."""
    data = Path(config.data.rstrip("/")).stem or "data"
    return Path(config.out or f"runs/{config.preset}-{data}")


def require_run(folder: Path | str) -> None:
    """Refuse a folder that is no run directory, before anything heavy is imported.

    Raises:
        InputError: there is no config.yaml; names the runs that there are.
    """
    if Path(folder).is_file():
        raise InputError(f"{folder} is not a run directory but one file: {ONE_FILE}")
    if not (Path(folder) / "config.yaml").exists():
        known = sorted(str(p.parent) for p in Path("runs").glob("*/config.yaml"))
        hint = f"runs here: {', '.join(known)}" if known else "train one with `ganfast train`"
        raise InputError(f"{folder} is not a run directory (it has no config.yaml); {hint}")


def depends_on_length(group: Any) -> bool:
    """Whether what a step does follows from the length of the run, too."""
    if isinstance(group, Schedule):
        return group.over_kimg == 0
    falls = isinstance(group, OptimConfig) and group.decay_from < 1
    return falls or (
        is_group(group) and any(depends_on_length(getattr(group, f.name)) for f in fields(group))
    )
