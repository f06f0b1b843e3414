"""The checkout and the package built from it hold the same modules; kernels and export appear as ganfast.kernels and .export."""

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAPPING = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def folders_with_modules(top: Path) -> set[str]:
    return {
        ".".join(("ganfast", *path.parent.relative_to(top).parts))
        for path in top.rglob("__init__.py") if not any(part in ("kernels", "export") for part in path.relative_to(top).parts)
    }  # fmt: skip


def test_package_list_equals_the_folders():
    mapped = {f"ganfast.{name}" for name in ("kernels", "export") if (ROOT / name / "__init__.py").exists()}
    assert set(MAPPING["packages"]) == folders_with_modules(ROOT / "ganfast") | mapped


def test_links_are_relative_and_lead_to_the_mapped_folders():
    for name in ("kernels", "export"):
        assert os.readlink(ROOT / "ganfast" / name) == f"../{name}"
        assert MAPPING["package-dir"][f"ganfast.{name}"] == name


def test_top_level_is_what_the_owner_fixed():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in tracked.stdout.splitlines()}
    fixed = {"pyproject.toml", "ganfast", "kernels", "benchmarks", "export", "tests"}
    assert fixed <= top
    assert top - fixed <= {"Makefile", "README.md", "CITATION.cff", "LICENSE", ".ci", ".gitignore", "docs"}


def test_checkout_runs_without_installing(tmp_path):
    code = "import ganfast.kernels.latents, ganfast.export.latents; print(ganfast.kernels.__file__)"
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
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)]
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
            if folder.name == "ganfast" and parts[0] in ("kernels", "export"):
                continue
            assert f"{prefix}/{'/'.join(parts)}" in inside
    assert not [name for name in inside if name.startswith(("kernels/", "export/"))]
    assert "ganfast/py.typed" in zipfile.ZipFile(wheel).namelist()


def test_help_needs_no_torch():
    code = "import sys; from ganfast.cli import main; main(['--help']); main(['presets']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False")
