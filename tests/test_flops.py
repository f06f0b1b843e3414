"""Operation counts against counts by hand. A multiply-add is 2 operations."""

import pytest
import torch
from torch import nn

from ganfast.config import LossConfig, PenaltyConfig
from ganfast.engine import make_critic_step
from ganfast.flops import FlopCount, PeakBytes

N = 6


def flops(call):
    with FlopCount() as count:
        call()
    return count.total


def test_a_linear_layer_by_hand():
    layer = nn.Linear(7, 5)
    assert flops(lambda: layer(torch.randn(3, 7))) == 2 * 3 * 7 * 5


def test_a_convolution_by_hand():
    layer = nn.Conv2d(3, 4, (2, 5), stride=2, padding=1)  # 9 x 8 -> 5 x 3
    x = torch.randn(6, 3, 9, 8)
    assert layer(x).shape == (6, 4, 5, 3)
    assert flops(lambda: layer(x)) == 2 * 6 * 4 * 5 * 3 * 3 * 2 * 5


def test_a_transposed_convolution_by_hand():
    layer = nn.ConvTranspose2d(3, 4, 4, 2, 1)
    # Every input meets the whole kernel.
    assert flops(lambda: layer(torch.randn(2, 3, 5, 6))) == 2 * 2 * 3 * 5 * 6 * 4 * 4 * 4


def test_backward_costs_two_forwards_and_one_without_an_input_gradient():
    layer, x = nn.Conv2d(3, 4, 3), torch.randn(2, 3, 7, 7)
    forward = flops(lambda: layer(x))
    assert flops(lambda: layer(x).sum().backward()) == 2 * forward
    x.requires_grad_()
    assert flops(lambda: layer(x).sum().backward()) == 3 * forward


def test_only_what_runs_inside_is_counted():
    layer, x = nn.Linear(7, 5), torch.randn(3, 7)
    layer(x)
    with FlopCount() as count:
        pass
    layer(x)
    assert count.total == 0
    with FlopCount() as count:
        layer(x)
        layer(x) + x.sum()
    assert count.total == 2 * (2 * 3 * 7 * 5)


class PlainCritic(nn.Module):
    """Without biases: linear layers and a leaky ReLU."""

    def __init__(self, inputs, hidden):
        super().__init__()
        self.first = nn.Linear(inputs, hidden, bias=False)
        self.second = nn.Linear(hidden, 1, bias=False)

    def forward(self, x):
        return self.second(nn.functional.leaky_relu(self.first(x.flatten(1)), 0.2))[:, 0]


def step_flops(critic, penalty, shape, engine="reference"):
    real, fake = torch.randn(2, N, *shape).unbind(0)
    step = make_critic_step(
        critic, LossConfig("wasserstein"), PenaltyConfig(penalty), engine=engine, check=False
    )
    return flops(lambda: step(real, fake, eps=torch.rand(N), noise=torch.rand(N, *shape)))


def test_a_critic_step_on_linear_layers_by_hand():
    inputs, hidden = 20, 9
    a, b = 2 * N * inputs * hidden, 2 * N * hidden  # first and second layer, forward
    critic = PlainCritic(inputs, hidden)
    # Reals and fakes: forward, data gradient of the second layer, weight gradients of both.
    loss = 2 * ((a + b) + b + (a + b))
    assert step_flops(critic, "none", (1, 4, 5)) == loss
    # Interpolates: forward, data gradients down to the picture; then through that again: each of
    # its two products has two factors to differentiate by, except that the second layer's incoming
    # gradient is a constant 1; then the dead zeros that leaky ReLU's second derivative sends down
    # as a weight gradient of the first layer.
    by_weight, by_gradient, dead = a + b, a, a
    expected = loss + (a + b) + (a + b) + by_weight + by_gradient + dead
    assert step_flops(critic, "wgan-gp", (1, 4, 5)) == expected


@pytest.mark.parametrize(
    ("penalty", "forwards"),
    [("none", 6), ("wgan-gp", 12), ("dragan", 12), ("r1", 9), ("r1+r2", 12)],
)
def test_a_textbook_step_costs_about_as_many_forwards_as_its_passes(penalty, forwards):
    """Deep enough that the first layer, whose input needs no gradient, hardly counts."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 16, 3, 1, 1, bias=False), nn.LeakyReLU(0.2)]
    for _ in range(6):
        layers += [nn.Conv2d(16, 16, 3, 1, 1, bias=False), nn.LeakyReLU(0.2)]
    critic = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 64, 1, bias=False))
    shape = (2, 8, 8)
    forward = flops(lambda: critic(torch.randn(N, *shape)))
    assert step_flops(critic, penalty, shape) / forward == pytest.approx(forwards, rel=0.04)


# What is alive at once.


def test_peak_bytes_by_hand():
    x = torch.randn(1000)
    with PeakBytes() as peak:
        a = x + 1  # 1000
        b = a * 2  # 2000
        del a  # 1000
        c = b[:500]  # a view
        d = b + 1  # 2000
        del b
        e = d + 1  # 3000: the view keeps its whole storage
        del c, d, e
        x.add_(1)  # not made here
    assert peak.total == 4 * 3000


def test_peak_bytes_of_a_backward_pass_are_what_it_keeps():
    net = nn.Sequential(
        nn.Linear(70, 50, bias=False), nn.Tanh(), nn.Tanh(), nn.Linear(50, 1, bias=False)
    )
    x = torch.randn(30, 70)
    with PeakBytes() as peak, torch.no_grad():
        net(x)
    assert peak.total == 4 * 2 * 30 * 50  # a layer's input and output
    with PeakBytes() as peak:
        net(x)
    # Tanh keeps its output only: the first layer's is let go.
    assert peak.total == 4 * (3 * 30 * 50 + 30) - 4 * 30 * 50


def test_peak_bytes_change_no_result():
    net, x = nn.Linear(7, 5), torch.randn(3, 7)
    with PeakBytes():
        net(x).sum().backward()
    torch.testing.assert_close(net.weight.grad, x.sum(0).expand(5, 7))
