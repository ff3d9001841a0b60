"""manifest.json beside a model: what the one who deploys it must know to feed it and to trust it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from hqp_lightning.errors import ExportError
from hqp_lightning.export.onnx import describe
from hqp_lightning.records import OnnxArtifact

__all__ = ["data_sha256", "read_manifest", "write_manifest"]

SCHEMA_VERSION = 1


def write_manifest(
    path: str | os.PathLike[str],
    *,
    artifact: OnnxArtifact,
    classes: Sequence[str] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    accuracy: float | None = None,
    calibration: Mapping[str, Any] | None = None,
    versions: Mapping[str, str] | None = None,
) -> Path:
    """Write the manifest of one ONNX file.

    Args:
        path: the JSON file, usually ``manifest.json`` in the model's folder.
        artifact: the model; its path is stored relative to the manifest, so that the folder can move.
        classes: names in the order of the logits.
        preprocessing: such as ``{"resize": [128, 128], "mean": [...], "std": [...]}``; None: not known.
        accuracy: of this very file, a fraction.
        calibration: such as ``{"method": "mse", "samples": 512, "sha256": data_sha256(batches)}``.
        versions: package to version.

    Returns:
        The path written.

    Raises:
        ExportError: something is not JSON, or the file cannot be written.
    """
    path = Path(path)
    model = asdict(artifact)
    model["path"] = os.path.relpath(artifact.path, path.parent)
    content = {
        "schema_version": SCHEMA_VERSION,
        "model": model,
        "preprocessing": preprocessing,
        "classes": None if classes is None else list(classes),
        "accuracy": accuracy,
        "calibration": calibration,
        "versions": dict(versions or {}),
    }
    try:
        path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    except (TypeError, ValueError, OSError) as error:
        raise ExportError(f"could not write the manifest {path}: {error}") from error
    return path


def read_manifest(path: str | os.PathLike[str], *, verify: bool = True) -> dict[str, Any]:
    """Read a manifest back.

    Args:
        path: the JSON file.
        verify: compare the model file with the stored SHA-256.

    Returns:
        The content, with ``model.path`` relative to the manifest as stored.

    Raises:
        ExportError: not a manifest of this schema, or the model is missing or another one.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ExportError(f"could not read the manifest {path}: {error}") from error
    if not isinstance(content, dict) or content.get("schema_version") != SCHEMA_VERSION:
        raise ExportError(f"{path} is no manifest of schema version {SCHEMA_VERSION}")
    if verify:
        found = describe(path.parent / content["model"]["path"])
        if found.sha256 != content["model"]["sha256"]:
            raise ExportError(f"{found.path} is not the file that {path} describes (SHA-256 differs): export it again")
    return content


def data_sha256(batches: Iterable[np.ndarray]) -> str:
    """Hash calibration data, whatever its batch size: the float32 bytes of all samples in order."""
    digest = hashlib.sha256()
    for batch in batches:
        digest.update(np.ascontiguousarray(batch, dtype="<f4").data)
    return digest.hexdigest()
