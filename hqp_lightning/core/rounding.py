"""Which integers weights become, so that their errors do not add up behind inputs that are alike.

Neighbouring pixels are nearly equal, and behind a ReLU all are positive: what a layer makes of them is moved by the
*sum* of its rounding errors, which eight bits leave at random. Of a depthwise kernel the sum can be kept within half a
step by rounding a few weights, those nearest to the middle between two integers, to the other side (SQuant, Guo et al.,
arXiv 2202.07471, within kernels); what is left of the mean goes into the bias.
"""

from __future__ import annotations

import numpy as np

__all__ = ["channel_means", "mean_drift", "rounded"]


def rounded(steps: np.ndarray, largest: int) -> np.ndarray:
    """The integers of weights that are given in steps.

    Args:
        steps: ``(outputs, inputs, *kernel)``.
        largest: integers lie in ``[-largest, largest]``.

    >>> rounded(np.array([[[0.4, 1.4, 2.45]]]), 127).tolist()  # the sum is 4.25
    [[[0.0, 1.0, 3.0]]]
    """
    near = np.clip(np.round(steps), -largest, largest)
    if steps.ndim < 3 or steps.shape[1] > 1:  # inputs of several channels, which are not alike
        return near
    flat = near.reshape(len(near), -1)
    error = flat - steps.reshape(flat.shape)
    total = error.sum(1, keepdims=True)
    side = np.sign(total)
    fits = (np.sign(error) == side) & (np.abs(flat - side) <= largest)
    rank = np.argsort(np.argsort(np.where(fits, -np.abs(error), 1.0), axis=1, kind="stable"), axis=1, kind="stable")
    moved = fits & (rank < np.round(np.abs(total)))
    even: np.ndarray = (flat - moved * side).reshape(near.shape)
    return even


def mean_drift(errors: np.ndarray, means: np.ndarray) -> np.ndarray:
    """What rounding adds to each output on average.

    Args:
        errors: of the weights, summed over kernels, ``(outputs, inputs of a group)``.
        means: of the input channels, of all groups, ``(groups * inputs,)``.

    Returns:
        ``(outputs,)``.
    """
    inputs = errors.shape[1]
    of_groups = errors.reshape(len(means) // inputs, -1, inputs)
    drift: np.ndarray = np.einsum("goi,gi->go", of_groups, means.reshape(-1, inputs))
    return drift.reshape(-1)


def channel_means(values: np.ndarray) -> np.ndarray:
    """The mean of each channel of ``(batch, channels, ...)``, float64."""
    sums = np.einsum("nci->nc", values.reshape(*values.shape[:2], -1))
    found: np.ndarray = sums.mean(0, dtype=np.float64) / (values[0, 0].size if values.ndim > 2 else 1)
    return found
