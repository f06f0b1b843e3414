"""From a run to a bundle: the exported graph draws the run's pictures; refusals give the reason."""

import shutil
import sys
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from ganfast import preset_config, train
from ganfast.cli import main
from ganfast.config import LogConfig, NetConfig
from ganfast.errors import InputError, RunError
from ganfast.export import export_bundle, load_sampler
from ganfast.export.bundle.bundle import open_bundle
from ganfast.export.bundle.manifest import graph_inputs
from ganfast.export.bundle.parity import GATES, Gate, compare
from ganfast.export.engines.cache import EngineCache
from ganfast.export.engines.engines import build_engines
from ganfast.export.engines.vendor import Build, Flavour
from ganfast.export.graph.deploy import deployable
from ganfast.models import FAMILIES, NetSpec, build_generator
from ganfast.runs.run import Run

# ruff: noqa: E402  what follows needs onnx
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from ganfast.export.graph.lint import RULES, TARGETS, lint
from ganfast.export.graph.to_onnx import to_bytes, to_onnx
from ganfast.export.verify import verify_bundle
from tests.programs import ganfast
from tests.small_bundle import assert_rows_of_parity

f, i64, u8 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.UINT8


def trained(folder, model: str, conditional: str) -> Run:
    config = replace(
        preset_config("wgan-gp"),
        out=str(folder),
        kimg=0.32,
        batch=16,
        model=model,
        conditional=conditional,
        ema_kimg=0.0,
        net=NetConfig(width=4, latent=8),
        log=LogConfig(every=1, sample_kimg=1, save_kimg=0.16, tensorboard=False),
    )
    return train(config, quiet=True)


@pytest.fixture(scope="module", params=["dcgan", "mlp"])
def run(request, tmp_path_factory) -> Run:
    classes = "no" if request.param in ("mlp", "resnet") else "projection"
    return trained(tmp_path_factory.mktemp("run") / "r", request.param, classes)


# Where nothing depends on the architecture.
one_model = pytest.mark.parametrize("run", ["dcgan"], indirect=True)
PRECISIONS = [("dcgan", precision) for precision in GATES] + [("mlp", "fp32"), ("mlp", "int8")]
PRECISIONS += [("r3", "bf16"), ("resnet", "fp16")]
PRECISIONS += [
    pytest.param(model, each, marks=pytest.mark.accept)
    for model in ("mlp", "r3", "resnet")
    for each in GATES
    if (model, each) not in PRECISIONS
]


@pytest.mark.parametrize(("run", "precision"), PRECISIONS, indirect=["run"])
def test_every_architecture_and_precision_keeps_its_gate(run, precision, tmp_path):
    bundle = export_bundle(run, tmp_path / "b", precision)
    assert_rows_of_parity(bundle)
    again, found = verify_bundle(bundle.folder, bundle.manifest.digest)
    assert not any(each.missed(GATES[precision]) for each in found)
    golden = again.golden()
    assert (golden["psi"].max() == 2) == (precision == "int8")
    index0 = run.sample(1, seed=0)[0]
    np.testing.assert_array_equal(golden["images"][0], index0)
    assert again.manifest.classes == run.classes
    data = bundle.model_bytes()
    assert str(run.folder).encode() not in data, "nothing of the machine that exported"
    assert b"site-packages" not in data


def test_int8_is_calibrated_and_judged_to_the_end_of_the_range_of_psi(run, tmp_path, monkeypatch):
    """Calibrated at psi 1 alone it cuts off what psi 2 reaches, and loses 5 to 12 dB there."""
    monkeypatch.setitem(GATES, "int8", Gate(psnr_db=36.5))
    export_bundle(run, tmp_path / "b", "int8")
    monkeypatch.setattr("ganfast.export.exporter._CALIBRATION_PSI", (1.0,))
    with pytest.raises(
        RunError, match=r"int8 misses its gate: onnxruntime-cpu with psi 2 at batch 64: max"
    ) as missed:
        export_bundle(run, tmp_path / "c", "int8")
    assert "int8 graph, float32 products with psi 2 at batch 64: max" in str(missed.value)


@pytest.mark.parametrize(
    "run", ["dcgan", pytest.param("mlp", marks=pytest.mark.accept)], indirect=True
)
def test_equal_weights_give_equal_bytes_and_names_of_the_state_dict(run):
    inputs = graph_inputs(run.config.net.latent, len(run.classes))
    module = deployable(run.generator(device="cpu"), inputs)
    first, second = (to_bytes(to_onnx(module, {})) for _ in range(2))
    assert first == second
    weights = {
        t.name: onnx.numpy_helper.to_array(t)
        for t in onnx.load_model_from_string(first).graph.initializer
    }
    for name, value in module.generator.state_dict().items():
        np.testing.assert_array_equal(weights[name], value.numpy())


@pytest.mark.parametrize("norm", ["batch", "none", "layer", "instance"])
@pytest.mark.parametrize("model", FAMILIES)
def test_deployed_pictures_are_the_generators(model, norm):
    torch.manual_seed(0)
    size = 20 if FAMILIES[model].residual else 19
    net = build_generator(NetSpec(size, 3, 4, "projection", 4, 5, norm, model=model)).eval()
    for module in net.modules():  # statistics of which no part may be forgotten
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_var.uniform_(2e-4, 1e-3)  # beside which eps, 1e-5, is something
            module.running_mean.normal_(0, 0.02)
            module.weight.data.uniform_(0.005, 0.02)
            module.bias.data.normal_(0, 0.3)
        elif isinstance(module, nn.Linear) and module.bias is not None:
            module.bias.data.normal_(0, 0.02)
    z, labels, psi = torch.randn(12, 5), torch.arange(12) % 4, torch.linspace(0, 2, 12)
    deployed = deployable(net, graph_inputs(5, 4))
    kinds = {type(module).__name__ for module in deployed.modules()}
    assert not kinds & {"BatchNorm1d", "BatchNorm2d"}
    # A norm in front of a residual block has no layer before it that it could become part of.
    assert ("ScaleShift" in kinds) == (model == "resnet" and norm == "batch")
    with torch.no_grad():
        drawn = deployed(z, labels, psi).numpy()
        exact = (net.double()(z.double() * psi.double()[:, None], labels) + 1) * 127.5
    truth = exact.round().clamp(0, 255).permute(0, 2, 3, 1).numpy().astype(np.uint8)
    assert norm != "batch" or drawn.std() > 10
    assert compare(drawn, truth).max_lsb <= 1
    assert compare(drawn, truth).mean_lsb < 0.01, "rounded, not cut off"


def test_parity_is_a_distance_to_either_side():
    truth = np.full((2, 2, 2, 1), 100, np.uint8)
    pictures = truth.copy()
    pictures[0, 0, 0], pictures[1, 1, 0] = 101, 97
    found = compare(pictures, truth, "any")
    assert (found.max_lsb, found.mean_lsb, found.worst) == (3, 0.5, 1)
    assert found.histogram == (6, 1, 0, 1, 0, 0, 0, 0)
    assert found.psnr_db == pytest.approx(10 * np.log10(255**2 / (10 / 8)))
    assert found.missed(Gate(max_lsb=3, mean_lsb=0.5, psnr_db=47)) == ""
    for gate in (Gate(max_lsb=2), Gate(mean_lsb=0.4), Gate(psnr_db=48)):
        assert "any at batch 2: max 3 LSB" in found.missed(gate)
    assert compare(truth, truth).psnr_db is None


class Skips(nn.Module):
    """Takes features between convolution and norm, so that folding the two would change it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 48), nn.BatchNorm1d(48))
        self.body[1].running_mean.normal_()

    def forward(self, z):
        middle = self.body[0](z)
        return torch.tanh(self.body[1](middle) + middle).view(-1, 3, 4, 4)


def test_a_norm_that_cannot_be_folded_stays_a_scale_and_a_shift(caplog):
    torch.manual_seed(0)
    net = Skips().eval()
    deployed = deployable(net, graph_inputs(5, 0))
    assert "BatchNorm stays a scale and a shift" in caplog.text
    z = torch.randn(3, 5)
    torch.testing.assert_close(deployed.generator(z), net(z), atol=1e-5, rtol=0)


class Grouped(nn.Module):
    def forward(self, z):
        kernel = z[:, :1, None, None].expand(-1, 1, 1, 1)
        x = torch.ones(1, z.shape[0], 4, 4)
        return torch.conv2d(x, kernel, groups=z.shape[0]).view(-1, 1, 4, 4)


def test_a_generator_that_fixes_the_batch_is_refused():
    with pytest.raises(InputError, match="the generator cannot be exported"):
        to_onnx(deployable(Grouped(), graph_inputs(5, 0)), {})


# Bad input


@one_model
def test_bad_input_gets_one_sentence(run, tmp_path, capsys):
    to = f"export {run.folder} --out {tmp_path / 'b'}"
    cases = [
        (f"export {tmp_path} --out {tmp_path / 'b'}", "is not a run directory"),
        (f"{to} --precision fp4", "expected one of fp32"),
        (f"{to} --buckets 8,1", "expected ascending batch sizes"),
        (f"export {run.folder} --out {run.folder}", "exists and is not a bundle"),
        (f"verify {tmp_path}", "is not a bundle"),
        (f"inspect {tmp_path}", "is not a bundle"),
        (f"lint {tmp_path / 'no.onnx'}", "cannot be read as ONNX"),
        (
            f"lint {tmp_path / 'no.onnx'} --target tpu",
            "target is 'tpu'; expected one of onnxruntime-cpu",
        ),
    ]
    for line, sentence in cases:
        assert ganfast(line) == 2
        said = capsys.readouterr().err
        assert sentence in said
        assert said.count("\n") == 1
    (tmp_path / "empty.onnx").touch()
    assert main(["lint", str(tmp_path / "empty.onnx")]) == 2
    assert "empty.onnx holds no graph" in capsys.readouterr().err
    (tmp_path / "link").symlink_to(tmp_path / "b")
    wrong = {
        ".": "is no name of its own",
        "..": "is no name of its own",
        str(tmp_path / "link"): "is a link, to",
    }
    for out, sentence in wrong.items():
        assert main(["export", str(run.folder), "--out", out, "--overwrite"]) == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


@one_model
def test_the_versions_are_those_of_the_modules(run, tmp_path, monkeypatch):
    """The package that brings the module onnxruntime may be called onnxruntime-gpu."""
    monkeypatch.setattr(onnxruntime, "__version__", "1.99.0")
    assert export_bundle(run, tmp_path / "b").manifest.versions["onnxruntime"] == "1.99.0"


@one_model
def test_a_run_that_has_no_checkpoint_yet_is_refused(run, tmp_path, capsys):
    shutil.copytree(run.folder, tmp_path / "early", ignore=shutil.ignore_patterns("checkpoints"))
    out = ["--out", str(tmp_path / "b")]
    assert main(["export", str(tmp_path / "early"), *out]) == 2
    said = capsys.readouterr().err
    assert "early has no checkpoint yet; train it further" in said
    assert said.count("\n") == 1
    assert main(["export", str(run.folder), "--checkpoint", "999", *out]) == 2
    assert "no checkpoint 999 in" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


@one_model
@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_the_extra_that_brings_it(
    run, tmp_path, package, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, package, None)  # as if it was not installed
    assert main(["export", str(run.folder), "--out", str(tmp_path / "b")]) == 2
    said = capsys.readouterr().err
    assert f'exporting needs {package}: pip install "ganfast[export]"' in said
    assert said.count("\n") == 1
    assert not (tmp_path / "b").exists()


@one_model
@pytest.mark.parametrize("buckets", ["", "0", "-1", "1,x", "4097", "1,1", "8,1", "1;8"])
def test_buckets_out_of_range_are_refused_before_anything_is_computed(
    run, tmp_path, buckets, capsys
):
    assert (
        main(["export", str(run.folder), "--out", str(tmp_path / "b"), f"--buckets={buckets}"]) == 2
    )
    said = capsys.readouterr().err
    assert "batch sizes" in said
    assert said.count("\n") == 1


@one_model
def test_a_missed_gate_writes_nothing_and_gives_the_numbers(run, tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "draw", lambda self, z, *_: np.zeros((len(z), 16, 16, 1), np.uint8))
    with pytest.raises(
        RunError, match=r"fp32 misses its gate: onnxruntime-cpu at batch 1: max \d+ LSB"
    ):
        export_bundle(run, tmp_path / "b")
    assert not (tmp_path / "b").exists()


@one_model
def test_bf16_is_what_its_targets_can_take_and_torch_draws_it_here(run, tmp_path, caplog):
    bundle = export_bundle(run, tmp_path / "b", "bf16")
    assert {each.back_end.partition(" ")[0] for each in bundle.manifest.parity} == {"torch-cpu"}
    expected = {t: t == "onnxruntime-cpu" for t in TARGETS}
    assert {target: bool(found) for target, found in bundle.manifest.lint.items()} == expected
    model = onnx.load_model_from_string(bundle.model_bytes())
    weights = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    transposed = {
        name for each in model.graph.node if each.op_type == "ConvTranspose" for name in each.input
    }
    assert weights["project.weight"] == onnx.TensorProto.BFLOAT16
    assert not [name for name in transposed if weights.get(name) == onnx.TensorProto.BFLOAT16]
    with load_sampler(bundle.folder, device="cpu") as sampler:
        assert sampler.backend_name == "torch-cpu"
        assert "onnxruntime-cpu: ONNX Runtime" in caplog.text
        found = compare(sampler.sample(40, seed=3), run.sample(40, seed=3))
        assert not found.missed(GATES["bf16"])
        assert found.mean_lsb > 0, "rounded to eight bits, or nothing was"


# Lint


def graph(nodes, weights=(), opset=20, batch="N", out=f, given=f):
    value = onnx.helper.make_tensor_value_info
    inputs = [value("x", given, [batch, 2, 4, 4]), value("k", f, ["M", 2, 3, 3])]
    made = onnx.helper.make_graph(
        nodes, "g", inputs, [value("y", out, [batch, None, None, None])], list(weights)
    )
    return onnx.helper.make_model(
        made,
        opset_imports=[onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid("own", 1)],
    )


def node(op, inputs=("x",), outputs=("y",), **options):
    return onnx.helper.make_node(op, list(inputs), list(outputs), op, **options)


def tensor(name, dtype, dims=(2, 2, 3, 3)):
    return onnx.helper.make_tensor(name, dtype, dims, np.zeros(dims).ravel())


def typed(name, dtype):
    return onnx.helper.make_tensor_value_info(name, dtype, None)


def broken() -> dict[str, onnx.ModelProto]:
    """For each rule a graph that breaks it."""
    bf16 = graph([node("Relu")])
    bf16.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.BFLOAT16
    transposed = graph(
        [node("ConvTranspose", ("x", "w"))], [tensor("w", onnx.TensorProto.BFLOAT16)]
    )
    early = graph([node("Cast", outputs=("c",), to=u8), node("Identity", ("c",))], out=u8)
    early.graph.value_info.append(typed("c", u8))
    double = graph([node("Cast", outputs=("d",), to=11), node("Cast", ("d",), to=1)])
    double.graph.value_info.append(typed("d", onnx.TensorProto.DOUBLE))
    external = graph([node("Conv", ("x", "w"))], [tensor("w", f)])
    external.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    return {
        "random-op": graph([node("RandomNormalLike")]),
        "antialiased-resize": graph([node("Resize", antialias=1)]),
        "bf16-transposed-convolution": transposed,
        "bf16-on-cpu": bf16,
        "uint8-inside": early,
        "uint8-input-not-cast": graph([node("Transpose", perm=[0, 2, 3, 1])], given=u8),
        "modulated-convolution": graph([node("Conv", ("x", "k"))]),
        "int8-bias": graph(
            [node("DequantizeLinear", ("b", "s"))],
            [tensor("b", onnx.TensorProto.INT32), tensor("s", f)],
        ),
        "opset": graph([node("Relu")], opset=13),
        "custom-op": graph([node("Relu", domain="own")]),
        "fixed-batch": graph([node("Relu")], batch=4),
        "float64": double,
        "external-data": external,
    }


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_each_rule_finds_the_graph_that_breaks_it_on_its_targets_only(rule):
    model = broken()[rule.id]
    for target in TARGETS:
        found = {finding.rule.id for finding in lint(model, target)}
        assert (rule.id in found) == (target in rule.targets), target
    assert not lint(graph([node("Relu")]), "rtx"), "a plain graph breaks none"


@one_model
def test_lint_names_the_place_and_the_remedy(run, tmp_path, capsys):
    onnx.save_model(broken()["antialiased-resize"], str(tmp_path / "m.onnx"))
    assert main(["lint", str(tmp_path / "m.onnx"), "--target", "rtx"]) == 1
    assert (
        "antialiased-resize: Resize: is not supported; write it as a convolution"
        in capsys.readouterr().out
    )
    bundle = export_bundle(run, tmp_path / "b")
    assert main(["lint", str(bundle.folder), "--target", "rtx"]) == 0
    assert open_bundle(bundle.folder).manifest.lint["rtx"] == []


# Engines


@one_model
def test_targets_that_cannot_be_are_refused_before_anything_is_computed(
    run, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # as if it was not installed
    cases = [
        ("tpu", "expected onnx, tensorrt, or rtx"),
        ("rtx:8", "look like rtx:8.6,8.9"),
        ("tensorrt", "ganfast[tensorrt]"),
    ]
    for target, sentence in cases:
        assert (
            main(["export", str(run.folder), "--out", str(tmp_path / "b"), "--target", target]) == 2
        )
        said = capsys.readouterr().err
        assert sentence in said
        assert said.count("\n") == 1
    assert not (tmp_path / "b").exists()


@one_model
def test_engines_are_built_from_the_very_graph_of_the_bundle_and_stored_with_their_facts(
    run, tmp_path
):
    pytest.importorskip("tensorrt_rtx")
    out = str(tmp_path / "b")
    targets = ["--target", "onnx", "--target", "rtx:8.6,8.9"]
    assert ganfast(f"export {run.folder} --out {out} --precision fp16 --buckets 1,4", *targets) == 0
    bundle = open_bundle(out)
    engines = bundle.manifest.engines
    assert sorted(facts["capability"] for facts in engines.values()) == ["8.6", "8.9"]
    for key, facts in engines.items():
        assert facts["onnx_sha256"] == bundle.manifest.files["model.onnx"].sha256
        assert facts["build"]["buckets"] == [1, 4]
        assert len(bundle.engine(key)) > 1000


@one_model
def test_an_engine_that_was_built_before_comes_from_the_cache_and_a_miss_says_why(
    run, tmp_path, capsys
):
    pytest.importorskip("tensorrt_rtx")
    cache = tmp_path / "engines"
    base = [
        "export",
        str(run.folder),
        "--out",
        str(tmp_path / "b"),
        "--overwrite",
        "--target",
        "rtx:8.6",
        "--cache",
        str(cache),
    ]

    def said(*more):
        assert main([*base, *more]) == 0
        (line,) = [
            line for line in capsys.readouterr().out.splitlines() if line.startswith("engine ")
        ]
        return line.partition(", rtx for 8.6: ")[2]

    assert said("--buckets", "1,4") == f"built, no engine in {cache} yet"
    first = open_bundle(tmp_path / "b")
    assert said("--buckets", "1,4") == "from the cache"
    again = open_bundle(tmp_path / "b")
    assert again.manifest.digest == first.manifest.digest
    expected = f"built, no engine in {cache} for this: buckets is [1, 8], there [1, 4]"
    assert said("--buckets", "1,8") == expected
    (kept,) = [path for path in cache.iterdir() if path.name in first.manifest.engines]
    kept.write_bytes(kept.read_bytes()[:-1] + b"?")
    assert said("--buckets", "1,4") == f"built, engine {kept.name} in {cache} is damaged"
    assert said("--buckets", "1,4") == "from the cache"
    assert open_bundle(tmp_path / "b").manifest.digest == first.manifest.digest


def test_an_engine_is_built_though_its_cache_cannot_be_written(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr("ganfast.export.engines.engines.build_plan", lambda *_: (b"plan", b""))
    monkeypatch.setattr(
        "ganfast.export.engines.engines.load_flavour",
        lambda name: Flavour(name, ModuleType("rtx"), "1.7"),
    )
    monkeypatch.setattr("ganfast.export.engines.engines.builds_without_gpu", lambda library: True)
    (tmp_path / "file").write_text("no folder")
    (engine,) = build_engines(b"graph", "rtx", Build((1,)), ["8.6"], EngineCache(tmp_path / "file"))
    assert engine.plan == b"plan"
    assert "cannot be read" in engine.built
    assert caplog.text.count("cannot be kept there") == 1
