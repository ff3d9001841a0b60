"""What the benchmarks' tables rest on: a process's own memory, and a quantizer in a process of its own."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hqp_lightning.export import collect_ranges, export_onnx, quantize

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_peak_memory_is_that_of_the_program_and_not_of_its_parent():
    ballast = np.ones(64 << 20, np.uint8)  # this process is larger than a bare interpreter in any case
    code = "from memory import peak_mib; start = peak_mib(); x = bytearray(50 << 20); print(start, peak_mib())"
    done = subprocess.run([sys.executable, "-c", code], cwd=BENCHMARKS, capture_output=True, text=True, check=True)
    start, peak = map(float, done.stdout.split())
    if not Path("/proc/self/status").is_file():
        pytest.skip("only Linux tells the peak of the program alone")
    assert start < ballast.nbytes / 2**20
    assert peak - start == pytest.approx(50, abs=5)


@pytest.fixture
def job(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    export_onnx(network, torch.zeros(1, 3, 8, 8), tmp_path / "float.onnx")
    images = np.random.default_rng(0).normal(size=(64, 3, 8, 8)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    paths = {"onnx": tmp_path / "float.onnx", "target": tmp_path / "int8.onnx", "images": tmp_path / "images.npy"}
    return {"quantizer": "ours", "threads": 1, **{k: str(v) for k, v in paths.items()}}, images


@pytest.mark.slow  # three interpreters start
def test_a_quantizer_runs_in_a_process_of_its_own_and_its_failure_is_a_reason(job, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import int8

    monkeypatch.setenv("PYTHONPATH", str(BENCHMARKS.parent))
    job, images = job
    cost = int8.quantize(job, limit=120)
    assert cost["seconds"] > 0
    assert cost["peak"] >= cost["before"] > 0
    batches = np.split(images, 2)
    quantize(job["onnx"], collect_ranges(job["onnx"], batches, threads=1), tmp_path / "here.onnx")
    assert Path(job["target"]).read_bytes() == (tmp_path / "here.onnx").read_bytes()
    failing = {**job, "quantizer": "onnxruntime MinMax", "onnx": "nowhere.onnx"}
    assert "nowhere.onnx" in int8.quantize(failing, limit=120)
    assert int8.quantize(job, limit=0.01) == "over 0 s"
