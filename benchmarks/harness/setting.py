"""What `ganfast bench train` measures: a preset, picture shape, batch and precision, on noise."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from ganfast.config import Config, EngineName
from ganfast.errors import InputError
from ganfast.presets import data_kind, preset_config

Precision = Literal["auto", "fp32", "bf16", "fp16"]
# Learning rate of both networks while measuring: weights stay where they began, so the work does.
RATE = 1e-6

# Side, channels and classes of the data sets that presets know. Where a preset takes attributes of
# celeba, their combinations are the classes.
_SHAPES = {"digits": (16, 1, 10), "mnist": (28, 1, 10), "celeba": (64, 3, 0), "other": (64, 3, 0)}


@dataclass(frozen=True)
class Setting:
    """One measured problem. Pictures are noise: speed does not depend on what they show."""

    preset: str = "wgan-gp"
    data: str = "mnist"  # whose shape, batch and rates the preset takes: digits, mnist, celeba
    size: int = 0  # side in pixels; 0 = the data's
    channels: int = 0  # 0 = the data's
    classes: int = -1  # -1 = the data's; 0 = none
    width: int = 0  # 0 = 32 on a CPU, 64 on a GPU
    batch: int = 0  # 0 = the preset's
    precision: Precision = "auto"  # auto = bf16 on a GPU that has it, else fp32
    device: str = "auto"
    engine: EngineName = "auto"

    def config(self) -> Config:
        """The preset with everything definite but device and precision."""
        config = preset_config(self.preset, self.data)
        side, channels, _ = _SHAPES[data_kind(self.data)]
        classes = self.classes if self.classes >= 0 else self._of_data(config)
        conditional = config.conditional
        if conditional == "auto":
            conditional = "projection" if classes else "no"
        if conditional != "no" and not classes:
            raise InputError(
                f"preset {self.preset} learns classes and {self.data} has none; give --classes"
            )
        return replace(
            config,
            size=self.size or config.size or side,
            channels=self.channels or config.channels or channels,
            conditional=conditional,
            batch=self.batch or config.batch,
            precision=self.precision,
            device=self.device,
            net=replace(config.net, width=self.width or config.net.width),
            optim=replace(config.optim, lr_generator=RATE, lr_critic=RATE),
            engine=self.engine,
        )

    def class_count(self) -> int:
        """Of the networks; 0 = unconditional."""
        config = self.config()
        if config.conditional == "no":
            return 0
        return self.classes if self.classes > 0 else self._of_data(config)

    def _of_data(self, config: Config) -> int:
        if config.attributes:
            return 2 ** len(config.attributes)
        return _SHAPES[data_kind(self.data)][2]

    def asdict(self) -> dict[str, Any]:
        return asdict(self)
