"""Runtimes behind one interface; none of them is imported before it is asked to build."""

from hqp_lightning.export.engines.base import Backend, Engine, latencies, processor_name
from hqp_lightning.export.engines.onnxruntime import OnnxRuntimeBackend
from hqp_lightning.export.engines.openvino import OpenVINOBackend
from hqp_lightning.export.engines.tensorrt import TensorRTBackend

__all__ = [
    "Backend",
    "Engine",
    "OnnxRuntimeBackend",
    "OpenVINOBackend",
    "TensorRTBackend",
    "backends",
    "latencies",
    "processor_name",
]


def backends() -> tuple[Backend, ...]:
    """Return every backend, the preferred first; ask each one's ``unavailable()``.

    Examples:
        >>> [b.name for b in backends()]
        ['tensorrt', 'openvino', 'onnxruntime']
    """
    return TensorRTBackend(), OpenVINOBackend(), OnnxRuntimeBackend()
