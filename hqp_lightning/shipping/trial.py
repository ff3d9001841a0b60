"""The export tried on the network as it stands before the training: what can't be written is told then, by name."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from hqp_lightning import export
from hqp_lightning.core.calls import Call, OneTensor
from hqp_lightning.errors import ConfigurationError, ExportError
from hqp_lightning.export.engines import OnnxRuntimeBackend
from hqp_lightning.loop.batches import batches
from hqp_lightning.loop.network import find_network
from hqp_lightning.loop.options import ExportOptions
from hqp_lightning.loop.trainer import load_validation
from hqp_lightning.loop.untouched import fixed_seed
from hqp_lightning.surgery.copying import copied

__all__ = ["CALIBRATION_SEED", "check_exportable", "exportable", "on_cpu"]

CALIBRATION_SEED = 0


def check_exportable(trainer: Trainer, pl_module: LightningModule, path: str | None, options: ExportOptions) -> None:
    """Write a copy of the network as ONNX and INT8 into a folder of its own, and load both; nothing is left of it.

    Raises:
        ConfigurationError: the network takes or returns something else than one tensor, is not called, or can't be
            written; the message names the module and the operator. Or a batch for the calibration leads to no call.
    """
    prefix, network = find_network(pl_module, path)
    load_validation(trainer)
    of = trainer, pl_module, network, options.loss_fn
    with fixed_seed(), torch.no_grad():
        call = next(batches(*of, "val", 1, CALIBRATION_SEED), None)
        if call is None:
            return
        twin, example = exportable(network, call.map(lambda x: x[:1] if x.dim() else x))
        next(batches(*of, options.calibration_data, 1, CALIBRATION_SEED, call), None)  # fails now, or never
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the export itself gives them again
            try:
                _rehearse(twin, torch.nan_to_num(example), Path(folder))
            except ExportError as error:
                reason = str(error).replace(f"{folder}/", "")
                raise ConfigurationError(
                    f"Int8Export can't write {type(network).__name__} as ONNX: {reason}."
                    f"{_culprit(prefix, twin, example, error)} Replace what can't be written, name the part of the "
                    "network that can with module=..., or leave Int8Export out: HQPPruning works without it."
                ) from error


def exportable(network: nn.Module, call: Call) -> tuple[nn.Module, Tensor]:
    """A float32 copy of the network on the CPU, a function of one tensor, and the tensor of the call.

    A copy, so that any precision of the training can be written, and what was compiled or hooked in stays behind.

    Raises:
        ConfigurationError: the call has not one tensor, or does not return one.
    """
    twin, call = copied(network), call.map(on_cpu)
    tensors = call.tensors()
    out = call.on(twin) if len(tensors) == 1 else None
    if len(tensors) != 1 or not isinstance(out, Tensor):
        returns = "" if len(tensors) != 1 else f" and returns a {type(out).__name__}"
        raise ConfigurationError(
            f"Int8Export writes networks of one input and one output tensor; {type(network).__name__} is called with "
            f"{len(tensors)} inputs{returns}. Name the part that is one with module=..., or leave Int8Export out: "
            "HQPPruning alone works with a loss_fn."
        )
    if len(call.args) == 1 and call.args[0] is tensors[0] and not call.kwargs:
        return twin, tensors[0]
    return OneTensor(twin, call).eval(), tensors[0]


def on_cpu(x: Tensor) -> Tensor:
    """On the CPU; floats in float32, bytes as they are."""
    return x.detach().cpu().float() if x.is_floating_point() else x.detach().cpu()


def _rehearse(twin: nn.Module, example: Tensor, folder: Path) -> None:
    """All that may depend on the operators; ranges need data, so that any will do."""
    written = export.export_onnx(twin, example, folder / "model.onnx")
    ranges = {name: export.Range.symmetric(1.0) for name in export.quantized_tensors(written.path)}
    int8 = export.quantize(written.path, ranges, folder / "model.int8.onnx")
    OnnxRuntimeBackend().build(int8.path, "int8", folder).close()


def _culprit(prefix: str, twin: nn.Module, example: Tensor, error: ExportError) -> str:
    name, module = export.failing_module(twin, example, error)
    if isinstance(twin, OneTensor):
        name = name.removeprefix("network").removeprefix(".")
    return f" It is {'.'.join(filter(None, (prefix, name)))!r} ({type(module).__name__})." if name else ""
