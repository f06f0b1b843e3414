"""The sampler: one picture for (seed, index) on every back end, from many threads; and refusals."""

import copy
import itertools
import logging
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import ganfast.export.drawing.choice as choice
import ganfast.export.drawing.rows as rows_module
from ganfast.errors import InputError, RunError
from ganfast.export import load_sampler
from ganfast.export.bundle.bundle import GOLDEN, MODEL, open_bundle
from ganfast.export.drawing.lanes import HostLane
from ganfast.export.drawing.latency import machine
from ganfast.export.drawing.rows import plan, prior_cost
from ganfast.export.drawing.run_onnxruntime import OnnxRuntimeCpu, OnnxRuntimeCuda
from ganfast.export.drawing.run_torch import TorchBackend
from ganfast.export.drawing.sampler import Sampler
from ganfast.latents import latents, random_classes
from tests.programs import python
from tests.small_bundle import LATENT, small_bundle, small_model

CLASSES = 3


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return small_bundle(tmp_path_factory.mktemp("b") / "classes", classes=CLASSES, channels=3)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return small_bundle(tmp_path_factory.mktemp("b") / "plain")


def truth(bundle, seed, index, labels=None, psi=1.0):
    """Every picture drawn alone by a session of its own."""
    import onnxruntime

    session = onnxruntime.InferenceSession(bundle.model_bytes(), providers=["CPUExecutionProvider"])
    index = np.asarray(index)
    feed = {
        "z": latents(seed, index, LATENT),
        "psi": np.broadcast_to(np.float32(psi), len(index)).copy(),
    }
    if bundle.manifest.classes:
        chosen = (
            random_classes(seed, index, CLASSES)
            if labels is None
            else np.broadcast_to(labels, len(index))
        )
        feed["labels"] = np.asarray(chosen, np.int64)
    return np.concatenate(
        [
            session.run(None, {k: v[i : i + 1] for k, v in feed.items()})[0]
            for i in range(len(index))
        ]
    )


def apart(a, b):
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def backends(bundle):
    model, manifest = bundle.model_bytes(), bundle.manifest
    return {
        "cpu, one thread": OnnxRuntimeCpu(model, 1),
        "cpu, split": OnnxRuntimeCpu(model, 2),
        "bound": OnnxRuntimeCuda(model, manifest, where="cpu"),
        "torch": TorchBackend(model, manifest, "cpu", 1),
        "torch, static": TorchBackend(model, manifest, "cpu", 1, static=True),
    }


BACKENDS = ["cpu, one thread", "cpu, split", "bound", "torch", "torch, static"]


# One picture for good


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("which", ["bundle", "plain"])
def test_a_picture_is_the_same_in_every_batch_on_every_back_end(name, which, request):
    source = request.getfixturevalue(which)
    expected = truth(source, 7, np.arange(70))
    assert len({picture.tobytes() for picture in expected}) == 70, (
        "pictures that are all different, or nothing is proven"
    )
    with Sampler(source, backends(source)[name], []) as sampler:
        for request in "0:1 3:2 0:4 5:5 0:16 2:17 1:33 0:64 0:70".split():
            first, n = map(int, request.split(":"))
            drawn = sampler.sample(n, seed=7, first=first)
            assert drawn.shape == (n, *source.manifest.shape)
            assert drawn.dtype == np.uint8
            assert drawn.flags.c_contiguous
            assert drawn.flags.writeable
            assert apart(drawn, expected[first : first + n]) <= 1, (first, n)
        scattered = [69, 0, 3, 3, 41]
        assert apart(sampler.sample(indices=scattered, seed=7), expected[scattered]) <= 1


@pytest.mark.parametrize("name", BACKENDS)
def test_labels_and_psi_reach_their_own_rows(name, bundle):
    labels, psi = np.array([2, 0, 1, 2, 1, 0, 2]), np.array([1, 0.5, 0, 2, 1, 1, 0.3], np.float32)
    with Sampler(bundle, backends(bundle)[name], []) as sampler:
        drawn = sampler.sample(7, 3, labels, psi)
        assert apart(drawn, truth(bundle, 3, np.arange(7), labels, psi)) <= 1
        assert apart(sampler.sample(7, 3, 1), truth(bundle, 3, np.arange(7), 1)) <= 1
        assert apart(sampler.sample(2, 3, "class1"), sampler.sample(2, 3, [1, 1])) == 0
        assert apart(sampler.sample(2, 3, ["class2", 0]), sampler.sample(2, 3, [2, 0])) == 0
        at_zero = sampler.sample(9, 3, 1, 0.0)
        assert apart(at_zero, at_zero[:1].repeat(9, 0)) == 0, "psi 0 is one picture a class"
        assert apart(sampler.sample(3, 4, 1), sampler.sample(3, 3, 1)) > 1


@pytest.mark.parametrize("name", BACKENDS)
def test_on_device_is_taken_through_dlpack(name, bundle):
    with Sampler(bundle, backends(bundle)[name], []) as sampler:
        expected = sampler.sample(16, seed=2)
        given = sampler.sample(16, seed=2, on_device=True)
        assert apart(np.from_dlpack(given), expected) <= 1
        if name != "bound":
            assert (
                apart(np.from_dlpack(sampler.sample(37, seed=2, on_device=True))[:16], expected)
                <= 1
            )
        else:
            with pytest.raises(
                InputError,
                match=r"37 pictures on the device do not fill one bucket.*1, 4, 16.*torch",
            ):
                sampler.sample(37, seed=2, on_device=True)
        np.testing.assert_array_equal(sampler.sample(16, seed=2), expected)
        assert apart(np.from_dlpack(given), expected) <= 1, (
            "later requests do not write into what was given away"
        )


def test_out_is_written_and_returned(plain):
    with load_sampler(plain.folder, threads=1) as sampler:
        out = np.full((20, 8, 8, 1), 99, np.uint8)
        assert sampler.sample(20, seed=1, out=out) is out
        np.testing.assert_array_equal(out, sampler.sample(20, seed=1))
        view = np.zeros((20, 8, 8, 2), np.uint8)[..., :1]  # strided memory is written in place too
        assert sampler.submit(20, seed=1, out=view).result() is view
        np.testing.assert_array_equal(view, out)


def test_stream_gives_what_sample_gives_in_parts(plain):
    with load_sampler(plain.folder, threads=1) as sampler:
        parts = list(sampler.stream(70, seed=5, first=3))
        assert [len(part) for part in parts] == [16, 16, 16, 16, 6]
        np.testing.assert_array_equal(np.concatenate(parts), sampler.sample(70, seed=5, first=3))
        assert [len(part) for part in sampler.stream(5, chunk=3)] == [3, 2]
        last = np.concatenate(list(sampler.stream(20, first=np.uint8(250), chunk=np.int8(7))))
        np.testing.assert_array_equal(last, sampler.sample(20, first=250))
        np.testing.assert_array_equal(last, sampler.sample(20, first=np.uint8(250)))
        assert len(next(sampler.stream(16, first=2**63 - 17))) == 16
        endless = sampler.stream(2**62)
        assert len(next(endless)) == 16
        endless.close()


def test_latents_of_your_own(bundle):
    with load_sampler(bundle.folder, threads=1) as sampler:
        z, labels = latents(7, np.arange(20), LATENT), random_classes(7, np.arange(20), CLASSES)
        np.testing.assert_array_equal(
            sampler.draw(z, labels, 0.8), sampler.sample(20, seed=7, psi=0.8)
        )
        for wrong in (z[:, :3], z[0], np.full((2, LATENT), np.nan), "z", z[:0], z + 1j):
            with pytest.raises(InputError, match=r"z is .*; expected finite numbers \(N, 6\)"):
                sampler.draw(wrong, 0)
        with pytest.raises(InputError, match="small draws classes: give labels with z"):
            sampler.draw(z)


def test_a_request_is_what_it_was_when_it_was_made(bundle):
    """A caller may use his arrays again while `submit` waits for a lane."""
    with load_sampler(bundle.folder, threads=1) as sampler:
        arrays = {
            "psi": np.full(5, 0.5, np.float32),
            "labels": np.full(5, 2),
            "indices": np.arange(5),
        }
        expected = sampler.sample(**arrays)
        lanes = [sampler._take() for _ in range(sampler.stats["lanes"])]
        later = sampler.submit(**arrays)
        for array in arrays.values():
            array[:] = 1
        for lane in lanes:
            sampler._lanes.put(lane)
        np.testing.assert_array_equal(later.result(), expected)


def test_seconds_count_from_the_request_also_where_it_waits_for_a_thread(plain):
    with load_sampler(plain.folder, threads=1) as sampler:
        lanes = [sampler._take() for _ in range(sampler.stats["lanes"])]
        pending = [sampler.submit(1) for _ in range(5)]  # more than there are threads
        time.sleep(0.05)
        for lane in lanes:
            sampler._lanes.put(lane)
        for each in pending:
            each.result()
        assert min(sampler._seconds) > 0.05


PROGRAM = """
import os, sys, threading
from concurrent.futures import thread
from ganfast.errors import RunError
from ganfast.export import load_sampler
sampler = load_sampler(sys.argv[1], backend="onnxruntime", threads=2)
expected = sampler.sample(40)
"""


def said_by(plain, program):
    done = python("-c", PROGRAM + program, str(plain.folder), timeout=60)
    return done.stdout.split("\n"), done.stderr


def test_a_thread_that_outlives_the_main_one_still_draws(plain):
    program = """
def serve():
    while not thread._shutdown:  # from when on no pool takes more work
        pass
    for draw in (
        lambda: sampler.sample(40),
        lambda: sampler.submit(40).result(),
        lambda: next(sampler.stream(40, chunk=40)),
    ):
        print((draw() == expected).all(), flush=True)
threading.Thread(target=serve).start()
"""
    lines, errors = said_by(plain, program)
    assert [line for line in lines if line] == ["True"] * 3, errors


def test_a_forked_process_is_told_to_load_its_own(plain):
    program = """
child = os.fork()
if not child:
    for draw in (
        lambda: sampler.sample(4),
        lambda: sampler.submit(4),
        lambda: sampler.refit(sys.argv[1]),
    ):
        try:
            draw()
        except RunError as error:
            print(error, flush=True)
    sampler.close()
    os._exit(0)
os.waitpid(child, 0)
print((sampler.sample(40) == expected).all())
sampler.close()
"""
    lines, errors = said_by(plain, program)
    assert len(lines) == 5, errors
    assert all(
        "was loaded before this process was forked from another, "
        "where its threads stayed; load it here" in x
        for x in lines[:3]
    )
    assert lines[3] == "True"


def test_a_forked_process_is_told_how_to_leave_before_it_hangs(plain):
    program = """
def said_by_child(leave):
    ear, mouth = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(mouth, 2)
        leave(0)
    os.close(mouth)
    said = os.read(ear, 4096).decode()
    os.kill(child, 9)
    os.waitpid(child, 0)
    return said
print(said_by_child(sys.exit).strip())
print(repr(said_by_child(os._exit)))
sampler.close()
print(said_by_child(sys.exit).strip())
"""
    lines, errors = said_by(plain, program)
    for line in (lines[0], lines[2]):
        assert "leave it with os._exit, or load samplers after the fork" in line, errors
    assert lines[1] == "''"


def test_a_sampler_that_is_pickled_says_to_load_it_anew(plain):
    with load_sampler(plain.folder) as sampler:
        for copied in (pickle.dumps, copy.deepcopy):
            with pytest.raises(TypeError, match="load it anew, with load_sampler, in the process"):
                copied(sampler)


def test_torch_keeps_its_thread_count_while_two_samplers_change_it(plain):
    import torch

    samplers = [
        TorchBackend(plain.model_bytes(), plain.manifest, "cpu", threads) for threads in (1, 3)
    ]
    before, inside, most = torch.get_num_threads(), [], []

    def draw(backend):
        for _ in range(5):
            with backend.settings():
                inside.append(torch.get_num_threads())
                most.append(len(inside))
                time.sleep(0.001)
                assert torch.get_num_threads() == backend._threads
                inside.pop()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(draw, samplers * 2))
    assert max(most) == 1, "the count is the process's: two at once would put back each other's"
    with ThreadPoolExecutor(1) as pool:
        assert {torch.get_num_threads(), pool.submit(torch.get_num_threads).result()} == {before}


def test_the_parts_of_a_request_that_failed_are_over_before_it_is(plain):
    backend, real, ended = OnnxRuntimeCpu(plain.model_bytes(), 2), OnnxRuntimeCpu._run, []

    def run(session, feed):
        if threading.current_thread().name.startswith("ganfast"):
            time.sleep(0.05)
            ended.append(backend._requests)
            return real(session, feed)
        raise RunError("out of order")

    backend._run = run
    with pytest.raises(RunError, match="out of order"):
        backend.run({each.name: each.zeros(32) for each in plain.manifest.inputs})
    assert ended == [1], "counted as a request until its last part ended"
    backend.close()


# Threads


# Pictures a request, the buckets and what lies beside them.
SIZES = (*[1] * 8, *[2] * 4, 3, 3, 3, 5, 5, 8, 17, 33)


def mixed_requests(sampler, expected, seed, count, threads=8, sizes=SIZES):
    """Requests of any of ``sizes``, anywhere, by sample, submit and indices; their count.

    ``expected``: the pictures of seed 7, drawn alone, which every answer equals."""
    random = np.random.default_rng(seed)
    asked = [
        (
            int(random.integers(0, len(expected) - max(sizes))),
            int(random.choice(sizes)),
            int(random.integers(3)),
        )
        for _ in range(count)
    ]
    answered = [0] * count

    def ask(i):
        first, n, way = asked[i]
        if way == 0:
            drawn = sampler.submit(n, seed=7, first=first).result()
        elif way == 1:
            drawn = sampler.sample(n, seed=7, first=first)
        else:
            drawn = sampler.sample(indices=np.arange(first, first + n)[::-1], seed=7)[::-1]
        assert apart(drawn, expected[first : first + n]) <= 1, asked[i]
        answered[i] += 1

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(ask, range(count)))
    assert answered == [1] * count
    return sum(n for _, n, _ in asked)


@pytest.mark.parametrize("name", BACKENDS)
def test_requests_of_many_threads_are_not_mixed_up(name, bundle):
    expected = truth(bundle, 7, np.arange(300))
    with Sampler(bundle, backends(bundle)[name], []) as sampler:
        pictures = mixed_requests(sampler, expected, 0, 200)
        stats = sampler.stats
    assert (stats["requests"], stats["pictures"]) == (200, pictures)
    assert (stats["filling"] == 0) == (name in ("cpu, one thread", "cpu, split", "torch"))
    assert 0 < stats["seconds"]["p50"] <= stats["seconds"]["p99.9"]


def test_a_request_beside_another_keeps_to_its_own_thread_and_one_by_itself_takes_all(plain):
    backend, took = OnnxRuntimeCpu(plain.model_bytes(), 2), []
    inside, go_on = threading.Event(), threading.Event()
    sessions = {"all": backend._together, "one": backend._alone}
    feed = {"z": latents(0, np.arange(1), LATENT), "psi": np.ones(1, np.float32)}

    class Told:
        def __init__(self, name):
            self.name = name

        def run(self, *args):
            took.append(self.name)
            if len(took) == 1:
                inside.set()
                go_on.wait(10)
            return sessions[self.name].run(*args)

    backend._together, backend._alone = Told("all"), Told("one")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(backend.run, feed)
        assert inside.wait(10)
        beside = backend.run(feed)
        go_on.set()
        np.testing.assert_array_equal(first.result(), beside)
    np.testing.assert_array_equal(backend.run(feed), beside)
    assert took == ["all", "one", "all"]
    with pytest.raises(Exception, match="dimension"):
        backend.run(feed | {"z": np.zeros((1, LATENT + 1), np.float32)})
    backend.run(feed)
    assert took[-2:] == ["all", "all"]  # one that failed is over
    backend.close()


@pytest.mark.parametrize(
    ("version", "threads", "expected"),
    [
        ("1.26.0", 2, ("1", "100")),
        ("2.0.1", 2, ("1", "100")),
        ("1.26.0", 1, ("0", "")),
        ("1.25.1", 2, ("0", "")),
    ],
)
def test_threads_wait_awake_only_where_one_can_say_how_long(
    version, threads, expected, monkeypatch
):
    """ONNX Runtime before 1.26 ignores the second entry: its threads would hold the cores busy."""
    import onnxruntime

    class Session:
        def __init__(self, model, options, providers):
            self.options = options

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(onnxruntime, "__version__", version)
    backend = OnnxRuntimeCpu(b"", threads)

    def entry(name):
        try:
            return backend._together.options.get_session_config_entry(f"session.intra_op.{name}")
        except RuntimeError:
            return ""

    assert (entry("allow_spinning"), entry("spin_duration_us")) == expected
    backend.close()


@pytest.mark.accept
def test_ten_thousand_requests_leave_memory_flat(bundle):
    psutil = pytest.importorskip("psutil")
    expected = truth(bundle, 7, np.arange(2000))
    with load_sampler(bundle.folder, threads=2) as sampler:
        held = []
        for part in range(7):
            mixed_requests(sampler, expected, part, 2000)
            held.append(psutil.Process().memory_info().rss)
    # Two parts fill caches and the arenas of eight threads. A leak goes on after them.
    assert held[-1] - held[1] < 4 << 20, f"{[round(h / 1e6, 1) for h in held]} MB"


def test_close_finishes_what_was_submitted_and_refuses_what_comes_later(plain):
    sampler = load_sampler(plain.folder, threads=1)
    pending = [sampler.submit(16, seed=i) for i in range(20)]
    sampler.close()
    assert all(len(each.result(timeout=0)) == 16 for each in pending)
    for call in (
        lambda: sampler.sample(1),
        lambda: sampler.submit(1),
        lambda: sampler.sample(1, on_device=True),
    ):
        with pytest.raises(RunError, match="is closed; load it again"):
            call()
    sampler.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ganfast")]


def test_a_back_end_that_fails_fails_its_request_only(plain):
    class Failing(OnnxRuntimeCpu):
        fail = False

        def run(self, *args):
            if self.fail:
                raise RunError("out of order")
            return super().run(*args)

    backend = Failing(plain.model_bytes(), 1)
    with Sampler(plain, backend, []) as sampler:
        expected = sampler.sample(3)
        backend.fail = True
        for _ in range(5):  # more often than there are lanes
            with pytest.raises(RunError, match="out of order"):
                sampler.sample(40)
        backend.fail = False
        np.testing.assert_array_equal(sampler.sample(3), expected)
        assert sampler.stats["requests"] == 2


@pytest.mark.parametrize("method", ["run", "lane"])
def test_errors_of_a_library_are_told_as_the_back_ends(plain, method):
    """ONNX Runtime and torch raise types of their own: a caller need not know them."""
    backend = OnnxRuntimeCpu(plain.model_bytes(), 1)
    with Sampler(plain, backend, []) as sampler:
        session = backend._together
        backend._together = None  # what is called next has no `run`
        with pytest.raises(
            RunError,
            match="onnxruntime-cpu failed to draw: 'NoneType' object has no attribute 'run'",
        ) as caught:
            sampler.submit(3).result() if method == "lane" else sampler.sample(3)
        assert isinstance(caught.value.__cause__, AttributeError)
        backend._together = session
        assert len(sampler.sample(3)) == 3


def test_pictures_of_two_requests_are_two_arrays(plain):
    for name in BACKENDS:
        with Sampler(plain, backends(plain)[name], []) as sampler:
            first = sampler.sample(4, seed=1)
            kept = first.copy()
            sampler.sample(4, seed=2)
            np.testing.assert_array_equal(first, kept, err_msg=name)


def test_a_callback_of_its_own_future_cannot_close_a_sampler_and_is_told_so(plain):
    with load_sampler(plain.folder, threads=1) as sampler:
        lanes = [sampler._take() for _ in range(sampler.stats["lanes"])]
        told = []

        def close(_):
            with pytest.raises(
                RunError, match="cannot be closed by a callback of its own future"
            ) as caught:
                sampler.close()
            told.append(caught)

        # It waits for a lane, so that the callback comes on the sampler's own thread.
        later = sampler.submit(3)
        later.add_done_callback(close)
        for lane in lanes:
            sampler._lanes.put(lane)
        assert len(later.result()) == 3
        while not told:  # a result is there before its callbacks are called
            time.sleep(0.001)
        assert sampler.submit(1).result().shape == (1, 8, 8, 1), "and it stays open"
    with pytest.raises(RunError, match="is closed"):
        sampler.sample(1)


def finishes(call, *args):
    """What a call gives; fails in place of a test that hangs."""
    with ThreadPoolExecutor(1) as pool:
        try:
            return pool.submit(call, *args).result(20)
        except TimeoutError:
            import faulthandler

            faulthandler.dump_traceback()
            pytest.exit("deadlock", 1)


@pytest.mark.parametrize("what", ["close", "refit"])
def test_a_callback_that_closes_or_refits_while_the_sampler_is_closed_holds_nobody_up(what, plain):
    sampler, told = load_sampler(plain.folder, threads=1), []
    lanes = [sampler._take() for _ in range(sampler.stats["lanes"])]
    later = sampler.submit(3)

    def callback(_):
        while not sampler._closing:
            time.sleep(0.001)
        try:
            told.append(sampler.close() if what == "close" else sampler.refit(plain.folder))
        except RunError as error:
            told.append(str(error))

    later.add_done_callback(callback)
    for lane in lanes:
        sampler._lanes.put(lane)
    finishes(sampler.close)
    assert (told[0] is None) == (what == "refit")
    finishes(sampler.close)
    with pytest.raises(RunError, match="is closed"):
        sampler.sample(1)


def test_several_threads_may_close_a_sampler(plain):
    sampler = load_sampler(plain.folder, threads=1)
    pending = [sampler.submit(16) for _ in range(8)]
    with ThreadPoolExecutor(4) as pool:
        for each in [pool.submit(sampler.close) for _ in range(4)]:
            each.result(20)
    assert all(len(each.result(timeout=0)) == 16 for each in pending)


@pytest.mark.parametrize("what", ["close", "refit"])
def test_an_interrupt_while_lanes_are_collected_loses_none(what, plain, monkeypatch):
    """Ctrl-C reaches whoever waits for the second lane."""
    with load_sampler(plain.folder, threads=1) as sampler:
        taken, take = [], sampler._take

        def interrupted():
            if taken:
                raise KeyboardInterrupt
            taken.append(take())
            return taken[0]

        monkeypatch.setattr(sampler, "_take", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sampler.close() if what == "close" else sampler.refit(plain.folder)
        monkeypatch.undo()
        assert sampler._lanes.qsize() == sampler.stats["lanes"] == 2
        assert len(sampler.sample(3)) == 3
        finishes(sampler.close)


def test_close_waits_for_requests_that_other_threads_are_drawing(plain):
    """They finish, or learn that the sampler is closed; nothing hangs or is drawn afterwards."""
    for _ in range(10):
        sampler = load_sampler(plain.folder, threads=1)
        drawn, refused = [], []

        def draw(sampler=sampler, drawn=drawn, refused=refused):
            try:
                while True:
                    drawn.append(len(sampler.sample(5)))
            except RunError as error:
                refused.append(str(error))

        threads = [threading.Thread(target=draw) for _ in range(6)]
        for thread in threads:
            thread.start()
        while not drawn:
            pass
        sampler.close()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
        assert len(refused) == 6
        assert all("is closed; load it again" in each for each in refused)
        assert sampler.stats["requests"] == len(drawn)


# Refit


@pytest.mark.parametrize("name", BACKENDS)
def test_refit_takes_the_weights_of_another_bundle(name, bundle, tmp_path):
    other = small_bundle(tmp_path / "other", seed=1, classes=CLASSES, channels=3)
    before, after = truth(bundle, 7, np.arange(20)), truth(other, 7, np.arange(20))
    assert apart(before, after) > 50
    with Sampler(bundle, backends(bundle)[name], []) as sampler:
        assert apart(sampler.sample(20, seed=7), before) <= 1
        sampler.refit(other.folder, digest=other.manifest.digest)
        assert apart(sampler.sample(20, seed=7), after) <= 1
        assert sampler.manifest.digest == other.manifest.digest
        sampler.refit(bundle.folder)
        assert apart(sampler.sample(20, seed=7), before) <= 1


@pytest.mark.parametrize("name", BACKENDS)
def test_refit_that_misses_the_golden_rows_puts_the_weights_back(name, bundle, tmp_path):
    other = small_bundle(tmp_path / "other", seed=1, classes=CLASSES, channels=3)
    wrong = small_bundle(tmp_path / "wrong", seed=2, classes=CLASSES, channels=3)
    files = {MODEL: wrong.model_bytes(), GOLDEN: other.read(GOLDEN)}
    from ganfast.export.bundle.bundle import write_bundle

    mixed = write_bundle(tmp_path / "mixed", other.manifest, files)
    with Sampler(bundle, backends(bundle)[name], []) as sampler:
        expected = sampler.sample(20, seed=7)
        with pytest.raises(InputError, match="golden samples differ"):
            sampler.refit(mixed.folder)
        np.testing.assert_array_equal(sampler.sample(20, seed=7), expected)
        assert sampler.manifest.digest == bundle.manifest.digest


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["second session", "golden rows"])
def test_refit_goes_back_whatever_raises_wherever(where, error, plain, tmp_path, monkeypatch):
    """Two sessions draw small and large requests: with two weights pictures depend on the load."""
    import ganfast.export.drawing.run_onnxruntime as module
    import ganfast.export.drawing.sampler as sampler_module

    other, calls = small_bundle(tmp_path / "other", seed=1), []

    def failing(real, at):
        def call(*args):
            calls.append(args)
            if len(calls) == at:
                raise error("not now")
            return real(*args)

        return call

    with load_sampler(plain.folder, threads=2, backend="onnxruntime") as sampler:
        expected = sampler.sample(40, seed=7)
        target, name, at = (
            (module, "cpu_session", 2)
            if where == "second session"
            else (sampler_module, "check_golden", 1)
        )
        monkeypatch.setattr(target, name, failing(getattr(target, name), at))
        with pytest.raises(error):
            sampler.refit(other.folder)
        monkeypatch.undo()
        for n in (4, 40):
            np.testing.assert_array_equal(sampler.sample(n, seed=7), expected[:n])
        sampler.refit(other.folder)
        assert apart(sampler.sample(4, seed=7), expected[:4]) > 20


def test_a_back_end_has_both_sessions_of_one_file_or_keeps_those_it_had(plain, monkeypatch):
    import ganfast.export.drawing.run_onnxruntime as module

    backend, real = OnnxRuntimeCpu(plain.model_bytes(), 2), module.cpu_session
    before = backend._together, backend._alone
    made = []

    def second_fails(*args):
        if made:
            raise MemoryError
        made.append(real(*args))
        return made[0]

    monkeypatch.setattr(module, "cpu_session", second_fails)
    with pytest.raises(MemoryError):
        backend.refit(small_model(1))
    assert (backend._together, backend._alone) == before
    backend.close()


def test_golden_rows_are_drawn_in_every_way_that_requests_may_take(plain, monkeypatch):
    import ganfast.export.drawing.run_onnxruntime as module

    real, other = module.cpu_session, small_model(5)
    for wrong in (1, 2):  # threads of the session whose file is another's
        monkeypatch.setattr(
            module,
            "cpu_session",
            lambda model, n, wrong=wrong: real(other if n == wrong else model, n),
        )
        with pytest.raises(InputError, match="onnxruntime-cpu: .*golden samples differ"):
            load_sampler(plain.folder, threads=2, backend="onnxruntime", strict=True)


def test_refit_goes_back_though_its_bundle_was_replaced_on_disk(tmp_path):
    """The usual way to deploy: a new bundle replaces the old one, and the sampler learns of it."""
    first = small_bundle(tmp_path / "b")
    with load_sampler(first.folder, threads=1) as sampler:
        expected = sampler.sample(20, seed=7)
        second = small_bundle(tmp_path / "b", seed=1)
        golden = second.golden()
        sampler.refit(tmp_path / "b")
        assert apart(sampler.sample(20, seed=7), truth(second, 7, np.arange(20))) <= 1
        small_bundle(tmp_path / "b")
        sampler.refit(tmp_path / "b")
        from ganfast.export.bundle.bundle import golden_file, write_bundle

        files = {MODEL: small_model(2), GOLDEN: golden_file(golden, golden["images"])}
        write_bundle(tmp_path / "b", first.manifest, files, overwrite=True)
        with pytest.raises(InputError, match="golden samples differ"):
            sampler.refit(tmp_path / "b")
        np.testing.assert_array_equal(sampler.sample(20, seed=7), expected)


def test_refit_between_requests_never_mixes_weights(bundle, tmp_path):
    other = small_bundle(tmp_path / "other", seed=1, classes=CLASSES, channels=3)
    answers = [truth(b, 7, np.arange(40)) for b in (bundle, other)]
    with load_sampler(bundle.folder, threads=1) as sampler:
        stop = threading.Event()
        seen = []

        def draw():
            while not stop.is_set():
                drawn = sampler.sample(40, seed=7)
                seen.append([apart(drawn, answer) <= 1 for answer in answers])

        threads = [threading.Thread(target=draw) for _ in range(3)]
        for thread in threads:
            thread.start()
        for i in range(6):
            sampler.refit((other, bundle)[i % 2].folder)
            until = len(seen) + 4
            while len(seen) < until:
                time.sleep(0.001)
        stop.set()
        for thread in threads:
            thread.join()
    assert all(sum(each) == 1 for each in seen)
    assert {tuple(each) for each in seen} == {(True, False), (False, True)}


def test_refit_refuses_another_generator(bundle, plain, tmp_path):
    with load_sampler(bundle.folder, threads=1) as sampler:
        with pytest.raises(
            InputError, match=r"has classes \(\), the sampler \('class0'.*load_sampler"
        ):
            sampler.refit(plain.folder)
        with pytest.raises(InputError, match="expected sha256:0"):
            sampler.refit(bundle.folder, digest="sha256:0")
    eight = small_bundle(tmp_path / "int8", precision="int8")
    with (
        load_sampler(eight.folder, threads=1) as sampler,
        pytest.raises(InputError, match="int8 graph belong to its weights"),
    ):
        sampler.refit(eight.folder)
    renamed = small_bundle(tmp_path / "renamed", model=small_model(0, rename="other.bias"))
    with (
        load_sampler(plain.folder, backend="torch") as sampler,
        pytest.raises(InputError, match="other.bias is not the same"),
    ):
        sampler.refit(renamed.folder)


# Loading


def test_a_changed_bundle_is_refused(bundle, plain, tmp_path):
    with pytest.raises(InputError, match="expected sha256:1234"):
        load_sampler(bundle.folder, digest="sha256:1234")
    load_sampler(bundle.folder, digest=bundle.manifest.digest).close()
    wrong = small_bundle(tmp_path / "wrong", seed=9)
    from ganfast.export.bundle.bundle import write_bundle

    mixed = write_bundle(
        tmp_path / "m", plain.manifest, {MODEL: wrong.model_bytes(), GOLDEN: plain.read(GOLDEN)}
    )
    with pytest.raises(
        InputError,
        match=r"onnxruntime-cpu: .*golden samples differ: .*max \d+ LSB"
        r".*torch-cpu: .*golden samples differ",
    ):
        load_sampler(mixed.folder)
    with pytest.raises(InputError, match=r"onnxruntime-cpu: .*golden samples differ") as caught:
        load_sampler(mixed.folder, strict=True)
    assert "torch" not in str(caught.value)


def test_a_library_that_breaks_while_loading_is_passed_over_with_its_words(
    plain, monkeypatch, caplog
):
    def run(*_):
        raise MemoryError("no memory\nleft")

    monkeypatch.setattr(OnnxRuntimeCpu, "_run", staticmethod(run))
    with load_sampler(plain.folder, device="cpu", threads=1) as sampler:
        assert sampler.backend_name == "torch-cpu"
        assert sampler.refused == ["onnxruntime-cpu: MemoryError: no memory left"]
    assert "no memory left; drawing with torch-cpu instead" in caplog.text
    with pytest.raises(
        InputError, match="cannot be drawn here: onnxruntime-cpu: MemoryError: no memory left$"
    ):
        load_sampler(plain.folder, device="cpu", threads=1, strict=True)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"backend": "tensorflow"},
            "backend is 'tensorflow'; expected one of auto, tensorrt, rtx, onnxruntime, torch",
        ),
        ({"device": "tpu"}, "device is 'tpu'; expected auto, cpu, cuda or cuda:N"),
        ({"device": "cuda:x"}, "device is 'cuda:x'"),
        ({"threads": -1}, "threads is -1; expected 1 or more, or 0 for all"),
        ({"backend": "tensorrt", "device": "cpu"}, "there is no GPU here that could run an engine"),
    ],
)
def test_what_cannot_be_loaded_is_said(options, sentence, plain):
    with pytest.raises(InputError, match=sentence):
        load_sampler(plain.folder, **options)


def test_without_a_gpu_cuda_is_refused(plain, monkeypatch):
    import ctypes

    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(InputError, match="no NVIDIA driver here"):
        load_sampler(plain.folder, device="cuda")
    load_sampler(plain.folder, device="auto").close()


def test_each_refusal_is_told_once_with_its_reason(plain, monkeypatch, caplog):
    def refuse(*_):
        raise InputError("it is Sunday")

    monkeypatch.setattr("ganfast.export.drawing.run_onnxruntime.OnnxRuntimeCpu.__init__", refuse)
    with (
        caplog.at_level(logging.WARNING, "ganfast"),
        load_sampler(plain.folder, device="cpu") as sampler,
    ):
        sampler.sample(3)
        assert sampler.stats["back_end"] == "torch-cpu"
        assert sampler.stats["refused"] == ["onnxruntime-cpu: it is Sunday"]
    assert caplog.messages == ["onnxruntime-cpu: it is Sunday; drawing with torch-cpu instead"]
    with pytest.raises(InputError, match="onnxruntime-cpu: it is Sunday"):
        load_sampler(plain.folder, device="cpu", strict=True)


def test_stored_latencies_change_no_back_end(tmp_path):
    """The order is fixed: a faster torch is taken by its name, and a damaged row hurts nobody."""
    own = small_bundle(tmp_path / "own")
    names = (("onnxruntime-cpu", 2.0), ("torch-cpu", 1.0))
    measured = [
        {"back_end": name, "batch": bucket, "concurrency": 1, "p50": seconds * bucket}
        for name, seconds in names
        for bucket in own.manifest.buckets
    ]
    endless = {"back_end": "torch-cpu", "batch": float("inf"), "concurrency": 1, "p50": 1.0}
    for rows in (measured, [{"back_end": 3}], [endless]):
        own.write_latency({"machine": machine(), "threads": 1, "rows": rows})
        with load_sampler(own.folder, device="cpu", threads=1) as sampler:
            assert sampler.backend_name == "onnxruntime-cpu"
        with load_sampler(own.folder, device="cpu", backend="torch", threads=1) as sampler:
            assert sampler.backend_name == "torch-cpu"
            assert (sampler._cost == prior_cost(own.manifest.buckets)) == (rows != measured)


# Requests


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"n": 0}, "n is 0; expected how many pictures to draw, 1 or more"),
        ({"n": -3}, "n is -3"),
        ({"n": 2.5}, "n is 2.5"),
        ({}, "give n, how many pictures, or indices"),
        ({"n": 2, "indices": [1]}, "give n, how many pictures, or indices"),
        (
            {"n": 10**15},
            r"n is 1000000000000000: so many pictures take 88,000,000.0 GB.*Sampler.stream",
        ),
        ({"n": 1, "seed": -1}, "seed is -1; expected 0 or more"),
        ({"n": 1, "seed": 2**64}, "seed is 18446744073709551616"),
        ({"n": 1, "first": 2**63}, "first is 9223372036854775808"),
        ({"indices": []}, r"indices are \[\]; expected one or more integers"),
        ({"indices": [-1]}, r"indices are \[-1\]"),
        ({"indices": [0.5]}, r"indices are \[0.5\]"),
        ({"indices": [[1]]}, r"indices are \[\[1\]\]"),
        ({"indices": [1], "first": 2}, "first is 2; it goes with n"),
        ({"n": 1, "labels": 0}, "small was trained without classes"),
        ({"n": 1, "psi": 2.1}, "psi is 2.1; expected 0"),
        ({"n": 1, "psi": -0.1}, "psi is -0.1"),
        ({"n": 1, "psi": float("nan")}, "psi is nan"),
        ({"n": 1, "psi": "wide"}, "psi is 'wide'"),
        ({"n": 1, "psi": 10**400}, "psi is 1000"),
        ({"n": 1, "psi": 1j}, "psi is 1j"),
        ({"n": 1, "psi": [1j]}, r"psi is \[1j\]"),
        ({"n": 3, "psi": [1, 1]}, "psi are 2 for 3 pictures"),
        (
            {"n": 2, "out": np.zeros((3, 8, 8, 1), np.uint8)},
            r"out is uint8 \(3, 8, .*expected a writeable uint8 array",
        ),
        ({"n": 2, "out": np.zeros((2, 8, 8, 1))}, "out is float64"),
        ({"n": 2, "out": [1]}, "out is list"),
    ],
)
def test_bad_requests_are_sentences(options, sentence, plain):
    with load_sampler(plain.folder, threads=1) as sampler:
        for call in (sampler.sample, sampler.submit):
            with pytest.raises(InputError, match=sentence):
                call(**options)
        assert sampler.stats["requests"] == 0


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (3, "there is no class 3; small has 3: 0 = class0, 1 = class1, 2 = class2"),
        (-1, "there is no class -1"),
        ("cat", "there is no class 'cat'"),
        ([0, 1], "labels are 2 for 4 pictures"),
        ([0, 1, 2, 7], "there is no class 7"),
        (np.array([0, 1, 2, 1.5]), "there is no class"),
        (1.5, "there is no class 1.5"),
        (np.array(7), r"there is no class array\(7\)"),
        (True, "there is no class True"),
        (itertools.cycle([0, 1]), "labels are more for 4 pictures"),
        (iter([0, 1]), "labels are 2 for 4 pictures"),
        ([0] * 9, "labels are 9 for 4 pictures"),
        (object, "there is no class <class 'object'>"),
    ],
)
def test_labels_out_of_range_are_sentences(labels, sentence, bundle):
    with (
        load_sampler(bundle.folder, threads=1) as sampler,
        pytest.raises(InputError, match=sentence),
    ):
        sampler.sample(4, labels=labels)


def test_streams_out_of_range_are_sentences(plain):
    with load_sampler(plain.folder, threads=1) as sampler:
        for options, sentence in (
            ({"n": 0}, "n is 0"),
            ({"n": 3, "chunk": -1}, "chunk is -1"),
            ({"n": 3, "chunk": 2.5}, "chunk is 2.5"),
            ({"n": 3, "chunk": "2"}, "chunk is '2'"),
            ({"n": 3, "psi": 9}, "psi is 9"),
            ({"n": 16, "psi": [1.0] * 16}, "psi of a stream are one for all"),
            ({"n": 16, "labels": [1] * 16}, "labels of a stream are one for all"),
            ({"n": 2**63}, "first is 0"),
            ({"n": 99, "first": 2**63 - 99}, "first is 9223372036854775709"),
            ({"n": 3, "seed": -1}, "seed is -1"),
        ):
            with pytest.raises(InputError, match=sentence):
                sampler.stream(**options)


# The plan


def _best(count, cost):
    """The least cost, by trying everything."""
    if count <= 0:
        return 0.0
    return min(cost[bucket] + _best(count - bucket, cost) for bucket in cost)


@pytest.mark.parametrize(
    "cost", [{1: 1.0, 4: 2.0, 8: 7.0}, {1: 1.0, 4: 3.9, 8: 4.1}, {2: 1.0, 5: 2.4, 9: 4.0}], ids=str
)
def test_the_plan_is_the_cheapest_there_is(cost):
    for count in range(1, 2 * max(cost) + 1):
        parts = plan(count, cost)
        assert sum(parts) >= count
        assert sum(parts) - parts[-1] < count, "no batch draws nothing"
        assert sum(cost[part] for part in parts) == pytest.approx(_best(count, cost))


def test_the_plan_of_many_uses_the_bucket_that_is_cheapest_for_each():
    parts = plan(1000, {1: 1.0, 8: 2.0, 64: 40.0})
    assert set(parts) == {8}
    assert len(parts) == 125
    assert plan(10**6 + 1, {1: 1.0, 64: 2.0}, exact=True) == [64] * 15625 + [1]
    assert plan(130, prior_cost((1, 8, 64)), exact=True) == [64, 64, 2]
    assert plan(5, prior_cost((1, 8, 64)), exact=True) == [5]


def test_filling_follows_measured_costs(tmp_path):
    """Five pictures: 4 + 1 where a batch costs its size, one of 16 where all cost the same."""
    own = small_bundle(tmp_path / "own")
    for costs, filled in (((1, 4, 16), 0), ((1, 1, 1), 11)):
        rows = [
            {"back_end": "onnxruntime-cuda", "batch": b, "concurrency": 1, "p50": c}
            for b, c in zip((1, 4, 16), costs, strict=True)
        ]
        own.write_latency({"machine": "any", "threads": 1, "rows": rows})
        with Sampler(
            own, OnnxRuntimeCuda(own.model_bytes(), own.manifest, where="cpu"), []
        ) as sampler:
            sampler.sample(5)
            assert sampler.stats["filling"] == filled


def test_a_full_batch_of_a_host_back_end_is_filled_with_nothing_of_the_request(bundle):
    seen, shape = [], (8, *bundle.manifest.shape)
    drawn = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)

    def run(feed):
        seen.append({name: array.copy() for name, array in feed.items()})
        return drawn

    asked = rows_module.ask(bundle.manifest, 3, None, 5, 0, [2, 1, 2], 0.5)
    lane = HostLane(run, exact=False)
    lane.launch(asked, 8)
    z, labels, psi = (seen[0][name] for name in ("z", "labels", "psi"))
    np.testing.assert_array_equal(z[:3], latents(5, np.arange(3), LATENT))
    assert (z[3:] == 0).all()
    assert labels.tolist() == [2, 1, 2, 0, 0, 0, 0, 0]
    assert psi.tolist() == [0.5] * 3 + [0] * 5
    np.testing.assert_array_equal(lane.collect(), drawn[:3])


def test_choice_tries_engines_then_onnxruntime_then_torch(plain):
    class Gpu:
        pass

    engines = {"k": {"flavour": "rtx"}, "l": {"flavour": "tensorrt"}}
    from dataclasses import replace

    bundle = open_bundle(plain.folder)
    bundle = replace(bundle, manifest=replace(bundle.manifest, engines=engines))
    order = ["tensorrt", "rtx", "onnxruntime-cuda", "torch-cuda", "onnxruntime-cpu", "torch-cpu"]
    assert choice._candidates(bundle, "auto", "auto", Gpu()) == order
    assert choice._candidates(bundle, "auto", "cuda:0", Gpu()) == order[:4]
    assert choice._candidates(bundle, "auto", "auto", None) == order[4:]
    assert choice._candidates(bundle, "torch", "auto", Gpu()) == ["torch-cuda", "torch-cpu"]
