"""Adam, clipping, average and short copy: five steps against torch's optimizer in float64."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

import ganfast.kernels.adam_ema as module
from ganfast.kernels._triton import launch
from ganfast.kernels.adam_ema import adam_ema, adam_ema_reference, adam_ema_triton, adam_rates
from tests.kernels.test_kernels_interpreted import (
    DEVICE,
    assert_as_exact,
    assert_dispatch,
    assert_op,
    launching,
    on_kernels,
    poisoned_memory,
    randn,
)

BETAS = [(0.0, 0.9), (0.5, 0.999), (0.0, 0.99)]
LR, DECAY, EPS, STEPS = 3e-3, 0.99, 1e-8, 5


def gradient(numel, step):
    """Over five orders of magnitude, and exactly 0 for some: there only eps keeps 0 / 0 away."""
    g = randn(numel, seed=step) * 10.0 ** randn(numel, seed=100)
    g[7::10] = 0
    return g


@dataclass
class State:
    p: Tensor
    m: Tensor
    v: Tensor
    average: Tensor | None
    low: Tensor | None

    @classmethod
    def start(cls, numel, average=True, low=True, make=lambda x: x):
        p = randn(numel, seed=50).to(DEVICE)
        return cls(
            make(p.clone()),
            make(torch.zeros_like(p)),
            make(torch.zeros_like(p)),
            make(p.clone()) if average else None,
            make(torch.full_like(p, 7, dtype=torch.bfloat16)) if low else None,
        )

    def step(self, function, g, scalars, betas, eps=EPS, limit=0.0, skip=None, second=None):
        arguments = self.p, g, self.m, self.v, *scalars, *betas, eps, limit
        function(*arguments, self.average, self.low, skip, second)


def scalars_of(step, lr=LR, decay=DECAY):
    """What a step reads from the device; ``step`` counts from 1."""
    before = torch.tensor(step - 1, dtype=torch.float32, device=DEVICE)
    rates = (torch.tensor(value, dtype=torch.float64, device=DEVICE) for value in (lr, decay))
    return before, *rates


def units(found, exact):
    """Distance of a float32 number from an exact one, in units in the last place."""
    gap = abs(np.longdouble(found) - np.longdouble(exact))
    return float(gap / np.spacing(np.float32(exact)))


def exact_steps(numel, betas, eps=EPS, limit=0.0):
    """p, m, v and average after five steps of torch's own Adam."""
    p = torch.nn.Parameter(randn(numel, seed=50).double())
    average = p.detach().clone()
    optimizer = torch.optim.Adam([p], lr=LR, betas=betas, eps=eps)
    for step in range(1, STEPS + 1):
        p.grad = gradient(numel, step).double()
        optimizer.step()
        if limit:
            p.data.clamp_(-limit, limit)
        average += (1 - DECAY) * (p.detach() - average)
    state = optimizer.state[p]
    return p.detach(), state["exp_avg"], state["exp_avg_sq"], average


def assert_moments(state, m, v):
    """By element: one may be 10^-10 of another; a mean is as exact as its largest gradient."""
    torch.testing.assert_close(state.v.cpu().double(), v, rtol=1e-6, atol=1e-30)
    largest = torch.stack(
        [gradient(len(m), step).abs().double() for step in range(1, STEPS + 1)]
    ).amax(0)
    assert ((state.m.cpu().double() - m).abs() <= 3e-7 * largest).all()


def assert_right(numel, betas, average=True, low=True, eps=EPS, limit=0.0):
    with poisoned_memory() as guards, launching(_rates_kernel=STEPS, _adam_kernel=STEPS):
        found = State.start(numel, average, low, guards.copy)
        scalars = tuple(map(guards.copy, scalars_of(1)))
        for step in range(1, STEPS + 1):
            g = guards.copy(gradient(numel, step).to(DEVICE))
            given = g.clone()
            found.step(module.adam_ema_triton, g, scalars, betas, eps, limit)
            assert torch.equal(g, given)
            assert [x.item() for x in scalars] == [step, LR, DECAY]
    own, scalars = State.start(numel), scalars_of(1)
    for step in range(1, STEPS + 1):
        g = gradient(numel, step).to(DEVICE)
        own.step(adam_ema_reference, g, scalars, betas, eps, limit)
    p, m, v, mean = exact_steps(numel, betas, eps, limit)
    assert_as_exact(found.p, own.p.cpu(), p)
    assert_moments(found, m, v)
    if average:
        assert_as_exact(found.average, own.average.cpu(), mean)
    if low:
        assert_as_exact(found.low, own.low.cpu(), found.p.cpu().double())


@on_kernels
@pytest.mark.parametrize("betas", BETAS, ids=str)
@pytest.mark.parametrize("numel", [1, 1500, 4096])
def test_five_steps_are_those_of_torchs_adam_in_float64(numel, betas):
    assert_right(numel, betas)


@on_kernels
@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("low", [True, False])
def test_average_and_copy_may_each_be_missing(average, low):
    assert_right(1500, (0.5, 0.999), average, low)


@on_kernels
def test_without_momentum_the_first_moment_is_the_gradient_to_the_bit():
    """As torch's: m + (g - m) would be off by a last place of the old m, perhaps far larger."""
    state = State.start(1500)
    for step in (1, 2):
        g = gradient(1500, step).to(DEVICE)
        state.step(adam_ema_triton, g, scalars_of(step), (0.0, 0.9))
        assert torch.equal(state.m, g)


@on_kernels
@pytest.mark.parametrize("average", [True, False])
def test_weights_are_clipped_before_they_are_averaged_and_copied(average):
    assert_right(1500, (0.5, 0.999), average, limit=0.5)  # half of the weights are beyond


@on_kernels
def test_clipping_keeps_what_is_not_a_number():
    """The divergence guard looks at the weights: a limit in the place of NaN would hide it."""
    state, g = State.start(70), gradient(70, 1).to(DEVICE)
    g[3] = torch.nan
    state.step(adam_ema_triton, g, scalars_of(1), (0.0, 0.9), limit=0.01)
    for x in (state.p, state.average, state.low):
        assert x.isnan().nonzero().flatten().tolist() == [3]
    assert state.p.abs().nan_to_num().max().item() == pytest.approx(0.01, rel=1e-6)


@pytest.mark.parametrize(
    "function", [adam_ema_reference, pytest.param(adam_ema_triton, marks=on_kernels)]
)
def test_a_step_to_be_skipped_changes_nothing_and_is_not_counted(function):
    plain, state = State.start(1500), State.start(1500)
    counts, skip = [scalars_of(1) for _ in range(2)], torch.zeros((), device=DEVICE)
    for step, skipped in enumerate((0.0, 1.0, 1.0, 0.0)):
        g = gradient(1500, step).to(DEVICE)
        if skipped:
            g[7] = torch.inf
        else:
            plain.step(function, g, counts[0], (0.5, 0.9), limit=0.5)
        state.step(function, g, counts[1], (0.5, 0.9), limit=0.5, skip=skip.fill_(skipped))
    assert [scalars[0].item() for scalars in counts] == [2, 2]
    for name in ("p", "m", "v", "average", "low"):
        assert torch.equal(getattr(state, name), getattr(plain, name))


@on_kernels
@pytest.mark.parametrize("betas", BETAS, ids=str)
@pytest.mark.parametrize("step", [1, 2, 3, 10, 1000, 10**5, 10**6, 2**24 - 1])
@pytest.mark.parametrize("scheduled", [False, True])
def test_the_rates_of_a_step_are_the_definitions_to_the_last_place(step, betas, scheduled):
    scalars, rates = scalars_of(step), torch.empty(5, device=DEVICE)
    second = torch.tensor(betas[1], dtype=torch.float64, device=DEVICE)
    beta1, beta2 = betas[0], 0.3 if scheduled else betas[1]
    logs = math.log2(beta1) if beta1 else -math.inf, beta2, math.log2(beta2)
    arguments = *scalars, rates, second, rates, *logs, False, scheduled
    launch(module._rates_kernel, (1,), rates.device, *arguments, num_warps=1)
    assert scalars[0].item() == step
    powers = [np.longdouble(b) ** step for b in betas]
    exact = LR / (1 - powers[0]), 1 / np.sqrt(1 - powers[1]), DECAY, betas[1], 1 - betas[1]
    # Half a unit is what rounding to float32 costs.
    assert max(map(units, rates.tolist(), exact)) < 0.501


@on_kernels
def test_eps_is_added_to_the_root():
    """As large as the roots, it shows if misplaced: in the root, or before the bias correction."""
    assert_right(1500, (0.5, 0.999), eps=0.1)


@on_kernels
def test_a_gradient_of_zero_moves_nothing_and_stays_finite():
    state = State.start(1500)
    before = state.p.clone()
    state.step(adam_ema_triton, torch.zeros_like(state.p), scalars_of(1), (0.0, 0.9))
    assert torch.equal(state.p, before)
    assert torch.equal(state.average, before)
    assert (state.m == 0).all()
    assert (state.v == 0).all()


@on_kernels
def test_what_changes_from_step_to_step_is_read_from_the_device():
    """A captured graph replays with the same arguments: only the scalars' memory may differ."""
    g, scalars = gradient(1500, 1).to(DEVICE), scalars_of(1)
    moved, kept = [], []
    for lr, decay in ((LR, DECAY), (2 * LR, DECAY), (LR, 0.5), (0.0, DECAY)):
        for x, value in zip(scalars, (0, lr, decay), strict=True):
            x.fill_(value)
        state = State.start(1500)
        before = state.p.double()
        state.step(adam_ema_triton, g, scalars, (0.0, 0.9))
        moved.append(state.p.double() - before)
        kept.append(state.average.double() - before)
    still = {"rtol": 1e-2, "atol": 1e-6}  # differences of float32 numbers of size 1
    torch.testing.assert_close(moved[1], 2 * moved[0], **still)
    assert torch.equal(moved[2], moved[0])
    assert (moved[3] == 0).all()
    torch.testing.assert_close(kept[0], 0.01 * moved[0], **still)
    torch.testing.assert_close(kept[2], 0.5 * moved[0], **still)
    assert moved[0].abs().max() > LR / 2


@on_kernels
@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_a_decay_of_one_keeps_the_average_and_of_zero_follows(decay):
    state = State.start(1500)
    state.average.add_(1)
    before = state.average.clone()
    state.step(
        adam_ema_triton, gradient(1500, 1).to(DEVICE), scalars_of(1, decay=decay), (0.0, 0.9)
    )
    torch.testing.assert_close(state.average, before if decay else state.p, rtol=0, atol=1e-6)
    assert decay == 0.0 or torch.equal(state.average, before)


@on_kernels
def test_without_parameters_a_step_is_counted_and_nothing_else():
    with launching(_rates_kernel=1):
        State.start(0).step(
            adam_ema_triton, torch.empty(0, device=DEVICE), scalars_of(1), (0.0, 0.9)
        )


@on_kernels
@pytest.mark.parametrize("given", [(True, True), (False, True), (False, False)], ids=str)
def test_the_operation_keeps_its_schema_and_its_fake(given):
    state = State.start(70, *given)
    g = gradient(70, 1).to(DEVICE)
    tensors = state.p, g, state.m, state.v, *scalars_of(1)
    skip = torch.zeros((), device=DEVICE) if all(given) else None
    assert_op(module._op, *tensors, 0.5, 0.9, EPS, 0.1, state.average, state.low, skip, None)


@pytest.mark.parametrize(
    "function", [adam_ema_reference, pytest.param(adam_ema_triton, marks=on_kernels)]
)
def test_a_scheduled_beta2_is_that_of_torchs_adam_whose_betas_change(function):
    p = torch.nn.Parameter(randn(1500, seed=50).double())
    optimizer = torch.optim.Adam([p], lr=LR, betas=(0.5, 0.9), eps=EPS)
    own, scalars = State.start(1500), scalars_of(1)
    for step, beta2 in zip(range(1, STEPS + 1), (0.9, 0.93, 0.95, 0.98, 0.99), strict=True):
        p.grad = gradient(1500, step).double()
        optimizer.param_groups[0]["betas"] = (0.5, beta2)
        optimizer.step()
        second = torch.tensor(beta2, dtype=torch.float64, device=DEVICE)
        # The fixed beta2 is another one, which must not be taken.
        g = gradient(1500, step).to(DEVICE)
        own.step(function, g, scalars, (0.5, 0.1), second=second)
    state = optimizer.state[p]
    assert_moments(own, state["exp_avg"], state["exp_avg_sq"])
    torch.testing.assert_close(own.p.cpu().double(), p.detach(), rtol=1e-6, atol=1e-6)


# Rates, the reference, and which of the two runs.


@pytest.mark.parametrize("betas", BETAS, ids=str)
def test_rates_are_the_corrections_of_adam(betas):
    for step in (1, 2, 1000):
        for kind in (torch.int64, torch.float32):
            rates = adam_rates(torch.tensor(step, dtype=kind), *scalars_of(1)[1:], *betas)
            expected = [LR / (1 - betas[0] ** step), (1 - betas[1] ** step) ** -0.5, DECAY]
            expected += [betas[1], 1 - betas[1]]
            assert rates.tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("betas", BETAS, ids=str)
@pytest.mark.parametrize("eps", [EPS, 0.1])
def test_the_reference_is_torchs_adam(betas, eps):
    own, scalars = State.start(1500), scalars_of(1)
    for step in range(1, STEPS + 1):
        own.step(adam_ema_reference, gradient(1500, step).to(DEVICE), scalars, betas, eps)
    assert scalars[0] == STEPS
    p, m, v, average = exact_steps(1500, betas, eps)
    assert_moments(own, m, v)
    torch.testing.assert_close(own.p.cpu().double(), p, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(own.average.cpu().double(), average, rtol=1e-6, atol=1e-6)
    assert torch.equal(own.low, own.p.bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_reference_or_kernel(monkeypatch, dtype):
    """The kernel knows float32 only."""

    def stepped(function):
        def run(p, g, *scalars):
            scalars = [x.clone() for x in scalars]
            state = State(
                p.clone(),
                torch.zeros_like(p),
                torch.zeros_like(p),
                p.clone(),
                torch.zeros_like(p, dtype=torch.bfloat16),
            )
            state.step(function, g, scalars, (0.5, 0.9))
            return state.p, state.m, state.v, scalars[0], state.average, state.low

        return run

    p, g = randn(1500, dtype=dtype), gradient(1500, 1).to(dtype)
    scalars = [x.cpu() for x in scalars_of(1)]
    kernels = ("_rates_kernel", "_adam_kernel") if dtype == torch.float32 else ()
    runs = stepped(adam_ema), stepped(adam_ema_reference)
    assert_dispatch(monkeypatch, *runs, p, g, *scalars, kernel=dict.fromkeys(kernels, 1))
