"""The checkout and the package built from it hold the same modules; kernels and export appear as ganfast.kernels and .export."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, MAPPING = PYPROJECT["project"], PYPROJECT["tool"]["setuptools"]


def folders_with_modules(top: Path) -> set[str]:
    return {
        ".".join(("ganfast", *path.parent.relative_to(top).parts))
        for path in top.rglob("__init__.py") if not any(parent.is_symlink() for parent in path.parents)
    }  # fmt: skip


def test_package_list_equals_the_folders():
    mapped = {f"ganfast.{name}" for name in ("kernels", "export") if (ROOT / name / "__init__.py").exists()}
    assert set(MAPPING["packages"]) == folders_with_modules(ROOT / "ganfast") | mapped


def test_links_are_relative_and_lead_to_the_mapped_folders():
    for name in ("kernels", "export"):
        assert os.readlink(ROOT / "ganfast" / name) == f"../{name}"
        assert MAPPING["package-dir"][f"ganfast.{name}"] == name
    assert os.readlink(ROOT / "ganfast" / "bench") == "../benchmarks/harness"
    assert (ROOT / "ganfast" / "bench" / "records.py").exists()


def test_top_level_is_what_the_owner_fixed():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in tracked.stdout.splitlines()}
    fixed = {"pyproject.toml", "ganfast", "kernels", "benchmarks", "export", "tests"}
    assert fixed <= top
    files = {"Makefile", "README.md", "CITATION.cff", "LICENSE", ".gitignore", "constraints.txt"}
    assert top - fixed <= files | {".ci", "docs"}


def test_every_dependency_is_pinned_within_its_bounds():
    """What `make demo` and `make test` install, but for torch, triton and NVIDIA's packages."""
    free = re.compile("torch$|triton$|tensorrt|nvidia|cuda")
    text = re.sub(r"#.*|\\\n", "", (ROOT / "constraints.txt").read_text())
    lines = [line for line in text.splitlines() if line.strip()]
    pins = {canonicalize_name(pin.name): pin for pin in map(Requirement, lines)}
    assert len(pins) == len(lines), "a package is pinned twice"
    assert not [name for name in pins if free.match(name)]
    extras = PROJECT["optional-dependencies"]
    for dependency in map(Requirement, PROJECT["dependencies"] + extras["export"] + extras["dev"]):
        if not free.match(canonicalize_name(dependency.name)):
            pin = pins[canonicalize_name(dependency.name)]
            (version,) = re.findall(r"^==([\w.]+)$", str(pin.specifier))
            assert version in dependency.specifier, f"{pin} is outside {dependency}"
            assert pin.marker == dependency.marker, f"{pin} has not the marker of {dependency}"


def test_checkout_runs_without_installing(tmp_path):
    code = "import ganfast.kernels.latents, ganfast.latents; print(ganfast.kernels.__file__)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-S", "-c", _with_site(code)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("ganfast/kernels/__init__.py")


def _with_site(code: str) -> str:
    """Site packages but no .pth files: an editable install must not be what makes the import work."""
    import torch

    return f"import sys; sys.path.append({str(Path(torch.__file__).parents[1])!r}); import ganfast; {code}"


def test_wheel_holds_every_module_once(tmp_path):
    source = tmp_path / "source"
    wanted = ["pyproject.toml", "README.md", "LICENSE", "ganfast", "kernels", "export"]
    source.mkdir()
    subprocess.run(["cp", "-a", *(str(ROOT / name) for name in wanted), f"{source}/"], check=True)
    pip_wheel = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    command = [*pip_wheel, "--wheel-dir", str(tmp_path), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")}
    for folder, prefix in (
        (ROOT / "ganfast", "ganfast"),
        (ROOT / "kernels", "ganfast/kernels"),
        (ROOT / "export", "ganfast/export"),
    ):
        for path in folder.glob("**/*.py"):
            parts = path.relative_to(folder).parts
            if folder.name == "ganfast" and parts[0] in ("kernels", "export", "bench"):
                continue
            assert f"{prefix}/{'/'.join(parts)}" in inside
    assert not [n for n in inside if n.startswith(("kernels/", "export/", "ganfast/bench/", "benchmarks/"))]
    _without_harness(wheel, tmp_path)
    assert "ganfast/py.typed" in zipfile.ZipFile(wheel).namelist()


def _without_harness(wheel: Path, folder: Path) -> None:
    """In an installed package `bench sample` parses its arguments, and the others name what is missing."""
    zipfile.ZipFile(wheel).extractall(folder / "installed")
    environment = os.environ | {"PYTHONPATH": str(folder / "installed")}
    for line, sentence in (("train r1", "`ganfast bench train` needs the folder benchmarks/"), ("sample", "required: bundle")):
        command = [sys.executable, "-m", "ganfast", "bench", *line.split()]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
        assert done.returncode == 2, done.stderr
        assert sentence in done.stderr
        assert len(done.stderr.splitlines()) == 1
