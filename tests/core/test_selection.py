import itertools

import pytest
import torch

from hqp_lightning.core.selection import Caps, propose
from hqp_lightning.errors import ConfigurationError
from hqp_lightning.records import ChannelGroup, Consumer, Filters, Unit


def group(name, channels, macs=1.0, blocks=1):
    return ChannelGroup(name, channels, (), (), macs, blocks)


FREE = Caps(round_to=1, max_channel_ratio=1.0)


def test_cheapest_first_per_mac_by_hand():
    groups = [group("cheap_macs", 3, macs=1.0), group("dear_macs", 3, macs=10.0)]
    # Per MAC, halves of: 2, 4, 6 and 0.3, 0.5, 3: the second group's go first.
    values = {"cheap_macs": torch.tensor([4.0, 2.0, 6.0]), "dear_macs": torch.tensor([30.0, 3.0, 5.0])}
    step = propose(groups, values, 20.5, FREE)
    assert step.removed == {"dear_macs": (1, 2), "cheap_macs": (1,)}
    assert step.channels == 3
    assert step.macs_saved == 21.0
    assert step.predicted_loss_increase == pytest.approx((3 + 5 + 2) / 2)
    per_channel = propose(groups, values, 11.5, FREE, cost="none")  # values 2, 3, then 4: 1 + 10 + 1 MACs
    assert per_channel.removed == {"cheap_macs": (0, 1), "dear_macs": (1,)}
    assert per_channel.macs_saved == 12.0


@pytest.mark.parametrize("seed", range(5))
def test_no_other_choice_of_as_few_macs_loses_less(seed):
    """Against every subset: the greedy choice per MAC is optimal for the MACs that it saves (equal costs per group)."""
    generator = torch.Generator().manual_seed(seed)
    groups = [group("a", 5, macs=1.0), group("b", 5, macs=1.0)]
    values = {g.name: torch.rand(g.channels, generator=generator) for g in groups}
    step = propose(groups, values, 4.0, FREE)
    gates = [(n, i) for n in values for i in range(5)]
    allowed = [c for c in itertools.combinations(gates, 4) if all(sum(n == m for n, _ in c) < 5 for m in values)]
    best = min(allowed, key=lambda c: sum(float(values[n][i]) for n, i in c))
    assert {(n, i) for n, c in step.removed.items() for i in c} == set(best)


@pytest.mark.parametrize(("channels", "kept"), [(100, 96), (96, 88), (20, 16), (64, 56)])
def test_the_first_bundle_leaves_a_multiple(channels, kept):
    step = propose([group("a", channels)], {"a": torch.rand(channels)}, 1e-9, Caps(round_to=8))
    assert channels - step.channels == kept


def test_kept_channels_are_the_most_salient_multiple():
    values = torch.randperm(100, generator=torch.Generator().manual_seed(0)).float()
    step = propose([group("a", 100)], {"a": values}, 17.0, Caps(round_to=8))
    assert step.channels == 20  # 4, then twice 8
    assert step.removed["a"] == tuple(sorted(torch.argsort(values)[:20].tolist()))


@pytest.mark.parametrize(("blocks", "round_to", "removed"), [(4, 8, 8), (4, 1, 4), (2, 8, 8), (32, 8, 32), (3, 8, 24)])
def test_tied_blocks_go_together_and_stay_aligned(blocks, round_to, removed):
    channels = 96
    g = group("a", channels, blocks=blocks)
    step = propose([g], {"a": torch.arange(float(g.gates))}, 1e-9, Caps(round_to=round_to))
    assert step.channels == removed
    assert (channels - step.channels) % round_to == 0
    gates = removed // blocks
    assert step.removed["a"] == tuple(sorted(k + b * g.gates for k in range(gates) for b in range(blocks)))


def test_max_channel_ratio_counts_from_the_original():
    caps = Caps(round_to=8, max_channel_ratio=0.5, original={"a": 64})
    g = group("a", 40)  # 24 of 64 are gone already, 8 more may go
    step = propose([g], {"a": torch.arange(40.0)}, 1e9, caps)
    assert step.channels == 8
    assert propose([group("a", 32)], {"a": torch.rand(32)}, 1e9, caps).channels == 0
    assert propose([group("a", 64)], {"a": torch.rand(64)}, 1e9, Caps(8, 0.9)).channels == 56  # 6.4 rounds up to 8


def test_at_least_one_channel_stays():
    assert propose([group("a", 3)], {"a": torch.rand(3)}, 1e9, FREE).channels == 2
    assert propose([group("a", 2, blocks=2)], {"a": torch.rand(1)}, 1e9, FREE).channels == 0


@pytest.mark.parametrize("values", [torch.arange(24.0), torch.arange(24.0).flip(0)])
def test_a_layer_that_reads_or_writes_a_part_of_the_group_keeps_a_channel(values):
    first, later = tuple(range(8)), tuple(range(16))  # gates 0 to 7 are written by one layer, 8 to 23 read by another
    written, read = Filters("a.weight", 0, first, first), Consumer("b", later, tuple(c + 8 for c in later))
    everything = Consumer("c", tuple(range(24)), tuple(range(24)))
    g = ChannelGroup("a", 24, (everything, read), (written,), 1.0)
    assert set(g.parts) == {frozenset(first), frozenset(range(8, 24))}
    step = propose([g], {"a": values}, 1e9, FREE)
    best = {max(part, key=lambda i: float(values[i])) for part in g.parts}
    assert set(range(24)) - set(step.removed["a"]) == best
    assert propose([g], {"a": values}, 16.0, Caps(round_to=8)).channels == 16
    tied = ChannelGroup("a", 48, (Consumer("b", tuple(range(16)), (*first, *(c + 24 for c in first))),), (), 1.0, 2)
    assert tied.parts == (frozenset(first),)
    assert {c % 24 for c in propose([tied], {"a": values}, 44.0, FREE).removed["a"]}.isdisjoint(
        {max(first, key=lambda i: float(values[i]))}
    )


def test_empty_when_nothing_may_go():
    values = {"a": torch.rand(8)}
    for step in (
        propose([group("a", 8)], values, 1e9, Caps(round_to=8)),
        propose([group("a", 8)], values, 0.0, FREE),
        propose([group("b", 8)], values, 1e9, FREE),  # never measured
        propose([], {}, 1e9, FREE),
    ):
        assert step.channels == 0
        assert (step.removed, step.predicted_loss_increase, step.macs_saved) == ({}, 0.0, 0.0)


def test_channels_without_a_finite_value_stay():
    values = torch.tensor([1.0, float("nan"), 2.0, float("inf")])
    assert propose([group("a", 4)], {"a": values}, 1e9, FREE).removed == {"a": (0, 2)}


def test_ties_are_broken_the_same_way_every_time():
    groups = [group(n, 16) for n in "dbca"]
    values = {g.name: torch.ones(16) for g in groups}
    steps = [propose(order, values, 20.0, Caps(round_to=8)) for order in (groups, groups[::-1], groups)]
    assert steps[0] == steps[1] == steps[2]
    assert steps[0].removed == {n: tuple(range(8)) for n in "abc"}


def test_unknown_cost():
    with pytest.raises(ConfigurationError, match="cost='latency'.*macs"):
        propose([], {}, 1.0, cost="latency")


def test_units_compete_with_channels_and_take_along_what_lies_inside():
    groups = [group("stem", 4, 1.0), group("block.conv", 4, 1.0)]
    values = {"stem": torch.tensor([2.0, 8, 8, 8]), "block.conv": torch.tensor([1.0, 1, 8, 8])}
    values |= {
        "branch:block": torch.tensor([12.0]),
        "gate:block.gate": torch.tensor([0.2]),
        "gate:g": torch.tensor([4]),
    }
    units = [Unit("block", "branch", 10.0), Unit("block.gate", "gate", 1.0), Unit("g", "gate", 1.0)]
    few = propose(groups, values, 3.0, FREE, units=units)  # prices 0.1, 0.5, 0.5, then 0.6
    assert (few.removed, few.units) == ({"block.conv": (0, 1)}, ("gate:block.gate",))
    assert (few.predicted_loss_increase, few.macs_saved) == (pytest.approx(0.1 + 1.0), 3.0)
    assert few.parts == {"block.conv": (0, 1), "gate:block.gate": ()}
    more = propose(groups, values, 11.0, FREE, units=units)  # the block, without what was taken of it; then the stem
    assert (more.removed, more.units) == ({"stem": (0,)}, ("branch:block",))
    assert (more.predicted_loss_increase, more.macs_saved) == (6.0 + 1.0, 11.0)
    assert propose(groups, values, 12.0, FREE, units=units).units == ("branch:block", "gate:g")
    unmeasured = propose([], {"gate:g": torch.tensor([float("nan")])}, 1.0, FREE, units=units)
    assert unmeasured.parts == {}
