"""Every kernel compiles for NVIDIA GPUs on a machine without one, and keeps values in registers.

Types and constants are the launchers'. A kernel that spills has STACK or LOCAL bytes.
"""

import math
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


def types(text):
    """Arguments and their types from "x y: *fp32, numel: i32"."""
    groups = (group.split(": ") for group in text.split(", "))
    return {name: kind for names, kind in groups for name in names.split()}


def cases():
    """name, kernel, signature by argument, constants, warps."""
    penalty, drawn, bias = gradient_penalty, latents, bias_act
    for name, kind in FLOATS.items():
        pair = types(f"g_ptr u_ptr: {kind}, value_ptr norm_ptr: *fp32")
        pair |= types("M: i32, weight target scale: fp32")
        for zero_centred, one_sided in ((True, False), (False, True), (False, False)):
            flags = {"ZERO_CENTRED": zero_centred, "ONE_SIDED": one_sided}
            case = f"{name}-{zero_centred}-{one_sided}"
            for block in (1024, penalty._ONE_PROGRAM):
                constants, warps = flags | {"BLOCK": block}, min(8, block // 512)
                case_of_block = f"whole-{name}-{block}-{zero_centred}-{one_sided}"
                yield case_of_block, penalty._whole_kernel, pair, constants, warps
            parts = pair | types("part_ptr: *fp32, PARTS: i32")
            constants = flags | {"BLOCK": penalty._SPLIT, "ALL_PARTS": 64}
            yield f"direction-{case}", penalty._direction_kernel, parts, constants, 8
        signature = types(f"g_ptr: {kind}, part_ptr: *fp32, M PARTS: i32")
        yield f"squares-{name}", penalty._squares_kernel, signature, {"BLOCK": penalty._SPLIT}, 8
        flat = {"BLOCK": bias._BLOCK}
        for numel in ("i32", "i64"):  # tensors below and above 2**31 elements
            signature = types(
                f"x_ptr y_ptr: {kind}, bias_ptr: *fp32, bits_ptr: *u8, numel: {numel}"
            )
            signature |= types("C INNER: i32, slope: fp32")
            yield f"bias-act-{name}-{numel}", bias._forward_kernel, signature, flat, 8
            signature = types(
                f"c_ptr t_ptr: {kind}, numel first: {numel}, bits_ptr: *u8, slope: fp32"
            )
            yield f"tangent-{name}-{numel}", bias._tangent_kernel, signature, flat, 8
        delta = types(f"dy_ptr dz_ptr: {kind}, bits_ptr: *u8, weight_ptr part_ptr: *fp32")
        delta |= types("C: i32, slope: fp32")
        columns, tile = delta | types("R PER_SAMPLE: i32"), {"ROWS": bias._ROWS}
        tile["COLUMNS"] = bias._COLUMNS
        yield f"delta-columns-{name}", bias._delta_columns_kernel, columns, tile, 4
        rows, part = delta | types("INNER: i32"), {"BLOCK": bias._ROW_PART}
        yield f"delta-rows-{name}", bias._delta_rows_kernel, rows, part, 4
        strides = " ".join(f"stride_{axis}" for axis in "nchw")
        signature = types(f"x_ptr: {kind}, y_ptr: *u8, numel C H W {strides}: i32")
        yield f"to-uint8-{name}", to_uint8._tail_kernel, signature, {"BLOCK": to_uint8._BLOCK}, 4
    for normal in (True, False):
        signature = types("index_ptr: *i64, N COUNT PER_ROW: i32, k0 k1 m0 m1 w0 w1: i64")
        signature["out_ptr"] = "*fp32" if normal else "*fp64"
        constants = {"NORMAL": normal, "BLOCK": drawn._BLOCK}
        yield f"draw-{normal}", drawn._draw_kernel, signature, constants, 4
    signature = types("step_ptr skip_ptr rates_ptr: *fp32, lr_ptr decay_ptr: *fp64")
    constants = {"LOG_BETA1": -math.inf, "LOG_BETA2": math.log2(0.9), "SKIP": True}
    yield "adam-rates", adam_ema._rates_kernel, signature, constants, 1
    for average, low in ((True, True), (False, False)):
        signature = types("p_ptr g_ptr m_ptr v_ptr average_ptr rates_ptr: *fp32, low_ptr: *bf16")
        signature["skip_ptr"] = "*fp32"
        signature |= types("numel: i32, beta1 one_minus_beta1 beta2 one_minus_beta2: fp32")
        signature |= types("eps limit: fp32")
        constants = {"AVERAGE": average, "LOW": low, "BLOCK": adam_ema._BLOCK, "CLIP": low}
        constants["SKIP"] = low
        name, warps = f"adam-{average}-{low}", adam_ema._WARPS
        yield name, adam_ema._adam_kernel, signature, constants, warps


CASES = {name: rest for name, *rest in cases()}
SHORT = [name for name in CASES if "bf16" in name or name.startswith(("draw", "adam"))]
# every kernel once, as its longest program
SAMPLE = f"""
    whole-bf16-{gradient_penalty._ONE_PROGRAM}-False-True direction-bf16-False-True squares-bf16
    bias-act-bf16-i64 tangent-bf16-i64 delta-columns-bf16 delta-rows-bf16 to-uint8-bf16 draw-True
    adam-True-True adam-rates
""".split()


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
