"""What `ganfast bench` measures, from the command line."""

import os
from typing import Any

from ganfast.errors import InputError


def setting_flags(parser: Any) -> None:
    """Of what is measured."""
    parser.add_argument("--preset", default="wgan-gp", help="default wgan-gp")
    parser.add_argument(
        "--data",
        default="mnist",
        help="whose shape and batch: digits, mnist, celeba; noise is measured",
    )
    for name in ("size", "channels", "width", "batch"):
        parser.add_argument(
            f"--{name}", type=int, default=0, help="0 = as the preset has it for that data"
        )
    parser.add_argument("--classes", type=int, default=-1, help="-1 = the data's; 0 = none")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"))
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    parser.add_argument("--threads", type=int, default=0, help="of torch and XLA alike; 0 = all")
    parser.add_argument(
        "--rounds",
        type=int,
        default=30,
        help="samples of each variant, taken in turns (default 30)",
    )


def setting_of(given: Any) -> Any:
    """The setting that was asked for; InputError where it makes no sense."""
    from ganfast.bench.setting import Setting
    from ganfast.presets import data_kind

    if data_kind(given.data) == "other":
        raise InputError(
            f"data is {given.data!r}; expected digits, mnist or celeba: whose shape and batch to take"
        )
    if given.classes < -1:
        raise InputError(
            f"classes is {given.classes}; expected how many there are, 0 for none, or -1 for the data's"
        )
    for name in ("size", "channels", "width", "batch", "threads"):
        if getattr(given, name) < 0:
            raise InputError(
                f"{name} is {getattr(given, name)}; expected 1 or more, or 0 to leave it"
            )
    if given.rounds < 5:
        raise InputError(
            f"rounds is {given.rounds}; expected 5 or more: fewer samples have no percentiles"
        )
    names = (
        "preset",
        "data",
        "size",
        "channels",
        "classes",
        "width",
        "batch",
        "precision",
        "device",
    )
    setting = Setting(**{name: getattr(given, name) for name in names})
    setting.config()
    return setting


def use_threads(count: int) -> None:
    """The same number for torch and XLA. XLA takes as many as the process may use when it starts."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    count = count or int(os.environ.get("OMP_NUM_THREADS") or cores)
    if count == 1:
        os.environ["XLA_FLAGS"] = (
            os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
        )
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import torch

    torch.set_num_threads(count)
