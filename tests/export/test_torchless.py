"""A process that only samples needs NumPy and ONNX Runtime: no torch, no onnx."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from ganfast.export import load_sampler
from ganfast.export.bundle.bundle import write_bundle
from ganfast.export.bundle.manifest import GOLDEN, MODEL
from tests.programs import python
from tests.small_bundle import small_bundle, small_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return small_bundle(tmp_path_factory.mktemp("b") / "small", classes=3, channels=3)


def wheel_in(folder):
    """A wheel, built from a copy, because building writes into the folder that it builds from."""
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "ganfast", "kernels", "export"):
        done = subprocess.run(
            ["cp", "-a", str(ROOT / name), f"{source}/"], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    pip_wheel = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    command = [*pip_wheel, "--wheel-dir", str(folder), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def empty_environment(tmp_path_factory):
    """A Python that has NumPy, ONNX Runtime and the wheel, and nothing else."""
    folder = tmp_path_factory.mktemp("env")
    site = folder / "site"
    site.mkdir()
    packages = Path(np.__file__).parents[1]
    for name in ("numpy", "numpy.libs", "onnxruntime"):
        if (packages / name).exists():
            (site / name).symlink_to(packages / name)
    for name in ("numpy", "onnxruntime"):
        info = Path(str(importlib.metadata.distribution(name)._path))  # type: ignore[attr-defined]
        (site / info.name).symlink_to(info)
    # what `pip install --no-deps` does with a wheel of pure Python
    zipfile.ZipFile(wheel_in(folder)).extractall(site)
    return site


def run(site, code, *arguments):
    """A program in the empty environment: its path has no site packages and no checkout."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PYTHON")
    }
    environment |= {"PYTHONPATH": str(site), "PYTHONNOUSERSITE": "1"}
    command = [sys.executable, "-S", "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=site, env=environment, capture_output=True, text=True)


def test_the_wheel_draws_with_numpy_and_onnxruntime_only(bundle, empty_environment, tmp_path):
    code = (
        "import json, sys\n"
        "from ganfast.export import load_sampler\n"
        "import numpy as np\n"
        "with load_sampler(sys.argv[1], digest=sys.argv[2]) as sampler:\n"
        "    np.save(sys.argv[3], sampler.sample(20, seed=7, labels=[1, 2] * 10, psi=0.7))\n"
        "    modules = {name.split('.')[0] for name in sys.modules}\n"
        "    print(json.dumps([sampler.backend_name, sorted(modules)]))\n"
    )
    done = run(
        empty_environment, code, bundle.folder, bundle.manifest.digest, tmp_path / "drawn.npy"
    )
    assert done.returncode == 0, done.stderr
    name, modules = json.loads(done.stdout)
    assert name == "onnxruntime-cpu"
    assert not {"torch", "onnx", "PIL", "safetensors", "yaml", "triton"} & set(modules)
    with load_sampler(bundle.folder, device="cpu") as sampler:
        np.testing.assert_array_equal(
            np.load(tmp_path / "drawn.npy"), sampler.sample(20, seed=7, labels=[1, 2] * 10, psi=0.7)
        )
    for missing in ("import torch", "import onnx", "import PIL"):
        assert run(empty_environment, missing).returncode != 0, (
            f"{missing}: the environment is not empty"
        )


def test_the_command_line_draws_arrays_without_torch(bundle, empty_environment, tmp_path):
    code = "import sys; from ganfast.cli import main; sys.exit(main(['sample', *sys.argv[1:]]))"
    done = run(
        empty_environment,
        code,
        bundle.folder,
        "-n",
        "5",
        "--labels",
        "class2",
        "--out",
        tmp_path / "five.npz",
    )
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "five.npz") as arrays:
        assert arrays["images"].shape == (5, 8, 8, 3)
        assert arrays["labels"].tolist() == [2] * 5
    done = run(
        empty_environment,
        code,
        bundle.folder,
        "-n",
        "5",
        "--backend",
        "torch",
        "--out",
        tmp_path / "no.npz",
    )
    assert done.returncode == 2
    assert "torch cannot be imported here" in done.stderr
    assert "pip install torch" in done.stderr


def test_without_onnxruntime_and_torch_it_says_what_to_install(bundle, empty_environment, tmp_path):
    site = tmp_path / "site"
    shutil.copytree(empty_environment, site, symlinks=True)
    (site / "onnxruntime").unlink()
    done = run(
        site,
        "import sys; from ganfast.export import load_sampler; load_sampler(sys.argv[1])",
        bundle.folder,
    )
    assert "this needs onnxruntime: pip install" in done.stderr
    assert "torch cannot be imported here" in done.stderr


def test_verify_and_inspect_need_no_torch_either(bundle, empty_environment):
    code = "import sys; from ganfast.cli import main; sys.exit(main([sys.argv[1], sys.argv[2]]))"
    for command in ("verify", "inspect"):
        done = run(empty_environment, code, command, bundle.folder)
        assert done.returncode == 0, done.stderr
        assert bundle.manifest.digest in done.stdout


@pytest.mark.accept
def test_the_wheel_installs_into_an_empty_environment_and_draws(bundle, tmp_path):
    """As a bundle's user does it: venv, pip, a picture. NumPy and ONNX Runtime are downloaded."""
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet"]
    there = [f"{name}=={importlib.metadata.version(name)}" for name in ("numpy", "onnxruntime")]
    fetched = subprocess.run(
        [*pip, "install", "--retries", "1", "--timeout", "30", *there],
        capture_output=True,
        text=True,
    )
    if fetched.returncode:
        pytest.skip(
            f"the package index cannot be reached: {fetched.stderr.strip().splitlines()[-1]}"
        )
    subprocess.run(
        [*pip, "install", "--no-deps", "--no-index", str(wheel_in(tmp_path))], check=True
    )
    code = (
        "import importlib.util, sys\n"
        "names = ('torch', 'onnx', 'PIL', 'safetensors')\n"
        "wrong = [name for name in names if importlib.util.find_spec(name)]\n"
        "assert not wrong, 'not empty'\n"
        "from ganfast.export import load_sampler\n"
        "import ganfast, numpy as np\n"
        "assert ganfast.__file__.startswith(sys.prefix), ganfast.__file__\n"
        "with load_sampler(sys.argv[1], digest=sys.argv[2]) as sampler:\n"
        "    np.save(sys.argv[3], sampler.sample(20, seed=7))\n"
    )
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PYTHON")
    }
    command = [
        str(python),
        "-c",
        code,
        str(bundle.folder),
        bundle.manifest.digest,
        str(tmp_path / "drawn.npy"),
    ]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with load_sampler(bundle.folder, device="cpu") as sampler:
        np.testing.assert_array_equal(np.load(tmp_path / "drawn.npy"), sampler.sample(20, seed=7))
    wrong = small_bundle(tmp_path / "wrong", classes=3, channels=3, model=small_model(9, 3, 3))
    files = {MODEL: wrong.model_bytes(), GOLDEN: bundle.read(GOLDEN)}
    mixed = write_bundle(tmp_path / "mixed", bundle.manifest, files)  # hashes right, other weights
    command[3:5] = [str(mixed.folder), mixed.manifest.digest]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert "golden samples differ" in done.stderr


def test_importing_the_package_costs_nothing():
    code = (
        "import sys, ganfast.export, ganfast.export.drawing.sampler; "
        "print('torch' in sys.modules, 'onnxruntime' in sys.modules)"
    )
    done = python("-c", code, check=True)
    assert done.stdout.split() == ["False", "False"]
