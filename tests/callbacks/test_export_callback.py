import json

import onnx
import pytest
import torch
from classifier import Classifier, Scripted, accuracy_by_hand, macs_of
from lightning.pytorch import Callback, LightningDataModule
from torch.utils.data import DataLoader, TensorDataset

from hqp_lightning import HQPPruning, Int8Export, hqp_callbacks, load_pruned
from hqp_lightning.export import costing, read_manifest
from hqp_lightning.report import read_json


def gate_fisher_by_hand(model, loader):
    """Mean squares of the derivatives by explicit gates, one for each sample and channel."""
    found = {}
    training = model.training
    model.eval()
    for group, reader in {"0": 3, "3": 7, "7": 11}.items():
        sums, samples = 0.0, 0
        for x, y in loader:
            width = model.net[reader].weight.shape[1]
            gates = torch.ones(len(x), width, *([1, 1] if reader != 11 else []), requires_grad=True)
            read = model.net[:reader](x).detach()
            losses = torch.nn.functional.cross_entropy(model.net[reader:](read * gates), y, reduction="sum")
            (grad,) = torch.autograd.grad(losses, gates)
            sums, samples = sums + grad.flatten(1).double().square().sum(0), samples + len(x)
        found[group] = (sums / samples).sort().values
    model.train(training)
    return found


def test_the_whole_story_on_real_data(loaders, make_trainer, digits, tmp_path):
    pruning, export = hqp_callbacks(
        0.05,
        "val_acc",
        tmp_path / "deploy",
        start_epoch=4,
        step=0.2,
        export={"engines": ["onnxruntime"], "latency_runs": 5, "threads": 1},
    )
    model, by_hand = Classifier(), {}

    class Look(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 4:
                by_hand.update(gate_fisher_by_hand(pl_module, loaders[1]))

    make_trainer(9, [Look(), pruning, export]).fit(model, *loaders)
    report, deploy = export.report, tmp_path / "deploy"
    x, y = digits[0][1200:1400], digits[1][1200:1400]

    assert report.within_budget
    assert report.accuracy_drop <= 0.05 + 1e-7
    assert report.int8.accuracy == pytest.approx(accuracy_by_hand(deploy / "model.int8.onnx", x, y), abs=1e-6)
    assert report.pruned.accuracy == pytest.approx(accuracy_by_hand(deploy / "model.onnx", x, y), abs=1e-6)
    dense = accuracy_by_hand(deploy / "model.dense.onnx", x, y)
    assert pruning.state.dense.score == pytest.approx(dense, abs=1e-6)
    kept = [r.accuracy for r in pruning.records if r.outcome == "kept"]
    assert report.baseline.accuracy == pytest.approx(dense, abs=1e-6)
    assert report.held_to == pytest.approx(max(dense, *kept), abs=1e-6)
    assert any("was still learning" in note for note in report.notes) == (max(kept) - dense > 0.05)
    assert report.accuracy_drop == pytest.approx(report.held_to - report.int8.accuracy)
    files = {"model.dense.onnx": report.baseline, "model.onnx": report.pruned, "model.int8.onnx": report.int8}
    for name, figures in files.items():
        assert figures.file_bytes == (deploy / name).stat().st_size
        assert figures.macs == pytest.approx(macs_of(deploy / name))
    assert report.size_reduction == pytest.approx(1 - report.int8.file_bytes / report.baseline.file_bytes)
    assert report.macs_reduction > 0.15
    assert report.steps == pruning.records
    assert [(e.model, e.precision) for e in report.engines] == [
        ("dense", "fp32"),
        ("pruned", "fp32"),
        ("pruned", "int8"),
    ]
    assert all(0 < q.noise < 0.1 for q in report.quantization)
    floats = {q.layer for q in report.quantization if q.precision == "float"}
    assert floats == {"/0/Conv", "/11/Gemm"}  # nine products for an output; ten outputs
    for row in report.sensitivity:  # of the dense model, not of what was left in the end
        fisher = by_hand.pop(row.group)
        assert row.channels == len(fisher)
        assert row.whole == pytest.approx(0.5 * fisher.sum().item(), rel=1e-3)
        assert row.cheaper_half == pytest.approx(0.5 * fisher[: len(fisher) // 2].sum().item(), rel=1e-3, abs=1e-9)
    assert not by_hand
    assert {c.layer: (c.before, c.after) for c in report.channels}["0"] == (32, model.net[0].out_channels)

    assert read_json(deploy / "report.json") == report
    assert "val_acc" in (deploy / "report.html").read_text()
    manifest = read_manifest(deploy / "manifest.json")
    assert manifest["accuracy"] == pytest.approx(report.int8.accuracy)
    loaded = load_pruned(Classifier, deploy / "pruned.ckpt").eval()
    with torch.no_grad():
        assert float((loaded.net(x).argmax(1) == y).double().mean()) == pytest.approx(report.pruned.accuracy, abs=1e-6)
    assert not (set(json.loads((deploy / "report.json").read_text())) ^ set(report.__dataclass_fields__))


def test_walks_back_to_the_previous_accepted_model_and_says_so(small_loaders, make_trainer, tmp_path):
    # two accepted float models; the INT8 form of the second is over budget, that of the first is not
    model = Scripted([0.90, 0.89, 0.885], int8=[0.80, 0.888])
    pruning = HQPPruning("val_acc", 0.02, step=0.2)
    export = Int8Export(tmp_path, engines=["onnxruntime"], latency_runs=1, threads=1, max_float_layers=0)
    make_trainer(2, [pruning, export]).fit(model, *small_loaders)
    report = export.report
    assert [r.outcome for r in report.steps] == ["kept", "kept"]
    assert any("INT8 of step 2 is over budget, walked back" in n for n in report.notes)
    assert report.within_budget
    assert report.int8.accuracy == pytest.approx(0.888)
    assert report.int8.macs == report.steps[0].macs
    assert sum(p.numel() for p in model.net.parameters()) == report.steps[0].params
    left = load_pruned(Classifier, tmp_path / "walked_back.ckpt")
    assert sum(p.numel() for p in left.net.parameters()) == report.steps[1].params
    assert any(n.startswith("walked_back.ckpt is step 2 in float") for n in report.notes)


def test_says_when_no_int8_model_is_within_the_budget(small_loaders, make_trainer, tmp_path):
    model = Scripted([0.90, 0.89], int8=[0.5, 0.7, 0.7])
    export = Int8Export(tmp_path, engines=["onnxruntime"], latency_runs=1, threads=1, max_float_layers=0)
    make_trainer(1, [HQPPruning("val_acc", 0.02, step=0.2), export]).fit(model, *small_loaders)
    assert not export.report.within_budget
    assert export.report.int8.accuracy == pytest.approx(0.7)
    assert any("No INT8 artifact is within the budget" in n for n in export.report.notes)


def quantized_nodes(path):
    graph = onnx.load(path).graph
    dequantized = {n.output[0] for n in graph.node if n.op_type == "DequantizeLinear"}
    return {n.name for n in graph.node if dequantized & set(n.input) and n.op_type != "DequantizeLinear"}


@pytest.fixture
def as_dear(monkeypatch):
    """Layers cost as much as one another in float, alone and in pairs: their noise decides."""
    alike = lambda engines, _: ({unit: 0.01 * len(unit) for unit in engines if unit}, 1.0)  # noqa: E731
    monkeypatch.setattr(costing, "float_costs_ms", alike)


def test_before_walking_back_the_noisiest_layers_stay_in_float(small_loaders, make_trainer, tmp_path, as_dear):
    # all layers quantized, then one, two, four in float, then the bisection's three: four are needed
    model = Scripted([0.90, 0.89], int8=[0.80, 0.81, 0.82, 0.885, 0.83, 0.885])
    export = Int8Export(tmp_path, engines=["onnxruntime"], latency_runs=1, threads=1, placement="all")
    make_trainer(1, [HQPPruning("val_acc", 0.02, step=0.2), export]).fit(model, *small_loaders)
    report = export.report
    assert report.within_budget
    assert report.int8.accuracy == pytest.approx(0.885)
    assert report.int8.macs == report.steps[0].macs  # no walk back
    noise = {q.layer: q.noise for q in report.quantization}
    in_float = {q.layer for q in report.quantization if q.precision == "float"}
    assert in_float == set(sorted(noise, key=noise.get, reverse=True)[:4])
    assert sum(q.float_cost_ms == 0.01 for q in report.quantization) == len(noise)
    assert quantized_nodes(tmp_path / "model.int8.onnx") == set(noise) - in_float
    (note,) = [n for n in report.notes if n.startswith("Left in float")]
    assert all(f"{name} (+0.010 ms)" in note for name in in_float)


def test_too_few_layers_in_float_may_not_help(small_loaders, make_trainer, tmp_path, as_dear):
    model = Scripted([0.90, 0.89], int8=[0.80, 0.81, 0.895])
    export = Int8Export(
        tmp_path, engines=["onnxruntime"], latency_runs=1, threads=1, max_float_layers=1, placement="all"
    )
    make_trainer(1, [HQPPruning("val_acc", 0.02, step=0.2), export]).fit(model, *small_loaders)
    assert any("INT8 of step 1 is over budget, walked back" in n for n in export.report.notes)
    assert all(q.precision == "int8" for q in export.report.quantization)
    assert export.report.macs_reduction == 0


def test_alone_it_quantizes_the_model_as_trained(loaders, make_trainer, digits, tmp_path):
    export = Int8Export(tmp_path, "val_acc", 0.05, engines=["onnxruntime"], latency_runs=1, threads=1)
    model = Classifier()
    make_trainer(4, [export]).fit(model, *loaders)
    report = export.report
    x, y = digits[0][1200:1400], digits[1][1200:1400]
    with torch.no_grad():
        accuracy = float((model.eval().net(x).argmax(1) == y).double().mean())
    assert report.baseline.accuracy == report.pruned.accuracy == pytest.approx(accuracy, abs=1e-6)
    assert report.int8.accuracy == pytest.approx(accuracy_by_hand(tmp_path / "model.int8.onnx", x, y), abs=1e-6)
    assert report.steps == ()
    assert report.macs_reduction == 0


class Data(LightningDataModule):
    classes = tuple("0123456789")
    preprocessing = {"mean": [0.0], "std": [1.0]}

    def __init__(self, digits):
        super().__init__()
        self.x, self.y = digits

    def _loader(self, a, b):
        return DataLoader(TensorDataset(self.x[a:b], self.y[a:b]), 64)

    def train_dataloader(self):
        return self._loader(0, 320)

    def val_dataloader(self):
        return self._loader(1200, 1400)

    def test_dataloader(self):
        return self._loader(1400, 1700)


def test_held_out_data_is_scored_at_every_stage(make_trainer, digits, tmp_path):
    export = Int8Export(tmp_path, holdout="test", engines=["onnxruntime"], latency_runs=1, threads=1)
    make_trainer(5, [HQPPruning("val_acc", 0.1, step=0.2, start_epoch=3), export]).fit(Classifier(), Data(digits))
    report = export.report
    x, y = digits[0][1400:1700], digits[1][1400:1700]
    files = {"model.dense.onnx": report.baseline, "model.onnx": report.pruned, "model.int8.onnx": report.int8}
    for name, figures in files.items():
        assert figures.holdout_accuracy == pytest.approx(accuracy_by_hand(tmp_path / name, x, y), abs=1e-6)
    assert (report.samples, report.holdout_samples) == (200, 300)
    drop = report.baseline.holdout_accuracy - report.int8.holdout_accuracy
    assert report.holdout_accuracy_drop == pytest.approx(drop)
    manifest = read_manifest(tmp_path / "manifest.json")
    assert manifest["classes"] == list("0123456789")
    assert manifest["preprocessing"] == {"mean": [0.0], "std": [1.0]}


def test_scoring_leaves_the_run_alone(small_loaders, make_trainer, tmp_path):
    from lightning.pytorch import Callback

    class Counter(Callback):
        validations = 0

        def on_validation_end(self, trainer, pl_module):
            self.validations += 1

    counter, model = Counter(), Classifier()
    export = Int8Export(tmp_path, "val_acc", 0.5, engines=["onnxruntime"], latency_runs=1, threads=1)
    trainer = make_trainer(2, [counter, export])
    trainer.fit(model, *small_loaders)
    assert counter.validations == 2
    assert model.trainer is trainer
    assert "forward" not in model.net.__dict__


def test_a_network_whose_layers_the_validation_step_calls_is_scored_through_them(
    loaders, digits, make_trainer, tmp_path
):
    class Bypass(Classifier):
        def validation_step(self, batch, batch_idx):
            x, y = batch
            for layer in self.net:
                x = layer(x)
            self.accuracy(x, y)
            self.log("val_acc", self.accuracy)

    export = Int8Export(tmp_path, "val_acc", 0.5, engines=["onnxruntime"], latency_runs=1, threads=1)
    make_trainer(1, [export]).fit(Bypass(), *loaders)
    by_hand = accuracy_by_hand(tmp_path / "model.int8.onnx", digits[0][1200:1400], digits[1][1200:1400])
    assert export.report.int8.accuracy == pytest.approx(by_hand)


def test_uint8_ships_to_a_cpu(loaders, digits, make_trainer, tmp_path):
    """Within the same budget, scored from the file; nothing for TensorRT is made of it, and a note says so."""
    export = Int8Export(tmp_path, "val_acc", 0.05, activation_type="uint8", latency_runs=2, threads=1)
    make_trainer(3, [export]).fit(Classifier(), *loaders)
    report, (x, y) = export.report, (digits[0][1200:1400], digits[1][1200:1400])
    types = {i.data_type for i in onnx.load(tmp_path / "model.int8.onnx").graph.initializer if "zero_point" in i.name}
    assert types == {onnx.TensorProto.UINT8, onnx.TensorProto.INT8}  # activations, weights
    assert report.within_budget
    assert report.int8.accuracy == pytest.approx(accuracy_by_hand(tmp_path / "model.int8.onnx", x, y), abs=0.011)
    assert {e.backend for e in report.engines} <= {"openvino", "onnxruntime"}
    assert "Activations are uint8: for CPUs, TensorRT does not read the file." in report.notes
    assert read_manifest(tmp_path / "manifest.json")["calibration"]["activation_type"] == "uint8"
    assert [p.name for p in (tmp_path / "tensorrt").iterdir()] == ["model.fp16.onnx"]
