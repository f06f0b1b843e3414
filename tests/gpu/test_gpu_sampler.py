"""The sampler's back ends on a GPU, by `make gpu PART=rest`.

A back end is skipped, with the reason, where its package is missing.
"""

import numpy as np
import pytest
import torch

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from ganfast.errors import InputError
from ganfast.export import load_sampler
from ganfast.export.engines.engines import build_engines
from ganfast.export.engines.vendor import Build
from tests.export.test_sampler import apart, mixed_requests, truth
from tests.small_bundle import small_bundle, small_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here"),
]
BUCKETS = (1, 4, 16)


def bundle_for(backend, folder, seed=0):
    """With an engine built here where the back end needs one."""
    model = small_model(seed, classes=3, channels=3)
    engines, files = {}, {}
    if backend in ("tensorrt", "rtx"):
        try:
            (built,) = build_engines(model, backend, Build(BUCKETS, refit=True))
        except InputError as error:
            pytest.skip(str(error))
        engines, files = {built.key: built.facts}, {f"engines/{built.key}": built.plan}
    return small_bundle(folder, model=model, classes=3, channels=3, engines=engines, files=files)


def opened(backend, bundle):
    try:
        return load_sampler(bundle.folder, "cuda", backend, strict=True)
    except InputError as error:
        if "pip install" in str(error):
            pytest.skip(str(error))
        raise


@pytest.mark.parametrize("backend", ["torch", "onnxruntime", "tensorrt", "rtx"])
def test_pictures_of_a_gpu_are_those_of_the_cpu(backend, tmp_path):
    bundle, other = bundle_for(backend, tmp_path / "a"), bundle_for(backend, tmp_path / "b", seed=1)
    expected, after = truth(bundle, 7, np.arange(300)), truth(other, 7, np.arange(40))
    with opened(backend, bundle) as sampler:
        assert sampler.backend_name in ("torch-cuda", "onnxruntime-cuda", "tensorrt", "lean", "rtx")
        for n in (1, 3, 4, 16, 37):
            assert apart(sampler.sample(n, seed=7), expected[:n]) <= 1
        assert (
            apart(
                torch.from_dlpack(sampler.sample(16, seed=7, on_device=True)).cpu().numpy(),
                expected[:16],
            )
            <= 1
        )
        mixed_requests(sampler, expected, 0, 500)
        sampler.refit(other.folder)
        assert apart(sampler.sample(40, seed=7), after) <= 1
