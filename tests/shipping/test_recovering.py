"""Quantization-aware recovery: when it is tried, what it does, and that it leaves nothing where it does not help."""

import copy

import pytest
import torch
from classifier import Classifier, Scripted, accuracy_by_hand
from lightning.pytorch import Callback, LightningDataModule
from torch import nn

from hqp_lightning import ConfigurationError, HQPPruning, Int8Export, load_pruned
from hqp_lightning.export import Range
from hqp_lightning.records import Budget
from hqp_lightning.shipping.recovering import costs_too_much, recover_
from hqp_lightning.surgery import fake_quantized


class Loud(Callback):
    """Two channels become 150 times as large, and their readers' weights as much smaller: the same function in float.

    With ``method="max"`` one step then covers most values of the other channels.
    """

    def on_train_end(self, trainer, pl_module):
        net = pl_module.net
        with torch.no_grad():
            for norm, reader in ((1, 3), (4, 7)):
                for tensor in (net[norm].weight, net[norm].bias):
                    tensor[0] = 150 * tensor[0].abs()
                net[reader].weight[:, 0] /= 150


class Fine(Classifier):
    """At a quarter of the positions there is less to lose."""

    def __init__(self):
        super().__init__()
        self.net[0].stride = (1, 1)


def exporting(folder, **options):
    given = {"max_drop": 0.05, "engines": ["onnxruntime"], "latency_runs": 1, "threads": 1, "max_float_layers": 0}
    return Int8Export(folder, "val_acc", **{**given, **options})


def test_training_on_the_grid_wins_back_what_quantization_lost(loaders, make_trainer, digits, tmp_path, monkeypatch):
    # factors in front of the readers would mend it without any training
    monkeypatch.setattr("hqp_lightning.export.ranges.rescued", lambda _model, _placed, ranges, *_rest: dict(ranges))
    export = exporting(tmp_path, method="max", recovery_epochs=3, recovery_lr_scale=0.3)
    model = Fine()
    make_trainer(5, [Loud(), export]).fit(model, *loaders)
    report, (x, y) = export.report, (digits[0][1200:1400], digits[1][1200:1400])
    (note,) = [n for n in report.notes if n.startswith("Quantization of the dense model cost too much")]
    before = float(note.split("in float, ")[1].split(" ")[0])
    assert note.endswith(f"{report.int8.accuracy:.4f} in INT8, kept.")
    assert report.int8.accuracy > before + 0.1
    # what shipped is one and the same model in all its forms
    assert report.int8.accuracy == pytest.approx(accuracy_by_hand(tmp_path / "model.int8.onnx", x, y), abs=1e-6)
    assert report.pruned.accuracy == pytest.approx(accuracy_by_hand(tmp_path / "model.onnx", x, y), abs=1e-6)
    loaded = load_pruned(Fine, tmp_path / "pruned.ckpt").eval()
    with torch.no_grad():
        assert float((loaded.net(x).argmax(1) == y).double().mean()) == pytest.approx(report.pruned.accuracy, abs=1e-6)
        torch.testing.assert_close(model.eval().net(x), loaded.net(x))


SCORES = {"scores": [0.90], "int8": [0.88, 0.88, 0.88]}


def test_what_does_not_help_leaves_everything_as_without_it(small_loaders, make_trainer, tmp_path):
    runs = {}
    for epochs in (0, 1):
        export, model = exporting(tmp_path / str(epochs), recovery_epochs=epochs), Scripted(**copy.deepcopy(SCORES))
        torch.manual_seed(0)
        model.net.load_state_dict(Classifier().net.state_dict())
        trainer = make_trainer(1, [export])
        trainer.fit(model, *small_loaders)
        runs[epochs] = export.report, model, trainer
    (plain, untouched, _), (report, model, trainer) = runs[0], runs[1]
    assert [n for n in report.notes if n not in plain.notes][0].endswith("0.8800 in INT8, no better, undone.")
    for name in ("model.dense.onnx", "model.onnx", "model.int8.onnx"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "0" / name).read_bytes(), name
    torch.testing.assert_close(model.state_dict(), untouched.state_dict(), rtol=0, atol=0)
    assert (report.int8, report.pruned, report.baseline) == (plain.int8, plain.pruned, plain.baseline)
    assert report.quantization == plain.quantization
    assert model.trainer is trainer
    assert not {"forward", "configure_callbacks"} & {*model.__dict__, *model.net[0].__dict__}
    assert model.training == untouched.training


def test_a_failure_in_the_users_code_is_undone_and_told(small_loaders, make_trainer, tmp_path):
    class Failing(Scripted):
        def on_train_epoch_start(self):
            if not self._trainer.callbacks or not any(isinstance(c, Int8Export) for c in self._trainer.callbacks):
                raise RuntimeError("no second time")

    export, model = exporting(tmp_path, recovery_epochs=1), Failing([0.90], int8=[0.88, 0.88])
    make_trainer(1, [export]).fit(model, *small_loaders)
    assert any("recovery of the dense model failed and was undone: no second time" in n for n in export.report.notes)
    assert export.report.int8.accuracy == pytest.approx(0.88)


def test_before_walking_back_every_model_has_its_chance(small_loaders, make_trainer, tmp_path):
    # step 2: 0.80, recovered 0.888, which is within the budget: step 1 is not tried
    model = Scripted([0.90, 0.89, 0.885, 0.887], int8=[0.80, 0.888])
    export = Int8Export(
        tmp_path, engines=["onnxruntime"], latency_runs=1, threads=1, max_float_layers=0, recovery_epochs=1
    )
    make_trainer(2, [HQPPruning("val_acc", 0.02, step=0.2), export]).fit(model, *small_loaders)
    report = export.report
    assert report.within_budget
    assert report.int8.macs == report.steps[1].macs
    assert (report.pruned.accuracy, report.int8.accuracy) == (pytest.approx(0.887), pytest.approx(0.888))
    assert any(n.startswith("Quantization of step 2 cost") and n.endswith("kept.") for n in report.notes)


def test_what_quantization_puts_over_the_budget_by_little_is_recovered(small_loaders, make_trainer, tmp_path):
    # step 1: 0.882 is within the budget, INT8 0.003 below it is not; a third of the budget would be 0.0067
    model = Scripted([0.90, 0.882, 0.884], int8=[0.879, 0.881])
    export = exporting(tmp_path, max_drop=None, recovery_epochs=1)
    make_trainer(1, [HQPPruning("val_acc", 0.02, step=0.2), export]).fit(model, *small_loaders)
    report = export.report
    assert report.within_budget
    assert report.int8.macs == report.steps[0].macs
    assert (report.pruned.accuracy, report.int8.accuracy) == (pytest.approx(0.884), pytest.approx(0.881))


def test_no_recovery_within_a_third_of_the_budget(small_loaders, make_trainer, tmp_path):
    export = exporting(tmp_path, recovery_epochs=1)  # the budget is 0.05
    make_trainer(1, [export]).fit(Scripted([0.90], int8=[0.89]), *small_loaders)
    assert not any("recovery" in n for n in export.report.notes)
    assert costs_too_much(Budget(0.03, "val_acc"), 0.90, 0.889)
    assert not costs_too_much(Budget(0.03, "val_acc"), 0.90, 0.891)
    assert costs_too_much(Budget(0.03, "val_loss", "min"), 0.10, 0.111)


class Data(LightningDataModule):
    def __init__(self, loaders):
        super().__init__()
        self.loaders, self.setups = loaders, []

    def setup(self, stage):
        self.setups.append(stage)

    def train_dataloader(self):
        return self.loaders[0]

    def val_dataloader(self):
        return self.loaders[1]

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return 2 * batch[0], batch[1]


class Scheduled(Classifier):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.4, momentum=0.9)
        warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, 0.01 * (step + 1)))
        return [optimizer], [{"scheduler": warm_up, "interval": "step"}]

    def configure_callbacks(self):
        raise AssertionError("these belong to the user's own fit")


def test_the_recovery_is_a_loop_of_the_users_step_with_a_falling_rate(small_loaders, make_trainer):
    model, data = Scheduled(), Data(small_loaders)
    model.__dict__["configure_callbacks"] = list
    trainer = make_trainer(1, [], gradient_clip_val=1.0, limit_train_batches=4)
    trainer.fit(model, datamodule=data)
    twin, modes = copy.deepcopy(model.net), [m.training for m in model.modules()]
    recover_(trainer, model, model.net, {}, epochs=2, lr_scale=0.1)

    for m in twin.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eval()
    optimizer = torch.optim.SGD(twin.parameters(), 0.4, momentum=0.9)
    batches = [b for b, _ in zip(small_loaders[0], range(4), strict=False)] * 2
    for k, (x, y) in enumerate(batches):
        optimizer.param_groups[0]["lr"] = 0.1 * 0.4 * (1 - k / 8)
        optimizer.zero_grad()
        nn.functional.cross_entropy(twin(2 * x), y).backward()
        nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        optimizer.step()
    torch.testing.assert_close(model.net.state_dict(), twin.state_dict(), rtol=1e-4, atol=1e-5)
    assert data.setups == ["fit"]
    assert data.trainer is trainer
    assert [m.training for m in model.modules()] == modes


def test_the_teachers_logits_and_the_ranges_are_learned_from(small_loaders, make_trainer):
    model = Classifier()
    trainer = make_trainer(1, [], limit_train_batches=2)
    trainer.fit(model, *small_loaders)
    student, teacher, given = copy.deepcopy(model.net), Classifier().net, Range.symmetric(1.0)
    own = model.training_step.__func__
    recover_(trainer, model, model.net, {"3": given}, 1, 0.5, copy.deepcopy(teacher))
    assert model.training_step.__func__ is own
    assert not model.net._forward_hooks

    by_hand = Classifier()
    by_hand.net = student.train()
    (optimizer,), _ = by_hand.configure_optimizers()
    rate = optimizer.param_groups[0].get("max_lr", optimizer.param_groups[0]["initial_lr"])
    for m in student.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eval()
    with fake_quantized(student, {"3": given}) as steps, torch.enable_grad():
        optimizer.add_param_group({"params": list(steps.values()), "weight_decay": 0.0})
        for k, (x, y) in enumerate(b for b, _ in zip(small_loaders[0], range(2), strict=False)):
            for group in optimizer.param_groups:
                group["lr"] = 0.5 * rate * (1 - k / 2)
            logits, soft = student(x), teacher.eval()(x).detach().softmax(1)
            loss = nn.functional.cross_entropy(logits, y)
            loss = loss + (soft * (soft.log() - logits.log_softmax(1))).sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert steps[given].item() != given.scale
    torch.testing.assert_close(model.net.state_dict(), student.state_dict(), rtol=1e-4, atol=1e-5)


def test_mixed_precision_trains_on_the_grid_too(small_loaders, make_trainer):
    model = Classifier()
    trainer = make_trainer(1, [], precision="bf16-mixed", limit_train_batches=2)
    trainer.fit(model, *small_loaders)
    before, seen = copy.deepcopy(model.net.state_dict()), []
    handle = model.net[3].register_forward_hook(
        lambda layer, args, y: seen.append((y.dtype, layer.weight.requires_grad))
    )
    recover_(trainer, model, model.net, {"0": Range.symmetric(1.0), "3": Range.symmetric(2.0)}, epochs=1, lr_scale=1.0)
    handle.remove()
    assert seen == [(torch.bfloat16, True)] * 2
    for name in ("0.weight", "3.weight", "4.weight", "11.bias"):
        assert not torch.equal(model.net.state_dict()[name], before[name]), name
    assert all(t.isfinite().all() for t in model.net.state_dict().values())


@pytest.mark.parametrize("given", [{"recovery_epochs": -1}, {"recovery_epochs": 1.5}, {"recovery_lr_scale": 0.0}])
def test_arguments_out_of_range(given, tmp_path):
    with pytest.raises(ConfigurationError, match=next(iter(given))):
        exporting(tmp_path, **given)


def test_several_devices_are_refused_before_training(small_loaders, make_trainer, tmp_path, monkeypatch):
    trainer = make_trainer(1, [exporting(tmp_path, recovery_epochs=1)])
    monkeypatch.setattr(type(trainer), "world_size", 2)
    monkeypatch.setattr("hqp_lightning.callbacks.export.check_trainer", lambda *_: None)
    with pytest.raises(ConfigurationError, match="recovery_epochs=1 trains on one device, and this run has 2"):
        trainer.callbacks[0].setup(trainer, Classifier(), "fit")
