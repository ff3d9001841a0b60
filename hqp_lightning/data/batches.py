"""Image sets that hand out whole batches, so that a loader without workers is not the bottleneck."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from hqp_lightning.errors import ConfigurationError

__all__ = [
    "Batch",
    "BatchTransform",
    "ImageBatches",
    "ImageSource",
    "image_loader",
    "stratified_halves",
    "stratified_parts",
]

Batch = tuple[Tensor, Tensor]
BatchTransform = Callable[[Tensor, "torch.Generator | None"], Tensor]


class ImageSource(Protocol):
    """Anything that is indexed by a list of positions and answers ``[B, C, H, W]``, as a tensor does."""

    def __getitem__(self, indices: list[int], /) -> Tensor: ...


class ImageBatches(Dataset[Batch]):
    """Images and labels, transformed a batch at a time.

    ``DataLoader`` asks a dataset that has ``__getitems__`` once for a batch instead of once for every image: one
    indexing and one normalisation of ``[B, C, H, W]`` is some ten times cheaper than B small ones and a collate.

    Args:
        images: ``[N, C, H, W]``, a tensor or a lazy source of the same indexing.
        labels: ``[N]`` class indices.
        transform: ``(images, generator) -> images`` on a batch; it draws its random numbers from the generator
            (None in a worker process, where torch's own generator is seeded apart for every worker).
        seed: of the generator that is handed to ``transform``.
    """

    def __init__(self, images: ImageSource, labels: Tensor, transform: BatchTransform, seed: int = 0) -> None:
        self.images, self.labels, self.transform = images, labels, transform
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Batch:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: list[int]) -> Batch:
        """Return the transformed images ``[B, C, H, W]`` and the labels ``[B]`` at ``indices``."""
        generator = self._generator if get_worker_info() is None else None
        return self.transform(self.images[indices], generator), self.labels[indices]


def _as_is(batch: Any) -> Any:
    return batch


def image_loader(
    dataset: ImageBatches, *, batch_size: int, train: bool = False, seed: int = 0, num_workers: int = 0
) -> DataLoader[Batch]:
    """A loader over batches; for training in a seeded random order, and without the incomplete last batch.

    A last batch of one image would stop BatchNorm, so it is left out unless it is the only one.
    """
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=train,
        drop_last=train and len(dataset) > batch_size,
        generator=torch.Generator().manual_seed(seed),
        collate_fn=_as_is,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
    )


def stratified_halves(labels: Sequence[int], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Divide positions in two with the same class frequencies in both (each class within one image).

    Args:
        labels: class of every position.
        fraction: of the positions that go into the first part, in (0, 1).
        seed: same seed, same parts.

    Returns:
        Two sorted lists of positions, disjoint, together all of them.

    Raises:
        ConfigurationError: a fraction outside (0, 1), or too few images of a class to stand in both parts.

    Examples:
        >>> stratified_halves([0, 0, 0, 0, 1, 1, 1, 1], 0.5, seed=0)
        ([2, 3, 4, 6], [0, 1, 5, 7])
    """
    if not 0.0 < fraction < 1.0:
        raise ConfigurationError(f"a fraction of the images must lie in (0, 1), got {fraction}")
    try:
        parts = train_test_split(np.arange(len(labels)), train_size=fraction, random_state=seed, stratify=labels)
    except ValueError as error:
        raise ConfigurationError(f"cannot divide {len(labels)} images into {fraction} and the rest: {error}") from error
    first, second = (sorted(int(i) for i in part) for part in parts)
    return first, second


def stratified_parts(labels: Sequence[int], seed: int) -> dict[str, list[int]]:
    """The positions of 60 % to train on, 20 % to take decisions on and 20 % held out, each with every class alike.

    Args:
        labels: the class of each sample.
        seed: of the division.

    Returns:
        Positions by ``"train"``, ``"val"`` and ``"test"``.

    Examples:
        >>> {name: len(part) for name, part in stratified_parts([0, 1] * 10, seed=0).items()}
        {'train': 12, 'val': 4, 'test': 4}
    """
    train, rest = stratified_halves(labels, 0.6, seed)
    val, test = stratified_halves([labels[i] for i in rest], 0.5, seed)
    return {"train": train, "val": [rest[i] for i in val], "test": [rest[i] for i in test]}
