"""Imagenette's photographs as arrays, for the benchmarks."""

from __future__ import annotations

import numpy as np

from hqp_lightning.data import ImagenetteDataModule

_VALIDATION = 3925


def photographs(root: str, px: int, calibration: int, images: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``calibration`` training images, and about ``images`` validation images of all classes with their labels."""
    data = ImagenetteDataModule(
        root, image_size=px, batch_size=32, decision_fraction=min(images / _VALIDATION, 0.999), cache=False
    )
    data.setup("fit")

    def first(loader, count):
        xs, ys = [], []
        for x, y in loader:
            xs.append(x.numpy())
            ys.append(y.numpy())
            if sum(map(len, ys)) >= count:
                break
        return np.concatenate(xs)[:count], np.concatenate(ys)[:count]

    return first(data.train_dataloader(), calibration)[0], *first(data.val_dataloader(), _VALIDATION)
