"""What a file is and where it may run: the hashes of manifest.json, and the note beside an engine."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from hqp_lightning.board.files import write_whole
from hqp_lightning.errors import ExportError

__all__ = [
    "FORMS",
    "SCHEMA_VERSION",
    "activation_type",
    "check_note",
    "find_manifest",
    "form_for",
    "read_manifest",
    "sha256",
    "source_for",
    "verify",
    "write_note",
]

FORMS = "tensorrt"  # folder beside a model with the forms of it that some releases want, see `source_for`
SCHEMA_VERSION = 1


def sha256(path: Path) -> str:
    """Hash a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def form_for(trt: Any, precision: str) -> str:
    """Return which form of a model this TensorRT takes, asked with ``hasattr``; ``""``: as it is.

    - ``"trt8"``: 8.x does not take weights that are stored as int8. This form has them in float, with the quantizer
      in the graph; the engine is the same.
    - ``"fp16"``: 11 has no FP16 flag, a network computes in the types that it is written in.
    """
    if not hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):
        return "trt8" if precision == "int8" else ""
    return "" if hasattr(trt.BuilderFlag, "FP16") or precision == "fp32" else "fp16"


def source_for(trt: Any, onnx: Path, precision: str) -> Path:
    """Return the file beside ``onnx`` that this TensorRT takes: ``tensorrt/<name>.<form>.onnx``, or ``onnx`` itself.

    Raises:
        ExportError: it is not there. INT8 on 11 then takes the model itself, whose float parts stay float32.
    """
    form = form_for(trt, precision)
    if not form or onnx.name.endswith(f".{form}{onnx.suffix}"):
        return onnx
    path = onnx.parent / FORMS / f"{onnx.stem}.{form}{onnx.suffix}"
    if path.is_file():
        return path
    if (precision, form) == ("int8", "fp16"):
        return onnx
    raise ExportError(
        f"TensorRT {trt.__version__} takes {onnx.name} as {precision} only in the form {FORMS}/{path.name}, which is "
        "not beside it: copy the whole export folder to the board"
    )


def find_manifest(file: Path) -> Path | None:
    """The manifest.json in a model's or an engine's folder, or in the one above for ``tensorrt/`` and ``engines/``."""
    parent = _absolute(file).parent
    folder = parent.parent if parent.name in (FORMS, "engines") else parent
    path = folder / "manifest.json"
    return path if path.is_file() else None


def read_manifest(path: Path) -> dict[str, Any]:
    """Read manifest.json.

    Raises:
        ExportError: not a manifest of this schema.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(f"could not read the manifest {path}: {error}") from error
    content = content if isinstance(content, dict) else {}
    model = content.get("model")
    if content.get("schema_version") != SCHEMA_VERSION or not (
        isinstance(model, dict) and {"path", "sha256"} <= set(model)
    ):
        raise ExportError(f"{path} is no manifest of schema version {SCHEMA_VERSION}")
    return content


def activation_type(onnx: Path) -> str:
    """What its manifest says of the integers of a Q/DQ model's activations; int8 where it says nothing."""
    manifest = find_manifest(onnx)
    content = {} if manifest is None else read_manifest(manifest)
    if not content or content["model"]["path"] != onnx.name:
        return "int8"
    return str((content.get("calibration") or {}).get("activation_type", "int8"))


def verify(onnx: Path) -> str:
    """Compare a model with the hash in its manifest and return what was found, in words.

    Raises:
        ExportError: there is no such file, or it is not the one that the manifest describes.
    """
    if not onnx.is_file():
        raise ExportError(f"no ONNX file at {onnx}")
    manifest = find_manifest(onnx)
    if manifest is None:
        return f"no manifest.json beside {onnx.name}: its hash is not verified"
    content = read_manifest(manifest)
    known = {**content.get("files", {}), content["model"]["path"]: content["model"]["sha256"]}
    # Links are not followed: a mounted folder may consist of them, and the manifest means the names in its folder.
    expected = known.get(_absolute(onnx).relative_to(manifest.parent).as_posix())
    if expected is None:
        return f"{manifest.name} does not list {onnx.name}: its hash is not verified"
    if sha256(onnx) != expected:
        raise ExportError(
            f"{onnx} is not the file that {manifest} describes (SHA-256 differs): copy the export folder again"
        )
    return f"{onnx.name}: SHA-256 as in {manifest.name}"


def write_note(engine: Path, source: Path, trt: Any, cuda: Any, **facts: Any) -> Path:
    """Write the note beside an engine: what it was built from, and the only GPU and TensorRT that may load it."""
    manifest = find_manifest(source)
    content = {
        "schema_version": SCHEMA_VERSION,
        "engine_sha256": sha256(engine),
        "source": {"path": source.name, "sha256": sha256(source)},
        "manifest": None if manifest is None else os.path.relpath(manifest, engine.parent),
        "gpu": {
            "name": cuda.name,
            "compute_capability": cuda.capability,
            "multiprocessors": cuda.multiprocessors,
        },
        "tensorrt": trt.__version__,
        **facts,
    }
    path = _note_path(engine)
    write_whole(path, (json.dumps(content, indent=2) + "\n").encode())
    return path


def check_note(engine: Path, trt: Any, cuda: Any) -> tuple[dict[str, Any], list[str]]:
    """Read the note of an engine before TensorRT sees the engine.

    Returns:
        The note, and warnings in words.

    Raises:
        ExportError: no engine or note, another engine, or one for another GPU or TensorRT.
    """
    path = _note_path(engine)
    again = f"build it here: hqp-engine build MODEL.onnx -o {engine}"
    if not engine.is_file():
        raise ExportError(f"no engine at {engine}: {again}")
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
        gpu, release = note["gpu"], note["tensorrt"]
        name, capability = gpu["name"], gpu["compute_capability"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ExportError(
            f"no readable note {path.name} beside {engine}, so it is not known where it may run: {again}"
        ) from None
    if note.get("engine_sha256") != sha256(engine):
        raise ExportError(f"{engine} is not the engine that {path.name} describes (SHA-256 differs): {again}")
    if release != trt.__version__:
        raise ExportError(f"{engine} is for TensorRT {release}, here is {trt.__version__}: {again}")
    if (name, capability) != (cuda.name, cuda.capability):
        raise ExportError(
            f"{engine} is for the GPU {name} (compute capability {capability}), here is {cuda.name} "
            f"({cuda.capability}): {again}"
        )
    warnings = []
    if gpu.get("multiprocessors") != cuda.multiprocessors:
        warnings.append(
            f"{engine} was tuned on {gpu.get('multiprocessors')} multiprocessors, here are {cuda.multiprocessors} "
            "(another module or power mode): build it again for its full speed"
        )
    return note, warnings


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))


def _note_path(engine: Path) -> Path:
    return engine.with_name(f"{engine.name}.json")
