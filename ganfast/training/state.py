"""What a training changes: the `State`, its tensors by name, and copies of it.

The functions here are the only ones that know which tensors a `State` is made of. Restoring copies into them and
replaces none: optimizers, flat buffers and captured graphs go by their addresses.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ganfast.config import Config
from ganfast.errors import InputError
from ganfast.tensors import Contents
from ganfast.training.ema import average_of
from ganfast.training.optim import FlatAdam


@dataclass
class State:
    """Everything that training changes. ``images`` is the only counter: all others, and all randomness, follow from it.

    Its tensors stay where they are for the whole of a training, as captured phases know their addresses: what restores a state
    copies into them.
    """

    generator: nn.Module
    critic: nn.Module
    average: nn.Module  # moving average of the generator: what samples are drawn from
    optimizer_generator: FlatAdam
    optimizer_critic: FlatAdam
    images: int = 0  # reals shown to the critic

    @staticmethod
    def of(
        generator: nn.Module, critic: nn.Module, config: Config, autocast: torch.dtype | None = None
    ) -> "State":
        """At the start of a training; ``autocast``: the type that both networks will be computed in, None = as they are."""
        optim, average = config.optim, average_of(generator)
        return State(
            generator,
            critic,
            average,
            FlatAdam(generator, optim.lr_generator, optim, average, autocast),
            FlatAdam(critic, optim.lr_critic, optim, compute=autocast),
        )


def contents_of(state: State) -> dict[str, dict[str, Tensor]]:
    """Every tensor that another step depends on, as it lies in the state: part -> name -> tensor."""
    return {
        "generator": dict(state.generator.state_dict()),
        "critic": dict(state.critic.state_dict()),
        "ema": dict(state.average.state_dict()),
        "optimizer_generator": optimizer_tensors(state.optimizer_generator),
        "optimizer_critic": optimizer_tensors(state.optimizer_critic),
    }


def restore(state: State, contents: Contents, images: int, where: str) -> None:
    """Copy contents into the tensors of a state.

    Raises:
        InputError: the contents of ``where`` are those of other networks.
    """
    for part, module in (
        ("generator", state.generator),
        ("critic", state.critic),
        ("ema", state.average),
    ):
        load_module(module, contents[part], f"{where} holds another {part}")
    for part, optimizer in (
        ("generator", state.optimizer_generator),
        ("critic", state.optimizer_critic),
    ):
        restore_optimizer(
            optimizer, contents[f"optimizer_{part}"], f"{where}/optimizer_{part}.safetensors"
        )
    state.images = images


def load_module(module: nn.Module, tensors: Mapping[str, Tensor], another: str) -> None:
    """Copy weights and statistics into a network; InputError that begins with ``another`` where they do not fit."""
    try:
        module.load_state_dict(dict(tensors))
    except RuntimeError as error:
        detail = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise InputError(f"{another} than this config makes: {detail}") from error


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Adam's moments and step counts by "<index of the parameter>.<exp_avg|exp_avg_sq|step>"."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": value for index, entry in state.items() for name, value in entry.items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], where: str
) -> None:
    """Copy moments and step counts into an optimizer; those of a parameter that has none become zeros."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    entries: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        if int(index) >= len(parameters) or (
            name != "step" and value.shape != parameters[int(index)].shape
        ):
            raise InputError(
                f"{where} belongs to other networks than this config makes: {key} has shape {tuple(value.shape)}"
            )
        entries.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": entries})


class Copy:
    """A state as it was. The memory is used again for the next copy.

    Args:
        on_host: keep it on the host, page-locked where the state lies on a GPU; else where the state lies.
    """

    def __init__(self, on_host: bool) -> None:
        self._on_host = on_host
        self.images = -1  # nothing held yet
        self.contents: dict[str, dict[str, Tensor]] = {}

    @torch.no_grad()
    def take(self, state: State) -> None:
        """Copy the state; returns when a copy for the host is there."""
        before, self.contents, to_host = self.contents, {}, False
        for part, tensors in contents_of(state).items():
            held = before.get(part, {})
            copies = self.contents[part] = {}
            for name, tensor in tensors.items():
                copy, crosses = held.get(name), tensor.is_cuda and self._on_host
                if copy is None:
                    device = "cpu" if self._on_host else tensor.device
                    copy = torch.empty(
                        tensor.shape, dtype=tensor.dtype, device=device, pin_memory=crosses
                    )
                copies[name] = copy.copy_(tensor, non_blocking=True)
                to_host = to_host or crosses
        if to_host:
            torch.cuda.synchronize()
        self.images = state.images
