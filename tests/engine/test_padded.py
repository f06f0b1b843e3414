"""Convolutions of pictures whose channels are padded with zeros, as half precision on a GPU may
take them. Here the choice is forced or its clock pretended."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from ganfast.engine import convolution, lean
from ganfast.engine.compiled import compiled
from ganfast.engine.convolution import CHANNELS, Convolution, may_pad
from ganfast.engine.lean import Convolve, ThinConvolutions

SHAPE = Convolution((2, 2), (1, 1), (1, 1), 1)


@pytest.fixture
def padding(monkeypatch):
    """Whatever has few channels is padded, and goes no other way. Yields what was padded."""
    seen, real = [], convolution.padded
    for module in (convolution, lean):
        monkeypatch.setattr(module, "may_pad", lambda x, few, groups: few <= 3 and groups == 1)
        monkeypatch.setattr(module, "is_thin", lambda *_: False)
    monkeypatch.setattr(convolution, "is_small", lambda *_: False)
    monkeypatch.setattr(convolution, "is_faster", lambda *_: True)
    monkeypatch.setattr(convolution, "padded", lambda x: (seen.append(x.shape), real(x))[1])
    return seen


def pictures(channels):
    torch.manual_seed(0)
    x = torch.randn(2, channels, 9, 8, dtype=torch.float64, requires_grad=True)
    w = torch.randn(5, channels, 4, 4, dtype=torch.float64, requires_grad=True)
    return x, w, torch.randn(5, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("channels", [1, 3])
def test_values_and_derivatives_of_both_orders_are_those_without_zeros(channels, padding):
    """An odd side: its last row is reached by no whole stride."""
    x, w, b = pictures(channels)

    def derivatives(y):
        (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return [y, dx, *torch.autograd.grad(dx.square().sum(), (x, w, b))]

    exact = derivatives(F.conv2d(x, w, b, 2, 1))
    assert not padding
    found = derivatives(Convolve.apply(x, w.view_as(w), b.view_as(b), SHAPE))
    assert {shape[1] for shape in padding} == {channels}
    assert len(padding) >= 6, "forward, data gradient and weight gradient, of both orders"
    for mine, theirs in zip(found, exact, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("channels", [1, 3])
def test_layers_of_generator_and_critic_are_padded_too(channels, padding):
    generator = nn.ConvTranspose2d(5, channels, 4, 2, 1, output_padding=1).double()
    critic = nn.Conv2d(channels, 4, 4, 2, 1).double()
    x = torch.randn(2, 5, 4, 3, dtype=torch.float64)
    parameters = [*generator.parameters(), *critic.parameters()]

    def gradients():
        return torch.autograd.grad(critic(generator(x)).square().sum(), parameters)

    exact = gradients()
    with ThinConvolutions(generator), ThinConvolutions(critic):
        found = gradients()
    assert padding
    for mine, theirs in zip(found, exact, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("faster", [True, False])
def test_both_are_timed_once_a_shape_on_tensors_with_numbers(faster, monkeypatch):
    """Also while a graph is recorded, whose tensors have none."""
    timed = []

    def clock(run):
        y = run()
        assert not isinstance(y, FakeTensor)
        timed.append(tuple(y.shape))
        return 2.0 if (len(timed) % 2 == 1) == faster else 1.0

    monkeypatch.setattr(convolution, "may_pad", lambda x, few, groups: True)
    monkeypatch.setattr(convolution, "_milliseconds", clock)
    monkeypatch.setattr(convolution, "_faster", {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    seen = []

    def lower(graph, _):
        seen.append(str(graph.graph))
        return graph

    monkeypatch.setattr("torch._inductor.compile", lower)
    x, w, _ = (t.detach() for t in pictures(3))
    exact = F.conv2d(x, w, None, 2, 1)
    run = compiled(SHAPE.forward)
    for _ in range(2):
        torch.testing.assert_close(run(x, w), exact, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(SHAPE._replace().forward(x, w), exact, rtol=1e-10, atol=1e-10)
    assert timed == [(2, 5, 4, 4)] * 2
    assert [("constant_pad_nd" in graph) for graph in seen] == [faster]
    SHAPE.forward(x[:1], w)
    assert len(timed) == 4


def test_nothing_is_timed_in_a_capture(monkeypatch):
    monkeypatch.setattr(convolution, "_faster", {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert not convolution.is_faster(SHAPE._forward, *pictures(3)[:2])
    assert not convolution._faster


def test_only_where_libraries_may_choose_by_time_and_not_where_work_is_counted(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    assert not may_pad(torch.zeros(2, 3, 8, 8, dtype=torch.bfloat16), 3, 1)
    with FakeTensorMode():
        assert not may_pad(torch.zeros(2, 3, 8, 8, dtype=torch.bfloat16, device="cuda"), 3, 1)


def test_the_copy_that_only_gives_a_shape_lies_as_the_padded_one():
    x = torch.randn(2, 1, 5, 4)
    more, empty = convolution.padded(x), convolution.unwritten(x)
    assert more.shape == empty.shape == (2, CHANNELS, 5, 4)
    assert more.stride() == empty.stride()
    assert torch.equal(more[:, :1], x)
    assert not more[:, 1:].any()
