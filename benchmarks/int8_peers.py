"""One model quantized by one quantizer, in a process of its own; `benchmarks/int8.py` starts it.

Standard input: what to do, as JSON. The last line of the standard output: wall and processor seconds, and the peak
memory before and after.
Weights are symmetric int8 per channel. Activations are symmetric int8, what TensorRT reads, or of the quantizers in
`FOR_CPUS` uint8, which only CPUs read. Everything else is the peer's default, or what its documentation asks for.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from memory import peak_mib

BATCH = 32
Job = dict[str, Any]


def ours(job: Job, images: np.ndarray) -> Callable[[], object]:
    import onnxruntime  # noqa: F401  (a library, as those of the others, before the clock starts)

    from hqp_lightning.export import (
        Range,
        collect_ranges,
        float_order,
        quantization_noise,
        quantize,
        unprofitable,
    )
    from hqp_lightning.export.engines import OpenVINOBackend

    def run() -> None:
        kind = "uint8" if job["quantizer"] in FOR_CPUS else "int8"
        rule = unprofitable(job["onnx"]) if job["quantizer"] == "ours, paying" else ()
        given = job["onnx"], batches(images)
        ranges = collect_ranges(*given, activation_type=kind, threads=job["threads"], exclude=rule)
        quantize(job["onnx"], ranges, job["target"], exclude=[*rule, *left(ranges)])

    def left(ranges: dict[str, Range]) -> list[str]:
        if job["quantizer"] != "ours, 4 in float":
            return []
        noise = quantization_noise(job["onnx"], ranges, images[:32], threads=job["threads"])
        given = job["onnx"], ranges, noise, 4, OpenVINOBackend(), images[:1]
        return float_order(*given, threads=job["threads"])[0][:4]

    return run


def onnxruntime(job: Job, images: np.ndarray) -> Callable[[], object]:
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter(batches(images))

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.rest, None)
            return None if batch is None else {"input": batch}

    affine = job["quantizer"] in FOR_CPUS
    options = {"ActivationSymmetric": not affine, "WeightSymmetric": True}
    return lambda: quantize_static(
        job["onnx"],
        job["target"],
        Reader(),
        per_channel=True,
        activation_type=QuantType.QUInt8 if affine else QuantType.QInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod[job["quantizer"].split()[1]],
        extra_options=options,
    )


def nncf_openvino(job: Job, images: np.ndarray) -> Callable[[], object]:
    import nncf
    import openvino

    def run() -> None:
        model = openvino.Core().read_model(job["onnx"])
        data = nncf.Dataset(list(images), lambda x: x[None])
        preset = nncf.QuantizationPreset.MIXED if job["quantizer"].endswith("mixed") else None
        made = nncf.quantize(model, data, subset_size=len(images), preset=preset)
        openvino.save_model(made, job["target"], False)

    return run


def modelopt_onnx(job: Job, images: np.ndarray) -> Callable[[], object]:
    from modelopt.onnx.quantization import quantize

    return lambda: quantize(
        job["onnx"],
        calibration_data={"input": images},
        calibration_method="max" if job["quantizer"].endswith("max") else "entropy",
        calibration_eps=["cpu"],
        output_path=job["target"],
        high_precision_dtype="fp32",
    )


def modelopt_torch(job: Job, images: np.ndarray) -> Callable[[], object]:
    import modelopt.torch.quantization as mtq
    import torch
    from torch.fx.experimental.optimization import fuse
    from trained import network

    torch.set_num_threads(job["threads"])
    folded = fuse(network(job["network"], job["weights"]))
    x = torch.from_numpy(images)

    def run() -> None:
        with torch.no_grad():
            made = mtq.quantize(folded, mtq.INT8_DEFAULT_CFG, lambda m: [m(part) for part in x.split(BATCH)])
            torch.onnx.export(
                made,
                (x[:1],),
                job["target"],
                input_names=["input"],
                output_names=["logits"],
                opset_version=17,
                dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
                dynamo=False,
            )

    return run


def batches(images: np.ndarray) -> list[np.ndarray]:
    return np.array_split(images, max(1, len(images) // BATCH))


QUANTIZERS = {
    "ours": ours,
    "ours, paying": ours,
    "ours, 4 in float": ours,
    "onnxruntime MinMax": onnxruntime,
    "onnxruntime Percentile": onnxruntime,
    "onnxruntime Entropy": onnxruntime,
    "modelopt onnx entropy": modelopt_onnx,
    "modelopt onnx max": modelopt_onnx,
    "modelopt torch": modelopt_torch,
    "ours uint8": ours,
    "onnxruntime MinMax uint8": onnxruntime,
    "onnxruntime Percentile uint8": onnxruntime,
    "NNCF": nncf_openvino,
    "NNCF mixed": nncf_openvino,
}
FOR_CPUS = {"ours uint8", "onnxruntime MinMax uint8", "onnxruntime Percentile uint8", "NNCF", "NNCF mixed"}

if __name__ == "__main__":
    job = json.load(sys.stdin)
    run = QUANTIZERS[job["quantizer"]](job, np.load(job["images"]))
    before, start, processor = peak_mib(), time.perf_counter(), time.process_time()
    run()
    cost = {"seconds": time.perf_counter() - start, "processor": time.process_time() - processor}
    print(json.dumps({**cost, "before": before, "peak": peak_mib()}))
