"""Torch-pruning's criteria, for the channels of our groups."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn import functional as F

from hqp_lightning.core.fisher import FisherState, compute, merge, weight_fisher


def losses(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y, reduction="none")


def torch_pruned(
    model: nn.Module, groups: Sequence, kind: str, x: Tensor, alike: bool = False, raw: bool = False
) -> dict[str, Tensor]:
    """Torch-pruning's importance ``kind`` of each gate.

    ``alike``: its place among groups with the same layers; ``raw``: not divided by the mean of its group.
    """
    found, kinds, gradients = {}, {}, {p: p.grad for p in model.parameters()}
    importance = getattr(tp.importance, f"Group{kind}Importance")(**({"normalizer": None} if raw else {}))
    graph = tp.DependencyGraph().build_dependency(model, x)
    model.eval()
    for p, grad in gradients.items():
        p.grad = grad  # the tracing has its own
    for g in groups:
        root = model.get_submodule(g.name)
        group = graph.get_pruning_group(
            root, graph.get_pruner_of_module(root).prune_out_channels, list(range(g.channels))
        )
        found[g.name] = importance(group).view(g.blocks, g.gates).mean(0)
        layers = [(type(d.target.module), graph.is_out_channel_pruning_fn(d.handler)) for d, _ in group]
        kinds.setdefault(str(layers), []).append(g.name)
    if alike:
        for names in kinds.values():
            places = torch.cat([found[n] for n in names]).argsort().argsort().float()
            places /= len(places)
            found |= dict(zip(names, places.split([len(found[n]) for n in names]), strict=True))
    return found


def with_gradients(model: nn.Module, data: Sequence, squared: bool) -> nn.Module:
    """A copy with what torch-pruning looks at: gradients of the loss, or their squares per sample."""
    model = copy.deepcopy(model)
    if not squared:
        for x, y in data:
            (F.cross_entropy(model(x), y, reduction="sum") / sum(len(y) for _, y in data)).backward()
        return model
    state, layers = FisherState(), [n for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    for x, y in data:
        state = merge(state, weight_fisher(model, layers, partial(losses, model, x, y)))
    for name, value in compute(state).items():
        model.get_parameter(name).grad = value
    return model
