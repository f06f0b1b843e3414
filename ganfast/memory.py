"""Out of memory: telling it from other errors, and finding by trial a batch that would have fitted."""

import gc
import os
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from ganfast.plan import Plan

# What the allocators of a CPU, of oneDNN, of C++ and of CUDA's libraries say in a plain RuntimeError.
_SAID = (
    "defaultcpuallocator", "not enough memory", "could not create a memory", "std::bad_alloc",
    "cuda error: out of memory", "alloc_failed",
)  # fmt: skip
_STEPS = 5  # on a GPU: as many as it takes until phases are captured as graphs


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a device or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _SAID)


def batch_that_fits(plan: "Plan") -> int:
    """The first of half the plan's batch, a quarter, ... whose first steps run in the memory there is; 0 where none does.

    The steps are real ones on the networks of the plan, which are of no use afterwards. On a CPU, batches that by the bytes
    counted for a picture exceed the free memory are not tried: the system may end a process rather than refuse it.
    """
    from ganfast.plan import count_cost

    batch, most = plan.config.batch // 2, float("inf")
    if plan.device.type == "cpu":
        free = _free_bytes()
        try:
            most = free / max(1.0, count_cost(plan).activation_bytes / plan.config.batch) if free else most
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return 0
    while batch >= 2:
        if batch <= most and _fits(plan, batch):
            return batch
        batch //= 2
    return 0


def _fits(plan: "Plan", batch: int) -> bool:
    from ganfast.engine import make_critic_step, make_generator_step
    from ganfast.loop import train_loop

    gc.collect()
    if plan.device.type == "cuda":
        torch.cuda.empty_cache()
    c, state = plan.config, plan.state
    steps = 1 if plan.device.type == "cpu" else _STEPS
    few = replace(c, batch=batch, kimg=steps * batch * c.optim.critic_steps / 1000)
    state.images = 0  # where a lazy penalty is due
    try:
        critic_step = make_critic_step(state.critic, c.loss, c.penalty, plan.autocast, c.engine, plan.compile)
        generator_step = make_generator_step(state.generator, state.critic, c.loss, plan.autocast, plan.compile)
        train_loop(state, plan.data, few, critic_step, generator_step, lambda: False, lambda *_: None, plan.autocast)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True


def _free_bytes() -> int:
    """Free memory of the host, its cache not counted; 0 where the system does not say."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 0
