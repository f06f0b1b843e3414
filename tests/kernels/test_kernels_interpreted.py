"""Kernels in an ordinary test run: a second process executes them in triton's interpreter.

Here too: what the kernels' tests share (where they run, poisoned memory, the bound on errors),
and what decides between a kernel and its reference.
"""

import os
import re
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ganfast.errors import InputError
from ganfast.kernels import _triton
from ganfast.kernels._triton import (
    blocks,
    dense,
    launch,
    launches,
    power_of_two,
    same_layout,
    use_triton,
)
from tests.programs import python

ROOT = Path(__file__).parents[2]
INTERPRETED = _triton.interpreted()
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
RUNS = _triton.triton is not None and (INTERPRETED or DEVICE == "cuda")
on_kernels = pytest.mark.skipif(
    not RUNS, reason="kernels run on CUDA, and under TRITON_INTERPRET=1"
)
on_interpreter = pytest.mark.skipif(not INTERPRETED, reason="runs under TRITON_INTERPRET=1")

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
_PAD = 1 << 15  # elements on either side of a tensor: more than any program of a kernel covers


class Guards:
    """Tensors in the middle of poisoned buffers.

    What a kernel leaves unwritten, or reads beyond a tensor, shows as NaN in what it returns;
    writes beyond one show in `check`.
    """

    def __init__(self):
        self.buffers: list[tuple[Tensor, int, int]] = []

    def empty(self, x: Tensor, byte: int = 0xAA, word: int = -1) -> Tensor:
        """Poison like a dense x: this byte repeated, or 16 bits that are NaN in every float."""
        unit, poison = (torch.uint8, byte) if x.element_size() == 1 else (torch.int16, word)
        units = x.element_size() // unit.itemsize
        buffer = torch.full(((2 * _PAD + x.numel()) * units,), poison, dtype=unit, device=x.device)
        self.buffers.append((buffer, _PAD * units, poison))
        return buffer.view(x.dtype).as_strided(x.shape, x.stride(), _PAD)

    def copy(self, x: Tensor) -> Tensor:
        """Other bits than `empty` has: they show where poison is copied from tensor to tensor."""
        return self.empty(x, 0x55, 0x7FFF).copy_(x)

    def check(self) -> None:
        for buffer, outside, poison in self.buffers:
            assert bool((buffer[:outside] == poison).all()), "written before a tensor"
            assert bool((buffer[len(buffer) - outside :] == poison).all()), (
                "written behind a tensor"
            )


@contextmanager
def poisoned_memory():
    """`torch.empty` and `torch.empty_like` give guarded poison; leaving checks every guard."""
    guards, empty, empty_like = Guards(), torch.empty, torch.empty_like
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", lambda *args, **kwargs: guards.empty(empty(*args, **kwargs)))
        patch.setattr(
            torch, "empty_like", lambda *args, **kwargs: guards.empty(empty_like(*args, **kwargs))
        )
        yield guards
    guards.check()


@contextmanager
def launching(**expected):
    """Exactly these kernels are launched, so often: a reference in their place launches none."""
    before = launches.copy()
    yield
    assert dict(launches - before) == expected


def run_kernel(function, *args, inputs_stay=True, **expected):
    """A launcher's result on guarded copies in poisoned memory, with the expected launches."""
    with poisoned_memory() as guards, launching(**expected):
        given = [guards.copy(x.to(DEVICE)) if isinstance(x, Tensor) else x for x in args]
        result = function(*given)
        if inputs_stay:
            for x, copy in zip(args, given, strict=True):
                same = not isinstance(x, Tensor) or torch.allclose(
                    x, copy.cpu(), rtol=0, atol=0, equal_nan=True
                )
                assert same, "an input was modified"
    return result


def errors(found: Tensor, exact: Tensor) -> Tensor:
    assert found.shape == exact.shape
    return (found.detach().cpu().double() - exact).abs()


def assert_as_exact(
    found: Tensor, reference: Tensor, exact: Tensor, terms: Tensor | float = 0.0
) -> None:
    """A kernel's error is at most twice the reference's, by sample, and a unit in the last place.

    A whole unit, not half: the interpreter truncates bfloat16 where hardware rounds to nearest.

    Args:
        found, reference: of the same type.
        exact: float64.
        terms: size of what was summed, where it may far exceed the result: float32 rounds there.
    """
    assert found.dtype == reference.dtype
    own = errors(reference, exact)
    own = own.amax(tuple(range(1, own.dim())), keepdim=True) if own.dim() > 1 else own.max()
    kind = torch.finfo(found.dtype)
    unit = kind.eps * torch.exp2(
        torch.floor(torch.log2(exact.abs().clamp(min=kind.smallest_normal)))
    )
    allowed = 2 * own + unit + torch.finfo(torch.float32).eps * terms
    wrong = ~(errors(found, exact) <= allowed)  # NaN is wrong
    assert not wrong.any(), (
        f"{int(wrong.sum())} of {wrong.numel()}: {found.cpu()[wrong][:4].tolist()}, "
        f"expected {exact[wrong][:4].tolist()}"
    )


def assert_op(op, *args) -> None:
    """The registered operation keeps to its schema and its fake, so it compiles and is captured."""
    torch.library.opcheck(op, args, test_utils=("test_schema", "test_faketensor"))


def randn(*shape, seed=0, dtype=torch.float32, layout="contiguous") -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(
        dtype
    )
    return x.contiguous(memory_format=LAYOUTS[layout]) if x.dim() == 4 else x


def assert_dispatch(monkeypatch, public, reference, *args, kernel: dict[str, int]) -> None:
    """Where a kernel cannot or may not run, the reference runs, to the bit; other words raise.

    Args:
        public, reference: functions that return a tensor or several.
        kernel: launches of the public function where kernels run.
    """

    def same(device):
        found, expected = (
            f(*(x.to(device) if isinstance(x, Tensor) else x for x in args))
            for f in (public, reference)
        )
        many = (found, expected) if isinstance(found, tuple) else ((found,), (expected,))
        assert all(torch.equal(a, b) for a, b in zip(*many, strict=True))

    monkeypatch.delenv("GANFAST_KERNELS", raising=False)
    if RUNS:
        with launching(**kernel):
            public(*(x.to(DEVICE) if isinstance(x, Tensor) else x for x in args))
    with launching():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_triton, "interpreted", lambda: False)
            same("cpu")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_triton, "triton", None)
            same(DEVICE)
        monkeypatch.setenv("GANFAST_KERNELS", "reference")
        same(DEVICE)
        monkeypatch.setenv("GANFAST_KERNELS", "cuda")
        with pytest.raises(InputError, match="GANFAST_KERNELS is 'cuda'"):
            public(*args)


# The second process.

KERNELS = "gradient_penalty bias_act latents shuffle pictures to_uint8 adam_ema".split()
FILES = [*KERNELS, "engine_kernels", "optim"]
_OWN = ("GANFAST_KERNELS", "GANFAST_METER", "PYTEST_ADDOPTS")  # not for the second process
# Which tests, and their least number: fewer means that some are not collected any more.
PROCESSES = [
    ("not accept", FILES[:2], 270),
    ("not accept", FILES[2:], 180),
    pytest.param("accept", FILES, 350, marks=pytest.mark.accept),
]


@pytest.mark.skipif(INTERPRETED, reason="this process is the interpreted one")
@pytest.mark.parametrize(
    ("depth", "files", "least"), PROCESSES, ids=["half", "other half", "crossed"]
)
def test_every_kernel_test_passes_under_the_interpreter_and_none_is_skipped(depth, files, least):
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name not in _OWN}
    environment |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    paths = (str(next(ROOT.glob(f"tests/**/test_{name}.py"))) for name in files)
    done = python("-m", "pytest", "-q", "-m", depth, *paths, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    counts = {
        what: int(number)
        for number, what in re.findall(r"(\d+) (\w+)", done.stdout.strip().splitlines()[-1])
    }
    assert counts["passed"] >= least
    assert not counts.keys() & {"skipped", "failed", "error", "errors", "xfailed"}


def test_every_kernel_has_its_tests():
    folder = ROOT / "kernels"
    assert {
        p.stem for p in folder.glob("*.py") if re.search(r"^@jit$", p.read_text(), re.M)
    } == set(KERNELS)


@pytest.mark.parametrize("names", ["SAMPLE", pytest.param("SHORT", marks=pytest.mark.accept)])
def test_every_kernel_compiles_with_integers_of_one(names):
    """Triton makes a constant of an integer 1: a stream of 1, say, must compile as any other."""
    pytest.importorskip("triton")
    if INTERPRETED:
        pytest.skip("the interpreter is on: nothing is compiled")
    from tests.kernels import test_kernels_aot
    from tests.kernels.test_kernels_aot import CASES, compiled

    failed = {}
    for name in getattr(test_kernels_aot, names):
        kernel, signature, constants, warps = CASES[name]
        fixed = {"m0", "m1", "w0", "w1"}  # Philox's own numbers
        ones = {
            argument: 1
            for argument, kind in signature.items()
            if kind in ("i32", "i64") and argument not in fixed
        }
        try:
            compiled(kernel, signature, constants | ones, warps, 90)
        except Exception as error:
            failed[name] = str(error)[-200:]
    assert not failed


# What decides.


def test_kernels_are_wanted_unless_the_variable_says_reference(monkeypatch):
    monkeypatch.setattr(_triton, "interpreted", lambda: True)
    if _triton.triton is None:
        monkeypatch.setattr(_triton, "triton", object())
    x = torch.zeros(1)
    monkeypatch.delenv("GANFAST_KERNELS", raising=False)
    assert use_triton(x)
    monkeypatch.setenv("GANFAST_KERNELS", "triton")
    assert use_triton(x)
    monkeypatch.setenv("GANFAST_KERNELS", "reference")
    assert not use_triton(x)


@pytest.mark.parametrize("wrong", ["", "Triton", "off"])
def test_another_word_is_refused_by_name_also_where_no_kernel_would_run(monkeypatch, wrong):
    monkeypatch.setenv("GANFAST_KERNELS", wrong)
    for interpreted in (True, False):
        monkeypatch.setattr(_triton, "interpreted", lambda value=interpreted: value)
        with pytest.raises(InputError, match=re.escape(repr(wrong))):
            use_triton(torch.zeros(1))
    monkeypatch.setattr(_triton, "triton", None)
    with pytest.raises(InputError, match=re.escape(repr(wrong))):
        use_triton(torch.zeros(1))


def test_no_kernel_runs_on_a_cpu_without_the_interpreter_nor_without_triton(monkeypatch):
    monkeypatch.delenv("GANFAST_KERNELS", raising=False)
    monkeypatch.setattr(_triton, "interpreted", lambda: False)
    assert not use_triton(torch.zeros(1))
    monkeypatch.undo()
    monkeypatch.setattr(_triton, "triton", None)
    assert not _triton.interpreted()
    assert not use_triton(torch.zeros(1, device=DEVICE))
    assert _triton.jit(blocks) is blocks


def test_files_of_kernels_import_where_triton_is_not_installed():
    modules = ", ".join(f"ganfast.kernels.{name}" for name in KERNELS)
    code = (
        f"import sys; sys.modules['triton'] = None; import {modules}; "
        "import ganfast.kernels._triton as t; "
        "print(t.triton, t.tl.constexpr)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = python("-c", code, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("None ")


def test_an_empty_grid_launches_nothing():
    with launching():
        launch(None, (0,), torch.device("cpu"))
        launch(None, (3, 0), torch.device("cpu"))


def test_blocks_cover_and_powers_of_two_are_the_next():
    assert [blocks(count, 8) for count in (0, 1, 8, 9, 16, 17)] == [0, 1, 1, 2, 2, 3]
    expected = [1, 1, 2, 4, 4, 8, 1024, 1024, 2048]
    assert [power_of_two(count) for count in (0, 1, 2, 3, 4, 5, 1023, 1024, 1025)] == expected


def test_dense_keeps_what_is_dense_and_copies_the_rest():
    x = randn(2, 3, 4, 5)
    last = x.contiguous(memory_format=torch.channels_last)
    assert dense(x) is x
    assert dense(last) is last
    for sliced in (
        x[:, ::2],
        last[..., 1:],
        x.transpose(2, 3),
        x[0].transpose(0, 2),
        x[:1].expand(3, 3, 4, 5),
    ):
        assert dense(sliced).is_contiguous()
        assert torch.equal(dense(sliced), sliced)


def test_same_layout_gives_the_others_strides_and_copies_only_if_needed():
    x, last = randn(2, 3, 4, 5), randn(2, 3, 4, 5, dtype=torch.bfloat16, layout="channels last")
    assert same_layout(x, x.bfloat16()) is x
    assert same_layout(last, last.float()) is last
    moved = same_layout(x, last)
    assert moved.stride() == last.stride()
    assert moved.dtype == x.dtype
    assert torch.equal(moved, x)


def test_poison_shows_what_is_not_written_and_what_is_written_beyond():
    """The guard on torch's own functions: without this, a guard that misses everything passes."""
    with poisoned_memory():
        assert torch.empty(3, 4).isnan().all()
        assert torch.empty_like(torch.zeros(3, dtype=torch.bfloat16)).isnan().all()
        assert (torch.empty(2, dtype=torch.uint8) == 0xAA).all()
    for offset in (-1, 3):
        guards = Guards()
        x = guards.copy(torch.ones(3))
        guards.check()
        x.as_strided((1,), (1,), x.storage_offset() + offset).zero_()
        with pytest.raises(AssertionError, match="written"):
            guards.check()


def test_the_bound_lets_one_unit_pass_and_not_two():
    exact = torch.tensor([1.0, 1.5, 1000.0], dtype=torch.float64)
    for dtype in FLOATS:
        right = exact.to(dtype)
        unit = torch.finfo(dtype).eps * torch.tensor([1.0, 1.0, 512.0], dtype=torch.float64)
        assert_as_exact((exact + unit).to(dtype), right, exact)
        with pytest.raises(AssertionError):
            assert_as_exact((exact + 2 * unit).to(dtype), right, exact)
        with pytest.raises(AssertionError):
            assert_as_exact(right * torch.nan, right, exact)
