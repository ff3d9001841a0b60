"""The graph of an ONNX file with the standard library alone: nodes, what they read, and the types of stored tensors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hqp_lightning.errors import ExportError

__all__ = ["FLOAT", "FLOAT16", "Graph", "Node", "read_graph"]

FLOAT, FLOAT16 = 1, 10  # of TensorProto.DataType


class Node(NamedTuple):
    """A node of the graph; ``integers`` are its attributes of type INT, by name."""

    name: str
    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    integers: dict[str, int]


class Graph(NamedTuple):
    """Nodes in the order of the file, and of every stored tensor its type and shape."""

    nodes: tuple[Node, ...]
    stored: dict[str, tuple[int, tuple[int, ...]]]


def read_graph(onnx: Path) -> Graph:
    """Read a file's graph; the weights themselves are passed over.

    Raises:
        ExportError: no such file, or not ONNX.
    """
    try:
        data = memoryview(onnx.read_bytes())
        graph = next(value for field, value in _fields(data) if field == 7)
        nodes, stored = [], {}
        for field, value in _fields(graph):
            if field == 1:
                nodes.append(_node(value))
            elif field == 5:
                parts = list(_fields(value))
                name = _text(next(v for k, v in parts if k == 8))
                kind = next((v for k, v in parts if k == 2), 0)
                stored[name] = kind, tuple(_sizes(parts))
        return Graph(tuple(nodes), stored)
    except FileNotFoundError:
        raise ExportError(f"no ONNX file at {onnx}") from None
    except (IndexError, ValueError, StopIteration, TypeError, AttributeError) as error:
        raise ExportError(f"{onnx} is not a readable ONNX file: {error or 'it has no graph'}") from error


def _node(data: memoryview) -> Node:
    texts: dict[int, list[str]] = {1: [], 2: [], 3: [], 4: []}
    integers = {}
    for field, value in _fields(data):
        if field in texts:
            texts[field].append(_text(value))
        elif field == 5:
            attribute = dict(_fields(value))
            if 3 in attribute:
                integers[_text(attribute[1])] = attribute[3]
    return Node("".join(texts[3]), "".join(texts[4]), tuple(texts[1]), tuple(texts[2]), integers)


def _sizes(parts: list) -> Iterator[int]:
    for field, value in parts:
        if field == 1 and isinstance(value, int):
            yield value
        elif field == 1:  # packed
            at = 0
            while at < len(value):
                size, at = _varint(value, at)
                yield size


def _text(value: memoryview) -> str:
    return bytes(value).decode()


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """Number and content (an integer or bytes) of each field of a message: protobuf's wire format."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        field, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield field, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + size > len(data):
            raise ValueError("it ends too early")
        yield field, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
