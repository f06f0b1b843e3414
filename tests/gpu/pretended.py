"""A pretended GPU: the phases of a training on fake tensors of device "cuda", with nothing
computed. It counts what they would launch.

    python -m tests.gpu.pretended '[{"preset": "wgan-gp", "data": "mnist"}]'

prints, as JSON, for each setting what each phase launches and moves, and what would make it wait
for the host. It is a process of its own: torch is imported behind a library of pretended answers.
Which algorithm cuDNN takes is pretended too: tensors keep their layout.
"""

import ctypes
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any


def load_answers() -> ctypes.CDLL:
    """Compile and load ``pretended.cpp``, before torch is imported."""
    found = importlib.util.find_spec("torch")
    root, source = Path(str(found and found.origin)).parent, Path(__file__).with_suffix(".cpp")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "pretended.so"
        flags = f"-std=c++20 -O0 -shared -fPIC -I{root}/include -L{root}/lib -Wl,-rpath,{root}/lib"
        command = [os.environ.get("CXX", "g++"), str(source), *flags.split()]
        subprocess.run(
            [*command, "-lc10", "-ltorch_cpu", "-o", str(library)], check=True, capture_output=True
        )
        return ctypes.CDLL(str(library))


if __name__ == "__main__":
    answers = load_answers()

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch._prims_common import suggest_memory_format  # noqa: E402
from torch._subclasses import fake_tensor  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

from ganfast.kernels.gradient_penalty import _ONE_PROGRAM  # noqa: E402
from tests.gpu.pretended_inductor import SEVERAL, pretend_inductor  # noqa: E402

# Operations that launch nothing: they make a tensor, or name a part of one.
_FREE = {
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh",
    "is_same_size", "device", "sym_size", "view", "_unsafe_view", "as_strided", "detach", "alias",
    "slice", "select", "permute", "expand", "t", "transpose", "unsqueeze", "squeeze", "split",
    "split_with_sizes", "unbind", "narrow", "unfold", "unflatten", "_reshape_alias", "diagonal",
    "set_", "view_as", "numpy_T", "resize_", "record_stream", "promote_types",
}  # fmt: skip


def _kernels(name: str, args: tuple[Any, ...]) -> int:
    if name == "convolution_backward":  # one for the input, one for the weight
        return sum(args[-1])
    if name == "gradient_penalty":
        return SEVERAL[name] if args[0][0].numel() > _ONE_PROGRAM else 1
    return SEVERAL.get(name, 1)


class Launches(TorchDispatchMode):
    """Counts operations and the bytes of their tensors.

    ``waits`` names operations whose numbers the host waits for, ``strangers`` those that mix a CPU
    tensor of one or more dimensions in.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.bytes = 0
        self.waits: list[str] = []
        self.strangers: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None) -> Any:  # type: ignore[no-untyped-def]
        name = str(function).split(".")[1]
        if name in ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal"):
            self.waits.append(str(function))
        result = function(*args, **(kwargs or {}))
        if name not in _FREE:
            tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
            self.operations[str(function)] += _kernels(name, args)
            self.bytes += sum(x.nbytes for x in tensors)
            if any(x.device.type != "cuda" and x.dim() for x in tensors):
                self.strangers.append(str(function))
        return result


def pretend() -> None:
    """Answer what ganfast asks of torch.cuda, as an H200 would."""
    import torch._dynamo  # which lists torch's own functions when it is first imported

    fake_tensor.init_gpu_context = lambda *_: None
    yes: Any = lambda *_, **__: True  # noqa: E731
    torch.cuda.is_available = torch.cuda.is_bf16_supported = yes
    torch.cuda.is_current_stream_capturing = lambda: False
    torch.cuda.device_count = lambda: 1
    torch.cuda.set_device = torch.cuda.synchronize = lambda *_: None
    torch.cuda.mem_get_info = lambda *_: (140 << 30, 141 << 30)
    torch.cuda.manual_seed_all = torch.cuda.set_rng_state = lambda *_: None
    torch.cuda.get_rng_state = lambda *_: torch.get_rng_state()
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    convolution: Any = torch._C
    backend = torch._C._ConvBackend
    convolution._select_conv_backend = lambda *_, transposed=False, **__: (
        backend.CudnnTranspose if transposed else backend.Cudnn
    )
    convolution._conv_determine_backend_memory_format = _layout


def _layout(x: Tensor, weight: Tensor, _: Any) -> torch.memory_format:
    last = torch.channels_last
    return last if last in map(suggest_memory_format, (x, weight)) else torch.contiguous_format


def _pretended(x: Tensor) -> Any:
    """A fake tensor on the pretended GPU, laid out as x."""
    fake = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda:0")
    return torch.nn.Parameter(fake, x.requires_grad) if isinstance(x, torch.nn.Parameter) else fake


def counted(
    compile: bool = False, flip: bool = False, augment: Any = "off", **setting: Any
) -> dict[str, Any]:
    """Phase -> what one call of it launches, moves and waits for."""
    from ganfast.bench import problem as problems
    from ganfast.bench.setting import Setting
    from ganfast.data.resident import ResidentData
    from ganfast.device import prepared
    from ganfast.engine import make_critic_step, make_drawing, make_generator_step
    from ganfast.presets import PRESETS
    from ganfast.training.loop import Iteration
    from ganfast.training.phases import Graphs
    from ganfast.training.state import State

    if compile:
        pretend_inductor()
    problems.FROM_LATENTS = tuple(PRESETS)  # the iteration is ours alone, tasks' as well
    problem = problems.Problem(Setting(**setting))
    c = replace(problem.config, augment=augment)
    device, kind, pack = problem.device, problem.autocast, problem.pack
    host = torch.device("cpu")
    data = ResidentData(pack, host, c.seed, flip, c.balanced)
    nets = [prepared(net, host) for net in problem.networks(0)]
    with FakeTensorMode(allow_non_fake_inputs=True):
        data.device = device
        for name, value in vars(data).items():
            if isinstance(value, Tensor):
                setattr(data, name, _pretended(value))
        for module in (m for net in nets for m in net.modules()):
            for members in (module._parameters, module._buffers):
                members |= {name: _pretended(x) for name, x in members.items() if x is not None}
        state = State.of(*nets, c, kind)
        twins = state.optimizer_generator.computing, state.optimizer_critic.computing
        how = {"compile": compile, "check": False}
        critic = make_critic_step(
            state.critic, c.loss, c.penalty, kind, c.engine, computing=twins[1], **how
        )
        generator = make_generator_step(
            state.generator, state.critic, c.loss, kind, computing=twins, **how
        )
        drawing = make_drawing(state.generator, kind, compile, twins[0], False)
        graphs = Graphs("off", device)
        iteration = Iteration(state, data, c, critic, generator, drawing, graphs)
        iteration.feed.set(0)
        phases = {"draw": iteration.draws, "critic": iteration.plain_critic}
        if c.penalty.active:
            phases["penalised critic"] = iteration.penalised_critic
        found: dict[str, Any] = {"ahead": iteration.feed.ahead, "engine": critic.choice.title}
        for name, phase in (phases | {"generator": iteration.generator}).items():
            phase()  # first calls make buffers
            with Launches() as seen:
                phase()
            found[name] = {
                "launches": seen.operations.total(),
                "megabytes": round(seen.bytes / 1e6, 1),
                "waits": seen.waits,
                "strangers": seen.strangers,
                "operations": dict(seen.operations.most_common()),
            }
    return found


def main() -> None:
    answers.register_guard()
    pretend()
    print(json.dumps([counted(**setting) for setting in json.loads(sys.argv[1])]))


if __name__ == "__main__":
    main()
