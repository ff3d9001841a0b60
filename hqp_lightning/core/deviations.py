"""Linear fits to measurements of which some are wrong."""

from __future__ import annotations

import numpy as np
from scipy.optimize import nnls

__all__ = ["least_deviations"]

_ROUNDS, _SETTLED = 40, 1e-3


def least_deviations(rows: np.ndarray, values: np.ndarray, floor: float) -> tuple[tuple[float, ...], np.ndarray]:
    """Coefficients, none negative, with the least sum of absolute errors; those below ``floor`` count by their squares.

    Least squares would follow the one value that was measured wrong. Iteratively reweighted least squares
    (E. J. Schlossmacher, J. Am. Stat. Assoc. 68, 1973).

    Args:
        rows: ``[n, k]``.
        values: ``[n]``.
        floor: what errors of good measurements are, in their unit.

    Returns:
        The ``k`` coefficients and the absolute errors ``[n]``.

    Examples:
        >>> rows = np.array([[1.0, x] for x in (0.0, 1.0, 2.0, 3.0, 4.0)])
        >>> (a, b), _ = least_deviations(rows, np.array([1.0, 3.0, 5.0, 70.0, 9.0]), 0.01)
        >>> round(a, 2), round(b, 2)
        (1.0, 2.0)
    """
    weight = np.ones(len(values))
    scale = np.maximum(np.abs(rows).max(0), 1e-30)  # columns may differ by the square of a width
    for _ in range(_ROUNDS):
        found = nnls(rows * weight[:, None] / scale, values * weight)[0] / scale
        errors = np.abs(rows @ found - values)
        before, weight = weight, np.sqrt(floor / np.maximum(errors, floor))
        if np.allclose(weight, before, rtol=_SETTLED):
            break
    return tuple(map(float, found)), errors
