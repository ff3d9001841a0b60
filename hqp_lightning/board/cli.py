"""Build, time, inspect and check a TensorRT engine on the machine that will run it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hqp_lightning.board.build import MAX_BATCH, PRECISIONS, has_quantizers
from hqp_lightning.board.cuda import Cuda
from hqp_lightning.board.data import labelled_batches, match_folders
from hqp_lightning.board.engine import LoadedEngine
from hqp_lightning.board.layers import read_layers, table
from hqp_lightning.board.library import import_tensorrt
from hqp_lightning.board.make import fallback_lines, make
from hqp_lightning.board.provenance import activation_type, check_note, find_manifest, read_manifest, source_for, verify
from hqp_lightning.errors import ExportError, HQPError

__all__ = ["bench", "build", "check", "inspect", "main"]


def build(
    onnx: Path,
    engine: Path,
    precision: str | None = None,
    batch_size: int = 1,
    max_batch: int | None = None,
    timing_cache: Path | None = None,
    verbose: bool = False,
) -> list[str]:
    """Build ``engine`` and its note from a model of an export folder; return the lines to show.

    Raises:
        ExportError: no GPU or TensorRT, a file that is not the manifest's, or a build that fails; an ``engine`` that
            was there is left as it was.
    """
    said = [verify(onnx)]
    quantized = has_quantizers(onnx)
    precision = precision or ("int8" if quantized else "fp16")
    if (precision == "int8") != quantized:
        wanted = "a model with Q/DQ nodes, such as model.int8.onnx" if precision == "int8" else "the float model.onnx"
        raise ExportError(f"precision {precision} takes {wanted}; {onnx.name} is not one")
    if quantized and (kind := activation_type(onnx)) != "int8":
        raise ExportError(
            f"{onnx.name} has {kind} activations, for CPUs; TensorRT reads int8: export it with "
            "activation_type='int8', or build model.onnx in FP16"
        )
    if batch_size < 1 or (max_batch is not None and max_batch < batch_size):
        raise ExportError(f"batch size {batch_size}, largest {max_batch}: expected 1 <= batch size <= largest")
    if engine.resolve() == onnx.resolve():
        raise ExportError(f"the engine would overwrite the model {onnx}: name another file, such as model.engine")
    cuda = Cuda()  # the driver first: without a GPU trt.Runtime ends the process (8.6)
    trt = import_tensorrt()
    source = source_for(trt, onnx, precision)
    if source != onnx:
        said += [f"TensorRT {trt.__version__} builds from {source}", verify(source)]
    options: dict[str, Any] = {"batch_size": batch_size, "max_batch": max_batch, "verbose": verbose}
    made = make(trt, cuda, source, engine, precision, timing_cache=timing_cache, **options)
    made.engine.close()
    return [*said, *made.lines(), f"wrote {engine} ({engine.stat().st_size / 1e6:.1f} MB) and {engine.name}.json"]


def bench(engine: Path, batch_size: int | None = None, warmup: int = 50, runs: int = 200) -> list[str]:
    """Time an engine on random input; return the lines to show."""
    import numpy as np

    if batch_size is not None and batch_size < 1:
        raise ExportError(f"batch size {batch_size}: expected at least 1")
    loaded, note, said = _load(engine)
    with loaded:
        n = loaded.batch_size if batch_size is None else batch_size
        batch = np.random.default_rng(0).standard_normal((n, *loaded.sample_shape), dtype=np.float32)
        times = loaded.time(batch, warmup=warmup, runs=runs)
    return [
        *said,
        f"{engine.name}: {note['precision']}, batch {n}, {note['gpu']['name']}, TensorRT {note['tensorrt']}",
        f"latency {times.median_ms:.3f} ms median, {times.p95_ms:.3f} ms p95 of {runs} calls after {warmup} "
        "(GPU time by CUDA events, without copies)",
        f"throughput {times.images_per_s:.0f} images/s, calls in a row",
    ]


def inspect(engine: Path, as_json: bool = False) -> list[str]:
    """Show the precision that each layer got; return the lines to show."""
    loaded, note, said = _load(engine)
    with loaded:
        inspection = loaded.layers()
    if as_json:
        return [inspection]
    layers = read_layers(inspection)
    return [*said, table(layers), *fallback_lines(layers, note.get("int8_asked", []))]


def check(engine: Path, data: Path, manifest: Path | None = None, limit: int | None = None) -> list[str]:
    """Measure the top-1 accuracy of an engine on labelled images; return the lines to show."""
    loaded, note, said = _load(engine)
    with loaded:
        if manifest is None and note.get("manifest") and (engine.parent / note["manifest"]).is_file():
            manifest = engine.parent / note["manifest"]
        manifest = manifest or find_manifest(engine)  # an export writes it after its engines
        content = None if manifest is None else read_manifest(manifest)
        right = seen = 0
        for images, labels in labelled_batches(data, content, loaded.max_batch, limit):
            logits = loaded.run(images)
            if labels.min() < 0 or labels.max() >= logits.shape[1]:
                raise ExportError(
                    f"{data} has labels from {labels.min()} to {labels.max()}, the model {logits.shape[1]} classes, "
                    "numbered from 0"
                )
            right += int((logits.argmax(axis=1) == labels).sum())
            seen += len(labels)
    said += [] if content is None else _about(content, note, data)
    said.append(f"top-1 {right / seen:.4f} ({right} of {seen} images of {data})")
    if content is not None and content.get("accuracy") is not None:
        metric = content.get("monitor") or "its metric"
        model = content["model"]["path"]
        said.append(f"the manifest says {content['accuracy']:.4f} for {metric} of {model} on what the export scored")
    return said


def _about(content: dict[str, Any], note: dict[str, Any], data: Path) -> list[str]:
    """What one should know of a check before one believes it."""
    hashes = {content["model"]["sha256"], *content.get("files", {}).values()}
    warnings = []
    if note.get("source", {}).get("sha256") not in hashes:
        warnings.append("the engine was built from another model than the manifest describes: build it again")
    classes = content.get("classes")
    if classes and data.is_dir():
        pairs = [f"{name} = {classes[k]}" for name, k in match_folders(data, classes).items() if classes[k] != name]
        if pairs:
            more = " ..." if len(pairs) > 3 else ""
            warnings.append(
                f"folders were matched with the classes in alphabetical order: {', '.join(pairs[:3])}{more}"
            )
    return [f"warning: {text}" for text in warnings]


def _load(engine: Path) -> tuple[LoadedEngine, dict[str, Any], list[str]]:
    cuda = Cuda()
    trt = import_tensorrt()
    note, warnings = check_note(engine, trt, cuda)
    return LoadedEngine(trt, cuda, engine.read_bytes(), engine), note, [f"warning: {text}" for text in warnings]


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``hqp-engine``; returns the exit status."""
    options = vars(_parser().parse_args(arguments))
    command = options.pop("command")
    try:
        print("\n".join(command(**options)))
    except (HQPError, OSError) as error:
        print(f"hqp-engine: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("hqp-engine: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hqp-engine", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(command: Any, first: str, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(command.__name__, help=text, description=text)
        sub.set_defaults(command=command)
        sub.add_argument(first, type=Path)
        return sub

    sub = add(build, "onnx", "build an engine for this GPU")
    sub.add_argument("-o", "--engine", type=Path, required=True, help="file to write; its note is ENGINE.json")
    sub.add_argument("--precision", choices=PRECISIONS, help="int8 for a Q/DQ model, else fp16, by default")
    sub.add_argument("--batch-size", type=int, default=1, help="to optimise for (default 1)")
    sub.add_argument("--max-batch", type=int, help=f"largest that runs (default: batch size, at least {MAX_BATCH})")
    sub.add_argument("--timing-cache", type=Path, help="read and written: the next build is fast")
    sub.add_argument("--verbose", action="store_true", help="print all that TensorRT reports")
    sub = add(bench, "engine", "time an engine")
    sub.add_argument("--batch-size", type=int, help="default: what it was optimised for")
    sub.add_argument("--warmup", type=int, default=50, help="untimed calls (default 50)")
    sub.add_argument("--runs", type=int, default=200, help="timed calls (default 200)")
    sub = add(inspect, "engine", "show which precision each layer got")
    sub.add_argument("--json", dest="as_json", action="store_true", help="the inspector's own report")
    sub = add(check, "engine", "measure the accuracy of an engine")
    sub.add_argument("data", type=Path, help="folder class/image.jpg, or .npz with images and labels")
    sub.add_argument("--manifest", type=Path, help="manifest.json, if the engine's note does not know it")
    sub.add_argument("--limit", type=int, help="use so many images, evenly spread")
    return parser


if __name__ == "__main__":
    sys.exit(main())
