"""Networks of several inputs and outputs: every file and every score against torch and onnxruntime."""

import json

import numpy as np
import pytest
import sessions
import torch
from classifier import Classifier
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from hqp_lightning import HQPPruning, Int8Export
from hqp_lightning.core.calls import Call
from hqp_lightning.errors import ConfigurationError
from hqp_lightning.export import export_onnx
from hqp_lightning.loop.exportable import exportable, one_sample

PX = 12


class TwoEyes(nn.Module):
    """Two pictures; a class and a map of classes."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(1, 32, 3, padding=1)
        self.body = nn.Sequential(nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU())
        self.map, self.head = nn.Conv2d(32, 4, 1), nn.Linear(32, 4)

    def forward(self, image, depth):
        y = self.body(self.left(image) + self.right(depth))
        return {"out": self.head(y.mean((2, 3))), "maps": [self.map(y)]}


class Eyes(Classifier):
    def __init__(self, maps=True):
        super().__init__(lr=1e-2)
        self.net, self.maps = TwoEyes(), maps

    def loss(self, batch):
        image, depth, y = batch
        returned = self.net(image, depth=depth)
        loss = F.cross_entropy(returned["out"], y, reduction="none")
        if self.maps:
            assert type(returned["maps"]) is list
            loss = loss + 0.1 * returned["maps"][0].mean((2, 3)).square().sum(1)
        return returned, loss

    def training_step(self, batch, batch_idx):
        return self.loss(batch)[1].mean()

    def validation_step(self, batch, batch_idx):
        returned, _ = self.loss(batch)
        self.log("val_acc", (returned["out"].argmax(1) == batch[2]).float().mean(), batch_size=len(batch[2]))


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(64) % 4
    image = torch.rand(64, 3, PX, PX, generator=generator)
    depth = torch.rand(64, 1, PX, PX, generator=generator) + y[:, None, None, None]
    return image, depth, y


def loaders(data):
    return DataLoader(TensorDataset(*data), 16), DataLoader(TensorDataset(*data), 16)


def run(path, outputs=None, **feed):
    session = sessions.session(path)
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(outputs, {k: v.numpy() for k, v in feed.items()}), strict=True))


def test_each_output_of_the_file_is_that_of_the_network(data, tmp_path):
    image, depth, _ = data
    network = TwoEyes().eval()
    call = one_sample(Call((image[:2],), {"depth": depth[:2]}), network)
    made = exportable(network, call)
    assert (made.inputs, made.outputs) == (("image", "depth"), ("out", "maps_0"))
    path = tmp_path / "model.onnx"
    export_onnx(made.module, made.example, path, inputs=made.inputs, outputs=made.outputs)
    found = run(path, image=image[:5], depth=depth[:5])
    with torch.no_grad():
        expected = network(image[:5], depth[:5])
    np.testing.assert_allclose(found["out"], expected["out"], atol=1e-5)
    np.testing.assert_allclose(found["maps_0"], expected["maps"][0], atol=1e-5)


@pytest.mark.parametrize(
    ("network", "call", "message"),
    [
        (lambda x, y: x, Call((torch.ones(2, 3), torch.ones(3))), r"is called with x \(2, 3\), y \(3,\)"),
        (lambda x: x.mean(), Call((torch.ones(2, 3),)), r"returns logits \(\)"),
        (lambda x: {"loss": 3}, Call((torch.ones(2, 3),)), "returns no tensor but dict"),
    ],
)
def test_what_has_no_batch_is_refused_by_name(network, call, message):
    module = nn.Module()
    module.forward = network
    with pytest.raises(ConfigurationError, match=message):
        exportable(module, one_sample(call, module))


def test_a_run_prunes_quantizes_and_scores_all_of_them(data, make_trainer, tmp_path):
    model = Eyes()
    pruning = HQPPruning(
        "val_acc", 0.99, step=0.3, recalibrate_batches=0, loss_fn=lambda m, batch: m.loss(batch)[1], module="net"
    )
    export = Int8Export(
        tmp_path, calibration_batches=1, engines=["onnxruntime", "openvino"], rtx=(), latency_runs=2, threads=1
    )
    make_trainer(2, [pruning, export]).fit(model, *loaders(data))
    assert pruning.state.accepted
    image, depth, y = data
    int8 = run(tmp_path / "model.int8.onnx", image=image, depth=depth)
    assert export.report.int8.accuracy == pytest.approx((int8["out"].argmax(1) == y.numpy()).mean())
    assert export.report.samples == 64
    assert {e.backend for e in export.report.engines} == {"onnxruntime", "openvino"}
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["schema_version"] == 2
    assert [(t["name"], t["shape"]) for t in manifest["model"]["inputs"]] == [
        ("image", [3, PX, PX]),
        ("depth", [1, PX, PX]),
    ]
    assert [t["name"] for t in manifest["model"]["outputs"]] == ["out", "maps_0"]
    stored = np.load(tmp_path / "references.npz")
    assert set(stored.files) == {"input:image", "input:depth"} | {
        f"{m}:{o}" for m in ("float", "int8") for o in ("out", "maps_0")
    }
    assert stored["int8:maps_0"].shape == (8, 4, PX * PX)
    with torch.no_grad():
        expected = model.net.eval()(image[:8].half().float(), depth[:8].half().float())["maps"][0].flatten(2)
    np.testing.assert_allclose(stored["float:maps_0"], expected, atol=1e-4)


def test_a_part_is_written_and_scored_and_the_rest_is_absent(data, make_trainer, tmp_path):
    settings = {"calibration_batches": 1, "engines": ["onnxruntime"], "rtx": (), "latency_runs": 1, "threads": 1}
    export = Int8Export(tmp_path / "a", "val_acc", 0.99, outputs=("out",), **settings)
    make_trainer(1, [export]).fit(Eyes(maps=False), *loaders(data))
    image, depth, y = data
    int8 = run(tmp_path / "a" / "model.int8.onnx", image=image, depth=depth)
    assert list(int8) == ["out"]
    assert export.report.int8.accuracy == pytest.approx((int8["out"].argmax(1) == y.numpy()).mean())
    for outputs, message in (
        (("out",), "validation needs the output 'maps_0'"),
        (("aux",), r"outputs=\['aux'\]: TwoEyes returns \['out', 'maps_0'\]"),
        ((), r"outputs=\[\]"),
        ("out", "must be a list of names"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            make_trainer(1, [Int8Export(tmp_path / "b", "val_acc", 0.99, outputs=outputs, **settings)]).fit(
                Eyes(), *loaders(data)
            )
