"""What every release of TensorRT is told and asked about a network, before it is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hqp_lightning.board.library import Log, title
from hqp_lightning.errors import ExportError

__all__ = ["add_profile", "asked_int8", "check_shape", "network_flags", "parse"]


def network_flags(trt: Any) -> int:
    """8.x and 10.x want the explicit batch asked for; later releases know nothing else."""
    flags = trt.NetworkDefinitionCreationFlag
    return 1 << int(flags.EXPLICIT_BATCH) if hasattr(flags, "EXPLICIT_BATCH") else 0


def parse(trt: Any, network: Any, log: Log, onnx: Path) -> None:
    """Read a model into the network.

    Raises:
        ExportError: an unsupported operator, or no model; with the parser's reasons.
    """
    parser = trt.OnnxParser(network, log.logger)
    if parser.parse(onnx.read_bytes(), str(onnx)):  # the path, for weights in files of their own beside it
        return
    errors = [parser.get_error(k) for k in range(parser.num_errors)]
    reasons = "; ".join(_parser_error(e) for e in errors) or log.why()
    unknown = ("No importer registered", "Plugin not found")
    unsupported = any("UNSUPPORTED" in str(e.code()) or any(w in e.desc() for w in unknown) for e in errors)
    advice = ": an operator that this release does not have; replace it in the model, or update TensorRT"
    raise ExportError(f"{title(trt)} cannot parse {onnx}{advice if unsupported else ''} ({reasons})")


def check_shape(network: Any, onnx: Path) -> None:
    """A model that this program cannot run is told before minutes of building."""
    inputs = [tuple(network.get_input(k).shape) for k in range(network.num_inputs)]
    if not inputs or not network.num_outputs or any(s[:1] != (-1,) or min(s[1:], default=1) < 1 for s in inputs):
        raise ExportError(
            f"{onnx} has inputs of shape {inputs} (-1: dynamic) and {network.num_outputs} outputs; expected inputs "
            "of which the batch alone is dynamic, and an output: export it so (dynamic_axes)"
        )


def _parser_error(error: Any) -> str:
    where = f"{error.node_operator()} {error.node_name()}: " if hasattr(error, "node_operator") else ""
    return f"{where}{error.desc()}"


def add_profile(builder: Any, network: Any, config: Any, batches: tuple[int, int, int]) -> None:
    """Say which batch sizes the engine takes: the least, the one to optimise for, the largest."""
    profile = builder.create_optimization_profile()
    for entry in (network.get_input(k) for k in range(network.num_inputs)):
        sample = tuple(entry.shape)[1:]
        profile.set_shape(entry.name, *((n, *sample) for n in batches))
    config.add_optimization_profile(profile)


def asked_int8(trt: Any, network: Any) -> list[str]:
    """Convolutions and matrix products that read a dequantized tensor: INT8, if TensorRT fuses as it should."""
    layers = [network.get_layer(k) for k in range(network.num_layers)]
    dequantized = {x.get_output(0).name for x in layers if x.type == trt.LayerType.DEQUANTIZE}
    kinds = (trt.LayerType.CONVOLUTION, trt.LayerType.MATRIX_MULTIPLY)
    return [x.name for x in layers if x.type in kinds and x.get_input(0).name in dequantized]
