"""What can't be exported is refused before the first batch, by name; what only looked so is exported."""

import onnx
import pytest
import torch
from classifier import Classifier, accuracy_by_hand
from torch import nn

from hqp_lightning import ConfigurationError, HQPPruning, Int8Export


class Unwritten(Classifier):
    """Tells when training has begun."""

    def __init__(self, *layers, features=16):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), *layers, nn.Flatten(), nn.Linear(features, 10)
        )

    def training_step(self, batch, batch_idx):
        raise AssertionError("a batch was trained on")


class Spectrum(nn.Module):
    def forward(self, x):
        return torch.fft.fft2(x).abs().mean((2, 3))


class Alternating(nn.Module):
    """Computes otherwise every time it is called, which no file does."""

    sign = 1

    def forward(self, x):
        self.sign = -self.sign
        return x * self.sign


UNWRITTEN = {
    "AdaptiveAvgPool2d": (nn.AdaptiveAvgPool2d(3), 144, "net.2", "adaptive_avg_pool2d"),
    "InstanceNorm2d": (
        nn.Sequential(nn.InstanceNorm2d(16, track_running_stats=True), nn.AdaptiveAvgPool2d(1)), 16, "net.2.0", "norm",
    ),
    "Spectrum": (Spectrum(), 16, "net.2", "fft_fft2"),
    "Alternating": (nn.Sequential(nn.AdaptiveAvgPool2d(1), Alternating()), 16, "net.2.1", "computes something else"),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNWRITTEN)
def test_a_network_that_onnx_cant_hold_is_refused_by_name(kind, small_loaders, make_trainer, tmp_path, capfd):
    layer, features, name, operator = UNWRITTEN[kind]
    export = Int8Export(tmp_path / "deploy", "val_acc", 0.5, engines=["onnxruntime"])
    with pytest.raises(
        ConfigurationError, match=rf"Int8Export can't write Sequential as ONNX: .*{operator}"
    ) as refused:
        make_trainer(1, [export]).fit(Unwritten(layer, features=features), *small_loaders)
    assert f"It is {name!r} ({kind})." in str(refused.value)
    assert "graph(" not in "".join(capfd.readouterr())  # the exporter prints the whole of it
    assert not list((tmp_path / "deploy").iterdir())


class Attentive(Classifier):
    """An encoder layer, which evaluation computes by one operator of its own, that ONNX does not have."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Flatten(2), nn.Linear(64, 16),
            nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), nn.Flatten(), nn.Linear(256, 10),
        )  # fmt: skip


class Normed(Classifier):
    """Weights that are computed from others, in torch's new way and in its old one."""

    def __init__(self):
        super().__init__()
        self.net[3] = nn.utils.parametrizations.spectral_norm(self.net[3])
        self.net[7] = nn.utils.parametrizations.weight_norm(self.net[7])
        self.net[11] = nn.utils.spectral_norm(self.net[11])


class Compiled(Classifier):
    def __init__(self):
        super().__init__()
        self.net.compile(backend="eager")


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # torch's own attention compares shapes
@pytest.mark.parametrize(
    ("model", "precision"),
    [
        (Classifier, "bf16-true"),
        (Classifier, "64-true"),
        (Attentive, "32-true"),
        (Compiled, "32-true"),
        (Normed, "32-true"),
    ],
)
def test_the_file_is_float32_whatever_the_training_was(model, precision, loaders, digits, make_trainer, tmp_path):
    module, callbacks = model(), []
    if model is Classifier:
        callbacks = [HQPPruning("val_acc", 0.9, step=0.2)]
    export = Int8Export(tmp_path, "val_acc", 0.9, engines=["onnxruntime"], latency_runs=1, threads=1)
    make_trainer(1, [*callbacks, export], precision=precision).fit(module, *loaders)
    types = {i.data_type for i in onnx.load(tmp_path / "model.onnx").graph.initializer}
    assert types <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}
    assert export.report.within_budget
    x, y = digits[0][1200:1400], digits[1][1200:1400]
    assert export.report.int8.accuracy == pytest.approx(accuracy_by_hand(tmp_path / "model.int8.onnx", x, y), abs=1e-6)
    if model is Normed:  # as any other layer
        assert {q.precision for q in export.report.quantization if q.layer in ("/3/Conv", "/7/Conv")} == {"int8"}
    exact = accuracy_by_hand(tmp_path / "model.onnx", x, y)
    assert export.report.pruned.accuracy == pytest.approx(exact, abs=0.02 if precision == "bf16-true" else 1e-6)


def test_the_trial_leaves_the_training_alone(small_loaders, make_trainer, tmp_path):
    losses = []

    class Dropping(Classifier):
        def __init__(self):
            super().__init__()
            self.net.insert(11, nn.Dropout(0.5))

        def training_step(self, batch, batch_idx):
            assert self.net[11].training
            losses.append(super().training_step(batch, batch_idx))
            return losses[-1]

    for callbacks in ([], [Int8Export(tmp_path, "val_acc", 0.9, engines=["onnxruntime"], latency_runs=1, threads=1)]):
        torch.manual_seed(0)
        make_trainer(1, callbacks).fit(Dropping(), *small_loaders)
    assert len(losses) == 10
    assert losses[:5] == losses[5:]
