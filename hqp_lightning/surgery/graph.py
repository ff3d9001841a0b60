"""The dependency graph of a network: coupled channel groups, and cuts. The only import of torch_pruning.

All of it happens on a *shadow*, a copy on the CPU; the live model is neither traced nor touched. Before a cut the
shadow's tensors are filled with their own flat indices, so that whatever torch-pruning does to them (grouped,
depthwise, transposed, unwrapped parameters) is read back exactly: the surviving indices are the cut.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from math import lcm

import torch
import torch_pruning as tp
from torch import Tensor, nn

from hqp_lightning.core.calls import Call
from hqp_lightning.errors import ConfigurationError, SurgeryError
from hqp_lightning.records import ChannelGroup, Consumer, Filters
from hqp_lightning.surgery.copying import copied, floating_tensors, on_cpu, training_shapes
from hqp_lightning.surgery.cost import layer_macs
from hqp_lightning.surgery.cut import Cut
from hqp_lightning.surgery.structure import record

__all__ = ["Shadow"]

_MIXING = (tp.ops.OPTYPE.CONV, tp.ops.OPTYPE.LINEAR)
_UNSUPPORTED = (tp.ops.OPTYPE.MHA, tp.ops.OPTYPE.LSTM, tp.ops.OPTYPE.EMBED, tp.ops.OPTYPE.GN)


class Shadow:
    """A traced copy of a network.

    Args:
        module: the network; it is copied, not changed.
        example: a call of it, or its inputs by place, for one or more samples.
        ignore: module names whose output channels must stay (the head is found without being told).

    Raises:
        ConfigurationError: the module can't be copied or traced, or ``ignore`` names no module.
    """

    def __init__(self, module: nn.Module, example: Call | Sequence[Tensor], ignore: Sequence[str] = ()) -> None:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
            self._example = on_cpu(example)
            self._module = copied(module)
            names = dict(self._module.named_modules())
            unknown = [n for n in ignore if n not in names]
            if unknown:
                raise ConfigurationError(f"ignore={unknown} names no module of the network; it has {_some(names)}.")
            self._ignored = {m for n in ignore for m in names[n].modules()}
            self._layers, self._output_shape, self._graph = self._trace()
        self._names = {m: n for n, m in names.items()}

    @property
    def macs(self) -> float:
        """MACs of the network for one sample."""
        return sum(self._layers.values())

    @property
    def params(self) -> int:
        """Number of parameters of the network."""
        return sum(p.numel() for p in self._module.parameters())

    def groups(self) -> tuple[ChannelGroup, ...]:
        """The coupled groups that may lose channels, in the order of the network; the head's is not among them."""
        return tuple(self._group(g) for g in self._prunable())

    def group_norms(self) -> dict[str, Tensor]:
        """Squared L2 norm of each gate's weights over the group's mean, by group name: the usual magnitude criterion.

        It is Torch-Pruning's ``GroupMagnitudeImportance`` as it stands; tied channels count by their mean.
        """
        norm, traced = tp.importance.GroupMagnitudeImportance(), list(self._prunable())
        groups = [self._group(t) for t in traced]
        return {g.name: norm(t).view(g.blocks, g.gates).mean(0) for g, t in zip(groups, traced, strict=True)}

    def cut(self, removed: Mapping[str, Sequence[int]]) -> Cut:
        """Prune the shadow, try it in eval and in training mode, and report what survived. A shadow serves one cut.

        Args:
            removed: group name to the channels to remove.

        Raises:
            SurgeryError: the pruned network would not run, or would change its output shape; or the channels are
                not a group's.
        """
        groups = {self._names[g[0].dep.target.module]: g for g in self._prunable()}
        missing = sorted(set(removed) - set(groups))
        if missing:
            raise SurgeryError(f"no prunable group is named {missing}; the network has {_some(groups)}.")
        for name, channels in removed.items():
            _check_channels(self._group(groups[name]), channels)
        counts = {n: len(c) for n, c in removed.items()}
        with torch.inference_mode(False), torch.autocast("cpu", enabled=False):
            training = training_shapes(self._module, self._example)
            try:
                kept = self._prune({groups[n]: list(c) for n, c in removed.items() if c})
                structure = record(self._module)
                layers, shape = layer_macs(self._module, self._example)
            except Exception as error:
                raise SurgeryError(f"pruning {counts} would break the network: {error}") from error
            if shape != self._output_shape:
                raise SurgeryError(f"pruning {counts} would change the output from {self._output_shape} to {shape}.")
            if training is not None and training_shapes(self._module, self._example) != training:
                raise SurgeryError(
                    f"pruning {counts} would break the network in training mode, where it worked before."
                )
        return Cut(kept, structure, sum(layers.values()), self.params)

    def _prune(self, removed: Mapping[tp.Group, list[int]]) -> dict[str, Tensor]:
        """Prune the shadow; returns the flat indices that survive of every tensor."""
        values = {n: t.detach().clone() for n, t in floating_tensors(self._module)}
        for _, t in floating_tensors(self._module):
            t.data = torch.arange(t.numel(), dtype=torch.float64).view(t.shape)
        for group, channels in removed.items():
            group.prune(channels)
        kept = {n: t.detach().long() for n, t in floating_tensors(self._module)}
        for n, t in floating_tensors(self._module):
            t.data = values[n].flatten()[kept[n]]
        return kept

    def _trace(self) -> tuple[dict[str, float], tuple[tuple[int, ...], ...], tp.DependencyGraph]:
        graph = tp.DependencyGraph()
        try:
            layers, shape = layer_macs(self._module, self._example)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                graph.build_dependency(self._module, self._example, lambda m, call: call.on(m), verbose=False)
        except Exception as error:
            raise ConfigurationError(
                f"could not run and trace {type(self._module).__name__} with inputs of shape "
                f"{list(self._example.shapes())}: {error}"
            ) from error
        return layers, shape, graph

    def _prunable(self) -> Iterator[tp.Group]:
        for group in self._graph.get_all_groups(
            ignored_layers=list(self._ignored), root_module_types=[nn.Conv2d, nn.Linear]
        ):
            if not self._writes_output(group) and _consistent(group) and self._consumers(group):
                yield group

    def _writes_output(self, group: tp.Group) -> bool:
        """Whether pruning would remove network outputs: the group is a head's."""
        for dep, _ in group:
            out = self._graph.is_out_channel_pruning_fn(dep.handler)
            if dep.target.type == tp.ops.OPTYPE.OUTPUT or (out and not dep.target.outputs):
                return True
        return False

    def _consumers(self, group: tp.Group) -> tuple[Consumer, ...]:
        readers = []
        for item in group:
            node = item.dep.target
            if (
                node.type in _MIXING
                and item.dep.handler == self._graph.get_pruner_of_module(node.module).prune_in_channels
            ):
                readers.append(Consumer(self._names[node.module], tuple(item.idxs), tuple(item.root_idxs)))
        return tuple(readers)

    def _group(self, group: tp.Group) -> ChannelGroup:
        root = group[0].dep.target.module
        channels = len(group[0].idxs)
        filters, blocks, macs = [], 1, 0.0
        for item in group:
            layer, name = item.dep.target.module, self._names.get(item.dep.target.module, "")
            if name not in self._layers:
                continue
            reads = (
                item.dep.target.type in _MIXING
                and item.dep.handler == self._graph.get_pruner_of_module(layer).prune_in_channels
            )
            width = _width(layer, reads)
            macs += self._layers[name] * len(item.idxs) / width / channels
            if item.dep.target.type == tp.ops.OPTYPE.CONV:
                blocks = lcm(blocks, layer.groups)
            if not reads:
                keys = ["weight"] if layer.bias is None else ["weight", "bias"]
                filters += [Filters(f"{name}.{k}", 0, tuple(item.idxs), tuple(item.root_idxs)) for k in keys]
        return ChannelGroup(self._names[root], channels, self._consumers(group), tuple(filters), macs, blocks)


def _consistent(group: tp.Group) -> bool:
    """Whether the group can be cut by channel: supported layers, and grouped convolutions aligned with the root."""
    for item in group:
        node = item.dep.target
        if node.type in _UNSUPPORTED:
            return False
        if node.type == tp.ops.OPTYPE.CONV and node.module.groups > 1 and list(item.idxs) != list(item.root_idxs):
            return False
    return True


def _width(layer: nn.Module, reads: bool) -> int:
    if isinstance(layer, nn.Linear):
        return layer.in_features if reads else layer.out_features
    return int(getattr(layer, "in_channels" if reads else "out_channels"))


def _check_channels(group: ChannelGroup, channels: Sequence[int]) -> None:
    chosen = set(channels)
    outside = sorted(c for c in chosen if not 0 <= c < group.channels)
    if outside or len(chosen) == group.channels:
        raise SurgeryError(
            f"group {group.name!r} has channels 0 to {group.channels - 1}, of which one must stay; "
            f"got {f'{outside[:5]}' if outside else 'all of them'}."
        )
    torn = [c for c in chosen if any(k not in chosen for k in range(c % group.gates, group.channels, group.gates))]
    if torn:
        tied = tuple(range(torn[0] % group.gates, group.channels, group.gates))
        raise SurgeryError(f"a grouped convolution ties channels {tied} of group {group.name!r}: remove all or none.")


def _some(names: Mapping[str, object]) -> str:
    shown = [n for n in names if n]
    return ", ".join(shown[:12]) + (", ..." if len(shown) > 12 else "")
