"""What a training changes: the `State`, its tensors by name, and copies of it.

The functions here are the only ones that know which tensors a `State` is made of. Restoring copies
into these tensors and replaces none: optimizers, flat buffers and captured graphs go by their
addresses.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ganfast.config import Config
from ganfast.errors import InputError
from ganfast.fields import ends
from ganfast.tensors import AUGMENTATION, Contents
from ganfast.training.augmentation import Augmentation
from ganfast.training.ema import average_of
from ganfast.training.optim import FlatAdam


@dataclass
class State:
    """Everything that training changes.

    ``images`` is the only counter: all others, and all randomness, follow from it.
    """

    generator: nn.Module
    critic: nn.Module
    average: nn.Module  # moving average of the generator: what samples are drawn from
    optimizer_generator: FlatAdam
    optimizer_critic: FlatAdam
    images: int = 0  # reals shown to the critic
    augmentation: Augmentation | None = None  # None = the critic sees pictures as they are

    @staticmethod
    def of(
        generator: nn.Module, critic: nn.Module, config: Config, autocast: torch.dtype | None = None
    ) -> "State":
        """The start of a training. ``autocast``: the type to compute in; None = that of weights."""
        optim, average = config.optim, average_of(generator)
        critic_adam = FlatAdam(critic, ends(optim.lr_critic)[0], optim, compute=autocast)
        augmentation = Augmentation(config, critic_adam.flat.device) if config.augmented else None
        return State(
            generator,
            critic,
            average,
            FlatAdam(generator, ends(optim.lr_generator)[0], optim, average, autocast),
            critic_adam,
            augmentation=augmentation,
        )

    def networks(self) -> dict[str, nn.Module]:
        """The networks by the names that their parts have in a checkpoint."""
        return {"generator": self.generator, "critic": self.critic, "ema": self.average}

    def optimizers(self) -> dict[str, FlatAdam]:
        """The optimizers by the names that their parts have in a checkpoint."""
        return {
            "optimizer_generator": self.optimizer_generator,
            "optimizer_critic": self.optimizer_critic,
        }


def contents_of(state: State) -> dict[str, dict[str, Tensor]]:
    """Every tensor that a step depends on, as it lies in the state: part -> name -> tensor."""
    networks = {part: dict(net.state_dict()) for part, net in state.networks().items()}
    optimizers = {part: optimizer_tensors(it) for part, it in state.optimizers().items()}
    moving = {} if state.augmentation is None else state.augmentation.tensors()
    return networks | optimizers | ({AUGMENTATION: moving} if moving else {})


def restore(state: State, contents: Contents, images: int, where: str) -> None:
    """Copy contents into the tensors of a state.

    Raises:
        InputError: the contents of ``where`` are those of other networks.
    """
    for part, net in state.networks().items():
        load_module(net, contents[part], f"{where} holds another {part}")
    for part, optimizer in state.optimizers().items():
        restore_optimizer(optimizer, contents[part], f"{where}/{part}.safetensors")
    if state.augmentation is not None:
        state.augmentation.load(contents.get(AUGMENTATION, {}))
    state.images = images


def load_module(module: nn.Module, tensors: Mapping[str, Tensor], another: str) -> None:
    """Copy weights and statistics into a network.

    Raises:
        InputError: they do not fit; its message begins with ``another``.
    """
    try:
        module.load_state_dict(dict(tensors))
    except RuntimeError as error:
        detail = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise InputError(f"{another} than this config makes: {detail}") from error


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Adam's moments and step counts by "<index of the parameter>.<exp_avg|exp_avg_sq|step>", and
    where there is a loss scale its numbers by "scale.<name>"."""
    whole = optimizer.state_dict()
    entries = whole["state"] | ({"scale": whole["scale"]} if "scale" in whole else {})
    return {
        f"{index}.{name}": value
        for index, entry in entries.items()
        for name, value in entry.items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], where: str
) -> None:
    """Copy moments, step counts and loss scale into an optimizer.

    A parameter without moments gets zeros, and an optimizer without a scale takes none.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    entries: dict[int, dict[str, Tensor]] = {}
    scale: dict[str, Tensor] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        if index == "scale":
            scale[name] = value
            continue
        known = index.isdecimal() and int(index) < len(parameters)
        if not known or value.shape != (() if name == "step" else parameters[int(index)].shape):
            raise InputError(
                f"{where} belongs to other networks than this config makes: "
                f"{key} has shape {tuple(value.shape)}"
            )
        entries.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": entries, "scale": scale})


class Copy:
    """A state as it was. The next copy uses the same memory.

    Args:
        on_host: copy to the host, page-locked where the state lies on a GPU; else where it lies.
    """

    def __init__(self, on_host: bool) -> None:
        self._on_host = on_host
        self.images = -1  # nothing is copied yet
        self.contents: dict[str, dict[str, Tensor]] = {}

    @torch.no_grad()
    def take(self, state: State) -> None:
        """Copy the state; returns when a copy for the host is there."""
        before, self.contents, to_host = self.contents, {}, False
        for part, tensors in contents_of(state).items():
            copies = self.contents[part] = {}
            for name, tensor in tensors.items():
                copy = before.get(part, {}).get(name)
                crosses = tensor.is_cuda and self._on_host
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
