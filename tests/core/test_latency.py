"""Milliseconds by hand: parts whose times are known, a network's sum, and what a selection makes of both."""

import math
import random
from dataclasses import replace

import pytest
import torch

from hqp_lightning.core.fastest import propose_fastest
from hqp_lightning.core.latency import Price, changes, price_of
from hqp_lightning.core.selection import Caps
from hqp_lightning.errors import ConfigurationError
from hqp_lightning.records import ChannelGroup, Consumer, Filters, LatencyTable, NetworkTime, Part, Unit

# A 1x1 convolution of 16 channels, a 3x3 one with an addition behind it, and the head; b and the addition are a block.
DENSE = {"a": (8, 16), "block.b": (16, 32), "head": (32, 10)}
PARTS = {
    "a": Part("a", ("a",), per_channel=False),
    "block.b": Part("block.b", ("block.b",), per_channel=False),
    "/block/Add": Part("block", ("block.b", "a")),
    "head": Part("head", ("head",), per_channel=False),
}


def up(width, step=16):
    return -(-width // step) * step


def known(widths):
    """What the parts take: a grows with its outputs, b with both its widths, in steps of 16 channels."""
    i, o = widths.get("block.b", (0, 0))
    inside = {"block.b": up(i) * up(o) / 64, "/block/Add": 1 + up(o) / 32} if o else {}
    return {"a": up(widths["a"][1]) / 8, **inside, "head": 1.0}


def network(name, widths, a=0.5, b=2.0):
    """A network time: half of what the counters say, and 2 ms for the call."""
    parts = known(widths)
    return NetworkTime(name, "int8", widths, a * sum(parts.values()) + b, parts)


def table():
    draw, networks = random.Random(0), [network("dense", DENSE)]
    for k in range(8):
        mid, out = 8 * draw.randint(1, 4), 8 * draw.randint(1, 8)
        networks.append(network(f"drawn {k}", {"a": (8, mid), "block.b": (mid, out), "head": (out, 10)}))
    float_ = NetworkTime("dense", "fp32", DENSE, 30.0, {})
    return LatencyTable("openvino", "1", "a CPU", 1, "processor", 1, ((3, 8, 8),), PARTS, (float_, *networks))


TABLE = table()


def group(name, channels, reader):
    """What layer ``name`` writes and ``reader`` reads."""
    every = tuple(range(channels))
    filters = (Filters(f"{name}.weight", 0, every, every), Filters(f"{name}.bias", 0, every, every))
    return ChannelGroup(name, channels, (Consumer(reader, every, every),), filters, 1.0)


GROUPS = [group("a", 16, "block.b"), group("block.b", 32, "head")]


def test_the_step_of_the_stairs_and_the_time_of_every_part_are_found_in_networks_that_were_measured():
    price = Price(TABLE)
    assert price.step == 16
    for mid, out in ((16, 16), (8, 24), (24, 56)):
        widths = {"a": (8, mid), "block.b": (mid, out), "head": (out, 10)}
        assert price.ms(widths) == pytest.approx(network("", widths).ms, rel=1e-3)
    assert price.dense_ms == pytest.approx(network("", DENSE).ms, rel=1e-3)
    assert (price.measured("fp32"), price.measured("int8")) == (30.0, network("", DENSE).ms)


def test_one_network_that_was_timed_wrong_does_not_count():
    first, *others = TABLE.networks[1:]
    wrong = replace(others[0], ms=0.1 * others[0].ms)
    price = Price(replace(TABLE, networks=(TABLE.networks[0], first, wrong, *others[1:])))
    assert price.dense_ms == pytest.approx(network("", DENSE).ms, rel=0.01)


def test_what_lies_inside_of_a_block_that_is_gone_costs_nothing():
    price, left = Price(TABLE), {"a": (8, 16), "head": (16, 10)}
    assert price.ms(left) == pytest.approx(network("", left).ms, rel=1e-3)
    saved = price.saved(DENSE, {n: w for n, w in DENSE.items() if n != "block.b"}, ["block.b"])
    assert saved == pytest.approx(0.5 * (16 * 32 / 64 + 2), rel=1e-3)


def test_a_part_that_reads_what_is_gone_has_the_channels_of_the_next_layer_above():
    parts = {**PARTS, "/Pool": Part("", ("block.b", "a"))}
    networks = [
        replace(n, parts={**n.parts, "/Pool": n.widths["block.b"][1] / 4} if n.parts else {}) for n in TABLE.networks
    ]
    price = Price(replace(TABLE, parts=parts, networks=tuple(networks)))
    both = {"a": (8, 16), "block.b": (16, 32), "head": (32, 10)}, {"a": (8, 16), "head": (16, 10)}
    assert [price.of(["/Pool"], widths) for widths in both] == pytest.approx([8.0, 4.0], rel=0.1)


def test_a_part_that_was_fused_with_another_in_some_networks_counts_as_nothing_there():
    networks = [
        replace(n, parts={p: t for p, t in n.parts.items() if p != "/block/Add"}) if k != 2 else n
        for k, n in enumerate(TABLE.networks)
    ]
    assert Price(replace(TABLE, networks=tuple(networks))).of(["/block/Add"], DENSE) < 0.5


def test_a_channel_of_a_group_takes_an_output_of_its_writer_and_inputs_of_its_readers():
    flat = replace(GROUPS[0], consumers=(Consumer("block.b", tuple(range(64)), tuple(k // 4 for k in range(64))),))
    assert changes(flat, DENSE) == {"a": (0.0, 1.0), "block.b": (4.0, 0.0)}
    assert changes(GROUPS[0], ["block.b"]) == {"block.b": (1.0, 0.0)}


def test_channels_go_only_in_whole_steps_of_the_stairs():
    price, caps = Price(TABLE), Caps(8)
    values = {"a": torch.full((16,), 1.0), "block.b": torch.full((32,), 1.0)}
    # a is narrower than a step: nothing to win. Of b, 8 channels save nothing, 16 half of its 8 ms and of the 1 beside.
    step = propose_fastest(GROUPS, values, DENSE, price, 0.1, caps=caps)
    assert {n: len(c) for n, c in step.removed.items()} == {"block.b": 16}
    assert (step.predicted_loss_increase, step.macs_saved) == (8.0, 16.0)
    assert step.ms_saved == pytest.approx(0.5 * (4 + 0.5), rel=1e-3)
    assert propose_fastest(GROUPS, values, DENSE, price, 99.0, caps=caps).removed.keys() == {"block.b"}
    assert propose_fastest(GROUPS, values, DENSE, price, 1.0, caps=Caps(8, 0.4)).parts == {}  # 8 save nothing


class Steeper:
    """A price by which every further 16 channels of b that go save more than those before: a long run is worth most."""

    def ms(self, widths):
        return 100.0 - ((64 - widths["block.b"][1]) // 16) ** 2

    def saved(self, before, after, layers):
        return self.ms(before) - self.ms(after)

    def parts_of(self, layers):
        return set(layers)


def test_the_macs_end_a_step_at_the_least_loss_and_no_later_than_they_must():
    widths, caps = {**DENSE, "block.b": (16, 64), "head": (64, 10)}, Caps(round_to=4)
    groups = [group("a", 16, "block.b"), group("block.b", 64, "head")]  # a channel saves one MAC

    def gone(macs, of_a=2.0):
        values = {"a": torch.full((16,), of_a), "block.b": torch.full((64,), 1.0)}
        step = propose_fastest(groups, values, widths, Steeper(), 100.0, macs, caps)
        left = 64 - len(step.removed.get("block.b", ()))
        assert step.ms_saved == ((64 - left) // 16) ** 2
        assert step.macs_saved == sum(map(len, step.removed.values()))
        return {n: len(c) for n, c in step.removed.items()}

    assert gone(math.inf) == {"block.b": 48}  # the whole run, which is worth most
    assert [gone(m) for m in (10.0, 16.0, 17.0, 48.0)] == [{"block.b": n} for n in (12, 16, 20, 48)]
    assert gone(10.0, of_a=0.5) == {"a": 12}  # saves no time, and costs least
    assert gone(15.0, of_a=0.5) == {"block.b": 16}  # of a's 16 the last four have to stay


def test_a_unit_that_saves_far_more_macs_than_are_missing_goes_only_if_it_costs_least():
    price, unit = Price(TABLE), Unit("block", "branch", 500.0)

    def gone(loss_of_unit, macs=10.0):
        values = {"block.b": torch.full((32,), 1.0), "branch:block": torch.tensor([loss_of_unit])}
        step = propose_fastest(GROUPS[1:], values, DENSE, price, 100.0, macs, Caps(8), [unit])
        return {n: len(c) for n, c in step.parts.items()}

    assert gone(17.0) == {"block.b": 16}  # at 16 halves of a nat: 10 MACs take two tiles of 8
    assert gone(15.0) == {"branch:block": 0}
    assert gone(17.0, macs=300.0) == {"branch:block": 0}  # nothing else saves as much


def test_what_would_save_more_than_is_allowed_stays():
    price, values, unit = Price(TABLE), {"block.b": torch.full((32,), 1.0)}, Unit("block", "branch", 5.0)
    # 16 channels save 2.25 ms, the block with its 32 saves 5.
    limited = lambda most, **more: propose_fastest(GROUPS[1:], values, DENSE, price, 9.0, most_ms=most, **more)  # noqa: E731
    assert limited(2.2).parts == {}
    assert {n: len(c) for n, c in limited(2.4).removed.items()} == {"block.b": 16}
    values["branch:block"] = torch.tensor([1.0])
    assert limited(4.9, units=[unit]).units == ()
    assert limited(5.1, units=[unit]).parts == {"branch:block": ()}


def test_units_compete_with_channels_by_nats_per_millisecond():
    price, unit = Price(TABLE), Unit("block", "branch", 5.0)
    values = {"block.b": torch.full((32,), 1.0), "branch:block": torch.tensor([50.0])}
    # 8 nats for 2.25 ms, to 25 for 5 ms: the channels first, and then the block with what is inside of it.
    step = propose_fastest(GROUPS[1:], values, DENSE, price, 2.0, units=[unit])
    assert ({n: len(c) for n, c in step.removed.items()}, step.units) == ({"block.b": 16}, ())
    step = propose_fastest(GROUPS[1:], values, DENSE, price, 4.5, units=[unit])
    assert step.parts == {"branch:block": ()}
    assert step.ms_saved == pytest.approx(5.0, rel=1e-3)
    step = propose_fastest(
        GROUPS[1:], {**values, "branch:block": torch.tensor([30.0])}, DENSE, price, 1.0, units=[unit]
    )
    assert step.parts == {"branch:block": ()}  # 15 nats for 5 ms


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ({"a": (8, 16)}, "another network: it has 3 layers, this one 1; only it has block.b, head"),
        ({**DENSE, "c": (8, 8)}, "it lacks c; make it of this network"),
        ({**DENSE, "a": (8, 24)}, "layer 'a' is 8→16 there and 8→24 here"),
    ],
)
def test_a_table_of_another_network_is_refused(widths, message):
    with pytest.raises(ConfigurationError, match=message):
        price_of(TABLE, widths, "orin.json")
    with pytest.raises(ConfigurationError, match="no INT8 network"):
        price_of(replace(TABLE, networks=TABLE.networks[:1]), DENSE)
