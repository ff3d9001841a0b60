"""What a file is and where it may run: the hashes of manifest.json, and the form of it that a release takes."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from hqp_lightning.errors import ExportError

__all__ = [
    "FORMS",
    "SCHEMA_VERSION",
    "activation_type",
    "find_manifest",
    "form_file",
    "form_for",
    "read_manifest",
    "sha256",
    "source_for",
    "verify",
]

FORMS = "tensorrt"  # folder beside a model with the forms of it that some releases want, see `source_for`
SCHEMA_VERSION = 2
_READ = (1, 2)  # 2 has lists of inputs and outputs


def sha256(path: Path) -> str:
    """Hash a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def form_for(trt: Any, precision: str) -> str:
    """Return which form of a model this TensorRT takes, asked with ``hasattr``; ``""``: as it is.

    - ``"trt8"``: 8.x does not take weights that are stored as int8. This form has them in float, with the quantizer
      in the graph, and the layers of squeeze-excite in float.
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
    return form_file(onnx, form, precision, f"TensorRT {trt.__version__}") if form else onnx


def form_file(onnx: Path, form: str, precision: str, library: str) -> Path:
    """The file beside ``onnx`` that has the form; ``onnx`` itself if it has it. See `source_for`."""
    if onnx.name.endswith(f".{form}{onnx.suffix}"):
        return onnx
    path = onnx.parent / FORMS / f"{onnx.stem}.{form}{onnx.suffix}"
    if path.is_file():
        return path
    if (precision, form) == ("int8", "fp16"):
        return onnx
    raise ExportError(
        f"{library} takes {onnx.name} as {precision} only in the form {FORMS}/{path.name}, which is "
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
    if content.get("schema_version") not in _READ or not (isinstance(model, dict) and {"path", "sha256"} <= set(model)):
        raise ExportError(f"{path} is no manifest of schema version {' or '.join(map(str, _READ))}")
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


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))
