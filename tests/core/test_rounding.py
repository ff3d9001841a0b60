"""Which integers weights become: against all ways of rounding one kernel, tried one by one."""

from itertools import product

import numpy as np
import torch

from hqp_lightning.core.rounding import channel_means, mean_drift, rounded
from hqp_lightning.surgery.fake_quantization import _integers


def test_a_depthwise_kernels_errors_cancel_at_the_least_price():
    steps = np.random.default_rng(0).uniform(-127, 127, (40, 1, 2, 3))
    for kernel, found in zip(steps.reshape(40, 6), rounded(steps, 127).reshape(40, 6), strict=True):
        ways = np.array(list(product(*[(np.floor(v), np.ceil(v)) for v in kernel]))) - kernel
        fits = ways[np.abs(ways.sum(1)) <= 0.5]
        assert np.abs((found - kernel).sum()) <= 0.5
        assert ((found - kernel) ** 2).sum() < (fits**2).sum(1).min() + 1e-9  # the way of least squares that does
    assert (np.abs(rounded(steps, 127).sum((2, 3)) - steps.sum((2, 3))) <= 0.5).all()


def test_no_integer_leaves_the_grid():
    steps = np.array(
        [[[126.6, 126.6, 126.6, 0.4]], [[-127.0, -126.6, -126.6, -126.6]], [[127.0 + 1e-9, 0.4, 0.3, 0.0]]]
    )
    assert rounded(steps, 127).tolist() == [[[126, 127, 127, 0]], [[-127, -126, -127, -127]], [[127, 1, 0, 0]]]


def test_dense_weights_go_to_the_nearest():
    steps = np.random.default_rng(0).uniform(-127, 127, (8, 4, 3, 3))
    np.testing.assert_array_equal(rounded(steps, 127), np.round(steps))


def test_the_drift_is_what_a_convolution_of_the_means_gives():
    rng = np.random.default_rng(0)
    error, x = rng.normal(size=(6, 2, 3, 3)), rng.normal(size=(5, 4, 7, 8)).astype(np.float32)
    means = channel_means(x)
    np.testing.assert_allclose(means, x.mean((0, 2, 3)), atol=1e-6)
    image = torch.from_numpy(means).reshape(1, 4, 1, 1).expand(1, 4, 3, 3)
    expected = torch.nn.functional.conv2d(image, torch.from_numpy(error), groups=2).flatten()
    np.testing.assert_allclose(mean_drift(error.sum((2, 3)), means), expected.numpy(), atol=1e-9)


def test_torch_rounds_alike():
    for shape in ((30, 1, 3, 3), (30, 1, 5), (4, 3, 3, 3), (5, 7)):
        steps = np.random.default_rng(1).uniform(-127, 127, shape).astype(np.float32)
        np.testing.assert_array_equal(_integers(torch.from_numpy(steps)).numpy(), rounded(steps, 127))
