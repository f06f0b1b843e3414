"""TensorRT without a GPU: the adapter calls what the real modules have, and pictures come out.

Engines for TensorRT-RTX are built for real where the package is installed.
"""

import hashlib
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import ganfast.export.engines.cuda as cuda_module
from ganfast.errors import InputError, RunError
from ganfast.export import load_sampler
from ganfast.export.bundle.bundle import open_bundle, write_bundle
from ganfast.export.drawing.dlpack import CPU, DevicePictures
from ganfast.export.engines import vendor
from ganfast.export.engines.cache import EngineCache
from ganfast.export.engines.cuda import Cuda
from ganfast.export.engines.engines import (
    Gpu,
    build_engines,
    engine_facts,
    engine_key,
    parse_target,
    refusal,
)
from ganfast.export.engines.vendor import Build, Flavour, build_plan, load_flavour
from tests.export.vendor_double import NAMES, Double, onnx
from tests.small_bundle import small_bundle, small_model

VERSIONS = list(NAMES)
BUCKETS = (1, 4, 16)
PSI = np.linspace(0.2, 1.4, 22)  # every row has its own


def install(which, monkeypatch, without=()):
    double = Double(which, without).install(monkeypatch)
    monkeypatch.setattr(Cuda, "open", staticmethod(lambda device: Cuda(double.driver, device)))
    return double


def build(which, model, **options):
    """As `ganfast export` would; TensorRT-RTX for a named capability."""
    capabilities = ["8.6"] if which == "rtx" else []
    return build_engines(
        model, which.split()[0], Build(BUCKETS, refit=True, **options), capabilities
    )[0]


def engine_bundle(folder, which, seed=0, **options):
    model = small_model(seed, classes=3, channels=3)
    made = build(which, model, **options)
    files = {f"engines/{made.key}": made.plan}
    return small_bundle(
        folder, model=model, classes=3, channels=3, engines={made.key: made.facts}, files=files
    )


def scenario(which, folder):
    """All that the adapter does. Returns the pictures before and after a refit."""
    first, second = engine_bundle(folder / "a", which), engine_bundle(folder / "b", which, seed=1)
    with load_sampler(first.folder, backend=which.split()[0], strict=True) as sampler:
        before = sampler.sample(22, seed=4, psi=PSI)
        sampler.refit(second.folder)
        return before, sampler.sample(22, seed=4, psi=PSI)


def test_an_engine_is_fed_conditions(monkeypatch, tmp_path):
    old = open_bundle(Path(__file__).parents[1] / "fixtures" / "bundles" / "schema-2")
    condition = old.golden()["condition"][::-1]
    with load_sampler(old.folder, device="cpu", threads=1) as sampler:
        expected = sampler.apply(condition, seed=4)
    install("tensorrt 11", monkeypatch)
    made = build_engines(old.model_bytes(), "tensorrt", Build(old.manifest.buckets))[0]
    files = {path: old.read(path) for path in old.manifest.files}
    manifest = replace(old.manifest, engines={made.key: made.facts})
    write_bundle(tmp_path / "b", manifest, files | {f"engines/{made.key}": made.plan})
    with load_sampler(tmp_path / "b", backend="tensorrt", strict=True) as sampler:
        np.testing.assert_array_equal(sampler.apply(condition, seed=4), expected)


@pytest.fixture
def expected(tmp_path):
    """What ONNX Runtime draws of the same two models."""
    drawn = []
    for seed in (0, 1):
        made = small_bundle(tmp_path / f"expected{seed}", seed, classes=3, channels=3)
        with load_sampler(made.folder, device="cpu", threads=1) as sampler:
            drawn.append(sampler.sample(22, seed=4, psi=PSI))
    return drawn


@pytest.mark.parametrize("which", VERSIONS)
def test_only_names_that_exist_are_used_and_pictures_come_out(
    which, monkeypatch, tmp_path, expected
):
    double = install(which, monkeypatch)
    before, after = scenario(which, tmp_path)
    for drawn, truth in zip((before, after), expected, strict=True):
        assert np.abs(drawn.astype(int) - truth).max() <= 1
    assert set(double.enqueued) == set(BUCKETS), "every profile has run"
    assert len(double.refits) == 1
    left = [double.driver.memory, double.driver.streams, double.driver.graphs]
    assert not any(left), "closing gives everything back"


# What is only looked for: without it the adapter does without.
_OPTIONAL = {
    ("IExecutionContext", "is_stream_capturable"),
    ("IRuntimeConfig", "dynamic_shapes_kernel_specialization_strategy"),
    ("Builder", None),
}


@pytest.mark.parametrize("which", VERSIONS)
def test_a_name_that_were_removed_would_be_found(which, monkeypatch, tmp_path):
    double = install(which, monkeypatch)
    scenario(which, tmp_path / "whole")
    needed = double.used - _OPTIONAL
    needed -= {("DynamicShapesKernelSpecializationStrategy", "EAGER")} if which != "rtx" else set()
    assert len(needed) > 40
    missed = []
    for i, name in enumerate(sorted(needed)):
        install(which, monkeypatch, [name])
        try:
            scenario(which, tmp_path / str(i))
        except (AttributeError, InputError):
            continue
        missed.append(name)
    assert missed == []


@pytest.mark.parametrize("which", VERSIONS)
def test_what_is_only_looked_for_may_be_missing(which, monkeypatch, tmp_path, expected):
    install(which, monkeypatch, _OPTIONAL - {("Builder", None)})
    before, _ = scenario(which, tmp_path)
    assert np.abs(before.astype(int) - expected[0]).max() <= 1


def test_the_stand_in_refuses_what_the_real_modules_do_not_have(monkeypatch):
    """`EXPLICIT_BATCH` went with TensorRT 11; `set_compute_capability` is RTX's alone."""
    ten, eleven, rtx = (Double(which).module() for which in VERSIONS)
    for kind, name, owners in (
        ("BuilderFlag", "FP16", [ten]),
        ("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH", [ten]),
        ("IBuilderConfig", "set_compute_capability", [rtx]),
    ):
        assert [m for m in (ten, eleven, rtx) if hasattr(getattr(m, kind), name)] == owners, name
    assert hasattr(ten.ICudaEngine, "device_memory_size")
    assert not hasattr(eleven.ICudaEngine, "device_memory_size")
    assert not hasattr(eleven, "ComputeCapability")


def test_only_one_file_names_what_is_the_vendors():
    home = Path(vendor.__file__).parents[1]
    kinds = [item for which in NAMES.values() for item in which["names"].items()]
    words = {word for kind, names in kinds for word in (kind, *names)}
    words = {word for word in words if "_" in word and len(word) > 12 and word.islower()}
    assert len(words) > 100
    for path in home.rglob("*.py"):
        if path.name != "vendor.py":
            text = path.read_text()
            assert not [word for word in words if f".{word}(" in text], path
            assert "import tensorrt" not in text
            assert "import_module(MODULES" not in text
    lines = (home / "drawing" / "run_tensorrt.py").read_text().splitlines()
    assert len(lines) <= 250, "what has never run stays small"


@pytest.mark.parametrize("which", VERSIONS)
def test_build_configuration_reaches_the_builder(which, monkeypatch):
    double = install(which, monkeypatch)
    model = small_model()
    build(which, model)
    build(which, model, tf32=True, version_compatible=True)
    first, second = double.builds
    assert first.flags == {"REFIT"}, "float32 is float32: TF32 is on unless it is cleared"
    assert second.flags == {"REFIT", "TF32", "VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"}
    assert first.capabilities == (["SM86"] if which == "rtx" else [])
    assert [shapes["z"] for shapes in first.profiles] == [((b, 6),) * 3 for b in BUCKETS]
    assert (first.cache is None) == (which == "rtx")


def test_failures_of_the_library_are_sentences(monkeypatch, tmp_path):
    double = install("tensorrt 11", monkeypatch)
    with pytest.raises(InputError, match="11.4.0.106 cannot take the graph: Op node: .*ganfast"):
        build("tensorrt 11", b"no ONNX")
    double.fail = {"build": True}
    with pytest.raises(RunError, match="built no engine: it gave no reason"):
        build("tensorrt 11", small_model())
    double.fail = {}
    made = engine_bundle(tmp_path / "b", "tensorrt 11")
    double.fail = {"open": True}
    with pytest.raises(InputError, match="cannot open the engine: engine of another world"):
        load_sampler(made.folder, backend="tensorrt")
    double.fail = {"run": True}
    with pytest.raises(InputError, match="tensorrt failed to run"):
        load_sampler(made.folder, backend="tensorrt")
    double.fail = {"missing": True}
    with (
        load_sampler(made.folder, backend="tensorrt") as sampler,
        pytest.raises(InputError, match="also wants project.bias"),
    ):
        sampler.refit(made.folder)
    assert not double.driver.memory
    double.driver.fail = {"cuMemAlloc_v2"}
    double.fail = {}
    with pytest.raises(InputError, match=r"cuMemAlloc_v2 failed with 2 \(out of memory\)"):
        load_sampler(made.folder, backend="tensorrt")
    assert not double.driver.streams


def test_an_engine_that_cannot_be_captured_is_enqueued(monkeypatch, tmp_path, expected, caplog):
    double = install("rtx", monkeypatch)
    made = engine_bundle(tmp_path / "b", "rtx")
    double.fail = {"capture": True}
    with (
        caplog.at_level(logging.WARNING, "ganfast"),
        load_sampler(made.folder, backend="rtx") as sampler,
    ):
        assert np.abs(sampler.sample(22, seed=4, psi=PSI).astype(int) - expected[0]).max() <= 1
    assert len([m for m in caplog.messages if "no CUDA graph" in m]) == len(BUCKETS)


@pytest.mark.parametrize("n", [1, 4, 22])
def test_pictures_on_the_device(n, monkeypatch, tmp_path):
    double = install("tensorrt 10", monkeypatch)
    made = engine_bundle(tmp_path / "b", "tensorrt 10")
    with load_sampler(made.folder, backend="tensorrt") as sampler:
        given = sampler.sample(n, seed=4, on_device=True)
        assert given.__dlpack_device__() == (2, 0)
        given._kind = CPU  # the stand-in's device memory is the host's
        taken = np.from_dlpack(given)
        del given
        np.testing.assert_array_equal(taken, sampler.sample(n, seed=4))
        held = len(double.driver.memory)
        del taken
        assert len(double.driver.memory) == held - 1, "freed with its last holder"


def test_dlpack_memory_lives_as_long_as_somebody_holds_it():
    freed = []
    memory = np.arange(2 * 3 * 4 * 1, dtype=np.uint8)
    pictures = DevicePictures(memory.ctypes.data, (2, 3, 4, 1), 0, lambda: freed.append(1), CPU)
    capsule = pictures.__dlpack__()  # never consumed
    taken = np.from_dlpack(pictures)
    del pictures
    np.testing.assert_array_equal(taken, memory.reshape(2, 3, 4, 1))
    del capsule
    assert not freed
    del taken
    assert freed == [1]


# Which engine runs where


def test_the_key_changes_with_everything_that_determines_an_engine():
    gpu = Gpu("Card", "8.6")
    base = (b"model", Build((1, 8)), "tensorrt", "11.4.0.106", gpu)
    changes = [
        (0, b"model2"),
        (1, Build((1, 9))),
        (1, Build((1, 8), tf32=True)),
        (2, "rtx"),
        (3, "11.4.0.107"),
        (4, Gpu("Card", "8.9")),
        (4, Gpu("Card 2", "8.6")),
    ]
    variants = [base, *((*base[:i], value, *base[i + 1 :]) for i, value in changes)]
    keys = [engine_key(engine_facts(*variant)) for variant in variants]
    assert len(set(keys)) == len(variants)
    assert keys[0] == engine_key(engine_facts(*base))
    assert all(len(key) == 32 for key in keys)


BUILT, CARD = "10.16.1.11", Gpu("Card", "8.6")
BUILT_BY = "it was built by tensorrt 10.16.1.11, here is"


@pytest.mark.parametrize(
    ("name", "version", "gpu", "compatible", "reason"),
    [
        ("tensorrt", BUILT, CARD, False, ""),
        ("tensorrt", "10.16.2", CARD, False, f"{BUILT_BY} 10.16.2"),
        ("tensorrt", BUILT, Gpu("Card", "8.9"), False, "for compute capability 8.6, Card has 8.9"),
        ("tensorrt", BUILT, Gpu("Other", "8.6"), False, "it was built for Card, here is Other"),
        ("rtx", BUILT, CARD, False, "it was built by tensorrt, here is rtx"),
        ("lean", BUILT, CARD, False, "it was built by tensorrt, here is lean"),
        ("lean", "11.4.0.1", CARD, True, ""),
        ("tensorrt", "11.0", CARD, True, ""),
        ("tensorrt", "10.2", CARD, True, f"{BUILT_BY} 10.2"),
    ],
)
def test_an_engine_of_another_place_says_why(name, version, gpu, compatible, reason):
    build = Build((1,), version_compatible=compatible)
    refused = refusal(
        engine_facts(b"m", build, "tensorrt", BUILT, CARD), Flavour(name, sys, version), gpu
    )
    assert refused.endswith(reason)
    assert bool(refused) == bool(reason)


def test_an_engine_for_another_gpu_falls_back_unless_strict(monkeypatch, tmp_path, caplog):
    double = install("rtx", monkeypatch)
    made = engine_bundle(tmp_path / "b", "rtx")
    double.driver.capability = (12, 0)
    reason = r"rtx: engine \w{8}: it was built for compute capability 8.6, Fake GPU has 12.0"
    with pytest.raises(InputError, match=reason):
        load_sampler(made.folder, strict=True)
    with caplog.at_level(logging.WARNING, "ganfast"), load_sampler(made.folder) as sampler:
        assert sampler.backend_name == "onnxruntime-cpu"
        # neither ONNX Runtime nor torch has CUDA here
        assert len(sampler.stats["refused"]) == 3
    assert "Fake GPU has 12.0; drawing with onnxruntime-cpu instead" in caplog.messages[0]
    double.driver.capability = (8, 6)
    with load_sampler(made.folder) as sampler:
        assert sampler.backend_name == "rtx"
    with pytest.raises(InputError, match="has no tensorrt engine; export it with --target"):
        load_sampler(made.folder, backend="tensorrt")


def test_the_lean_runtime_runs_a_version_compatible_engine_and_builds_none(monkeypatch, tmp_path):
    double = install("tensorrt 11", monkeypatch)
    made = engine_bundle(tmp_path / "b", "tensorrt 11", version_compatible=True)
    lean = Double("tensorrt 11", {("Builder", None)})
    lean.driver = double.driver
    lean.install(monkeypatch)
    monkeypatch.setitem(sys.modules, "tensorrt_lean", sys.modules["tensorrt"])
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with load_sampler(made.folder, backend="tensorrt") as sampler:
        assert sampler.backend_name == "lean"
        assert sampler.sample(3).shape == (3, 8, 8, 3)
    with pytest.raises(InputError, match="lean 11.4.0.106 only runs engines; build them"):
        build_plan(load_flavour("lean"), small_model(), Build((1,)))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("rtx", r"rtx needs the package tensorrt-rtx: pip install \"ganfast\[rtx\]\""),
        ("tensorrt", r"ganfast\[tensorrt\]"),
    ],
)
def test_a_missing_library_names_its_extra(name, sentence, monkeypatch):
    for module in vendor.MODULES.values():
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=sentence):
        build_engines(small_model(), name, Build((1,)))


def test_targets_are_parsed():
    assert parse_target("rtx:8.6,12.0") == ("rtx", ("8.6", "12.0"))
    assert parse_target("tensorrt") == ("tensorrt", ())
    for wrong in ("rtx:86", "rtx:", "tensorrt:8.6", "cuda"):
        with pytest.raises(InputError, match=f"target is '{wrong}'"):
            parse_target(wrong)


def test_tensorrt_builds_for_the_gpu_it_runs_on(monkeypatch):
    install("tensorrt 10", monkeypatch)
    with pytest.raises(InputError, match="builds for the GPU it runs on; leave 8.6 out"):
        build_engines(small_model(), "tensorrt", Build((1,)), ["8.6"])
    monkeypatch.undo()
    Double("tensorrt 10").install(monkeypatch)
    monkeypatch.setattr(
        cuda_module.ctypes, "CDLL", lambda name: (_ for _ in ()).throw(OSError(name))
    )
    with pytest.raises(InputError, match="no NVIDIA driver here"):
        build_engines(small_model(), "tensorrt", Build((1,)))


def test_a_cached_engine_is_not_built_again(monkeypatch, tmp_path):
    double = install("tensorrt 11", monkeypatch)
    cache = EngineCache(tmp_path)
    plans, builds = [], []
    for seed in (0, 0, 1):
        (engine,) = build_engines(small_model(seed), "tensorrt", Build((1,)), cache=cache)
        plans.append(engine.plan)
        builds.append(len(double.builds))
    assert plans[0] == plans[1] != plans[2]
    assert builds == [1, 1, 2]
    (timing,) = tmp_path.glob("timing-*")
    assert timing.read_bytes() == b"tt", "the second build went on with the first one's timings"


# TensorRT-RTX for real


CAPABILITIES = ["8.0", "8.6", "8.9", "12.0"]


def test_rtx_engines_are_built_and_are_equal_every_time():
    rtx = pytest.importorskip("tensorrt_rtx")
    model = small_model(classes=3, channels=3)
    first = build_engines(model, "rtx", Build(BUCKETS), CAPABILITIES)
    again = build_engines(model, "rtx", Build(BUCKETS), CAPABILITIES)
    assert [engine.plan for engine in first] == [engine.plan for engine in again]
    for field in ("key", "plan"):
        assert len({getattr(engine, field) for engine in first}) == len(CAPABILITIES)
    assert {engine.plan[:4] for engine in first} == {b"vtrt"}
    assert {engine.facts["version"] for engine in first} == {rtx.__version__}
    code = (
        "import hashlib, tests.export.test_vendor as t;"
        "model = t.small_model(classes=3, channels=3);"
        "(e,) = t.build_engines(model, 'rtx', t.Build(t.BUCKETS), ['8.6']);"
        "print(e.key, hashlib.sha256(e.plan).hexdigest())"
    )
    root = Path(__file__).parents[2]
    said = subprocess.check_output([sys.executable, "-c", code], cwd=root, text=True)
    assert said.split() == [first[1].key, hashlib.sha256(first[1].plan).hexdigest()]


def test_rtx_refuses_what_it_cannot_build_with_its_own_words():
    pytest.importorskip("tensorrt_rtx")
    known = "7.5, 8.0, 8.6, 8.9, 12.0"
    with pytest.raises(InputError, match=rf"knows no compute capability 9.0; it has {known}"):
        build_engines(small_model(), "rtx", Build((1,)), ["9.0"])
    with pytest.raises(InputError, match=r"rtx .* cannot take the graph: .*ganfast lint"):
        build_engines(b"no ONNX", "rtx", Build((1,)), ["8.6"])
    model = onnx.load_model_from_string(small_model())
    cast = next(node for node in model.graph.node if node.op_type == "Cast")
    cast.output[0] = "early"  # bytes inside the graph
    model.graph.node.append(onnx.helper.make_node("Mul", ["early", "early"], ["images"]))
    with pytest.raises((InputError, RunError), match=r"(?i)rtx .*uint8"):
        build_engines(model.SerializeToString(), "rtx", Build((1,)), ["8.6"])


def test_the_stand_in_has_the_names_of_the_real_module():
    """Where the real one is installed, every name in the list exists there."""
    rtx = pytest.importorskip("tensorrt_rtx")
    for kind, names in NAMES["rtx"]["names"].items():
        assert not [name for name in names if not hasattr(getattr(rtx, kind), name)], kind
