"""What a run was made with."""

from __future__ import annotations

import platform
from functools import cache
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
    return dict(_found())


@cache  # a search of all folders of the path for each package, several times in a run
def _found() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
