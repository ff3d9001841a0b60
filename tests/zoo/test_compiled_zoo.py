"""Every form of published classifiers through NVIDIA's compiler: what is asked to be INT8 becomes INT8."""

from pathlib import Path

import pytest
import torch
from torchvision import models

from hqp_lightning.board.rtx import CAPABILITIES
from hqp_lightning.export import Range, board_files, quantize, quantized_tensors, unprofitable
from hqp_lightning.export.engines.rtx import compile_engines
from hqp_lightning.export.onnx import export_onnx

PX = 64
NAMES = (
    "resnet18",
    "mobilenet_v3_small",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "regnet_y_400mf",
    "densenet121",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_form_compiles_with_what_is_asked_in_int8(compiler, name, tmp_path):
    torch.manual_seed(0)
    module = getattr(models, name)(num_classes=10).eval()
    path, int8 = tmp_path / "model.onnx", tmp_path / "model.int8.onnx"
    export_onnx(module, torch.zeros(1, 3, PX, PX), path)
    ranges = dict.fromkeys(quantized_tensors(path), Range.symmetric(1.0))
    quantize(path, ranges, int8, exclude=unprofitable(path))
    forms = [Path(p) for p in board_files(path, int8) if Path(p).suffix == ".onnx"]
    assert len(forms) == 5
    made, refused = compile_engines({(p.stem, "int8"): p for p in forms}, tmp_path, CAPABILITIES[:1], threads=2)
    typed = {("model.int8.fp16", "int8"): tmp_path / "tensorrt" / "model.int8.fp16.onnx"}  # what a run compiles
    others, also = compile_engines(typed, tmp_path, CAPABILITIES[1:], threads=2)
    made, refused = [*made, *others], [*refused, *also]
    assert refused == []
    assert len(made) == len(forms) + 2
    for engine in made:
        assert engine.in_float == ()
        assert (engine.int8_asked > 0) == ("int8" in engine.model)
        assert engine.int8_layers == engine.int8_asked
