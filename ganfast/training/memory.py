"""After memory ran out: a batch that would have fitted."""

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from ganfast.engine import CriticStep, Drawing, GeneratorStep
from ganfast.errors import is_out_of_memory
from ganfast.host import free_memory
from ganfast.training.host_memory import give_back_freed_memory
from ganfast.training.loop import train_loop
from ganfast.training.plan import Plan, count_cost
from ganfast.training.state import Copy

MakeSteps = Callable[[Plan], tuple[CriticStep, GeneratorStep, Drawing]]
_STEPS = 5  # until phases are captured as graphs
# Share of the free memory that counted bytes may take. What an operation borrows while it runs is
# not counted, nor what lies between allocations: dcgan at 16x16, width 64, took 2.5 to 3.1 times
# the counted bytes at batches of 1000 to 4000.
_ROOM = 0.2


def batch_that_fits(plan: Plan, make_steps: MakeSteps) -> int:
    """The first of half the plan's batch, a quarter, ... that fits into memory; 0 = none.

    Each of the plan's ``accumulate`` parts has 2 pictures or more.
    On a GPU it is tried: real first steps on the networks of the plan, which are of no use
    afterwards. On a CPU it is computed from the bytes counted for a picture, because the system may
    end a process that runs out of memory rather than refuse to give it more.
    """
    gc.collect()
    give_back_freed_memory()  # or what the failed step had would count as taken
    on_gpu = plan.device.type == "cuda"
    try:
        most = float("inf") if on_gpu else _most_by_count(plan)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return 0
    parts = plan.config.accumulate
    part = plan.config.batch // parts
    while part > 2:
        part = max(2, part // 2)
        batch = part * parts
        if batch <= most and (not on_gpu or _runs(plan, make_steps, batch)):
            return batch
    return 0


def _most_by_count(plan: Plan) -> float:
    return _ROOM * _free_bytes() / max(1, count_cost(plan).activation_bytes) * plan.config.batch


def _free_bytes() -> float:
    """What the host, and the limits on this process, have left; infinite where none says."""
    free = free_memory()
    try:
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            free = min(free, limit - pages * resource.getpagesize())
    except (ImportError, AttributeError, ValueError, OSError):  # not on Linux
        pass
    return free


def _runs(plan: Plan, make_steps: MakeSteps, batch: int) -> bool:
    c, state = plan.config, plan.state
    torch.cuda.empty_cache()
    back = Copy(on_host=False)  # a run holds one, to go back to after a divergence
    few = replace(c, batch=batch, kimg=_STEPS * batch * c.optim.critic_steps / 1000)
    state.images = 0  # a lazy penalty is due here
    try:
        back.take(state)
        critic, generator, drawing = make_steps(plan)
        train_loop(
            state, plan.data, few, critic, generator, lambda: False, lambda *_: None, drawing
        )
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True
