"""What the loss is without a branch, against the network with that branch cut out by hand."""

import gated
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hqp_lightning.core import fisher
from hqp_lightning.core.branches import as_tried, loss_rises
from hqp_lightning.records import Unit

UNITS = [Unit(n, "branch", 1.0) for n in gated.BRANCHES]


class InPlace(nn.Module):
    """A branch that works on what it is given."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        return x.add_(self.block.body(x))


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("in_place", [False, True])
def test_rises_are_those_of_the_network_without_the_branch(reduction, in_place):
    network = gated.drawn().double()
    x, y = torch.randn(12, 1, 8, 8, dtype=torch.float64), torch.arange(12) % 10
    losses = {}
    for name in (None, *gated.BRANCHES):
        cut = nn.Sequential(*(nn.Identity() if str(i) == name else m for i, m in enumerate(network)))
        losses[name] = F.cross_entropy(cut(x), y, reduction="sum")
    if in_place:
        network[5] = InPlace(network[5])
    state = fisher.FisherState()
    for part in (slice(0, 8), slice(8, 12)):
        state = fisher.merge(
            state, loss_rises(network, UNITS, lambda p=part: F.cross_entropy(network(x[p]), y[p], reduction=reduction))
        )
    assert state.samples == 12
    for unit in UNITS:
        torch.testing.assert_close(state.sums[unit.key], (losses[unit.name] - losses[None]).view(1))
    torch.testing.assert_close(F.cross_entropy(network(x), y, reduction="sum"), losses[None])  # nothing is left behind


class Shift(nn.Module):
    """``x`` plus what it adds to class 0."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([40.0, 0.0, 0.0]))

    def forward(self, x):
        return x + self.weight


def test_where_the_loss_is_flat_a_branch_has_no_fisher_value_and_a_rise():
    """Sure of every sample, the loss has no slope; without the branch every sample is wrong by 20."""
    network, unit = nn.Sequential(Shift()), Unit("0", "branch", 1.0)
    x, y = torch.tensor([[0.0, 20.0, 0.0]]).repeat(4, 1), torch.zeros(4, dtype=torch.long)

    def loss():
        return F.cross_entropy(network(x), y, reduction="none")

    assert float(fisher.compute(fisher.gate_fisher(network, [], loss, [unit]))[unit.key]) < 1e-6
    assert float(fisher.compute(loss_rises(network, [unit], loss))[unit.key]) == pytest.approx(20.0, rel=1e-6)


def test_branches_are_ranked_by_their_rises_on_the_scale_of_their_fisher_values():
    """By hand: rises over half the values are 2, 4 and 20; a loss that falls makes a tenth, no number none."""
    scores = {"a": 2.0, "b": 1.0, "c": 0.1, "d": 1.0, "e": 1.0, "conv": 3.0}
    rises = {"a": 2.0, "b": 2.0, "c": 1.0, "d": -1.0, "e": float("nan")}
    got = as_tried({n: torch.tensor([s]) for n, s in scores.items()}, rises)
    expected = {"a": 1.0, "b": 1.0, "c": 0.5, "d": 0.1, "e": float("nan"), "conv": 3.0}
    assert {n: float(t) for n, t in got.items()} == pytest.approx(expected, nan_ok=True)
