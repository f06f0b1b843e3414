"""What pictures are made from: the tasks of conditional runs, and `task_of`, which makes them.

A condition is GIVEN to the generator at its own size and SHOWN to the critic at the picture's.
Users and bundles hold the given condition as uint8 (N, h, w, k). Networks are given `scaled`.
"""

from ganfast.config import Config
from ganfast.tasks.deblur import Deblur
from ganfast.tasks.inpaint import Inpaint
from ganfast.tasks.superres import SuperRes
from ganfast.tasks.task import Task, levels, psnr, scaled

__all__ = ["Task", "levels", "psnr", "scaled", "task_of"]

TASKS = {"superres": SuperRes, "inpaint": Inpaint, "deblur": Deblur}


def task_of(config: Config, size: int, channels: int) -> Task | None:
    """The task of a config for pictures of (size, size, channels); None = from latents alone.

    Raises:
        InputError: such pictures cannot have it.
    """
    if config.task.kind == "none":
        return None
    return TASKS[config.task.kind](config.task, size, channels)
