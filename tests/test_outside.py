"""Files from elsewhere, and what lies where ganfast writes: any kind in any place is one sentence.

What a link leads to stays as it was, whatever command meets the link.
"""

import errno
import json
import os
import shutil
import signal
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx

from ganfast import disk, locks, outside
from ganfast.cli import main
from ganfast.data import open_data
from ganfast.data.files import PictureFiles
from ganfast.data.manifest import verify_pack
from ganfast.errors import InputError
from ganfast.export.bundle.bundle import open_bundle, write_bundle
from ganfast.export.bundle.manifest import GOLDEN, MODEL
from ganfast.images import save_png
from ganfast.runs import checkpoint as checkpoints
from tests.depth import thinned
from tests.small_bundle import small_bundle, small_model
from tests.small_runs import files, newest, tensors

RUN = Path(__file__).parent / "fixtures" / "runs" / "schema-2"
STEP = "checkpoints/000000160"
PATIENCE = 60  # seconds until a command counts as hanging


def link(path: Path, elsewhere: Path) -> None:
    path.symlink_to(elsewhere / "precious")


def link_to_folder(path: Path, elsewhere: Path) -> None:
    path.symlink_to(elsewhere / "folder")


def link_to_nothing(path: Path, elsewhere: Path) -> None:
    path.symlink_to(elsewhere / "new")


def sparse(path: Path, elsewhere: Path) -> None:
    """Larger than any memory, and takes no space."""
    path.touch()
    os.truncate(path, 1 << 40)


KINDS = {
    "link": link,
    "link to a folder": link_to_folder,
    "link to nothing": link_to_nothing,
    "pipe": lambda path, elsewhere: os.mkfifo(path),
    "folder": lambda path, elsewhere: path.mkdir(),
    "empty": lambda path, elsewhere: path.touch(),
    "huge": sparse,
    "noise": lambda path, elsewhere: path.write_bytes(np.random.default_rng(0).bytes(5000)),
}
READ = [kind for kind in KINDS if not kind.startswith("link to")]
LINKS = ("link", "link to a folder", "link to nothing")


def put(kind: str, path: Path, elsewhere: Path) -> None:
    """Put something of a kind in the place of a file or a folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    KINDS[kind](path, elsewhere)


@pytest.fixture
def elsewhere(tmp_path):
    """A folder outside of what a command is given, whose files are compared after the test."""
    place = tmp_path / "elsewhere"
    (place / "folder").mkdir(parents=True)
    (place / "precious").write_text("precious")
    (place / "folder" / "000000001.png").write_text("a picture")
    before = files(place)
    yield place
    assert files(place) == before, "what a link leads to was written or removed"


@pytest.fixture
def judged(capsys):
    """Call the command line: it ends in time, well or with one sentence. Returns the exit code."""

    def hangs(number, frame):
        raise AssertionError("hangs")

    def call(*line) -> int:
        before = signal.signal(signal.SIGALRM, hangs)
        signal.alarm(PATIENCE)
        try:
            code = main([str(word) for word in line])
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
        said = capsys.readouterr().err.splitlines()
        sentences = [text for text in said if text.startswith("ganfast: ")]
        assert code in (0, 1, 2)
        assert len(sentences) == (code != 0), said
        return code

    return call


@pytest.fixture
def run(tmp_path):
    """A run of one checkpoint, which is the best."""
    folder = tmp_path / "run"
    shutil.copytree(RUN, folder)
    for name in ("checkpoints", STEP):  # as they are in a clone
        (folder / name).chmod(0o755)
    checkpoints.keep_best(folder / STEP, 1.0, "frechet")
    return folder


# Files that are read, for each command that reads them.

RUN_FILES = ["config.yaml", "data.json", "engine.json", "log.jsonl", "history.jsonl", ".lock"]
RUN_FILES += [STEP, f"{STEP}/state.json", "checkpoints", "checkpoints/best.json"]
RUN_FILES += [f"{STEP}/{part}.safetensors" for part in checkpoints.PARTS]
RUN_COMMANDS = {
    "check": "run check RUN",
    "sample": "sample RUN -n 2 --out OUT.png",
    "best": "sample RUN -n 2 --out OUT.png --checkpoint best",
    "plot": "plot RUN --out OUT.png",
    "train": "train --out RUN --kimg 0.192 --device cpu --quiet --log.no-tensorboard",
    "fork": "train --out FORK --fork RUN --kimg 0.192 --device cpu --quiet --log.no-tensorboard",
    "export": "export RUN --out BUNDLE",
    "judge": "judge RUN digits -n 4",
}
BUNDLE_FILES = ["manifest.json", "model.onnx", "golden.safetensors", "latency.json"]
BUNDLE_COMMANDS = {
    "verify": "verify BUNDLE",
    "inspect": "inspect BUNDLE",
    "sample": "sample BUNDLE -n 2 --out OUT.png",
    "lint": "lint BUNDLE",
    "refit": "refit BUNDLE --from RUN --out OUT.bundle",
}


def shallow(kind, file, command):
    files = "log.jsonl", f"{STEP}/state.json", "manifest.json", "model.onnx"
    return file in files and command in ("check", "sample", "verify")


@pytest.mark.parametrize(
    ("kind", "file", "command"), thinned(READ, RUN_FILES, RUN_COMMANDS, shallow=shallow)
)
def test_any_kind_of_file_in_a_run_is_judged(kind, file, command, run, elsewhere, judged, tmp_path):
    put(kind, run / file, elsewhere)
    places = {"RUN": run, "OUT": tmp_path / "out", "FORK": tmp_path / "fork"}
    places["BUNDLE"] = tmp_path / "new.bundle"
    line = RUN_COMMANDS[command]
    for name, place in places.items():
        line = line.replace(name, str(place))
    code = judged(*line.split())
    if command == "check":
        unread = ("engine.json", ".lock", "checkpoints") + (
            ("history.jsonl",) if kind == "empty" else ()
        )
        assert (code == 0) == (file in unread), "damage is told"


@pytest.mark.parametrize(
    ("kind", "file", "command"), thinned(READ, BUNDLE_FILES, BUNDLE_COMMANDS, shallow=shallow)
)
def test_any_kind_of_file_in_a_bundle_is_judged(
    kind, file, command, run, elsewhere, judged, tmp_path
):
    bundle = small_bundle(tmp_path / "b").folder
    put(kind, bundle / file, elsewhere)
    line = BUNDLE_COMMANDS[command].replace("BUNDLE", str(bundle)).replace("RUN", str(run))
    code = judged(*line.replace("OUT", str(tmp_path / "out")).split())
    assert code == 2 or file == "latency.json", "damage is told"


@pytest.mark.filterwarnings("ignore:the pack .* is damaged")
@pytest.mark.parametrize("file", ["images.npy", "labels.npy", "manifest.json", "."])
@pytest.mark.parametrize("kind", KINDS)
def test_a_pack_with_any_kind_of_file_is_packed_again(
    kind, file, elsewhere, judged, tmp_path, monkeypatch
):
    monkeypatch.setenv("GANFAST_CACHE", str(tmp_path))
    pictures = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "few.npz", images=pictures, labels=np.arange(20) % 2)
    assert judged("data", "pack", tmp_path / "few.npz", "--size", "8") == 0
    (pack,) = (tmp_path / "packs").glob("few-*")
    put(kind, pack / file, elsewhere)
    code = judged("data", "pack", tmp_path / "few.npz", "--size", "8")
    if not code:
        assert (open_data(str(tmp_path / "few.npz"), size=8).images[:, 0] == pictures).all()
        verify_pack(pack)
    assert not code or file == "."


# Names that ganfast writes.

TRAINED = [".lock", "config.yaml.part", "data.json.part", "engine.json.part", "log.jsonl"]
TRAINED += ["history.jsonl.part", "samples", "samples/000000192.png.part", "tensorboard"]
TRAINED += ["checkpoints/.000000192.part", "checkpoints/set-aside", "checkpoints/000000192"]


@pytest.mark.parametrize(("name", "kind"), thinned(TRAINED, KINDS))
def test_a_training_writes_its_own_files_only(name, kind, run, elsewhere, judged):
    put(kind, run / name, elsewhere)
    line = f"train --out {run} --kimg 0.192 --device cpu --quiet --log.save-kimg 0.032"
    if judged(*line.split()) == 0:
        assert newest(run).name == "000000192"
        assert checkpoints.problem_of(newest(run)) is None


WRITERS = {
    "write_file": (lambda path: disk.write_file(path, b"new"), ""),
    "replace_file": (lambda path: disk.replace_file(path, b"new"), ".part"),
    "save_png": (lambda path: save_png(np.zeros((8, 8, 1), np.uint8), path), ".part"),
    "make_directory": (disk.make_directory, ""),
    "remove": (disk.remove, ""),
    "lock": (lambda path: locks.locked(path, "it").__enter__(), ""),
    "log": (lambda path: disk.Appended(path).add(b"new"), ""),
}


@pytest.mark.parametrize("kind", LINKS)
@pytest.mark.parametrize("writer", WRITERS)
def test_nothing_is_written_through_a_link(writer, kind, elsewhere, tmp_path):
    write, ending = WRITERS[writer]
    put(kind, tmp_path / f"own{ending}", elsewhere)
    if writer in ("lock", "log"):  # they go on with a file of theirs, and this is none
        with pytest.raises(InputError, match=r"own is a link, to .*; ganfast writes what it made"):
            write(tmp_path / "own")
        return
    write(tmp_path / "own")
    assert not (tmp_path / "own").is_symlink()
    assert not (tmp_path / "own.part").exists()


def test_a_file_that_cannot_be_finished_leaves_the_old_one_alone(tmp_path):
    (tmp_path / "old").write_text("old")

    def fails(file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match="full"), disk.replacing(tmp_path / "old") as file:
        fails(file)
    assert files(tmp_path) == {"old": b"old"}


# Sizes that a file declares, and those that come.


def test_a_zip_takes_the_memory_that_it_declares(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(64 << 20))
    data = bytearray((tmp_path / "set.zip").read_bytes())
    directory = data.index(b"PK\x01\x02")
    data[22:26] = data[directory + 24 : directory + 28] = struct.pack("<I", 100)
    (tmp_path / "set.zip").write_bytes(data)
    tracemalloc.start()
    with pytest.raises(InputError, match=r"a\.png in .*set\.zip cannot be read"):
        PictureFiles(tmp_path / "set.zip").read("a.png")
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_what_may_grow_without_bounds_is_not_unpacked(method, tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w", method) as archive:
        archive.writestr("a.png", b"a picture")
    with pytest.raises(InputError, match="is not compressed by deflate"):
        PictureFiles(tmp_path / "set.zip").read("a.png")


@pytest.mark.parametrize("command", ["verify", "sample"])
def test_a_graph_that_a_runtime_gives_up_is_one_sentence(command, judged, tmp_path):
    """It asks for 4 TB when it runs, and for nothing when it is opened."""
    model = onnx.load_from_string(small_model())
    size = onnx.numpy_helper.from_array(np.array([1 << 40]), "size")
    model.graph.initializer.append(size)
    large = onnx.helper.make_node("ConstantOfShape", ["size"], ["large"])
    total = onnx.helper.make_node("ReduceMax", ["large"], ["none"], keepdims=0)
    added = onnx.helper.make_node("Add", ["psi", "none"], ["psi_large"])
    model.graph.node[0].input[0] = "psi_large"
    for node in (added, total, large):
        model.graph.node.insert(0, node)
    bundle = small_bundle(tmp_path / "b").folder
    content = {MODEL: model.SerializeToString(), GOLDEN: (bundle / GOLDEN).read_bytes()}
    write_bundle(bundle, open_bundle(bundle).manifest, content, overwrite=True)
    line = {"verify": ["verify", bundle], "sample": ["sample", bundle, "--out", tmp_path / "o.png"]}
    assert judged(*line[command]) == 2


# JSON, and logs with damaged lines.


def nested(depth: int) -> str:
    return '{"a": [' * (depth // 2) + "1" + "]}" * (depth // 2)


def test_json_is_read_up_to_its_limits():
    text = f'{{"n": [1, -2.5, "x", null, true], "whole": {10**39}, "deep": {nested(62)}}}'
    assert outside.parse_json(text) == json.loads(text)
    for beyond in (nested(64), nested(200_000), f'{{"n": {10**40}}}', '{"n": 1', "\ud800"):
        with pytest.raises(ValueError):
            outside.parse_json(beyond)


POISON = [nested(200_000), '{"images":' * 100_000, f'{{"images": {"9" * 4000}}}', "[1, 2]", "5"]
POISON += [f'{{"images": {"9" * 5000}}}', '{"images": NaN}', '{"images": [1]}', "\0\x1b\ufffd", "{"]


def test_damaged_lines_of_a_log_stop_nobody(run, judged, tmp_path):
    """The run goes on to the bits of one whose log is whole."""
    sound = shutil.copytree(run, tmp_path / "sound")
    lines = (run / "log.jsonl").read_text().splitlines()
    middle = len(lines) // 2
    damaged = "\n".join([*lines[:middle], *POISON, *lines[middle:], ""])
    (run / "log.jsonl").write_text(damaged)
    assert judged("run", "check", run) == 1
    assert judged("plot", run, "--out", tmp_path / "curves.png") == 0
    for folder in (sound, run):
        line = f"train --out {folder} --kimg 0.192 --device cpu --quiet --log.no-tensorboard"
        assert judged(*line.split()) == 0
        assert newest(folder).name == "000000192"
    for part in checkpoints.PARTS:
        one, other = (tensors(newest(folder), part) for folder in (sound, run))
        assert all((one[name] == other[name]).all() for name in one | other)
    assert len((run / "log.jsonl").read_text().splitlines()) == len(
        (sound / "log.jsonl").read_text().splitlines()
    )


@pytest.mark.parametrize("name", ["../../elsewhere/checkpoints/000000160", "1" * 5000, "a", ""])
def test_the_best_checkpoint_is_one_of_the_run(name, run, elsewhere):
    shutil.copytree(run / "checkpoints", run.parent / "other" / "checkpoints")
    text = json.dumps({"checkpoint": name.replace("elsewhere", "other"), "score": 1, "metric": "x"})
    (run / "checkpoints" / checkpoints.BEST).write_text(text)
    assert checkpoints.best(run / "checkpoints") is None
