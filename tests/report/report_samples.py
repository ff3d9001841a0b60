"""A run with round numbers, so that every derived figure can be worked out by hand."""

from hqp_lightning.records import (
    Budget,
    EngineReport,
    GroupSensitivity,
    Latency,
    LayerChannels,
    ModelFigures,
    QuantizedLayer,
    Report,
    StepRecord,
)
from hqp_lightning.report import assemble


def engine(backend, model, precision, median, p95=None, **other):
    conditions = {"batch_size": 1, "threads": 2, "device": "a CPU", "images_per_s": 1e3 / median, **other}
    return EngineReport(
        backend=backend,
        model=model,
        precision=precision,
        latency_ms=Latency(median=median, p95=median * 1.1 if p95 is None else p95, runs=50),
        path=f"{model}-{precision}.onnx",
        **conditions,
    )


BUDGET = Budget(max_drop=0.015, monitor="val_acc")
BASELINE = ModelFigures(accuracy=0.90, macs=2e9, params=10_000_000, file_bytes=40_000_000, holdout_accuracy=0.89)
PRUNED = ModelFigures(accuracy=0.895, macs=5e8, params=4_000_000, file_bytes=16_000_000, holdout_accuracy=0.88)
INT8 = ModelFigures(accuracy=0.89, macs=5e8, params=4_000_000, file_bytes=4_000_000, holdout_accuracy=0.87)
CONTROL = ModelFigures(accuracy=0.91, macs=2e9, params=10_000_000, file_bytes=40_000_000, holdout_accuracy=0.895)
ENGINES = (
    engine("openvino", "dense", "fp32", 12.0, 13.5),
    engine("openvino", "pruned", "fp32", 6.0, 6.5),
    engine("openvino", "pruned", "int8", 3.0, 3.25),
)
STEPS = (
    StepRecord(1, 0, "kept", "within the budget", 0.05, 64, 0.001, 1.5e9, 8_000_000, 0.904, -0.004, 0.5),
    StepRecord(2, 1, "kept", "within the budget", 0.05, 96, 0.002, 5e8, 4_000_000, 0.895, 0.005, 0.5),
    StepRecord(3, 2, "rolled_back", "drop 0.6000 exceeds 0.0150", 0.05, 32, 0.1, 4e8, 3_000_000, 0.30, 0.6, 0.5),
    StepRecord(4, 3, "refused", "conv1 would keep no channel", 0.025, 16, 0.0, 4.5e8, 3_500_000),
)
CHANNELS = (LayerChannels("conv1", 64, 24), LayerChannels("layer1.0.conv1", 128, 128))
SENSITIVITY = (GroupSensitivity("conv1", 64, 0.125, 0.5), GroupSensitivity("layer1.0.conv1", 128, 0.5, 2.0))
QUANTIZATION = (
    QuantizedLayer("/conv1/Conv", 3e-4, "float"),
    QuantizedLayer("/layer1/layer1.0/conv1/Conv", 1e-4, "int8"),
    QuantizedLayer("/fc/Gemm", 0.0, "int8"),
)


def sample(**changes) -> Report:
    facts = {
        "budget": BUDGET,
        "baseline": BASELINE,
        "pruned": PRUNED,
        "int8": INT8,
        "control": CONTROL,
        "steps": STEPS,
        "engines": ENGINES,
        "channels": CHANNELS,
        "sensitivity": SENSITIVITY,
        "quantization": QUANTIZATION,
        "notes": ("TensorRT was not built: no NVIDIA driver.",),
        "versions": {"python": "3.12.1", "torch": "2.15.0"},
        **changes,
    }
    return assemble(**facts)
