"""Float32 arithmetic against float64, under every precision that torch lets a user choose."""

import pytest
import torch
from torch.nn import functional as F

from hqp_lightning.core.precision import exact_arithmetic


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_products_are_of_float32_whatever_the_user_chose(precision):
    x = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    images, kernels = x.view(4, 16, 32, 32), x[:16, :144].reshape(16, 16, 3, 3)
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision(precision)
        with exact_arithmetic():
            torch.testing.assert_close((x @ x).double(), x.double() @ x.double(), rtol=1e-4, atol=1e-4)
            convolved = F.conv2d(images, kernels).double(), F.conv2d(images.double(), kernels.double())
            torch.testing.assert_close(*convolved, rtol=1e-4, atol=1e-4)
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == (precision, before[1])
    finally:
        torch.set_float32_matmul_precision(before[0])
