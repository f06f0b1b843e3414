"""A bundle made in milliseconds without torch: latent 6, pictures of 8 pixels, random weights."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from ganfast.export.bundle.bundle import Bundle, golden_file, write_bundle
from ganfast.export.bundle.manifest import GOLDEN, MODEL, Manifest
from ganfast.latents import latents, random_classes

LATENT, SIZE = 6, 8


def small_model(
    seed: int = 0, classes: int = 0, channels: int = 1, hidden: int = 4, rename: str = ""
) -> bytes:
    """z psi -> linear (+ class) -> ReLU -> transposed convolution -> tanh -> uint8, as exported."""
    random = np.random.default_rng(seed)
    units = hidden * 16
    weights = {
        "project.weight": random.normal(0, 0.7, (units, LATENT)),
        "project.bias": random.normal(0, 0.2, units),
        "last.weight": random.normal(0, 0.4, (hidden, channels, 4, 4)),
        "last.bias": random.normal(0, 0.1, channels),
        "half": np.array(127.5),
        "low": np.array(0.0),
        "high": np.array(255.0),
    }
    if classes:
        weights["classes.weight"] = random.normal(0, 1.0, (classes, units))
    if rename:
        weights[rename] = weights.pop("project.bias")
    tensors = [
        numpy_helper.from_array(np.asarray(value, np.float32), name)
        for name, value in weights.items()
    ]
    tensors += [
        numpy_helper.from_array(np.array([1]), "one"),
        numpy_helper.from_array(np.array([-1, hidden, 4, 4]), "map"),
    ]
    node, window = helper.make_node, {"strides": [2] * 2, "pads": [1] * 4, "kernel_shape": [4] * 2}
    nodes = [
        node("Unsqueeze", ["psi", "one"], ["psi_"]),
        node("Mul", ["z", "psi_"], ["scaled"]),
        node("Gemm", ["scaled", "project.weight", rename or "project.bias"], ["units"], transB=1),
        node("Gather", ["classes.weight", "labels"], ["row"]),
        node("Add", ["units", "row"], ["both"]),
        node("Relu", ["both" if classes else "units"], ["positive"]),
        node("Reshape", ["positive", "map"], ["first"]),
        node("ConvTranspose", ["first", "last.weight", "last.bias"], ["drawn"], **window),
        node("Tanh", ["drawn"], ["pictures"]),
        node("Transpose", ["pictures"], ["nhwc"], perm=[0, 2, 3, 1]),
        node("Mul", ["nhwc", "half"], ["wide"]),
        node("Add", ["wide", "half"], ["levels"]),
        node("Round", ["levels"], ["rounded"]),
        node("Clip", ["rounded", "low", "high"], ["clipped"]),
        node("Cast", ["clipped"], ["images"], to=TensorProto.UINT8),
    ]
    if not classes:
        nodes = [step for step in nodes if step.output[0] not in ("row", "both")]
    inputs = [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", LATENT])]
    inputs += [helper.make_tensor_value_info("labels", TensorProto.INT64, ["N"])] if classes else []
    inputs += [helper.make_tensor_value_info("psi", TensorProto.FLOAT, ["N"])]
    outputs = [
        helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", SIZE, SIZE, channels])
    ]
    graph = helper.make_graph(nodes, "generator", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def small_bundle(
    folder: Path,
    seed: int = 0,
    classes: int = 0,
    channels: int = 1,
    buckets: tuple[int, ...] = (1, 4, 16),
    engines: dict | None = None,
    files: dict | None = None,
    model: bytes = b"",
    **changes,
) -> Bundle:
    """Write it; ``changes`` are fields of the manifest."""
    model = model or small_model(seed, classes, channels)
    rows = {"z": latents(0, np.arange(5), LATENT), "psi": np.array([1, 1, 1, 0.7, 0], np.float32)}
    rows |= {"labels": random_classes(0, np.arange(5), classes)} if classes else {}
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    images = session.run(None, rows)[0]
    manifest = Manifest(
        name="small",
        latent=LATENT,
        classes=tuple(f"class{i}" for i in range(classes)),
        size=SIZE,
        channels=channels,
        precision="fp32",
        buckets=buckets,
        crop="none",
        golden={"seed": 0, "count": 5},
        engines=engines or {},
    )
    golden = golden_file(rows, images)
    return write_bundle(
        folder,
        replace(manifest, **changes),
        {MODEL: model, GOLDEN: golden, **(files or {})},
        overwrite=True,
    )


def assert_rows_of_parity(bundle: Bundle) -> None:
    """Each batch size; int8's graph itself; then the same back ends at psi 2, 64 pictures each."""
    precision, rows = bundle.manifest.precision, bundle.manifest.parity
    graph = ["int8 graph, float32 products"] if precision == "int8" else []
    drawn = ["torch-cpu" if precision == "bf16" else "onnxruntime-cpu"]
    names = [*drawn * 4, *graph, *(f"{name} with psi 2" for name in (*drawn, *graph))]
    assert [row.back_end for row in rows] == names
    assert [row.batch for row in rows] == [1, 3, 8, *[64] * (len(names) - 3)]
    assert all(row.pictures == 64 for row in rows)
