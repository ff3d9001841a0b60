"""Which step comes next, of groups and units whose values are given by hand."""

import dataclasses
import logging

import pytest
import torch

from hqp_lightning import HQPPruning
from hqp_lightning.core.latency import Price
from hqp_lightning.records import ChannelGroup, Filters, LatencyTable, NetworkTime, Part, StepRecord, Unit
from hqp_lightning.search.proposal import untried
from hqp_lightning.search.saving import Wanted
from hqp_lightning.search.state import PruningState

BRANCH = Unit("deep", "branch", 90.0)


class Whole:
    """A network of one group of forty channels, a MAC each, and one branch; everything can go."""

    def groups(self):
        return (ChannelGroup("wide", 40, (), (), 1.0),)

    def units(self):
        return (BRANCH,)

    def without(self, units):
        return self

    def unprovable(self, removed):
        return {}


def searched(branch, step):
    """Options, and the state of a search whose step is ``step``; a channel costs 2, the branch ``branch``, in nats."""
    options = HQPPruning("val_acc", 0.1, step=0.05, min_step=0.0125, units=("channels", "branches"), round_to=1).options
    state = PruningState(dataclasses.replace(HQPPruning("val_acc", 0.1).state.search, step=step))
    state.saliency = {"wide": torch.full((40,), 4.0), BRANCH.key: torch.tensor([2.0 * branch])}
    return options, state


def step_of(state, options):
    return untried(Whole(), Wanted(10.0), state, options, state.saliency, {})


@pytest.mark.parametrize(
    ("branch", "step", "units"),
    [
        (50.0, 0.05, (BRANCH.key,)),  # per MAC 0.6 to 2: the first step takes it, however large it is
        (50.0, 0.025, ()),  # a halved one asks for ten MACs, which are ten channels: 20 nats
        (19.0, 0.025, (BRANCH.key,)),  # less than those
    ],
)
def test_a_halved_step_takes_a_larger_unit_only_if_that_is_predicted_to_cost_less(branch, step, units):
    options, state = searched(branch, step)
    assert step_of(state, options).units == units


def test_a_unit_that_was_rolled_back_comes_again_when_it_costs_half():
    options, state = searched(10.0, 0.05)
    tried = StepRecord(1, 0, "rolled_back", "", 0.05, 0, 10.0, 0.0, 0, units_removed=(BRANCH.key,))
    state.bar(dataclasses.replace(tried, channels_removed=8))  # what was to blame is not known
    assert step_of(state, options).units == (BRANCH.key,)
    state.bar(tried)
    for again in (state, PruningState.from_plain(state.to_plain())):  # and of a checkpoint
        assert step_of(again, options).units == ()
        again.saliency[BRANCH.key] = torch.tensor([10.1])
        assert step_of(again, options).units == ()
        again.saliency[BRANCH.key] = torch.tensor([10.0])
        assert step_of(again, options).units == (BRANCH.key,)
        again.saliency[BRANCH.key] = torch.tensor([20.0])


def priced():
    """A channel of ``big`` takes a millisecond, one of ``small`` a tenth."""
    networks = []
    for big, small in ((64, 64), (48, 64), (32, 48), (16, 32), (64, 16), (32, 16)):
        widths, parts = {"big": (8, big), "small": (8, small)}, {"big": float(big), "small": small / 10}
        networks.append(NetworkTime("", "int8", widths, sum(parts.values()), parts))
    parts = {n: Part(n, (n,)) for n in ("big", "small")}
    return Price(LatencyTable("tensorrt", "10.3", "Orin", 0, "gpu", 1, ((1, 8, 8),), parts, tuple(networks)))


class Two(Whole):
    """Two layers of 64 channels that go by sixteen."""

    def groups(self):
        return tuple(
            ChannelGroup(n, 64, (), (Filters(f"{n}.weight", 0, tuple(range(64)), tuple(range(64))),), 1.0)
            for n in ("big", "small")
        )

    def units(self):
        return ()

    def widths(self, layers):
        return {n: (8, 64) for n in layers}


@pytest.mark.parametrize(
    ("small", "removed", "ms", "said"),
    [
        (0.2, {"small": 16}, 1.6, ""),  # 1.6 nats for 1.6 ms, where sixteen of ``big`` cost 8 for 16 ms
        (3.0, {"big": 16}, 16.0, "2 ms were asked for, the step saves 16: nothing smaller is predicted to cost less"),
    ],
)
def test_by_milliseconds_a_tile_of_several_times_what_is_wanted_goes_only_if_nothing_smaller_costs_less(
    caplog, small, removed, ms, said
):
    options = HQPPruning("val_acc", 0.1, cost="latency", round_to=16).options
    state = PruningState(HQPPruning("val_acc", 0.1).state.search, price=priced())
    state.saliency = {"big": torch.full((64,), 1.0), "small": torch.full((64,), small)}
    with caplog.at_level(logging.WARNING):
        step = untried(Two(), Wanted(1e9, 2.0), state, options, state.saliency, {})
    assert {n: len(c) for n, c in step.removed.items()} == removed
    assert step.ms_saved == pytest.approx(ms, rel=1e-3)
    assert said in caplog.text
    assert bool(said) == bool(caplog.text)


def test_a_network_that_was_rolled_back_does_not_come_again_by_another_way():
    """Ten channels were too many: the next step asks for half of what would lead there."""
    options, state = searched(1e6, 0.05)
    options = dataclasses.replace(options, units=("channels",))
    tried = StepRecord(1, 0, "rolled_back", "", 0.05, 20, 20.0, 0.0, 0)
    state.outline = {"wide": 30}
    state.bar(tried)
    asked = lambda macs, state: len(untried(Whole(), Wanted(macs), state, options, state.saliency, {}).removed["wide"])  # noqa: E731
    for again in (state, PruningState.from_plain(state.to_plain())):
        assert asked(9.0, again) == 9
        assert asked(10.0, again) == 5
        assert asked(18.0, again) == 9
        assert untried(Whole(), Wanted(20.0), again, options, again.saliency, {}).parts == {}  # nothing else is there


def test_another_network_of_the_same_size_may_come():
    options, state = searched(1e6, 0.05)
    state.price, state.outline = None, {"big": 48, "small": 56}
    options = dataclasses.replace(options, units=("channels",), round_to=8)
    state.bar(StepRecord(1, 0, "rolled_back", "", 0.05, 24, 24.0, 0.0, 0))
    state.saliency = {"big": torch.full((64,), 1.0), "small": torch.full((64,), 3.0)}
    step = untried(Two(), Wanted(24.0), state, options, state.saliency, {})
    assert {n: len(c) for n, c in step.removed.items()} == {"big": 24}
    state.outline = {"big": 40, "small": 64}
    state.bar(StepRecord(2, 0, "rolled_back", "", 0.05, 24, 24.0, 0.0, 0))
    step = untried(Two(), Wanted(24.0), state, options, state.saliency, {})
    assert {n: len(c) for n, c in step.removed.items()} == {"big": 16}  # half of 24 is a tile and a half
    state.outline = {"big": 56, "small": 64}
    state.bar(StepRecord(3, 0, "rolled_back", "", 0.05, 8, 8.0, 0.0, 0))  # even the smallest: the group stays
    step = untried(Two(), Wanted(24.0), state, options, state.saliency, {})
    assert {n: len(c) for n, c in step.removed.items()} == {"small": 24}
