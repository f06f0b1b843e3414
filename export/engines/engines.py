"""Engines by content: what an engine was built from, its key, and whether it can run here.

The key is a hash of the ONNX file, the build configuration, the library with its full version, and
the GPU or the compute capability: no engine is ever taken for another.
"""

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ganfast.errors import InputError
from ganfast.export.bundle.bundle import write_file
from ganfast.export.engines.cache import EngineCache
from ganfast.export.engines.vendor import (
    Build,
    Flavour,
    build_plan,
    builds_without_gpu,
    load_flavour,
)

logger = logging.getLogger("ganfast")


@dataclass(frozen=True)
class Gpu:
    """The GPU that an engine is built for."""

    name: str  # "" for any GPU of the capability
    capability: str  # "8.6"


@dataclass(frozen=True)
class BuiltEngine:
    """A plan with its key and the facts that the key is made from, as a bundle stores them."""

    key: str
    facts: dict[str, Any]
    plan: bytes
    built: str  # why it had to be built; "" for an engine from the cache


def engine_facts(
    model: bytes, build: Build, flavour: str, version: str, gpu: Gpu
) -> dict[str, Any]:
    """All that determines an engine, in JSON values."""
    return {
        "onnx_sha256": hashlib.sha256(model).hexdigest(),
        "build": json.loads(json.dumps(asdict(build))),
        "flavour": flavour,
        "version": version,
        "gpu": gpu.name,
        "capability": gpu.capability,
    }


def engine_key(facts: Mapping[str, Any]) -> str:
    """32 hexadecimal digits."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def parse_target(target: str) -> tuple[str, tuple[str, ...]]:
    """ "rtx:8.6,8.9" -> ("rtx", ("8.6", "8.9")); "tensorrt" -> ("tensorrt", ()).

    Raises:
        InputError: no such engine, or no compute capability.
    """
    flavour, colon, rest = target.partition(":")
    capabilities = tuple(word.strip() for word in rest.split(",")) if colon else ()
    if flavour not in ("tensorrt", "rtx"):
        raise InputError(
            f"target is {target!r}; expected onnx, tensorrt, or rtx with compute capabilities, "
            "such as rtx:8.6,8.9"
        )
    wrong = [word for word in capabilities if not re.fullmatch(r"\d{1,2}\.\d", word)]
    if wrong or (capabilities and flavour == "tensorrt"):
        raise InputError(
            f"target is {target!r}; compute capabilities look like rtx:8.6,8.9, "
            "and tensorrt builds for the GPU it runs on"
        )
    return flavour, capabilities


def build_engines(
    model: bytes,
    flavour: str,
    build: Build,
    capabilities: Sequence[str] = (),
    cache: EngineCache | None = None,
) -> list[BuiltEngine]:
    """One engine for each compute capability, or one for the GPU here.

    Args:
        model: the ONNX file.
        flavour: tensorrt or rtx.
        capabilities: such as "8.6"; only where the library can name them. () is the GPU here.
        cache: engines found in it are not built again.

    Raises:
        InputError: the library is missing, or cannot take the graph or a capability; no GPU where
            one is needed.
        RunError: a build failed.
    """
    library = load_flavour(flavour)
    if capabilities and not builds_without_gpu(library):
        raise InputError(
            f"{flavour} {library.version} builds for the GPU it runs on; "
            f"leave {', '.join(capabilities)} out"
        )
    gpus = [Gpu("", capability) for capability in capabilities] or [_gpu_here()]
    return [_build_one(model, library, build, gpu, bool(capabilities), cache) for gpu in gpus]


def _gpu_here() -> Gpu:
    from ganfast.export.engines.cuda import Cuda

    return Cuda.open(0).gpu


def _build_one(
    model: bytes, library: Flavour, build: Build, gpu: Gpu, named: bool, cache: EngineCache | None
) -> BuiltEngine:
    facts = engine_facts(model, build, library.name, library.version, gpu)
    key = engine_key(facts)
    plan, why = cache.get(key, facts) if cache else (None, "there is no cache")
    if plan is not None:
        return BuiltEngine(key, facts, plan, "")
    timing_path = None
    if cache and not named:
        of_any_graph = engine_key(facts | {"onnx_sha256": "", "build": {}})
        timing_path = cache.folder / f"timing-{of_any_graph}"
    capabilities = [gpu.capability] if named else []
    plan, timing = build_plan(library, model, build, capabilities, _read(timing_path))
    if cache:
        try:
            cache.put(key, plan, facts)
            if timing_path and timing:
                write_file(timing_path, timing)
        except OSError as error:
            logger.warning(
                "%s: the engine cannot be kept there and will be built again next time", error
            )
    return BuiltEngine(key, facts, plan, why)


def _read(path: Path | None) -> bytes:
    try:
        return b"" if path is None else path.read_bytes()
    except OSError:
        return b""


def refusal(facts: Mapping[str, Any], flavour: Flavour, gpu: Gpu) -> str:
    """Why an engine with these facts cannot run here; "" where it can."""
    builder, version = facts.get("flavour"), facts.get("version")
    compatible = facts.get("build", {}).get("version_compatible")
    lean_runs_it = flavour.name == "lean" and builder == "tensorrt" and compatible
    if flavour.name != builder and not lean_runs_it:
        return f"it was built by {builder}, here is {flavour.name}"
    later_runs_it = compatible and _numbers(version) <= _numbers(flavour.version)
    if version != flavour.version and not later_runs_it:
        return f"it was built by {builder} {version}, here is {flavour.version}"
    capability = facts.get("capability")
    if capability != gpu.capability:
        return f"it was built for compute capability {capability}, {gpu.name} has {gpu.capability}"
    if facts.get("gpu") not in ("", gpu.name):
        return f"it was built for {facts.get('gpu')}, here is {gpu.name}"
    return ""


def _numbers(version: Any) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", str(version)))


def find_engine(
    engines: Mapping[str, Mapping[str, Any]], flavour: str, gpu: Gpu
) -> tuple[str, Flavour]:
    """The key of an engine that runs here, and the library that runs it.

    That is the library that built it, else its lean runtime.

    Raises:
        InputError: no engine runs here; with the reason for each.
    """
    reasons: list[str] = []
    if not engines:
        reasons.append(f"the bundle has no {flavour} engine; export it with --target {flavour}")
    for name in (flavour, *(["lean"] if flavour == "tensorrt" else [])):
        try:
            library = load_flavour(name)
        except InputError as error:
            reasons.append(str(error))
            continue
        for key, facts in engines.items():
            reason = refusal(facts, library, gpu)
            if not reason:
                return key, library
            reasons.append(f"engine {key[:8]}: {reason}")
    raise InputError("; ".join(reasons))
