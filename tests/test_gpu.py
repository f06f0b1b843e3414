"""What only an NVIDIA GPU can show. Needs torch, numpy, PyYAML, safetensors and pytest: no installed ganfast, tyro or cattrs."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import ganfast
from ganfast.config import LogConfig
from ganfast.kernels.latents import latents_reference, philox_words
from ganfast.presets import PRESETS, preset_config

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def small_run(tmp_path, preset: str, **changes):
    pictures = np.random.default_rng(0).integers(0, 256, (512, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "noise.npz", images=pictures, labels=np.arange(512) % 10)
    config = preset_config(preset, str(tmp_path / "noise.npz"))
    config = replace(
        config, kimg=2, batch=32, device="cuda", out=str(tmp_path / "run"), log=LogConfig(every=1, tensorboard=False), **changes
    )
    return ganfast.train(config, quiet=True)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_trains_on_the_gpu(tmp_path, preset, precision):
    run = small_run(tmp_path, preset, precision=precision)
    pictures = run.sample(20, seed=3, device="cuda")
    assert pictures.shape == (20, 28, 28, 1)
    assert pictures.std() > 0


def test_random_words_equal_those_of_the_cpu():
    index = torch.arange(1000)
    assert torch.equal(philox_words(7, 3, index.cuda(), 10).cpu(), philox_words(7, 3, index, 10))


def test_latents_differ_from_the_cpu_by_one_ulp_at_most_and_rarely():
    index = torch.arange(2000)
    cpu, gpu = latents_reference(7, 0, index, 128).numpy(), latents_reference(7, 0, index.cuda(), 128).cpu().numpy()
    different = cpu != gpu
    assert different.mean() <= 1e-5
    assert (np.abs(cpu - gpu)[different] <= np.spacing(np.abs(cpu[different]))).all()


def test_pictures_agree_between_gpu_and_cpu(tmp_path):
    run = small_run(tmp_path, "wgan-gp", precision="fp32")
    gpu, cpu = run.sample(64, seed=1, device="cuda").astype(int), run.sample(64, seed=1, device="cpu").astype(int)
    assert np.abs(gpu - cpu).max() <= 1
