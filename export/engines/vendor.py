"""The one file that names things of `tensorrt` 10 and 11, `tensorrt_lean` and `tensorrt_rtx`.

This file looks for an attribute where they differ, and never compares versions. Precision is not
chosen here: it lives in the graph, and networks are strongly typed. An engine is code: its hash is
checked before it comes here, and code that it might bring for the host stays forbidden
(`engine_host_code_allowed` keeps its default, False).

Building for TensorRT-RTX has run. Whatever needs a GPU (opening, running, refitting; building for
`tensorrt`) was only checked against the names that the real modules have.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

from ganfast.errors import InputError, RunError

logger = logging.getLogger("ganfast")

MODULES = {"tensorrt": "tensorrt", "lean": "tensorrt_lean", "rtx": "tensorrt_rtx"}
_INSTALL = {
    "tensorrt": 'pip install "ganfast[tensorrt]"',
    "lean": "pip install tensorrt-lean",
    "rtx": 'pip install "ganfast[rtx]"',
}


@dataclass(frozen=True)
class Flavour:
    """One of the vendor's libraries, imported."""

    name: str  # tensorrt, lean or rtx
    module: ModuleType
    version: str


@dataclass(frozen=True)
class Build:
    """How a plan is built, besides the graph."""

    # One profile each, of exactly this batch size: kernels for one shape, equal bytes every time.
    buckets: tuple[int, ...]
    tf32: bool = False  # may float32 convolutions round their inputs to 10 bits?
    # May weights be exchanged later? TensorRT-RTX cannot build such a plan where there is no GPU.
    refit: bool = False
    # For later versions and the lean runtime too; the plan holds no code for the host.
    version_compatible: bool = False
    effort: int = 3  # of the search for kernels, 0 to 5


def load_flavour(name: str) -> Flavour:
    """Import a library.

    Raises:
        InputError: unknown, not installed, or not loadable here.
    """
    if name not in MODULES:
        raise InputError(f"engine is {name!r}; expected one of {', '.join(MODULES)}")
    try:
        module = import_module(MODULES[name])
    except ImportError as error:
        package = MODULES[name].replace("_", "-")
        raise InputError(
            f"{name} needs the package {package}: {_INSTALL[name]} ({error})"
        ) from error
    except Exception as error:  # a half-installed library raises whatever its loader does
        raise InputError(f"the package {MODULES[name]} does not load here: {error}") from error
    return Flavour(name, module, str(module.__version__))


_loggers: dict[str, tuple[Any, list[str]]] = {}


def _logger_of(flavour: Flavour) -> tuple[Any, list[str]]:
    """The library's logger and its complaints: a library ignores a second one of a process."""
    if flavour.module.__name__ not in _loggers:
        complaints: list[str] = []
        base = flavour.module.ILogger

        class Collector(base):  # type: ignore[misc, valid-type]
            def __init__(self) -> None:
                base.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity in (base.Severity.ERROR, base.Severity.INTERNAL_ERROR):
                    complaints.append(message)
                    del complaints[:-20]
                elif severity == base.Severity.WARNING:
                    logger.debug("%s: %s", flavour.name, message)

        _loggers[flavour.module.__name__] = Collector(), complaints
    return _loggers[flavour.module.__name__]


def builds_without_gpu(flavour: Flavour) -> bool:
    """Whether compute capabilities can be named: then no GPU is needed."""
    return hasattr(getattr(flavour.module, "IBuilderConfig", None), "set_compute_capability")


def build_plan(
    flavour: Flavour,
    model: bytes,
    build: Build,
    capabilities: Sequence[str] = (),
    timing_cache: bytes = b"",
) -> tuple[bytes, bytes]:
    """Compile a graph.

    Args:
        model: the ONNX file.
        capabilities: such as "8.6": the GPUs to build for, where the library can name them; () is
            the GPU here.
        timing_cache: of an earlier build; b"" starts one.

    Returns:
        The plan, and the timing cache (b"" where the library keeps none).

    Raises:
        InputError: the graph or a capability that the library cannot take, with its words.
        RunError: the build failed.
    """
    trt = flavour.module
    if not hasattr(trt, "Builder"):  # the lean runtime
        raise InputError(
            f"{flavour.name} {flavour.version} only runs engines; build them with tensorrt: "
            f"{_INSTALL['tensorrt']}"
        )
    log, complaints = _logger_of(flavour)
    complaints.clear()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        reason = "; ".join(
            f"{error.node_operator()} {error.node_name()}: {error.desc()}" for error in errors
        )
        raise InputError(
            f"{flavour.name} {flavour.version} cannot take the graph: "
            f"{reason or _joined(complaints)}; see `ganfast lint`"
        )
    config = builder.create_builder_config()
    _configure(flavour, config, build, capabilities)
    for bucket in build.buckets:
        profile = builder.create_optimization_profile()
        for i in range(network.num_inputs):
            tensor = network.get_input(i)
            shape = (bucket, *tuple(tensor.shape)[1:])
            profile.set_shape(tensor.name, shape, shape, shape)
        config.add_optimization_profile(profile)
    cache = None
    if not builds_without_gpu(flavour):  # TensorRT-RTX has the calls, but they do nothing
        cache = config.create_timing_cache(timing_cache)
        config.set_timing_cache(cache, False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RunError(f"{flavour.name} {flavour.version} built no engine: {_joined(complaints)}")
    return bytes(memoryview(plan)), b"" if cache is None else bytes(memoryview(cache.serialize()))


def _configure(flavour: Flavour, config: Any, build: Build, capabilities: Sequence[str]) -> None:
    trt = flavour.module
    flags = trt.BuilderFlag
    (config.set_flag if build.tf32 else config.clear_flag)(flags.TF32)
    if build.refit:
        config.set_flag(flags.REFIT)
    if build.version_compatible:
        config.set_flag(flags.VERSION_COMPATIBLE)
        config.set_flag(flags.EXCLUDE_LEAN_RUNTIME)
    config.builder_optimization_level = build.effort
    if not capabilities:
        return
    if not hasattr(config, "set_compute_capability"):
        raise InputError(
            f"{flavour.name} {flavour.version} builds for the GPU it runs on; "
            f"leave {', '.join(capabilities)} out"
        )
    members = {name: f"SM{name.replace('.', '')}" for name in capabilities}
    known = {name: getattr(trt.ComputeCapability, sm, None) for name, sm in members.items()}
    missing = [name for name, value in known.items() if value is None]
    if missing:
        names = re.findall(r"\bSM(\d+)\b", " ".join(dir(trt.ComputeCapability)))
        listed = ", ".join(f"{number / 10:.1f}" for number in sorted(map(int, names)))
        raise InputError(
            f"{flavour.name} {flavour.version} knows no compute capability {', '.join(missing)}; "
            f"it has {listed}"
        )
    config.num_compute_capabilities = len(known)
    for i, value in enumerate(known.values()):
        config.set_compute_capability(value, i)


def _joined(complaints: list[str]) -> str:
    return " ".join("; ".join(complaints).split()) or "it gave no reason"


class Engine:
    """A plan opened on the current CUDA context."""

    def __init__(self, flavour: Flavour, plan: bytes) -> None:
        trt = flavour.module
        self.flavour = flavour
        log, self._complaints = _logger_of(flavour)
        self._complaints.clear()
        self._runtime = trt.Runtime(log)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise InputError(
                f"{flavour.name} {flavour.version} cannot open the engine: "
                f"{_joined(self._complaints)}"
            )
        self.profiles = int(self._engine.num_optimization_profiles)
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        mode_of, input_mode = self._engine.get_tensor_mode, trt.TensorIOMode.INPUT
        self.inputs = [name for name in names if mode_of(name) == input_mode]
        self.outputs = [n for n in names if n not in self.inputs]
        self.arena_bytes = int(self._engine.device_memory_size_v2)  # of the largest profile

    def batch_of(self, profile: int) -> int:
        """The bucket of a profile."""
        return int(next(iter(self._engine.get_tensor_profile_shape(self.inputs[0], profile)[2])))

    def shape_of(self, name: str, batch: int) -> tuple[int, ...]:
        return (batch, *tuple(self._engine.get_tensor_shape(name))[1:])

    def context(
        self, profile: int, arena: int, addresses: dict[str, int], stream: int
    ) -> "Context":
        """A context of one profile; contexts may share an arena if they never run at once."""
        trt = self.flavour.module
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(
            trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        if hasattr(config, "dynamic_shapes_kernel_specialization_strategy"):
            # Compile kernels now, not in some later call.
            eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
            config.dynamic_shapes_kernel_specialization_strategy = eager
        context = self._engine.create_execution_context(config)
        if context is None:
            raise RunError(f"{self.flavour.name} made no context: {_joined(self._complaints)}")
        context.set_device_memory(arena, self.arena_bytes)
        done = context.set_optimization_profile_async(profile, stream)
        batch = self.batch_of(profile)
        for name in self.inputs:
            done = done and context.set_input_shape(name, self.shape_of(name, batch))
        for name in (*self.inputs, *self.outputs):
            done = done and context.set_tensor_address(name, addresses[name])
        if not done or context.infer_shapes():
            raise RunError(
                f"{self.flavour.name} refused batch {batch}: {_joined(self._complaints)}"
            )
        return Context(self, context)

    def refit(self, model: bytes) -> None:
        """Take the weights of another ONNX file with the same graph.

        Raises:
            InputError: the engine was not built for it, or the file has other weights.
        """
        trt = self.flavour.module
        if not self._engine.refittable:
            raise InputError(
                f"the {self.flavour.name} engine was built without refitting; export again"
            )
        log, _ = _logger_of(self.flavour)
        self._complaints.clear()
        refitter = trt.Refitter(self._engine, log)
        parser = trt.OnnxParserRefitter(refitter, log)
        if not parser.refit_from_bytes(model):
            errors = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
            raise InputError(
                f"the weights do not fit the engine: {errors or _joined(self._complaints)}; "
                "export again"
            )
        missing = refitter.get_missing_weights()
        if missing or not refitter.refit_cuda_engine():
            raise InputError(
                f"the engine also wants {', '.join(missing[:4]) or 'other weights'} "
                f"({_joined(self._complaints)}); export again"
            )


class Context:
    """One profile with its buffers bound."""

    def __init__(self, engine: Engine, context: Any) -> None:
        self._engine, self._context = engine, context

    def enqueue(self, stream: int) -> None:
        if not self._context.execute_async_v3(stream):
            raise RunError(
                f"{self._engine.flavour.name} failed to run: {_joined(self._engine._complaints)}"
            )

    def capturable(self, stream: int) -> bool:
        """Whether a CUDA graph can be captured now; True where the library cannot say so."""
        if not hasattr(self._context, "is_stream_capturable"):
            return True
        return bool(self._context.is_stream_capturable(stream))
