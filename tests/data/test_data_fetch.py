"""Downloads: the right bytes from any mirror that has them, no others, whatever a mirror serves."""

import hashlib
import http.server
import threading

import pytest

from ganfast.data import fetch as fetch_module
from ganfast.data.fetch import MD5, fetch
from ganfast.data.progress import progress_bar
from ganfast.errors import InputError, RunError

FILES = {name: f"the bytes of {name}".encode() * 99 for name in MD5}


class Mirror(http.server.ThreadingHTTPServer):
    """Serves what `answer(name)` gives: bytes, or a status code."""

    def __init__(self, answer):
        self.answer, self.asked = answer, []
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def handle_error(
        self, request, client_address
    ):  # a client that hung up is what some tests are about
        pass

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/mnist/"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        name = self.path.rpartition("/")[2]
        self.server.asked.append(name)
        answer = self.server.answer(name)
        if isinstance(answer, int):
            self.send_error(answer)
            return
        length, data = answer if isinstance(answer, tuple) else (len(answer), answer)
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setattr(
        fetch_module, "MD5", {name: hashlib.md5(data).hexdigest() for name, data in FILES.items()}
    )
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    mirrors = []
    yield lambda answer: mirrors.append(Mirror(answer)) or mirrors[-1]
    for mirror in mirrors:
        mirror.shutdown()
        mirror.server_close()


BAD = {
    "missing": (lambda name: 404, "404"),
    "failing": (lambda name: 503, "503"),
    "web page": (lambda name: b"<!DOCTYPE html><p>Please log in", "a saved web page (HTML)"),
    "other bytes": (lambda name: FILES[name][:-1] + b"?", "md5"),
    "cut off": (lambda name: (len(FILES[name]), FILES[name][:50]), "broke off after 50 of"),
    "empty": (lambda name: b"", "an empty file"),
}


def test_four_files_arrive_and_progress_tells_how_far(serve, tmp_path):
    calls = []
    folder = fetch(
        "mnist", tmp_path, [serve(FILES.get).url], progress=lambda *call: calls.append(call)
    )
    assert folder == tmp_path / "mnist"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    assert [call for call in calls if call[1] == call[2]] == [
        (f"downloading {n}", len(d), len(d)) for n, d in FILES.items()
    ]


def test_the_progress_bar_is_silent_where_nobody_watches(serve, tmp_path, capfd):
    with progress_bar() as progress:
        fetch("mnist", tmp_path, [serve(FILES.get).url], progress=progress)
    assert capfd.readouterr() == ("", "")


def test_the_default_place_is_where_names_are_looked_up(serve, tmp_path, monkeypatch):
    monkeypatch.setenv("GANFAST_CACHE", str(tmp_path))
    assert fetch("mnist", mirrors=[serve(FILES.get).url]) == tmp_path / "data" / "mnist"


def test_a_mirror_that_never_ends_is_left_for_the_next(serve, tmp_path, monkeypatch):
    """A byte comes before every timeout of the socket, and the file never."""
    over = threading.Event()
    endless, good = serve(lambda name: over.wait(60) and 503), serve(FILES.get)
    monkeypatch.setattr(fetch_module, "LONGEST", 0.5)
    with pytest.raises(RunError, match=r"was not done after 0\.5 seconds"):
        fetch("mnist", tmp_path, [endless.url])
    assert fetch("mnist", tmp_path, [endless.url, good.url]).is_dir()
    assert len(endless.asked) == 2, "a dead mirror costs one wait"
    over.set()


def test_right_files_are_kept_and_wrong_ones_replaced(serve, tmp_path):
    first, second, *_ = FILES
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / first).write_bytes(FILES[first])
    (tmp_path / "mnist" / second).write_bytes(b"<html>")
    mirror = serve(FILES.get)
    fetch("mnist", tmp_path, [mirror.url])
    assert mirror.asked == list(FILES)[1:]
    assert (tmp_path / "mnist" / second).read_bytes() == FILES[second]


@pytest.mark.parametrize(("answer", "reason"), BAD.values(), ids=BAD.keys())
def test_a_bad_mirror_is_asked_once_and_the_next_one_serves(serve, tmp_path, answer, reason):
    bad, good = serve(answer), serve(FILES.get)
    folder = fetch("mnist", tmp_path, [bad.url, good.url])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    assert len(bad.asked) == 1


@pytest.mark.parametrize(("answer", "reason"), BAD.values(), ids=BAD.keys())
def test_when_no_mirror_serves_each_is_named_with_its_reason_and_nothing_is_written(
    serve, tmp_path, answer, reason
):
    bad = serve(answer)
    with pytest.raises(RunError) as caught:
        fetch("mnist", tmp_path, [bad.url, "http://127.0.0.1:9/nobody/", "not a URL"])
    message = str(caught.value)
    for part in (
        bad.url,
        reason,
        "http://127.0.0.1:9/nobody/",
        "refused",
        "not a URL",
        "train-images-idx3-ubyte.gz",
    ):
        assert part in message
    assert list((tmp_path / "mnist").iterdir()) == []


def test_a_silent_mirror_is_given_up(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch_module, "TIMEOUT", 0.05)
    release = threading.Event()
    silent = serve(lambda name: release.wait(10) and 404)
    fetch("mnist", tmp_path, [silent.url, serve(FILES.get).url])
    release.set()
    with pytest.raises(RunError, match="no mirror"):
        fetch("mnist", tmp_path / "other", [])


def test_an_endless_file_is_cut_off(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch_module, "LARGEST", 1000)
    with pytest.raises(RunError, match="more than 1,000 bytes"):
        fetch("mnist", tmp_path, [serve(lambda name: b"x" * 5000).url])


def test_a_place_that_cannot_be_written_is_named(serve, tmp_path):
    (tmp_path / "mnist").write_text("not a folder")
    with pytest.raises(RunError, match="cannot be written"):
        fetch("mnist", tmp_path, [serve(FILES.get).url])


def test_only_mnist_can_be_fetched_and_celeba_says_how_to_get_it(tmp_path):
    with pytest.raises(InputError, match=r"'mnits'.*did you mean mnist"):
        fetch("mnits", tmp_path)
    with pytest.raises(InputError, match=r"img_align_celeba\.zip.*list_eval_partition\.txt"):
        fetch("celeba", tmp_path)


@pytest.mark.data
def test_the_checksums_are_those_of_the_real_files(real_data):
    for name, md5 in MD5.items():
        assert hashlib.md5((real_data / "mnist" / name).read_bytes()).hexdigest() == md5
