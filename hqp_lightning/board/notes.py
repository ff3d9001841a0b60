"""The note beside an engine: what it was built from, and where alone it may run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from hqp_lightning.board.files import write_whole
from hqp_lightning.board.provenance import SCHEMA_VERSION, find_manifest, sha256
from hqp_lightning.errors import ExportError

__all__ = ["check_note", "read_note", "write_note", "write_rtx_note"]


def write_note(engine: Path, source: Path, trt: Any, cuda: Any, **facts: Any) -> Path:
    """Write the note beside an engine: what it was built from, and the only GPU and TensorRT that may load it."""
    gpu = {"name": cuda.name, "compute_capability": cuda.capability, "multiprocessors": cuda.multiprocessors}
    return _write(engine, source, {"gpu": gpu, "tensorrt": trt.__version__, **facts})


def write_rtx_note(engine: Path, source: Path, version: str, capability: str, **facts: Any) -> Path:
    """Write the note beside an engine that was compiled for other machines: their compute capability and release."""
    return _write(engine, source, {"gpu": {"compute_capability": capability}, "tensorrt_rtx": version, **facts})


def _write(engine: Path, source: Path, facts: dict[str, Any]) -> Path:
    manifest = find_manifest(source)
    content = {
        "schema_version": SCHEMA_VERSION,
        "engine_sha256": sha256(engine),
        "source": {"path": source.name, "sha256": sha256(source)},
        "manifest": None if manifest is None else os.path.relpath(manifest, engine.parent),
        **facts,
    }
    path = _note_path(engine)
    write_whole(path, (json.dumps(content, indent=2) + "\n").encode())
    return path


def read_note(engine: Path) -> dict[str, Any]:
    """Read the note of an engine.

    Raises:
        ExportError: no engine or note, or the note of another engine.
    """
    path, again = _note_path(engine), _again(engine)
    if not engine.is_file():
        raise ExportError(f"no engine at {engine}: {again}")
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
        known = {"compute_capability"} <= set(note["gpu"]) and ("tensorrt" in note or "tensorrt_rtx" in note)
    except (OSError, ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise ExportError(
            f"no readable note {path.name} beside {engine}, so it is no engine, or it is not known where it may run: "
            "hqp-engine build MODEL.onnx -o MODEL.engine writes both"
        )
    if note.get("engine_sha256") != sha256(engine):
        raise ExportError(f"{engine} is not the engine that {path.name} describes (SHA-256 differs): {again}")
    return note


def check_note(engine: Path, note: dict[str, Any], trt: Any, cuda: Any) -> list[str]:
    """Compare an engine's note with this machine before the library sees the engine.

    Returns:
        Warnings in words.

    Raises:
        ExportError: the engine is for another GPU or another release.
    """
    gpu, again, rtx = note["gpu"], _again(engine), "tensorrt_rtx" in note
    release = note["tensorrt_rtx" if rtx else "tensorrt"]
    if release != trt.__version__:
        name = "TensorRT for RTX" if rtx else "TensorRT"
        raise ExportError(f"{engine} is for {name} {release}, here is {trt.__version__}: {again}")
    if (gpu.get("name", cuda.name), gpu["compute_capability"]) != (cuda.name, cuda.capability):
        wanted = f"the GPU {gpu['name']} (compute capability" if "name" in gpu else "GPUs of (compute capability"
        raise ExportError(
            f"{engine} is for {wanted} {gpu['compute_capability']}), here is {cuda.name} ({cuda.capability}): {again}"
        )
    built = gpu.get("multiprocessors", cuda.multiprocessors)
    if built == cuda.multiprocessors:
        return []
    return [
        f"{engine} was tuned on {built} multiprocessors, here are {cuda.multiprocessors} "
        "(another module or power mode): build it again for its full speed"
    ]


def _again(engine: Path) -> str:
    return f"build it here: hqp-engine build MODEL.onnx -o {engine}"


def _note_path(engine: Path) -> Path:
    return engine.with_name(f"{engine.name}.json")
