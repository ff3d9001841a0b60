"""What a run was made with."""

from __future__ import annotations

import platform
from importlib import metadata

__all__ = ["versions"]

PACKAGES = (
    "hqp-lightning",
    "torch",
    "torchvision",
    "lightning",
    "torchmetrics",
    "torch-pruning",
    "numpy",
    "onnx",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
    "nvidia-modelopt",
)


def versions() -> dict[str, str]:
    """Python and the installed ones of the packages that decide what a run computes and how fast.

    Returns:
        Distribution name to version, ``"python"`` first; what is not installed is left out.
    """
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
