"""The manifest: written, read back, moved, and refused when the model is another one."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from hqp_lightning.errors import ExportError
from hqp_lightning.export.manifest import data_sha256, read_manifest, write_manifest
from hqp_lightning.export.onnx import export_onnx


@pytest.fixture
def written(tmp_path):
    artifact = export_onnx(nn.Linear(4, 2), torch.zeros(1, 4), tmp_path / "deploy" / "model.onnx")
    path = write_manifest(
        tmp_path / "deploy" / "manifest.json",
        artifact=artifact,
        classes=("cat", "dog"),
        preprocessing={"resize": [128, 128], "mean": [0.5], "std": [0.25]},
        accuracy=0.93,
        calibration={"method": "mse", "samples": 512},
        versions={"torch": torch.__version__},
    )
    return artifact, path


def test_round_trip_and_moved_folder(written, tmp_path):
    artifact, path = written
    content = read_manifest(path)
    assert content["model"]["path"] == "model.onnx"
    assert content["model"]["sha256"] == hashlib.sha256((path.parent / "model.onnx").read_bytes()).hexdigest()
    facts = {"dtype": "float32", "layout": "NC", "channels": "RGB", "divide_by": 255}
    assert content["model"]["inputs"] == [{"name": "input", "shape": [4], **facts}]
    assert content["model"]["outputs"] == [{"name": "logits", "shape": [2], "dtype": "float32"}]
    assert content["classes"] == ["cat", "dog"]
    assert content["preprocessing"] == {"resize": [128, 128], "mean": [0.5], "std": [0.25]}
    assert content["accuracy"] == 0.93
    assert content["calibration"] == {"method": "mse", "samples": 512}
    assert artifact.path not in path.read_text()
    moved = shutil.move(path.parent, tmp_path / "elsewhere")
    assert read_manifest(f"{moved}/manifest.json") == content


def test_the_input_is_described_as_far_as_it_is_known(tmp_path):
    artifact = export_onnx(nn.Conv2d(3, 2, 3), torch.zeros(1, 3, 8, 8), tmp_path / "model.onnx")
    content = read_manifest(write_manifest(tmp_path / "manifest.json", artifact=artifact))
    shape = {"name": "input", "shape": [3, 8, 8]}
    assert content["model"]["inputs"] == [{**shape, "dtype": "float32", "layout": "NCHW"}]


def test_a_layout_is_of_pictures_alone(tmp_path):
    class Beside(nn.Module):
        def forward(self, picture, numbers):
            return picture.mean((1, 2)) + numbers

    given = torch.randn(1, 6, 5, 3), torch.randn(1, 3)
    artifact = export_onnx(Beside(), given, tmp_path / "model.onnx", inputs=("picture", "numbers"))
    path = write_manifest(tmp_path / "manifest.json", artifact=artifact, layout="NHWC")
    assert [entry["layout"] for entry in read_manifest(path)["model"]["inputs"]] == ["NHWC", "NC"]


def test_another_model_is_refused(written):
    _, path = written
    torch.manual_seed(1)
    export_onnx(nn.Linear(4, 2), torch.zeros(1, 4), path.parent / "model.onnx")
    with pytest.raises(ExportError, match="SHA-256 differs"):
        read_manifest(path)
    assert read_manifest(path, verify=False)["accuracy"] == 0.93


def test_clear_errors(written):
    artifact, path = written
    with pytest.raises(ExportError, match="could not write the manifest"):
        write_manifest(path, artifact=artifact, accuracy=float("nan"))
    with pytest.raises(ExportError, match="could not write the manifest"):
        write_manifest(path, artifact=artifact, preprocessing={"mean": torch.zeros(3)})
    assert read_manifest(path)["accuracy"] == 0.93  # the failed writes left it whole
    path.write_text(json.dumps({"schema_version": 99}))
    with pytest.raises(ExportError, match="schema version 1"):
        read_manifest(path)
    path.write_text("{")
    with pytest.raises(ExportError, match="could not read"):
        read_manifest(path)


def test_data_hash_ignores_the_batch_size_only():
    data = np.arange(60, dtype=np.float32).reshape(10, 6)
    expected = hashlib.sha256(data.tobytes()).hexdigest()
    assert data_sha256([data]) == data_sha256([data[:3], data[3:].astype(np.float64)]) == expected
    assert data_sha256([data[::-1]]) != expected
