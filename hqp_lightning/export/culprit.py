"""Which module of a network keeps it from being exported."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hqp_lightning.errors import ExportError
from hqp_lightning.export.onnx import export_onnx

__all__ = ["failing_module"]


def failing_module(network: nn.Module, example: Sequence[Tensor], error: ExportError) -> tuple[str, nn.Module]:
    """The innermost module that fails alone as the whole network does, and its qualified name (``""``: the network).

    Every module on the way is exported by itself, with the input that it gets. One that takes several inputs, or
    fails for another reason, is passed over.

    Args:
        network: what `export_onnx` could not write.
        example: its inputs.
        error: what that raised.
    """
    inputs = _inputs(network, example)
    name, module = "", network
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "part.onnx"

        def fails(part: str) -> bool:
            try:
                export_onnx(network.get_submodule(part), inputs[part], path)
            except ExportError as other:
                return _without_names(other) == _without_names(error)
            return False

        while True:
            parts = (f"{name}.{child}" if name else child for child, _ in module.named_children())
            inner = next((p for p in parts if p in inputs and fails(p)), None)
            if inner is None:
                return name, module
            name, module = inner, network.get_submodule(inner)


def _inputs(network: nn.Module, example: Sequence[Tensor]) -> Mapping[str, Tensor]:
    """What every module is called with, by name; only calls with one tensor by place."""
    found: dict[str, Tensor] = {}

    def note(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if len(args) == 1 and isinstance(args[0], Tensor) and args[0].dim() and not kwargs:
            found.setdefault(name, args[0].detach())

    handles = [
        module.register_forward_pre_hook(lambda _, args, kwargs, n=name: note(n, args, kwargs), with_kwargs=True)
        for name, module in network.named_modules()
        if name
    ]
    try:
        with torch.no_grad():
            network(*example)
    except Exception:  # the network itself fails: what ran until then was seen
        pass
    finally:
        for handle in handles:
            handle.remove()
    return found


def _without_names(error: ExportError) -> str:
    """What is said behind the file's and the module's names, up to its figures."""
    return str(error).rpartition(".onnx")[2].partition("(")[0]
