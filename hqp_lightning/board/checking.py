"""``hqp-engine check``: what an engine computes, against labels, against stored logits, and against itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hqp_lightning.board.arrays import bundle, changed, each, sampled
from hqp_lightning.board.data import labelled_batches, match_folders
from hqp_lightning.board.engine import LoadedEngine
from hqp_lightning.board.loading import load
from hqp_lightning.board.provenance import find_manifest, read_manifest
from hqp_lightning.errors import ExportError

__all__ = ["check"]

_ROWS = 1e-2  # of the largest logit: kernels for other batch sizes add in another order, in float16


def check(engine: Path, data: Path | None = None, manifest: Path | None = None, limit: int | None = None) -> list[str]:
    """Compare an engine with the export's reference logits, and measure its top-1 on labelled images.

    Raises:
        ExportError: nothing to compare with, or the rows of a batch of one repeated image differ.
    """
    loaded, note, said = load(engine)
    with loaded:
        if manifest is None and note.get("manifest") and (engine.parent / note["manifest"]).is_file():
            manifest = engine.parent / note["manifest"]
        manifest = manifest or find_manifest(engine)  # an export writes it after its engines
        content = None if manifest is None else read_manifest(manifest)
        if content is not None:
            said += _about(content, note, data)
        stored = None if content is None or manifest is None else content.get("references")
        if stored:
            said += _against_references(loaded, manifest.parent / stored["path"])  # type: ignore[union-attr]
        elif data is None:
            raise ExportError(f"nothing to compare {engine} with: no references in the manifest, and no DATA given")
        if data is not None:
            said += _top1(loaded, data, content, limit)
    return said


def _top1(loaded: LoadedEngine, data: Path, content: dict[str, Any] | None, limit: int | None) -> list[str]:
    if len(loaded.inputs) > 1 or len(loaded.outputs) > 1:
        raise ExportError(
            f"top-1 is of one input and one output; {loaded.name} has {', '.join((*loaded.inputs, *loaded.outputs))}: "
            "check it without DATA, against the references of the export"
        )
    right = seen = 0
    for images, labels in labelled_batches(data, content, loaded.max_batch, limit):
        logits = each(loaded.run(images))[0]
        if logits.ndim > 2:
            raise ExportError(
                f"top-1 is of one class an image; {loaded.name} gives {logits.shape[1:]} an image: check it without "
                "DATA, against the references of the export"
            )
        if labels.min() < 0 or labels.max() >= logits.shape[1]:
            raise ExportError(
                f"{data} has labels from {labels.min()} to {labels.max()}, the model {logits.shape[1]} classes, "
                "numbered from 0"
            )
        right += int((logits.argmax(axis=1) == labels).sum())
        seen += len(labels)
    said = [f"top-1 {right / seen:.4f} ({right} of {seen} images of {data})"]
    if content is not None and content.get("accuracy") is not None:
        metric = content.get("monitor") or "its metric"
        model = content["model"]["path"]
        said.append(f"the manifest says {content['accuracy']:.4f} for {metric} of {model} on what the export scored")
    return said


def _against_references(loaded: LoadedEngine, path: Path) -> list[str]:
    """Agreement and SQNR with the logits that the export stored, and one image repeated over the batch."""
    try:
        with np.load(path) as stored:
            content = {key: stored[key] for key in stored.files}
        images = bundle([x for key, x in content.items() if _is_input(key)])
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise ExportError(f"could not read the reference logits {path}: {error}") from error
    count = len(each(images)[0])
    found = dict(zip(loaded.outputs, map(sampled, each(loaded.run(images)))))
    said = []
    for key, expected in content.items():
        if _is_input(key):
            continue
        name, _, output = key.partition(":")
        given = found.get(output or next(iter(found)))
        if given is None or expected.shape != given.shape:
            gives = {n: x.shape for n, x in found.items()} if given is None else given.shape
            raise ExportError(f"{path}: {output or 'logits'} of shape {expected.shape}, the engine gives {gives}")
        agree = float((_classes(given) == _classes(expected)).mean())
        of = f" of {output}" if output else ""
        said.append(
            f"{count} reference images: {agree:.1%} of the classes{of} as {name} on the training machine, "
            f"{_sqnr(expected, given)} of the logits"
        )
    spread = 0.0
    for rows in each(loaded.run(changed(images, lambda x: np.repeat(x[:1], loaded.max_batch, axis=0)))):
        apart = float(np.abs(rows - rows[0]).max())
        if apart > _ROWS * max(1.0, float(np.abs(rows[0]).max())):
            raise ExportError(
                f"one image repeated {loaded.max_batch} times gives logits that differ by {apart:.3g}: the engine is "
                "wrong for this batch size; build it with another --max-batch or --optimization-level"
            )
        spread = max(spread, apart)
    return [*said, f"one image repeated {loaded.max_batch} times: rows differ by {spread:.2g}"]


def _is_input(key: str) -> bool:
    """``images``, or ``input:NAME`` of several."""
    return key == "images" or key.startswith("input:")


def _sqnr(expected: np.ndarray, found: np.ndarray) -> str:
    """Signal over noise of the logits, each sample's mean taken off: a shift of all changes no class."""
    expected, found = (x.astype(np.float64) for x in (expected, found))
    if expected.shape[1] > 1:
        expected, found = (x - x.mean(axis=1, keepdims=True) for x in (expected, found))
    noise = float(((found - expected) ** 2).sum())
    return f"{10 * np.log10(float((expected**2).sum()) / noise):.1f} dB" if noise > 0 else "no noise"


def _about(content: dict[str, Any], note: dict[str, Any], data: Path | None) -> list[str]:
    """What one should know of a check before one believes it."""
    hashes = {content["model"]["sha256"], *content.get("files", {}).values()}
    warnings = []
    if note.get("source", {}).get("sha256") not in hashes:
        warnings.append("the engine was built from another model than the manifest describes: build it again")
    classes = content.get("classes")
    if classes and data is not None and data.is_dir():
        pairs = [f"{name} = {classes[k]}" for name, k in match_folders(data, classes).items() if classes[k] != name]
        if pairs:
            more = " ..." if len(pairs) > 3 else ""
            warnings.append(
                f"folders were matched with the classes in alphabetical order: {', '.join(pairs[:3])}{more}"
            )
    return [f"warning: {text}" for text in warnings]


def _classes(logits: np.ndarray) -> np.ndarray:
    """The class of each row; of a single logit its side of zero."""
    return logits.argmax(axis=1) if logits.shape[1] > 1 else (logits[:, 0] > 0).astype(int)
