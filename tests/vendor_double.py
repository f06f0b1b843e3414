"""Stand-ins for `tensorrt` 10 and 11 and `tensorrt_rtx`, and for the CUDA driver, for machines without a GPU.

A stand-in has exactly the names that the real module has (tests/vendor_names.json: public names read off the real modules); any
other raises AttributeError, be it read or written. Behind the names it keeps the rules that matter: an engine draws only through
bound addresses, in the shapes of the profile that was chosen, when a stream runs; and what it draws, ONNX Runtime computes.
"""

import base64
import ctypes
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

NAMES = json.loads((Path(__file__).parent / "vendor_names.json").read_text())
MODULE = {"tensorrt 10": "tensorrt", "tensorrt 11": "tensorrt", "rtx": "tensorrt_rtx"}


class Strict:
    """An object of a class: what the real class has and is implemented here can be read; what it has can be written."""

    def __init__(self, double, kind, **members):
        object.__setattr__(self, "_double", double)
        object.__setattr__(self, "_kind", kind)
        object.__setattr__(self, "_members", members)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        self._double.touch(self._kind, name)
        if name not in self._members:
            raise NotImplementedError(f"{self._kind}.{name} exists, but the stand-in does not do it")
        value = self._members[name]
        return value() if isinstance(value, Live) else value

    def __setattr__(self, name, value):
        self._double.touch(self._kind, name)
        self._members[name] = value

    def __call__(self, *args):
        return self._members["__call__"](*args)


class Live:
    """A member whose value is computed when it is read."""

    def __init__(self, compute):
        self.compute = compute

    def __call__(self):
        return self.compute()


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
        double = self

        class Severity:
            pass

        for i, name in enumerate(("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")):
            setattr(Severity, name, i)

        class ILogger:
            pass

        ILogger.Severity = Severity
        made.ILogger = ILogger
        for kind in self.names:
            if kind in ("ILogger",) or (kind, None) in self.without:
                continue
            if kind in _ENUMS:
                setattr(made, kind, Strict(double, kind, **{name: Member(i, name) for i, name in enumerate(self.names[kind])}))
            else:
                construct = getattr(self, f"_{kind}", None)
                setattr(made, kind, Strict(double, kind, __call__=construct, **dict.fromkeys(self.names[kind])))
        return made

    def install(self, monkeypatch):
        import ganfast.export.vendor as vendor

        monkeypatch.setitem(sys.modules, MODULE[self.which], self.module())
        for other in {"tensorrt", "tensorrt_rtx", "tensorrt_lean"} - {MODULE[self.which]}:
            monkeypatch.setitem(sys.modules, other, None)  # importing it raises ImportError
        monkeypatch.setattr(vendor, "_loggers", {})
        return self

    # Building

    def _Builder(self, log):
        log.log(2, "a warning nobody needs")
        return Strict(
            self, "Builder", create_network=self._network, create_builder_config=self._config,
            create_optimization_profile=self._profile, build_serialized_network=self._build,
        )  # fmt: skip

    def _network(self, flags):
        strongly = self.names["NetworkDefinitionCreationFlag"].index("STRONGLY_TYPED")
        assert flags == 1 << strongly, "strongly typed, and nothing else"
        data = SimpleNamespace(model=b"", inputs=[])
        tensors = Live(lambda: len(data.inputs))
        network = Strict(self, "INetworkDefinition", num_inputs=tensors, get_input=lambda i: data.inputs[i])
        object.__setattr__(network, "data", data)
        return network

    def _OnnxParser(self, network, log):
        errors = []

        def parse(model):
            try:
                graph = onnx.load_model_from_string(model).graph
                assert graph.node
            except Exception as error:
                errors.append(error)
                return False
            network.data.model = model
            for value in graph.input:
                shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim)
                network.data.inputs.append(Strict(self, "ITensor", name=value.name, shape=shape))
            return True

        def error_of(i):
            text = str(errors[i]) or type(errors[i]).__name__
            return Strict(self, "ParserError", desc=lambda: text, node_name=lambda: "node", node_operator=lambda: "Op")

        return Strict(self, "OnnxParser", parse=parse, num_errors=Live(lambda: len(errors)), get_error=error_of)

    def _config(self):
        data = SimpleNamespace(flags={"TF32"}, profiles=[], capabilities=[], cache=None)

        def timing(content):
            return Strict(self, "ITimingCache", serialize=lambda: Blob(bytes(content) + b"t"))

        members = {
            "set_flag": lambda flag: data.flags.add(flag.name), "clear_flag": lambda flag: data.flags.discard(flag.name),
            "add_optimization_profile": lambda profile: data.profiles.append(profile.data) or len(data.profiles) - 1,
            "set_compute_capability": lambda value, i: data.capabilities.append(value.name) or True,
            "create_timing_cache": timing, "set_timing_cache": lambda cache, ignore: setattr(data, "cache", cache) or True,
        }  # fmt: skip
        config = Strict(self, "IBuilderConfig", **members)
        object.__setattr__(config, "data", data)
        return config

    def _profile(self):
        shapes = {}
        profile = Strict(self, "IOptimizationProfile", set_shape=lambda name, *three: shapes.__setitem__(name, three))
        object.__setattr__(profile, "data", shapes)
        return profile

    def _build(self, network, config):
        if "build" in self.fail:
            return None
        named = [name for name in ("num_compute_capabilities", "builder_optimization_level") if name in config._members]
        assert config._members.get("num_compute_capabilities", 0) == len(config.data.capabilities), named
        assert len(config.data.profiles) > 0
        for shapes in config.data.profiles:
            assert set(shapes) == {tensor._members["name"] for tensor in network.data.inputs}
        self.builds.append(config.data)
        plan = {
            "model": base64.b64encode(network.data.model).decode(), "flags": sorted(config.data.flags),
            "profiles": [{name: [list(s) for s in three] for name, three in shapes.items()} for shapes in config.data.profiles],
        }  # fmt: skip
        return Blob(json.dumps(plan).encode())

    # Running

    def _Runtime(self, log):
        def deserialize(plan):
            if "open" in self.fail:
                log.log(1, "engine of another world")
                return None
            return self._engine(json.loads(plan))

        return Strict(self, "Runtime", deserialize_cuda_engine=deserialize, engine_host_code_allowed=False)

    def _engine(self, plan):
        data = SimpleNamespace(model=base64.b64decode(plan["model"]), plan=plan)
        data.session = onnxruntime.InferenceSession(data.model, providers=["CPUExecutionProvider"])
        inputs = {value.name: value for value in data.session.get_inputs()}
        outputs = {value.name: value for value in data.session.get_outputs()}
        everything = {**inputs, **outputs}
        names = list(everything)
        mode = self.names["TensorIOMode"].index

        def shape_of(name):
            return tuple(-1 if isinstance(d, str) else d for d in everything[name].shape)

        engine = Strict(
            self, "ICudaEngine", num_optimization_profiles=len(plan["profiles"]), num_io_tensors=len(names),
            get_tensor_name=lambda i: names[i], get_tensor_shape=shape_of, device_memory_size_v2=256,
            get_tensor_mode=lambda name: Member(mode("INPUT" if name in inputs else "OUTPUT"), ""),
            get_tensor_profile_shape=lambda name, i: [tuple(s) for s in plan["profiles"][i][name]],
            create_runtime_config=self._runtime_config, refittable="REFIT" in plan["flags"],
            create_execution_context=lambda config: self._context(data, config, inputs, outputs, shape_of),
        )  # fmt: skip
        object.__setattr__(engine, "data", data)
        return engine

    def _runtime_config(self):
        chosen = {}
        config = Strict(
            self, "IRuntimeConfig",
            set_execution_context_allocation_strategy=lambda value: chosen.__setitem__("memory", value.name),
            dynamic_shapes_kernel_specialization_strategy=None,
        )  # fmt: skip
        object.__setattr__(config, "data", chosen)
        return config

    def _context(self, data, config, inputs, outputs, shape_of):
        assert config.data == {"memory": "USER_MANAGED"}
        state = SimpleNamespace(memory=None, profile=None, shapes={}, addresses={})

        def use_profile(i, stream):
            assert stream, "not on the default stream"
            state.profile = i
            state.shapes = {}
            return True

        def set_shape(name, shape):
            low, _, high = data.plan["profiles"][state.profile][name]
            assert name in inputs
            if not all(a <= s <= b for a, s, b in zip(low, shape, high, strict=True)):
                return False
            state.shapes[name] = tuple(shape)
            return True

        def enqueue(stream):
            if "run" in self.fail:
                return False
            assert stream
            assert set(state.shapes) == set(inputs)
            assert set(state.addresses) == {*inputs, *outputs}
            assert state.memory is not None
            batch = state.shapes["z"][0]
            self.enqueued.append(batch)

            def work():
                feed = {}
                for name, value in inputs.items():
                    dtype = {"tensor(float)": np.float32, "tensor(int64)": np.int64}[value.type]
                    feed[name] = self.driver.read(state.addresses[name], dtype, state.shapes[name])
                self.driver.write(state.addresses["images"], data.session.run(["images"], feed)[0])

            self.driver.submit(stream, work)
            return True

        return Strict(
            self, "IExecutionContext", set_device_memory=lambda address, size: setattr(state, "memory", (address, size)),
            set_optimization_profile_async=use_profile, set_input_shape=set_shape, infer_shapes=lambda: [],
            set_tensor_address=lambda name, address: state.addresses.__setitem__(name, address) or True,
            execute_async_v3=enqueue, is_stream_capturable=lambda stream: "capture" not in self.fail,
        )  # fmt: skip

    # Refitting

    def _Refitter(self, engine, log):
        new = SimpleNamespace(model=b"")

        def refit():
            engine.data.model = new.model
            engine.data.session = onnxruntime.InferenceSession(new.model, providers=["CPUExecutionProvider"])
            self.refits.append(new.model)
            return True

        refitter = Strict(
            self,
            "Refitter",
            get_missing_weights=lambda: ["project.bias"] if "missing" in self.fail else [],
            refit_cuda_engine=refit,
        )
        object.__setattr__(refitter, "new", new)
        object.__setattr__(refitter, "engine", engine)
        return refitter

    def _OnnxParserRefitter(self, refitter, log):
        def refit(model):
            shapes = [_shapes(m) for m in (model, refitter.engine.data.model)]
            refitter.new.model = model
            return shapes[0] == shapes[1]

        def error_of(i):
            return Strict(self, "ParserError", desc=lambda: "other weights")

        return Strict(self, "OnnxParserRefitter", refit_from_bytes=refit, num_errors=1, get_error=error_of)


def _shapes(model):
    graph = onnx.load_model_from_string(model).graph
    return {t.name: numpy_helper.to_array(t).shape for t in graph.initializer}


class Member(int):
    """Of an enumeration."""

    def __new__(cls, value, name):
        made = super().__new__(cls, value)
        made.name = name
        return made


_ENUMS = {
    "BuilderFlag", "ComputeCapability", "DynamicShapesKernelSpecializationStrategy", "ExecutionContextAllocationStrategy",
    "NetworkDefinitionCreationFlag", "TensorIOMode",
}  # fmt: skip


class FakeDriver:
    """libcuda with host memory; a stream runs at once, or records while it is captured. Misuse is an assertion or an error code."""

    def __init__(self, name="Fake GPU", capability=(8, 6)):
        self.name, self.capability = name, capability
        self.memory, self.streams, self.graphs, self.capturing = {}, set(), {}, {}
        self._next = 1000
        self.current = False
        self.fail = set()

    def __getattribute__(self, name):
        if name.startswith("cu") and name[2:3].isupper() and name in object.__getattribute__(self, "fail"):
            return lambda *_: 2
        return object.__getattribute__(self, name)

    def _new(self):
        self._next += 1
        return self._next

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

    def _check(self, address, size):
        assert any(start <= address and address + size <= start + len(block) for start, block in self.memory.items()), "outside"

    def cuInit(self, flags):
        return 0

    def cuDeviceGet(self, device, number):
        device._obj.value = number
        return 0 if number == 0 else 101

    def cuDevicePrimaryCtxRetain(self, context, device):
        context._obj.value = 77
        return 0

    def cuCtxSetCurrent(self, context):
        self.current = context.value == 77
        return 0

    def cuDeviceGetName(self, buffer, size, device):
        buffer.value = self.name.encode()
        return 0

    def cuDeviceGetAttribute(self, value, attribute, device):
        value._obj.value = self.capability[{75: 0, 76: 1}[attribute]]
        return 0

    def cuMemAlloc_v2(self, address, size):
        block = ctypes.create_string_buffer(b"\xa5" * size.value, size.value)  # never zero by chance
        address._obj.value = ctypes.addressof(block)
        self.memory[address._obj.value] = block
        return 0

    cuMemAllocHost_v2 = cuMemAlloc_v2

    def cuMemFree_v2(self, address):
        del self.memory[address.value]
        return 0

    cuMemFreeHost = cuMemFree_v2

    def _copy(self, to, source, size, stream):
        to, source, size = to.value, source.value, size.value
        self._check(to, size)
        self._check(source, size)
        self.submit(stream.value, lambda: ctypes.memmove(to, source, size))
        return 0

    cuMemcpyHtoDAsync_v2 = cuMemcpyDtoHAsync_v2 = cuMemcpyDtoDAsync_v2 = _copy

    def cuStreamCreate(self, stream, flags):
        assert flags == 1
        stream._obj.value = self._new()
        self.streams.add(stream._obj.value)
        return 0

    def cuStreamSynchronize(self, stream):
        assert stream.value not in self.capturing
        return 0

    def cuStreamDestroy_v2(self, stream):
        self.streams.remove(stream.value)
        return 0

    def cuStreamBeginCapture_v2(self, stream, mode):
        self.capturing[stream.value] = []
        return 0

    def cuStreamEndCapture(self, stream, graph):
        graph._obj.value = self._new()
        self.graphs[graph._obj.value] = self.capturing.pop(stream.value)
        return 0

    def cuGraphInstantiateWithFlags(self, executable, graph, flags):
        executable._obj.value = self._new()
        self.graphs[executable._obj.value] = self.graphs[graph.value]
        return 0

    def cuGraphDestroy(self, graph):
        del self.graphs[graph.value]
        return 0

    cuGraphExecDestroy = cuGraphDestroy

    def cuGraphLaunch(self, graph, stream):
        for work in self.graphs[graph.value]:
            self.submit(stream.value, work)
        return 0

    def cuGetErrorString(self, code, text):
        text._obj.value = b"out of memory" if code == 2 else b"invalid device ordinal"
        return 0
