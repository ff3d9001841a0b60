"""One engine in a process of its own: what `hqp_lightning.board.rtx` starts.

After a build that it refused, TensorRT for RTX leaves INT8 layers of the next one in float, without a word.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from hqp_lightning.board.files import write_whole
from hqp_lightning.board.kernels import inspection_of
from hqp_lightning.board.library import RTX, Log, title
from hqp_lightning.board.network import add_profile, asked_int8, check_shape, network_flags, parse
from hqp_lightning.errors import ExportError

__all__ = ["build_rtx", "main"]


def build_rtx(
    trt: Any, onnx: Path, engine: Path, capabilities: Sequence[str], batch_size: int = 1, max_batch: int = 1
) -> dict[str, Any]:
    """Compile a model into one engine for the GPUs of all these capabilities; write it and its layer table.

    The table is that of the least able of them, and one that refuses the model refuses it for all.

    Args:
        trt: the tensorrt_rtx module.
        onnx: in the types that it shall compute in.
        engine: the file to write; the table goes beside it, ``*.layers.json``.
        capabilities: such as ``["8.6"]``.
        batch_size: to optimise for.
        max_batch: the engine takes so many images at most, and 1 at least; only so many where both are equal and 1.

    Returns:
        ``version``, and ``asked``: the layers that the model asks to be INT8.

    Raises:
        ExportError: it refuses the model or the capability, with its reason in one line.
    """
    targets = [_target(trt, capability) for capability in capabilities]
    log = Log(trt)
    try:
        builder = trt.Builder(log.logger)
    except TypeError as error:  # pybind11's way to say that the factory returned nothing
        raise ExportError(f"{title(trt)} cannot start: {log.why()}") from error
    network = builder.create_network(network_flags(trt))
    parse(trt, network, log, onnx)
    check_shape(network, onnx)
    config = builder.create_builder_config()
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        config.set_compute_capability(target, index)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # or its log does not list the kernels
    add_profile(builder, network, config, (1, batch_size, max_batch))
    asked = asked_int8(trt, network)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        whom = ", ".join(capabilities)
        raise ExportError(f"{title(trt)} refuses {onnx.name} for compute capability {whom}: {log.why()}")
    write_whole(engine.with_suffix(".layers.json"), inspection_of(log.kernels).encode())
    write_whole(engine, bytes(plan))
    return {"version": trt.__version__, "asked": asked}


def _target(trt: Any, capability: str) -> Any:
    wanted = f"SM{capability.replace('.', '')}"
    if not hasattr(trt.ComputeCapability, wanted):
        known = ", ".join(f"{n[2:-1]}.{n[-1]}" for n in sorted(dir(trt.ComputeCapability), key=len) if n[:2] == "SM")
        raise ExportError(f"{title(trt)} does not compile for compute capability {capability}, but for {known}")
    return getattr(trt.ComputeCapability, wanted)


def main(job: str) -> None:
    """Do what ``job`` says, the arguments of `build_rtx` as JSON; the last line printed is the answer as JSON."""
    task = json.loads(job)
    try:
        answer = build_rtx(import_module(RTX), Path(task.pop("onnx")), Path(task.pop("engine")), **task)
    except ImportError as error:
        answer = {"error": f"tensorrt_rtx does not load here: {' '.join(str(error).split())}"}
    except ExportError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1])
