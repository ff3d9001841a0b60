"""Images that travel as bytes: what the network makes of bytes is what the file makes of them."""

import numpy as np
import onnx
import pytest
import torch
from classifier import Classifier, accuracy_by_hand, small_net
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hqp_lightning import HQPPruning, Int8Export
from hqp_lightning.board.data import preprocess
from hqp_lightning.export import read_manifest


class OfBytes(nn.Module):
    """Takes bytes, and floats as they are: traced with floats it is another function."""

    def __init__(self):
        super().__init__()
        self.layers = small_net()

    def forward(self, x):
        if x.dtype == torch.uint8:
            x = x.float() / 255
        return self.layers(x)


@pytest.mark.filterwarnings("ignore:.*Converting a tensor to a Python boolean.*")
def test_the_file_takes_bytes_where_validation_gives_them(digits, make_trainer, tmp_path):
    x, y = (digits[0] * 255).byte(), digits[1]
    train, val = (DataLoader(TensorDataset(x[a:b], y[a:b]), 64) for a, b in ((0, 640), (1200, 1400)))
    model = Classifier()
    model.net = OfBytes()
    engines = ["onnxruntime", "openvino"]
    export = Int8Export(tmp_path, engines=engines, rtx=(), latency_runs=1, threads=1, calibration_batches=3)
    make_trainer(3, [HQPPruning("val_acc", 0.5, step=0.2), export]).fit(model, train, val)
    report = export.report
    assert report.macs_reduction > 0.1
    for name in ("model.onnx", "model.int8.onnx"):
        (entry,) = onnx.load(tmp_path / name).graph.input
        assert entry.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    of = x[1200:1400], y[1200:1400]
    assert report.pruned.accuracy > 0.3  # learned something: another function would be at chance
    assert report.pruned.accuracy == pytest.approx(accuracy_by_hand(tmp_path / "model.onnx", *of), abs=1e-6)
    assert report.int8.accuracy == pytest.approx(accuracy_by_hand(tmp_path / "model.int8.onnx", *of), abs=0.02)
    assert {e.backend for e in report.engines} == {"onnxruntime", "openvino"}
    manifest = read_manifest(tmp_path / "manifest.json")
    assert manifest["model"]["inputs"][0]["dtype"] == "uint8"


def test_the_board_gives_bytes_to_a_model_of_bytes():
    picture = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    steps = {"crop": "square", "resize": 8, "mean": [0.5] * 3, "std": [0.2] * 3}
    given = preprocess(picture, steps, "uint8")
    cut = Image.fromarray(picture).crop((2, 0, 14, 12)).resize((8, 8), Image.Resampling.BILINEAR)
    assert given.dtype == np.uint8
    assert np.array_equal(given, np.asarray(cut).transpose(2, 0, 1))
    np.testing.assert_allclose(preprocess(picture, steps), (given / 255 - 0.5) / 0.2, rtol=1e-5, atol=1e-6)
