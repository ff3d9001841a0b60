"""Least squares without negative coefficients."""

from __future__ import annotations

import numpy as np

__all__ = ["nonnegative"]


def nonnegative(rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The coefficients, none below zero, that bring ``rows`` nearest to ``values`` (Lawson and Hanson's active sets).

    >>> nonnegative(np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]]), np.array([3.0, 2.0, 1.0])).round(6).tolist()
    [2.0, 0.0]
    """
    scale = np.maximum(np.abs(rows).max(0), 1e-30)
    rows = rows / scale
    found, used = np.zeros(rows.shape[1]), np.zeros(rows.shape[1], bool)
    for _ in range(3 * rows.shape[1]):
        slope = rows.T @ (values - rows @ found)
        open_ = np.where(used, -np.inf, slope)
        if used.all() or open_.max() <= 1e-12:
            break
        used[int(open_.argmax())] = True
        while used.any():
            new = np.zeros(len(found))
            new[used] = np.linalg.lstsq(rows[:, used], values, rcond=None)[0]
            if (new[used] > 0).all():
                break
            low = used & (new <= 0)
            share = float(np.min(found[low] / np.maximum(found[low] - new[low], 1e-30)))
            found = found + share * (new - found)
            used &= found > 1e-15
            found[~used] = 0.0
        found = new if used.any() else found
    return found / scale
