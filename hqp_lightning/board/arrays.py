"""One array, or several in the order of a model's inputs or outputs."""

from __future__ import annotations

from typing import Any, Callable, Iterable, Sequence, Tuple, Union

import numpy as np

__all__ = ["Arrays", "bundle", "changed", "cut", "each", "first", "joined", "sampled"]

Arrays = Union[np.ndarray, Tuple[np.ndarray, ...]]
"""An array itself where there is one, else a tuple of them."""

_POSITIONS = 1024


def each(arrays: Arrays) -> tuple[np.ndarray, ...]:
    """Them as a tuple."""
    return arrays if isinstance(arrays, tuple) else (arrays,)


def bundle(arrays: Sequence[np.ndarray]) -> Arrays:
    """The one of a sequence, or a tuple of them."""
    return arrays[0] if len(arrays) == 1 else tuple(arrays)


def cut(arrays: Arrays, start: int, stop: int | None = None) -> Arrays:
    """Some of the samples."""
    return changed(arrays, lambda x: x[start:stop])


def changed(arrays: Arrays, change: Callable[[np.ndarray], Any]) -> Arrays:
    """What a function makes of each."""
    return bundle([change(x) for x in each(arrays)])


def first(batches: Iterable[Arrays], count: int) -> Arrays:
    """So many samples, or all that there are, however large the batches are."""
    parts: list[Arrays] = []
    missing = count
    for batch in batches:
        parts.append(cut(batch, 0, missing))
        missing -= len(each(parts[-1])[0])
        if missing <= 0:
            break
    return joined(parts)


def joined(parts: Sequence[Arrays]) -> Arrays:
    """The samples of several batches."""
    return bundle([np.concatenate(same) for same in zip(*map(each, parts))])


def sampled(values: np.ndarray) -> np.ndarray:
    """An output as ``(n, channels)``, or ``(n, channels, positions)`` of at most 1024 positions, evenly spread.

    The logits of a segmentation are many, and neighbours much alike.
    """
    if values.ndim < 3:
        return values.reshape(len(values), -1)
    flat = values.reshape(*values.shape[:2], -1)
    return flat[:, :, :: -(-flat.shape[2] // _POSITIONS)]
