"""INT8 of the same float model by this package and by its peers, in one run: accuracy, SQNR, latency, time, memory.

    python benchmarks/int8.py --data DATA resnet18=r18.pth mobilenet_v3_small=mv3.pth pruned=deploy/model.onnx

A model is ``NETWORK=STATE_DICT`` (of torchvision, ten classes) or ``NAME=FILE.onnx`` (a float model, such as the
``model.onnx`` that Int8Export leaves of a pruned network; the torch path of modelopt then has nothing to start from).
Peers that are not installed are said to be missing; ``--peer-python`` runs them in another environment. Each gets the
same float file (modelopt's torch path: the module with folded BatchNorm) and the same calibration images, in a
process of its own:

- seconds: reading the model, calibration, quantization and writing, without imports; peak: the process's resident
  memory, in brackets what it had reached after its imports and with the calibration images in memory;
- top-1 and SQNR of the logits, dB (relative to each sample's mean over the classes), as OpenVINO computes the file;
- latency: OpenVINO, batch 1, all files in turn in one process.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ORT = ("MinMax", "Percentile", "Entropy")
PEERS = ("ours", *(f"onnxruntime {m}" for m in ORT), "NNCF", "modelopt onnx", "modelopt torch")


def ours(case: dict[str, Any], calibration: np.ndarray) -> Callable[[], None]:
    from hqp_lightning.export import collect_ranges, quantize

    def run() -> None:
        batches = np.array_split(calibration, max(1, len(calibration) // 32))
        quantize(case["onnx"], collect_ranges(case["onnx"], batches, threads=case["threads"]), case["target"])

    return run


def onnxruntime_static(case: dict[str, Any], calibration: np.ndarray) -> Callable[[], None]:
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.samples = iter(np.array_split(calibration, max(1, len(calibration) // 32)))

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.samples, None)
            return None if batch is None else {"input": batch}

    options = {"ActivationSymmetric": True, "WeightSymmetric": True, "CalibPercentile": 99.99}
    method = CalibrationMethod[case["peer"].split()[1]]
    return lambda: quantize_static(
        case["onnx"], case["target"], Reader(), per_channel=True, activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8, calibrate_method=method, extra_options=options,
    )  # fmt: skip


def nncf_openvino(case: dict[str, Any], calibration: np.ndarray) -> Callable[[], None]:
    import nncf
    import openvino

    def run() -> None:
        model = openvino.Core().read_model(case["onnx"])
        data = nncf.Dataset(list(calibration), lambda x: x[None])
        openvino.save_model(nncf.quantize(model, data, subset_size=len(calibration)), case["target"], False)

    return run


def modelopt_onnx(case: dict[str, Any], calibration: np.ndarray) -> Callable[[], None]:
    from modelopt.onnx.quantization import quantize

    return lambda: quantize(
        case["onnx"], calibration_data={"input": calibration}, calibration_eps=["cpu"], output_path=case["target"],
        high_precision_dtype="fp32",
    )  # fmt: skip


def modelopt_torch(case: dict[str, Any], calibration: np.ndarray) -> Callable[[], None]:
    import modelopt.torch.quantization as mtq
    import torch
    from torch.fx.experimental.optimization import fuse

    network = fuse(load(case["network"], case["weights"]))
    x = torch.from_numpy(calibration)

    def run() -> None:
        with torch.no_grad():
            quantized = mtq.quantize(network, mtq.INT8_DEFAULT_CFG, lambda m: [m(part) for part in x.split(32)])
            torch.onnx.export(
                quantized, (x[:1],), case["target"], input_names=["input"], output_names=["logits"], opset_version=17,
                dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}}, dynamo=False,
            )  # fmt: skip

    return run


MAKERS = {
    "ours": ours, "onnxruntime": onnxruntime_static, "NNCF": nncf_openvino, "modelopt onnx": modelopt_onnx,
    "modelopt torch": modelopt_torch,
}  # fmt: skip


def load(network: str, weights: str) -> Any:
    import torch
    import torchvision

    module = getattr(torchvision.models, network)(num_classes=10)
    module.load_state_dict(torch.load(weights, weights_only=True))
    return module.eval()


def child(case: dict[str, Any]) -> None:
    """Quantize one model with one peer; the last line printed is what it took."""
    maker = next(make for name, make in MAKERS.items() if case["peer"].startswith(name))
    run = maker(case, np.load(case["calibration"]))
    before, start = _peak_mib(), time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "before": before, "peak": _peak_mib()}))


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def compare(entry: str, args: argparse.Namespace, data: tuple[np.ndarray, ...], folder: Path) -> None:
    import torch

    from hqp_lightning.export import export_onnx
    from hqp_lightning.export.engines import OpenVINOBackend, latencies

    name, _, weights = entry.partition("=")
    calibration, x, y = data
    onnx = weights
    if not weights.endswith(".onnx"):
        onnx = str(folder / f"{name}.onnx")
        export_onnx(load(name, weights), torch.zeros(1, 3, args.px, args.px), onnx)
    np.save(folder / "calibration.npy", calibration)
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    made: dict[str, dict[str, Any]] = {}
    for peer in args.peers:
        if peer == "modelopt torch" and onnx == weights:
            continue
        target = folder / f"{name}.{peer.replace(' ', '_')}{'.xml' if peer == 'NNCF' else '.onnx'}"
        case = {"peer": peer, "onnx": onnx, "network": name, "weights": weights, "target": str(target),
                "calibration": str(folder / "calibration.npy"), "threads": args.threads}  # fmt: skip
        python = sys.executable if peer == "ours" or peer.startswith("onnxruntime") else args.peer_python
        done = subprocess.run(
            [python, __file__, "--child", json.dumps(case)],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
        if done.returncode == 0:
            made[peer] = {"file": target, **json.loads(done.stdout.splitlines()[-1])}
        else:
            print(f"{peer}: {(done.stderr.strip() or 'no output').splitlines()[-1]}", file=sys.stderr, flush=True)

    files = {"float": (Path(onnx), "fp32"), **{peer: (m["file"], "int8") for peer, m in made.items()}}
    engines, logits = {}, {}
    for key, (path, precision) in files.items():
        try:
            engines[key] = OpenVINOBackend().build(path, precision, folder, threads=args.threads)
            out = np.concatenate([engines[key].run(part) for part in np.array_split(x, max(1, len(x) // 50))])
            logits[key] = out - out.mean(1, keepdims=True)
        except Exception as error:
            engines.pop(key, None)
            print(f"{key}: OpenVINO: {str(error).splitlines()[0]}", file=sys.stderr, flush=True)
    times = latencies(engines, x[:1], runs=args.runs)
    print(f"\n{name}: {len(calibration)} images calibrate, {len(x)} judge, {args.px} px, {args.threads} threads\n")
    print("| | top-1 | SQNR dB | OpenVINO ms | quantization s | peak MiB (before) |\n|---|---|---|---|---|---|")
    for key in engines:
        noise = ((logits[key] - logits["float"]) ** 2).sum() / (logits["float"] ** 2).sum()
        sqnr = "" if key == "float" else f"{-10 * np.log10(noise):.1f}"
        took = (
            f"{made[key]['seconds']:.1f} | {made[key]['peak']:.0f} ({made[key]['before']:.0f})"
            if key in made
            else " | "
        )
        top1 = (logits[key].argmax(1) == y).mean()
        print(f"| {key} | {top1:.4f} | {sqnr} | {times[key].median:.2f} | {took} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="NAME=FILE")
    parser.add_argument("--data", help="folder that holds imagenette2-160")
    parser.add_argument("--px", type=int, default=128)
    parser.add_argument("--calibration", type=int, default=512, help="images")
    parser.add_argument("--images", type=int, default=1000, help="that the top-1 is measured on")
    parser.add_argument("--runs", type=int, default=100, help="timed calls")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS)
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has NNCF and modelopt")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child)
        return
    if not args.models or not args.data:
        parser.error("give --data and at least one NAME=FILE")
    from photographs import photographs

    data = photographs(args.data, args.px, args.calibration, args.images)
    with tempfile.TemporaryDirectory() as folder:
        for entry in args.models:
            compare(entry, args, data, Path(folder))


if __name__ == "__main__":
    main()
