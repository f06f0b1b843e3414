"""Every kernel compiles for NVIDIA GPUs on a machine without one, and keeps values in registers.

Types and constants are the launchers'. A kernel that spills has STACK or LOCAL bytes.
"""

import re
import subprocess
import tempfile
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")
if triton.knobs.runtime.interpret:
    pytest.skip("the interpreter is on: nothing is compiled", allow_module_level=True)

from ganfast.kernels import adam_ema, bias_act, gradient_penalty, latents, to_uint8  # noqa: E402

FLOATS = {"fp32": "*fp32", "bf16": "*bf16", "fp16": "*fp16"}
ARCHITECTURES = (80, 90, 100)


def cases():
    """name, kernel, signature by argument, constants, warps."""
    for name, kind in FLOATS.items():
        pair = {"g_ptr": kind, "u_ptr": kind, "value_ptr": "*fp32", "norm_ptr": "*fp32"}
        numbers = {"weight": "fp32", "target": "fp32", "scale": "fp32"}
        for zero_centred, one_sided in ((True, False), (False, True), (False, False)):
            flags = {"ZERO_CENTRED": zero_centred, "ONE_SIDED": one_sided}
            for block in (1024, gradient_penalty._ONE_PROGRAM):
                yield (
                    f"whole-{name}-{block}-{zero_centred}-{one_sided}",
                    gradient_penalty._whole_kernel,
                    pair | {"M": "i32"} | numbers,
                    flags | {"BLOCK": block},
                    min(8, block // 512),
                )
            yield (
                f"direction-{name}-{zero_centred}-{one_sided}",
                gradient_penalty._direction_kernel,
                pair | {"part_ptr": "*fp32", "M": "i32", "PARTS": "i32"} | numbers,
                flags | {"BLOCK": gradient_penalty._SPLIT, "ALL_PARTS": 64},
                8,
            )
        yield (
            f"squares-{name}",
            gradient_penalty._squares_kernel,
            {"g_ptr": kind, "part_ptr": "*fp32", "M": "i32", "PARTS": "i32"},
            {"BLOCK": gradient_penalty._SPLIT},
            8,
        )
        for numel in ("i32", "i64"):  # tensors below and above 2**31 elements
            yield (
                f"bias-act-{name}-{numel}",
                bias_act._forward_kernel,
                {
                    "x_ptr": kind,
                    "bias_ptr": "*fp32",
                    "y_ptr": kind,
                    "bits_ptr": "*u8",
                    "numel": numel,
                }
                | {"C": "i32", "INNER": "i32", "slope": "fp32"},
                {"BLOCK": bias_act._BLOCK},
                8,
            )
            yield (
                f"tangent-{name}-{numel}",
                bias_act._tangent_kernel,
                {
                    "c_ptr": kind,
                    "bits_ptr": "*u8",
                    "t_ptr": kind,
                    "numel": numel,
                    "first": numel,
                    "slope": "fp32",
                },
                {"BLOCK": bias_act._BLOCK},
                8,
            )
        delta = {
            "dy_ptr": kind,
            "bits_ptr": "*u8",
            "weight_ptr": "*fp32",
            "dz_ptr": kind,
            "part_ptr": "*fp32",
        }
        yield (
            f"delta-columns-{name}",
            bias_act._delta_columns_kernel,
            delta | {"R": "i32", "C": "i32", "PER_SAMPLE": "i32", "slope": "fp32"},
            {"ROWS": bias_act._ROWS, "COLUMNS": bias_act._COLUMNS},
            4,
        )
        yield (
            f"delta-rows-{name}",
            bias_act._delta_rows_kernel,
            delta | {"C": "i32", "INNER": "i32", "slope": "fp32"},
            {"BLOCK": bias_act._ROW_PART},
            4,
        )
        strides = {f"stride_{axis}": "i32" for axis in "nchw"}
        yield (
            f"to-uint8-{name}",
            to_uint8._tail_kernel,
            {"x_ptr": kind, "y_ptr": "*u8", "numel": "i32", "C": "i32", "H": "i32", "W": "i32"}
            | strides,
            {"BLOCK": to_uint8._BLOCK},
            4,
        )
    for normal in (True, False):
        words = dict.fromkeys(("k0", "k1", "m0", "m1", "w0", "w1"), "i64")
        yield (
            f"draw-{normal}",
            latents._draw_kernel,
            {
                "index_ptr": "*i64",
                "out_ptr": "*fp32" if normal else "*fp64",
                "N": "i32",
                "COUNT": "i32",
                "PER_ROW": "i32",
            }
            | words,
            {"NORMAL": normal, "BLOCK": latents._BLOCK},
            4,
        )
    for average, low in ((True, True), (False, False)):
        flat = {f"{p}_ptr": "*fp32" for p in ("p", "g", "m", "v", "average", "rates")}
        yield (
            f"adam-{average}-{low}",
            adam_ema._adam_kernel,
            flat
            | {"low_ptr": "*bf16", "numel": "i32"}
            | dict.fromkeys(
                ("beta1", "one_minus_beta1", "beta2", "one_minus_beta2", "eps"), "fp32"
            ),
            {"AVERAGE": average, "LOW": low, "BLOCK": adam_ema._BLOCK},
            4,
        )


CASES = {name: rest for name, *rest in cases()}
SHORT = [name for name in CASES if "bf16" in name or name.startswith(("draw", "adam"))]
# every kernel once, as its longest program
SAMPLE = [
    f"whole-bf16-{gradient_penalty._ONE_PROGRAM}-False-True",
    "direction-bf16-False-True",
    "squares-bf16",
    "bias-act-bf16-i64",
    "tangent-bf16-i64",
    "delta-columns-bf16",
    "delta-rows-bf16",
    "to-uint8-bf16",
    "draw-True",
    "adam-True-True",
]


def resources(kernel, signature, constants, warps, architecture):
    """STACK and LOCAL bytes, and registers, of the compiled kernel."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    whole = {
        name: "constexpr" if name in constants else signature[name] for name in kernel.arg_names
    }
    source = ASTSource(fn=kernel, signature=whole, constexprs=constants)
    compiled = triton.compile(
        source, target=GPUTarget("cuda", architecture, 32), options={"num_warps": warps}
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        said = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    return {what: int(re.search(rf"{what}:(\d+)", said)[1]) for what in ("STACK", "LOCAL", "REG")}


@pytest.mark.parametrize("name", SAMPLE)
def test_a_kernel_compiles_for_hopper_without_spilling(name):
    assert_no_spill(name, 90)


@pytest.mark.accept
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", CASES)
def test_every_kernel_compiles_for_every_architecture_without_spilling(name, architecture):
    assert_no_spill(name, architecture)


def assert_no_spill(name, architecture):
    found = resources(*CASES[name], architecture)
    assert (found["STACK"], found["LOCAL"]) == (0, 0), found
    assert found["REG"] <= 255


def test_every_kernel_is_compiled_here():
    folder = Path(gradient_penalty.__file__).parent
    written = {
        name
        for path in folder.glob("*.py")
        for name in re.findall(r"^def (_\w+_kernel)\(", path.read_text(), re.M)
    }
    assert written == {kernel.__name__ for kernel, *_ in CASES.values()}
    assert written == {CASES[name][0].__name__ for name in SAMPLE}
