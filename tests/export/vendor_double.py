"""Stand-ins for `tensorrt` 10 and 11, `tensorrt_rtx` and the CUDA driver, where there is no GPU.

A stand-in has exactly the names of the real module, which tests/export/vendor_names.json lists.
To read or write any other name raises AttributeError. Behind the names it keeps the rules that
matter. An engine draws only when a stream runs, through bound addresses and in the shapes of the
chosen profile; ONNX Runtime computes what it draws.
"""

import base64
import ctypes
import json
import sys
from functools import partial
from itertools import count
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

NAMES = json.loads((Path(__file__).parent / "vendor_names.json").read_text())
MODULE = {"tensorrt 10": "tensorrt", "tensorrt 11": "tensorrt", "rtx": "tensorrt_rtx"}


class Strict:
    """An object of one of the vendor's classes: its names can be written, and read if implemented.

    ``data`` is the stand-in's own. A member that is a `property` is computed when it is read.
    """

    def __init__(self, double, kind, data=None, /, **members):
        vars(self).update(_double=double, _kind=kind, data=data, _members=members)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        self._double.touch(self._kind, name)
        if name not in self._members:
            raise NotImplementedError(
                f"{self._kind}.{name} exists, but the stand-in does not do it"
            )
        value = self._members[name]
        return value.fget() if isinstance(value, property) else value

    def __setattr__(self, name, value):
        self._double.touch(self._kind, name)
        self._members[name] = value

    def __call__(self, *args):
        return self._members["__call__"](*args)


class Blob(bytearray):
    """Serialised data: `memoryview` works, `bytes` methods are nobody's business."""


class Double:
    """One vendor module; ``without`` = (class, name) that it lacks although the real one has it."""

    def __init__(self, which, without=()):
        self.which, self.without = which, set(without)
        self.names, self.version = NAMES[which]["names"], NAMES[which]["version"]
        self.used = set()  # (class, name) that were asked for and exist
        self.builds, self.enqueued, self.refits = [], [], []
        self.fail = {}  # name of a step -> what goes wrong
        self.driver = FakeDriver()

    def touch(self, kind, name):
        if name not in self.names.get(kind, []) or (kind, name) in self.without:
            raise AttributeError(f"{self.which}: {kind} has no {name}")
        self.used.add((kind, name))

    def module(self):
        made = ModuleType(MODULE[self.which])
        made.__version__ = self.version
        levels = ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")
        severity = SimpleNamespace(**{name: i for i, name in enumerate(levels)})
        made.ILogger = type("ILogger", (), {"Severity": severity})
        for kind in self.names:
            if kind == "ILogger" or (kind, None) in self.without:
                continue
            members = {name: Member(i, name) for i, name in enumerate(self.names[kind])}
            if kind not in _ENUMS:
                members = dict.fromkeys(members) | {"__call__": getattr(self, f"_{kind}", None)}
            setattr(made, kind, Strict(self, kind, **members))
        return made

    def install(self, monkeypatch):
        import ganfast.export.engines.vendor as vendor

        monkeypatch.setitem(sys.modules, MODULE[self.which], self.module())
        for other in {"tensorrt", "tensorrt_rtx", "tensorrt_lean"} - {MODULE[self.which]}:
            monkeypatch.setitem(sys.modules, other, None)  # importing it raises ImportError
        monkeypatch.setattr(vendor, "_loggers", {})
        return self

    # Building

    def _Builder(self, log):
        log.log(2, "a warning nobody needs")
        return Strict(
            self,
            "Builder",
            create_network=self._network,
            create_builder_config=self._config,
            create_optimization_profile=self._profile,
            build_serialized_network=self._build,
        )

    def _network(self, flags):
        strongly = self.names["NetworkDefinitionCreationFlag"].index("STRONGLY_TYPED")
        assert flags == 1 << strongly, "strongly typed, and nothing else"
        data = SimpleNamespace(model=b"", inputs=[])
        number = property(lambda: len(data.inputs))
        return Strict(
            self, "INetworkDefinition", data, num_inputs=number, get_input=lambda i: data.inputs[i]
        )

    def _OnnxParser(self, network, log):
        errors = []

        def parse(model):
            try:
                graph = onnx.load_model_from_string(model).graph
                assert graph.node
            except Exception as error:
                errors.append(str(error) or type(error).__name__)
                return False
            network.data.model = model
            for value in graph.input:
                sizes = value.type.tensor_type.shape.dim
                shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in sizes)
                network.data.inputs.append(Strict(self, "ITensor", name=value.name, shape=shape))
            return True

        def error_of(i):
            told = {"desc": errors[i], "node_name": "node", "node_operator": "Op"}
            return Strict(
                self, "ParserError", **{name: partial(str, text) for name, text in told.items()}
            )

        number = property(lambda: len(errors))
        return Strict(self, "OnnxParser", parse=parse, num_errors=number, get_error=error_of)

    def _config(self):
        data = SimpleNamespace(flags={"TF32"}, profiles=[], capabilities=[], cache=None)

        def timing(content):
            return Strict(self, "ITimingCache", serialize=lambda: Blob(bytes(content) + b"t"))

        return Strict(
            self,
            "IBuilderConfig",
            data,
            create_timing_cache=timing,
            set_flag=lambda flag: data.flags.add(flag.name),
            clear_flag=lambda flag: data.flags.discard(flag.name),
            add_optimization_profile=lambda profile: data.profiles.append(profile.data),
            set_compute_capability=lambda value, i: data.capabilities.append(value.name) or True,
            set_timing_cache=lambda cache, ignore: setattr(data, "cache", cache) or True,
        )

    def _profile(self):
        shapes = {}
        return Strict(
            self,
            "IOptimizationProfile",
            shapes,
            set_shape=lambda name, *three: shapes.__setitem__(name, three),
        )

    def _build(self, network, config):
        if "build" in self.fail:
            return None
        announced = config._members.get("num_compute_capabilities", 0)
        assert announced == len(config.data.capabilities)
        assert len(config.data.profiles) > 0
        names = {tensor._members["name"] for tensor in network.data.inputs}
        assert all(set(shapes) == names for shapes in config.data.profiles)
        self.builds.append(config.data)
        model = base64.b64encode(network.data.model).decode()
        plan = {
            "model": model,
            "flags": sorted(config.data.flags),
            "profiles": config.data.profiles,
        }
        return Blob(json.dumps(plan).encode())

    # Running

    def _Runtime(self, log):
        def deserialize(plan):
            if "open" in self.fail:
                log.log(1, "engine of another world")
                return None
            return self._engine(json.loads(plan))

        return Strict(
            self, "Runtime", deserialize_cuda_engine=deserialize, engine_host_code_allowed=False
        )

    def _engine(self, plan):
        model = base64.b64decode(plan["model"])
        data = SimpleNamespace(model=model, profiles=plan["profiles"], session=session_of(model))
        inputs = {value.name: value for value in data.session.get_inputs()}
        tensors = inputs | {value.name: value for value in data.session.get_outputs()}
        mode = self.names["TensorIOMode"].index

        def shape_of(name):
            return tuple(-1 if isinstance(d, str) else d for d in tensors[name].shape)

        return Strict(
            self,
            "ICudaEngine",
            data,
            num_optimization_profiles=len(data.profiles),
            num_io_tensors=len(tensors),
            get_tensor_name=lambda i: list(tensors)[i],
            get_tensor_shape=shape_of,
            device_memory_size_v2=256,
            get_tensor_mode=lambda name: Member(mode("INPUT" if name in inputs else "OUTPUT"), ""),
            get_tensor_profile_shape=lambda name, i: [tuple(s) for s in data.profiles[i][name]],
            create_runtime_config=self._runtime_config,
            refittable="REFIT" in plan["flags"],
            create_execution_context=lambda config: self._context(data, config, inputs, tensors),
        )

    def _runtime_config(self):
        chosen = {}
        return Strict(
            self,
            "IRuntimeConfig",
            chosen,
            dynamic_shapes_kernel_specialization_strategy=None,
            set_execution_context_allocation_strategy=lambda s: chosen.update(memory=s.name),
        )

    def _context(self, data, config, inputs, tensors):
        assert config.data == {"memory": "USER_MANAGED"}
        state = SimpleNamespace(memory=None, profile=None, shapes={}, addresses={})

        def use_profile(i, stream):
            assert stream, "not on the default stream"
            state.profile, state.shapes = i, {}
            return True

        def set_shape(name, shape):
            assert name in inputs
            low, _, high = data.profiles[state.profile][name]
            state.shapes[name] = tuple(shape)
            return all(a <= s <= b for a, s, b in zip(low, shape, high, strict=True))

        def enqueue(stream):
            if "run" in self.fail:
                return False
            assert stream
            assert state.memory is not None
            assert (set(state.shapes), set(state.addresses)) == (set(inputs), set(tensors))
            self.enqueued.append(state.shapes["z"][0])

            def work():
                kinds = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
                kinds["tensor(uint8)"] = np.uint8
                fed = {
                    name: self.driver.read(
                        state.addresses[name], kinds[value.type], state.shapes[name]
                    )
                    for name, value in inputs.items()
                }
                self.driver.write(state.addresses["images"], data.session.run(["images"], fed)[0])

            self.driver.submit(stream, work)
            return True

        return Strict(
            self,
            "IExecutionContext",
            set_optimization_profile_async=use_profile,
            set_device_memory=lambda address, size: setattr(state, "memory", (address, size)),
            set_input_shape=set_shape,
            infer_shapes=lambda: [],
            execute_async_v3=enqueue,
            set_tensor_address=lambda name, at: state.addresses.update({name: at}) or True,
            is_stream_capturable=lambda stream: "capture" not in self.fail,
        )

    # Refitting

    def _Refitter(self, engine, log):
        new = SimpleNamespace(model=b"", engine=engine.data)

        def refit():
            engine.data.model, engine.data.session = new.model, session_of(new.model)
            self.refits.append(new.model)
            return True

        return Strict(
            self,
            "Refitter",
            new,
            refit_cuda_engine=refit,
            get_missing_weights=lambda: ["project.bias"] if "missing" in self.fail else [],
        )

    def _OnnxParserRefitter(self, refitter, log):
        def refit(model):
            refitter.data.model = model
            return shapes_of(model) == shapes_of(refitter.data.engine.model)

        error = Strict(self, "ParserError", desc=lambda: "other weights")
        return Strict(
            self,
            "OnnxParserRefitter",
            refit_from_bytes=refit,
            num_errors=1,
            get_error=lambda i: error,
        )


def session_of(model):
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])


def shapes_of(model):
    graph = onnx.load_model_from_string(model).graph
    return {t.name: numpy_helper.to_array(t).shape for t in graph.initializer}


class Member(int):
    """Of an enumeration."""

    def __new__(cls, value, name):
        made = super().__new__(cls, value)
        made.name = name
        return made


_ENUMS = {
    *"BuilderFlag ComputeCapability DynamicShapesKernelSpecializationStrategy".split(),
    *"ExecutionContextAllocationStrategy NetworkDefinitionCreationFlag TensorIOMode".split(),
}


class FakeDriver:
    """libcuda with host memory; a stream runs at once, or records while it is captured.

    Misuse is an assertion or an error code.
    """

    def __init__(self, name="Fake GPU", capability=(8, 6)):
        self.name, self.capability = name, capability
        self.memory, self.streams, self.graphs, self.capturing = {}, set(), {}, {}
        self.handles = count(1001)
        self.fail = set()  # names of calls that find no memory

    def __getattr__(self, name):
        if not name.startswith("cu"):
            raise AttributeError(name)
        return lambda *given: 2 if name in self.fail else self._call(name, *given) or 0

    def _call(self, name, first=None, second=None, third=None, fourth=None):
        match name:
            case "cuInit":
                pass
            case "cuDeviceGet":
                first._obj.value = second
                return 0 if second == 0 else 101
            case "cuDevicePrimaryCtxRetain":
                first._obj.value = 77
            case "cuCtxSetCurrent":
                assert first.value == 77
            case "cuDeviceGetName":
                first.value = self.name.encode()
            case "cuDeviceGetAttribute":
                first._obj.value = self.capability[{75: 0, 76: 1}[second]]
            case "cuMemAlloc_v2" | "cuMemAllocHost_v2":
                size = second.value
                block = ctypes.create_string_buffer(b"\xa5" * size, size)  # never zero by chance
                first._obj.value = ctypes.addressof(block)
                self.memory[first._obj.value] = block
            case "cuMemFree_v2" | "cuMemFreeHost":
                del self.memory[first.value]
            case "cuMemcpyHtoDAsync_v2" | "cuMemcpyDtoHAsync_v2" | "cuMemcpyDtoDAsync_v2":
                to, source, size = first.value, second.value, third.value
                self._check(to, size)
                self._check(source, size)
                self.submit(fourth.value, lambda: ctypes.memmove(to, source, size))
            case "cuStreamCreate":
                assert second == 1, "it does not wait for the default stream"
                self.streams.add(self._handle(first))
            case "cuStreamSynchronize":
                assert first.value not in self.capturing
            case "cuStreamDestroy_v2":
                self.streams.remove(first.value)
            case "cuStreamBeginCapture_v2":
                self.capturing[first.value] = []
            case "cuStreamEndCapture":
                self.graphs[self._handle(second)] = self.capturing.pop(first.value)
            case "cuGraphInstantiateWithFlags":
                self.graphs[self._handle(first)] = self.graphs[second.value]
            case "cuGraphDestroy" | "cuGraphExecDestroy":
                del self.graphs[first.value]
            case "cuGraphLaunch":
                for work in self.graphs[first.value]:
                    self.submit(second.value, work)
            case "cuGetErrorString":
                told = {2: b"out of memory"}.get(first, b"invalid device ordinal")
                second._obj.value = told
            case _:
                raise AttributeError(name)

    def _handle(self, pointer):
        pointer._obj.value = next(self.handles)
        return pointer._obj.value

    def _check(self, address, size):
        blocks = self.memory.items()
        assert any(at <= address and address + size <= at + len(block) for at, block in blocks)

    def read(self, address, dtype, shape):
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self._check(address, size)
        return np.frombuffer(ctypes.string_at(address, size), dtype).reshape(shape)

    def write(self, address, array):
        self._check(address, array.nbytes)
        ctypes.memmove(address, np.ascontiguousarray(array).ctypes.data, array.nbytes)

    def submit(self, stream, work):
        assert stream in self.streams
        if stream in self.capturing:
            self.capturing[stream].append(work)
        else:
            work()
