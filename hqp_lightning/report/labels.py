"""Labels of a drawing that would cover each other."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

__all__ = ["heights_at_one_level"]

_LETTER, _LINE = 4.0, 8.5  # points, of text of seven
_NUMBER = 5  # letters: a step's number before its score, and brackets


def heights_at_one_level(labels: Sequence[tuple[float, str]], axes: Axes) -> list[float]:
    """How far to move each of some labels at one height, points, so that it stands above those that it would cover.

    Args:
        labels: place on the horizontal axis, and text.
        axes: with all marks drawn.
    """
    low, high = axes.dataLim.intervalx
    points = 72 * axes.bbox.width / axes.figure.dpi / max(high - low, 1e-12)
    rows: list[int] = []
    for k, (macs, text) in enumerate(labels):
        near = [
            row
            for row, (other, beside) in zip(rows, labels[:k], strict=True)
            if abs(macs - other) * points < _LETTER * (len(text) + len(beside) + 2 * _NUMBER) / 2
        ]
        rows.append(next(row for row in range(k + 1) if row not in near))
    return [_LINE * row for row in rows]
