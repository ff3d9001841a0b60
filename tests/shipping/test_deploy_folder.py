"""The export folder is enough for someone who never saw the training code: a picture is classified from it alone."""

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from classifier import Classifier
from torch import nn

from hqp_lightning import Int8Export
from hqp_lightning.data import ImagenetteDataModule
from hqp_lightning.data.photos import _Decoder

# Runs where torch, lightning and this package can't be imported; reads nothing but the folder and the pictures.
READER = """
import json, pathlib, sys
sys.modules.update(dict.fromkeys(["torch", "torchvision", "lightning", "hqp_lightning"]))
import numpy as np, onnxruntime
from PIL import Image
folder, pictures = pathlib.Path(sys.argv[1]), sys.argv[2:]
manifest = json.loads((folder / "manifest.json").read_text())
steps, model = manifest["preprocessing"], manifest["model"]
assert set(steps) == {"crop", "resize", "mean", "std"} and steps["crop"] == "square"
entry = model["inputs"][0]
assert entry["layout"] == "NCHW"
session = onnxruntime.InferenceSession(folder / model["path"], providers=["CPUExecutionProvider"])
for picture in pictures:
    image = Image.open(picture).convert(entry["channels"])
    side = min(image.size)
    left, top = round((image.size[0] - side) / 2), round((image.size[1] - side) / 2)
    image = image.crop((left, top, left + side, top + side)).resize((steps["resize"],) * 2, Image.Resampling.BILINEAR)
    x = (np.asarray(image, entry["dtype"]) / entry["divide_by"] - np.float32(steps["mean"])) / np.float32(steps["std"])
    x = x.transpose(2, 0, 1)[None]
    assert list(x.shape[1:]) == entry["shape"]
    (logits,) = session.run([model["outputs"][0]["name"]], {entry["name"]: x})
    print(json.dumps({"class": manifest["classes"][logits[0].argmax()], "logits": logits[0].tolist()}))
"""


@pytest.fixture
def deployed(imagenette_root, make_trainer, tmp_path):
    model = Classifier(lr=1e-2)
    model.net = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    data = ImagenetteDataModule(imagenette_root, image_size=32, batch_size=25)
    export = Int8Export(
        tmp_path / "deploy", "val_acc", 0.99, calibration_batches=2, engines=["onnxruntime"], latency_runs=2, threads=1
    )
    make_trainer(1, [export]).fit(model, datamodule=data)
    return tmp_path / "deploy", model, data, export.report


def test_a_picture_is_classified_from_the_folder_alone(deployed, imagenette_root):
    folder, model, data, report = deployed
    _check_contents(folder, data, report)
    pictures = [str(p) for p in sorted((imagenette_root / "imagenette2-160" / "val").rglob("*.JPEG"))][::5]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", READER, folder, *pictures], capture_output=True, text=True, check=True, env=environment
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == 10
    images = torch.stack([_decode(data, p) for p in pictures])
    with torch.no_grad():
        expected = model.net.eval()(images).numpy()
    logits = np.array([a["logits"] for a in answers])
    noise = np.square(logits - expected).mean() / np.square(expected - expected.mean()).mean()
    assert 10 * np.log10(noise) < -20  # dB: INT8 against float, and two decoders of one JPEG
    margin = np.sort(expected, axis=1)[:, -1] - np.sort(expected, axis=1)[:, -2]
    sure = margin > 4 * np.abs(logits - expected).max()
    names = [data.classes[k] for k in expected.argmax(1)]
    assert sure.any()
    assert all(a["class"] == n for a, n, s in zip(answers, names, sure, strict=True) if s)


def _decode(data, path):
    """One picture through the datamodule's own pipeline."""
    _, source = data._sources()
    index = [file for file, _ in source.samples].index(path)
    return data._prepare(_Decoder(source, [index], data.image_size, data.crop_fraction)[[0]], None)[0]


def _check_contents(folder, data, report):
    """The manifest names, hashes and scores what lies there, and the program starts."""
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["classes"] == list(data.classes)
    assert (manifest["accuracy"], manifest["monitor"]) == (report.int8.accuracy, "val_acc")
    assert len(manifest["calibration"]["sha256"]) == 64
    assert set(manifest["files"]) == {
        "references.npz",
        "model.int8.onnx", "model.onnx", "hqp-engine.pyz",
        "tensorrt/model.int8.trt8.onnx", "tensorrt/model.int8.fp16.onnx", "tensorrt/model.fp16.onnx",
    }  # fmt: skip
    for path, digest in manifest["files"].items():
        assert hashlib.sha256((folder / path).read_bytes()).hexdigest() == digest
    text = subprocess.run(
        [sys.executable, folder / "hqp-engine.pyz", "--help"], capture_output=True, text=True, check=True
    )
    assert "build an engine for this GPU" in text.stdout
