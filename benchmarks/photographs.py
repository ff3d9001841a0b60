"""Photographs as arrays, for the benchmarks: Imagenette's, and a folder of ImageNet's."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hqp_lightning.data import ImagenetteDataModule

_VALIDATION = 3925
_MEAN, _STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


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


def imagenet(root: str, calibration: int, images: int, turned: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first images of ``calibration`` and of ``test``, which are ``..._LABEL.jpg`` of one size, with their labels.

    Normalised as torchvision's weights take them; ``turned``: to [-1, 1], and by 180 degrees, as Google's do whose
    kernels were turned so that torch's padding is TensorFlow's.
    """

    def read(path: Path) -> np.ndarray:
        pixels = np.asarray(Image.open(path).convert("RGB"), np.float32)
        ready = pixels[::-1, ::-1] / 127.5 - 1 if turned else (pixels / 255 - _MEAN) / _STD
        return ready.transpose(2, 0, 1).astype(np.float32)

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
