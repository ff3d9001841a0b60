"""From a module to a calibrated INT8 file and timed engines. Does not import Lightning.

Calibration and quantization of a file that is there need no torch, and do not import it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hqp_lightning.core.calibration import Range
from hqp_lightning.export.artifact import describe
from hqp_lightning.export.board_files import board_files, write_program
from hqp_lightning.export.costing import float_order
from hqp_lightning.export.manifest import data_sha256, read_manifest, write_manifest
from hqp_lightning.export.paying import unprofitable
from hqp_lightning.export.placement import Placement, placements, quantized_tensors
from hqp_lightning.export.quantize import quantize
from hqp_lightning.export.ranges import DEFAULT_METHOD, collect_ranges
from hqp_lightning.export.references import REFERENCES, write_references
from hqp_lightning.export.sensitivity import look, quantization_noise

if TYPE_CHECKING:
    from hqp_lightning.export.culprit import failing_module
    from hqp_lightning.export.layers import input_ranges
    from hqp_lightning.export.onnx import export_onnx

__all__ = [
    "DEFAULT_METHOD",
    "REFERENCES",
    "Placement",
    "Range",
    "board_files",
    "collect_ranges",
    "data_sha256",
    "describe",
    "export_onnx",
    "failing_module",
    "float_order",
    "input_ranges",
    "look",
    "placements",
    "quantization_noise",
    "quantize",
    "quantized_tensors",
    "read_manifest",
    "unprofitable",
    "write_manifest",
    "write_program",
    "write_references",
]
_WITH_TORCH = {"export_onnx": "onnx", "failing_module": "culprit", "input_ranges": "layers"}


def __getattr__(name: str) -> Any:
    """Import what works on modules when it is asked for."""
    if name not in _WITH_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WITH_TORCH[name]}"), name)
