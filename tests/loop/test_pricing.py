"""The networks that a latency table is made of."""

import pytest
import torch
from gated import UNITS, drawn

from hqp_lightning.core.calls import Call
from hqp_lightning.errors import SurgeryError
from hqp_lightning.export import counters, latency
from hqp_lightning.export.latency import How
from hqp_lightning.loop import pricing
from hqp_lightning.surgery import Shadow

EXAMPLE = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_half_of_the_networks_go_without_gates_and_blocks(monkeypatch):
    pytest.importorskip("openvino")
    for module, name, value in ((latency, "_TURNS", 1), (counters, "_TURNS", 1), (pricing, "NETWORKS", 9)):
        monkeypatch.setattr(module, name, value)
    network = drawn()
    shadow = Shadow(network, [EXAMPLE])
    made = pricing.made_here(network, Call((EXAMPLE[:1],)), shadow, 1, How(), None, UNITS)
    dense, *others = [n for n in made.networks if n.precision == "int8"]
    gone = [{*dense.widths} - {*n.widths} for n in others]
    assert [bool(g) for g in gone] == [True, False, True, False, False, True, False, True]
    units = [key.partition(":")[2] for key in UNITS]
    for layers, n in zip(gone, others, strict=True):
        # Each layer that is gone lies in a unit, and with all others of that unit.
        homes = [u for u in units if all(x in layers for x in dense.widths if x.startswith(f"{u}."))]
        assert layers == {x for x in dense.widths if any(x.startswith(f"{u}.") for u in homes)}
        assert {part for part in n.parts if part in dense.widths} <= {*n.widths}  # only what is there was timed


def test_a_network_without_units_keeps_its_function():
    network = drawn()
    shadow = Shadow(network, [EXAMPLE])
    keys = ["branch:5", "gate:3"]
    twin, less = pricing.without(network, shadow, keys)
    assert {r.unit.key for r in less.removals} == {*keys}
    # By hand: a gate's scale is one (no mean is folded in: times are all that is asked), a block its input.
    x = EXAMPLE
    with torch.no_grad():
        wanted = x
        for k, layer in enumerate(network):
            wanted = wanted if k in (3, 5) else layer(wanted)
        torch.testing.assert_close(twin(x), wanted)
    assert pricing.without(network, shadow, [])[1] is shadow


def test_units_that_cannot_go_together_stay(monkeypatch):
    network = drawn()
    shadow = Shadow(network, [EXAMPLE])
    whole = type(shadow).without

    def refuses(self, units):
        if len(units) > 1:
            raise SurgeryError("together they would break the network")
        return whole(self, units)

    monkeypatch.setattr(Shadow, "without", refuses)
    twin, less = pricing._without_some(network, shadow, UNITS)
    assert [r.unit.key for r in less.removals] == [UNITS[0]]
    with torch.no_grad():
        wanted = network[:3](EXAMPLE)
        torch.testing.assert_close(twin(EXAMPLE), network[4:](wanted))
