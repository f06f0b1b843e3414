"""What may happen to a critic after its step was made: nothing of it may end in wrong updates."""

import pytest
import torch
from torch import nn

from ganfast.config import PenaltyConfig
from ganfast.engine import make_critic_step
from ganfast.errors import InputError


def critic_of(*layers: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.LeakyReLU(0.2), *layers, nn.Flatten(), nn.Linear(128, 1)
    )


def pictures(n: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    real, fake = (torch.rand(2, n, 3, 8, 8, generator=g) * 2 - 1).unbind(0)
    return real, fake


def gradients_of(critic: nn.Module) -> list[torch.Tensor]:
    """As a step that is made only now finds them."""
    step = make_critic_step(critic, "hinge", "r1", engine="reference")
    step(*pictures())
    return [p.grad.clone() for p in critic.parameters() if p.requires_grad]


CHANGES = {
    "laid out anew": lambda critic: critic.to(memory_format=torch.channels_last),
    "another layer": lambda critic: critic.__setitem__(0, nn.Conv2d(3, 8, 3, 2, 1)),
    "frozen": lambda critic: critic[0].requires_grad_(False),
}


@pytest.mark.parametrize("engine", ["explicit", "autograd", "reference"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_critic_that_changes_after_its_step_was_made_still_gets_its_gradients(change, engine):
    critic = critic_of()
    step = make_critic_step(critic, "hinge", "r1", engine=engine, compile=False)
    step(*pictures())
    CHANGES[change](critic)
    step(*pictures())
    flat = step.gradients.flat.untyped_storage().data_ptr()
    found = [p.grad.clone() for p in critic.parameters() if p.requires_grad]
    for p in critic.parameters():
        if p.requires_grad:
            assert p.grad.stride() == p.stride()
            assert p.grad.untyped_storage().data_ptr() == flat
    for ours, theirs in zip(found, gradients_of(critic), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_dropout_switched_on_after_the_step_was_made_drops():
    critic = critic_of(nn.Dropout(0.5)).eval()
    step = make_critic_step(critic, "hinge", "r1")
    assert step.choice.engine == "explicit"
    step(*pictures())
    still = step.gradients.flat.clone()
    critic.train()
    step(*pictures())
    assert not torch.allclose(step.gradients.flat, still)


@pytest.mark.parametrize("layout", ["channels_last_3d", "transposed"])
def test_gradients_lie_as_their_parameters_do_in_any_dense_layout(layout):
    if layout == "transposed":
        net = nn.Linear(5, 3)
        net.weight = nn.Parameter(torch.randn(5, 3).t())
    else:
        net = nn.Conv3d(2, 4, 3).to(memory_format=torch.channels_last_3d)
    from ganfast.engine.gradients import FlatGradients

    gradients = FlatGradients(net)
    gradients.fill([torch.randn(p.shape) for p in net.parameters()])
    assert [p.grad.stride() for p in net.parameters()] == [p.stride() for p in net.parameters()]


def test_the_same_labels_twice_and_then_others_are_not_taken_for_the_same():
    """A trace that sees one tensor in two places must not tie them."""
    from ganfast.engine.compiled import compiled

    calls = []

    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return a * 2 + b

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch._inductor, "compile", lambda graph, _: graph)
        run = compiled(product)
        a, b = torch.randn(3), torch.randn(3)
        assert torch.equal(run(a, a), a * 2 + a)
        assert torch.equal(run(a, b), a * 2 + b)
    assert len(calls) == 1  # one trace for both


def refused(critic: nn.Module, *given, match: str, penalty="wgan-gp", **named) -> None:
    with pytest.raises(InputError, match=match) as said:
        make_critic_step(critic, "hinge", penalty)(*given, **named)
    assert "\n" not in str(said.value)


def test_what_cannot_be_a_step_is_one_sentence():
    real, fake = pictures()
    refused(critic_of(), real, fake[:2], match=r"reals are \(4, 3, 8, 8\) and fakes \(2, 3, 8, 8\)")
    refused(
        critic_of().requires_grad_(False), real, fake, match="no parameter that requires a gradient"
    )
    half = critic_of()
    half[0].to(torch.bfloat16)
    refused(half, real, fake, match="parameters of .*bfloat16.*; expected one type")
    lazy = [PenaltyConfig("r1", interval=16), PenaltyConfig("wgan-gp")]
    refused(critic_of(), real, fake, match="penalties at intervals", penalty=lazy)
    wants = critic_of()
    wants.takes_labels = True
    refused(wants, real, fake, match="give real_labels")


def test_points_of_two_axes_are_interpolated_too():
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Linear(5, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))
    real, fake = torch.randn(2, 6, 5).unbind(0)
    eps = torch.rand(6)
    make_critic_step(critic, "wasserstein", "wgan-gp", engine="reference")(real, fake, eps=eps)
    expected = [p.grad.clone() for p in critic.parameters()]
    step = make_critic_step(critic, "wasserstein", "wgan-gp")
    step(real, fake, eps=eps)
    assert step.choice.engine == "explicit"
    for p, wanted in zip(critic.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, wanted, rtol=1e-4, atol=1e-6)
