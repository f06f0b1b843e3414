"""What `ganfast bench` measures, from the command line."""

import os
from dataclasses import fields
from typing import Any

from ganfast.commands.parsing import DEVICE
from ganfast.errors import InputError
from ganfast.host import usable_threads


def setting_flags(parser: Any) -> None:
    """Flags that say what is measured."""
    parser.flag("--preset", "wgan-gp", "default wgan-gp")
    parser.flag(
        "--data", "mnist", "whose shape and batch: digits, mnist, celeba; noise is measured"
    )
    for name in ("size", "channels", "width", "batch"):
        parser.flag(f"--{name}", 0, "0 = as the preset has it for that data")
    parser.flag("--classes", -1, "-1 = the data's; 0 = none")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"))
    parser.flag("--device", "auto", DEVICE)
    parser.flag("--threads", 0, "of torch and XLA alike; 0 = all")
    parser.flag("--rounds", 30, "samples of each variant, taken in turns (default 30)")


def setting_of(arguments: Any) -> Any:
    """The setting that was asked for; InputError where it makes no sense."""
    from ganfast.bench.setting import Setting
    from ganfast.presets import data_kind

    if data_kind(arguments.data) == "other":
        raise InputError(
            f"data is {arguments.data!r}; expected digits, mnist or celeba: "
            "whose shape and batch to take"
        )
    if arguments.classes < -1:
        raise InputError(
            f"classes is {arguments.classes}; "
            "expected how many there are, 0 for none, or -1 for the data's"
        )
    for name in ("size", "channels", "width", "batch", "threads"):
        if getattr(arguments, name) < 0:
            raise InputError(
                f"{name} is {getattr(arguments, name)}; expected 1 or more, or 0 to leave it"
            )
    if arguments.rounds < 5:
        raise InputError(
            f"rounds is {arguments.rounds}; expected 5 or more: fewer samples have no percentiles"
        )
    known = {field.name for field in fields(Setting)}
    setting = Setting(**{name: value for name, value in vars(arguments).items() if name in known})
    setting.config()
    return setting


def use_threads(count: int) -> None:
    """The same number for torch and XLA, which would take all cores of the process."""
    count = count or int(os.environ.get("OMP_NUM_THREADS") or usable_threads())
    if count == 1:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = flags + " --xla_cpu_multi_thread_eigen=false"
    import torch

    torch.set_num_threads(count)
