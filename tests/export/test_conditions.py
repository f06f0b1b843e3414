"""Bundles of conditional generators: exported, drawn, applied to folders of pictures, refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from ganfast.cli import main
from ganfast.config import NetConfig
from ganfast.data import open_data
from ganfast.errors import InputError
from ganfast.evaluate.pairs import Pairs
from ganfast.export import export_bundle, load_sampler, refit_bundle
from ganfast.export.bundle.bundle import open_bundle, write_bundle
from ganfast.export.drawing.sampler import Sampler
from ganfast.export.drawing.tiles import in_tiles
from ganfast.export.engines.vendor import Build, build_plan, load_flavour
from ganfast.models import build_generator
from ganfast.presets import preset_config
from ganfast.runs.run import Run
from ganfast.runs.train import train
from ganfast.tasks import task_of
from tests.export.test_sampler import BACKENDS, apart, backends
from tests.small_bundle import small_bundle
from tests.small_runs import few_digits, tiny

KINDS = ("superres", "inpaint")
# The ordinary tests export superres as fp32 and inpaint as fp16.
PRECISIONS = [(kind, precision) for kind in KINDS for precision in ("bf16", "int8")]
PRECISIONS += [("superres", "fp16"), ("inpaint", "fp32")]


def untrained(folder, kind: str) -> Run:
    """A run whose generator is in memory, with random weights that z and the condition reach."""
    config = preset_config(kind, "digits")
    classes = "projection" if kind == "superres" else "no"
    task = replace(config.task, kind=kind, scale=2)
    net = NetConfig(width=8, latent=6)
    config = replace(config, task=task, net=net, conditional=classes)
    data = {"size": 16, "channels": 3 if kind == "superres" else 1, "classes": ["a", "b", "c"]}
    run = Run(folder, config, data | {"source_hash": "", "rules": 3})
    checkpoint = folder / "1"
    checkpoint.mkdir(parents=True)
    (checkpoint / "ema.safetensors").write_bytes(b"")
    torch.manual_seed(0)
    generator = build_generator(run.spec())
    torch.nn.init.normal_(generator.tail.weight, 0, 0.05)
    run._generators[str(checkpoint), "cpu"] = generator.eval().requires_grad_(False)
    return run


def some(run: Run, count: int, seed: int = 0) -> np.ndarray:
    """Smooth pictures, and masks of random pixels where the task has them."""
    random = np.random.default_rng(seed)
    h, w, k = run.spec().given
    at = np.add.outer(np.arange(h), np.arange(w))[None, :, :, None]
    phase = random.uniform(0, 6, (2, count, 1, 1, k))
    pictures = (127.5 + 120 * np.sin(0.3 * at * phase[0] / 6 + phase[1])).astype(np.uint8)
    masks = random.integers(2, size=pictures.shape, dtype=np.uint8) * 255
    channels = run.data["channels"]
    return np.concatenate([pictures[..., :channels], masks[..., channels:]], 3)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {kind: untrained(folder / kind, kind) for kind in KINDS}


def exported(run, out, precision="fp32", **options):
    checkpoint = str(run.folder / "1")
    how = {"checkpoint": checkpoint, "conditions": some(run, 90), "buckets": (1, 4)}
    return export_bundle(run, out, precision, **how | options)


@pytest.fixture(scope="module")
def bundles(runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    how = {"superres": "fp32", "inpaint": "fp16"}
    return {kind: exported(runs[kind], folder / kind, how[kind]) for kind in KINDS}


def answer(run, condition, **how):
    return run.apply(condition, checkpoint=str(run.folder / "1"), device="cpu", **how)


@pytest.mark.accept
@pytest.mark.parametrize(("kind", "precision"), PRECISIONS)
def test_every_precision_keeps_its_gate_and_known_pixels(kind, precision, runs, tmp_path):
    bundle = exported(runs[kind], tmp_path / "b", precision)
    assert not any(bundle.manifest.lint[target] for target in ("tensorrt-10", "tensorrt-11", "rtx"))
    with load_sampler(bundle.folder, "cpu") as sampler:
        assert_known(sampler, some(runs[kind], 5, 1))
    pytest.importorskip("tensorrt_rtx")
    assert build_plan(load_flavour("rtx"), bundle.model_bytes(), Build((1, 4)), ["8.6"])[0]


def assert_known(sampler, condition):
    drawn = sampler.apply(condition, seed=3)
    if condition.shape[3] == 2:
        known = condition[..., 1:] == 255
        np.testing.assert_array_equal(drawn[known], condition[..., :1][known])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_bundle_answers_as_its_run(kind, backend, runs, bundles):
    run, condition = runs[kind], some(runs[kind], 11, 1)
    with Sampler(bundles[kind], backends(bundles[kind])[backend], []) as sampler:
        for psi in (1.0, 0.0):
            expected = answer(run, condition, seed=3, first=2, psi=psi)
            drawn = sampler.apply(condition, seed=3, first=2, psi=psi)
            assert apart(drawn, expected) <= 1
        assert_known(sampler, condition)
        later = sampler.submit_apply(condition[4:7], 3, 6).result()
        assert apart(later, answer(run, condition[4:7], seed=3, first=6)) <= 1
        asked = condition[:1].copy()
        late = sampler.submit_apply(asked)
        asked[...] = 0
        assert apart(late.result(), answer(run, condition[:1])) <= 1, "a copy was taken"


def test_tiles_of_a_larger_picture_have_no_seam(runs, bundles):
    """A generator that only enlarges gives in tiles what it gives at once."""
    picture = some(runs["superres"], 1)[0].repeat(3, 0).repeat(2, 1)[:19]
    enlarged = in_tiles(lambda x: x.repeat(2, 1).repeat(2, 2), picture, (8, 8, 3), 3)
    np.testing.assert_array_equal(enlarged, picture.repeat(2, 0).repeat(2, 1))
    steps = in_tiles(
        lambda x: np.zeros_like(x) + 40 * np.arange(len(x), dtype=np.uint8)[:, None, None, None],
        np.zeros((8, 20, 1), np.uint8),
        (8, 8, 1),
        4,
    )
    assert np.abs(np.diff(steps[3, :, 0].astype(int))).max() == 16, "faded over, not cut"
    with load_sampler(bundles["superres"].folder, "cpu") as sampler:
        assert sampler.apply_tiles(picture, 4).shape == (38, 32, 3)
        tile = some(runs["superres"], 1)
        one = sampler.apply(tile, seed=2, first=5, labels=1)
        np.testing.assert_array_equal(sampler.apply_tiles(tile[0], 4, 2, 5, labels=1), one[0])
    few = in_tiles(lambda x: x, np.zeros((9, 9, 1), np.uint8), (4, 4, 1), None)
    assert few.shape == (9, 9, 1), "half a tile is less than 4 pixels"


def test_bad_conditions_are_one_sentence(runs, bundles, tmp_path):
    good = {kind: some(runs[kind], 2) for kind in KINDS}
    third = good["inpaint"].copy()
    third[1, 3, 4, 1] = 7
    for kind, wrong, said in (
        ("superres", good["superres"][:, :-1], r"uint8 \(2, 7, 8, 3\); superres expects uint8"),
        ("superres", good["superres"].astype(np.float32), "the condition is float32"),
        ("superres", good["superres"][0], "the condition is uint8"),
        ("superres", "x", "the condition is str"),
        ("inpaint", good["inpaint"][..., :1], r"\(N, 16, 16, 2\), grey\+mask"),
        ("inpaint", third, "the mask holds 7; expected 255 = known and 0 = hole"),
    ):
        with load_sampler(bundles[kind].folder, "cpu", threads=1) as sampler:
            with pytest.raises(InputError, match=said):
                sampler.submit_apply(wrong)
            for drawn in (lambda: sampler.sample(2), lambda: sampler.draw(np.zeros((2, 6)))):
                with pytest.raises(InputError, match="makes pictures from others .*use apply"):
                    drawn()
    plain = small_bundle(tmp_path / "plain")
    with load_sampler(plain.folder, "cpu") as sampler:
        with pytest.raises(InputError, match="takes no condition: use sample"):
            sampler.apply(good["superres"])
        with pytest.raises(InputError, match="superres|condition"):
            sampler.refit(bundles["superres"].folder)


def saved(folder, pictures):
    folder.mkdir()
    for i, picture in enumerate(pictures):
        mode = picture[..., 0] if picture.shape[2] == 1 else picture
        Image.fromarray(mode).save(folder / f"{i}.png")
    return str(folder)


def test_the_command_applies_a_bundle_to_folders(runs, bundles, tmp_path, capsys):
    small, holes = some(runs["superres"], 3), some(runs["inpaint"], 3)
    given = saved(tmp_path / "small", small)
    pictures = saved(tmp_path / "pictures", holes[..., :1])
    masks = saved(tmp_path / "masks", holes[..., 1:])
    to, out = str(tmp_path / "out"), tmp_path / "out"
    superres, inpaint = (str(bundles[kind].folder) for kind in KINDS)
    assert main(["apply", superres, given, "--out", to, "--variants", "2", "--labels", "1,2"]) == 0
    drawn = np.stack([np.asarray(Image.open(out / f"{i}_{k}.png")) for i in "012" for k in "01"])
    with load_sampler(bundles["superres"].folder, "cpu") as sampler:
        expected = sampler.apply(small.repeat(2, 0), labels=[1, 2] * 3)
    np.testing.assert_array_equal(drawn, expected)
    assert main(["apply", inpaint, pictures, "--mask", masks, "--out", to]) == 0
    known = holes[..., 1] == 255
    again = np.stack([np.asarray(Image.open(out / f"{i}.png")) for i in "012"])
    np.testing.assert_array_equal(again[known], holes[..., 0][known])
    large = saved(tmp_path / "large", small[:1].repeat(2, 1))
    tiled = []
    for label in "01":
        tiles = ["apply", superres, large, "--tiles", "--labels", label, "--out", to]
        assert main(tiles) == 0
        tiled.append(np.asarray(Image.open(out / "0.png")))
    assert tiled[0].shape[:2] == (32, 16)
    assert (tiled[0] != tiled[1]).any()
    plain = str(small_bundle(tmp_path / "plain").folder)
    (tmp_path / "masks" / "2.png").unlink()
    grey = saved(tmp_path / "grey", np.full((3, 16, 16, 1), 9, np.uint8))
    narrow = saved(tmp_path / "narrow", holes[..., 1:, 1:])
    for arguments, said in (
        ([superres, large], "0 is 8x16 pixels; expected 8x8, or --tiles"),
        ([superres, narrow], "0 is 15x16 pixels; expected 8x8"),
        ([superres, given, "--mask", masks], "fills no holes; leave --mask out"),
        ([inpaint, pictures], "give them as --mask"),
        ([inpaint, pictures, "--mask", masks], "2 of * has no mask of its name"),
        ([inpaint, pictures, "--mask", grey], "the mask of 0 holds 9; expected 255 = known"),
        ([inpaint, pictures, "--mask", narrow], "the mask of 0 is 15x16 pixels, the picture 16x16"),
        ([plain, pictures, "--mask", masks], "draws from latents alone: use `ganfast sample`"),
        ([str(runs["superres"].folder), given], "is not a run directory"),
        ([superres, str(tmp_path / "none")], "does not exist"),
        ([superres, given, "--variants", "0"], "variants is 0"),
    ):
        assert main(["apply", *arguments, "--out", to]) == 2, said
        (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
        for part in said.split("*"):
            assert part.strip() in line
    assert main(["apply", superres, given, "--out", given]) == 2
    assert "give a folder of its own" in capsys.readouterr().err
    assert main(["sample", superres]) == 2
    assert "use apply in place of sample" in capsys.readouterr().err


def test_refit_takes_its_conditions_from_the_bundle_and_knows_fields_that_came_later(
    runs, bundles, tmp_path
):
    checkpoint, m = str(runs["superres"].folder / "1"), bundles["superres"].manifest
    before = {name: value for name, value in m.network.items() if name != "blocks"}
    files = {path: bundles["superres"].read(path) for path in m.files}
    task = m.task | {"holdout": 0.3, "strength": 2}  # how much is held out changes no graph
    older = write_bundle(tmp_path / "older", replace(m, network=before, task=task), files)
    new = refit_bundle(older.folder, runs["superres"], tmp_path / "b", checkpoint)
    assert new.model_bytes() == bundles["superres"].model_bytes()
    np.testing.assert_array_equal(new.golden()["images"], bundles["superres"].golden()["images"])
    with pytest.raises(InputError, match="has (size|channels|condition)"):
        refit_bundle(new.folder, runs["inpaint"], tmp_path / "c", str(runs["inpaint"].folder / "1"))


@pytest.mark.accept
@pytest.mark.parametrize("kind", KINDS)
def test_a_trained_run_is_exported_with_held_out_conditions_and_applied_as_its_bundle(
    kind, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    data = few_digits(tmp_path / "few.npz")
    task = replace(preset_config(kind, "digits").task, holdout=0.2)
    run = train(tiny(kind, data, "run", task=task), quiet=True)
    assert main(["export", "run", "--out", "b", "--precision", "int8"]) == 0
    task, pack = task_of(run.config, 16, 1), open_data(data, size=16, channels=1)
    pairs = Pairs.of(task, run.config, pack, torch.device("cpu"), 8)
    levels = torch.cat([pair.given for pair in pairs]).permute(0, 2, 3, 1).numpy()
    golden = open_bundle("b").golden()["condition"]
    np.testing.assert_allclose(golden[..., 0] / 127.5 - 1, levels[..., 0], atol=1e-5)
    np.testing.assert_array_equal(golden[..., 1:], levels[..., 1:] * 255)
    pictures, masks = (
        saved(tmp_path / "p", golden[..., :1]),
        saved(tmp_path / "m", golden[..., -1:]),
    )
    mask = ["--mask", masks] if kind == "inpaint" else []
    assert main(["export", "run", "--out", "exact"]) == 0
    for source in ("run", "exact"):
        assert main(["apply", source, pictures, *mask, "--out", f"from-{source}"]) == 0
    assert main(["apply", "run", pictures, *mask, "--tiles", "--out", "no"]) == 2
    assert "--tiles goes with a bundle, and run is none" in capsys.readouterr().err
    with np.load(data) as digits:
        others = {"images": 255 - digits["images"], "labels": digits["labels"]}
    np.savez(data, **others)
    assert main(["export", "run", "--out", "c"]) == 2
    assert "was trained on other pictures" in capsys.readouterr().err
    Path(data).unlink()
    assert main(["export", "run", "--out", "c"]) == 2
    assert "held-out pictures, which cannot be read" in capsys.readouterr().err
    for i in range(8):
        one, other = (np.asarray(Image.open(f"from-{s}/{i}.png")) for s in ("run", "exact"))
        assert apart(one, other) <= 1
