"""The explicit engine on critics as papers write them: walked whole, with no operation too many."""

from functools import cache

import pytest
import torch

from ganfast.engine import critic as engine_of_critics
from ganfast.engine import make_critic_step
from ganfast.engine.check import relative_error
from ganfast.engine.walking.trace import FrontEnd
from ganfast.flops import FlopCount
from tests.engine.networks import R3, Blur, Halved, Residual, Style2

N, WIDTH = 4, 8
CRITICS = {
    "residual": lambda dtype: Residual(WIDTH),
    "R3": lambda dtype: R3(WIDTH, groups=2, blocks=1, dtype=dtype),
    "style2": lambda dtype: Style2(WIDTH, 2 * WIDTH),
}
PENALTIES = {"r1+r2": "relativistic", "r1": "non-saturating", "wgan-gp": "wasserstein"}
FORWARDS = {"r1+r2": 8, "r1": 7, "wgan-gp": 10}
# Forward passes of N pictures in which an operation need not run. Rows without a penalty need no
# gradient of the pictures. A fixed filter has no weight gradient.
NO_PICTURES = {"r1+r2": 0, "r1": 1, "wgan-gp": 2}
NO_FILTERS = {"r1+r2": 2, "r1": 2, "wgan-gp": 3}

every_case = pytest.mark.parametrize(
    ("made", "penalty"), [(made, penalty) for made in CRITICS for penalty in PENALTIES]
)


recorded_once = cache(FrontEnd)


@pytest.fixture(autouse=True)
def _one_recording_for_all_steps_of_a_critic(monkeypatch):
    """To record takes longer than all else here."""
    monkeypatch.setattr(engine_of_critics, "FrontEnd", recorded_once)


@cache
def critic_of(made, dtype):
    torch.manual_seed(0)
    return CRITICS[made](dtype).to(dtype)


def given(dtype):
    g = torch.Generator().manual_seed(1)
    real, fake = (torch.rand(2, N, 3, 32, 32, generator=g) * 2 - 1).to(dtype)
    return {"real": real, "fake": fake, "eps": torch.rand(N, generator=g).to(dtype)}


def step_of(critic, penalty, engine):
    penalties = penalty.split("+")
    return make_critic_step(
        critic, PENALTIES[penalty], penalties, engine=engine, compile=False, check=False
    )


def gradients(critic, penalty, engine, inputs):
    step_of(critic, penalty, engine)(**inputs)
    return [p.grad.clone() for p in critic.parameters()]


def flops(call):
    with FlopCount() as count:
        call()
    return count.total


def shares(critic, pictures):
    """Which parts of a forward's operations read the pictures, and belong to fixed filters."""
    first, filters, whole = [], [], flops(lambda: critic(pictures))

    def hook(module, args, output):
        if isinstance(module, Blur | Halved):
            filters.append((module, args))
        elif not [*module.children()] and args[0].shape[1:2] == (3,):
            first.append((module, args))

    handles = [m.register_forward_hook(hook) for m in critic.modules()]
    critic(pictures)
    for handle in handles:
        handle.remove()
    assert first
    return [
        sum(flops(lambda m=m, a=a: m(*a)) for m, a in some) / whole for some in (first, filters)
    ]


def spared(critic, penalty, pictures):
    reads_pictures, fixed = shares(critic, pictures)
    return NO_PICTURES[penalty] * reads_pictures + NO_FILTERS[penalty] * fixed


@every_case
def test_a_step_of_a_papers_critic_is_walked_whole_exact_and_costs_what_it_has_to(made, penalty):
    critic, inputs = critic_of(made, torch.float64), given(torch.float64)
    with torch.no_grad():
        once = flops(lambda: critic(inputs["real"]))
        limit = FORWARDS[penalty] - spared(critic, penalty, inputs["real"])
    exact = gradients(critic, penalty, "reference", inputs)
    step = step_of(critic, penalty, "auto")
    step(**inputs)  # the first call records the forward
    assert flops(lambda: step(**inputs)) / once == pytest.approx(limit, rel=1e-3)
    assert step.choice.engine == "explicit"
    assert step.walked.tail is None
    assert relative_error([p.grad for p in critic.parameters()], exact) <= 1e-10


@every_case
def test_the_gradients_of_a_papers_critic_are_as_accurate_as_float32_allows(made, penalty):
    critic, inputs = critic_of(made, torch.float32), given(torch.float32)
    exact = gradients(critic, penalty, "reference", inputs)
    assert all(g.any() for g in exact if g.dim() > 1)
    assert relative_error(gradients(critic, penalty, "explicit", inputs), exact) <= 1e-5


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize(("kind", "width"), [(Residual, 128), (R3, 96), (Style2, 64)])
def test_at_a_realistic_width_what_is_spared_is_below_one_percent(kind, width, penalty):
    with torch.device("meta"):
        critic, pictures = kind(width), torch.empty(1, 3, 32, 32)
        assert spared(critic, penalty, pictures) <= 0.01 * FORWARDS[penalty]
