"""The tensorrt module of this Python, and what the library reports."""

from __future__ import annotations

import re
import sys
from typing import Any

from hqp_lightning.board.kernels import BEGIN
from hqp_lightning.errors import ExportError

__all__ = ["RTX", "Log", "import_rtx", "import_tensorrt", "title"]

RTX = "tensorrt_rtx"  # the compiler that needs no GPU


def import_tensorrt() -> Any:
    """Import tensorrt, with NVIDIA's own plugins (8.5 parses InstanceNormalization, hence GroupNorm, only with them).

    Raises:
        ExportError: it is not there, its libraries do not load, or it is older than 8.5.
    """
    try:
        import tensorrt

        # Where a folder named tensorrt lies on the path (as in an export), Python imports that: an empty module.
        tensorrt.Builder  # noqa: B018
    except (ImportError, OSError, AttributeError) as error:
        raise ExportError(
            f"no TensorRT for this Python ({sys.executable}: {error}). On a Jetson: sudo apt install "
            "python3-libnvinfer, and the system's python3 (or a virtual environment with --system-site-packages); "
            "elsewhere: pip install tensorrt"
        ) from error
    if not hasattr(tensorrt.IExecutionContext, "execute_async_v3"):
        raise ExportError(
            f"TensorRT {tensorrt.__version__} is too old: 8.5 is the first that hqp-engine runs on "
            "(on a Jetson: JetPack 5.1)"
        )
    tensorrt.init_libnvinfer_plugins(None, "")
    return tensorrt


def import_rtx() -> Any:
    """Import tensorrt_rtx, to run what was compiled for this GPU elsewhere.

    Raises:
        ExportError: it is not there, or its libraries do not load.
    """
    try:
        import tensorrt_rtx
    except (ImportError, OSError) as error:
        raise ExportError(f"no TensorRT for RTX for this Python ({error}): pip install tensorrt-rtx") from error
    return tensorrt_rtx


def title(trt: Any) -> str:
    """Name and version of the library, for messages."""
    return f"TensorRT{' for RTX' * (getattr(trt, '__name__', '') == RTX)} {trt.__version__}"


class Log:
    """What TensorRT reported: ``logger`` is given to it, ``errors`` are the lines that say why a call failed.

    Attributes:
        interrupted: Ctrl-C came while TensorRT called back; an exception from there it would only print, and go on.
        kernels: the message that lists the kernels of what was built, where the compiler writes one; else empty.
    """

    def __init__(self, trt: Any, verbose: bool = False) -> None:
        errors: list[str] = []
        warnings: list[str] = []
        self.interrupted = False
        self.kernels = ""

        class Logger(trt.ILogger):
            def __init__(self) -> None:
                trt.ILogger.__init__(self)  # pybind11 does not accept super() here

            def log(_, severity: Any, msg: str) -> None:  # noqa: N805
                try:
                    if msg.startswith(BEGIN):
                        self.kernels = msg
                    line = " ".join(msg.split())  # some have line breaks
                    if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                        errors.append(line)
                    elif severity == trt.ILogger.WARNING:
                        warnings.append(line)
                    if verbose:
                        print(f"TensorRT: {line}", file=sys.stderr)
                except KeyboardInterrupt:
                    self.interrupted = True

        self.errors, self.warnings, self.logger = errors, warnings, Logger()

    def why(self) -> str:
        """The reason of a failure in words, with what to do where that is known."""
        said = self.errors or self.warnings  # a driver that does not fit is only warned of (8.5)
        text = "; ".join(dict.fromkeys(said[:3])) or "TensorRT gave no reason"
        lower = " ".join(said).lower()
        if "could not find any implementation" in lower:  # warnings before say whether memory was too short for each
            lower = " ".join([lower, *self.warnings]).lower()
        if re.search("out ?of ?memory|insuff?icient memory|memory is insufficient", lower):
            advice = "stop other programs that use it, or take a smaller --max-batch and --batch-size"
            return f"GPU out of memory: {advice} ({text})"
        if "fp32 gemm is not supported" in lower:
            return f"this GPU gets no products in float32, take --precision fp16 ({text})"
        if "initialization failure" in lower or "driver version is insufficient" in lower:
            return f"the driver is too old for this TensorRT's CUDA: update it, or install an older TensorRT ({text})"
        return text
