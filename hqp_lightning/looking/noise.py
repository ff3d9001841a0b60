"""What INT8 would cost the dense network, layer by layer; no file is left."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from hqp_lightning import export
from hqp_lightning.board.arrays import bundle, cut
from hqp_lightning.core.calls import Call
from hqp_lightning.errors import ConfigurationError, ExportError
from hqp_lightning.loop.exportable import exportable, on_cpu, one_sample
from hqp_lightning.records import QuantizedLayer

__all__ = ["int8_noise"]

_JUDGED = 16  # samples of which the logits are compared


def int8_noise(network: nn.Module, calls: Sequence[Call]) -> tuple[tuple[QuantizedLayer, ...], float | None, str]:
    """Noise of the logits with each layer alone in INT8, and with all of them.

    Args:
        network: dense.
        calls: what it receives of some batches, on the CPU: they set the ranges.

    Returns:
        The layers, the whole, and why there is neither.
    """
    try:
        made = exportable(network, one_sample(calls[0], network))
        batches = [bundle([on_cpu(x).numpy() for x in call.tensors()]) for call in calls]
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the export of a run gives them
            path = Path(folder) / "model.onnx"
            example = [torch.nan_to_num(x) for x in made.example]
            export.export_onnx(made.module, example, path, inputs=made.inputs, outputs=made.outputs)
            threads = torch.get_num_threads()
            ranges = export.collect_ranges(path, batches, threads=threads)
            sample = cut(batches[0], 0, _JUDGED)
            alone = export.quantization_noise(path, ranges, sample, threads=threads)
            whole = export.look(path, ranges, sample, threads=threads)
    except (ConfigurationError, ExportError) as error:
        return (), None, f"INT8 was not looked at: {' '.join(str(error).split())}"
    return tuple(QuantizedLayer(n, v, "int8") for n, v in alone.items()), whole, ""
