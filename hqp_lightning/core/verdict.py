"""Baseline, measured score and budget -> a verdict with its reason."""

from __future__ import annotations

import math

from hqp_lightning.errors import ConfigurationError, is_number
from hqp_lightning.records import Budget, Verdict

__all__ = ["check_budget", "drop_interval", "judge", "score_drop"]

_TOLERANCE = 1e-7  # scores are float32 ratios; a drop that equals the budget is within it


def check_budget(budget: Budget) -> Budget:
    """The budget itself, if it can be kept.

    Raises:
        ConfigurationError: ``max_drop`` outside (0, 1), unknown mode, or an empty monitor.
    """
    if not is_number(budget.max_drop) or not 0 < budget.max_drop < 1:
        raise ConfigurationError(
            f"max_drop={budget.max_drop!r} must lie in (0, 1): it is a fraction, 0.015 means 1.5 points of accuracy."
        )
    if budget.mode not in ("max", "min"):
        raise ConfigurationError(f"mode={budget.mode!r} must be 'max' (accuracy) or 'min' (an error or a loss).")
    if not budget.monitor:
        raise ConfigurationError("monitor must name a metric that validation logs, for example 'val_acc'.")
    return budget


def score_drop(baseline: float, measured: float, mode: str = "max") -> float:
    """How much worse ``measured`` is than ``baseline``; negative when it is better.

    Examples:
        >>> round(score_drop(0.93, 0.92), 3), round(score_drop(0.10, 0.12, "min"), 3)
        (0.01, 0.02)
    """
    return baseline - measured if mode == "max" else measured - baseline


def drop_interval(baseline: float, measured: float, samples: int) -> tuple[float, float]:
    """95 % confidence interval of the drop between two accuracies, ``drop ± 1.96 * sqrt((p(1-p) + q(1-q)) / n)``.

    Wald's interval for the difference of two independent proportions. Both models are scored on the same samples and
    mostly err on the same ones, so the true interval is narrower; how much is not known without every single answer.

    Examples:
        >>> low, high = drop_interval(0.93, 0.92, 2000)
        >>> round(low, 4), round(high, 4)
        (-0.0063, 0.0263)
    """
    error = 1.96 * math.sqrt((baseline * (1 - baseline) + measured * (1 - measured)) / samples)
    drop = baseline - measured
    return drop - error, drop + error


def judge(baseline: float, measured: float, budget: Budget) -> Verdict:
    """Keep what lost no more than the budget allows (HQP, arXiv 2602.06069: A_baseline - A <= delta_max).

    Examples:
        >>> judge(0.93, 0.92, Budget(0.015, "val_acc")).reason
        'val_acc 0.9200 is 0.0100 below the baseline 0.9300; 0.0150 is allowed'
    """
    drop = score_drop(baseline, measured, budget.mode)
    if not math.isfinite(drop):
        reason = f"{budget.monitor} is {measured} (baseline {baseline}), not a number that can be judged"
        return Verdict(False, baseline, measured, drop, budget.max_drop, reason)
    kept = drop <= budget.max_drop + _TOLERANCE
    side = "below" if (drop >= 0) == (budget.mode == "max") else "above"
    reason = (
        f"{budget.monitor} {measured:.4f} is {abs(drop):.4f} {side} the baseline {baseline:.4f}; "
        f"{budget.max_drop:.4f} is allowed"
    )
    return Verdict(kept, baseline, measured, drop, budget.max_drop, reason)
