"""The checkout and its package hold the same modules; kernels and export appear in ganfast."""

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections import Counter
from collections.abc import Container, Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.programs import python

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, MAPPING = PYPROJECT["project"], PYPROJECT["tool"]["setuptools"]


def folders_with_modules(top: Path) -> set[str]:
    return {
        ".".join(("ganfast", *path.parent.relative_to(top).parts))
        for path in top.rglob("__init__.py")
        if not any(parent.is_symlink() for parent in path.parents)
    }


def test_package_list_equals_the_folders():
    mapped = {
        ".".join(("ganfast", *path.parent.relative_to(ROOT).parts))
        for name in ("kernels", "export")
        for path in (ROOT / name).rglob("__init__.py")
    }
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
    code = (
        "import ganfast.kernels.latents, ganfast.export.drawing.rows; "
        "print(ganfast.kernels.__file__)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = python("-S", "-c", _with_site(code), cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("ganfast/kernels/__init__.py")


def _with_site(code: str) -> str:
    """Site packages but no .pth files: an editable install must not make the import work."""
    import torch

    site = str(Path(torch.__file__).parents[1])
    return f"import sys; sys.path.append({site!r}); import ganfast; {code}"


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
    assert not [
        n for n in inside if n.startswith(("kernels/", "export/", "ganfast/bench/", "benchmarks/"))
    ]
    _without_harness(wheel, tmp_path)
    assert "ganfast/py.typed" in zipfile.ZipFile(wheel).namelist()


def _without_harness(wheel: Path, folder: Path) -> None:
    """Installed, `bench sample` parses its arguments, and the others name what is missing."""
    zipfile.ZipFile(wheel).extractall(folder / "installed")
    environment = os.environ | {"PYTHONPATH": str(folder / "installed")}
    for line, sentence in (
        ("train r1", "`ganfast bench train` needs the folder benchmarks/"),
        ("sample", "required: bundle"),
    ):
        command = [sys.executable, "-m", "ganfast", "bench", *line.split()]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
        assert done.returncode == 2, done.stderr
        assert sentence in done.stderr
        assert len(done.stderr.splitlines()) == 1


# From the ground up: what a module imports when it is loaded stands on its own floor or below. A
# name stands for all that begins with it, but for what has a longer name here. Functions may import
# from anywhere.
FLOORS = (
    "errors disk outside host locks log latents images flops environment "
    "fields config configfile presets",
    "kernels tensors device export.session",
    "augment random tasks losses models",
    "penalties data",
    "engine",
    "training",
    "evaluate",
    "runs",
    "export.bundle",
    "export.graph",
    "export.engines",
    "export.drawing",
    "export sampling",
    "commands",
    "cli __main__",
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names.split()} | {"": 0}


def modules() -> dict[str, Path]:
    """The sources by dotted name, without ganfast in front."""
    made = {}
    for top, prefix in (("ganfast", ""), ("kernels", "kernels."), ("export", "export.")):
        for path in sources(top):
            name = prefix + ".".join(path.relative_to(ROOT / top).with_suffix("").parts)
            made[name.removesuffix("__init__").rstrip(".")] = path
    return made


def sources(top: str) -> list[Path]:
    paths = (ROOT / top).rglob("*.py")
    return [path for path in paths if not any(parent.is_symlink() for parent in path.parents)]


def loaded(path: Path, known: Container[str]) -> Iterator[str]:
    """The modules of ganfast that a module imports when it is loaded itself."""

    def below(node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                for name in (f"{base}.{alias.name}" for alias in child.names):
                    yield name if name.removeprefix("ganfast.") in known else base
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            elif not isinstance(child, ast.FunctionDef | ast.Lambda):
                yield from below(child)

    for name in below(ast.parse(path.read_text())):
        if name.partition(".")[0] == "ganfast":
            yield name.partition(".")[2]


def floor(module: str) -> int:
    parts = module.split(".")
    return next(
        FLOOR[name] for n in range(len(parts), 0, -1) if (name := ".".join(parts[:n])) in FLOOR
    )


def test_every_import_leads_down_and_none_in_a_circle():
    known = modules()
    arrows = {name: set(loaded(path, known)) - {name} for name, path in known.items()}
    assert sum(map(len, arrows.values())) > 300, "the imports are not seen"
    assert not [f"{a} -> {b}" for a in arrows for b in arrows[a] if b and floor(b) > floor(a)]
    left = dict(arrows)
    while leaves := [name for name, needs in left.items() if not needs & left.keys() - {""}]:
        left = {name: needs for name, needs in left.items() if name not in leaves}
    assert not left, "these import each other"


def test_training_knows_no_runs():
    """Not inside a function either: what is computed does not depend on where it is kept."""
    for path in (ROOT / "ganfast" / "training").rglob("*.py"):
        assert "ganfast.runs" not in path.read_text(), path


def test_what_a_sampler_imports_is_without_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"  # importing it is an error from here on
        "import ganfast.sampling, ganfast.latents, ganfast.export.verify\n"
        "from ganfast.export import load_sampler\n"
        "from ganfast.export.drawing import run_onnxruntime, run_tensorrt, source, bench_sample\n"
        "from ganfast.export.engines import cuda, engines"
    )
    done = python("-c", code, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_no_folder_is_wider_than_24_modules():
    tops = ("ganfast", "kernels", "export", "benchmarks", "tests")
    widths = Counter(
        path.parent for top in tops for path in sources(top) if path.name != "__init__.py"
    )
    assert not {str(folder): width for folder, width in widths.items() if width > 24}


def test_no_source_file_is_longer_than_450_lines_and_no_function_than_70():
    for top in ("ganfast", "kernels", "export", "benchmarks"):
        for path in sources(top):
            text = path.read_text()
            assert len(text.splitlines()) <= 450, path
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    length = (node.end_lineno or 0) - node.lineno + 1
                    assert length <= 70, f"{path}:{node.lineno} {node.name}"
