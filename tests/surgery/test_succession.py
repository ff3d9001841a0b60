"""The layers that read a unit take over what it did."""

import copy

import numpy as np
import pytest
import torch
from gated import gated_net
from torch import nn
from torch.nn import functional as F

from hqp_lightning.surgery.compensation import add_
from hqp_lightning.surgery.replaced import replace_
from hqp_lightning.surgery.succession import beside, successors


class Linear(nn.Module):
    """``x + A x``: what reads it can take all of it over."""

    def __init__(self, channels):
        super().__init__()
        self.mix = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x):
        return x + self.mix(x)


def residual(reader, bias=True):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), Linear(8), reader, nn.BatchNorm2d(6) if not bias else nn.Identity()
    ).eval()


def without(network, *units):
    left = copy.deepcopy(network)
    for unit in units:
        replace_(left, unit)
    return left


def fitted(network, left, units, x):
    """Fitted, and the λ that were chosen."""
    chosen = {}
    for one in successors(left, units, (x[:2],)):
        with beside(left, network, one) as seen:
            for batch in x.split(16):
                seen.run((batch,))
        add_(left, seen.solve())
        chosen |= seen.strengths
    return left, chosen


READERS = {
    "plain": lambda: nn.Conv2d(8, 6, 3, padding=1),
    "without a bias": lambda: nn.Conv2d(8, 6, 1, bias=False),
    "grouped": lambda: nn.Conv2d(8, 6, 3, stride=2, groups=2),
}


@pytest.mark.parametrize("kind", READERS)
def test_what_is_linear_is_taken_over_whole(kind):
    torch.manual_seed(1)
    network = residual(READERS[kind]())
    if kind == "grouped":  # what the other group reads can't be taken over
        network[2].mix.weight.data[:4, 4:] = network[2].mix.weight.data[4:, :4] = 0
    x = torch.randn(64, 3, 9, 9)
    left = without(network, "2")
    with torch.no_grad():
        wanted = network(x)
        plain = F.mse_loss(left(x), wanted)
        fitted(network, left, ["2"], x)
        assert F.mse_loss(left(x), wanted) < 1e-3 * plain


def test_it_is_the_regression_of_numpy():
    network, x = residual(nn.Conv2d(8, 6, 1), bias=True), torch.randn(16, 3, 5, 5)
    network[2].mix = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Tanh(), nn.Conv2d(8, 8, 1))  # nothing linear
    network.eval()
    left = without(network, "2")
    with torch.no_grad():
        read, was = (n[:3](x).permute(0, 2, 3, 1).flatten(0, 2).double().numpy() for n in (left, network))
    w = network[3].weight.detach().double().flatten(1).numpy()
    rows = slice(0, 12 * 25)  # four images of sixteen make no moments; all 25 positions of the others are seen
    a, y = read[rows] - read[rows].mean(0), (was - read)[rows] @ w.T
    left, chosen = fitted(network, left, ["2"], x)
    strength = chosen["3"]
    lam = strength * (a.T @ a).diagonal().mean()
    stacked = np.concatenate([a, np.sqrt(lam) * np.eye(8)]), np.concatenate([y - y.mean(0), np.zeros((8, 6))])
    gained = np.linalg.lstsq(*stacked, rcond=None)[0].T
    assert strength < 1
    np.testing.assert_allclose((left[3].weight - network[3].weight).detach().flatten(1), gained, atol=1e-4)
    shift = y.mean(0) - gained @ read[rows].mean(0)
    np.testing.assert_allclose((left[3].bias - network[3].bias).detach(), shift, atol=1e-4)


class Stream(nn.Module):
    """Two blocks on a stream, a depthwise layer and two readers behind it; a layer that is called twice."""

    def __init__(self):
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(3, 8, 1), Linear(8), Linear(8)
        self.deep, self.norm = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8)
        self.left, self.right, self.after = nn.Conv2d(8, 4, 1, bias=False), nn.Conv2d(8, 4, 1), nn.Linear(4, 3)
        self.own = nn.BatchNorm2d(4)
        self.twice = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        x = self.second(self.first(self.stem(x)))
        x = F.relu(self.norm(self.deep(x)), inplace=True)
        x = x + 0 * self.twice(self.twice(x))
        return self.after((self.own(self.left(x)) + self.right(x)).mean((2, 3)))


def test_successors_are_the_next_layers_in_the_order_of_their_calls():
    network = Stream().eval()
    left = without(network, "first")
    before = {n: p.requires_grad for n, p in left.named_parameters()}
    found = successors(left, ["first"], (torch.randn(2, 3, 5, 5),))
    assert found == ["second.mix", "left", "right"]
    assert {n: p.requires_grad for n, p in left.named_parameters()} == before
    assert successors(without(network, "second"), ["second"], (torch.randn(2, 3, 5, 5),)) == found[1:]


def test_a_forward_runs_to_its_end():
    class Holding(nn.Sequential):
        def forward(self, x):
            self.held.append(x)
            out = super().forward(x)
            assert self.held.pop() is x
            return out

    network = Holding(*residual(READERS["plain"]())).eval()
    network.held, x = [], torch.randn(8, 3, 5, 5)
    left = without(network, "2")
    fitted(network, left, ["2"], x)
    assert network.held == left.held == []


@pytest.mark.parametrize("inplace", [True, False])
def test_a_norm_behind_an_activation_takes_no_mean(inplace):
    """In place the activation returns the very tensor that the layer gave."""
    torch.manual_seed(0)
    behind = [nn.Conv2d(8, 6, 1, bias=False), nn.ReLU(inplace), nn.BatchNorm2d(6)]
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), Linear(8), *behind).eval()
    left, _ = fitted(network, without(network, "2"), ["2"], torch.randn(16, 3, 5, 5))
    assert torch.equal(left[5].running_mean, network[5].running_mean)
    assert not torch.equal(left[3].weight, network[3].weight)


def test_a_gate_of_a_small_network_and_two_blocks():
    torch.manual_seed(0)
    network, x = gated_net().eval(), torch.rand(64, 1, 8, 8)
    left = without(network, "5", "6")
    with torch.no_grad():
        wanted, plain = network(x), F.mse_loss(left(x), network(x))
        fitted(network, left, ["5", "6"], x)
        assert successors(left, ["5", "6"], (x[:2],)) == ["8"]
        assert F.mse_loss(left(x), wanted) < 0.5 * plain
