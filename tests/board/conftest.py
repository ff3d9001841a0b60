import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tensorrt_doubles as doubles
import torch
from torch import nn

from hqp_lightning.board import cuda
from hqp_lightning.export import REFERENCES, board_files, collect_ranges, quantize, write_manifest, write_references
from hqp_lightning.export.onnx import export_onnx


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """An export folder: model.onnx, model.int8.onnx, their other forms, hqp-engine.pyz, manifest.json."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("deploy")
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 10))
    export_onnx(module, torch.zeros(1, 3, 8, 8), folder / "model.onnx")
    batch = np.random.default_rng(0).normal(size=(8, 3, 8, 8)).astype(np.float32)
    int8 = quantize(
        folder / "model.onnx", collect_ranges(folder / "model.onnx", [batch], threads=1), folder / "model.int8.onnx"
    )
    models = folder / "model.onnx", int8.path
    write_manifest(
        folder / "manifest.json",
        artifact=int8,
        classes=[str(k) for k in range(10)],
        preprocessing={"crop": "square", "resize": 8, "mean": [0.5] * 3, "std": [0.25] * 3},
        accuracy=0.75,
        monitor="val_acc",
        files=board_files(folder / "model.onnx", folder / "model.int8.onnx"),
        references=write_references(folder / REFERENCES, batch, *models),
    )
    return folder


@pytest.fixture
def board(monkeypatch):
    """``board(release, **behaviour)`` puts a TensorRT and a GPU of that release into this process."""

    def put(release="10.3.0", driver=None, **behaviour):
        trt, lib = doubles.tensorrt(release, **behaviour), driver or doubles.Driver()
        monkeypatch.setitem(sys.modules, "tensorrt", trt)
        monkeypatch.setattr(cuda, "_load", lambda: lib)
        return SimpleNamespace(trt=trt, driver=lib)

    return put
