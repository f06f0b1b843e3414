"""Where a run computes and in which number format: "auto" made definite."""

from dataclasses import replace

import torch
from torch import nn

from ganfast.config import Config
from ganfast.errors import InputError


def find_device(name: str) -> torch.device:
    """ "auto" is the first GPU, or the CPU where there is none.

    Raises:
        InputError: not a device, or not on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device is {name!r}; expected auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device is {name!r}; ganfast runs on cpu and cuda")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise InputError(
                f"device is {name!r}, but torch {torch.__version__} sees {count} CUDA devices "
                "here; use cpu or auto"
            )
        # `torch.cuda.synchronize()` and its like wait for the current device: make it this one.
        torch.cuda.set_device(device.index or 0)
        return torch.device("cuda", device.index or 0)  # with its index, as tensors there name it
    return device


def resolved(config: Config, device: torch.device) -> Config:
    """The config with width and precision fixed: the run's mathematics depends on both."""
    on_gpu = device.type == "cuda"
    precision = config.precision
    if precision == "auto":
        has_bf16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bf16" if has_bf16 else "fp32"
    # Blocks at full resolution make channels dear: with 32 of them resnet takes 8 times the work of
    # dcgan on MNIST, and r3 16 times.
    small = 16 if {"resnet", "r3"} & set(config.model.split(",")) else 32
    net = replace(config.net, width=config.net.width or (64 if on_gpu else small))
    return replace(config, precision=precision, net=net)


def prepared(net: nn.Module, device: torch.device) -> nn.Module:
    """On its device, weights of convolutions channels last: the layout of cuDNN and oneDNN."""
    return net.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
