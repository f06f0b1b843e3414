"""What inductor writes for the pretended GPU: the launches of a compiled graph, none of which runs.

Inductor lowers a graph to Python: calls of Triton kernels that it wrote, of libraries, and of
custom operations. `pretend_inductor` stops it before that Python is loaded, counts the calls, and
lets the graph return empty tensors of the right shapes.
"""

import re
from collections import Counter
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch._inductor.output_code import OutputCode
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

_H200 = SimpleNamespace(
    name="NVIDIA H200",
    major=9,
    minor=0,
    multi_processor_count=132,
    total_memory=150_000_000_000,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
    L2_cache_size=60 << 20,
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472,
    gcnArchName="",
)


# Operations of ours that launch more than one kernel: partial sums, and rates, take one more.
SEVERAL = {"bias_act_delta": 2, "adam_ema": 2, "gradient_penalty": 2}


class _Wrote(Exception):
    """Ends the lowering of a graph with what inductor wrote."""


class Written(OutputCode):
    """A graph in place of its code: a call counts the launches and computes nothing.

    It counts the bytes of arguments and results, not those of what lies between.
    """

    _boxed_call = True

    def __init__(self, code: str, outputs: list[Any]) -> None:
        super().__init__()
        self.code, self.launches, self._outputs = code, launches_of(code), outputs

    def post_compile(self, *_: Any) -> None:
        pass

    def set_triton_bundle(self, *_: Any) -> None:
        pass

    def __call__(self, inputs: Any) -> list[Any]:
        outputs = [
            torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)
            if isinstance(x, Tensor)
            else x
            for x in self._outputs
        ]
        moved = sum(x.nbytes for x in [*inputs, *outputs] if isinstance(x, Tensor))
        inputs.clear()
        for mode in _get_current_dispatch_mode_stack():
            if hasattr(mode, "operations"):
                mode.operations.update(self.launches)
                mode.bytes += moved
        return outputs


def launches_of(code: str) -> Counter[str]:
    """Calls in the Python that inductor wrote for a graph, by name; its own kernels by kind."""
    body = code[code.index("def call") :]
    own = re.findall(r"\b(triton_[a-z]+)_\w*\.run\(", body)
    others: Counter[str] = Counter()
    for name, line in re.findall(r"\b(?:extern_kernels|torch\.ops)\.([\w.]+)\((.*)", body):
        if "convolution_backward" in name:  # one for the input, one for the weight
            others[name] += line[line.rindex("[") :].count("True")
        else:
            others[name] += SEVERAL.get(name.split(".")[1] if "." in name else name, 1)
    return Counter(own) + others


@cache
def pretend_inductor() -> None:
    """Let inductor write for an H200 that it cannot ask, and load nothing."""
    import torch._inductor.compile_fx as compile_fx
    import torch._inductor.config as config
    from torch._dynamo import device_interface
    from torch._inductor.fx_passes import fuse_attention
    from torch._inductor.graph import GraphLowering
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    torch.cuda.get_device_properties = lambda *_, **__: _H200
    torch.cuda.get_device_capability = lambda *_, **__: (9, 0)
    torch.cuda.current_device = lambda: 0
    torch.cuda._lazy_init = lambda: None
    torch.cuda._exchange_device = torch.cuda._maybe_exchange_device = lambda _: 0
    interface: Any = device_interface.CudaInterface
    answers = {
        "get_device_properties": _H200,
        "current_device": 0,
        "device_count": 1,
        "synchronize": None,
        "get_compute_capability": 90,
        "is_bf16_supported": True,
        "is_triton_capable": True,
        "raise_if_triton_unavailable": None,
    }
    for name, answer in answers.items():
        setattr(interface, name, staticmethod(lambda *_, answer=answer, **__: answer))
    interface.Worker.get_device_properties = staticmethod(lambda *_, **__: _H200)
    interface.Worker.current_device = staticmethod(lambda: 0)

    target = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
        get_current_device=lambda: 0,
        utils=SimpleNamespace(
            get_device_properties=lambda _: {"max_shared_mem": 232448, "multiprocessor_count": 132}
        ),
    )
    driver.set_active(target)

    config.fx_graph_cache = False
    config.compile_threads = 1
    config.shape_padding = False  # which measures
    config.joint_graph_constant_folding = False  # which makes constants on the device
    fuse_attention._sfdp_init = lambda *_, **__: None  # which calls attention on the device

    def stop(self: Any) -> Any:
        wrapper, _ = self.codegen()
        raise _Wrote(wrapper.value)

    lowering: Any = GraphLowering
    lowering.compile_to_module = stop
    compile_graph = compile_fx.fx_codegen_and_compile

    def written(gm: Any, *args: Any, **kwargs: Any) -> OutputCode:
        (outputs,) = (n for n in gm.graph.nodes if n.op == "output")
        values = [getattr(x, "meta", {}).get("val", x) for x in outputs.args[0]]
        try:
            return compile_graph(gm, *args, **kwargs)
        except _Wrote as wrote:
            return Written(str(wrote), values)

    compile_fx.fx_codegen_and_compile = written
