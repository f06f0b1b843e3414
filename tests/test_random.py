"""Random numbers by (seed, purpose, index): NumPy's Philox bit for bit; normals; shuffles."""

import numpy as np
import pytest
import torch

from ganfast import latents as host
from ganfast.kernels import latents, shuffle
from ganfast.kernels.latents import latents_reference, philox_words
from ganfast.latents import Purpose
from ganfast.random import noise, normal, permute, scalar_seed, uniform

# Halves and sign of a 64-bit word.
SEEDS = [0, 1, 42, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1]
INDEX = [0, 1, 2, 2**32 - 1, 2**32, 2**53 + 1, 2**63 - 1]

# np.random.Philox(key=[seed, stream], counter=[0, index, 0, 0]).random_raw(4), NumPy 2.4
KNOWN = """
0 0 0  02F4BA6408E4D89B 3DD62B0B9CA8C5B2 1C8667A55D902E79 907D7A052FD5B4DC
2A 0 7  7344A9DBBBA9C04D 4E54F097A868198D 8DF50C8B929A196D 08FF86AAEC6906F8
8000000000000000 D 10000000001  550A69C2383BEB17 BC42F3831368A663 4B75042BDDB0983F EB964D57ACB7D233
FFFFFFFFFFFFFFFF FFFFFFFFFFFFFFFF 7FFFFFFFFFFFFFFF
 6B8C62CED006A2A1 9E0B5FBE9B544330 0B1FBD1A099BFCC6 82CE24A19B581EDE
""".replace("\n ", " ")
KNOWN = [[int(word, 16) for word in line.split()] for line in KNOWN.strip().splitlines()]
KNOWN = [(seed, stream, index, words) for seed, stream, index, *words in KNOWN]


def numpy_words(seed, stream, index, count):
    generator = np.random.Philox(
        key=np.array([seed, stream], np.uint64), counter=np.array([0, index, 0, 0], np.uint64)
    )
    return generator.random_raw(count)


def shuffled(size, seed=0, purpose=Purpose.ORDER, epoch=0):
    position = torch.arange(size)
    return permute(position, size, seed, purpose, torch.full_like(position, epoch))


@pytest.mark.parametrize("stream", [0, 13, 2**63, 2**64 - 1])
@pytest.mark.parametrize("seed", SEEDS)
def test_words_are_the_same_by_both_ways(seed, stream):
    """On a CPU in NumPy, in chunks; elsewhere, and in what is recorded or compiled, in torch."""
    for rows, count in ((0, 3), (1, 0), (5, 9), (3000, 12), (1 << 14, 1)):
        index = torch.randint(0, 2**63 - 1, (rows,))
        found = latents._words_on_host(seed, stream, index, count)
        assert (found.dtype, found.shape) == (torch.int64, (rows, count))
        assert torch.equal(found, latents._words_on_device(seed, stream, index, count))
        assert torch.equal(latents.philox_words(seed, stream, index[::2], count), found[::2])


@pytest.mark.parametrize("stream", [0, 13, 2**63, 2**64 - 1])
@pytest.mark.parametrize("seed", SEEDS)
def test_words_are_those_of_numpys_philox(seed, stream):
    for count in (1, 4, 7):  # a partial block, a whole one, and more than one
        expected = np.stack([numpy_words(seed, stream, i, count) for i in INDEX])
        on_torch = philox_words(seed, stream, torch.tensor(INDEX), count)
        np.testing.assert_array_equal(on_torch.numpy().view(np.uint64), expected)
        np.testing.assert_array_equal(
            host.philox_words(seed, stream, np.array(INDEX), count), expected
        )


def test_words_of_a_shorter_index_are_those_of_the_long_one():
    index = torch.arange(9)
    expected = latents.philox_words(3, 1, index, 5)
    assert torch.equal(latents.philox_words(3, 1, index.int(), 5), expected)


@pytest.mark.parametrize("count", [1, 2, 7, 16])
def test_normals_lie_one_after_the_other(count):
    found = latents_reference(3, 1, torch.tensor(INDEX), count)
    assert found.is_contiguous()
    np.testing.assert_array_equal(found.numpy(), host.latents(3, np.array(INDEX), count, 1))


@pytest.mark.parametrize(("seed", "stream", "index", "words"), KNOWN)
def test_known_words(seed, stream, index, words):
    assert (
        philox_words(seed, stream, torch.tensor([index]), 4).numpy().view(np.uint64)[0].tolist()
        == words
    )
    assert host.philox_words(seed, stream, np.array([index]), 4)[0].tolist() == words


@pytest.mark.parametrize("count", [1, 4, 7, 784])
def test_noise_is_thirteen_bits_at_a_time_of_numpys_words_from_the_top(count):
    words = np.stack([numpy_words(42, 5, i, -(-count // 4)) for i in INDEX])
    expected = (
        np.stack(
            [(words >> np.uint64(51 - 13 * k)) & np.uint64(0x1FFF) for k in range(4)], 2
        ).reshape(len(INDEX), -1)
        / 2**13
    )
    drawn = noise(42, Purpose.NOISE, torch.tensor(INDEX), count)
    assert (drawn.shape, drawn.dtype) == ((len(INDEX), count), torch.float32)
    np.testing.assert_array_equal(drawn.numpy(), expected[:, :count])


def test_known_latents():
    """The pictures of a (seed, index) are promised for good: these numbers must never change."""
    expected = """
        -0.5702505111694336 1.9461275339126587 -0.8648582696914673 0.5846463441848755
        -0.136850968003273 0.38319846987724304 0.972558856010437 0.5566105842590332
        -1.804815411567688 -0.7397736310958862
    """
    expected = np.array(expected.split(), np.float32).reshape(2, 5)
    np.testing.assert_array_max_ulp(
        latents_reference(7, 0, torch.tensor([0, 5]), 5).numpy(), expected, 1
    )
    np.testing.assert_array_max_ulp(host.latents(7, np.array([0, 5]), 5), expected, 1)


@pytest.mark.parametrize("dim", [1, 2, 5, 64, 127])
def test_latents_are_the_same_in_torch_and_numpy(dim):
    index = np.arange(3, 503)
    for seed in (0, 2**64 - 1):
        np.testing.assert_array_max_ulp(
            latents_reference(seed, 4, torch.from_numpy(index), dim).numpy(),
            host.latents(seed, index, dim, stream=4),
            1,
        )


def test_uniforms_and_normals_are_the_textbook_functions_of_the_words():
    words = host.philox_words(3, 1, np.arange(4), 6)
    u = (words >> np.uint64(11)) / 2.0**53
    np.testing.assert_array_equal(latents._exact_uniforms(3, 1, torch.arange(4), 6).numpy(), u)
    radius = np.sqrt(-2 * np.log(1 - u[:, 0::2]))
    z = np.empty_like(u)
    z[:, 0::2], z[:, 1::2] = (
        radius * np.cos(2 * np.pi * u[:, 1::2]),
        radius * np.sin(2 * np.pi * u[:, 1::2]),
    )
    np.testing.assert_allclose(latents_reference(3, 1, torch.arange(4), 6).numpy(), z, rtol=2e-7)
    np.testing.assert_array_equal(
        latents_reference(3, 1, torch.arange(4), 5).numpy(),
        latents_reference(3, 1, torch.arange(4), 6).numpy()[:, :5],
    )


def test_normals_have_the_moments_of_a_standard_normal():
    z = normal(11, Purpose.SAMPLE, torch.arange(5000), 40)
    assert z.dtype == torch.float32
    z = z.double()
    n = z.numel()
    for power, moment, variance in (
        (1, 0, 1),
        (2, 1, 2),
        (3, 0, 15),
        (4, 3, 96),
    ):  # variance of z**power
        assert abs(z.pow(power).mean() - moment) < 4 * (variance / n) ** 0.5, power
    correlation = torch.corrcoef(z.T) - torch.eye(40)
    assert correlation.abs().max() < 5 / 5000**0.5  # 780 pairs, each N(0, 1 / rows)
    rows = torch.corrcoef(z[:50])
    assert (rows - torch.eye(50)).abs().max() < 5 / 40**0.5
    assert 4 < z.abs().max() < 6.5  # tails: 200,000 draws reach past 4, not to infinity


def test_uniforms_are_uniform_and_never_one():
    u = uniform(5, Purpose.EPSILON, torch.arange(100_000))[:, 0]
    assert u.dtype == torch.float32
    assert u.min() >= 0
    assert u.max() < 1
    observed = torch.histc(u, 50, 0, 1)
    # Chi-square with 49 degrees of freedom.
    assert 20 < ((observed - 2000).square() / 2000).sum() < 95


def test_a_uniform_close_to_one_is_not_rounded_up_to_it(monkeypatch):
    exact = torch.tensor([[1 - 2.0**-53, 1 - 2.0**-24]], dtype=torch.float64)
    monkeypatch.setattr(latents, "_exact_uniforms", lambda *_: exact)
    assert uniform(0, Purpose.FLIP, torch.tensor([0]), 2).tolist() == [[1 - 2.0**-24, 1 - 2.0**-24]]


def test_a_row_does_not_depend_on_the_batch_it_is_drawn_in():
    whole = normal(1, Purpose.CRITIC_LATENT, torch.arange(64), 9)
    parts = torch.cat(
        [
            normal(1, Purpose.CRITIC_LATENT, torch.arange(a, b), 9)
            for a, b in ((0, 1), (1, 40), (40, 64))
        ]
    )
    assert torch.equal(whole, parts)
    assert torch.equal(
        whole[[5, 63, 5]], normal(1, Purpose.CRITIC_LATENT, torch.tensor([5, 63, 5]), 9)
    )
    assert torch.equal(whole[:, :4], normal(1, Purpose.CRITIC_LATENT, torch.arange(64), 4))


def test_seeds_purposes_and_images_each_draw_their_own():
    drawn = {
        tuple(philox_words(seed, purpose, torch.arange(3), 2).flatten().tolist())
        for seed in (0, 1)
        for purpose in Purpose
    }
    assert len(drawn) == 2 * len(Purpose)
    words = [philox_words(n, kind, torch.arange(50), 4) for n in (0, 1) for kind in Purpose]
    assert len(torch.cat(words).unique()) == 2 * len(Purpose) * 50 * 4


def test_purposes_are_streams_of_their_own_and_never_renumbered():
    assert len({*Purpose}) == len(Purpose.__members__)  # an alias would share its stream
    numbers = """
        0 SAMPLE 1 CRITIC_LATENT 2 GENERATOR_LATENT 4 EPSILON 5 NOISE 6 FLIP 7 ORDER
        8 BALANCED_ORDER 9 BATCHNORM 10 INIT 11 IMBALANCE 13 SAMPLE_CLASS
    """.split()
    for number, name in zip(numbers[::2], numbers[1::2], strict=True):
        assert Purpose[name] == int(number)
    np.testing.assert_array_equal(
        host.latents(3, np.arange(4), 6), normal(3, Purpose.SAMPLE, torch.arange(4), 6).numpy()
    )


def test_random_classes_are_uniform_and_fixed_by_seed_and_index():
    drawn = host.random_classes(2, np.arange(20_000), 10)
    assert drawn.dtype == np.int64
    counts = np.bincount(drawn, minlength=10)
    assert len(counts) == 10
    assert 1 < ((counts - 2000) ** 2 / 2000).sum() < 30  # chi-square with 9 degrees of freedom
    np.testing.assert_array_equal(
        host.random_classes(2, np.array([7, 19_999]), 10), drawn[[7, 19_999]]
    )
    u = host.philox_words(2, int(Purpose.SAMPLE_CLASS), np.arange(20_000), 1)[:, 0] / 2.0**64
    np.testing.assert_array_equal(drawn, np.floor(u * 10).astype(np.int64))


def test_scalar_seeds_fit_torchs_generator_and_differ():
    seeds = [
        scalar_seed(seed, Purpose.INIT, index) for seed in (0, 1, 2**62) for index in range(20)
    ]
    assert len(set(seeds)) == 60
    assert all(0 <= s < 2**63 for s in seeds)
    assert seeds[0] == int(numpy_words(0, Purpose.INIT, 0, 1)[0]) % 2**63


@pytest.mark.parametrize("size", [1, 2, 3, 10, 97, 1000, 60_000])
def test_permute_is_a_permutation_for_every_seed_purpose_and_epoch(size):
    orders = [
        shuffled(size, seed, purpose, epoch)
        for seed, purpose, epoch in (
            (0, Purpose.ORDER, 0),
            (2**63 - 1, Purpose.ORDER, 0),
            (0, Purpose.BALANCED_ORDER, 0),
            (0, Purpose.ORDER, 10**6),
        )
    ]
    for order in orders:
        assert torch.equal(order.sort().values, torch.arange(size))
    if size >= 97:  # 97! orders: two alike would be no accident
        assert len({tuple(order.tolist()) for order in orders}) == len(orders)
        for order in orders:
            assert (order == torch.arange(size)).sum() < 12  # fixed points: 1 expected


def test_a_known_shuffle():
    """A resumed run goes on in its order, with later versions too: never change these numbers."""
    assert shuffled(10, seed=7, epoch=3).tolist() == [5, 4, 3, 0, 6, 2, 7, 1, 8, 9]


@pytest.mark.parametrize("size", [1, 7, 60_000, 2**31 - 1, "each its own"])
@pytest.mark.parametrize("epochs", [1, 2, 37])
def test_a_cpu_shuffles_as_other_devices_do(size, epochs):
    """One in 32-bit words, the other in int64: the largest sizes, more rows than one go takes."""
    count, rng = 40_000, torch.Generator().manual_seed(epochs)
    sizes = (
        torch.randint(1, 2**31, (count,), generator=rng)
        if size == "each its own"
        else torch.full((count,), size)
    )
    position = torch.randint(0, 2**62, (count,), generator=rng) % sizes
    epoch = torch.randint(0, epochs, (count,), generator=rng)
    given = position, sizes if size == "each its own" else size, 2**63 - 1, Purpose.ORDER, epoch
    assert torch.equal(shuffle._permuted_on_host(*given), shuffle.permute_reference(*given))


def test_permute_is_elementwise():
    """Sizes and epochs may differ from position to position; nothing depends on the neighbours."""
    size = torch.tensor([5, 97, 5, 2])
    epoch = torch.tensor([0, 3, 1, 0])
    position = torch.tensor([4, 90, 4, 1])
    together = permute(position, size, 9, Purpose.ORDER, epoch)
    alone = [
        shuffled(int(n), 9, epoch=int(e))[int(x)].item()
        for n, e, x in zip(size, epoch, position, strict=True)
    ]
    assert together.tolist() == alone


def test_permute_makes_every_order_of_three_equally_often():
    position, count = torch.arange(3).repeat(12_000), 12_000
    order = permute(position, 3, 4, Purpose.ORDER, torch.arange(count).repeat_interleave(3)).view(
        count, 3
    )
    _, counts = order.unique(dim=0, return_counts=True)
    assert len(counts) == 6
    # Chi-square with 5 degrees of freedom.
    assert 0.1 < ((counts - 2000).square() / 2000).sum() < 25


@pytest.mark.parametrize("size", [2, 10, 31])
def test_permute_sends_every_position_everywhere_equally_often(size):
    count = 60 * size
    position = torch.arange(size).repeat(count)
    order = permute(position, size, 4, Purpose.ORDER, torch.arange(count).repeat_interleave(size))
    cells = torch.bincount(position * size + order, minlength=size * size).double()
    freedom = (size - 1) ** 2  # rows and columns of a permutation matrix sum to 1
    statistic = ((cells - 60).square() / 60).sum().item() * (size - 1) / size
    assert abs(statistic - freedom) < 6 * (2 * freedom) ** 0.5 + 6


def test_neighbours_do_not_stay_neighbours():
    order = shuffled(60_000)
    assert ((order[1:] - order[:-1]).abs() == 1).sum() < 15  # 2 expected
    halves = (order[:30_000] < 30_000).double().mean()
    assert abs(halves - 0.5) < 5 * 0.5 / 60_000**0.5
