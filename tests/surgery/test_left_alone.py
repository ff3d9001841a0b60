"""What the outside graph can't follow is left alone, and the rest is pruned."""

import copy
from contextlib import nullcontext

import pytest
import torch
from networks import draw_norms_, gates_at_inputs
from torch import nn

from hqp_lightning.surgery import Shadow, apply_cut_, tracing


class Block(nn.Sequential):
    """A part that the outside graph is made to fail in."""


def test_a_module_that_the_graph_fails_in_is_told_and_the_rest_is_pruned(monkeypatch):
    """As torch-pruning 1.6 does where it finds no number of channels for a part of a concatenation."""
    trace = tracing.coupled_groups

    def failing(network: nn.Module, *args):
        block = network.get_submodule("3")
        if "forward" not in block.__dict__:  # nothing stands in for it yet
            raise TypeError("unsupported operand type(s) for +: 'int' and 'NoneType'")
        return trace(network, *args)

    monkeypatch.setattr(tracing, "coupled_groups", failing)
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), Block(nn.Conv2d(32, 32, 1), nn.ReLU()), nn.ReLU(),
        nn.Conv2d(32, 16, 1), nn.ReLU(), nn.Conv2d(16, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    ).eval()  # fmt: skip
    x = torch.randn(2, 3, 8, 8)
    dense, shadow = copy.deepcopy(network), Shadow(network, (x,))
    groups = shadow.groups()
    assert {g.name for g in groups} == {"0", "5", "7"}
    assert "'3' (torch-pruning's graph fails in it: TypeError" in next(n.reason for n in shadow.notes if n.group == "2")

    apply_cut_(network, shadow.cut({"0": (1, 3), "5": (0,), "7": (2, 4)}))
    gates = {g.name: torch.ones(g.channels, dtype=torch.float64) for g in groups}
    gates["0"][[1, 3]] = gates["5"][[0]] = gates["7"][[2, 4]] = 0.0
    masked = dense.double()
    gates_at_inputs(masked, gates, groups)
    with torch.no_grad():
        torch.testing.assert_close(network.double()(x.double()), masked(x.double()), rtol=1e-9, atol=1e-9)


class Extractor(nn.Module):
    """Features of a frozen body, under the context that a user takes for it, and a head to train."""

    def __init__(self, context, detached=False):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU())
        self.head = nn.Sequential(
            nn.Conv2d(16, 32, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5)
        )
        self.context, self.detached = context, detached

    def forward(self, x):
        with self.context():
            x = self.body(x)
        return self.head(x.detach() if self.detached else x.clone())


@pytest.mark.parametrize(
    ("context", "detached"), [(torch.no_grad, False), (torch.inference_mode, False), (nullcontext, True)]
)
def test_layers_without_gradients_are_told_and_the_rest_is_pruned(context, detached, caplog):
    shadow = Shadow(Extractor(context, detached).eval(), (torch.randn(2, 1, 8, 8),))
    assert [g.name for g in shadow.groups()] == ["head.0"]
    assert [(n.group, n.channels, n.status) for n in shadow.notes] == [
        ("body.0", 16, "left out"),
        ("body.2", 16, "left out"),
    ]
    assert all("under torch.no_grad, inference_mode" in n.reason for n in shadow.notes)
    assert "2 groups of channels stay as they are: body.0: no gradient leads to it" in caplog.text
    ignored = Shadow(Extractor(context, detached).eval(), (torch.randn(2, 1, 8, 8),), ignore=["body"])
    assert ignored.notes == ()


class Auxiliary(nn.Module):
    """A head for the training, which runs in eval mode as well, where nobody gets what it gives."""

    def __init__(self, order=1):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.Conv2d(16, 24, 3))
        self.auxiliary = nn.Sequential(
            nn.BatchNorm2d(24), nn.Conv2d(24, 12, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5)
        )
        self.tail, self.head, self.order = nn.Conv2d(24, 16, 1), nn.Linear(16, 5), order

    def forward(self, x):
        x = self.body(x)
        beside = self.auxiliary(x.flip(1) if self.order < 0 else x)
        out = self.head(self.tail(x).relu().mean((2, 3)))
        return (out, beside) if self.training else out


def test_a_head_that_is_thrown_away_is_cut_along():
    """Both outputs of training mode equal those with a mask at the readers, norms in eval mode."""
    torch.manual_seed(0)
    network, x = Auxiliary().eval(), torch.randn(3, 3, 8, 8)
    draw_norms_(network)
    dense, shadow = copy.deepcopy(network), Shadow(network, (x,))
    groups = shadow.groups()
    assert {g.name: [c.module for c in g.consumers] for g in groups} == {
        "body.0": ["body.3"],
        "body.3": ["auxiliary.1", "tail"],
        "tail": ["head"],
    }
    assert [n.group for n in shadow.notes] == ["auxiliary.1", "auxiliary.5"]
    apply_cut_(network, shadow.cut({"body.3": (0, 5, 23)}))
    gates = {g.name: torch.ones(g.channels, dtype=torch.float64) for g in groups}
    gates["body.3"][[0, 5, 23]] = 0.0
    masked = dense.double()
    gates_at_inputs(masked, gates, groups)
    found, expected = [], []
    for module, outputs in ((network.double(), found), (masked, expected)):
        module.training = True  # of it alone: what it returns
        with torch.no_grad():
            outputs += module(x.double())
    assert network.auxiliary[1].in_channels == 21
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_a_head_that_is_thrown_away_is_proved_as_well():
    shadow = Shadow(Auxiliary(-1).eval(), (torch.randn(2, 3, 8, 8),))
    assert {g.name for g in shadow.groups()} == {"body.0", "tail"}
    assert "compute another function" in next(n.reason for n in shadow.notes if n.group == "body.3")
