"""How the score comes back after a cut, and whether more epochs could bring it within the budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import median

__all__ = ["may_heal"]


def may_heal(drops: Sequence[float], max_drop: float, window: int, left: float) -> bool:
    """Whether the drop could still fall to ``max_drop`` in the epochs that are left.

    Healing slows down: what the last window of epochs won, the following ones hardly win again. A step that stays over
    the budget even if every window to come won as much is not worth its epochs. Windows are compared by the best drop
    so far, because a rate that restarts in each of them moves the score up and down within; and a window is given at
    least what the score typically moves from one epoch to the next, so that one that had no luck is not taken for rest.
    Before there are two whole windows nothing is known, and between their ends nothing new. Epochs are those that
    are validated.

    Args:
        drops: the drop after each epoch since the cut, of the scores that a budget limits.
        max_drop: the budget.
        window: epochs in a window, at least one.
        left: epochs that may follow, above zero.

    Examples:
        >>> may_heal([0.05, 0.04, 0.035, 0.03], 0.015, window=2, left=4)  # 0.01 a window: 0.01 after two more
        True
        >>> may_heal([0.05, 0.04, 0.038, 0.035], 0.015, window=2, left=4)  # 0.005 a window: 0.025
        False
    """
    whole, rest = divmod(len(drops), window)
    if whole < 2 or rest:
        return True
    finite = [d if math.isfinite(d) else math.inf for d in drops]
    before, now = min(finite[:-window]), min(finite)
    if before == math.inf:
        return True
    moves = [abs(b - a) for a, b in pairwise(drops) if math.isfinite(b - a)]
    pace = max(before - now, median(moves) if moves else 0.0)
    return now - pace * left / window <= max_drop
