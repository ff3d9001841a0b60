"""The kernels that NVIDIA's compiler made, out of its own log: an engine for another GPU cannot be asked here."""

from __future__ import annotations

import json
import re
from typing import Any

from hqp_lightning.errors import ExportError

__all__ = ["BEGIN", "inspection_of", "kernel_count", "moved_bytes"]

BEGIN = "Layers:"  # how the message begins that lists them, at VERBOSE and with detailed profiling
_ROW = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: \[(?P<Inputs>.*)\], Constants: \[(?P<Constants>.*)\], "
    r"Outputs: \[(?P<Outputs>.*)\], TacticName: ",
    re.MULTILINE,
)
_TENSOR = re.compile(r"\{ Name: .*?, Dimensions: \[([-\d,]*)\], .*?Datatype: (\w+), Format: (.*?) ?\}")
_SUFFIX = re.compile(r"_myl\d+_\d+$")  # of the compiler's block and the place in it, behind the model's own name
_BYTES = {"Float": 4, "Int32": 4, "Half": 2, "BFloat16": 2, "Int64": 8}  # all others have one
_HOST = "shape_call"  # sizes, worked out on the CPU: no kernel


def inspection_of(message: str) -> str:
    """Turn the compiler's list of layers into the JSON that the engine inspector would give on the GPU.

    Args:
        message: the one of the log that begins with `BEGIN`.

    Raises:
        ExportError: it lists nothing, as if another release wrote it in other words.

    Examples:
        >>> tensor = "{ Name: t, Dimensions: [1,8], Strides: [8,1], Datatype: Int8, Format: (Linear) }"
        >>> ends = f"Inputs: [ {tensor}], Constants: [], Outputs: [ {tensor}], TacticName: , StreamId: 0, Metadata: "
        >>> read = json.loads(inspection_of(f"Name: /fc/Gemm_myl0_3, LayerType: gemm, {ends}"))["Layers"][0]
        >>> read["Name"], read["Inputs"]
        ('/fc/Gemm', [{'Dimensions': [1, 8], 'Datatype': 'Int8', 'Format': '(Linear)'}])
    """
    rows = [
        {
            "Name": _SUFFIX.sub("", row["name"]),
            "LayerType": row["kind"],
            **{key: _tensors(row[key]) for key in ("Inputs", "Constants", "Outputs")},
        }
        for row in _ROW.finditer(message)
    ]
    if not rows:
        raise ExportError("the compiler listed no kernels, or in words that this version does not know")
    return json.dumps({"Layers": rows}, indent=1)


def kernel_count(inspection: str) -> int:
    """How many kernels one call starts."""
    return len(_kernels(inspection))


def moved_bytes(inspection: str) -> int:
    """Bytes that the kernels of one call read and write, weights too; dynamic sizes count as one."""
    total = 0
    for row in _kernels(inspection):
        for tensor in (*row["Inputs"], *row.get("Constants", ()), *row["Outputs"]):
            values = 1
            for size in tensor["Dimensions"]:
                values *= abs(size)
            total += values * _BYTES.get(tensor["Datatype"], 1)
    return total


def _kernels(inspection: str) -> list[dict[str, Any]]:
    return [row for row in json.loads(inspection)["Layers"] if row["LayerType"] != _HOST]


def _tensors(text: str) -> list[dict[str, Any]]:
    return [
        {"Dimensions": [int(k) for k in sizes.split(",") if k], "Datatype": kind, "Format": form}
        for sizes, kind, form in _TENSOR.findall(text)
    ]
