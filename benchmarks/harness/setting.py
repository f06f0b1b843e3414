"""What `ganfast bench train` measures: one preset, picture shape, batch and precision, on noise in place of data."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from ganfast.config import Config, EngineName
from ganfast.errors import InputError
from ganfast.presets import data_kind, preset_config

Precision = Literal["auto", "fp32", "bf16"]
RATE = 1e-6  # learning rate of both networks while measuring: the weights stay where they began, so the work does too

# Side, channels and classes of the data sets that presets know; attributes of celeba make their combinations the classes.
_SHAPES = {"digits": (16, 1, 10), "mnist": (28, 1, 10), "celeba": (64, 3, 0), "other": (64, 3, 0)}


@dataclass(frozen=True)
class Setting:
    """One measured problem. No data is opened: speed does not depend on what pictures show, so they are noise."""

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
        kind = data_kind(self.data)
        config = preset_config(self.preset, self.data)
        side, channels, classes = _SHAPES[kind]
        if config.attributes:
            classes = 2 ** len(config.attributes)
        classes = classes if self.classes < 0 else self.classes
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
        of_data = (
            2 ** len(config.attributes) if config.attributes else _SHAPES[data_kind(self.data)][2]
        )
        return self.classes if self.classes > 0 else of_data

    def asdict(self) -> dict[str, Any]:
        return asdict(self)
