"""NVIDIA's compiler on a machine without a GPU: engines of TensorRT for RTX, for other machines' GPUs."""

from __future__ import annotations

import importlib.util
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from hqp_lightning.board.files import check_writable
from hqp_lightning.board.kernels import kernel_count, moved_bytes
from hqp_lightning.board.layers import Layer, fell_back, read_layers, untold
from hqp_lightning.board.library import RTX
from hqp_lightning.board.notes import write_rtx_note
from hqp_lightning.errors import ExportError

__all__ = ["CAPABILITIES", "GPUS", "Compiled", "check_capabilities", "compile_rtx", "missing", "read_table", "rtx_path"]

CAPABILITIES = ("8.6", "8.9", "12.0")
"""Those that are compiled for unless others are asked for; there is no 8.7 (Orin) and no 9.0."""

GPUS = {
    "7.5": "Turing, RTX 20",
    "8.0": "A100",
    "8.6": "Ampere, RTX 30",
    "8.9": "Ada, RTX 40",
    "12.0": "Blackwell, RTX 50",
}
"""The generation behind a compute capability, for people."""

_NAMED = 3
_SECONDS = 300  # half a second is usual; a compiler that hangs must not cost the run
_START = (
    "import sys; sys.path.insert(0, sys.argv[2]); from hqp_lightning.board.rtx_process import main; main(sys.argv[1])"
)


class Compiled(NamedTuple):
    """An engine that was compiled here and runs elsewhere.

    Attributes:
        capability: the compute capability of its GPUs.
        version: of TensorRT for RTX; it runs with this release.
        kernels: how many one call starts.
        bytes_moved: what they read and write, weights too.
        asked: how many layers the model asks to be INT8.
        floats: those of them that are not, in words.
    """

    path: Path
    capability: str
    version: str
    kernels: int
    bytes_moved: int
    asked: int
    floats: tuple[str, ...]

    def line(self) -> str:
        """One line for people."""
        gpus = f" ({GPUS[self.capability]})" if self.capability in GPUS else ""
        int8 = f", {self.asked - len(self.floats)} of {self.asked} layers in INT8" if self.asked else ""
        return (
            f"{self.path.name}: for compute capability {self.capability}{gpus}, TensorRT for RTX {self.version}, "
            f"{self.kernels} kernels{int8}, {self.path.stat().st_size / 1e6:.1f} MB"
        )

    def warnings(self) -> list[str]:
        """One line on the layers that should be INT8 and are not, if there are any; the layer table has them all."""
        if not self.floats:
            return []
        named = ", ".join(self.floats[:_NAMED]) + ", ..." * (len(self.floats) > _NAMED)
        if len(self.floats) < self.asked:
            return [f"warning: {len(self.floats)} of {self.asked} layers that should be INT8 are not: {named}"]
        instead = "INT8 wins nothing there, build model.onnx in FP16"
        return [f"warning: none of the {self.asked} layers that should be INT8 is ({named}): {instead}"]


def missing() -> str | None:
    """One line that says why this machine has no such compiler and what to do, or None."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return (
            f"NVIDIA's compiler skipped: TensorRT for RTX exists for x86-64 alone, this machine is {platform.machine()}"
        )
    if importlib.util.find_spec(RTX) is None:
        return "NVIDIA's compiler skipped: not installed (pip install 'hqp-lightning[rtx]')"
    return None


def rtx_path(engine: Path, capability: str) -> Path:
    """The file of one capability beside the name of all: ``model.engine`` to ``model.sm86.engine``."""
    return engine.with_name(f"{engine.stem}.sm{capability.replace('.', '')}{engine.suffix or '.engine'}")


def check_capabilities(capabilities: tuple[str, ...]) -> None:
    """Refuse what is no compute capability, such as ``sm_86``.

    Raises:
        ExportError: with the expected form.
    """
    for text in capabilities:
        if not (isinstance(text, str) and text.count(".") == 1 and text.replace(".", "").isdigit()):
            raise ExportError(
                f"compute capability {text!r}: expected one such as '8.6'; usual are {list(CAPABILITIES)}"
            )


def compile_rtx(
    onnx: Path, engine: Path, capability: str, *, batch_size: int = 1, max_batch: int | None = None
) -> Compiled:
    """Compile a model, in a process of its own, and write the engine, its layer table and its note.

    Args:
        onnx: in the types that it shall compute in: the float16 form for FP16, since networks are strongly typed.
        engine: the file to write.
        capability: such as ``"8.6"``.
        batch_size: to optimise for.
        max_batch: the largest that runs; by default ``batch_size``, since an engine of one size has fewer kernels.

    Raises:
        ExportError: no compiler here, or it refuses, ends or hangs; in one line.
    """
    if (reason := missing()) is not None:
        raise ExportError(reason)
    check_capabilities((capability,))
    if not onnx.is_file():
        raise ExportError(f"no ONNX file at {onnx}")
    check_writable(engine)
    most = batch_size if max_batch is None else max_batch
    sizes = {"batch_size": batch_size, "max_batch": most}
    answer = _ask({"onnx": str(onnx), "engine": str(engine), "capabilities": [capability], **sizes})
    table = read_table(engine)
    layers, asked = read_layers(table), answer["asked"]
    write_rtx_note(engine, onnx, answer["version"], capability, int8_asked=asked, **sizes)
    floats = [_said(x) for x in fell_back(layers, asked)] + [f"{n}: not told" for n in untold(layers, asked)]
    return Compiled(
        engine, capability, answer["version"], kernel_count(table), moved_bytes(table), len(asked), tuple(floats)
    )


def read_table(engine: Path) -> str:
    """The layer table beside a compiled engine, the inspector's JSON.

    Raises:
        ExportError: it is not there.
    """
    path = engine.with_suffix(".layers.json")
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ExportError(f"no layer table beside {engine}: {error}; copy {path.name}, too") from error


def _said(layer: Layer) -> str:
    return f"{layer.name} in {layer.precision}"


def _ask(job: dict[str, object]) -> dict[str, Any]:
    root = str(Path(__file__).parents[2])  # the folder of the package, or hqp-engine.pyz itself
    command = [sys.executable, "-c", _START, json.dumps(job), root]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise ExportError(f"TensorRT for RTX did not answer within {_SECONDS} s and was ended") from None
    if done.returncode != 0 or not done.stdout.strip():
        last = (done.stderr.strip().splitlines() or ["without a word"])[-1]
        raise ExportError(f"TensorRT for RTX ended with status {done.returncode}: {last}")
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    if "error" in answer:
        raise ExportError(str(answer["error"]))
    return answer
