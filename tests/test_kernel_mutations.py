"""Wrong kernels must be caught: each mutation of a kernel's text is one mistake, on which the check of its own test file must fail.

Triton reads a kernel's source from its file: the edited text is written to a file of its own and imported from there, as is the
unedited text, which must pass.
"""

import importlib.util
import itertools

import pytest
import torch

from tests import test_adam_ema, test_bias_act, test_gradient_penalty, test_latents, test_to_uint8
from tests.test_kernels_interpreted import ROOT, on_interpreter, randn

pytestmark = [on_interpreter, pytest.mark.accept]

_number = itertools.count()


def loaded(folder, name, old="", new=""):
    """The module of kernels/<name>.py with one text replaced, its operations registered under another name."""
    source = (ROOT / "kernels" / f"{name}.py").read_text()
    if old:
        assert source.count(old) == 1, f"kernels/{name}.py must hold this text exactly once: {old}"
        source = source.replace(old, new)
    path = folder / f"mutated_{name}_{next(_number)}.py"
    path.write_text(source.replace('custom_op("ganfast::', 'custom_op("ganfast_mutated::'))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def penalty_is_right(module):
    tests = test_gradient_penalty
    for kind in ("zero-centred", "two-sided 1.0", "one-sided 0.4"):
        for shape in ((3, 9, 7), (3, 80, 80)):
            g = tests.gradients(shape)
            tests.assert_right(g, tests.KINDS[kind], tests.SHAPES[shape], triton=module.gradient_penalty_triton)


def activation_is_right(module):
    tests = test_bias_act
    for shape, layout in (((5, 3), "contiguous"), ((3, 5, 7, 6), "contiguous"), ((3, 70, 7, 6), "channels last")):
        tests.assert_forward_right(*tests.inputs(shape, layout=layout), 0.2, at=module)
        tests.assert_delta_right(*tests.delta_inputs(shape, layout=layout), 0.2, at=module)
        tests.assert_tangent_right(shape, slice(1, 3), 0.2, layout=layout, at=module)
    tests.assert_delta_right(*tests.delta_inputs((1, 2, 40, 33)), 0.2, at=module)  # rows of more than one block


def draws_are_right(module):
    tests = test_latents
    for count in (5, 6, 7):
        tests.assert_numpys_uniforms(2**64 - 1, 13, count, at=module)
    tests.assert_references_normals(7, 3, torch.arange(60), 7, at=module)


def bytes_are_right(module):
    tests = test_to_uint8
    tests.assert_right(randn(2, 3, 9, 7), at=module)
    tests.assert_right(tests.ties(), at=module)


def adam_is_right(module):
    test_adam_ema.assert_right(1500, (0.5, 0.999), at=module)
    test_adam_ema.assert_right(70, (0.0, 0.9), average=False, low=False, at=module)
    test_adam_ema.assert_right(70, (0.5, 0.999), eps=0.1, at=module)


CHECKS = {
    "gradient_penalty": penalty_is_right,
    "bias_act": activation_is_right,
    "latents": draws_are_right,
    "to_uint8": bytes_are_right,
    "adam_ema": adam_is_right,
}

PENALTY, ACTIVATION, LATENTS, BYTES, ADAM = CHECKS
PENALTY_WHOLE = "tl.store(u_ptr + first + i, (coefficient * g).to(u_ptr.dtype.element_ty), mask=inside)"
PENALTY_PART = "tl.store(u_ptr + at, (coefficient * g).to(u_ptr.dtype.element_ty), mask=i < M)"
TANGENT_STORE = "_through(c, bits_ptr, first + i, inside, slope).to(t_ptr.dtype.element_ty), mask=inside)"

# What is wrong: (file, text, text instead).
MUTATIONS = {
    # From gradients to penalties.
    "half of a zero-centred penalty forgotten": (PENALTY, "value = weight * 0.5 * square", "value = weight * square"),
    "that half in its derivative": (PENALTY, " coefficient = weight * scale\n", " coefficient = weight * 0.5 * scale\n"),
    "the 2 of a square's derivative": (PENALTY, "2.0 * weight * scale * excess", "weight * scale * excess"),
    "one side dropped": (PENALTY, "excess = tl.maximum(excess, 0.0)", "excess = excess"),
    "the other side kept": (PENALTY, "excess = tl.maximum(excess, 0.0)", "excess = tl.minimum(excess, 0.0)"),
    "target left out": (
        PENALTY, "        excess = norm - target\n        if ONE", "        excess = norm\n        if ONE"),
    "scale left out": (PENALTY, "2.0 * weight * scale * excess", "2.0 * weight * excess"),
    "0 / 0 of a zero gradient": (
        PENALTY, "tl.where(norm > 0, tl.div_rn(2.0 * weight * scale * excess, tl.where(norm > 0, norm, 1.0)), 0.0)",
        "2.0 * weight * scale * excess / norm"),
    "no root": (PENALTY, "norm = tl.sqrt_rn(square)", "norm = square"),
    "samples read at each other's place": (
        PENALTY, "first = n.to(tl.int64) * M\n    g = ", "first = n.to(tl.int64) * (M - 1)\n    g = "),
    "no mask on the direction": (PENALTY, PENALTY_WHOLE, PENALTY_WHOLE.replace(", mask=inside", "")),
    "no mask on the direction of a part": (PENALTY, PENALTY_PART, PENALTY_PART.replace(", mask=i < M", "")),
    "direction of a part unwritten at the end": (PENALTY, PENALTY_PART, PENALTY_PART.replace("i < M", "i < M - 1")),
    "a mask too wide on the read of a part": (
        PENALTY, "g = tl.load(g_ptr + n.to(tl.int64) * M + i, mask=i < M, other=0.0)",
        "g = tl.load(g_ptr + n.to(tl.int64) * M + i, mask=i < M + 1, other=0.0)"),
    "the second stage reads one part only": (PENALTY, "mask=p < PARTS, other=0.0", "mask=p < 1, other=0.0"),
    "the second stage reads another sample's parts": (
        PENALTY, "tl.load(part_ptr + n * PARTS + p", "tl.load(part_ptr + (n ^ 1) % 5 * PARTS + p"),
    "a sum of absolute values in the first stage": (
        PENALTY, "part, tl.sum(g * g, 0))", "part, tl.sum(tl.abs(g), 0))"),
    "value and norm from the wrong part": (PENALTY, "if part == 0:", "if part == 99:"),
    # Bias and leaky ReLU.
    "bias left out": (
        ACTIVATION, "z = x + tl.load(bias_ptr + (i // INNER) % C, mask=inside, other=0.0).to(tl.float32)", "z = x"),
    "the channel without its modulus": (ACTIVATION, "bias_ptr + (i // INNER) % C", "bias_ptr + i % C"),
    "slope on the wrong side": (ACTIVATION, "tl.where(z > 0, z, z * slope)", "tl.where(z > 0, z * slope, z)"),
    "bits of x in place of x + b": (ACTIVATION, "positive = ((z > 0) & inside)", "positive = ((x > 0) & inside)"),
    "a bit for what lies on the kink": (ACTIVATION, "positive = ((z > 0) & inside)", "positive = ((z >= 0) & inside)"),
    "bits behind the last element": (ACTIVATION, "positive = ((z > 0) & inside)", "positive = ((z > 0) | (i >= numel))"),
    "highest bit first": (ACTIVATION, "<< tl.arange(0, 8)[None, :]", "<< (7 - tl.arange(0, 8))[None, :]"),
    "no mask on the bits": (ACTIVATION, "byte.to(tl.uint8), mask=j * 8 < numel)", "byte.to(tl.uint8))"),
    "the last byte unwritten": (ACTIVATION, "mask=j * 8 < numel)", "mask=j * 8 + 7 < numel)"),
    "a wrong shift to the byte": (ACTIVATION, "(at >> 3)", "(at >> 2)"),
    "a wrong bit of the byte": (ACTIVATION, "(at & 7)", "(at & 3)"),
    "slope on the wrong side backwards": (ACTIVATION, "!= 0, v, v * slope)", "== 0, v, v * slope)"),
    "the first bit forgotten": (ACTIVATION, "bits_ptr, first + i, inside", "bits_ptr, i, inside"),
    "no mask on the tangent": (ACTIVATION, TANGENT_STORE, TANGENT_STORE.replace(", mask=inside)", ")")),
    "weights of samples left out of rows": (ACTIVATION, "tl.sum(total, 0) * w)", "tl.sum(total, 0))"),
    "weights of samples left out of columns": (ACTIVATION, "tl.sum(dz * w[:, None], 0)", "tl.sum(dz, 0)"),
    "weights by row in place of sample": (ACTIVATION, "weight_ptr + r // PER_SAMPLE", "weight_ptr + r % 3"),
    "weights by channel in place of sample": (
        ACTIVATION, "weight_ptr + tl.program_id(0) // C", "weight_ptr + tl.program_id(0) % C % 3"),
    "weights on the delta too": (
        ACTIVATION, "tl.sum(total, 0) * w)",
        "tl.sum(total, 0) * w)\n    tl.store(dz_ptr + row * INNER, tl.load(dz_ptr + row * INNER) * w)"),
    "the last block of a row only": (ACTIVATION, "total += dz", "total = dz"),
    "the bias gradient from dy": (
        ACTIVATION, "total += dz", "total += tl.load(dy_ptr + i, mask=inside, other=0.0).to(tl.float32)"),
    "the second stage adds one part": (ACTIVATION, "return dz, parts.sum(0)", "return dz, parts[0]"),
    "no mask on the columns": (ACTIVATION, "& (c < C)[None, :]", "& (c >= 0)[None, :]"),
    "parts unwritten at the last channel": (ACTIVATION, "w[:, None], 0), mask=c < C)", "w[:, None], 0), mask=c < C - 1)"),
    # Random numbers.
    "key increments swapped": (
        LATENTS, "key0 += w0.to(tl.uint64)\n        key1 += w1", "key0 += w1.to(tl.uint64)\n        key1 += w0"),
    "keys swapped": (
        LATENTS, "high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0", "high1 ^ c1 ^ key1, low1, high0 ^ c3 ^ key0, low0"),
    "nine rounds": (LATENTS, "tl.static_range(10)", "tl.static_range(9)"),
    "multipliers swapped": (LATENTS, "mul0, mul1 = m0.to(tl.uint64), m1", "mul0, mul1 = m1.to(tl.uint64), m0"),
    "the counter not advanced first": (LATENTS, "c0 = (block + 1).to(tl.uint64)", "c0 = block.to(tl.uint64)"),
    "an index of 32 bits": (
        LATENTS, "c1 = tl.load(index_ptr + row, mask=inside, other=0).to(tl.uint64)",
        "c1 = tl.load(index_ptr + row, mask=inside, other=0).to(tl.uint32).to(tl.uint64)"),
    "high half of a word forgotten": (LATENTS, "tl.umulhi(c2, mul1)", "tl.umulhi(c2.to(tl.uint32).to(tl.uint64), mul1)"),
    "a bit too few": (LATENTS, "u3 = (c3 >> 11)", "u3 = (c3 >> 12)"),
    "no mask on the second column": (LATENTS, "mask=inside & (left > 1)", "mask=inside & (left > 0)"),
    "no mask on the last column": (LATENTS, "mask=inside & (left > 3)", "mask=inside"),
    "the last column unwritten": (LATENTS, "mask=inside & (left > 2)", "mask=inside & (left > 3)"),
    "cosine and sine swapped": (LATENTS, "near * cos1, near * sin1,", "near * sin1, near * cos1,"),
    "one radius for both pairs": (LATENTS, "far * cos3, far * sin3", "near * cos3, far * sin3"),
    "log of u": (LATENTS, "tl.log(1.0 - u2)", "tl.log(u2)"),
    "a series one term short": (LATENTS, "(1.0 / ((18 - 2 * k) * (19 - 2 * k)))", "(1.0 / ((18 - 2 * k) * (18 - 2 * k)))"),
    "a sign of the third quarter": (LATENTS, "tl.where(k == 2, -cosine, sine)", "tl.where(k == 2, cosine, sine)"),
    # Bytes.
    "127 in place of 127.5": (BYTES, "tl.maximum((x + 1.0) * 127.5, 0.0)", "tl.maximum((x + 1.0) * 127.0, 0.0)"),
    "a rounding constant of 2^24": (BYTES, "((scaled + 12582912.0) - 12582912.0)", "((scaled + 16777216.0) - 16777216.0)"),
    "half up in place of half to even": (BYTES, "((scaled + 12582912.0) - 12582912.0)", "(scaled + 0.5)"),
    "down in place of nearest": (BYTES, "((scaled + 12582912.0) - 12582912.0)", "scaled"),
    "no lower clip": (BYTES, "tl.maximum((x + 1.0) * 127.5, 0.0)", "((x + 1.0) * 127.5)"),
    "no upper clip": (BYTES, "tl.minimum(tl.maximum((x + 1.0) * 127.5, 0.0), 255.0)", "tl.maximum((x + 1.0) * 127.5, 0.0)"),
    "height and width swapped": (BYTES, "h * stride_h + w * stride_w", "w * stride_h + h * stride_w"),
    "no mask on the bytes": (BYTES, "- 12582912.0).to(tl.uint8), mask=inside)", "- 12582912.0).to(tl.uint8))"),
    # Adam.
    "1 - decay swapped": (ADAM, "(p - average) * (1.0 - decay)", "(p - average) * decay"),
    "eps inside the correction": (ADAM, "(tl.sqrt(v) * root_scale + eps)", "((tl.sqrt(v) + eps) * root_scale)"),
    "eps left out": (ADAM, "m / (tl.sqrt(v) * root_scale + eps)", "m / (tl.sqrt(v) * root_scale)"),
    "no correction of the second moment": (ADAM, "tl.sqrt(v) * root_scale + eps", "tl.sqrt(v) + eps"),
    "no square of the gradient": (ADAM, "one_minus_beta2 * g * g", "one_minus_beta2 * g"),
    "1 - beta2 in the place of beta2": (ADAM, "v = v * beta2 +", "v = v * one_minus_beta2 +"),
    "rates in another order": (
        ADAM, "tl.load(rates_ptr + 1), tl.load(rates_ptr + 2)", "tl.load(rates_ptr + 2), tl.load(rates_ptr + 1)"),
    "1 - beta in float32": (ADAM, "beta2, 1 - beta2, eps,\n", "beta2, float(1 - torch.tensor(beta2).float()), eps,\n"),
    "the second moment not kept": (ADAM, "tl.store(v_ptr + i, v, mask=inside)", "tl.store(m_ptr + i, m, mask=inside)"),
    "the copy taken from the average": (ADAM, "tl.store(low_ptr + i, p.to", "tl.store(low_ptr + i, m.to"),
    "no mask on the parameters": (ADAM, "tl.store(p_ptr + i, p, mask=inside)", "tl.store(p_ptr + i, p)"),
    "no mask on the copy": (ADAM, "p.to(low_ptr.dtype.element_ty), mask=inside)", "p.to(low_ptr.dtype.element_ty))"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKS)
def test_the_unedited_kernels_pass_by_the_same_route(tmp_path, name):
    CHECKS[name](loaded(tmp_path, name))


@pytest.mark.parametrize("mutation", MUTATIONS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # dividing by zero may be the mutation
def test_a_wrong_kernel_is_caught(tmp_path, mutation):
    name, *texts = MUTATIONS[mutation]
    module = loaded(tmp_path, name, *texts)
    with pytest.raises(AssertionError):
        CHECKS[name](module)
