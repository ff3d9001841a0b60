"""From a module to a calibrated INT8 file and timed engines. Does not import Lightning."""

from hqp_lightning.export.board_files import board_files, write_program
from hqp_lightning.export.manifest import data_sha256, read_manifest, write_manifest
from hqp_lightning.export.onnx import describe, export_onnx
from hqp_lightning.export.placement import Placement, placements, quantized_tensors
from hqp_lightning.export.quantize import DEFAULT_METHOD, collect_ranges, quantize
from hqp_lightning.export.sensitivity import quantization_noise
from hqp_lightning.export.steps import input_steps

__all__ = [
    "DEFAULT_METHOD",
    "Placement",
    "board_files",
    "collect_ranges",
    "data_sha256",
    "describe",
    "export_onnx",
    "input_steps",
    "placements",
    "quantization_noise",
    "quantize",
    "quantized_tensors",
    "read_manifest",
    "write_manifest",
    "write_program",
]
