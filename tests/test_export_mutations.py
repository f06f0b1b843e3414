"""Mistakes in the export must be caught: each mutation of the sources is one, and a property that users rely on has to fail.

A mutated package is the edited text of one file, and everything else as it is, executed anew; the unedited text goes the same way
and must keep every property.
"""

import importlib.util
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from ganfast.errors import InputError, RunError
from ganfast.export.bundle import exclusive, open_bundle, write_bundle
from ganfast.export.manifest import GOLDEN, MANIFEST, MODEL
from ganfast.models import NetSpec, build_generator
from tests.small_bundle import LATENT, small_bundle, small_model

ROOT = Path(__file__).parents[1]
# Every module that takes part, those that import others behind them.
CHAIN = (
    "tensors", "parity", "manifest", "bundle", "latents", "rows", "lanes", "latency", "cache", "vendor", "engines",
    "run_onnxruntime", "choice", "sampler", "deploy",
)  # fmt: skip


@contextmanager
def mutated(file="", old="", new=""):
    """The modules of the sources with one text replaced, by name; nothing of them stays in `sys.modules`."""
    if file:
        assert (ROOT / "export" / f"{file}.py").read_text().count(old) == 1, f"{file} must hold this text exactly once: {old}"
    with pytest.MonkeyPatch.context() as patch:
        made = {}
        for short in CHAIN:
            name, path = f"ganfast.export.{short}", ROOT / "export" / f"{short}.py"
            source = path.read_text()
            module = made[short] = ModuleType(name)
            module.__spec__ = importlib.util.spec_from_loader(name, loader=None)
            patch.setitem(sys.modules, name, module)
            patch.setattr(sys.modules["ganfast.export"], short, module, raising=False)
            exec(compile(source.replace(old, new) if short == file else source, str(path), "exec"), module.__dict__)
        yield SimpleNamespace(**made)


# Properties: each takes the modules and an empty folder.


def changed_bytes_are_refused(m, folder):
    bundle = small_bundle(folder / "b")
    for path in (MODEL, GOLDEN):
        data = bytearray((bundle.folder / path).read_bytes())
        data[len(data) // 2] ^= 1
        (bundle.folder / path).write_bytes(data)
        with pytest.raises(InputError, match="as exported; copy the bundle again"):
            m.bundle.open_bundle(bundle.folder)
        small_bundle(folder / "b")


def only_the_pinned_bundle_opens(m, folder):
    bundle, other = small_bundle(folder / "b"), small_bundle(folder / "o", seed=1)
    m.bundle.open_bundle(bundle.folder, bundle.manifest.digest)
    with pytest.raises(InputError, match="another bundle, or a changed one"):
        m.bundle.open_bundle(bundle.folder, other.manifest.digest)


def a_changed_manifest_is_refused(m, folder):
    bundle = small_bundle(folder / "b")
    path = bundle.folder / MANIFEST
    text = path.read_text()
    for changed in (text.replace('"crop": "none"', '"crop": "nine"'), text.replace("\n", "\n ", 1)):
        path.write_text(changed)
        with pytest.raises(InputError, match="was changed after the export"):
            m.bundle.open_bundle(bundle.folder)


def a_later_schema_is_refused_as_such(m, folder):
    bundle = small_bundle(folder / "b")
    path = bundle.folder / MANIFEST
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 2'))
    with pytest.raises(InputError, match="install a newer ganfast"):
        m.bundle.open_bundle(bundle.folder)


def paths_that_leave_are_refused(m, folder):
    bundle = small_bundle(folder / "b")
    (bundle.folder / "sub").mkdir()
    secret = folder / "secret"
    secret.write_bytes(b"x")
    for path in ("../secret", "sub/../../secret", str(secret)):
        facts = {path: m.manifest.FileFacts.of(b"x"), **bundle.manifest.files}
        told = replace(bundle.manifest, files=facts).to_bytes()
        with pytest.raises(InputError, match="is not a plain path inside the bundle"):
            m.manifest.Manifest.from_bytes(told)


def links_that_leave_are_refused(m, folder):
    bundle = small_bundle(folder / "b")
    (bundle.folder / MODEL).rename(folder / "elsewhere")
    (bundle.folder / MODEL).symlink_to(folder / "elsewhere")
    with pytest.raises(InputError, match="leads out of the bundle"):
        m.bundle.open_bundle(bundle.folder)


def golden_pictures_decide(m, folder):
    bundle, other = small_bundle(folder / "b"), small_bundle(folder / "o", seed=1)
    m.sampler.load_sampler(bundle.folder, "cpu", "onnxruntime", threads=1).close()
    mixed = write_bundle(folder / "m", bundle.manifest, {MODEL: other.model_bytes(), GOLDEN: bundle.read(GOLDEN)})
    with pytest.raises(InputError, match="golden samples differ"):
        m.sampler.load_sampler(mixed.folder, "cpu", "onnxruntime", threads=1)


def one_writer_who_was_asked(m, folder):
    bundle = small_bundle(folder / "b")
    files = {MODEL: bundle.model_bytes(), GOLDEN: bundle.read(GOLDEN)}
    with pytest.raises(InputError, match="is a bundle already"):
        m.bundle.write_bundle(bundle.folder, bundle.manifest, files)
    with exclusive(folder / "n"), pytest.raises(RunError, match="another process is writing"):
        m.bundle.write_bundle(folder / "n", bundle.manifest, files)


def trained_like(model):
    """A generator whose statistics, had they been forgotten, would show."""
    torch.manual_seed(0)
    net = build_generator(NetSpec(16, 1, 3, "projection", 4, LATENT, "batch", model=model)).eval()
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_var.uniform_(2e-4, 1e-3)  # beside which eps, 1e-5, is something
            module.running_mean.normal_(0, 0.02)
            module.weight.data.uniform_(0.005, 0.02)
            module.bias.data.normal_(0, 0.3)
        elif isinstance(module, nn.Linear):
            module.bias.data.normal_(0, 0.02)
    return net


def norms_fold_and_pictures_stay(m, folder):
    for model in ("dcgan", "mlp"):
        net = trained_like(model)
        deployed = m.deploy.deployable(net, LATENT, 3)
        assert not [each for each in deployed.modules() if type(each).__name__ in ("ScaleShift", "BatchNorm1d", "BatchNorm2d")]
        z, labels = torch.randn(12, LATENT, dtype=torch.float64), torch.arange(12) % 3
        psi = torch.linspace(0, 2, 12, dtype=torch.float64)
        with torch.no_grad():
            truth = (net.double()(z * psi[:, None], labels) + 1) * 127.5
            drawn = deployed(z.float(), labels, psi.float()).numpy()
        assert drawn.std() > 10
        expected = truth.round().permute(0, 2, 3, 1).numpy().astype(np.uint8)
        found = m.parity.compare(drawn, expected)
        assert found.max_lsb <= 1
        assert found.mean_lsb < 0.01, "rounded, not cut off"


def latents_are_numpys_philox(m, folder):
    index = np.array([0, 1, 5, 2**40])
    for stream in (0, 3):
        for row, i in zip(m.latents.latents(9, index, 5, stream), index, strict=True):
            raw = np.random.Philox(key=np.array([9, stream], np.uint64), counter=np.array([0, i, 0, 0], np.uint64)).random_raw(6)
            u = (raw >> np.uint64(11)) / 2.0**53
            polar = np.sqrt(-2 * np.log(1 - u[::2])) * np.exp(2j * np.pi * u[1::2])
            np.testing.assert_allclose(row, np.stack([polar.real, polar.imag], 1).ravel()[:5], rtol=1e-6, atol=1e-7)


class Filling:
    """A back end that draws full buckets only, one after the other, each row from its own inputs."""

    name, exact, lanes = "filling", False, 1

    def __init__(self, m, bundle):
        self._session = m.run_onnxruntime.OnnxRuntimeCpu(bundle.model_bytes(), 1)
        self.run, self.close, self.seen = self._run, self._session.close, []
        self._lane = m.lanes.HostLane(self.run, False)

    def _run(self, z, labels, psi):
        self.seen.append((z, labels, psi))
        return self._session.run(z, labels, psi)

    def lane(self):
        return self._lane

    def ways(self):
        return [self._lane]

    def refit(self, model):
        self._session.refit(model)


def every_answer_is_its_own(m, folder):
    """Whatever the buckets: pictures (seed, index) with their labels and psi, and rows that fill a bucket are nobody's."""
    bundle = small_bundle(folder / "b", classes=3)
    labels, psi = np.arange(22) % 3, np.linspace(0.2, 1.4, 22).astype(np.float32)
    with m.sampler.load_sampler(bundle.folder, "cpu", "onnxruntime", threads=1) as exact:
        alone = np.concatenate([exact.sample(1, 7, labels[i : i + 1], psi[i : i + 1], first=i) for i in range(22)])
    backend = Filling(m, bundle)
    with m.sampler.Sampler(m.bundle.open_bundle(bundle.folder), backend, []) as sampler:
        for start, n in ((0, 1), (4, 3), (2, 6), (0, 22), (1, 17)):
            cut = slice(start, start + n)
            drawn = sampler.sample(n, 7, labels[cut], psi[cut], first=start)
            assert drawn.shape == alone[cut].shape
            assert m.parity.compare(drawn, alone[cut]).max_lsb <= 1, (start, n)
        backend.seen.clear()
        sampler.sample(3, 7, labels[:3] * 0 + 1, 0.5)
        ((z, classes, psis),) = backend.seen
        assert [len(z), classes[3:].tolist(), psis[3:].tolist(), float(np.abs(z[3:]).sum())] == [4, [0], [0], 0]


def a_request_out_of_range_is_refused(m, folder):
    bundle = small_bundle(folder / "b", classes=3)
    with m.sampler.load_sampler(bundle.folder, "cpu", "onnxruntime", threads=1) as sampler:
        for options in (
            {"psi": 2.5},
            {"psi": [1, 2.5]},
            {"labels": 3},
            {"labels": -1},
            {"first": -1},
            {"seed": 2**64},
            {"seed": -1},
        ):
            with pytest.raises(InputError):
                sampler.sample(2, **options)


def a_refit_is_all_or_nothing(m, folder):
    first, second = small_bundle(folder / "a"), small_bundle(folder / "b", seed=1)
    files = {MODEL: small_model(2), GOLDEN: second.read(GOLDEN)}
    wrong = write_bundle(folder / "w", second.manifest, files)
    with m.sampler.load_sampler(first.folder, "cpu", "onnxruntime", threads=1) as sampler:
        before = sampler.sample(9)
        with pytest.raises(InputError, match="golden samples differ"):
            sampler.refit(wrong.folder)
        np.testing.assert_array_equal(sampler.sample(9), before)
        sampler.refit(second.folder)
        assert m.parity.compare(sampler.sample(9), before).max_lsb > 20


def an_engine_is_that_engine(m, folder):
    gpu, build = m.engines.Gpu("A", "8.6"), m.vendor.Build((1, 4))
    base = (b"graph", build, "tensorrt", "11.4", gpu)
    others = [
        (b"other", *base[1:]), (base[0], replace(build, buckets=(1, 8)), *base[2:]),
        (base[0], replace(build, tf32=True), *base[2:]),
        (*base[:2], "rtx", *base[3:]), (*base[:3], "11.5", gpu), (*base[:4], m.engines.Gpu("B", "8.6")),
        (*base[:4], m.engines.Gpu("A", "8.9")),
    ]  # fmt: skip
    keys = {m.engines.engine_key(m.engines.engine_facts(*each)) for each in (base, *others)}
    assert len(keys) == len(others) + 1
    here = m.vendor.Flavour("tensorrt", ModuleType("tensorrt"), "11.4")
    facts = m.engines.engine_facts(*base)
    assert m.engines.refusal(facts, here, gpu) == ""
    for other in (("8.9", "A"), ("8.6", "B")):
        assert m.engines.refusal(facts, here, m.engines.Gpu(other[1], other[0]))
    assert m.engines.refusal(facts, replace(here, version="11.5"), gpu)


def a_cache_is_true_and_capped(m, folder):
    cache = m.cache.EngineCache(folder / "c", cap_bytes=250)
    for key in "abc":
        cache.put(key, key.encode() * 100, {"key": key})
    assert sum(path.stat().st_size for path in (folder / "c").glob("?")) <= 250
    assert cache.get("c", {"key": "c"}) == (b"c" * 100, "")
    (folder / "c" / "c").write_bytes(b"d" * 100)
    assert cache.get("c", {"key": "c"})[0] is None


# What is wrong: (file, text, text instead, property that fails).
FIRST_NORM = "(net.project.bias.double() * scale + shift)"
MUTATIONS = {
    # Trust.
    "hashes that nobody compares": ("bundle", "if FileFacts.of(data) != facts:", "if False:", changed_bytes_are_refused),
    "files that nobody looks at": (
        "bundle", "data = bundle.read(file)", "data = (folder / file).read_bytes()", changed_bytes_are_refused),
    "a pinned digest that nobody compares": (
        "bundle", "if digest is not None and manifest.digest != digest:", "if False:", only_the_pinned_bundle_opens),
    "a manifest that may be changed": ("manifest", "said == _digest(plain) and", "True or", a_changed_manifest_is_refused),
    "white space that may be changed": (
        "manifest", ' and _text({"digest": said} | plain) == data', "", a_changed_manifest_is_refused),
    "a later schema taken for a damaged one": (
        "manifest", "schema > SCHEMA:", "schema > SCHEMA + 1:", a_later_schema_is_refused_as_such),
    "paths that climb": ("manifest", 'or ".." in parts or', "or", paths_that_leave_are_refused),
    "paths from the root": ("manifest", 'path != "/".join(parts)', "False", paths_that_leave_are_refused),
    "links that leave": (
        "bundle", "if not target.resolve().is_relative_to(folder.resolve()):", "if False:", links_that_leave_are_refused),
    "golden samples that nobody compares": (
        "sampler", "    if missed:\n", "    if False:\n", golden_pictures_decide),
    "a gate that everything passes": (
        "parity", 'return "" if kept else', 'return "" if True else', golden_pictures_decide),
    "a gate that nothing passes": (
        "parity", 'return "" if kept else', 'return "" if False else', golden_pictures_decide),
    "golden rows without their psi": (
        "sampler", 'golden["psi"], golden["z"])', 'golden["psi"] * 0 + 1, golden["z"])',
        golden_pictures_decide),
    "a bundle overwritten unasked": (
        "bundle", "if is_bundle(out) and not overwrite:", "if False:", one_writer_who_was_asked),
    "two writers at once": (
        "bundle", "with exclusive(out):", "with ExitStack():", one_writer_who_was_asked),
    # Folding, and the tail.
    "a norm's mean forgotten": (
        "deploy", "shift = -norm.running_mean.double() * scale", "shift = 0 * scale", norms_fold_and_pictures_stay),
    "its eps forgotten": (
        "deploy", "norm.running_var.double() + norm.eps", "norm.running_var.double()", norms_fold_and_pictures_stay),
    "its weight forgotten": (
        "deploy", "scale = scale * norm.weight.double()", "pass", norms_fold_and_pictures_stay),
    "the projection's bias not scaled": (
        "deploy", FIRST_NORM, FIRST_NORM.replace(" * scale", ""), norms_fold_and_pictures_stay),
    "the rows of classes not scaled": (
        "deploy", "net.classes.weight.double() * scale", "net.classes.weight.double()", norms_fold_and_pictures_stay),
    "channels in place of units": (
        "deploy", "value.repeat_interleave(each)", "value.repeat(each)", norms_fold_and_pictures_stay),
    "a transposed convolution folded like a plain one": (
        "deploy", "norm.eps, scale, shift, isinstance(layer, _TRANSPOSED)", "norm.eps, scale, shift, False",
        norms_fold_and_pictures_stay),
    "nothing folded": ("deploy", "folded = fold_batchnorm(copy.deepcopy(plain))", "folded = fold_batchnorm(plain, False)",
        norms_fold_and_pictures_stay),
    "psi ignored": ("deploy", "z * psi[:, None], *labels", "z, *labels", norms_fold_and_pictures_stay),
    "cut off in place of rounded": ("deploy", "scaled.round()", "scaled", norms_fold_and_pictures_stay),
    "channels first": ("deploy", "permute(0, 2, 3, 1)", "permute(0, 3, 2, 1)", norms_fold_and_pictures_stay),
    # Latents.
    "an index off by one": ("latents", "counter[1] = each", "counter[1] = each + 1", latents_are_numpys_philox),
    "the index in another word": ("latents", "counter[1] = each", "counter[0] = each", latents_are_numpys_philox),
    "a stream that is no stream": ("latents", "= seed, stream", "= seed, 0", latents_are_numpys_philox),
    "one wave twice": ("latents", "np.sin(angle)", "np.cos(angle)", latents_are_numpys_philox),
    "a radius of another law": ("latents", "np.log1p(-pairs[:, 0::2])", "np.log1p(-pairs[:, 1::2])", latents_are_numpys_philox),
    # Batches.
    "rows that fill a bucket given away": (
        "lanes", "drawn[: len(rows)])", "drawn[-len(rows) :])", every_answer_is_its_own),
    "a full bucket given away": (
        "lanes", "drawn if len(drawn) == len(rows) else drawn[: len(rows)]", "drawn", every_answer_is_its_own),
    "classes of the rows that fill": ("lanes", "chosen[:n] = labels", "chosen[:] = labels[0]", every_answer_is_its_own),
    "their psi": ("lanes", "psis[:n] = psi", "psis[:] = psi[0]", every_answer_is_its_own),
    "psi of other rows": ("rows", "self.psi[cut]", "self.psi[: stop - start]", every_answer_is_its_own),
    "indices of other rows": ("rows", "self.index[cut]", "self.index[: stop - start]", every_answer_is_its_own),
    "classes of other rows": (
        "rows", "None if x is None else x[cut] for x", "None if x is None else x[: stop - start] for x", every_answer_is_its_own),
    "parts that overlap": (
        "sampler", "            start = stop\n", "            start = stop - (start == 0)\n", every_answer_is_its_own),
    "psi beyond its range": ("rows", "(values <= 2)", "(values <= 3)", a_request_out_of_range_is_refused),
    "a class too many": ("rows", "0 <= label < len(manifest.classes)", "0 <= label <= len(manifest.classes)",
        a_request_out_of_range_is_refused),
    # Weights that change, engines that stay.
    "a refit that does not go back": (
        "sampler", "self._backend.refit(self.bundle.model_bytes())", "pass", a_refit_is_all_or_nothing),
    "a refit that nobody looks at": ("sampler", "check_golden(bundle, self._backend)", "pass", a_refit_is_all_or_nothing),
    "a refit that does nothing": (
        "run_onnxruntime", "self._open(model)  # takes", "pass  # takes", a_refit_is_all_or_nothing),
    "a key without the version": (
        "engines", '"flavour": flavour, "version": version,', '"flavour": flavour, "version": "",',
        an_engine_is_that_engine),
    "a key without the graph": (
        "engines", "hashlib.sha256(model).hexdigest()", '""', an_engine_is_that_engine),
    "a key without the GPU": ("engines", '"gpu": gpu.name,', '"gpu": "",', an_engine_is_that_engine),
    "an engine of another capability": (
        "engines", 'if facts.get("capability") != gpu.capability:', "if False:", an_engine_is_that_engine),
    "a cache that trusts its disk": (
        "cache", "if FileFacts.of(data) != FileFacts(", "if False and FileFacts(", a_cache_is_true_and_capped),
    "a cache without a cap": ("cache", "if total <= self.cap_bytes:", "if True:",
        a_cache_is_true_and_capped),
    "a cache that drops the newest": ("cache", "path.name == newest, path", "path.name != newest, path",
        a_cache_is_true_and_capped),
}  # fmt: skip


@pytest.mark.parametrize("holds", {each[3]: None for each in MUTATIONS.values()}, ids=lambda f: f.__name__)
def test_the_sources_keep_the_property(holds, tmp_path):
    with mutated() as m:
        holds(m, tmp_path)


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_mutation_breaks_it(mutation, tmp_path):
    file, old, new, holds = MUTATIONS[mutation]
    with mutated(file, old, new) as m, pytest.raises((Exception, pytest.fail.Exception)):
        holds(m, tmp_path)


def test_nothing_of_a_mutated_copy_stays():
    with mutated("latents", "counter[1] = each", "counter[1] = each + 1") as m:
        assert sys.modules["ganfast.export.latents"] is m.latents
    assert sys.modules["ganfast.export.bundle"].open_bundle is open_bundle
