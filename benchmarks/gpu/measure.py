"""Build, score and time engines on a GPU; `run.sh` calls it, with a Python that has TensorRT (for RTX) and numpy.

measure.py build PIECES OUT MODEL [--rtx]    every precision and batch size of one model: a row each in OUT/rows.jsonl
measure.py time PIECES OUT [--rtx]           all engines of a library in turn, by CUDA events: OUT/times*.json
measure.py table OUT                         OUT/table.md, of what is there
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
from hqp_lightning.board.cuda import Cuda  # noqa: E402
from hqp_lightning.board.engine import LoadedEngine  # noqa: E402
from hqp_lightning.board.layers import fell_back, read_layers  # noqa: E402
from hqp_lightning.board.library import import_rtx, import_tensorrt  # noqa: E402
from hqp_lightning.board.make import make  # noqa: E402
from hqp_lightning.board.rtx_process import build_rtx  # noqa: E402
from hqp_lightning.errors import HQPError  # noqa: E402

BATCHES = (1, 8)
SOURCES = {"fp32": "model.onnx", "fp16": "model.onnx", "int8": "tensorrt/model.int8.trt8.onnx"}
RTX_SOURCES = {"fp16": "tensorrt/model.fp16.onnx", "int8": "tensorrt/model.int8.fp16.onnx"}
# cuBLAS and cuDNN need not be on the machine, nor what stands in for them work.
TACTICS = ("EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS")
ROUNDS, RUNS = 7, 30
HEADER = ("model", "library", "precision", "batch", "ms (p95)", "images/s", "over FP32 dense", "top-1", "onnxruntime",
          "INT8 layers", "build s")  # fmt: skip


def photographs(pieces: Path) -> tuple[np.ndarray, np.ndarray]:
    """Photographs as the models take them, and their labels."""
    with np.load(pieces / "photographs.npz") as stored:
        mean, std = (stored[k][:, None, None] for k in ("mean", "std"))
        return (stored["images"].astype(np.float32) / 255 - mean) / std, stored["labels"]


def build(pieces: Path, out: Path, model: str, rtx: bool, deadline: float) -> None:
    """Build and score every engine of a model; one that fails is a row with the reason."""
    folder = pieces / "models" / model
    x, y = photographs(pieces)
    expected = json.loads((folder / "expected.json").read_text())
    for batch in BATCHES:
        for precision, form in (RTX_SOURCES if rtx else SOURCES).items():
            key = f"{model}.{precision}.b{batch}{'.rtx' if rtx else ''}"
            row = {"model": model, "precision": precision, "batch": batch, "rtx": rtx, "engine": f"{key}.engine"}
            row["expected"] = expected["int8" if precision == "int8" else "float"]
            start = time.perf_counter()
            try:
                if time.time() > deadline:
                    raise TimeoutError("no time left for it")
                row.update(_built(folder / form, out / row["engine"], precision, batch, rtx, x, y))
            except (HQPError, ImportError, TimeoutError) as error:
                row["error"] = " ".join(str(error).split())
            row["build_s"] = time.perf_counter() - start
            print(row, flush=True)
            with (out / "rows.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")


def _built(
    onnx: Path, path: Path, precision: str, batch: int, rtx: bool, x: np.ndarray, y: np.ndarray
) -> dict[str, object]:
    cuda = Cuda()  # the driver first: without a GPU trt.Runtime ends the process
    if rtx:
        trt = import_rtx()
        asked = build_rtx(trt, onnx, path, [cuda.capability], batch, batch)["asked"]
        engine, layers = LoadedEngine(trt, cuda, path.read_bytes(), path), read_layers(_table(path))
    else:
        trt = import_tensorrt()
        sizes = {"batch_size": batch, "max_batch": batch}
        made = make(trt, cuda, onnx, path, precision, timing_cache=path.parent / "timing.cache", **sizes,
                    tactic_sources=TACTICS)  # fmt: skip
        engine, layers, asked = made.engine, made.layers, made.asked
        path.with_suffix(".layers.json").write_text(made.inspection)
    with engine:
        top1 = float((engine.run(x).argmax(1) == y).mean())
    return {"library": f"{trt.__name__} {trt.__version__}" if rtx else f"tensorrt {trt.__version__}", "gpu": cuda.name,
            "top1": top1, "asked": len(asked), "floats": len(fell_back(layers, asked))}  # fmt: skip


def _table(engine: Path) -> str:
    return engine.with_suffix(".layers.json").read_text()


def rows_of(out: Path) -> list[dict]:
    path = out / "rows.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def time_engines(pieces: Path, out: Path, rtx: bool) -> None:
    """Single calls on the GPU's clock, without copies, all engines in turn in a new order every round."""
    rows = [r for r in rows_of(out) if r["rtx"] == rtx and "error" not in r]
    if not rows:
        return
    x, _ = photographs(pieces)
    cuda = Cuda()
    trt = import_rtx() if rtx else import_tensorrt()
    engines = {r["engine"]: LoadedEngine(trt, cuda, (out / r["engine"]).read_bytes(), r["engine"]) for r in rows}
    found: dict[str, dict[str, list[float]]] = {k: {"ms": [], "images_per_s": []} for k in engines}
    order, generator = list(engines), random.Random(0)
    for turn in range(1 + ROUNDS):
        generator.shuffle(order)
        for key in order:
            times = engines[key].time(x[: engines[key].batch_size], warmup=10, runs=RUNS)
            if turn:
                found[key]["ms"] += times.latencies_ms
                found[key]["images_per_s"].append(times.images_per_s)
    for engine in engines.values():
        engine.close()
    (out / f"times{'.rtx' if rtx else ''}.json").write_text(json.dumps(found))


def table(out: Path) -> str:
    """Markdown: an engine a row, and those that are not there with the reason."""
    times: dict[str, dict[str, list[float]]] = {}
    for path in sorted(out.glob("times*.json")):
        times.update(json.loads(path.read_text()))
    rows, medians = rows_of(out), {k: statistics.median(t["ms"]) for k, t in times.items()}
    about = sorted({f"{r['gpu']}, {r['library']}" for r in rows if "gpu" in r}) or ["no engine was built"]
    lines = ["; ".join(about), "", f"| {' | '.join(HEADER)} |", "|" + "---|" * len(HEADER)]
    for r in rows:
        start = f"| {r['model']} | {'RTX' if r['rtx'] else 'TensorRT'} | {r['precision']} | {r['batch']} "
        if "error" in r:
            lines.append(f"{start}| {r['error'].replace('|', '/')[:200]} |" + " |" * (len(HEADER) - 5))
            continue
        taken, base = times.get(r["engine"]), medians.get(f"{r['model'].split('.')[0]}.dense.fp32.b{r['batch']}.engine")
        cells = ["not timed", "", ""]
        if taken:
            ms = medians[r["engine"]]
            cells[0] = f"{ms:.3f} ({np.percentile(taken['ms'], 95):.3f})"
            cells[1] = f"{statistics.median(taken['images_per_s']):.0f}"
            cells[2] = f"{base / ms:.2f}x" if base else ""
        layers = f"{r['asked'] - r['floats']} of {r['asked']}" if r["asked"] else ""
        cells += [f"{r['top1']:.4f}", f"{r['expected']:.4f}", layers, f"{r['build_s']:.0f}"]
        lines.append(f"{start}| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("build", "time", "table"))
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--rtx", action="store_true")
    parser.add_argument("--until", type=float, default=float("inf"), help="seconds of the epoch; no build starts later")
    args = parser.parse_args(arguments)
    if args.what == "build":
        pieces, out, model = args.folders
        build(pieces, out, model.name, args.rtx, args.until)
    elif args.what == "time":
        time_engines(*args.folders, args.rtx)
    else:
        (out,) = args.folders
        (out / "table.md").write_text(table(out))
        print((out / "table.md").read_text())


if __name__ == "__main__":
    main()
