"""Export: files, quantized layers, timed engines."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "ComparedTensor",
    "CompiledEngine",
    "EngineReport",
    "Latency",
    "ModelTensor",
    "OnnxArtifact",
    "QuantizedLayer",
]


@dataclass(frozen=True, slots=True)
class ModelTensor:
    """An input or output of an ONNX file. ``shape`` is of one sample, without the batch axis; None: not known.

    ``dtype`` is ``"float32"``, or that of an input that is none: ``"uint8"`` of a picture as bytes.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str = "float32"


@dataclass(frozen=True, slots=True)
class OnnxArtifact:
    """An ONNX file with what one needs to run it, its inputs and outputs in the order of the file."""

    path: str
    file_bytes: int
    sha256: str
    opset: int
    inputs: tuple[ModelTensor, ...]
    outputs: tuple[ModelTensor, ...]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of a sample of the first input."""
        return tuple(size or 0 for size in self.inputs[0].shape)

    @property
    def input_dtype(self) -> str:
        """Of the first input."""
        return self.inputs[0].dtype


@dataclass(frozen=True, slots=True)
class QuantizedLayer:
    """A node of the ONNX graph that can be quantized. ``precision`` is ``"int8"`` or ``"float"``.

    ``noise`` is what quantizing it alone does to the logits: squared error over signal, see `quantization_noise`.
    ``float_cost_ms`` is the processor time that it adds to a call in float, where that was measured; below 0: it is
    quicker in float.
    """

    layer: str
    noise: float
    precision: str
    float_cost_ms: float | None = None


@dataclass(frozen=True, slots=True)
class ComparedTensor:
    """A tensor of one file beside the same one of another, such as float and INT8; noises are error over signal.

    Attributes:
        tensor: its name in the second file.
        layer: the node that makes it there.
        operator: of that node.
        running: noise where both files run on their own.
        alone: noise that this node alone makes of the first file's tensors.
        quantizing: noise of the quantizer behind it alone; None: there is none.
        clipped: share of the values that lie beyond that quantizer's range.
        saturated: channels of which more than a twentieth is clipped.
        dead: channels that are constant in the second file and not in the first.
        channels: how many there are.
        fault: what is wrong with it, in words; empty where nothing is.
    """

    tensor: str
    layer: str
    operator: str
    running: float
    alone: float
    quantizing: float | None
    clipped: float | None
    saturated: int | None
    dead: int
    channels: int
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds of one inference call (wall time; on TensorRT GPU time), over ``runs`` calls after a warm-up."""

    median: float
    p95: float
    runs: int = 0


@dataclass(frozen=True, slots=True)
class EngineReport:
    """A timed engine. ``model`` is ``"dense"`` or ``"pruned"``.

    ``precision`` is ``"fp32"``, ``"fp16"``, ``"bf16"``, ``"int8"``, or ``"int8+bf16"``: float parts in bfloat16.

    ``images_per_s`` is the batch over the median latency; ``accuracy`` is the engine's own score, where it was scored.
    """

    backend: str
    model: str
    precision: str
    latency_ms: Latency
    batch_size: int
    threads: int
    device: str
    path: str
    accuracy: float | None = None
    images_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class CompiledEngine:
    """An engine that NVIDIA's compiler made here for the GPUs of one compute capability elsewhere: nothing ran.

    ``kernels`` are started by one call and move ``bytes_moved``, weights too; ``int8_layers`` of the ``int8_asked``
    that the file quantizes became INT8, ``in_float`` names the others. ``version`` is that of TensorRT for RTX.
    """

    model: str
    precision: str
    compute_capability: str
    kernels: int
    bytes_moved: int
    int8_layers: int
    int8_asked: int
    in_float: tuple[str, ...]
    engine_bytes: int
    path: str
    version: str
    batch_size: int
