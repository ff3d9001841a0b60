"""The parts of a network as its ONNX file has them: which node belongs to which layer, module and channels."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence

import onnx

from hqp_lightning.board.parts import part_of
from hqp_lightning.errors import ExportError
from hqp_lightning.export.artifact import load_model
from hqp_lightning.export.counters import Executed
from hqp_lightning.records import Part

__all__ = ["Naming", "naming"]

_LAYERS = ("Conv", "Gemm", "MatMul")
_REACH = 40  # nodes that are looked at, going up, for layers that write what a node reads


class Naming:
    """Names of the parts of one file.

    Args:
        layers: node name to layer name.
        scopes: layer name to the scope of its node, split.
        graph: of the float file.
    """

    def __init__(self, layers: Mapping[str, str], graph: onnx.GraphProto) -> None:
        self._layers, self._nodes = dict(layers), {n.name: n for n in graph.node}
        self._writers = {o: n for n in graph.node for o in n.output}
        self._scopes = {layer: _scope(node) for node, layer in layers.items()}

    @property
    def nodes(self) -> dict[str, str]:
        """Names of nodes and of the tensors that they write, to parts: a layer's name, or the node's own."""
        found = {name: self._layers.get(name, name) for name in self._nodes}
        return {**found, **{tensor: found[node.name] for tensor, node in self._writers.items()}}

    def totals(self, executed: Iterable[Executed]) -> dict[str, float]:
        """Milliseconds by part; what can't be told apart goes to none."""
        found: dict[str, float] = {}
        nodes, layers = self.nodes, set(self._layers.values())
        for names, ms in executed:
            if (name := part_of(names, nodes, layers)) is not None:
                found[name] = found.get(name, 0.0) + ms
        return found

    def part(self, name: str, per_channel: Mapping[str, bool]) -> Part:
        """The part of a name that `totals` gave.

        Args:
            name: of it.
            per_channel: layer name to whether it is no full convolution or linear layer.
        """
        if name in per_channel:
            return Part(name, (name,), per_channel[name])
        return Part(self._module(name), self._above(name) or tuple(per_channel)[:1])

    def _above(self, name: str) -> tuple[str, ...]:
        """The layers above a node, nearest first."""
        found: list[str] = []
        seen: set[str] = set()
        waiting = list(self._nodes[name].input)
        while waiting and len(seen) < _REACH:
            writer = self._writers.get(waiting.pop(0))
            if writer is None or writer.name in seen:
                continue
            seen.add(writer.name)
            if writer.name in self._layers and self._layers[writer.name] not in found:
                found.append(self._layers[writer.name])
            waiting.extend(writer.input)
        return tuple(found)

    def _module(self, name: str) -> str:
        """The module that a node lies in, as far as it holds layers: scopes of nodes are the calls of modules."""
        scope, best = _scope(name), ""
        for layer, other in self._scopes.items():
            same = 0
            while same < min(len(scope), len(other)) and scope[same] == other[same]:
                same += 1
            steps = layer.split(".")
            around = ".".join(steps[: same - (len(other) - len(steps))])
            best = max(best, around, key=lambda module: module.count(".") + bool(module))
        return best


def naming(float_path: str | os.PathLike[str], called: Sequence[str]) -> Naming:
    """Match the layers of a network with the nodes of its file.

    Args:
        float_path: from `export_onnx`.
        called: names of convolutions and linear layers, in the order of their calls.

    Raises:
        ExportError: the file has more or fewer of them.
    """
    graph = load_model(float_path).graph
    stored = {i.name for i in graph.initializer}
    nodes = [n.name for n in graph.node if n.op_type in _LAYERS and n.input[1] in stored]
    if len(nodes) != len(called):
        raise ExportError(
            f"the network calls {len(called)} convolutions and linear layers, {float_path} has {len(nodes)}: which is "
            "which can't be told"
        )
    return Naming(dict(zip(nodes, called, strict=True)), graph)


def _scope(node: str) -> list[str]:
    return node.strip("/").split("/")[:-1]
