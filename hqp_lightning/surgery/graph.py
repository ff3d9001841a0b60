"""The dependency graph of a network: coupled channel groups, and cuts. The only import of torch_pruning.

All of it happens on a *shadow*, a copy on the CPU; the live model is neither traced nor touched. Before a cut the
shadow's tensors are filled with their own flat indices, so that whatever torch-pruning does to them (grouped, depthwise,
transposed, unwrapped parameters) is read back exactly: the surviving indices are the cut.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import lcm

import torch
import torch_pruning as tp
from torch import Tensor, nn

from hqp_lightning.errors import ConfigurationError, SurgeryError
from hqp_lightning.records import ChannelGroup, Consumer, Filters
from hqp_lightning.surgery.cost import layer_macs
from hqp_lightning.surgery.structure import Structure, record

__all__ = ["Cut", "Shadow"]

_MIXING = (tp.ops.OPTYPE.CONV, tp.ops.OPTYPE.LINEAR)
_UNSUPPORTED = (tp.ops.OPTYPE.MHA, tp.ops.OPTYPE.LSTM, tp.ops.OPTYPE.EMBED, tp.ops.OPTYPE.GN)


@dataclass(frozen=True)
class Cut:
    """What a prune does to a model, ready to be applied: see :func:`hqp_lightning.surgery.cut.apply_cut_`.

    Attributes:
        kept: parameter or buffer name to the flat indices (into the old tensor) of what survives, of the new shape.
        structure: the structure afterwards.
        macs: MACs afterwards, for one sample.
        params: number of parameters afterwards.
    """

    kept: Mapping[str, Tensor]
    structure: Structure
    macs: float
    params: int


class Shadow:
    """A traced copy of a network.

    Args:
        module: the network; it is copied, not changed.
        example: its positional inputs, for one or more samples.
        ignore: module names whose output channels must stay (the head is found without being told).

    Raises:
        ConfigurationError: the module can't be copied or traced, or ``ignore`` names no module.
    """

    def __init__(self, module: nn.Module, example: Sequence[Tensor], ignore: Sequence[str] = ()) -> None:
        self._example = tuple(_to_cpu(x)[:2] if isinstance(x, Tensor) else x for x in example)
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
            self._module = _copy(module)
            names = dict(self._module.named_modules())
            unknown = [n for n in ignore if n not in names]
            if unknown:
                raise ConfigurationError(f"ignore={unknown} names no module of the network; it has {_some(names)}.")
            self._ignored = {m for n in ignore for m in names[n].modules()}
            self._layers, self._output_shape = layer_macs(self._module, self._example)
            self._graph = self._trace()
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

    def cut(self, removed: Mapping[str, Sequence[int]]) -> Cut:
        """Prune the shadow and report what survived. A shadow serves one cut.

        Args:
            removed: group name to the channels to remove.

        Raises:
            SurgeryError: the pruned network would not run, or would change its output shape.
        """
        values = {n: t.detach().clone() for n, t in _floating(self._module)}
        groups = {self._names[g[0].dep.target.module]: g for g in self._prunable()}
        missing = sorted(set(removed) - set(groups))
        if missing:
            raise SurgeryError(f"no prunable group is named {missing}; the network has {_some(groups)}.")
        try:
            for _, t in _floating(self._module):
                t.data = torch.arange(t.numel(), dtype=torch.float64).view(t.shape)
            for name, channels in removed.items():
                if channels:
                    groups[name].prune(list(channels))
            kept = {n: t.detach().long() for n, t in _floating(self._module)}
            for n, t in _floating(self._module):
                t.data = values[n].flatten()[kept[n]]
            with torch.no_grad(), torch.inference_mode(False), torch.autocast("cpu", enabled=False):
                layers, shape = layer_macs(self._module, self._example)
        except Exception as error:
            raise SurgeryError(f"pruning {dict(_counts(removed))} would break the network: {error}") from error
        if shape != self._output_shape:
            raise SurgeryError(f"pruning {dict(_counts(removed))} would change the output from {self._output_shape} to {shape}.")
        return Cut(kept, record(self._module), sum(layers.values()), self.params)

    def _trace(self) -> tp.DependencyGraph:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return tp.DependencyGraph().build_dependency(self._module, self._example, verbose=False)
        except Exception as error:
            raise ConfigurationError(
                f"torch-pruning could not trace {type(self._module).__name__} with inputs of shape "
                f"{[tuple(x.shape) for x in self._example if isinstance(x, Tensor)]}: {error}"
            ) from error

    def _prunable(self) -> Iterator[tp.Group]:
        for group in self._graph.get_all_groups(ignored_layers=list(self._ignored), root_module_types=[nn.Conv2d, nn.Linear]):
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
            if node.type in _MIXING and item.dep.handler == self._graph.get_pruner_of_module(node.module).prune_in_channels:
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
            reads = item.dep.target.type in _MIXING and item.dep.handler == self._graph.get_pruner_of_module(layer).prune_in_channels
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
    return layer.in_channels if reads else layer.out_channels


def _copy(module: nn.Module) -> nn.Module:
    guard = getattr(module, "_prevent_trainer_and_dataloaders_deepcopy", None)
    try:
        if guard is None:
            shadow = copy.deepcopy(module)
        else:
            with guard():
                shadow = copy.deepcopy(module)
    except Exception as error:
        raise ConfigurationError(
            f"{type(module).__name__} can't be copied, which planning a prune needs: {error}. "
            "Don't keep tensors with a graph, open files or loaders on the module, or name the network with module=..."
        ) from error
    return shadow.cpu().float().eval().requires_grad_(True)


def _floating(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, t in [*module.named_parameters(), *module.named_buffers()]:
        if t.is_floating_point():
            yield name, t


def _to_cpu(x: Tensor) -> Tensor:
    return x.detach().cpu().float().clone() if x.is_floating_point() else x.detach().cpu().clone()


def _counts(removed: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, int]]:
    return ((n, len(c)) for n, c in removed.items())


def _some(names: Mapping[str, object]) -> str:
    shown = [n for n in names if n]
    return ", ".join(shown[:12]) + (", ..." if len(shown) > 12 else "")
