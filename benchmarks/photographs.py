"""Photographs as arrays, for the benchmarks: Imagenette's, and a folder of ImageNet's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hqp_lightning.data import ImagenetteDataModule

_VALIDATION = 3925


@dataclass(frozen=True)
class Prepared:
    """How a network takes photographs: its size, mean and deviation of bytes, and whether upside down."""

    px: int
    mean: Sequence[float]
    std: Sequence[float]
    turned: bool = False


TORCHVISION = Prepared(224, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
TURNED = Prepared(224, (127.5,) * 3, (127.5,) * 3, turned=True)
"""As Google's weights take them whose kernels were turned by 180 degrees so that torch's padding is TensorFlow's."""


def photographs(root: str, px: int, calibration: int, images: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``calibration`` training images, and about ``images`` validation images of all classes with their labels."""
    every = images >= _VALIDATION
    part = 0.5 if every else images / _VALIDATION
    data = ImagenetteDataModule(root, image_size=px, batch_size=32, decision_fraction=part, cache=False)
    data.setup("fit")
    data.setup("test")

    def first(loader, count):
        xs, ys = [], []
        for x, y in loader:
            xs.append(x.numpy())
            ys.append(y.numpy())
            if sum(map(len, ys)) >= count:
                break
        return np.concatenate(xs)[:count], np.concatenate(ys)[:count]

    judging = [data.val_dataloader(), *([data.test_dataloader()] if every else [])]
    return first(data.train_dataloader(), calibration)[0], *first(chain(*judging), _VALIDATION)


def imagenet(root: str, calibration: int, images: int, prepared: Prepared) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first images of ``calibration`` and of ``test``, square ``..._LABEL.jpg`` of one size, with their labels."""

    def read(path: Path) -> np.ndarray:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB").resize((prepared.px,) * 2, Image.Resampling.BICUBIC), np.float32)
        ready = (pixels - np.float32(prepared.mean)) / np.float32(prepared.std)
        return np.ascontiguousarray((ready[::-1, ::-1] if prepared.turned else ready).transpose(2, 0, 1))

    files = {part: sorted((Path(root) / part).glob("*.jpg")) for part in ("calibration", "test")}
    first, judging = files["calibration"][:calibration], files["test"][:images]
    labels = [int(f.stem.rpartition("_")[2]) for f in judging]
    return np.stack([read(f) for f in first]), np.stack([read(f) for f in judging]), np.array(labels)


def batches_of(root: str, px: int, counts: tuple[int, int, int]) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Batches of training images, of validation images to score by, and of other validation images to judge by."""
    torch.manual_seed(0)
    part = counts[1] / _VALIDATION
    data = ImagenetteDataModule(root, image_size=px, batch_size=64, decision_fraction=part, cache=False, min_crop=0.7)
    data.setup("fit")
    data.setup("test")
    loaders = data.train_dataloader(), data.val_dataloader(), data.test_dataloader()
    found = []
    for loader, count in zip(loaders, counts, strict=True):
        found.append([batch for batch, _ in zip(loader, range(-(-count // 64)), strict=False)])
    return found
