"""The export tried on the network as it stands before the training: what can't be written is told then, by name."""

from __future__ import annotations

import tempfile
import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from hqp_lightning import export
from hqp_lightning.core.calls import OneTensor, Tensors
from hqp_lightning.errors import ConfigurationError, ExportError
from hqp_lightning.export.engines import Engine, OnnxRuntimeBackend
from hqp_lightning.loop.batches import batches, prepared
from hqp_lightning.loop.calls import Receiver, step_arguments
from hqp_lightning.loop.exportable import Exportable, exportable, one_sample
from hqp_lightning.loop.network import find_network
from hqp_lightning.loop.options import ExportOptions
from hqp_lightning.loop.trainer import load_validation
from hqp_lightning.loop.untouched import fixed_seed, untouched
from hqp_lightning.shipping.standing_in import running_on

__all__ = ["CALIBRATION_SEED", "check_exportable"]

CALIBRATION_SEED = 0


def check_exportable(trainer: Trainer, pl_module: LightningModule, path: str | None, options: ExportOptions) -> None:
    """Write a copy of the network as ONNX and INT8 into a folder of its own, and load both; nothing is left of it.

    Raises:
        ConfigurationError: the network takes or returns what is no batch of tensors, is not called, or can't be
            written; the message names the module and the operator. Or a batch for the calibration leads to no call,
            or validation needs an output that is not to be written.
    """
    prefix, network = find_network(pl_module, path)
    load_validation(trainer)
    of = trainer, pl_module, network, options.loss_fn
    receiver = Receiver(*of)
    with fixed_seed(), torch.no_grad():
        batch = next(prepared(trainer, pl_module, "val", 1, CALIBRATION_SEED), None)
        if batch is None:
            return
        call = receiver.call(batch)
        made = exportable(network, one_sample(call, network), options.outputs, options.layout)
        next(batches(*of, options.calibration_data, 1, CALIBRATION_SEED, call), None)  # fails now, or never

        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the export itself gives them again
            try:
                engine = _rehearse(made, Path(folder))
            except ExportError as error:
                reason = str(error).replace(f"{folder}/", "")
                raise ConfigurationError(
                    f"Int8Export can't write {type(network).__name__} as ONNX: {reason}."
                    f"{_culprit(prefix, made, error)} Replace what can't be written, name the part of the "
                    "network that can with module=..., or leave Int8Export out: HQPPruning works without it."
                ) from error
            with engine:
                if options.outputs is not None:  # those that are left out may be missed
                    _validate(trainer, pl_module, batch, running_on(receiver.way, engine, made))


def _rehearse(made: Exportable, folder: Path) -> Engine:
    """All that may depend on the operators; ranges need data, so that any will do."""
    example = [torch.nan_to_num(x) for x in made.example]
    path = folder / "model.onnx"
    written = export.export_onnx(made.module, example, path, inputs=made.inputs, outputs=made.outputs)
    ranges = {name: export.Range.symmetric(1.0) for name in export.quantized_tensors(written.path)}
    int8 = export.quantize(written.path, ranges, folder / "model.int8.onnx")
    return OnnxRuntimeBackend().build(int8.path, "int8", folder)


def _validate(
    trainer: Trainer, pl_module: LightningModule, batch: Any, standing_in: AbstractContextManager[None]
) -> None:
    step = pl_module.validation_step
    try:
        with untouched(trainer, pl_module), standing_in:
            step(*step_arguments(step, batch, 0))
    except ExportError as error:
        raise ConfigurationError(f"{error}.") from error


def _culprit(prefix: str, made: Exportable, error: ExportError) -> str:
    name, module = export.failing_module(made.module, made.example, error)
    if isinstance(made.module, (OneTensor, Tensors)):
        name = name.removeprefix("network").removeprefix(".")
    return f" It is {'.'.join(filter(None, (prefix, name)))!r} ({type(module).__name__})." if name else ""
