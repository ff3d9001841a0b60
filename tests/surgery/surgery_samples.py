"""Cuts to try, for the tests of this folder."""

import copy

import torch

from hqp_lightning.surgery import Shadow, apply_cut_

EXAMPLE = torch.zeros(2, 3, 32, 32)


def some_channels(groups, fraction=0.4, seed=0):
    """Random gates of every group, with all the channels tied to them."""
    generator = torch.Generator().manual_seed(seed)
    removed = {}
    for g in groups:
        gates = torch.randperm(g.gates, generator=generator)[: int(g.gates * fraction)].tolist()
        removed[g.name] = tuple(sorted(k + b * g.gates for k in gates for b in range(g.blocks)))
    return removed


def plan(network, fraction=0.4, seed=0, example=EXAMPLE):
    """(groups, removed channels, cut) of a network as it stands."""
    shadow = Shadow(network, [example])
    groups = shadow.groups()
    removed = some_channels(groups, fraction, seed)
    return groups, removed, shadow.cut(removed)


def pruned_copy(network, **options):
    """A pruned copy."""
    twin = copy.deepcopy(network)
    apply_cut_(twin, plan(network, **options)[2])
    return twin
