import math

import numpy as np
import pytest

from hqp_lightning.core.verdict import check_budget, drop_interval, judge, score_drop
from hqp_lightning.errors import ConfigurationError
from hqp_lightning.records import Budget


@pytest.mark.parametrize(
    ("measured", "kept"),
    [(0.915, True), (float(np.float32(0.915)), True), (0.9149, False), (0.93, True), (0.99, True), (0.0, False)],
)
def test_a_drop_that_equals_the_budget_is_within_it(measured, kept):
    verdict = judge(0.93, measured, Budget(0.015, "val_acc"))
    assert verdict.kept is kept
    assert verdict.drop == pytest.approx(0.93 - measured)
    assert (verdict.baseline, verdict.measured, verdict.max_drop) == (0.93, measured, 0.015)


def test_one_sample_of_a_large_set_over_the_budget_is_over():
    samples = 50_000
    assert judge(1.0, (samples - 750) / samples, Budget(0.015, "val_acc")).kept
    assert not judge(1.0, (samples - 751) / samples, Budget(0.015, "val_acc")).kept


@pytest.mark.parametrize(("measured", "kept"), [(0.12, True), (0.1201, False), (0.05, True)])
def test_mode_min_counts_the_other_way(measured, kept):
    verdict = judge(0.10, measured, Budget(0.02, "val_error", "min"))
    assert verdict.kept is kept
    assert verdict.drop == pytest.approx(measured - 0.10)
    assert score_drop(0.10, measured, "min") == verdict.drop


@pytest.mark.parametrize(
    ("baseline", "measured"),
    [(0.9, math.nan), (0.9, -math.inf), (0.9, math.inf), (math.nan, 0.9), (math.inf, math.inf)],
)
def test_what_is_not_a_number_is_never_kept(baseline, measured):
    verdict = judge(baseline, measured, Budget(0.5, "val_acc"))
    assert verdict.kept is False
    assert f"val_acc is {measured}" in verdict.reason


@pytest.mark.parametrize(
    ("baseline", "measured", "mode", "said"),
    [
        (0.9, 0.85, "max", "val 0.8500 is 0.0500 below the baseline 0.9000; 0.0150 is allowed"),
        (0.9, 0.95, "max", "0.0500 above"),
        (0.2, 0.25, "min", "0.0500 above"),
        (0.2, 0.15, "min", "0.0500 below"),
    ],
)
def test_the_reason_is_in_words(baseline, measured, mode, said):
    assert said in judge(baseline, measured, Budget(0.015, "val", mode)).reason


@pytest.mark.parametrize("max_drop", [0, 1, -0.1, 1.5, math.nan, True, "0.01", None])
def test_max_drop_outside_of_0_and_1_is_refused(max_drop):
    with pytest.raises(ConfigurationError, match=r"max_drop=.*\(0, 1\)"):
        check_budget(Budget(max_drop, "val_acc"))


def test_other_bad_budgets():
    with pytest.raises(ConfigurationError, match="mode='best'"):
        check_budget(Budget(0.1, "val_acc", "best"))
    with pytest.raises(ConfigurationError, match="monitor"):
        check_budget(Budget(0.1, ""))
    good = Budget(0.015, "val_acc", "min")
    assert check_budget(good) is good


def test_the_interval_covers_the_true_drop_as_often_as_it_says():
    rng = np.random.default_rng(0)
    n, p, q, hits = 500, 0.9, 0.88, 0
    for _ in range(2000):
        low, high = drop_interval(rng.binomial(n, p) / n, rng.binomial(n, q) / n, n)
        hits += low <= p - q <= high
    assert 0.935 < hits / 2000 < 0.965
