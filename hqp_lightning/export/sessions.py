"""Sessions of onnxruntime that compute something; those of `engines` are timed, and are what a user would build."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import onnx

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["return_memory", "session"]


def session(
    model: onnx.ModelProto | bytes | str | os.PathLike[str], threads: int | None = None, *, as_written: bool = False
) -> onnxruntime.InferenceSession:
    """A session on the CPU, which is built, run a few times and left.

    Args:
        model: or one that is written, or the path of one.
        threads: onnxruntime's threads; None: its own default.
        as_written: compute quantized models pair by pair: onnxruntime's own int8 kernels may round biases and saturate
            sums.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is an exception
    if as_written:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    if threads is not None:
        options.intra_op_num_threads = threads
    # Its threads would go on spinning from the start to the end of the session and between any two operators, on the
    # cores that do the rest: three times the processor time of a small model.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    content = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
    content = content if isinstance(content, bytes) else os.fspath(content)
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def return_memory() -> None:
    """Hand freed memory back to the system now.

    glibc keeps blocks of some MiB for later, as those of weights that were read: they would count, and are no use to a
    session, which asks the system for its own.
    """
    if sys.platform == "linux":
        with suppress(AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
