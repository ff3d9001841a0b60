"""Arithmetic of float32, whatever the user gave up for speed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["exact_arithmetic"]


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """Inside, matrix products and convolutions of float32 numbers are computed in float32.

    Outside they need not be: ``torch.set_float32_matmul_precision("medium")``, which Lightning recommends for GPUs with
    tensor cores, multiplies in bfloat16 on CPUs that can, and cuDNN convolves in TF32 by default.
    """
    b = torch.backends
    kinds = [(b.cuda, "matmul"), (b.mkldnn, "matmul"), (b.cudnn, "conv"), (b.mkldnn, "conv")]
    found: list[Any] = [getattr(backend, kind, None) for backend, kind in kinds]
    owners = [o for o in found if hasattr(o, "fp32_precision")]  # torch has it since 2.9
    before = [o.fp32_precision for o in owners]
    legacy = None if owners else (torch.get_float32_matmul_precision(), b.cudnn.allow_tf32)
    try:
        for owner in owners:
            owner.fp32_precision = "ieee"
        if legacy is not None:
            torch.set_float32_matmul_precision("highest")
            b.cudnn.allow_tf32 = False
        yield
    finally:
        for owner, precision in zip(owners, before, strict=True):
            owner.fp32_precision = precision
        if legacy is not None:
            torch.set_float32_matmul_precision(legacy[0])
            b.cudnn.allow_tf32 = legacy[1]
