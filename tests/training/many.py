"""Ranks as forked processes: what torchrun would start, without the seconds that it takes.

    python -m tests.training.many '[{"name": 0, "size": 2, "preset": "dragan", "steps": 3}]'

prints, as JSON, what became of each job. A job with a preset trains it in float64, or in float32
where ``wide`` is false, and tells how far its weights are from those of the first job of its name.
One with ``arguments`` runs the command line on every rank; ``more`` are the arguments of one rank
alone, and ``trouble`` names what happens to it.
"""

import errno
import hashlib
import io
import json
import os
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import tyro  # noqa: F401  of the command line
from torch import Tensor

from ganfast import cli, disk
from ganfast.configfile import overlay
from ganfast.presets import preset_config
from ganfast.runs import checkpoint, train
from ganfast.training import feed, ranks
from ganfast.training.loop import train_loop
from ganfast.training.plan import Plan, make_plan
from ganfast.training.ranks import joined
from ganfast.training.state import State, contents_of, restore


def forked(size: int, work: Callable[[int], Any], seconds: float = 300) -> list[dict[str, Any]]:
    """``work(rank)`` on as many ranks: of each the exit code, what it returned, by JSON, and the
    second in which it ended. After ``seconds`` those that are left are killed: they have no code.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        children = []
        for rank in range(size):
            if (child := os.fork()) == 0:
                _as_rank(rank, size, port, work, Path(folder) / str(rank))
            children.append(child)
        ended: dict[int, tuple[int, float]] = {}
        until = time.monotonic() + seconds
        while len(ended) < size and time.monotonic() < until:
            for rank, child in enumerate(children):
                if rank not in ended and (done := os.waitpid(child, os.WNOHANG))[0]:
                    ended[rank] = os.waitstatus_to_exitcode(done[1]), time.monotonic()
            time.sleep(0.02)
        for rank in range(size):
            if rank not in ended:
                os.kill(children[rank], signal.SIGKILL)
                os.waitpid(children[rank], 0)
        said = [Path(folder) / str(rank) for rank in range(size)]
        texts = [path.read_text() if path.exists() else "null" for path in said]
        ends = [ended.get(rank, (None, until)) for rank in range(size)]
        return [
            {"code": code, "ended": when, "said": json.loads(text)}
            for (code, when), text in zip(ends, texts, strict=True)
        ]


def _as_rank(rank: int, size: int, port: int, work: Callable[[int], Any], path: Path) -> None:
    """Never returns."""
    code = 70
    try:
        if size > 1:
            os.environ |= {
                "TORCHELASTIC_RUN_ID": "forked",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "WORLD_SIZE": str(size),
                "LOCAL_WORLD_SIZE": str(size),
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
            }
        code, said = work(rank)
        path.write_text(json.dumps(said))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


# Steps in float64


def small(preset: str, steps: int, **more: Any) -> Plan:
    """A preset in networks of width 4, layer norm in the place of batch norm."""
    config = preset_config(preset, "digits")
    norms = {"generator_norm": config.net.generator_norm, "critic_norm": config.net.critic_norm}
    layers = {name: "layer" for name, norm in norms.items() if norm == "batch"}
    net = replace(config.net, width=4, latent=8, **layers)
    config = replace(config, batch=16, size=16, net=net, device="cpu", compile="off")
    config = overlay(config, more, "a job")
    kimg = steps * config.batch * config.optim.critic_steps / 1000
    return make_plan(replace(config, kimg=kimg))


def double(plan: Plan) -> None:
    torch.set_default_dtype(torch.float64)
    state = plan.state
    plan.state = State.of(state.generator.double(), state.critic.double(), plan.config)
    feed.Feed.critic, feed.Feed.generator = map(doubled, (feed.Feed.critic, feed.Feed.generator))


def doubled(serve: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def served(self: Any) -> Any:
        step = serve(self)
        tensors = {
            f.name: x for f in fields(step) if isinstance(x := getattr(step, f.name), Tensor)
        }
        tensors = {n: x.double() for n, x in tensors.items() if x.dtype == torch.float32}
        return replace(step, **tensors)

    return served


def trained(
    folder: Path,
    preset: str,
    steps: int,
    until: int,
    begin: str,
    save: str,
    wide: bool = True,
    **more: Any,
) -> Any:
    """The weights after step ``until``, from those of the file ``begin`` on if that is given."""
    plan = small(preset, steps, **more)
    if wide:
        double(plan)
    state, c = plan.state, plan.config
    with joined("cpu") as together:
        if begin:
            images, contents = torch.load(folder / begin)
            restore(state, contents, images, begin)
        how = train.make_steps(plan)
        end = until * c.batch * c.optim.critic_steps
        stop, nothing = (lambda: state.images >= end), (lambda *_: None)
        train_loop(state, plan.data, c, *how[:2], stop, nothing, how[2], together)
        optimizers = state.optimizers().values()
        flat = torch.cat([x for it in optimizers for x in it.flat_tensors()])
        digest = hashlib.sha256(flat.numpy().tobytes()).hexdigest()
        same = len(set(together.every(digest))) == 1
        if together.first:
            torch.save(flat, folder / "flat.pt")
            if save:
                torch.save((state.images, contents_of(state)), folder / save)
    return 0, {"same": same, "images": state.images, "hash": digest}


# The command line


def _trouble(kind: str) -> None:
    """What happens to this rank from now on."""
    if kind == "killed in a save":
        write, saved = disk.write_file, []  # names of files

        def die(path: Path, data: bytes) -> None:
            if path.name in saved:  # of the checkpoint before
                os.kill(os.getpid(), signal.SIGKILL)
            write(path, data)
            saved.append(path.name)

        disk.write_file = die
    elif kind == "killed":
        loop = train.train_loop

        def killed(state: State, data: Any, config: Any, *more: Any) -> None:
            critic, generator, _, on_step, *rest = more
            loop(state, data, config, critic, generator, kill_at(state), on_step, *rest)

        def kill_at(state: State) -> Callable[[], bool]:
            return lambda: bool(state.images >= 160 and os.kill(os.getpid(), signal.SIGKILL))

        train.train_loop = killed
    elif kind == "late":  # for the first exchange of the steps, and for the generator's
        samples, make_steps = train.Writer.samples, train.make_steps

        def late(*arguments: Any) -> None:
            time.sleep(6)
            samples(*arguments)
            train.Writer.samples = samples

        def made(plan: Plan) -> Any:
            critic, generator, drawing = make_steps(plan)
            run = generator.__class__.__call__
            waits = [6.0]

            def call(self: Any, *arguments: Any, **named: Any) -> Any:
                time.sleep(waits.pop() if waits else 0)
                return run(self, *arguments, **named)

            generator.__class__.__call__ = call
            return critic, generator, drawing

        train.Writer.samples, train.make_steps = late, made
    elif kind == "full disk":

        def full(*_: Any, **__: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        checkpoint.write = full
        train.insist.__globals__["RETRY_AFTER"] = ()
    elif kind == "other weights":
        make = train.plan_together

        def other(*arguments: Any) -> Plan:
            plan = make(*arguments)
            plan.state.optimizer_critic.flat[0] += 1
            return plan

        train.plan_together = other


def commanded(arguments: list[str], more: list[str], trouble: str) -> Any:
    said = io.StringIO()
    with redirect_stderr(said):
        _trouble(trouble)
        code = cli.main([*arguments, *more])
    return code, said.getvalue()


def main() -> None:
    torch.set_num_threads(1)
    make_plan(preset_config("dcgan", "digits"))  # what it imports, every fork has
    answers: list[Any] = []
    first: dict[Any, Tensor] = {}
    with tempfile.TemporaryDirectory() as folder:
        for job in json.loads(sys.argv[1]):
            size = job.pop("size")
            if "arguments" in job:
                whose = job.get("whose", 1)

                def command(rank: int, job: Any = job, whose: int = whose) -> Any:
                    own = rank == whose
                    ranks._LIMIT = timedelta(seconds=job.get("limit", 60))
                    more, trouble = job.get("more", []), job.get("trouble", "")
                    return commanded(job["arguments"], more * own, trouble if own else "")

                answers.append(forked(size, command))
                continue
            name = job.pop("name")
            job = {"until": job["steps"], "begin": "", "save": ""} | job
            ends = forked(size, lambda rank, job=job: trained(Path(folder), **job))
            flat = torch.load(Path(folder) / "flat.pt").double()
            reference = first.setdefault(name, flat)
            gap = float((flat - reference).norm() / reference.norm())
            same = [r["code"] == 0 and r["said"]["same"] for r in ends]
            answers.append({"size": size, "gap": gap, "same": all(same), **job, **ends[0]["said"]})
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
