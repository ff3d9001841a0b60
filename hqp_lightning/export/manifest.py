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

from hqp_lightning.board import provenance
from hqp_lightning.board.arrays import Arrays, each
from hqp_lightning.board.files import write_whole
from hqp_lightning.board.rtx import GPUS
from hqp_lightning.errors import ExportError
from hqp_lightning.records import CompiledEngine, ModelTensor, OnnxArtifact

__all__ = ["data_sha256", "read_manifest", "write_manifest"]


def write_manifest(
    path: str | os.PathLike[str],
    *,
    artifact: OnnxArtifact,
    classes: Sequence[str] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    accuracy: float | None = None,
    calibration: Mapping[str, Any] | None = None,
    versions: Mapping[str, str] | None = None,
    monitor: str | None = None,
    files: Iterable[str | os.PathLike[str]] = (),
    engines: Sequence[CompiledEngine] = (),
    references: str | os.PathLike[str] | None = None,
    layout: str | None = None,
) -> Path:
    """Write the manifest of one ONNX file.

    Args:
        path: the JSON file, usually ``manifest.json`` in the model's folder.
        artifact: the model; its path is stored relative to the manifest, so that the folder can move.
        classes: names in the order of the logits.
        preprocessing: such as ``{"crop": "square", "resize": 128, "mean": [...], "std": [...]}``, the steps of
            `hqp_lightning.board.data.preprocess`; None: not known.
        accuracy: of this very file, a fraction.
        calibration: such as ``{"method": "mse", "samples": 512, "sha256": data_sha256(batches)}``.
        versions: package to version.
        monitor: what ``accuracy`` is, as the training code calls it.
        files: others of the folder that go to the board, to be hashed.
        engines: those compiled for other machines' GPUs, with paths relative to the manifest.
        references: images and logits that an engine is held against, from `write_references`.
        layout: of the input; None: ``"NCHW"`` for pictures.

    Returns:
        The path written.

    Raises:
        ExportError: something is not JSON, or the file cannot be written.
    """
    path = Path(path)
    files = [*files, *([] if references is None else [references])]
    model = asdict(artifact)
    model["path"] = os.path.relpath(artifact.path, path.parent)
    for entry, tensor in zip(model["inputs"], artifact.inputs, strict=True):
        entry |= _facts(tensor, preprocessing if len(artifact.inputs) == 1 else None, layout)
    content = {
        "schema_version": provenance.SCHEMA_VERSION,
        "model": model,
        "preprocessing": preprocessing,
        "classes": None if classes is None else list(classes),
        "accuracy": accuracy,
        "monitor": monitor,
        "calibration": calibration,
        "versions": dict(versions or {}),
        "files": {Path(os.path.relpath(f, path.parent)).as_posix(): provenance.sha256(Path(f)) for f in files},
    }
    if references is not None:
        content["references"] = {"path": Path(os.path.relpath(references, path.parent)).as_posix()}
    if engines:
        content["engines"] = [_engine(e, path.parent) for e in engines]
        content["run_engines"] = _how_to_run(engines[0].version)
    try:
        text = json.dumps(content, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ExportError(f"could not write the manifest {path}: {error}") from error
    write_whole(path, f"{text}\n".encode())
    return path


def _engine(engine: CompiledEngine, folder: Path) -> dict[str, Any]:
    return {
        "path": engine.path,
        "sha256": provenance.sha256(folder / engine.path),
        "model": engine.model,
        "precision": engine.precision,
        "compute_capability": engine.compute_capability,
        "gpus": GPUS.get(engine.compute_capability),
        "tensorrt_rtx": engine.version,
        "batch_size": engine.batch_size,
        "kernels": engine.kernels,
        "int8_layers": f"{engine.int8_layers} of {engine.int8_asked}",
    }


def _how_to_run(version: str) -> dict[str, str]:
    """On a machine with such a GPU; an engine runs with the release that made it."""
    return {
        "install": f"pip install tensorrt-rtx=={version} numpy",
        "time": "python3 hqp-engine.pyz bench engines/FILE.engine",
        "check": "python3 hqp-engine.pyz check engines/FILE.engine",
        "python": "tensorrt_rtx.Runtime(logger).deserialize_cuda_engine(bytes), then as in TensorRT 10 and later",
        "onnxruntime": "compiles model.int8.onnx itself where it has NvTensorRTRTXExecutionProvider",
    }


def _facts(tensor: ModelTensor, preprocessing: Mapping[str, Any] | None, layout: str | None) -> dict[str, Any]:
    """What the name and the shape leave open: who knows only the folder would have to guess."""
    facts: dict[str, Any] = {"layout": {1: "NC", 3: layout or "NCHW"}.get(len(tensor.shape))}
    if preprocessing is not None:
        facts["channels"] = "RGB"
        if tensor.dtype != "uint8":  # bytes go in as they are
            facts["divide_by"] = 255  # of `hqp_lightning.board.data.preprocess`, before the mean
    return facts


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
    content = provenance.read_manifest(path)
    if verify:
        provenance.verify(path.parent / content["model"]["path"])
    return content


def data_sha256(batches: Iterable[Arrays]) -> str:
    """Hash calibration data, whatever its batch size: the float32 bytes of all samples in order.

    Of several inputs, the SHA-256 of their hashes, one behind the other.
    """
    digests: list[Any] = []
    for batch in batches:
        digests = digests or [hashlib.sha256() for _ in each(batch)]
        for digest, x in zip(digests, each(batch), strict=True):
            digest.update(np.ascontiguousarray(x, dtype="<f4").data)
    if len(digests) > 1:
        return hashlib.sha256(b"".join(d.digest() for d in digests)).hexdigest()
    return (digests or [hashlib.sha256()])[0].hexdigest()
