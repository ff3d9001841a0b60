"""A part of the validation data that stands for all of it: folders of images come one class after another."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from itertools import islice
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

__all__ = ["evenly", "spread"]

_BATCH = 16  # samples, where a loader does not say


def evenly(count: float, wanted: int) -> Collection[int]:
    """Positions of ``wanted`` batches that lie evenly among ``count``; the first ones where there is no end.

    Examples:
        >>> sorted(evenly(31, 4)), sorted(evenly(3, 4)), sorted(evenly(float("inf"), 2))
        ([0, 7, 15, 23], [0, 1, 2], [0, 1])
    """
    if math.isinf(count):
        return range(wanted)
    return range(int(count)) if count <= wanted else frozenset(i * int(count) // wanted for i in range(wanted))


def spread(loader: Any, samples: int, batches: int | None = None) -> Any:
    """A loader of samples that lie evenly in the data of ``loader``: the first ones are often of one class.

    Of loaders that are not plain, or shuffle, it is the first batches.

    Args:
        loader: a DataLoader, or anything that gives batches.
        samples: about how many.
        batches: at most so many batches of them.

    Examples:
        >>> [b.tolist() for b in spread(DataLoader(range(100), 2), 4)]
        [[0, 25], [50, 75]]
    """
    size = getattr(loader, "batch_size", None) or _BATCH
    samples = samples if batches is None else min(samples, batches * size)
    plain = type(loader) is DataLoader and type(loader.batch_sampler) is BatchSampler
    if not plain or not isinstance(loader.sampler, SequentialSampler):
        return _First(loader, math.ceil(samples / size))
    count = len(loader.sampler)
    return DataLoader(
        loader.dataset,
        loader.batch_size,
        sampler=[i * count // samples for i in range(samples)] if count > samples else range(count),
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
    )


class _First:
    """The first batches of a loader."""

    def __init__(self, loader: Any, batches: int) -> None:
        self.loader, self.batches = loader, batches

    def __iter__(self) -> Iterator[Any]:
        return islice(self.loader, self.batches)
