"""Training batches from a handmade pack: which pictures come when, and that they are the pack's."""

import itertools

import numpy as np
import pytest
import torch

from ganfast.data.manifest import Pack, PackInfo
from ganfast.data.resident import ResidentData, long_tail
from ganfast.errors import InputError

CPU = torch.device("cpu")


def pack_of(count, labels=None, classes=(), channels=1, size=8):
    """Pictures of noise, so that none is another or its own mirror image."""
    images = np.random.default_rng(1).integers(
        0, 256, (count, channels, size, size), dtype=np.uint8
    )
    info = PackInfo(
        name="made",
        kind="arrays",
        recognised="made by hand",
        count=count,
        channels=channels,
        size=size,
        classes=tuple(classes),
        flip=True,
        split="train",
        attributes=(),
        preparation="",
        source_hash="",
    )
    return Pack(images, None if labels is None else np.asarray(labels, np.int64), info)


def labelled(*counts, seed=0):
    """A pack with that many pictures of each class, mixed."""
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    return pack_of(len(labels), labels, [f"class {k}" for k in range(len(counts))])


def which(pack, pictures):
    """(position in the pack, mirrored) of every picture of a batch."""
    known = {}
    for i, image in enumerate(pack.images):
        known[image.tobytes()] = (i, False)
        known[image[:, :, ::-1].tobytes()] = (i, True)
    pixels = ((pictures.double() + 1) * 127.5).round().to(torch.uint8).contiguous().numpy()
    return [known[picture.tobytes()] for picture in pixels]


def positions(pack, data, start, count):
    return [i for i, _ in which(pack, data.batch(start, count)[0])]


def test_pixels_are_scaled_exactly():
    pack = pack_of(4, channels=3, size=16)
    pictures, labels = ResidentData(pack, CPU, seed=0).batch(0, 4)
    assert pictures.dtype == torch.float32
    assert pictures.shape == (4, 3, 16, 16)
    assert labels is None
    order = positions(pack, ResidentData(pack, CPU, seed=0), 0, 4)
    expected = pack.images[order].astype(np.float32) / np.float32(127.5) - np.float32(1)
    np.testing.assert_array_equal(pictures.numpy(), expected)
    assert expected.min() == -1  # the batch holds a 0 and a 255
    assert expected.max() == 1


@pytest.mark.parametrize("flip", [False, True])
def test_every_epoch_shows_each_picture_once_in_an_order_of_its_own(flip):
    pack = pack_of(53)
    data = ResidentData(pack, CPU, seed=3, flip=flip)
    epochs = [positions(pack, data, 53 * k, 53) for k in range(5)]
    for order in epochs:
        assert sorted(order) == list(range(53))
    assert len({tuple(order) for order in epochs}) == 5
    assert epochs[0] != positions(pack, ResidentData(pack, CPU, seed=4), 0, 53)


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("imbalance", [0.0, 4.0])
def test_a_stretch_of_the_run_is_the_same_however_it_is_split(balanced, imbalance):
    pack = labelled(9, 14, 20)
    options = {"seed": 5, "flip": True, "balanced": balanced, "imbalance": imbalance}
    pictures, labels = ResidentData(pack, CPU, **options).batch(7, 200)
    data = ResidentData(pack, CPU, **options)
    # In any order.
    parts = [data.batch(a, b - a) for a, b in ((150, 207), (7, 8), (8, 60), (60, 150))]
    parts = [*parts[1:], parts[0]]
    assert torch.equal(torch.cat([x for x, _ in parts]), pictures)
    assert torch.equal(torch.cat([y for _, y in parts]), labels)


def test_one_batch_may_span_several_epochs():
    pack = pack_of(5)
    data = ResidentData(pack, CPU, seed=0)
    whole = positions(pack, data, 3, 14)
    for k in (1, 2):
        assert sorted(whole[5 * k - 3 : 5 * k + 2]) == [0, 1, 2, 3, 4]


def test_labels_belong_to_their_pictures():
    pack = labelled(10, 20, 30)
    for options in (
        {},
        {"balanced": True},
        {"imbalance": 5.0},
        {"balanced": True, "imbalance": 5.0},
    ):
        pictures, labels = ResidentData(pack, CPU, seed=1, flip=True, **options).batch(11, 130)
        assert labels.dtype == torch.int64
        assert labels.tolist() == pack.labels[[i for i, _ in which(pack, pictures)]].tolist()


# Mirroring.


def test_flip_mirrors_about_half_from_left_to_right_only():
    pack = pack_of(40)
    # Finds all: nothing else changed.
    shown = which(pack, ResidentData(pack, CPU, seed=2, flip=True).batch(0, 2000)[0])
    mirrored = [m for _, m in shown]
    assert abs(sum(mirrored) - 1000) < 5 * 500**0.5
    pairs = sum(a and b for a, b in itertools.pairwise(mirrored))
    assert abs(pairs - 500) < 5 * 500**0.5  # no picture follows its neighbour
    again = sum(a == b for a, b in zip(mirrored, mirrored[40:], strict=False))
    assert abs(again - 980) < 5 * 490**0.5  # drawn anew in every epoch, not once for each picture


def test_without_flip_nothing_is_mirrored():
    pack = pack_of(40)
    assert not any(m for _, m in which(pack, ResidentData(pack, CPU, seed=2).batch(0, 200)[0]))


def test_the_order_does_not_depend_on_flips():
    pack = pack_of(40)
    plain, flipped = (ResidentData(pack, CPU, seed=2, flip=flip) for flip in (False, True))
    assert positions(pack, plain, 5, 100) == positions(pack, flipped, 5, 100)


# Balance.


@pytest.mark.parametrize("imbalance", [0.0, 6.0])
def test_balance_shows_every_class_once_in_each_round(imbalance):
    data = ResidentData(labelled(12, 60, 18, 30), CPU, seed=1, balanced=True, imbalance=imbalance)
    labels = data.batch(0, 4 * 200)[1].view(200, 4)
    assert (labels.sort(1).values == torch.arange(4)).all()
    assert len(labels.unique(dim=0)) == 24  # in every order
    first = torch.bincount(labels[:, 0], minlength=4)
    assert ((first - 50).abs() < 5 * (200 * 3 / 16) ** 0.5).all()


def test_balance_goes_through_each_class_in_epochs_of_its_own():
    pack = labelled(3, 7)
    data = ResidentData(pack, CPU, seed=1, balanced=True)
    shown = positions(pack, data, 0, 2 * 42)
    for k, size in ((0, 3), (1, 7)):
        own = [i for i in shown if pack.labels[i] == k]
        members = sorted(np.flatnonzero(pack.labels == k).tolist())
        epochs = [own[j : j + size] for j in range(0, 42, size)]
        assert all(sorted(epoch) == members for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 2


def test_balance_shuffles_classes_of_one_size_differently():
    pack = labelled(20, 20)
    shown = positions(pack, ResidentData(pack, CPU, seed=1, balanced=True), 0, 40)
    ranks = [
        [sorted(own).index(i) for i in own]
        for own in ([i for i in shown if pack.labels[i] == k] for k in (0, 1))
    ]
    assert sorted(ranks[0]) == sorted(ranks[1]) == list(range(20))
    assert ranks[0] != ranks[1]


def test_balance_leaves_out_classes_without_pictures():
    pack = labelled(4, 0, 5)
    labels = ResidentData(pack, CPU, seed=0, balanced=True).batch(0, 100)[1]
    assert torch.bincount(labels, minlength=3).tolist() == [50, 0, 50]


# Imbalance.


def test_a_long_tail_by_hand():
    """100 ^ (-k / 4) of 200: 200, 63.2, 20, 6.3, 2."""
    labels = torch.arange(5).repeat(200)
    kept = long_tail(labels, 5, 100.0, seed=0)
    assert torch.bincount(labels[kept]).tolist() == [200, 63, 20, 6, 2]
    assert torch.equal(kept, kept.unique())  # rising, none twice


def test_a_long_tail_starts_from_the_smallest_class():
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor([500, 40, 90]))
    kept = long_tail(labels, 3, 4.0, seed=0)
    assert torch.bincount(labels[kept]).tolist() == [40, 20, 10]


def test_which_pictures_stay_depends_on_the_seed_and_is_no_stretch_of_the_set():
    labels = torch.zeros(1000, dtype=torch.int64)
    labels[500:] = 1
    a, b, c = (long_tail(labels, 2, 5.0, seed) for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    tail = a[a >= 500] - 500
    assert len(tail) == 100
    assert abs(tail.double().mean() - 249.5) < 5 * 144 / 100**0.5  # uniform over the class
    assert len(set(tail.tolist()) & set((c[c >= 500] - 500).tolist())) < 45  # 20 expected


def test_a_long_tailed_run_shows_the_kept_pictures_only():
    pack = labelled(30, 30, 30)
    data = ResidentData(pack, CPU, seed=0, imbalance=9.0)
    assert data.count == 30 + 10 + 3
    assert data.class_counts.tolist() == [30, 10, 3]
    shown = positions(pack, data, 0, 2 * 43)
    assert sorted(shown[:43]) == sorted(shown[43:]) == data.subset.tolist()
    assert np.bincount(pack.labels[shown]).tolist() == [60, 20, 6]


def test_no_imbalance_keeps_everything():
    for imbalance in (0.0, 1.0):
        data = ResidentData(labelled(5, 7), CPU, seed=0, imbalance=imbalance)
        assert data.count == 12
        assert data.class_counts.tolist() == [5, 7]


# Refusals.


@pytest.mark.parametrize("options", [{"balanced": True}, {"imbalance": 2.0}])
def test_classes_are_needed_for_balance_and_imbalance(options):
    with pytest.raises(InputError, match="made has no classes.*--balanced and --imbalance"):
        ResidentData(pack_of(10), CPU, seed=0, **options)


def test_a_class_that_would_be_left_empty_is_named_with_the_way_out():
    with pytest.raises(InputError, match=r"imbalance 100 leaves class 2 .*its 20; use 10 or less"):
        ResidentData(labelled(10, 30, 20), CPU, seed=0, imbalance=100.0)
    assert ResidentData(
        labelled(10, 30, 20), CPU, seed=0, imbalance=10.0
    ).class_counts.tolist() == [10, 3, 1]


def test_a_class_without_any_picture_is_said_to_have_none():
    """Then no imbalance fits: a smaller one is no way out."""
    with pytest.raises(InputError, match=r"class 1\b") as caught:
        ResidentData(labelled(10, 0, 20), CPU, seed=0, imbalance=2.0)
    assert "or less" not in str(caught.value)
