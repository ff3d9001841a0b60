"""A model of two inputs and two outputs on the board: built, timed and checked on doubles, against onnxruntime."""

import shutil

import numpy as np
import pytest
import torch
from tensorrt_doubles import named
from torch import nn

from hqp_lightning.board.arrays import sampled
from hqp_lightning.board.cli import main
from hqp_lightning.export import REFERENCES, board_files, collect_ranges, quantize, write_manifest, write_references
from hqp_lightning.export.engines import OnnxRuntimeBackend, TensorRTBackend
from hqp_lightning.export.onnx import export_onnx


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.depth = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(1, 16, 3, padding=1)
        self.map, self.head = nn.Conv2d(16, 5, 1), nn.Linear(16, 10)

    def forward(self, image, depth):
        y = torch.relu(self.image(image) + self.depth(depth))
        return self.head(y.mean((2, 3))), self.map(y)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("deploy")
    names = {"inputs": ("image", "depth"), "outputs": ("classes", "map")}
    example = (torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8))
    float_path = folder / "model.onnx"
    export_onnx(Net(), example, float_path, **names)
    batch = tuple(np.random.default_rng(0).normal(size=(8, *x.shape[1:])).astype(np.float32) for x in example)
    int8 = quantize(float_path, collect_ranges(float_path, [batch], threads=1), folder / "model.int8.onnx")
    references = write_references(folder / REFERENCES, batch, float_path, int8.path)
    files = board_files(float_path, int8.path)
    write_manifest(folder / "manifest.json", artifact=int8, files=files, references=references)
    return folder, batch


@pytest.mark.parametrize("release", ["8.6.0", "10.3.0"])
def test_build_bench_check(release, exported, board, tmp_path, capsys):
    here = board(release)
    folder = shutil.copytree(exported[0], tmp_path / "deploy")
    engine = folder / "model.engine"
    assert main(["build", str(folder / "model.int8.onnx"), "-o", str(engine), "--batch-size", "4"]) == 0
    assert {name for name, *_ in named(here.trt, "IOptimizationProfile.set_shape")} == {"image", "depth"}
    assert main(["bench", str(engine), "--runs", "2", "--warmup", "1"]) == 0
    assert main(["check", str(engine)]) == 0
    said = capsys.readouterr().out
    for output in ("classes", "map"):
        assert f"8 reference images: 100.0% of the classes of {output} as int8 on the training machine" in said
    assert "one image repeated 32 times: rows differ by 0" in said
    np.savez(folder / "data.npz", images=exported[1][0], labels=np.zeros(8, int))
    assert main(["check", str(engine), str(folder / "data.npz")]) == 1
    assert "top-1 is of one input and one output" in capsys.readouterr().err
    assert not here.driver.buffers


def test_every_runtime_gives_both_outputs_in_order(exported, board, monkeypatch, tmp_path):
    board("10.3.0")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    folder, batch = exported
    expected = OnnxRuntimeBackend().build(folder / "model.int8.onnx", "int8", tmp_path).run(batch)
    assert [x.shape for x in expected] == [(8, 10), (8, 5, 8, 8)]
    found = TensorRTBackend().build(folder / "model.int8.onnx", "int8", tmp_path).run(batch)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_of_many_positions_some_are_kept():
    values = np.arange(2 * 3 * 50 * 50).reshape(2, 3, 50, 50)
    assert sampled(values).shape == (2, 3, 834)
    np.testing.assert_array_equal(sampled(values)[1, 2], values[1, 2].ravel()[::3])
    np.testing.assert_array_equal(sampled(values[:, :, :4, :4]), values[:, :, :4, :4].reshape(2, 3, 16))
