"""Symmetric positive matrices of which only the lower triangle exists: half the work to add up, half the memory.

A matrix is a list of bands of `BAND` rows, the one from row *a* to row *b* of shape ``(blocks, b - a, b)``: several
matrices of one size, one for each block. Its Cholesky factor has the same form.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["add_", "diagonal", "factor", "numbers", "solve", "zeros"]

BAND = 512


def zeros(blocks: int, n: int, like: Tensor) -> list[Tensor]:
    """``blocks`` matrices of ``n`` rows, of the type and on the device of ``like``."""
    return [like.new_zeros(blocks, end - start, end) for start, end in _edges(n)]


def numbers(n: int) -> int:
    """How many numbers a matrix of ``n`` rows is kept in."""
    return sum((end - start) * end for start, end in _edges(n))


def add_(matrix: Sequence[Tensor], x: Tensor, scale: float = 1.0) -> None:
    """Add ``scale`` *xᵀx*, in place.

    Args:
        matrix: of ``n`` rows.
        x: ``(blocks, rows, n)``.
        scale: a factor.
    """
    for band, left in zip(matrix, x.split(BAND, 2), strict=True):
        band.baddbmm_(left.mT, x[:, :, : band.shape[2]], alpha=scale)


def diagonal(matrix: Sequence[Tensor]) -> Tensor:
    """The diagonals, ``(blocks, n)``; a copy."""
    return torch.cat([_corner(band).diagonal(dim1=1, dim2=2) for band in matrix], 1)


def factor(matrix: Sequence[Tensor], instead: Tensor) -> list[Tensor] | None:
    """The Cholesky factor *L* of *L Lᵀ*, with ``instead`` for the diagonal; None if one of the blocks has none.

    Args:
        matrix: it is left as it is.
        instead: ``(blocks, n)``.
    """
    made: list[Tensor] = []
    for band, middle in zip(matrix, instead.split(BAND, 1), strict=True):
        row = band.clone()
        corner = _corner(row)
        corner.diagonal(dim1=1, dim2=2).copy_(middle)
        for other in made:
            start, end = other.shape[2] - other.shape[1], other.shape[2]
            part = row[:, :, start:end]
            part.baddbmm_(row[:, :, :start], other[:, :, :start].mT, alpha=-1)
            part.copy_(torch.linalg.solve_triangular(_corner(other).mT, part, upper=True, left=False))
        before = row[:, :, : row.shape[2] - row.shape[1]]
        corner.baddbmm_(before, before.mT, alpha=-1)
        root, failed = torch.linalg.cholesky_ex(corner)
        if bool(failed.any()):
            return None
        corner.copy_(root)
        made.append(row)
    return made


def solve(made: Sequence[Tensor], b: Tensor) -> Tensor:
    """*x* of *L Lᵀ x = b*.

    Args:
        made: *L*, by `factor`.
        b: ``(blocks, n, columns)``.

    Examples:
        >>> matrix = zeros(1, 2, torch.empty(0))
        >>> add_(matrix, torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]))  # 10 14; 14 20
        >>> solve(factor(matrix, diagonal(matrix)), torch.tensor([[[24.0], [34.0]]])).flatten().round().tolist()
        [1.0, 1.0]
    """
    x = b.clone()
    for band in made:
        start, end = band.shape[2] - band.shape[1], band.shape[2]
        x[:, start:end].baddbmm_(band[:, :, :start], x[:, :start], alpha=-1)
        x[:, start:end] = torch.linalg.solve_triangular(_corner(band), x[:, start:end], upper=False)
    for band in reversed(made):
        start, end = band.shape[2] - band.shape[1], band.shape[2]
        x[:, start:end] = torch.linalg.solve_triangular(_corner(band).mT, x[:, start:end], upper=True)
        x[:, :start].baddbmm_(band[:, :, :start].mT, x[:, start:end], alpha=-1)
    return x


def _edges(n: int) -> list[tuple[int, int]]:
    return [(start, min(start + BAND, n)) for start in range(0, n, BAND)]


def _corner(band: Tensor) -> Tensor:
    """The square on the diagonal that a band ends with."""
    return band[:, :, band.shape[2] - band.shape[1] :]
