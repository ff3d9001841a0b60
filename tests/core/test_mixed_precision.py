import pytest

from hqp_lightning.core.mixed_precision import by_worth, fewest


@pytest.mark.parametrize("limit", range(10))
@pytest.mark.parametrize("needed", range(1, 13))
def test_finds_the_threshold_and_asks_nothing_twice(limit, needed):
    asked = []

    def enough(k):
        asked.append(k)
        return k >= needed

    assert fewest(limit, enough) == (needed if needed <= limit else None)
    assert len(set(asked)) == len(asked)
    assert all(1 <= k <= limit for k in asked)
    assert len(asked) <= 8


def test_a_noisy_predicate_still_ends_at_something_that_was_enough():
    answers = {1: False, 2: True, 3: False, 4: True, 8: True}
    assert answers[fewest(8, answers.__getitem__)]


def test_worth_is_noise_for_cost_and_what_a_pair_costs_is_paid_once():
    noise = {"a": 6.0, "b": 1.0, "c": 4.0}
    alone = {("a",): 2.0, ("b",): 2.0, ("c",): 2.0}
    assert by_worth(noise, alone, 0.1) == ["a", "c", "b"]
    # Behind a, b is half a unit more: 1 / 0.5 against 4 / 2; a little cheaper yet, and it is before c.
    assert by_worth(noise, {**alone, ("a", "b"): 2.4}, 0.1) == ["a", "b", "c"]
    assert by_worth(noise, {**alone, ("a", "b"): 2.6}, 0.1) == ["a", "c", "b"]


def test_nothing_is_cheaper_than_what_the_clock_can_tell():
    noise = {"loud": 9.0, "quiet": 1.0}
    costs = {("loud",): 0.5, ("quiet",): -3.0}
    assert by_worth(noise, costs, 0.5) == ["loud", "quiet"]
