"""The flat optimizer against torch's in float64: every layout, and state that stays in place."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ganfast.config import OptimConfig
from ganfast.engine.gradients import FlatGradients, _copy_together
from ganfast.errors import InputError, RunError
from ganfast.training.optim import FlatAdam
from tests.kernels.test_kernels_interpreted import DEVICE, RUNS, launching

OPTIM = OptimConfig(beta1=0.5, beta2=0.9)


def net(dtype=torch.float32, memory_format=torch.channels_last):
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.Conv2d(5, 4, 1, bias=False), nn.BatchNorm2d(4)
    ).to(dtype)
    return module.to(memory_format=memory_format)


def gradients(module, step):
    generator = torch.Generator().manual_seed(step)
    return [
        torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        for p in module.parameters()
    ]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("flat", [True, False])
def test_steps_and_average_are_those_of_torch_in_float64(flat, memory_format):
    module, exact = net(memory_format=memory_format), net(torch.float64)
    average, mean = copy.deepcopy(module), copy.deepcopy(exact)
    optimizer = FlatAdam(module, 0.01, OPTIM, average)
    plain = torch.optim.Adam(exact.parameters(), 0.01, (0.5, 0.9))
    buffer = FlatGradients(module)
    for step, (rate, decay) in enumerate(((0.01, 0.9), (0.02, 0.5), (0.03, 0.0), (0.01, 0.99))):
        found = gradients(module, step)
        if flat:
            buffer.fill(found)
        else:
            for p, g in zip(module.parameters(), found, strict=True):
                p.grad = g
        optimizer.step(
            torch.tensor(rate, dtype=torch.float64), torch.tensor(decay, dtype=torch.float64)
        )
        for p, g in zip(exact.parameters(), found, strict=True):
            p.grad = g.double()
        plain.param_groups[0]["lr"] = rate
        plain.step()
        with torch.no_grad():
            for a, p in zip(mean.parameters(), exact.parameters(), strict=True):
                a.lerp_(p, 1 - decay)
    for ours, theirs in ((module, exact), (average, mean)):
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(p.double(), q, rtol=1e-5, atol=1e-6)
    for p, q in zip(optimizer.parameters, plain.param_groups[0]["params"], strict=True):
        for name in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(
                optimizer.state[p][name].double(), plain.state[q][name], rtol=1e-5, atol=1e-6
            )
        assert optimizer.state[p]["step"].item() == 4


def test_parameters_stay_themselves_with_their_values_and_layout():
    module = net()
    before = {name: (p, p.detach().clone(), p.stride()) for name, p in module.named_parameters()}
    FlatAdam(module, 0.01, OPTIM)
    for name, p in module.named_parameters():
        same, value, stride = before[name]
        assert p is same
        assert torch.equal(p, value)
        assert p.stride() == stride
    starts = sorted(p.data_ptr() for p in module.parameters())
    assert starts[-1] - starts[0] < 4 * sum(p.numel() for p in module.parameters())  # one buffer


def test_a_loaded_state_lies_where_the_old_one_lay_and_goes_on_alike():
    module, again = net(), net()
    optimizer, fresh = FlatAdam(module, 0.01, OPTIM), FlatAdam(again, 0.01, OPTIM)
    for step in range(3):
        FlatGradients(module).fill(gradients(module, step))
        optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    places = [t.data_ptr() for p in fresh.parameters for t in fresh.state[p].values()]
    fresh.load_state_dict(saved)
    again.load_state_dict(module.state_dict())
    assert [t.data_ptr() for p in fresh.parameters for t in fresh.state[p].values()] == places
    for owner, one in ((module, optimizer), (again, fresh)):
        FlatGradients(owner).fill(gradients(owner, 9))
        one.step()
    assert torch.equal(optimizer.flat, fresh.flat)
    fresh.load_state_dict({"state": {}})
    assert all(not t.any() for p in fresh.parameters for t in fresh.state[p].values())


@pytest.mark.parametrize("lacking", [0, 4])
def test_a_parameter_without_state_leaves_the_number_of_steps_to_the_others(lacking):
    """torch's Adam keeps none of a parameter that never had a gradient."""
    module, other = net(), net()
    plain, fresh = torch.optim.Adam(other.parameters()), FlatAdam(module, 0.01, OPTIM)
    FlatGradients(other).fill(gradients(other, 0))
    list(other.parameters())[lacking].grad = None
    plain.step()
    FlatGradients(module).fill(gradients(module, 1))
    fresh.step()
    fresh.load_state_dict(plain.state_dict())
    for k, (ours, theirs) in enumerate(zip(fresh.parameters, other.parameters(), strict=True)):
        assert fresh.state[ours]["step"] == 1
        for name in ("exp_avg", "exp_avg_sq"):
            expected = torch.zeros_like(theirs) if k == lacking else plain.state[theirs][name]
            assert torch.equal(fresh.state[ours][name], expected)


@pytest.mark.parametrize("limit", [0.0, 0.05])
def test_a_step_clips_and_renews_the_short_copies(limit):
    """On a GPU in two launches: one makes the rates, one moves everything."""
    kernels = dict.fromkeys(("_rates_kernel", "_adam_kernel"), 1) if RUNS else {}
    modules = net().to(DEVICE), net().to(DEVICE)
    ours, plain = (FlatAdam(module, 0.01, OPTIM, compute=torch.bfloat16) for module in modules)
    for module, optimizer, clip in zip(modules, (ours, plain), (limit, 0.0), strict=True):
        FlatGradients(module).fill([g.to(DEVICE) for g in gradients(module, 0)])
        with launching(**kernels):
            optimizer.step(limit=clip)
    assert plain.flat.abs().max() > 0.5
    assert torch.equal(ours.flat, plain.flat.clamp(-limit, limit) if limit else plain.flat)
    twins = list(ours.computing.parameters())
    assert sum(q.dtype == torch.bfloat16 for q in twins) == 3  # of the convolutions
    for p, q in zip(ours.parameters, twins, strict=True):
        torch.testing.assert_close(q.float(), p, rtol=2**-7, atol=0)


class Operations(TorchDispatchMode):
    """Names of what runs inside."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(function.__name__)
        return function(*args, **(kwargs or {}))


def test_gradients_of_any_type_and_layout_are_copied_together():
    """As on a GPU: an operation for each type, and one for each gradient that lies otherwise."""
    weight = torch.randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    one_channel = torch.randn(4, 1, 2, 2).as_strided((4, 1, 2, 2), (4, 4, 2, 1))
    sources = [weight.bfloat16(), one_channel.bfloat16(), torch.randn(4), torch.randn(4, 3, 2, 2)]
    targets = [torch.full_like(x, torch.nan, dtype=torch.float32) for x in sources]
    targets[1] = targets[1].as_strided((4, 1, 2, 2), (4, 1, 2, 1))
    targets[3] = targets[3].contiguous(memory_format=torch.channels_last)
    with Operations() as operations:
        _copy_together(list(zip(targets, sources, strict=True)))
    copies = [name for name in operations.seen if "copy" in name]
    assert sorted(copies) == ["_foreach_copy_.default", "_foreach_copy_.default", "copy_.default"]
    for target, source in zip(targets, sources, strict=True):
        assert torch.equal(target, source.float())


def test_a_missing_gradient_is_zero():
    module = net()
    optimizer = FlatAdam(module, 0.01, OPTIM)
    before = optimizer.flat.clone()
    optimizer.step()
    assert torch.equal(optimizer.flat, before)


def test_frozen_parameters_are_left_alone_and_a_wholly_frozen_network_is_refused():
    module = net()
    module[0].requires_grad_(False)
    average = copy.deepcopy(module)
    optimizer = FlatAdam(module, 0.01, OPTIM, average)
    frozen = module[0].weight.detach().clone()
    FlatGradients(module).fill([torch.ones_like(p) for p in module.parameters() if p.requires_grad])
    optimizer.step(decay=torch.tensor(0.0, dtype=torch.float64))
    assert torch.equal(module[0].weight, frozen)
    assert all(
        torch.equal(a, p) for a, p in zip(average.parameters(), module.parameters(), strict=True)
    )
    with pytest.raises(InputError, match="no parameter that requires a gradient"):
        FlatAdam(module.requires_grad_(False), 0.01, OPTIM)


def test_moved_parameters_are_noticed_and_an_average_wants_its_decay():
    module = net()
    optimizer = FlatAdam(module, 0.01, OPTIM, copy.deepcopy(module))
    with pytest.raises(ValueError, match="give its decay"):
        optimizer.step()
    module.double()
    with pytest.raises(RunError, match="were moved after its optimizer was made"):
        optimizer.step(decay=torch.tensor(0.5))
