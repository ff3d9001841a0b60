"""Pictures for a file alone: a folder with or without classes, or a ``.npz``, prepared as the network takes them."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hqp_lightning.board.data import SUFFIXES, match_folders, open_picture, preprocess
from hqp_lightning.errors import ExportError
from hqp_lightning.records import OnnxArtifact

__all__ = ["Pictures", "find_pictures", "layout_of"]

_BATCH = 64


@dataclass(frozen=True)
class Pictures:
    """Pictures in a fixed order.

    Attributes:
        samples: paths, or arrays.
        labels: class indices ``(n,)``; None: not known.
        steps: preprocessing, see `hqp_lightning.board.data.preprocess`; None: the samples are prepared.
        artifact: the network that takes them.
        layout: of its input, ``"NCHW"`` or ``"NHWC"``.
        classes: names in the order of the logits, where they are known.
    """

    samples: Sequence[Any]
    labels: np.ndarray | None
    steps: Mapping[str, Any] | None
    artifact: OnnxArtifact
    layout: str
    classes: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def some(self, count: int | None) -> Pictures:
        """So many, evenly spread over all; None, or more than there are: all."""
        if count is None or count >= len(self):
            return self
        chosen = [k * len(self) // count for k in range(count)]
        labels = None if self.labels is None else self.labels[chosen]
        return replace(self, samples=[self.samples[k] for k in chosen], labels=labels)

    def batches(self) -> Iterator[np.ndarray]:
        """``(n, *input_shape)`` of the network's type; the same at every call."""
        for start in range(0, len(self), _BATCH):
            yield np.stack([self._prepared(sample) for sample in self.samples[start : start + _BATCH]])

    def _prepared(self, sample: Any) -> np.ndarray:
        expected = self.artifact.input_shape
        image = sample if self.steps is None else self._steps(sample)
        if image.shape != expected:
            what = sample if isinstance(sample, Path) else "a picture"
            how = "" if self.steps is None else f" when prepared by {dict(self.steps)}"
            raise ExportError(f"{what} is {image.shape}{how}, the network takes {expected}: see --size and --crop")
        return image

    def _steps(self, sample: Any) -> np.ndarray:
        image = preprocess(open_picture(sample), dict(self.steps or {}), self.artifact.input_dtype)
        return image if self.layout == "NCHW" else np.ascontiguousarray(image.transpose(1, 2, 0))


def layout_of(shape: Sequence[int]) -> str:
    """NHWC where the last axis alone can be colours.

    Examples:
        >>> layout_of((3, 224, 224)), layout_of((224, 224, 3)), layout_of((64,))
        ('NCHW', 'NHWC', 'NCHW')
    """
    return "NHWC" if len(shape) == 3 and shape[-1] in (1, 3) and shape[0] not in (1, 3) else "NCHW"


def find_pictures(
    source: Path,
    artifact: OnnxArtifact,
    steps: Mapping[str, Any] | None,
    layout: str,
    classes: Sequence[str] | None = None,
) -> Pictures:
    """Look at what there is; nothing is read of a folder's pictures yet.

    Args:
        source: a folder of pictures; or of folders, one for each class; or a ``.npz`` with ``images`` and, if they are
            known, ``labels``: float32 ``(n, *input_shape)`` is prepared, uint8 ``(n, height, width, 3)`` is not.
        artifact: the network.
        steps: preprocessing; needed for what is not prepared.
        layout: of the network's input.
        classes: names in the order of the logits.

    Raises:
        ExportError: no pictures, or nobody says how they are prepared.
    """
    names = None if classes is None else tuple(classes)
    samples: Any
    if source.is_dir():
        samples, labels = _folder(source, names)
        if labels is not None and names is None:
            names = tuple(match_folders(source, None))
        prepared = False
    elif source.is_file():
        samples, labels, prepared = _arrays(source, artifact)
    else:
        raise ExportError(f"no folder and no .npz file at {source}")
    if not len(samples):
        raise ExportError(f"no pictures in {source}: expected {', '.join(sorted(SUFFIXES))}")
    if not prepared and steps is None:
        raise ExportError(
            f"how are the pictures in {source} prepared? Say --mean and --std (such as --mean 0.485,0.456,0.406 "
            "--std 0.229,0.224,0.225), or the --manifest of a run that knows; a .npz of float32 is taken as prepared"
        )
    if not prepared and 3 not in (artifact.input_shape[:1] if layout == "NCHW" else artifact.input_shape[-1:]):
        raise ExportError(f"the network takes {artifact.input_shape}, no pictures in RGB: give a .npz of prepared ones")
    return Pictures(samples, labels, None if prepared else steps, artifact, layout, names)


def _folder(source: Path, classes: Sequence[str] | None) -> tuple[list[Path], np.ndarray | None]:
    def inside(folder: Path, paths: Iterator[Path]) -> list[Path]:
        return sorted(p for p in paths if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))

    flat = inside(source, source.iterdir())
    folders = [p for p in source.iterdir() if p.is_dir() and not p.name.startswith(".")]
    if flat or not folders:
        return flat, None
    found = [(p, k) for n, k in match_folders(source, classes).items() for p in inside(source, (source / n).rglob("*"))]
    return [path for path, _ in found], np.array([label for _, label in found], np.int64)


def _arrays(source: Path, artifact: OnnxArtifact) -> tuple[np.ndarray, np.ndarray | None, bool]:
    try:
        if not zipfile.is_zipfile(source):
            raise ValueError("another kind of file, or cut off")
        with np.load(source) as content:
            images = content["images"]
            labels = content["labels"] if "labels" in content.files else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ExportError(f"{source} is no .npz with an array images (and labels): {error}") from error
    shape, prepared = artifact.input_shape, images.dtype.kind == "f" or artifact.input_dtype == "uint8"
    prepared = prepared and images.shape[1:] == shape
    if not prepared and not (images.dtype == np.uint8 and images.ndim == 4 and images.shape[-1] == 3):
        raise ExportError(
            f"{source}: images are {images.dtype} {images.shape}; expected prepared ones, {artifact.input_dtype} "
            f"(n, {', '.join(map(str, shape))}), or uint8 (n, height, width, 3)"
        )
    if labels is not None and (labels.shape != images.shape[:1] or labels.dtype.kind not in "iu"):
        raise ExportError(f"{source}: labels are {labels.dtype} {labels.shape}; expected integers ({len(images)},)")
    return images.astype(artifact.input_dtype, copy=False) if prepared else images, labels, prepared
