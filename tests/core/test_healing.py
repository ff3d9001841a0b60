"""When a step that is over budget is worth further epochs."""

import math

import pytest

from hqp_lightning.core.healing import may_heal


@pytest.mark.parametrize(
    ("drops", "window", "left", "expected"),
    [
        ([0.10], 2, 1, True),  # no whole window yet
        ([0.10, 0.09, 0.09], 2, 1, True),  # in the middle of the second one
        ([0.06, 0.05, 0.04, 0.04], 2, 2, False),  # 0.01 a window, one is left: 0.03
        ([0.06, 0.05, 0.04, 0.04], 2, 4, True),  # two are left: 0.02
        ([0.06, 0.05, 0.09, 0.08], 2, 2, False),  # nothing was won, and it moves by 0.01: 0.04
        ([0.03, 0.025, 0.06, 0.035], 2, 2, True),  # nothing was won, but it moves by 0.025
        ([0.05, 0.03, 0.025, 0.024], 2, 1, False),  # 0.006 a window, half a one is left: 0.021
        ([0.05, 0.03, 0.025, 0.023], 2, 1, True),  # 0.0195
        ([math.nan, math.inf, math.nan, 0.03], 2, 2, True),  # the first window says nothing
        ([0.04, 0.03, math.nan, math.nan], 2, 1, False),
        ([0.03, 0.03, 0.025, 0.025, 0.025, 0.025], 2, 2, False),  # it has come to rest
    ],
)
def test_the_pace_of_the_last_window_kept_up(drops, window, left, expected):
    assert may_heal(drops, 0.02, window, left) is expected
