"""A run that is killed again and again, while it trains, prunes, writes or exports, ends as if nobody had."""

import random

import pytest
from killing import SIGNALS, killed, length, result, same, start


@pytest.mark.slow
def test_a_run_that_is_killed_six_times_loses_nothing_but_time(tmp_path):
    chance, straight, folder = random.Random(0), tmp_path / "straight", tmp_path / "killed"
    straight.mkdir()
    folder.mkdir()
    start(straight).join(120)
    delays = [chance.uniform(0.2, 0.8) * length(straight) for _ in range(6)]
    hit = [killed(folder, delay, SIGNALS[k % 2]) for k, delay in enumerate(delays)]
    assert any(hit)
    start(folder).join(120)
    assert same(result(folder), result(straight))
