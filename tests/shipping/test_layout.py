"""Files that take pictures as cameras give them: the same network behind a transposition, in everything that ships."""

import numpy as np
import onnx
import pytest
import sessions
import torch
from classifier import Classifier, Scripted, accuracy_by_hand
from torch import nn

from hqp_lightning import ConfigurationError, HQPPruning, Int8Export, load_pruned
from hqp_lightning.core.calls import Call
from hqp_lightning.export import counters, latency, read_manifest
from hqp_lightning.loop import pricing
from hqp_lightning.loop.exportable import exportable
from hqp_lightning.report.latency_table import write_table
from hqp_lightning.surgery import Shadow

FILES = ("model.dense.onnx", "model.onnx", "model.int8.onnx")


def last(x):
    return x.permute(0, 2, 3, 1).contiguous()


def exporting(folder, **options):
    given = {"engines": ["onnxruntime"], "latency_runs": 1, "threads": 1, "layout": "NHWC"}
    return Int8Export(folder, **{**given, **options})


def test_all_that_ships_takes_pictures_with_their_channels_last(loaders, make_trainer, digits, tmp_path):
    export = exporting(tmp_path)
    model = Classifier()
    make_trainer(3, [HQPPruning("val_acc", 0.3, step=0.2), export]).fit(model, *loaders)
    report, (x, y) = export.report, (digits[0][1200:1400], digits[1][1200:1400])
    _, channels, height, width = x.shape
    assert report.int8.accuracy == pytest.approx(accuracy_by_hand(tmp_path / FILES[2], last(x), y), abs=1e-6)
    assert report.pruned.accuracy == pytest.approx(accuracy_by_hand(tmp_path / FILES[1], last(x), y), abs=1e-6)
    for name in FILES:
        dims = onnx.load(tmp_path / name).graph.input[0].type.tensor_type.shape.dim
        assert [d.dim_value for d in dims][1:] == [height, width, channels]
    (entry,) = read_manifest(tmp_path / "manifest.json")["model"]["inputs"]
    assert (entry["layout"], entry["shape"]) == ("NHWC", [height, width, channels])
    with np.load(tmp_path / "references.npz") as saved:
        assert saved["images"].shape[1:] == (height, width, channels)
    # What is trained on, and read back, is the network as it always was.
    again = load_pruned(Classifier, tmp_path / "pruned.ckpt").eval()
    with torch.no_grad():
        wanted = again.net(x[:4])
    found = sessions.session(tmp_path / FILES[1]).run(None, {"input": last(x[:4]).numpy()})[0]
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-4, atol=1e-4)


def test_training_on_the_grid_finds_the_layers_behind_the_transposition(small_loaders, make_trainer, tmp_path):
    export = exporting(tmp_path, monitor="val_acc", max_drop=0.05, recovery_epochs=1, max_float_layers=0)
    make_trainer(1, [export]).fit(Scripted([0.90, 0.90], int8=[0.80, 0.89]), *small_loaders)
    assert export.report.int8.accuracy == pytest.approx(0.89)
    assert [n for n in export.report.notes if "After recovery_epochs=1 with fake quantization 0.8900" in n]


class Beside(nn.Module):
    """A picture and numbers; the network is called by name, and the numbers have no layout."""

    def __init__(self):
        super().__init__()
        self.picture, self.numbers = nn.Conv2d(3, 4, (3, 1)), nn.Linear(5, 4)

    def forward(self, image, numbers):
        return self.picture(image).mean((2, 3)) + self.numbers(numbers)


def test_what_is_no_picture_stays_as_it_is():
    network, image, numbers = Beside().eval(), torch.randn(2, 3, 7, 6), torch.randn(2, 5)
    call = Call((), {"image": image, "numbers": numbers})
    made = exportable(network, call, layout="NHWC")
    assert [tuple(x.shape) for x in made.example] == [(2, 7, 6, 3), (2, 5)]
    with torch.no_grad():
        (found,) = made.module(*made.example)
        torch.testing.assert_close(found, network(image, numbers))
    names = {n for n, m in made.module.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert {n.removeprefix(made.prefix) for n in names} == {"picture", "numbers"}
    with pytest.raises(ConfigurationError, match=r"layout='NHWC' is of inputs with four axes; Linear is called with"):
        exportable(network.numbers, Call((numbers,)), layout="NHWC")


def test_a_layout_that_is_none_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"layout='nhwc' is not known; choose one of \('NCHW', 'NHWC'\)"):
        exporting(tmp_path, layout="nhwc")


def test_a_latency_table_is_of_the_files_that_ship(make_trainer, small_loaders, tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    for module, name, value in ((latency, "_TURNS", 1), (counters, "_TURNS", 1), (pricing, "NETWORKS", 2)):
        monkeypatch.setattr(module, name, value)
    model = Classifier()
    x, _ = next(iter(small_loaders[1]))
    made = pricing.made_here(model.net, Call((x[:1],)), Shadow(model.net, [x]), 8, latency.How(layout="NHWC"))
    assert made.inputs == (tuple(last(x).shape[1:]),)
    write_table(made, tmp_path / "table.json")
    pruning = HQPPruning("val_acc", 0.3, step=0.2, cost=str(tmp_path / "table.json"))
    export = exporting(tmp_path / "deploy", layout="NCHW")
    with pytest.raises(ConfigurationError, match="is of inputs of 8×8×1; the file takes 1×8×8"):
        make_trainer(1, [pruning, export]).fit(model, *small_loaders)
