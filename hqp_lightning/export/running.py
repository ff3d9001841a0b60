"""A model in onnxruntime, computed as it is written."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper

from hqp_lightning.export.sessions import session

__all__ = ["Runner", "Values"]

Values = Mapping[str, np.ndarray]
"""Tensors by name."""


class Runner:
    """A session that takes and gives tensors by name; onnxruntime's own int8 kernels, which may round, are off."""

    def __init__(self, model: onnx.ModelProto, threads: int | None) -> None:
        self.session = session(model, threads, as_written=True)
        self.names = [o.name for o in model.graph.output]
        kind = model.graph.input[0].type.tensor_type.elem_type
        self.entry, self.kind = model.graph.input[0].name, helper.tensor_dtype_to_np_dtype(kind)

    def __call__(self, given: Values) -> dict[str, np.ndarray]:
        """All outputs."""
        feeds = {n: np.ascontiguousarray(v, self.kind if n == self.entry else np.float32) for n, v in given.items()}
        return dict(zip(self.names, self.session.run(self.names, feeds), strict=True))
