"""Images and labels for a check on the board, prepared as the manifest says."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hqp_lightning.errors import ExportError

__all__ = ["SUFFIXES", "labelled_batches", "match_folders", "open_picture", "preprocess"]

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
"""What counts as a picture."""
_STEPS = {"crop", "central_square", "resize", "center_crop", "interpolation", "mean", "std"}


def preprocess(image: Any, steps: dict[str, Any], dtype: str = "float32") -> np.ndarray:
    """Turn an image into what the model takes.

    Args:
        image: a PIL image, or uint8 ``(height, width, 3)``.
        steps: ``preprocessing`` of the manifest, done in this order, each where it is there: ``crop`` ("square": the
            largest central one, or that whose side is ``central_square`` of the shorter side), ``resize`` (px of the
            shorter side, or ``[height, width]``), ``center_crop`` (px, or ``[height, width]``), then to [0, 1], then
            ``(x - mean) / std`` for R, G, B. ``interpolation``: "bilinear" (antialiased, the default), "bicubic" or
            "nearest".
        dtype: of the model's input; to ``"uint8"``, bytes, nothing is done behind the cut.

    Returns:
        ``(3, height, width)`` of that type.

    Raises:
        ExportError: a step that is not known, or no PIL.
    """
    pil = _pil()
    unknown = sorted(set(steps) - _STEPS)
    kind = steps.get("interpolation", "bilinear")
    cut = steps.get("crop"), "central_square" in steps
    known = cut in ((None, False), ("square", False), ("square", True)) and kind in ("bilinear", "bicubic", "nearest")
    if unknown or not known:
        raise ExportError(
            f"preprocessing {steps} of the manifest is not understood: expected crop: square (with central_square), "
            "resize, center_crop, interpolation: bilinear, bicubic or nearest, mean, std; or check with a .npz of "
            "prepared images"
        )
    image = (pil.fromarray(image) if isinstance(image, np.ndarray) else image).convert("RGB")
    if steps.get("crop"):
        side = max(1, round(steps.get("central_square", 1.0) * min(image.size)))
        image = _cut(image, side, side)
    if (size := steps.get("resize")) is not None:
        width, height = image.size
        if not isinstance(size, (list, tuple)):  # the shorter side, as torchvision's Resize
            short = min(width, height)
            size = (int(size * height / short), int(size * width / short))
        # PIL.Image.Resampling came with Pillow 9.1; the old names are there in every release.
        image = image.resize((int(size[1]), int(size[0])), getattr(pil, kind.upper()))
    if (size := steps.get("center_crop")) is not None:
        size = size if isinstance(size, (list, tuple)) else (size, size)
        image = _cut(image, int(size[0]), int(size[1]))
    if dtype == "uint8":
        return np.ascontiguousarray(np.asarray(image, np.uint8).transpose(2, 0, 1))
    values: Any = np.asarray(image, np.float32) / np.float32(255)
    values = (values - np.asarray(steps.get("mean", 0.0), np.float32)) / np.asarray(steps.get("std", 1.0), np.float32)
    return np.ascontiguousarray(values.transpose(2, 0, 1))


def labelled_batches(
    source: Path, manifest: dict[str, Any] | None, batch_size: int, limit: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield ``(images, labels)``: ``(n, 3, height, width)`` of the model's type, and class indices ``(n,)``.

    Where the manifest says ``NHWC``, images are prepared as ``(n, height, width, 3)``.

    Args:
        source: a folder ``class/image.jpg``, or a .npz with ``images`` and ``labels``: float32 images
            ``(n, 3, height, width)`` are taken as prepared, uint8 ones ``(n, height, width, 3)`` are preprocessed.
        manifest: content of manifest.json; needed unless the images are prepared.
        batch_size: images in a batch; the last may be smaller.
        limit: use so many, evenly spread over all; None: all.

    Raises:
        ExportError: no images, no preprocessing, or folders that are not the model's classes.
    """
    steps = (manifest or {}).get("preprocessing")
    if source.is_dir():
        samples = _folder(source, (manifest or {}).get("classes"))
        prepared = False
    elif source.is_file():
        samples, prepared = _arrays(source)
    else:
        raise ExportError(f"no folder and no .npz file at {source}")
    if not samples:
        raise ExportError(f"no images in {source}: expected class/image.jpg")
    if manifest is None and not prepared:
        raise ExportError(
            "without the manifest.json of the export, images cannot be prepared as in training: name it with "
            "--manifest, or check with a .npz of prepared float32 images"
        )
    if steps is None and not prepared:
        raise ExportError(
            "the manifest has no preprocessing, so images cannot be prepared as in training: give the datamodule a "
            "`preprocessing` and export again, or check with a .npz of prepared float32 images"
        )
    if limit is not None and limit < 1:
        raise ExportError(f"limit={limit}: expected at least 1 image")
    if limit is not None and limit < len(samples):
        samples = [samples[k * len(samples) // limit] for k in range(limit)]
    model = (manifest or {}).get("model", {})
    entries = model.get("inputs") or [{"shape": model.get("input_shape", ()), "dtype": model.get("input_dtype")}]
    shape = None if prepared else tuple(entries[0]["shape"]) or None
    kind, last = entries[0]["dtype"] or "float32", entries[0].get("layout") == "NHWC"
    for start in range(0, len(samples), batch_size):
        part = samples[start : start + batch_size]
        images = [image if prepared else preprocess(open_picture(image), steps or {}, kind) for image, _ in part]
        images = [image.transpose(1, 2, 0) for image in images] if last and not prepared else images
        for (source_image, _), image in zip(part, images):
            if image.shape != (shape := shape or image.shape):
                what = source_image if isinstance(source_image, Path) else "an image"
                raise ExportError(
                    f"{what} is {image.shape} when prepared as the manifest says, expected {shape}: it has another "
                    "size or aspect ratio than the training's, and the preprocessing does not cut it"
                )
        yield np.stack(images), np.array([label for _, label in part])


def match_folders(source: Path, classes: Sequence[str] | None) -> dict[str, int]:
    """Which class each folder in ``source`` holds: by name, or, if none has a class's name, in alphabetical order.

    The latter is how torchvision's ImageFolder numbers them, and needs as many folders as classes.

    Args:
        source: a folder with a folder for each class; hidden ones do not count.
        classes: names in the order of the logits; None: not known.

    Raises:
        ExportError: some folders have a class's name and some have not, or there are too few or too many.
    """
    names = sorted(p.name for p in source.iterdir() if p.is_dir() and not p.name.startswith("."))
    known = list(classes or ())
    strange = [name for name in names if name not in known]
    if known and not strange:
        return {name: known.index(name) for name in names}
    if known and not len(names) == len(strange) == len(known):
        raise ExportError(
            f"{source} has {len(names)} folders, the model {len(known)} classes ({', '.join(known[:3])} ...), and no "
            f"class is called {', '.join(strange[:3])}: name the folders as the classes"
        )
    return {name: k for k, name in enumerate(names)}


def _folder(source: Path, classes: Sequence[str] | None) -> list[tuple[Any, int]]:
    return [
        (path, index)
        for name, index in match_folders(source, classes).items()
        for path in sorted((source / name).rglob("*"))
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")  # "._1.jpg" of a Mac
    ]


def _arrays(source: Path) -> tuple[list[tuple[Any, int]], bool]:
    try:
        if not zipfile.is_zipfile(str(source)):
            raise ValueError("another kind of file, or cut off")
        with np.load(str(source)) as content:
            images, labels = content["images"], content["labels"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ExportError(f"{source} is no .npz with the arrays images and labels: {error}") from error
    known = images.ndim == 4 and (images.dtype.kind == "f" or (images.dtype == np.uint8 and images.shape[-1] == 3))
    if not known or labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise ExportError(
            f"{source}: images {images.dtype} {images.shape}, labels {labels.dtype} {labels.shape}; expected float32 "
            "(n, channels, height, width) or uint8 (n, height, width, 3), and integers (n,)"
        )
    return [(image, int(label)) for image, label in zip(images, labels)], images.dtype != np.uint8


def open_picture(image: Any) -> Any:
    """A picture as PIL has it in RGB; an array comes back as it is.

    Raises:
        ExportError: it can't be read.
    """
    if not isinstance(image, Path):
        return image
    pil = _pil()
    try:
        with pil.open(image) as opened:
            return opened.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:  # as Pillow says it, by format
        raise ExportError(f"{image} cannot be read as a picture ({error}): copy it again, or take it away") from error


def _cut(image: Any, height: int, width: int) -> Any:
    """The central rectangle, rounded as torchvision does."""
    left, top = int(round((image.size[0] - width) / 2.0)), int(round((image.size[1] - height) / 2.0))
    return image.crop((left, top, left + width, top + height))


def _pil() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ExportError(
            "images need Pillow (on a Jetson: sudo apt install python3-pil), or check with a .npz of prepared images"
        ) from error
    return Image
