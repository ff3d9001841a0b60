"""Which step comes next, of groups and units whose values are given by hand."""

import dataclasses

import pytest
import torch

from hqp_lightning import HQPPruning
from hqp_lightning.records import ChannelGroup, StepRecord, Unit
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
