"""The sampler on DCGAN-64 of width 64: 10,000 requests of 8 threads, every batch and back end."""

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from ganfast.export import load_sampler
from ganfast.export.bundle.bundle import golden_file, open_bundle, write_bundle
from ganfast.export.bundle.manifest import GOLDEN, MODEL, Manifest, graph_inputs
from ganfast.export.drawing.sampler import Sampler
from ganfast.export.graph.deploy import deployable
from ganfast.export.graph.to_onnx import to_bytes, to_onnx
from ganfast.latents import latents
from ganfast.models import NetSpec, build_generator
from tests.export.test_sampler import BACKENDS, SIZES, apart, backends, mixed_requests

pytestmark = [pytest.mark.full, pytest.mark.accept]
LATENT, REQUESTS = 128, 10_000


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    torch.manual_seed(0)
    generator = build_generator(NetSpec(64, 3, 0, "no", 64, LATENT)).eval()
    for module in generator.modules():  # statistics as after a training
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    deployed = deployable(generator, graph_inputs(LATENT, 0))
    z = latents(0, np.arange(8), LATENT)
    manifest = Manifest(
        name="faces",
        latent=LATENT,
        classes=(),
        size=64,
        channels=3,
        precision="fp32",
        buckets=(1, 8, 64),
        crop="",
        golden={"seed": 0, "count": 8},
    )
    images = deployed(torch.from_numpy(z), torch.ones(8)).numpy()
    golden = golden_file({"z": z, "psi": np.ones(8, np.float32)}, images)
    return write_bundle(
        tmp_path_factory.mktemp("b") / "b",
        manifest,
        {MODEL: to_bytes(to_onnx(deployed, {})), GOLDEN: golden},
    )


@pytest.fixture(scope="module")
def alone(bundle):
    """Pictures 0 to 299 of seed 7, one at a time by one thread of ONNX Runtime."""
    with load_sampler(bundle.folder, "cpu", "onnxruntime", threads=1) as sampler:
        drawn = np.concatenate([sampler.sample(1, seed=7, first=i) for i in range(300)])
    assert len({picture.tobytes() for picture in drawn}) == 300
    return drawn


def test_ten_thousand_requests_of_eight_threads_lose_nothing_mix_nothing_up_and_keep_no_memory(
    bundle, alone
):
    psutil = pytest.importorskip("psutil")
    held, pictures = [], 0
    with load_sampler(bundle.folder, "cpu", threads=2) as sampler:
        for part in range(5):
            pictures += mixed_requests(sampler, alone, part, REQUESTS // 5, sizes=(*SIZES, 64))
            held.append(psutil.Process().memory_info().rss / 1e6)
        stats = sampler.stats
    print(
        f"{stats['requests']} requests, {pictures} pictures; "
        f"after each fifth {[round(each, 1) for each in held]} MB"
    )
    assert (stats["requests"], stats["pictures"]) == (REQUESTS, pictures)
    # The first fifth fills arenas and caches.
    assert held[-1] - held[0] < 0.02 * held[0], f"{held} MB"


@pytest.mark.parametrize("name", BACKENDS)
def test_every_batch_size_draws_the_pictures_that_are_drawn_alone(bundle, alone, name):
    with Sampler(open_bundle(bundle.folder), backends(bundle)[name], []) as sampler:
        for n in range(1, 65):
            assert apart(sampler.sample(n, seed=7, first=n), alone[n : 2 * n]) <= 1, n
