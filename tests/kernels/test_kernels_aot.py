"""Every kernel compiles for NVIDIA GPUs on a machine without one, and keeps values in registers.

Types and constants are the launchers'. A kernel that spills has STACK or LOCAL bytes.
"""

import math
import re
import subprocess
import tempfile
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import pytest

triton = pytest.importorskip("triton")
if triton.knobs.runtime.interpret:
    pytest.skip("the interpreter is on: nothing is compiled", allow_module_level=True)

from ganfast.kernels import (  # noqa: E402
    adam_ema,
    bias_act,
    gradient_penalty,
    latents,
    pictures,
    shuffle,
    to_uint8,
)

FLOATS = {"fp32": "*fp32", "bf16": "*bf16", "fp16": "*fp16"}
# T4, A100, RTX 30, RTX 40, H100 and H200, B200, RTX 50
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)


def types(text):
    """Arguments and their types from "x y: *fp32, numel: i32"."""
    groups = (group.split(": ") for group in text.split(", "))
    return {name: kind for names, kind in groups for name in names.split()}


def cases():
    """name, kernel, signature by argument, constants, warps."""
    penalty, drawn = gradient_penalty, latents
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
        yield from bias_act_cases(name, kind)
        signature = types(f"x_ptr: {kind}, y_ptr: *u8, P PARTS: i32")
        for planes, words in ((1, False), (3, True), (3, False)):
            constants = {"C": planes, "WORDS": words, "BLOCK": to_uint8._BLOCK}
            case = f"to-uint8-{name}-{planes}-{'words' if words else 'bytes'}"
            yield case, to_uint8._tail_kernel, signature, constants, 4
    keys = types("k0 k1 m0 m1 w0 w1: i64")
    for kind in drawn.KINDS:
        signature = keys | types("index_ptr: *i64, N COUNT PER_ROW GROUP STRIDE: i32")
        signature["out_ptr"] = "*i1" if kind == "coin" else "*fp32"
        constants = {"KIND": kind, "BLOCK": drawn._BLOCK}
        yield f"draw-{kind}", drawn._draw_kernel, signature, constants, 4
    for sizes in (True, False):
        signature = keys | types("position_ptr size_ptr epoch_ptr out_ptr: *i64, N size: i32")
        constants = {"SIZES": sizes, "ROUNDS": shuffle._ROUNDS, "BLOCK": shuffle._BLOCK}
        yield f"shuffle-{sizes}", shuffle._shuffle_kernel, signature, constants, 4
    for channels, flag in ((1, False), (3, True)):
        signature = types("images_ptr: *u8, planes_ptr position_ptr: *i64, mirrored_ptr: *i1")
        signature |= types("out_ptr: *fp32, SIZE WIDTH: i32")
        constants = {"C": channels, "PLANES": flag, "MIRRORED": flag, "BLOCK": pictures._BLOCK}
        yield f"pictures-{channels}", pictures._pictures_kernel, signature, constants, 4
    for scheduled in (False, True):
        signature = types("step_ptr skip_ptr rates_ptr: *fp32, lr_ptr decay_ptr second_ptr: *fp64")
        constants = {"LOG_BETA1": -math.inf, "LOG_BETA2": math.log2(0.9), "BETA2": 0.9}
        constants |= {"SKIP": True, "SECOND": scheduled}
        name = "adam-rates-scheduled" if scheduled else "adam-rates"
        yield name, adam_ema._rates_kernel, signature, constants, 1
    for average, low in ((True, True), (False, False)):
        signature = types("p_ptr g_ptr m_ptr v_ptr average_ptr rates_ptr: *fp32, low_ptr: *bf16")
        signature["skip_ptr"] = "*fp32"
        signature |= types("numel: i32, beta1 one_minus_beta1: fp32")
        signature |= types("eps limit: fp32")
        constants = {"AVERAGE": average, "LOW": low, "BLOCK": adam_ema._BLOCK, "CLIP": low}
        constants["SKIP"] = low
        name, warps = f"adam-{average}-{low}", adam_ema._WARPS
        yield name, adam_ema._adam_kernel, signature, constants, warps


def bias_act_cases(name, kind):
    """i64: of tensors above 2**31 elements. eights: where eight neighbours share a byte."""
    flat = {"BLOCK": bias_act._BLOCK}
    for numel, large in (("i32", False), ("i64", True)):
        signature = types(f"x_ptr y_ptr bias_ptr: {kind}, bits_ptr: *u8, numel: {numel}")
        signature |= types("C INNER: i32, slope: fp32")
        for layout, more in (
            ("last", {"INNER": 1, "EIGHTS": False}),
            ("eights", {"EIGHTS": True}),
            ("any", {"EIGHTS": False}),
        ):
            constants = flat | {"LARGE": large} | more
            case = f"bias-act-{name}-{layout}-{numel}"
            yield case, bias_act._forward_kernel, signature, constants, 8
        signature = types(f"c_ptr t_ptr: {kind}, numel: {numel}, bits_ptr: *u8, slope: fp32")
        yield f"tangent-{name}-{numel}", bias_act._tangent_kernel, signature, flat, 8
    delta = types(f"dy_ptr dz_ptr: {kind}, bits_ptr: *u8, weight_ptr part_ptr: *fp32")
    delta |= types("C: i32, slope: fp32")
    for end, eights in (("eights", {"EIGHTS": True}), ("any", {"EIGHTS": False})):
        columns = delta | types("R PER_SAMPLE STEPS: i32")
        tile = {"ROWS": bias_act._TILE // bias_act._COLUMNS, "COLUMNS": bias_act._COLUMNS} | eights
        for index, large in (("i32", False), ("i64", True)):
            case, constants = f"delta-columns-{name}-{end}-{index}", tile | {"LARGE": large}
            yield case, bias_act._delta_columns_kernel, columns, constants, 4
        rows, part = delta | types("INNER: i32"), {"BLOCK": bias_act._ROW_PART} | eights
        yield f"delta-rows-{name}-{end}", bias_act._delta_rows_kernel, rows, part, 4


CASES = {name: rest for name, *rest in cases()}
# Integers that are no multiples of 16 in a network's layers either.
ANYTHING = ("STEPS", "PARTS")
# For sm_90, where arguments are multiples of 16: most registers, most instructions, and how many
# loads of 128 bits there are. Most: of triton 3.6 and 3.9. Nothing spills or divides in 64 bits.
BUDGETS = """
    bias-act-fp32-last-i32 34 182 4
    bias-act-fp32-eights-i32 31 199 2
    tangent-fp32-i32 29 110 2
    delta-columns-fp32-eights-i32 72 342 4
    delta-rows-fp32-eights 32 381 7
    to-uint8-fp32-1-bytes 18 117 2
    to-uint8-fp32-3-words 34 290 6
    whole-fp32-1024-False-False 32 312 4
    whole-fp32-16384-False-False 106 517 16
    squares-fp32 26 100 4
    direction-fp32-False-False 30 293 4
    bias-act-bf16-last-i32 27 135 2
    bias-act-bf16-eights-i32 29 154 1
    tangent-bf16-i32 21 77 1
    delta-columns-bf16-eights-i32 56 396 2
    delta-rows-bf16-eights 29 162 0
    to-uint8-bf16-1-bytes 18 126 1
    to-uint8-bf16-3-words 32 320 0
    whole-bf16-1024-False-False 36 301 2
    whole-bf16-16384-False-False 95 577 8
    squares-bf16 21 112 2
    direction-bf16-False-False 32 300 2
    shuffle-True 30 378 0
    shuffle-False 30 374 0
    pictures-1 29 303 0
    pictures-3 38 531 0
"""
BUDGETS = {
    name: tuple(map(int, numbers))
    for name, *numbers in map(str.split, BUDGETS.strip().splitlines())
}
_OTHERS = "draw", "adam", "shuffle", "pictures"
SHORT = [name for name in CASES if "bf16" in name or name.startswith(_OTHERS)]
# every kernel once, as its longest program
SAMPLE = f"""
    whole-bf16-{gradient_penalty._ONE_PROGRAM}-False-True direction-bf16-False-True squares-bf16
    bias-act-bf16-any-i64 tangent-bf16-i64 delta-columns-bf16-any-i64 delta-rows-bf16-any
    to-uint8-bf16-3-words draw-normal shuffle-True pictures-3 adam-True-True adam-rates-scheduled
""".split()


SAMPLE_FOR_ALL = list(zip(SAMPLE, cycle(ARCHITECTURES), strict=False))


class Compiled(NamedTuple):
    registers: int
    instructions: int  # without the padding behind the last
    wide_loads: int  # of 128 bits
    divisions: int  # of 64 bits: calls of about 70 instructions
    spilled: int  # bytes


def compiled(kernel, signature, constants, warps, architecture, *, aligned=False):
    """What ptxas makes of a kernel.

    Args:
        aligned: pointers and integers are multiples of 16, as the JIT finds those of a network's
            layers; if not, they may be anything.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    whole = {
        name: "constexpr" if name in constants else signature[name] for name in kernel.arg_names
    }
    sixteen = {
        (kernel.arg_names.index(name),): [["tt.divisibility", 16]]
        for name, kind in signature.items()
        if aligned and name not in {*constants, *ANYTHING} and not kind.startswith("fp")
    }
    source = ASTSource(fn=kernel, signature=whole, constexprs=constants, attrs=sixteen)
    target = GPUTarget("cuda", architecture, 32)
    assembly = triton.compile(source, target=target, options={"num_warps": warps}).asm
    usage, listing = tool("cuobjdump", "--dump-resource-usage", assembly["cubin"]), ""
    if aligned:
        listing = tool("nvdisasm", "-c", assembly["cubin"])
    operations = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P[0-9T]+ +)?([A-Z0-9_.]+)", listing)
    size = {what: int(re.search(rf"{what}:(\d+)", usage)[1]) for what in ("STACK", "LOCAL", "REG")}
    return Compiled(
        registers=size["REG"],
        instructions=sum(operation != "NOP" for operation in operations),
        wide_loads=sum(bool(re.match(r"LDG\..*128", operation)) for operation in operations),
        divisions=len(re.findall(r"(?:div|rem)\.[su]64", assembly["ptx"])),
        spilled=size["STACK"] + size["LOCAL"],
    )


def tool(name, option, cubin):
    """What a tool of triton's says of a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        path = Path(triton.__file__).parent / "backends/nvidia/bin" / name
        return subprocess.run(
            [path, option, file.name], capture_output=True, text=True, check=True
        ).stdout


@pytest.mark.parametrize(("name", "architecture"), SAMPLE_FOR_ALL)
def test_a_kernel_compiles_without_spilling(name, architecture):
    assert_no_spill(name, architecture)


@pytest.mark.accept
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", CASES)
def test_every_kernel_compiles_for_every_architecture_without_spilling(name, architecture):
    assert_no_spill(name, architecture)


def assert_no_spill(name, architecture):
    found = compiled(*CASES[name], architecture)
    assert found.spilled == 0, found
    assert found.registers <= 255


@pytest.mark.parametrize(
    "name", [n if "bf16" in n else pytest.param(n, marks=pytest.mark.accept) for n in BUDGETS]
)
def test_a_kernel_keeps_to_its_budget_on_hopper(name):
    registers, instructions, wide_loads = BUDGETS[name]
    found = compiled(*CASES[name], 90, aligned=True)
    assert found.registers <= registers, found
    assert found.instructions <= instructions, found
    assert found.wide_loads == wide_loads, found
    assert found.divisions == found.spilled == 0, found


def test_the_budgets_would_show_scalar_loads_and_divisions_of_64_bits():
    """Of arguments that may be anything, nothing is known that would allow wide loads."""
    assert compiled(*CASES["tangent-bf16-i32"], 90).wide_loads == 0
    large = compiled(*CASES["bias-act-bf16-last-i64"], 90, aligned=True)
    assert large.divisions > 0


def test_every_kernel_is_compiled_here():
    folder = Path(gradient_penalty.__file__).parent
    written = {
        name
        for path in folder.glob("*.py")
        for name in re.findall(r"^def (_\w+_kernel)\(", path.read_text(), re.M)
    }
    assert written == {kernel.__name__ for kernel, *_ in CASES.values()}
    assert written == {CASES[name][0].__name__ for name in SAMPLE}
