"""The explicit engine on Triton kernels: the same gradients, as many launches as there are layers.

Runs on CUDA, and under triton's interpreter, where `test_kernels_interpreted.py` starts it.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ganfast.bench import kernels as bench
from ganfast.commands.bench.kernels import KERNELS
from ganfast.engine import make_critic_step
from ganfast.engine.check import full_float32, relative_error
from ganfast.engine.critic import CriticStep
from ganfast.kernels._triton import interpreted, launches
from ganfast.models.dcgan import dcgan_critic
from ganfast.models.parts import he_init, spectral
from tests.depth import in_turn
from tests.engine.networks import EqualConv

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(
    DEVICE == "cpu" and not interpreted(),
    reason="needs CUDA, or TRITON_INTERPRET=1 before triton is imported",
)


@pytest.fixture(autouse=True)
def all_bits():
    """A GPU shortens the factors of float32 convolutions unless it is told not to."""
    with full_float32():
        yield


N, LAYERS = 4, 2  # layers: convolutions with a leaky ReLU behind them


def steps(
    monkeypatch, penalty, conditional="no", norm="none", autocast=None, layout=torch.channels_last
):
    """(explicit on the kernels, reference without them, both of one critic) with what they take."""
    torch.manual_seed(0)
    critic = dcgan_critic(16, 1, 8, norm, 10, conditional).to(DEVICE, memory_format=layout)
    he_init(critic)
    if norm == "spectral":
        spectral(critic)
    given = {name: torch.rand(N, 1, 16, 16, device=DEVICE) * 2 - 1 for name in ("real", "fake")}
    given |= {"eps": torch.rand(N, device=DEVICE), "noise": torch.rand(N, 1, 16, 16, device=DEVICE)}
    if conditional != "no":
        given["real_labels"] = torch.arange(N, device=DEVICE)
    monkeypatch.setenv("GANFAST_KERNELS", "triton")
    ours = make_critic_step(
        critic, "hinge", penalty, autocast, "explicit", compile=False, check=False
    )
    launches.clear()
    stats = ours(**given)
    gradients, counted = [view.clone() for view in ours.gradients.views], dict(launches)
    monkeypatch.setenv("GANFAST_KERNELS", "reference")
    # Eval: no second power iteration.
    reference = make_critic_step(critic.eval(), "hinge", penalty, None, "reference")
    return gradients, stats, counted, reference, reference(**given)


def assert_same(gradients, stats, reference: CriticStep, expected, tolerance) -> None:
    assert relative_error(gradients, reference.gradients.views) < tolerance
    for name, value in expected.items():
        torch.testing.assert_close(stats[name], value, rtol=tolerance, atol=tolerance)


PENALTIES = ["none", "wgan-gp", "dragan", "r1", "r2", "r1+r2", (("wgan-gp", "r1"),)]
LAYOUTS = [torch.channels_last, torch.contiguous_format]


@pytest.mark.parametrize(
    ("penalty", "conditional", "layout"),
    in_turn(PENALTIES, ["no", "projection", "auxiliary"], LAYOUTS),
)
def test_gradients_are_those_of_the_reference(monkeypatch, penalty, conditional, layout):
    gradients, stats, _, reference, expected = steps(
        monkeypatch, penalty, conditional, layout=layout
    )
    assert_same(gradients, stats, reference, expected, 1e-5)


@pytest.mark.parametrize(
    ("norm", "penalty"), in_turn(["layer", "instance", "spectral"], ["wgan-gp", "r1+r2"])
)
def test_normalised_critics_too(monkeypatch, penalty, norm):
    gradients, stats, _, reference, expected = steps(monkeypatch, penalty, norm=norm)
    assert_same(gradients, stats, reference, expected, 1e-5)


@pytest.mark.parametrize("penalty", ["wgan-gp", "r1"])
def test_bf16_rounds_a_little(monkeypatch, penalty):
    gradients, _, _, reference, _ = steps(monkeypatch, penalty, autocast=torch.bfloat16)
    # The interpreter cuts bits off where hardware rounds.
    assert 1e-4 < relative_error(gradients, reference.gradients.views) < 0.06


class Made(nn.Module):
    """Convolutions with weights that the forward makes of a parameter, or that are a buffer."""

    def __init__(self, buffer: bool) -> None:
        super().__init__()
        self.first, self.buffer = EqualConv(1, 8, 3), buffer
        self.register_buffer("fixed", torch.randn(8, 8, 3, 3) / 9)
        self.bias, self.head = nn.Parameter(torch.randn(8)), nn.Linear(8 * 8 * 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.first(x), 0.2)
        if self.buffer:
            h = F.leaky_relu(F.conv2d(h, self.fixed, self.bias, padding=1), 0.2)
        return self.head(h.flatten(1))


@pytest.mark.parametrize("buffer", [False, True])
def test_a_critic_that_makes_its_weights_has_the_kernels_too(buffer):
    torch.manual_seed(0)
    critic = Made(buffer).to(DEVICE)
    given = {name: torch.rand(N, 1, 8, 8, device=DEVICE) * 2 - 1 for name in ("real", "fake")}
    given |= {"eps": torch.rand(N, device=DEVICE)}
    ours = make_critic_step(critic, "hinge", "wgan-gp", None, "explicit", False, check=False)
    launches.clear()
    ours(**given)
    assert launches["_forward_kernel"] == 1 + buffer
    exact = copy.deepcopy(critic).double()
    reference = make_critic_step(exact, "hinge", "wgan-gp", None, "reference", False)
    reference(**{name: x.double() for name, x in given.items()})
    assert relative_error([ours.gradients.flat], [reference.gradients.flat]) < 1e-5


class Copies(TorchDispatchMode):
    """Shapes of what `copy_` writes."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.copy_.default:
            self.shapes.append(tuple(args[0].shape))
        return function(*args, **(kwargs or {}))


def test_the_kernel_writes_a_tangent_where_the_weight_gradient_reads_it(monkeypatch):
    with Copies() as copies:
        steps(monkeypatch, "wgan-gp")
    maps = [shape for shape in copies.shapes if len(shape) == 4 and shape[0] == N]
    assert set(maps) <= {(N, 1, 16, 16)}  # pictures, which no kernel makes


def test_kernels_agree_with_their_definitions_where_the_benchmark_times_them(monkeypatch):
    monkeypatch.setattr(bench, "_SMALL_LAYERS", [(2, 8, 6, 6)])
    monkeypatch.setattr(bench, "_SMALL_PICTURES", [(2, 3, 8, 8)])
    monkeypatch.setattr(bench, "_SMALL_ROWS", 8)
    monkeypatch.setattr(bench, "_SMALL_WEIGHTS", 5000)
    seen = []
    for case in bench.cases(torch.device(DEVICE), small=True):
        before = launches.total()
        bench._agree(case, {name: case.variants[name] for name in ("triton", "eager")})
        assert launches.total() > before
        seen.append(case.kernel)
    assert set(seen) == set(KERNELS)


def test_launches_are_counted_by_layers(monkeypatch):
    """A forward, a delta and a tangent kernel a layer for all rows; one for the penalty."""
    _, _, counted, _, _ = steps(monkeypatch, "wgan-gp")
    assert counted == {
        "_forward_kernel": LAYERS,
        "_delta_columns_kernel": LAYERS,
        "_tangent_kernel": LAYERS,
        "_whole_kernel": 1,
    }
    _, _, counted, _, _ = steps(monkeypatch, "r1+r2", layout=torch.contiguous_format)
    assert counted["_whole_kernel"] == 2  # reals and fakes
    _, _, counted, _, _ = steps(monkeypatch, "none")
    assert counted == {"_forward_kernel": LAYERS, "_delta_columns_kernel": LAYERS}
