"""Scores against float64 definitions and closed cases; extractors; `ganfast eval`."""

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist

from ganfast.cli import main
from ganfast.commands.curves import draw_curves
from ganfast.data import Pack, open_data
from ganfast.errors import InputError
from ganfast.evaluate.classifier import Classifier
from ganfast.evaluate.evaluation import Evaluation, open_reference
from ganfast.evaluate.extractor import Extractor, Features, Preprocessing
from ganfast.evaluate.extractors import MNIST_FILE, committed, find_extractor
from ganfast.evaluate.names import numbered, shortened
from ganfast.evaluate.report import table
from ganfast.evaluate.scores import (
    ClassScores,
    Frechet,
    divergence,
    kernel_distance,
    nearest,
    neighbourhoods,
)
from ganfast.evaluate.sources import Stored, classes_like
from ganfast.evaluate.squeezenet import SqueezeNet, load_squeezenet
from ganfast.presets import preset_config
from ganfast.runs.run import Run

RNG = np.random.default_rng(0)
CPU = torch.device("cpu")


def exactly(mean: np.ndarray, covariance: np.ndarray, n: int = 400) -> torch.Tensor:
    """Samples (n, D) float64 whose own mean and (unbiased) covariance are the given ones."""
    x = RNG.standard_normal((n, len(mean)))
    x -= x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T
    return torch.from_numpy(x @ np.linalg.cholesky(covariance).T + mean)


def distance(reals: torch.Tensor, fakes: torch.Tensor, parts: int = 3) -> float:
    metric = Frechet(reals.shape[1], CPU)
    for part in reals.tensor_split(parts):
        metric.reference(part)
    for part in fakes.tensor_split(parts):
        metric.add(part)
    return metric.distance()


def test_frechet_distance_of_gaussians_that_commute_is_the_closed_form():
    a, b = np.array([1.0, 4.0, 9.0]), np.array([4.0, 1.0, 16.0])
    shift = np.array([1.0, -2.0, 0.5])
    expected = (shift**2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    found = distance(exactly(np.zeros(3), np.diag(a)), exactly(shift, np.diag(b)))
    assert found == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_equals_a_float64_computation_and_forgets_what_it_scored():
    reals, fakes = (
        torch.from_numpy(
            RNG.standard_normal((n, 17)) @ RNG.standard_normal((17, 17)) + mean
        ).float()
        for n, mean in ((500, 100), (301, 101))
    )
    (ma, ca), (mb, cb) = (
        (x.double().numpy().mean(0), np.cov(x.double().numpy().T)) for x in (reals, fakes)
    )
    expected = ((ma - mb) ** 2).sum() + np.trace(ca + cb - 2 * sqrtm(ca @ cb).real)
    metric = Frechet(17, CPU)
    metric.reference(reals)
    for _ in range(2):
        metric.add(fakes[:100])
        metric.add(fakes[100:])
        assert metric.distance() == pytest.approx(expected, rel=1e-9)
    metric.add(reals)
    assert metric.distance() < 1e-3 * expected


def test_frechet_distance_equals_that_of_torchmetrics():
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Given(torch.nn.Module):
        num_features = 9

        def forward(self, features):
            return features.double()

    reals, fakes = (
        torch.from_numpy(RNG.standard_normal((n, 9)) @ RNG.standard_normal((9, 9)) - 3)
        for n in (60, 44)
    )
    fakes[:, 4] = fakes[:, 2]  # a singular covariance
    theirs = FrechetInceptionDistance(feature=Given())
    theirs.update(reals, real=True)
    theirs.update(fakes, real=False)
    assert distance(reals, fakes) == pytest.approx(float(theirs.compute()), rel=1e-5)


def test_kernel_distance_equals_the_unbiased_definition_in_float64():
    x, y = RNG.standard_normal((60, 5)), RNG.standard_normal((60, 5)) + 0.5

    def k(a, b):
        return (a @ b.T / 5 + 1) ** 3

    off = ~np.eye(60, dtype=bool)
    expected = k(x, x)[off].mean() + k(y, y)[off].mean() - 2 * k(x, y).mean()
    # A subset is all there is.
    mean, deviation = kernel_distance(torch.from_numpy(x), torch.from_numpy(y), subsets=2)
    assert mean == pytest.approx(expected, rel=1e-6)
    assert deviation is None
    assert kernel_distance(torch.from_numpy(x), torch.from_numpy(y[:59]), subsets=5)[1] > 0


def test_kernel_distance_leaves_torch_random_numbers_alone():
    x = torch.rand(20, 2)
    before = torch.get_rng_state()
    kernel_distance(x, x + 1)
    assert torch.equal(before, torch.get_rng_state())


# The second is more than one block of rows.
@pytest.mark.parametrize("shapes", [(40, 33), (1500, 60)], ids=str)
def test_neighbourhoods_equal_their_definitions(shapes):
    reals, fakes = RNG.standard_normal((shapes[0], 3)), RNG.standard_normal((shapes[1], 3)) + 0.7
    k = 3
    real_radius, fake_radius = (np.sort(cdist(x, x), axis=1)[:, k] for x in (reals, fakes))
    d = cdist(reals, fakes)
    expected = {
        "precision": np.mean([(d[:, j] <= real_radius).any() for j in range(shapes[1])]),
        "recall": np.mean([(d[i] <= fake_radius).any() for i in range(shapes[0])]),
        "density": np.mean([(d[:, j] <= real_radius).sum() / k for j in range(shapes[1])]),
        "coverage": np.mean([(d[i] <= real_radius[i]).any() for i in range(shapes[0])]),
    }
    found, recalled = neighbourhoods(torch.from_numpy(reals), torch.from_numpy(fakes), k)
    assert found == pytest.approx(expected, abs=1e-12)
    assert recalled.tolist() == [bool((d[i] <= fake_radius).any()) for i in range(shapes[0])]
    assert 0 < found["precision"] < 1
    assert 0 < found["recall"] < 1


def test_nearest_finds_copies_across_chunks():
    stored = torch.from_numpy(RNG.standard_normal((50, 4)))
    moved = stored[[49, 3, 20]] + torch.tensor([[0.0], [0.5], [0.0]])
    found, where = nearest(moved, stored.split(9))
    expected = cdist(stored[[3]].numpy() + 0.5, stored.numpy())[0]
    assert where.tolist() == [49, int(expected.argmin()), 20]
    assert found.tolist() == pytest.approx([0, expected.min(), 0], abs=1e-6)


def test_nearest_passes_over_a_row_itself_but_not_over_its_double():
    stored = torch.tensor([[0.0], [3.0], [4.0], [4.0], [9.0]])
    found, where = nearest(stored[[1, 2, 4]], stored.split(2), torch.tensor([1, 2, -1]))
    assert (found.tolist(), where.tolist()) == ([1, 0, 0], [2, 3, 4])


def test_class_scores_by_hand():
    logits = torch.tensor([[9.0, 0, 0], [9, 0, 0], [0, 9, 0]]) * 100  # certain: 0, 0, 1
    scores = ClassScores(3)
    scores.add(logits[:1], np.array([0]))
    scores.add(logits[1:], np.array([2, 1]))
    found = scores.scores(np.array([1, 1, 2]))
    entropy = -(2 / 3 * np.log(2 / 3) + 1 / 3 * np.log(1 / 3))
    assert found["classifier_score"] == pytest.approx(np.exp(entropy))
    assert found["kl_uniform"] == pytest.approx(np.log(3) - entropy)
    assert found["kl_data"] == pytest.approx(
        2 / 3 * np.log(2 / 3 / 0.25) + 1 / 3 * np.log(1 / 3 / 0.25)
    )
    assert found["modes"] == 2
    assert found["label_accuracy"] == pytest.approx(2 / 3)
    assert divergence(np.array([1, 1]), np.array([1, 0])) == np.inf


def test_classes_are_drawn_as_often_as_asked():
    drawn = classes_like(np.array([1, 0, 3]), 0, 0, 20_000)
    shares = np.bincount(drawn, minlength=3) / len(drawn)
    assert shares == pytest.approx([0.25, 0, 0.75], abs=0.02)
    assert (classes_like(np.array([1, 0, 3]), 0, 500, 600) == drawn[500:600]).all()


# ---- the whole evaluation on the embedded digits ----


@pytest.fixture(scope="module")
def digits():
    pack = open_data("digits")
    return pack, Evaluation(pack, None, find_extractor("auto", pack, CPU))


def stored(
    pictures: np.ndarray,
    name: str = "fakes",
    labels: np.ndarray | None = None,
    classes: tuple[str, ...] = (),
) -> Stored:
    info = replace(
        open_data("digits").info, classes=classes, count=len(pictures), size=pictures.shape[2]
    )
    return Stored(name, Pack(pictures, labels, info), seed=0)


class Asked:
    """Draws pictures of a set, whatever class it is asked for, and remembers which it was."""

    name, labels, count, facts = "asked", None, None, {}

    def __init__(self, pack: Pack, classes: tuple[str, ...]) -> None:
        self.pack = pack
        self.classes = classes
        self.shape = (pack.info.size, pack.info.size, pack.info.channels)
        self.asked: list[int] = []

    def pictures(self, start, stop, labels):
        self.asked += list(labels)
        return self.pack.images[start:stop].transpose(0, 2, 3, 1)


def test_scores_move_the_right_way(digits):
    pack, evaluation = digits
    reals = pack.images[evaluation.held_out]
    labels = pack.labels[evaluation.held_out]
    noise = np.clip(reals + RNG.normal(0, 60, reals.shape), 0, 255).astype(np.uint8)
    smooth = (
        sum(np.roll(reals.astype(float), (y, x), (2, 3)) for y in (-1, 0, 1) for x in (-1, 0, 1))
        / 9
    )
    variants = {
        "reals": reals,
        "noise": noise,
        "blur": smooth.astype(np.uint8),
        "half the classes": reals[labels < 5],
        "one": np.repeat(reals[:1], 500, 0),
        "copies": np.asarray(pack.images[evaluation.positions]),
    }
    found = {name: evaluation.score(stored(p, name)).scores for name, p in variants.items()}
    good = found["reals"]
    for name in ("noise", "blur", "half the classes", "one"):
        assert found[name]["frechet"] > 5 * good["frechet"] + 0.1, name
        assert found[name]["kernel"] > good["kernel"], name
    for name in (
        "half the classes",
        "one",
    ):  # what is there is real, but not all that is real is there
        assert found[name]["recall"] < 0.7 * good["recall"], name
        assert found[name]["coverage"] < 0.7 * good["coverage"], name
        assert found[name]["kl_data"] > 0.3, name
    assert found["half the classes"]["precision"] > 0.8
    assert found["noise"]["precision"] < 0.9 * good["precision"]
    assert (found["one"]["modes"], good["modes"]) == (1, 10)
    assert found["copies"]["copy_ratio"] == pytest.approx(0, abs=1e-3)
    assert good["copy_ratio"] == pytest.approx(0, abs=1e-3), "the other half was trained on, too"
    assert found["noise"]["copy_ratio"] > 1
    assert evaluation.floor["frechet"] < 0.1 * evaluation.ceiling
    assert found["one"]["cluster_spread"] < 1e-3
    assert found["half the classes"]["cluster_spread"] < 0.8 * good["cluster_spread"]
    assert good["cluster_spread"] > 0.9
    assert found["half the classes"]["class_recall_least"] < 0.1
    assert good["class_recall_least"] > 0.5


def test_recall_is_told_for_each_class_of_the_reals(digits):
    pack, evaluation = digits
    result = evaluation.score(stored(pack.images[evaluation.held_out][:400]))
    recalls = result.class_recalls
    assert set(recalls) == set(pack.info.classes)
    assert json.loads(json.dumps(result.to_json()))["class_recalls"] == recalls
    assert result.scores["class_recall"] == pytest.approx(np.mean(list(recalls.values())))
    assert result.scores["class_recall_least"] == min(recalls.values())
    # Classes weighed by how often they are among the 400 reals compared make the whole recall.
    order = np.concatenate([np.sort(evaluation.positions[i : i + 500]) for i in (0, 500)])
    counts = np.bincount(pack.labels[order[:400]], minlength=10) / 400
    whole = sum(counts[i] * recalls[name] for i, name in enumerate(pack.info.classes))
    assert result.scores["recall"] == pytest.approx(whole, abs=1e-12)


def test_protocol_names_what_the_score_depends_on(digits):
    pack, evaluation = digits
    result = evaluation.score(stored(np.asarray(pack.images[:300])))
    for part in (
        "digits/all",
        "898 reals",
        "300 fakes",
        f"local-classifier@{evaluation.extractor.sha256[:8]}",
    ):
        assert part in result.protocol_id
    other = evaluation.score(stored(np.asarray(pack.images[:299])))
    assert other.protocol_id != result.protocol_id
    json.dumps(result.to_json())


def test_pictures_on_disk_are_scored_in_no_order_of_classes_and_not_in_that_of_the_reference(
    digits,
):
    pack, evaluation = digits
    by_class = np.argsort(pack.labels, kind="stable")
    source = stored(pack.images[by_class], labels=pack.labels[by_class], classes=pack.info.classes)
    assert (
        source.pictures(3, 9, None)[:, :, :, 0] == pack.images[by_class][source.order[3:9], 0]
    ).all()
    result = evaluation.score(source, fakes=300)
    assert result.scores["modes"] == 10
    assert result.scores["label_accuracy"] > 0.95
    assert result.protocol["drawn"]["shuffled"] == 0
    # The reference's own set: not its half, picture by picture.
    whole = stored(np.asarray(pack.images))
    assert np.isin(whole.order[:300], evaluation.positions).mean() == pytest.approx(0.5, abs=0.15)


def test_classes_are_those_of_the_reference_or_drawn_evenly_without_an_accuracy(digits):
    pack, evaluation = digits
    same, more = Asked(pack, pack.info.classes), Asked(pack, (*"abcdefghijklmnopqrst",))
    first, second = (evaluation.score(source, fakes=400) for source in (same, more))
    assert "label_accuracy" in first.scores
    assert "classes" not in first.protocol["drawn"]
    assert sorted(set(more.asked)) == list(range(20))
    assert "label_accuracy" not in second.scores
    assert (
        "asked has classes of its own, drawn evenly, not those of digits: no label accuracy"
        in table([first, second])
    )
    other = stored(
        np.asarray(pack.images[:300]),
        labels=(np.asarray(pack.labels[:300]) + 1) % 10,
        classes=(*"abcdefghij",),
    )
    assert "label_accuracy" not in evaluation.score(other).scores


def test_floor_and_ceiling_are_made_of_as_many_pictures_as_are_scored(digits):
    pack, evaluation = digits
    few, many = (evaluation.score(stored(np.asarray(pack.images[:count]))) for count in (150, 600))
    assert (few.to_json()["floor_pictures"], many.to_json()["floor_pictures"]) == (150, 600)
    # The same pictures in another order.
    reals = evaluation.score(stored(np.asarray(pack.images[evaluation.held_out[:150]])))
    assert few.floor["frechet"] == pytest.approx(reals.scores["frechet"], rel=1e-4)
    assert few.floor["frechet"] > 1.5 * many.floor["frechet"]
    assert few.ceiling > many.ceiling
    heads = table([few, many]).splitlines()[0]
    assert all(
        f"{what} of {count}" in heads for what in ("floor", "ceiling") for count in (150, 600)
    )


def test_json_holds_no_number_that_is_none(digits):
    pack, evaluation = digits
    result = evaluation.score(stored(np.asarray(pack.images[:200])))
    result.scores["kl_data"] = np.inf
    result.scores.pop("kernel_std")
    told = json.loads(json.dumps(result.to_json(), allow_nan=False))["scores"]
    assert told["kl_data"] is told["kernel_std"] is None
    assert told["frechet"] == result.scores["frechet"]


def test_names_are_as_short_as_tells_them_apart_and_never_equal():
    assert shortened(["runs/a at 1 kimg", "runs/b/", "old/b"]) == ["a at 1 kimg", "runs/b", "old/b"]
    assert numbered(["a", "b", "a", "a"]) == ["a", "b", "a (2)", "a (3)"]
    assert len(set(numbered(["a (2)", "a", "a"]))) == 3


def test_too_few_and_other_sizes_are_refused(digits):
    pack, evaluation = digits
    with pytest.raises(InputError, match="50 pictures .* 100 or more"):
        evaluation.score(stored(np.asarray(pack.images[:50])))
    with pytest.raises(InputError, match="pictures of 20x20x1 and digits of 16x16x1"):
        evaluation.score(stored(np.zeros((200, 1, 20, 20), np.uint8)))


# ---- extractors ----


def test_committed_classifier_is_small_and_hashed():
    assert MNIST_FILE.stat().st_size <= 200_000
    assert committed(CPU).published


def test_a_changed_extractor_file_is_refused(tmp_path, monkeypatch):
    changed = tmp_path / "mnist.safetensors"
    changed.write_bytes(MNIST_FILE.read_bytes()[:-1] + b"\0")
    monkeypatch.setattr("ganfast.evaluate.extractors.MNIST_FILE", changed)
    with pytest.raises(InputError, match="another file, or a damaged one"):
        committed(CPU)


def test_a_run_with_the_classes_of_an_earlier_version_has_a_local_classifier_of_its_own(
    tmp_path, monkeypatch
):
    """The same pictures with labels 1 to 3 are three classes now, and were four."""
    data = tmp_path / "set.npz"
    np.savez(data, images=np.zeros((9, 8, 8), np.uint8), labels=np.arange(9) % 3 + 1)
    untrained = lambda pack, *_: Classifier(8, 1, len(pack.info.classes))  # noqa: E731
    monkeypatch.setattr("ganfast.evaluate.extractors.train_classifier", untrained)
    for rules, classes in ((1, 4), (2, 3)):
        pack = open_data(str(data), rules=rules)
        logits = find_extractor("local", pack, CPU)(np.zeros((2, 8, 8, 1), np.uint8)).logits
        assert logits.shape == (2, classes)


def test_local_classifier_is_trained_once(digits, monkeypatch):
    pack, evaluation = digits
    monkeypatch.setattr("ganfast.evaluate.extractors.train_classifier", None)
    assert find_extractor("local", pack, CPU).sha256 == evaluation.extractor.sha256


@pytest.mark.parametrize(
    ("wanted", "more", "message"),
    [
        ("mnits", {}, "did you mean mnist"),
        ("nowhere.npz", {}, "nowhere.npz does not exist"),
        ("mnist", {}, "scores 28x28 pictures, and digits has 16x16"),
        ("local", {"sha256": "0" * 64}, "belong to an extractor file"),
    ],
)
def test_extractors_that_cannot_be_are_refused(digits, wanted, more, message):
    with pytest.raises(InputError, match=message):
        find_extractor(wanted, digits[0], CPU, **more)


def test_a_set_without_classes_needs_a_file(tmp_path):
    np.save(tmp_path / "plain.npy", RNG.integers(0, 256, (300, 16, 16), dtype=np.uint8))
    with pytest.raises(
        InputError, match="no classes to train a feature network on.*--extractor FILE"
    ):
        find_extractor("auto", open_data(str(tmp_path / "plain.npy")), CPU)


class Flat(torch.nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :7] * 2


def test_torchscript_with_its_preprocessing(digits, tmp_path):
    pack, _ = digits
    path = tmp_path / "flat.pt"
    torch.jit.script(Flat()).save(str(path))
    found = find_extractor(str(path), pack, CPU, preprocessing="size=0,channels=1,mean=100,std=50")
    pictures = np.ascontiguousarray(pack.images[:5].transpose(0, 2, 3, 1))
    expected = (pictures.reshape(5, -1)[:, :7].astype(float) - 100) / 50 * 2
    assert found(pictures).features.numpy() == pytest.approx(expected, rel=1e-6)
    assert found.dim == 7
    with pytest.raises(InputError, match="expected the 64 hex digits"):
        find_extractor(str(path), pack, CPU, sha256="0000000", preprocessing="channels=1")
    with pytest.raises(InputError, match="needs --preprocessing"):
        find_extractor(str(path), pack, CPU)
    with pytest.raises(InputError, match=r"flat.pt has sha256 .*; expected 00000000"):
        find_extractor(str(path), pack, CPU, sha256="00000000", preprocessing="channels=1")


def test_onnx_with_its_preprocessing(digits, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    given, made = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("pictures", ["n", 3, 8, 8]), ("rows", ["n", 3, 8]))
    )
    axes = onnx.helper.make_tensor("axes", onnx.TensorProto.INT64, [1], [3])
    mean = onnx.helper.make_node("ReduceMean", ["pictures", "axes"], ["rows"], keepdims=0)
    graph = onnx.helper.make_graph([mean], "rows", [given], [made], [axes])
    path = tmp_path / "rows.onnx"
    opset = [onnx.helper.make_opsetid("", 18)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    found = find_extractor(
        str(path), digits[0], CPU, preprocessing="size=8,channels=3,mean=100/110/120,std=50"
    )
    assert (found.name, found.dim, found.judges_labels) == ("rows", 24, False)
    pictures = np.full((2, 16, 16, 1), 150, np.uint8)
    expected = np.repeat([(150 - 100) / 50, (150 - 110) / 50, (150 - 120) / 50], 8)
    assert found(pictures).features.numpy() == pytest.approx(np.stack([expected] * 2), rel=1e-5)
    (tmp_path / "text.onnx").write_text("<html>")
    with pytest.raises(
        InputError, match="text.onnx cannot be the extractor: ONNX Runtime .* cannot run the model"
    ):
        find_extractor(str(tmp_path / "text.onnx"), digits[0], CPU, preprocessing="channels=1")


@pytest.mark.parametrize(
    ("kind", "channels", "classes", "judges"),
    [
        ("idx", 1, "0123456789", True),
        ("folder", 1, "ABCDEFGHIJ", False),
        ("folder", 3, "0123456789", False),
        ("stacked-mnist", 3, "many", True),
    ],
)
def test_the_committed_classifier_judges_digits_only(digits, kind, channels, classes, judges):
    pack = replace(
        digits[0],
        info=replace(digits[0].info, kind=kind, size=28, channels=channels, classes=tuple(classes)),
    )
    assert find_extractor("mnist", pack, CPU).judges_labels == judges


@pytest.mark.parametrize("text", ["size=big", "colour=3", "channels=2", "mean=1/2", "std=0"])
def test_preprocessing_that_cannot_be_is_refused(text):
    with pytest.raises(InputError, match="preprocessing"):
        Preprocessing.parse(text)


def test_preprocessing_says_what_it_does_and_reverses_channels():
    text = "size=0,channels=3,mean=1/2/3,std=2,bgr=yes"
    prepare = Preprocessing.parse(text)
    assert str(prepare) == text
    x = torch.tensor([10, 20, 30], dtype=torch.uint8).view(1, 1, 1, 3)
    assert prepare(x).flatten().tolist() == [(30 - 1) / 2, (20 - 2) / 2, (10 - 3) / 2]


def test_squeezenet_reads_its_file_and_refuses_others(tmp_path):
    torch.manual_seed(0)
    net = SqueezeNet()
    arrays = {
        name[::-1].replace(".", "/", 1)[::-1].replace(".", "/"): v.numpy()
        for name, v in net.state_dict().items()
    }
    np.savez(tmp_path / "w.npz", **arrays)
    x = torch.rand(2, 3, 64, 64)
    assert torch.equal(load_squeezenet(tmp_path / "w.npz")(x), net(x))
    assert net(x).shape == (2, 512)
    arrays.pop("fire5/conv3x3_2/weight")
    np.savez(tmp_path / "less.npz", **arrays)
    with pytest.raises(InputError, match="no fire5/conv3x3_2/weight"):
        load_squeezenet(tmp_path / "less.npz")


class Mean(Extractor):
    name, sha256, preprocessing, dim = "mean", "0" * 64, "none", 1

    def extract(self, pictures):
        return Features(pictures.float().mean((1, 2, 3))[:, None], None)


def test_an_extractor_without_logits_gives_no_class_scores(digits):
    pack, _ = digits
    scores = Evaluation(pack, None, Mean()).score(stored(np.asarray(pack.images[:200]))).scores
    assert "frechet" in scores
    assert "modes" not in scores


# ---- the reference ----


def idx_set(folder: Path, count: int, prefix: str) -> None:
    pictures, labels = np.zeros((count, 16, 16), np.uint8), (np.arange(count) % 10).astype(np.uint8)
    folder.mkdir(exist_ok=True)
    for array, name in ((pictures, "images-idx3-ubyte"), (labels, "labels-idx1-ubyte")):
        header = bytes([0, 0, 8, array.ndim]) + b"".join(
            side.to_bytes(4, "big") for side in array.shape
        )
        (folder / f"{prefix}-{name}").write_bytes(header + array.tobytes())


def test_a_damaged_test_split_is_no_missing_one(tmp_path):
    idx_set(tmp_path, 30, "train")
    assert open_reference(str(tmp_path))[1] is None
    idx_set(tmp_path, 20, "t10k")
    assert open_reference(str(tmp_path))[1].info.count == 20
    labels = tmp_path / "t10k-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1])
    with pytest.raises(
        InputError, match="t10k-labels-idx1-ubyte announces 20 = 20 values and holds 19"
    ):
        open_reference(str(tmp_path))
    labels.unlink()  # a split without classes will do
    assert open_reference(str(tmp_path))[1].labels is None
    (tmp_path / "t10k-images-idx3-ubyte").rename(labels)
    with pytest.raises(InputError, match="no t10k-images-idx3-ubyte"):
        open_reference(str(tmp_path))


def test_a_test_split_gets_the_size_of_the_training_pictures(tmp_path):
    np.savez(
        tmp_path / "two.npz",
        x_train=np.zeros((5, 16, 16), np.uint8),
        x_test=np.zeros((4, 20, 20, 3), np.uint8),
    )
    train, test = open_reference(str(tmp_path / "two.npz"))
    assert (train.images.shape, test.images.shape) == ((5, 1, 16, 16), (4, 1, 16, 16))


def test_faces_without_any_in_the_test_split_are_not_divided_and_damaged_ones_are_an_error(
    tmp_path,
):
    (tmp_path / "img_align_celeba").mkdir()
    for number in range(4):
        Image.new("RGB", (178, 218), (60 * number, 0, 0)).save(
            tmp_path / f"img_align_celeba/{number}.jpg"
        )
    table = tmp_path / "list_eval_partition.txt"
    table.write_text("".join(f"{number}.jpg 0\n" for number in range(4)))
    assert open_reference(str(tmp_path))[1] is None
    table.write_text("0.jpg 0\n1.jpg 0\n2.jpg 2\n3.jpg 2\n")
    assert open_reference(str(tmp_path))[1].info.count == 2
    (tmp_path / "img_align_celeba/3.jpg").write_bytes(b"no picture")
    with pytest.raises(InputError, match="3.jpg"):
        open_reference(str(tmp_path))


# ---- the command ----


def test_eval_compares_pictures_on_disk_with_digits(tmp_path, capsys):
    pack = open_data("digits")
    np.savez(tmp_path / "drawn.npz", images=pack.images[:400, 0], labels=pack.labels[:400])
    arguments = f"eval {tmp_path / 'drawn.npz'} --data digits --sheet {tmp_path / 's.png'}".split()
    assert main([*arguments, "--json", str(tmp_path / "r.json")]) == 0
    shown = capsys.readouterr().out
    said = "Frechet distance | floor: 400 held-out reals, which were trained on, too | ceiling"
    for word in f"{said} | label accuracy | this machine only | 400 fakes".split(" | "):
        assert word in shown
    (record,) = json.loads((tmp_path / "r.json").read_text())
    assert record["scores"]["label_accuracy"] > 0.95
    assert (tmp_path / "s.png").exists()


# A command line | what must be in the sentence.
REFUSED = """
x.npz | give --data
x.npz --data digits | no data named 'x.npz'
x.npz --sheet a.jpg | written as FILE.png
few.npy --data digits --extractor vgg | unknown extractor 'vgg'
few.npy --data digits | 50 pictures (few.npy) are too few: with 64 features scores need 100 or more
large.npy --data digits | 20x20x1 and digits of 16x16x1: give --size 16
bundle --data digits | bundle has pictures of 8x8x1 and digits of 16x16x1: give --size 8
bundle --data digits --size 20 | bundle has pictures of 8x8x1 and digits of 20x20x1
few.npy --data large.npy --need-labels |
 large has no classes, which scores of labels need: sub-folders
large.npy --data large.npy |
 large has no classes to train a feature network on: give one with --extractor
few.npy --data digits --extractor s.npz --sha256 00000000 | expected 00000000: another file, or a
few.npy --data digits --extractor s.npz --sha256 'no hash' |
 is 'no hash'; expected the 64 hex digits
few.npz --data digits --extractor s.npz --need-labels | names no classes of digits
few.npz few.npy --data digits --need-labels | few.npy has no labels with the classes of digits
x.npz --json few.npy/r.json | few.npy/r.json cannot be written
x.npz --json . | it is a folder
"""


@pytest.mark.parametrize("row", REFUSED.replace("|\n", "|").strip().splitlines())
def test_eval_refuses_in_one_sentence(row, capsys, tmp_path, monkeypatch):
    line, message = row.split(" | ")
    arguments = shlex.split(line)
    monkeypatch.chdir(tmp_path)
    np.save("few.npy", RNG.integers(0, 256, (50, 16, 16), dtype=np.uint8))
    np.savez(
        "few.npz",
        images=RNG.integers(0, 256, (50, 16, 16), dtype=np.uint8),
        labels=np.arange(50) % 10,
    )
    if arguments[0] != "few.npy":  # all else is said before a classifier is trained
        monkeypatch.setattr("ganfast.evaluate.extractors.train_classifier", None)
    np.save("large.npy", RNG.integers(0, 256, (300, 20, 20), dtype=np.uint8))
    if "s.npz" in arguments:
        np.savez(
            "s.npz",
            **{name.replace(".", "/"): x.numpy() for name, x in SqueezeNet().state_dict().items()},
        )
    if "bundle" in arguments:
        from tests.small_bundle import small_bundle

        small_bundle(tmp_path / "bundle")
    assert main(["eval", *arguments]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in said
    assert "--size" in message or "--size" not in said


def test_a_folder_of_pictures_gets_the_size_of_the_reference_and_results_a_folder(tmp_path, capsys):
    drawn, out = tmp_path / "drawn", tmp_path / "new" / "r.json"
    drawn.mkdir()
    for number, picture in enumerate(open_data("digits").images[:120]):
        Image.fromarray(picture[0]).save(drawn / f"{number}.png")
    assert main(["eval", str(drawn), str(drawn), "--data", "digits", "--json", str(out)]) == 0
    expected = [str(drawn), f"{drawn} (2)"]
    assert [record["name"] for record in json.loads(out.read_text())] == expected
    assert "120 fakes" in capsys.readouterr().out


def test_a_bundle_is_scored_at_several_psi_under_different_names(tmp_path, capsys):
    from tests.small_bundle import small_bundle

    small_bundle(tmp_path / "bundle", classes=12)
    assert (
        main(f"eval {tmp_path / 'bundle'} --data digits --size 8 -n 120 --psi 1 0.5".split()) == 0
    )
    shown = capsys.readouterr().out
    assert "bundle psi 1  bundle psi 0.5" in shown
    assert shown.count("drawn evenly, not those of digits: no label accuracy") == 2


def test_eval_and_plot_of_a_run(tmp_path, capsys):
    out = tmp_path / "run"
    small = ["--kimg", "2", "--batch", "32", "--net.width", "8", "--quiet", "--log.every", "1"]
    small += ["--score.every-kimg", "1", "--score.count", "150"]
    assert main(["train", "dcgan", "--data", "digits", "--out", str(out), *small]) == 0
    assert main(["eval", str(out), "--psi", "1", "0.5", "-n", "200"]) == 0
    shown = capsys.readouterr().out
    assert "psi=0.5,ema=True" in shown
    assert "digits/all" in shown
    for name in ("curves.png", "curves.svg"):
        assert main(["plot", str(out), "--out", str(tmp_path / name)]) == 0
        assert (tmp_path / name).stat().st_size > 5000
    for panel in ("critic loss", "images/s", "score/frechet"):
        assert f"<!-- {panel} -->" in (tmp_path / "curves.svg").read_text()
    assert main(["plot", str(out), "--out", "curves.gif"]) == 2
    assert main(["eval", str(out), "--psi", "3"]) == 2
    assert "psi is 3.0; expected 0 (one picture) to 2" in capsys.readouterr().err
    names = ["a/_left", "b/_left", "$a_b$"]
    for name in names:
        shutil.copytree(out, tmp_path / name)
    whole = (out / "log.jsonl").read_text().splitlines()
    (tmp_path / "a/_left/log.jsonl").write_text(whole[0] + "\n[]\n3\nnull\n")
    assert (
        main(
            [
                "plot",
                *(str(tmp_path / name) for name in names),
                "--out",
                str(tmp_path / "names.svg"),
            ]
        )
        == 0
    )
    drawn = (tmp_path / "names.svg").read_text()
    assert all(f"<!-- {name} -->" in drawn for name in names)
    (tmp_path / "a/_left/log.jsonl").write_text('{"images": 3, "critic/loss": "nan"}\n[]\n')
    assert main(["plot", str(tmp_path / "a/_left")]) == 2
    assert (
        "log.jsonl has none of the quantities that are drawn: critic/loss"
        in capsys.readouterr().err
    )
    shutil.rmtree(out / "checkpoints")
    assert main(["eval", str(out), "--checkpoint", "all"]) == 2
    assert "has no checkpoint yet; train it further" in capsys.readouterr().err


def test_a_single_logged_line_is_drawn_as_a_point(tmp_path, monkeypatch):
    run = Run(tmp_path, preset_config("dcgan", "digits"), {})
    monkeypatch.setattr(Run, "open", staticmethod(lambda folder: run))
    (tmp_path / "log.jsonl").write_text('{"images": 3000, "critic/loss": 1}\n')
    one = draw_curves([str(tmp_path)], str(tmp_path / "one.svg")).read_text()
    (tmp_path / "log.jsonl").write_text(
        '{"images": 3000, "critic/loss": 1}\n{"images": 4000, "critic/loss": 1}\n'
    )
    two = draw_curves([str(tmp_path)], str(tmp_path / "two.svg")).read_text()
    # How a marker is written.
    assert ["<g clip-path" in text for text in (one, two)] == [True, False]


# ---- real data ----


def test_committed_classifier_reaches_its_accuracy(real_data):
    pack = open_data("mnist", split="test", root=str(real_data))
    extractor = committed(CPU)
    right = 0
    for start in range(0, 10_000, 1000):
        found = extractor(
            np.ascontiguousarray(pack.images[start : start + 1000].transpose(0, 2, 3, 1))
        )
        right += int((found.logits.argmax(1).numpy() == pack.labels[start : start + 1000]).sum())
    assert right >= 9930


@pytest.mark.accept
def test_squeezenet_distances_of_faces_have_floor_and_ceiling(real_data):
    pack = open_data("celeba-half", size=64, root=str(real_data))
    weights = real_data / "squeezenet" / "squeezenet_v1.0_decoded.npz"
    evaluation = Evaluation(pack, None, find_extractor(str(weights), pack, CPU), 2000)
    print("floor", evaluation.floor["frechet"], "ceiling", evaluation.ceiling)
    assert 0 < evaluation.floor["frechet"] < evaluation.ceiling / 5


# ---- StackedMNIST ----


def test_stacked_pictures_are_three_digits_and_the_device_makes_the_same(real_data):
    from ganfast.data.resident import ResidentData

    digits, pack = (open_data(name, root=str(real_data)) for name in ("mnist", "stacked-mnist"))
    assert (pack.images.shape, len(pack.info.classes)) == ((128_000, 3, 28, 28), 1000)
    for i in (0, 77, 127_999):
        triple = pack.images.triples[i]
        assert (pack.images[i] == np.stack([digits.images[t, 0] for t in triple])).all()
        assert pack.labels[i] == int("".join(str(digits.labels[t]) for t in triple))
    batch, labels = ResidentData(pack, CPU, seed=0).batch(0, 5)
    for picture, label in zip(batch, labels, strict=True):
        pixels = ((picture + 1) * 127.5).round().to(torch.uint8).numpy()
        candidates = np.flatnonzero(pack.labels == int(label))
        assert any((pack.images[int(k)] == pixels).all() for k in candidates)


@pytest.mark.accept
def test_stacked_reals_have_a_thousand_modes_and_one_picture_has_one(real_data):
    from ganfast.evaluate.extractors import find_extractor

    pack = open_data("stacked-mnist", split="test", root=str(real_data))
    extractor = find_extractor("auto", pack, CPU)
    assert extractor.published
    reals, one = ClassScores(1000), ClassScores(1000)
    truth = np.bincount(pack.labels, minlength=1000)
    for start in range(0, 26_000, 500):
        pictures = np.ascontiguousarray(
            pack.images[np.arange(start, start + 500)].transpose(0, 2, 3, 1)
        )
        reals.add(extractor(pictures).logits, pack.labels[start : start + 500])
    one.add(extractor(np.repeat(pictures[:1], 100, 0)).logits, None)
    train = open_data("stacked-mnist", root=str(real_data))
    found = reals.scores(np.bincount(train.labels, minlength=1000))
    assert found["modes"] == 1000
    assert found["label_accuracy"] >= 0.98
    # A sample of 26,000 of 1000 equally likely classes has a KL of about 999 / 52,000 from them.
    assert 0.01 < found["kl_data"] < 0.05
    assert one.scores(truth)["modes"] == 1


def test_stacked_mnist_refuses_what_it_has_not(real_data):
    with pytest.raises(InputError, match="no split 'all': choose from train, test"):
        open_data("stacked-mnist", split="all", root=str(real_data))
    with pytest.raises(InputError, match="3 channels, a digit each; channels is 1"):
        open_data("stacked-mnist", channels=1, root=str(real_data))
