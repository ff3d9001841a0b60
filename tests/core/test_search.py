from hqp_lightning.core.search import Search, advance, finish


def test_a_kept_step_goes_on_with_the_same_size():
    search = advance(advance(Search(0.08, 0.02), kept=True), kept=True)
    assert search == Search(0.08, 0.02, index=3)


def test_halving_down_to_the_smallest_step_itself_then_the_end():
    search, steps = Search(0.08, 0.02), []
    while not search.ended:
        steps.append(search.step)
        search = advance(search, kept=False)
    assert steps == [0.08, 0.04, 0.02]
    assert search.ended == "the step fell below min_step=0.02"
    assert search.index == 4
    assert search.step == 0.02


def test_kept_steps_in_between_do_not_restore_the_size():
    search = Search(0.08, 0.01)
    for kept in (False, True, False, True):
        search = advance(search, kept)
    assert (search.step, search.index, search.ended) == (0.02, 5, None)


def test_the_first_reason_stays():
    search = finish(Search(0.1, 0.05), "target reached")
    assert finish(search, "another").ended == "target reached"
    assert advance(search, kept=True).ended == "target reached"
    assert advance(search, kept=False).ended == "target reached"
