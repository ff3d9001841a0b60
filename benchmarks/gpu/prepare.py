"""Make what `run.sh` takes to a machine with a GPU: ONNX files and photographs, each file below 60 MiB.

    python benchmarks/gpu/prepare.py --data DATA --out PIECES resnet18=r18.pth resnet18=deploy_resnet/ \
        mobilenet_v3_small=mv3.pth mobilenet_v3_small=deploy_mobilenet/

A model is ``NETWORK=STATE_DICT`` (of torchvision, ten classes, dense) or ``NETWORK=FOLDER``, an export folder whose
pruned model is taken as it ships. A dense model is quantized here, with ``Int8Export``'s default ranges and placement.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from hqp_lightning import export

sys.path.insert(0, str(Path(__file__).parents[1]))
from photographs import photographs  # noqa: E402
from trained import network  # noqa: E402

LIMIT = 60 << 20  # bytes of a file
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what `photographs` normalises with
FORMS = ("model.onnx", "tensorrt/model.fp16.onnx", "tensorrt/model.int8.trt8.onnx", "tensorrt/model.int8.fp16.onnx")


def dense(name: str, weights: str, calibration: np.ndarray, folder: Path) -> None:
    """The files of an export folder that engines are built from."""
    path, int8 = folder / "model.onnx", folder / "model.int8.onnx"
    export.export_onnx(network(name, weights), torch.zeros(1, *calibration.shape[1:]), path)
    left = export.unprofitable(path)
    ranges = export.collect_ranges(path, np.array_split(calibration, 8), threads=1, exclude=left)
    export.quantize(path, ranges, int8, exclude=left)
    export.board_files(path, int8)


def write_model(source: Path, target: Path, x: np.ndarray, y: np.ndarray) -> None:
    """Copy the forms, and write what onnxruntime scores: the float file, and INT8 as the file is written."""
    for form in FORMS:
        (target / form).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / form, target / form)
        if (size := (target / form).stat().st_size) > LIMIT:
            raise SystemExit(f"{target / form} has {size / 2**20:.0f} MiB, more than {LIMIT >> 20}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    expected = {}
    for key, form in {"float": FORMS[0], "int8": FORMS[2]}.items():
        session = onnxruntime.InferenceSession(target / form, options, providers=["CPUExecutionProvider"])
        logits = np.concatenate([session.run(None, {"input": part})[0] for part in np.array_split(x, len(x) // 8 or 1)])
        expected[key] = float((logits.argmax(1) == y).mean())
    (target / "expected.json").write_text(json.dumps(expected))


def write_photographs(path: Path, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Store prepared photographs as bytes, and return what a reader makes of them."""
    mean, std = (np.array(k, np.float32)[:, None, None] for k in (MEAN, STD))
    images = np.clip(np.round(255 * (x * std + mean)), 0, 255).astype(np.uint8)
    np.savez_compressed(path, images=images, labels=y, mean=np.float32(MEAN), std=np.float32(STD))
    return (images.astype(np.float32) / 255 - mean) / std


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NETWORK=FILE")
    parser.add_argument("--data", required=True, help="folder that holds imagenette2-160")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--px", type=int, default=128)
    parser.add_argument("--images", type=int, default=400, help="validation photographs")
    parser.add_argument("--calibration", type=int, default=256, help="training photographs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    calibration, x, y = photographs(args.data, args.px, args.calibration, args.images)
    args.out.mkdir(parents=True, exist_ok=True)
    x = write_photographs(args.out / "photographs.npz", x, y)
    for entry in args.models:
        name, _, given = entry.partition("=")
        kind = "pruned" if Path(given).is_dir() else "dense"
        source = Path(given)
        if kind == "dense":
            source = args.out / "made"
            dense(name, given, calibration, source)
        write_model(source, args.out / "models" / f"{name}.{kind}", x, y)
        shutil.rmtree(args.out / "made", ignore_errors=True)
    for path in sorted(p for p in args.out.rglob("*") if p.is_file()):
        print(f"{path.stat().st_size / 2**20:6.1f} MiB  {path.relative_to(args.out)}")


if __name__ == "__main__":
    main()
