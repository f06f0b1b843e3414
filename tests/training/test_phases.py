"""Phases as a CUDA graph takes them: recorded once, played with other counters; no reads."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from ganfast.config import Config, LogConfig, LossConfig, PenaltyConfig, TaskConfig
from ganfast.engine import make_critic_step, make_drawing, make_generator_step
from ganfast.errors import InputError
from ganfast.presets import PRESETS, preset_config
from ganfast.training import loop
from ganfast.training.feed import Feed
from ganfast.training.loop import train_loop
from ganfast.training.phases import Graphs, Phase, Watch
from ganfast.training.plan import Plan, make_plan
from ganfast.training.state import contents_of, restore
from tests.depth import DIFFERENT, in_turn
from tests.training.tape import Tape

STEPS = 9


class Played(Phase):
    """Two plain calls, then one recorded, then played: what `Phase` does on CUDA, by a tape."""

    def __init__(self, name, step, graphs, watch=None):
        super().__init__(name, step, graphs, watch)
        self.tape = None

    def __call__(self):
        self._calls += 1
        if self._calls < 3:
            return self._step()
        if self.tape is None:
            self.tape = Tape()
            with self.tape:
                self._stats = self._step()
        else:
            self.tape.play()
        return self._stats


def plan_of(folder, preset: str, **changes) -> Plan:
    generator = np.random.default_rng(0)
    path = folder / "set.npz"
    np.savez(
        path,
        images=generator.integers(0, 256, (50, 16, 16), dtype=np.uint8),
        labels=np.arange(50) % 4,
    )
    config = preset_config(preset, str(path))
    # Rates that change with every step.
    optim = replace(config.optim, warmup_kimg=0.2, decay_from=0.3)
    net = replace(config.net, width=4, latent=8)
    config = replace(
        config,
        batch=8,
        kimg=8 * config.optim.critic_steps * STEPS / 1000,
        optim=optim,
        net=net,
        device="cpu",
    )
    given = {"augment": "off"} | changes
    return make_plan(
        replace(config, out=str(folder / "run"), log=LogConfig(tensorboard=False), **given)
    )


def trained(plan: Plan, twins: bool = True):
    """All that training changes, after STEPS generator steps, and the statistics on the way."""
    c, state, seen = plan.config, plan.state, []
    twins = (
        (state.optimizer_generator.computing, state.optimizer_critic.computing)
        if twins
        else (None, None)
    )
    optimizers = state.optimizer_generator, state.optimizer_critic
    scales = [optimizer.scale and optimizer.scale.value for optimizer in optimizers]
    how: dict = {"compile": False, "computing": twins[1], "scale": scales[1]}
    critic_step = make_critic_step(state.critic, c.loss, c.penalty, plan.autocast, c.engine, **how)
    how = {"computing": twins[0] and twins, "scale": scales[0]}
    generator_step = make_generator_step(
        state.generator, state.critic, c.loss, plan.autocast, **how
    )
    drawing = make_drawing(state.generator, plan.autocast, computing=twins[0])
    before = addresses(plan)

    def on_step(_, critic, generator):
        stats = (*critic.values(), *generator.values())
        seen.append([v.double().sum().item() for v in stats])

    train_loop(state, plan.data, c, critic_step, generator_step, lambda: False, on_step, drawing)
    assert addresses(plan) == before  # a captured phase knows no others
    return tensors(plan), seen


def tensors(plan: Plan) -> dict[str, torch.Tensor]:
    state = plan.state
    nets = {"generator": state.generator, "critic": state.critic, "average": state.average}
    found = {
        f"{n}.{name}": value for n, net in nets.items() for name, value in net.state_dict().items()
    }
    for name, optimizer in (
        ("generator", state.optimizer_generator),
        ("critic", state.optimizer_critic),
    ):
        for i, p in enumerate(optimizer.parameters):
            found |= {f"{name}.{i}.{key}": value for key, value in optimizer.state[p].items()}
        if optimizer.scale:
            found |= {f"{name}.{key}": value for key, value in optimizer.scale.tensors().items()}
    augmentation = state.augmentation
    return found | (augmentation.tensors() if augmentation else {})


def addresses(plan: Plan) -> dict[str, int]:
    return {name: value.data_ptr() for name, value in tensors(plan).items()}


BOXES = TaskConfig("inpaint", hole="boxes")
TWO_PARTS = LossConfig("non-saturating", pixel=1.0, pixel_only_kimg=0.03)  # four steps of nine
VARIANTS = {
    "flipped": {"flip": "on"},
    "balanced": {"balanced": True},
    "long tail": {"imbalance": 3.0},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "no average": {"ema_kimg": 0.0},
    "lazy": {"penalty": PenaltyConfig("r1", 1.0, interval=2)},
    "adaptive": {"augment": "adaptive", "augment_kimg": 0.05},
}
PAIRS = [
    ("flipped", "lazy"),
    ("balanced", "bf16"),
    ("flipped", "fp16"),
    ("long tail", "no average"),
    ("adaptive", "lazy"),
]


@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        pytest.param(preset, {}, id=preset, marks=() if preset in DIFFERENT else pytest.mark.accept)
        for preset in PRESETS
    ]
    + [
        pytest.param("r1", VARIANTS[name] | VARIANTS[other], id=f"{name}, {other}")
        for name, other in PAIRS
    ]
    + [
        pytest.param("r1", changes, id=name, marks=pytest.mark.accept)
        for name, changes in VARIANTS.items()
    ]
    + [
        pytest.param("wgan-gp", {"augment": "on"}, id="wgan-gp, augmented"),
        pytest.param("inpaint", {"loss": TWO_PARTS, "task": BOXES}, id="two parts"),
        pytest.param("rpgan", {"augment": "on"}, id="rpgan, augmented", marks=pytest.mark.accept),
    ],
)
def test_recorded_phases_played_again_train_as_steps_do(preset, changes, tmp_path, monkeypatch):
    """To the bit: a rate, step, seed or index kept from the recording, or a read, would show."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    # The tables are filled for every step, so that filling them is played too.
    monkeypatch.setattr("ganfast.training.feed._MOST", 1)
    stepped, seen = trained(plan_of(tmp_path / "a", preset, **changes))
    monkeypatch.setattr(loop, "Phase", Played)
    played, seen_again = trained(plan_of(tmp_path / "b", preset, **changes))
    assert stepped.keys() == played.keys()
    assert [name for name in stepped if not torch.equal(stepped[name], played[name])] == []
    assert seen == seen_again
    assert len(seen) == STEPS


@pytest.mark.parametrize(("preset", "precision"), in_turn(PRESETS, ["bf16", "fp16"]))
def test_weights_kept_in_a_half_type_train_as_those_that_autocast_casts(
    preset, precision, tmp_path
):
    """To the bit, clipped or not, and after a state was restored."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    ours, plain = (plan_of(tmp_path / name, preset, precision=precision) for name in "ab")
    plain.state.optimizer_generator.computing = plain.state.generator  # what draws the fakes
    for plan in (ours, plain):
        other = plan_of(tmp_path / "a", preset, precision=precision, seed=5)
        restore(plan.state, contents_of(other.state), 0, "a test")
    kept, seen = trained(ours)
    cast, seen_again = trained(plain, twins=False)
    assert [name for name in kept if not torch.equal(kept[name], cast[name])] == []
    assert seen == seen_again
    state, twins = ours.state, dict(ours.state.optimizer_generator.computing.named_parameters())
    low = [
        (twins[name], p)
        for name, p in state.generator.named_parameters()
        if twins[name].dtype == plan.autocast
    ]
    assert low
    assert all(torch.equal(copy, own.to(plan.autocast)) for copy, own in low)


@pytest.mark.parametrize("baked", ["rate", "counter", "read"])
def test_the_tape_finds_what_a_graph_would_keep(baked, tmp_path, monkeypatch):
    """The test above can fail."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    monkeypatch.setattr("ganfast.training.feed._MOST", 1)
    real = Feed.critic

    def spoiled(self):
        given = real(self)
        if baked == "rate":
            given.rate = torch.tensor(float(given.rate.detach().numpy()), dtype=torch.float64)
        elif baked == "counter":
            first, turn = int(self._first.numpy()), int(self._turn.numpy()[0]) - 1
            given.real = self.data.batch(first + turn * self.config.batch, self.config.batch)[0]
        else:
            given.rate.item()
        return given

    monkeypatch.setattr(Feed, "critic", spoiled)
    stepped, _ = trained(plan_of(tmp_path / "a", "wgan-gp"))
    monkeypatch.setattr(loop, "Phase", Played)
    if baked == "read":
        with pytest.raises(AssertionError, match="reads a value on the host"):
            trained(plan_of(tmp_path / "b", "wgan-gp"))
        return
    played, _ = trained(plan_of(tmp_path / "b", "wgan-gp"))
    assert any(not torch.equal(stepped[name], played[name]) for name in stepped)


@pytest.mark.parametrize(("preset", "without"), [("rpgan", "eps"), ("wgan-gp", "reals")])
def test_tables_hold_what_each_counter_gives_by_itself(preset, without, tmp_path):
    """Drawn for many steps, from any start: batch, classes, latents, rates follow the counter."""
    plan = plan_of(tmp_path, preset, flip="on")
    feed, c = Feed(plan.config, plan.data), plan.config
    step = feed.step_images
    for images in (0, 3 * step):
        other = Feed(c, plan.data)
        feed.set(0)
        feed.draw()
        feed._turn.fill_(images // c.batch)
        other.set(images)
        other.draw()
        ours, theirs = feed.critic(), other.critic()
        assert (ours.eps is None) == (without == "eps")
        for name in ("real", "labels", "z", *(["eps"] if without != "eps" else []), "rate"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
        real, labels = plan.data.batch(images, c.batch)
        assert torch.equal(ours.real, real)
        assert torch.equal(ours.labels, labels)
        for _ in range(c.optim.critic_steps - 1):
            feed.critic()
            other.critic()
        ours, theirs = feed.generator(), other.generator()
        assert (ours.real is None) == (without == "reals")
        for name in (*(["real"] if without != "reals" else []), "labels", "z", "rate", "decay"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
        if ours.real is not None:
            assert torch.equal(ours.real, plan.data.batch(images + step - c.batch, c.batch)[0])


def test_graphs_asked_for_without_a_gpu_are_refused_and_auto_goes_on():
    with pytest.raises(
        InputError, match="cuda_graphs is on, but the device is cpu; use auto or off"
    ):
        Graphs("on", torch.device("cpu"))
    for wanted in ("auto", "off"):
        assert not Graphs(wanted, torch.device("cpu")).active


def test_the_field_is_part_of_the_config():
    assert Config().cuda_graphs == "auto"
    with pytest.raises(InputError, match="cuda_graphs is 'yes'; expected one of auto, on, off"):
        Config(cuda_graphs="yes")


class Fading(nn.Module):
    """A generator or critic that somebody fades in from outside."""

    def __init__(self, keeps_state=False):
        super().__init__()
        self.layer, self.alpha, self.calls = nn.Linear(4, 1), 0.5, 0
        self.keeps_state = keeps_state

    def forward(self, x):
        if self.keeps_state:
            self.calls += 1
        return self.layer(x) * self.alpha


class Active:
    """`Graphs` that capture, without a GPU."""

    def __init__(self):
        self.active, self.problems = True, []

    def give_up(self, phase, error):
        self.active, self.problems = False, [str(error)]


class Captured(Phase):
    """What a capture records is the number that the step gives then."""

    def _aside(self):
        return self._step()

    def _capture(self):
        self._graph, self._stats = SimpleNamespace(replay=lambda: None), self._step()


def test_a_phase_is_captured_anew_when_what_a_network_reads_has_changed():
    net = Fading()
    watch = Watch([(net, (torch.zeros(2, 4), None)), (nn.Linear(4, 1), (torch.zeros(2, 4), None))])
    assert watch.refusal() == ""
    phase = Captured("critic", lambda: {"alpha": net.alpha}, Active(), watch)
    seen = [phase()["alpha"] for _ in range(6)]
    net.alpha = 0.9
    seen += [phase()["alpha"] for _ in range(6)]
    assert seen == [0.5] * 6 + [0.9] * 6
    assert phase._graph is not None
    blind = Captured("critic", lambda: {"alpha": net.alpha}, Active())
    assert [blind()["alpha"] for _ in range(6)] == [0.9] * 6
    net.alpha = 0.1
    assert blind()["alpha"] == 0.9  # a replay runs no Python


def test_a_network_that_keeps_state_is_not_captured():
    net = Fading(keeps_state=True)
    watch = Watch([(net, (torch.zeros(2, 4), None))])
    assert re.fullmatch(r"of Fading: its forward keeps state \(.*\)", watch.refusal())
    assert net.calls == 0
    graphs = Active()
    phase = Captured("critic", lambda: {}, graphs, watch)
    phase()
    assert not graphs.active
    assert "keeps state" in graphs.problems[0]
