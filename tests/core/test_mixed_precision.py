import pytest

from hqp_lightning.core.mixed_precision import fewest


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
