import copy

import numpy as np
import pytest
import torch

from hqp_lightning.core.compensation import (
    STRENGTHS,
    Held,
    Moments,
    best,
    error,
    pool_,
    ridge,
    update_,
)


def rows(blocks=1, n=300, inputs=6, outputs=4, seed=0, mean=3.0):
    """Correlated inputs with means, and outputs that they explain in part."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(blocks, n, inputs, generator=g) @ torch.randn(blocks, inputs, inputs, generator=g) + mean
    weight = torch.randn(blocks, inputs, outputs, generator=g)
    return x, x @ weight + torch.randn(blocks, n, outputs, generator=g) - 2 * mean


def moments_of(x, y, pieces=1):
    found = Moments.zeros(len(x), x.shape[2], y.shape[2], like=x)
    for a, b in zip(x.chunk(pieces, 1), y.chunk(pieces, 1), strict=True):
        update_(found, a, b)
    return found


def by_numpy(x, y, strength, centred):
    """The ridge regression as least squares with rows for the penalty; a block at a time."""
    weights, shifts = [], []
    for a, b in zip(x.double().numpy(), y.double().numpy(), strict=True):
        mean_a, mean_b = (a.mean(0), b.mean(0)) if centred else (0 * a.mean(0), 0 * b.mean(0))
        a, b = a - mean_a, b - mean_b
        penalty = np.sqrt(strength * np.mean(np.sum(a * a, 0))) * np.eye(a.shape[1])
        left, right = np.vstack([a, penalty]), np.vstack([b, np.zeros((a.shape[1], b.shape[1]))])
        w = np.linalg.lstsq(left, right, rcond=None)[0]
        weights.append(w.T)
        shifts.append(mean_b - mean_a @ w if centred else 0 * mean_b)
    return np.stack(weights), np.stack(shifts)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("strength", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("blocks", [1, 3])
def test_the_regression_is_that_of_numpy(blocks, strength, centred):
    x, y = rows(blocks)
    found = ridge(moments_of(x, y, 7), strength, centred)
    weight, shift = by_numpy(x, y, strength, centred)
    np.testing.assert_allclose(found.weight, weight, rtol=2e-3, atol=2e-4)
    np.testing.assert_allclose(found.shift, shift, rtol=2e-3, atol=2e-3)


def test_moments_are_exact_far_from_zero():
    x, y = rows(mean=1000.0)
    found = moments_of(x, y, 9)
    a = x.double().numpy()[0]
    (band,) = found.xx
    np.testing.assert_allclose(band[0], (a - a.mean(0)).T @ (a - a.mean(0)), rtol=1e-3, atol=0.05)
    assert found.count == 300


def test_it_is_the_regression_of_the_whole_output_pulled_towards_the_old_weights():
    """W' = (W G[:,P] + λ d W_P)(G[P,P] + λ d I)⁻¹, as the documentation says it."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(400, 8, generator=g, dtype=torch.float64) @ torch.randn(8, 8, generator=g, dtype=torch.float64)
    weight, kept, lost = torch.randn(5, 8, generator=g, dtype=torch.float64), [0, 2, 3, 6, 7], [1, 4, 5]
    centred = x - x.mean(0)
    gram, strength = centred.T @ centred / len(x), 0.1
    inner = gram[kept][:, kept]
    ridged = strength * inner.diagonal().mean()
    whole = (weight @ gram[:, kept] + ridged * weight[:, kept]) @ torch.linalg.inv(inner + ridged * torch.eye(5))
    found = ridge(moments_of(x[None, :, kept], (x[:, lost] @ weight[:, lost].T)[None]), strength)
    torch.testing.assert_close(weight[:, kept] + found.weight[0], whole)


def test_a_duplicated_input_costs_nothing():
    x, _ = rows(inputs=3)
    y = 2 * x[:, :, 1:2] + 7
    found = ridge(moments_of(x, y), 1e-6)
    assert error(found, Held(x, y, torch.ones(300))) < 1e-6 * float((y - y.mean()).square().sum())
    np.testing.assert_allclose(found.weight[0, 0], [0, 2, 0], atol=1e-3)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("strength", STRENGTHS)
def test_on_its_own_rows_it_is_never_worse_than_the_plain_cut(strength, centred):
    x, y = rows(2)
    y = torch.randn(y.shape, generator=torch.Generator().manual_seed(3))  # nothing to explain
    found = ridge(moments_of(x, y), strength, centred)
    assert error(found, Held(x, y, torch.ones(300))) <= float(y.square().sum())


def test_pieces_of_processes_give_what_one_process_gives():
    x, y = rows(2)
    one = moments_of(x, y)
    parts = [moments_of(x[:, :100], y[:, :100]), moments_of(x[:, 100:], y[:, 100:]), moments_of(x[:, :0], y[:, :0])]
    # Every process asks for the same sums in the same order.
    asked = [[] for _ in parts]
    sums = []
    for turn in range(5):
        for part, said in zip(parts, asked, strict=True):
            said.clear()

            def add(t, said=said):
                said.append(t.clone())
                return sums[len(said) - 1] if len(said) <= len(sums) else t

            pool_(copy.deepcopy(part), add)
        sums.append(sum(said[turn] for said in asked))
    for part in parts:
        taken = iter(sums)
        pool_(part, lambda _, taken=taken: next(taken).clone())
        assert part.count == one.count
        for name in ("x", "y", "xx", "yx"):
            torch.testing.assert_close(getattr(part, name), getattr(one, name), rtol=1e-4, atol=1e-3)


def test_inputs_that_never_vary_get_nothing():
    x, y = rows()
    x[:, :, 2] = 5.0
    found = ridge(moments_of(x, y), 0.01)
    assert bool((found.weight[:, :, 2] == 0).all())
    others = [0, 1, 3, 4, 5]
    weight, shift = by_numpy(x[:, :, others], y, 0.01, centred=True)
    np.testing.assert_allclose(found.weight[:, :, others], weight, rtol=2e-3, atol=2e-4)
    np.testing.assert_allclose(found.shift, shift, rtol=2e-3, atol=2e-3)


def test_the_strength_is_that_which_does_best_on_the_rows_held_back():
    x, y = rows(n=40, inputs=20)
    y += 20 * torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    moments, held = moments_of(x[:, :25], y[:, :25]), Held(x[:, 25:], y[:, 25:], torch.ones(15))
    errors = {s: error(ridge(moments, s), held) for s in STRENGTHS}
    found = best(moments, held)
    assert found.strength == min(errors, key=errors.get)
    assert max(errors.values()) > 1.1 * min(errors.values())  # it matters here


def test_where_nothing_helps_the_plain_cut_keeps_its_weights_and_its_mean():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(1, 30, 28, generator=g), torch.randn(1, 30, 4, generator=g) + 9
    hx, hy = torch.randn(1, 900, 28, generator=g), torch.randn(1, 900, 4, generator=g) + 9
    found = best(moments_of(x, y), Held(hx, hy, torch.ones(900)), strengths=(1e-3, 1e-2))
    assert found.strength == float("inf")
    assert not found.weight.any()
    torch.testing.assert_close(found.shift, y.mean(1))


def test_without_rows_held_back_a_strength_is_taken_all_the_same():
    x, y = rows()
    found = best(moments_of(x, y), Held(x[:, :0], y[:, :0], torch.zeros(0)))
    assert found.strength == 0.1


def test_values_that_are_no_numbers_change_nothing():
    x, y = rows()
    x[0, 0, 0] = float("nan")
    found = best(moments_of(x, y), Held(x, y, torch.ones(300)))
    assert found.strength == float("inf")
