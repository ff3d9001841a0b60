"""How many layers have to stay in float: a search over a measured predicate."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["fewest"]


def fewest(limit: int, enough: Callable[[int], bool]) -> int | None:
    """The smallest ``k`` in 1 ... ``limit`` with ``enough(k)``, by doubling and bisection: about 2·log2(k) calls.

    ``enough`` is taken as monotone. A measured score is so only up to noise; then the result still is a ``k`` that
    was measured as enough while a measured smaller one was not.

    Args:
        limit: largest ``k`` that is tried; below 1 nothing is.
        enough: a costly test.

    Returns:
        ``k``, or None if ``limit`` itself is not enough.

    Examples:
        >>> fewest(12, lambda k: k >= 5), fewest(12, lambda k: k > 20), fewest(1, bool)
        (5, None, 1)
    """
    low, high = 0, 1  # low is not enough
    while high <= limit and not enough(high):
        low, high = high, max(high + 1, min(2 * high, limit))
    if high > limit:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
