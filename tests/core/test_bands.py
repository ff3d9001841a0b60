import pytest
import torch

from hqp_lightning.core import bands


@pytest.fixture(autouse=True)
def _narrow(monkeypatch):
    monkeypatch.setattr(bands, "BAND", 4)


def matrix_of(n, blocks=2, rows=30):
    x = torch.randn(blocks, rows, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    made = bands.zeros(blocks, n, x)
    bands.add_(made, x[:, :20])
    bands.add_(made, x[:, 20:], 0.5)
    return made, x[:, :20].mT @ x[:, :20] + 0.5 * x[:, 20:].mT @ x[:, 20:]


@pytest.mark.parametrize("n", [1, 4, 6, 13])
def test_a_matrix_in_bands_is_the_lower_triangle_and_is_solved_as_a_whole_one(n):
    made, whole = matrix_of(n)
    assert sum(band[0].numel() for band in made) == bands.numbers(n) <= n * n
    for band in made:
        start, end = band.shape[2] - band.shape[1], band.shape[2]
        torch.testing.assert_close(band, whole[:, start:end, :end])
    torch.testing.assert_close(bands.diagonal(made), whole.diagonal(dim1=1, dim2=2))
    b, raised = torch.randn(2, n, 3, dtype=torch.float64), bands.diagonal(made) + 2.0
    factor = bands.factor(made, raised)
    expected = torch.linalg.solve(whole + 2.0 * torch.eye(n, dtype=torch.float64), b)
    torch.testing.assert_close(bands.solve(factor, b), expected)


def test_one_block_without_a_factor_is_enough():
    made, _ = matrix_of(6)
    less = bands.diagonal(made)
    less[1, 5] = -1.0
    assert bands.factor(made, less) is None
