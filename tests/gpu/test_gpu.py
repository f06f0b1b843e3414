"""What only an NVIDIA GPU can show.

Needs torch, numpy, PyYAML, Pillow, rich, safetensors and pytest; no installed ganfast.
"""

import gc
from dataclasses import replace

import numpy as np
import pytest
import torch

import ganfast
from ganfast.config import Config, LogConfig
from ganfast.device import capturing
from ganfast.engine import convolution, make_critic_step
from ganfast.kernels.latents import latents, latents_reference, philox_words
from ganfast.presets import FROM_LATENTS, preset_config
from ganfast.training.feed import Feed
from ganfast.training.phases import Graphs, Phase
from ganfast.training.plan import make_plan

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def config_for(folder, preset: str, **changes) -> Config:
    folder.mkdir(exist_ok=True, parents=True)
    pictures = np.random.default_rng(0).integers(0, 256, (512, 28, 28), dtype=np.uint8)
    np.savez(folder / "noise.npz", images=pictures, labels=np.arange(512) % 10)
    config = preset_config(preset, str(folder / "noise.npz"))
    log = LogConfig(every=1, save_kimg=0.7, tensorboard=False)
    return replace(
        config,
        **(
            {"kimg": 2, "batch": 32, "device": "cuda", "out": str(folder / "run"), "log": log}
            | changes
        ),
    )


def small_run(folder, preset: str, **changes):
    return ganfast.train(config_for(folder, preset, **changes), quiet=True)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("preset", FROM_LATENTS)
def test_every_preset_trains_on_the_gpu(tmp_path, preset, precision):
    """Few of them compiled: compiling all would take longer than the whole part has."""
    compiled = preset == "wgan-gp" and precision != "fp16"
    compile = "auto" if compiled else "off"
    run = small_run(tmp_path, preset, precision=precision, compile=compile)
    pictures = run.sample(20, seed=3, device="cuda")
    assert pictures.shape == (20, 28, 28, 1)
    assert pictures.std() > 0


def test_random_words_equal_those_of_the_cpu():
    index = torch.arange(1000)
    assert torch.equal(philox_words(7, 3, index.cuda(), 10).cpu(), philox_words(7, 3, index, 10))


def test_latents_differ_from_the_cpu_by_one_ulp_at_most_and_rarely():
    index = torch.arange(2000)
    cpu, gpu = (
        latents_reference(7, 0, index, 128).numpy(),
        latents(7, 0, index.cuda(), 128).cpu().numpy(),
    )
    different = cpu != gpu
    assert different.mean() <= 1e-5
    assert (np.abs(cpu - gpu)[different] <= np.spacing(np.abs(cpu[different]))).all()


@pytest.mark.parametrize("preset", ["wgan-gp", "acgan"])
def test_a_captured_draw_and_what_it_feeds_are_those_of_the_cpu(tmp_path, preset):
    """To the bit, but for latents: shuffle, flips, labels, epsilons, rates; then the pictures."""
    config = replace(config_for(tmp_path, preset), precision="fp32", flip="on")
    plans = [make_plan(replace(config, device=device)) for device in ("cpu", "cuda")]
    cpu, gpu = (Feed(plan.config, plan.data) for plan in plans)
    draws = Phase("drawing", lambda: gpu.draw() or {}, Graphs("on", plans[1].device))
    for images in (0, 5120, 2**31 - 320, 2**40, 2**53, 2**61):  # a capture is made in the fourth
        for feed in (cpu, gpu):
            feed.set(images)
        cpu.draw()
        draws()
        assert gpu._columns.keys() == cpu._columns.keys()
        for name, expected in cpu._columns.items():
            found = gpu._columns[name].cpu()
            if name.startswith("z"):
                torch.testing.assert_close(found, expected, rtol=2.0**-23, atol=0)
                assert (found != expected).double().mean() <= 1e-5
            else:
                assert torch.equal(found, expected), (name, images)
        mine, theirs = gpu.critic(), cpu.critic()
        assert torch.equal(mine.real.cpu(), theirs.real)
        assert mine.real.is_contiguous(memory_format=torch.channels_last)
    assert draws._graph is not None


def test_garbage_of_a_capture_is_collected_behind_it():
    """An older graph that ends in a capture would end the capture."""

    def older():
        x, graph = torch.zeros(8, device="cuda"), torch.cuda.CUDAGraph()
        with capturing(graph):
            x.add_(1)
        return graph

    old, x = [older() for _ in range(4)], torch.zeros((), device="cuda")

    def step():
        cycle = [old.pop()]
        cycle.append(cycle)
        del cycle
        assert len([[] for _ in range(20_000)]) == 20_000  # Python collects meanwhile, if it may
        return {"x": x.add_(1).clone()}

    phase = Phase("littering", step, Graphs("on", torch.device("cuda", 0)))
    assert [phase()["x"].item() for _ in range(6)] == [1, 2, 3, 4, 5, 6]
    assert phase._graph is not None
    assert gc.isenabled()


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [1, 3])
def test_convolutions_of_few_channels_are_timed_and_right_either_way(channels, kind, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setattr(convolution, "_faster", {})
    torch.manual_seed(0)
    shape = convolution.Convolution((2, 2), (1, 1), (1, 1), 1)
    sizes = (16, channels, 28, 28), (64, channels, 4, 4), (16, 64, 14, 14)
    given = [torch.randn(size, device="cuda").to(kind) for size in sizes]
    given = [t.contiguous(memory_format=torch.channels_last) for t in given]

    def results(x, w, dy):
        passes = shape.forward(x, w), shape.data_gradient(dy, w, x), shape.weight_gradient(dy, x, w)
        return [y.double() for y in passes]

    exact = results(*(t.double() for t in given))
    assert not convolution._faster
    results(*given)
    assert len(convolution._faster) == 3
    for padded in (True, False):
        monkeypatch.setattr(convolution, "is_faster", lambda *_, padded=padded: padded)
        for found, expected in zip(results(*given), exact, strict=True):
            assert found.shape == expected.shape
            assert (found - expected).norm() < 0.01 * expected.norm()


def test_pictures_agree_between_gpu_and_cpu(tmp_path):
    run = small_run(tmp_path, "wgan-gp", precision="fp32")
    gpu, cpu = (
        run.sample(64, seed=1, device="cuda").astype(int),
        run.sample(64, seed=1, device="cpu").astype(int),
    )
    assert np.abs(gpu - cpu).max() <= 1


def test_a_resumed_run_goes_on_with_the_same_optimizer_state(tmp_path):
    """A run stopped after its first checkpoint and resumed, against one that was not stopped.

    They are equal up to the order of GPU sums.
    """
    whole = small_run(tmp_path / "a", "wgan-gp", precision="fp32")
    part = small_run(tmp_path / "b", "wgan-gp", precision="fp32")
    last = part.checkpoint_folder / part.latest().name
    for file in sorted(last.iterdir()):
        file.unlink()
    last.rmdir()
    again = small_run(tmp_path / "b", "wgan-gp", precision="fp32")
    different = np.abs(whole.sample(64, seed=1).astype(int) - again.sample(64, seed=1).astype(int))
    assert different.mean() < 1


def test_a_set_larger_than_device_memory_is_streamed_with_the_same_batches(tmp_path, monkeypatch):
    plan = make_plan(config_for(tmp_path, "wgan-gp"))
    resident, labels = plan.data.batch(5, 40)
    monkeypatch.setattr("ganfast.data.resident._ROOM", 0.0)
    streamed = make_plan(config_for(tmp_path, "wgan-gp"))
    assert streamed.data.images.device.type == "cpu"
    pictures, named = streamed.data.batch(5, 40)
    assert torch.equal(pictures, resident)
    assert torch.equal(named, labels)


def test_bf16_gradients_are_near_those_of_fp32(tmp_path):
    def gradients(precision: str) -> torch.Tensor:
        plan = make_plan(replace(config_for(tmp_path, "wgan-gp"), precision=precision))
        step = make_critic_step(
            plan.state.critic, plan.config.loss, plan.config.penalty, plan.autocast
        )
        real, _ = plan.data.batch(0, 64)
        step(real, -real, eps=torch.full((64,), 0.5, device="cuda"))
        return torch.cat([p.grad.flatten() for p in plan.state.critic.parameters()])

    exact, rounded = gradients("fp32"), gradients("bf16")
    assert torch.nn.functional.cosine_similarity(exact, rounded, dim=0) > 0.99
    assert 0.9 < rounded.norm() / exact.norm() < 1.1


@pytest.mark.parametrize("preset", FROM_LATENTS)
def test_captured_phases_train_as_uncaptured_ones(tmp_path, preset, caplog):
    """The same steps by replay: what differs is the order of sums at most."""
    runs = {}
    for graphs in ("off", "on"):
        (tmp_path / graphs).mkdir()
        runs[graphs] = small_run(
            tmp_path / graphs, preset, precision="fp32", compile="off", cuda_graphs=graphs, kimg=1
        )
    assert "without CUDA graphs" not in caplog.text
    off, on = (run.sample(64, seed=1, device="cuda").astype(int) for run in runs.values())
    assert np.abs(off - on).mean() < 1


def test_what_cannot_be_captured_is_said_once_and_trained_all_the_same(
    tmp_path, monkeypatch, caplog
):
    from ganfast.training.feed import Feed

    real = Feed.critic

    def waits(self):
        inputs = real(self)
        inputs.rate.item()
        return inputs

    monkeypatch.setattr(Feed, "critic", waits)
    run = small_run(tmp_path, "wgan-gp", precision="fp32", compile="off")
    assert caplog.text.count("training goes on without CUDA graphs") == 1
    assert run.sample(4, device="cuda").std() > 0
