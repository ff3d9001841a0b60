"""Imagenette's photographs as arrays, for the benchmarks."""

from __future__ import annotations

from itertools import chain

import numpy as np
import torch

from hqp_lightning.data import ImagenetteDataModule

_VALIDATION = 3925


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
