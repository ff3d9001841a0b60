"""Every form of the published classifiers through NVIDIA's compiler; docs/int8.md has the table of what it made."""

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import pytest
import test_many
import torch
from published import NAMES, build

from hqp_lightning.board.kernels import kernel_count, moved_bytes
from hqp_lightning.board.layers import fell_back, read_layers, untold
from hqp_lightning.board.lint import lint
from hqp_lightning.board.rtx import CAPABILITIES, compile_rtx
from hqp_lightning.export import Range, board_files, placements, quantize, quantized_tensors, unprofitable
from hqp_lightning.export.forms import write_form
from hqp_lightning.export.onnx import export_onnx

PX = 128
DOCS = Path(__file__).parents[2] / "docs" / "int8.md"
_OTHERS = """squeezenet1_0 shufflenet_v2_x0_5 ghostnet_050 vit_tiny_patch16_224.p8 ese_vovnet19b_slim fasternet_t0
inception_next_atto starnet_s1 skresnet18"""
OTHERS = _OTHERS.split()
TRT8 = ("resnet18", "mobilenet_v3_small", "efficientnet_b0", "regnet_x_400mf", "googlenet")
"""TensorRT 8's form is the INT8 file with its weights in float: one of each kind is compiled, the others are linted."""
# One engine for all three costs what one for one of them does, and its table is that of the least able of them. Builds
# that are not refused leave nothing behind, so that many share a process.
PROGRAM = """
import json, sys
from pathlib import Path
import tensorrt_rtx
from hqp_lightning.board.rtx_process import build_rtx
forms, capabilities = json.loads(sys.argv[1])
for form in map(Path, forms):
    made = build_rtx(tensorrt_rtx, form, form.with_suffix(".engine"), capabilities)
    print(json.dumps(made["asked"]))
"""
KEEP = {"MALLOC_MMAP_THRESHOLD_": "4000000000", "MALLOC_TRIM_THRESHOLD_": "4000000000"}  # its memory: a sixth quicker


def compile_all(forms):
    """``[(layer table, layers that are asked to be INT8), ...]``, by two processes."""

    def compiled(some):
        command = [sys.executable, "-c", PROGRAM, json.dumps([[str(f) for f in some], CAPABILITIES])]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **KEEP})
        assert done.returncode == 0, done.stderr
        return dict(zip(some, map(json.loads, done.stdout.splitlines()), strict=True))

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(compiled, (forms[::2], forms[1::2]))
    return [(f.with_suffix(".layers.json").read_text(), {**first, **second}[f]) for f in forms]


def write_int8(module, folder, px):
    path, int8 = folder / "model.onnx", folder / "model.int8.onnx"
    export_onnx(module.eval(), torch.zeros(1, 3, px, px), path)
    ranges = dict.fromkeys(quantized_tensors(path), Range.symmetric(1.0))
    quantize(path, ranges, int8, exclude=unprofitable(path))
    return path, int8


def row(name, made, layers):
    """A line of the table: kernels and MB moved by the float file, FP16 and INT8, and the layers in INT8."""
    kinds = [made[f] for f in ("model.onnx", "model.fp16.onnx", "model.int8.fp16.onnx")]
    cells = [f"{kernel_count(table)}, {moved_bytes(table) / 1e6:.1f}" for table, _ in kinds]
    return f"| {name} | {' | '.join(cells)} | {len(kinds[2][1])} of {layers} |"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_form_compiles_for_three_generations_with_what_is_asked_in_int8(compiler, name, tmp_path):
    path, int8 = write_int8(build(name), tmp_path, PX)
    forms = [Path(p) for p in board_files(path, int8) if Path(p).suffix == ".onnx"]
    assert len(forms) == 5
    tried = [f for f in forms if name in TRT8 or "trt8" not in f.name]
    made = dict(zip([f.name for f in tried], compile_all(tried), strict=True))
    for form, (table, asked) in made.items():
        assert (len(asked) > 0) == ("int8" in form)
        assert fell_back(read_layers(table), asked) == untold(read_layers(table), asked) == []
    assert [line for f in forms if f.parent != tmp_path for line in lint(f)] == []  # what 8.5 and 10.16 are given
    if name == "resnet18":
        alone = compile_rtx(tmp_path / "tensorrt" / "model.int8.fp16.onnx", tmp_path / "a.engine", CAPABILITIES[0])
        table, asked = made["model.int8.fp16.onnx"]
        assert (alone.kernels, alone.bytes_moved, alone.asked) == (kernel_count(table), moved_bytes(table), len(asked))
    text = DOCS.read_text(encoding="utf-8")
    found = row(name, made, sum(p.weight_axis is not None for p in placements(path)))
    print(found)  # what the table should say, where it does not
    if metadata.version("tensorrt-rtx").startswith(re.search(r"TensorRT for RTX ([\d.]+) makes", text)[1]):
        assert found in text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # attention asserts its sizes
def test_the_int8_form_of_other_networks_compiles_for_three_generations(compiler, tmp_path):
    forms = []
    for name in OTHERS:
        (tmp_path / name).mkdir()
        _, int8 = write_int8(test_many.build(name), tmp_path / name, 32)
        forms.append(write_form(int8, "fp16", tmp_path / name / "model.int8.fp16.onnx"))
        assert lint(forms[-1]) == []
    for name, (table, asked) in zip(OTHERS, compile_all(forms), strict=True):
        assert asked
        assert fell_back(read_layers(table), asked) == untold(read_layers(table), asked) == [], name
