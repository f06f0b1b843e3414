"""Inception-v3 of the FID, with random weights: its shapes, names, pools, and what is refused."""

import numpy as np
import pytest
import torch

from ganfast.data import open_data
from ganfast.errors import InputError
from ganfast.evaluate.extractor import sha256_of
from ganfast.evaluate.extractors import find_extractor
from ganfast.evaluate.inception import PREPROCESSING, SHA256, Inception, Mixed

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def net() -> Inception:
    torch.manual_seed(0)
    return Inception().eval()


@pytest.fixture(scope="module")
def weights(net, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(
        {
            name: value
            for name, value in net.state_dict().items()
            if not name.endswith("num_batches_tracked")
        },
        path,
    )
    return path


def test_it_has_the_published_size_and_the_names_of_the_file(net):
    # 23,834,568 numbers with 1000 classes, no auxiliary head; eight classes more are 8 * 2049.
    assert sum(p.numel() for p in net.parameters()) == 23_834_568 + 8 * 2049
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    assert shapes["Conv2d_4a_3x3.conv.weight"] == (192, 80, 3, 3)
    assert shapes["Mixed_5b.branch_pool.conv.weight"] == (32, 192, 1, 1)
    assert shapes["Mixed_6c.branch7x7dbl_2.conv.weight"] == (160, 160, 7, 1)
    assert shapes["Mixed_7a.branch7x7x3_2.bn.running_var"] == (192,)
    assert shapes["Mixed_7c.branch3x3dbl_3b.conv.weight"] == (384, 384, 3, 1)
    assert shapes["fc.weight"] == (1008, 2048)


def test_maps_have_their_published_sizes(net):
    seen = {}
    hooks = [
        block.register_forward_hook(
            lambda m, x, y, name=name: seen.update({name: tuple(y.shape[1:])})
        )
        for name, block in net.named_children()
        if isinstance(block, Mixed)
    ]
    with torch.no_grad():
        features, logits = net(torch.rand(1, 3, 299, 299))
    for hook in hooks:
        hook.remove()
    assert (features.shape, logits.shape) == ((1, 2048), (1, 1008))
    expected = ((288, 35, 35), (768, 17, 17), (2048, 8, 8))
    assert (seen["Mixed_5d"], seen["Mixed_6e"], seen["Mixed_7c"]) == expected


def test_average_pools_leave_the_padding_out_and_the_last_block_pools_by_maximum(net):
    flat = torch.ones(1, 768, 5, 5)
    assert torch.equal(net.Mixed_6b._pooled(flat), flat)
    x = torch.rand(1, 2048, 8, 8)
    assert torch.equal(net.Mixed_7c._pooled(x)[0, :, 4, 4], x[0, :, 3:6, 3:6].amax((1, 2)))
    assert torch.allclose(net.Mixed_7b._pooled(x)[0, :, 4, 4], x[0, :, 3:6, 3:6].mean((1, 2)))


def test_pictures_are_resized_without_aligned_corners_to_minus_one_to_one():
    pictures = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 2, 1).expand(1, 2, 2, 1)
    x = PREPROCESSING(pictures)
    assert x.shape == (1, 3, 299, 299)
    assert (x[..., 0].mean(), x[..., -1].mean()) == pytest.approx((-1, 1))
    # Pixel centres stay at (i + 0.5) / n: half way in the middle of the row, the first pixel alone
    # for a quarter of it.
    assert x[0, 0, 0, 149] == pytest.approx(0, abs=1e-6)
    assert x[0, 0, 0, 74] == pytest.approx(-1, abs=0.01)
    assert x[0, 0, 0, 90] > -0.9
    fine = (
        torch.arange(600 * 2, dtype=torch.uint8).view(1, 1, 600, 2)[..., :1].expand(1, 600, 600, 1)
    )
    # That one is antialiased.
    assert not torch.allclose(PREPROCESSING(fine), type(PREPROCESSING)(299, 3)(fine), atol=0.1)


def test_as_an_extractor_it_is_known_by_its_hash(net, weights):
    pack = open_data("digits")
    found = find_extractor(str(weights), pack, CPU, sha256=sha256_of(weights))
    assert (found.name, found.dim, found.judges_labels) == ("inception-v3-fid", 2048, False)
    pictures = np.ascontiguousarray(pack.images[:2].transpose(0, 2, 3, 1))
    with torch.no_grad():
        expected, _ = net(PREPROCESSING(torch.from_numpy(pictures)))
    assert found(pictures).features.numpy() == pytest.approx(expected.numpy(), rel=1e-3, abs=1e-5)


def test_files_that_are_not_it_are_refused(weights, tmp_path):
    pack = open_data("digits")
    with pytest.raises(
        InputError,
        match=f"random.pth has sha256 [0-9a-f]{{64}}; expected {SHA256}: "
        "another file, or a damaged one",
    ):
        find_extractor(str(weights), pack, CPU)
    less = torch.load(weights, weights_only=True)
    less.pop("Mixed_6a.branch3x3dbl_2.bn.bias")
    torch.save(less, tmp_path / "less.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("<html>")
    for name, message in (
        (
            "less.pth",
            r"not the Inception-v3 of the FID: "
            r"it has no Mixed_6a.branch3x3dbl_2.bn.bias of shape \(96,\)",
        ),
        ("list.pth", "it has no Conv2d_1a_3x3.conv.weight"),
        ("text.pth", "text.pth is no readable file of weights"),
    ):
        with pytest.raises(InputError, match=message):
            find_extractor(str(tmp_path / name), pack, CPU, sha256=sha256_of(tmp_path / name))
    with pytest.raises(InputError, match="preprocessing of .*random.pth is fixed"):
        find_extractor(str(weights), pack, CPU, preprocessing="size=64")
