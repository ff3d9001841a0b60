"""The real classifiers on real photographs: what INT8 costs, in both runtimes."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torchvision.transforms import v2

from hqp_lightning.export import collect_ranges, quantize
from hqp_lightning.export.engines import OnnxRuntimeBackend, OpenVINOBackend
from hqp_lightning.export.onnx import export_onnx

SHARED = Path(__file__).parents[2] / ".." / "shared"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (SHARED / "weights").is_dir(), reason="../shared (Imagenette, weights) is not there"),
]


def _images(split, count):
    transform = v2.Compose([
        v2.ToImage(), v2.Resize((128, 128), antialias=True), v2.ToDtype(torch.float32, scale=True),
        v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])  # fmt: skip
    data = torchvision.datasets.Imagenette(
        SHARED / "data", split=split, size="160px", download=False, transform=transform
    )
    picked = np.random.default_rng(0).permutation(len(data))[:count]
    samples = [data[int(k)] for k in picked]
    return torch.stack([x for x, _ in samples]).numpy(), np.array([y for _, y in samples])


@pytest.fixture(scope="module")
def images():
    return _images("train", 64)[0], *_images("val", 200)


@pytest.mark.parametrize(
    ("name", "max_drop"), [("resnet18", 0.01), ("mobilenet_v3_small", 0.02)]
)  # one image of 200 is 0.005
def test_int8_keeps_the_accuracy(name, max_drop, images, tmp_path):
    calibration, x, y = images
    module = getattr(torchvision.models, name)(num_classes=10)
    module.load_state_dict(torch.load(SHARED / "weights" / f"{name}_imagenette128.pth", weights_only=True))
    path = tmp_path / "float.onnx"
    export_onnx(module, torch.zeros(1, 3, 128, 128), path)
    int8 = quantize(path, collect_ranges(path, np.split(calibration, 2), threads=1), tmp_path / "int8.onnx")

    def accuracy(backend, file, precision):
        with backend.build(file, precision, tmp_path, threads=1, batch_size=50) as engine:
            logits = np.concatenate([engine.run(x[k : k + 50]) for k in range(0, len(x), 50)])
        return float((logits.argmax(1) == y).mean())

    before = accuracy(OnnxRuntimeBackend(), path, "fp32")
    assert before > 0.9
    after = accuracy(OnnxRuntimeBackend(), int8.path, "int8")
    assert before - after <= max_drop
    if OpenVINOBackend().unavailable() is None:
        assert accuracy(OpenVINOBackend(), int8.path, "int8") == pytest.approx(after, abs=0.01)
