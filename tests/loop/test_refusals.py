"""Bad input gets one clear error, before any training."""

import math
from types import SimpleNamespace

import pytest
import torch
from classifier import Classifier, Scripted, small_net
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelPruning, StochasticWeightAveraging
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    XLAStrategy,
)
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hqp_lightning import ConfigurationError, FisherAccumulator, HQPPruning, Int8Export
from hqp_lightning.callbacks.fisher import shared
from hqp_lightning.export.engines.tensorrt import TensorRTBackend
from hqp_lightning.loop.trainer import check_trainer


class Untrained:
    """A model whose first training step fails the test: refusals come before it."""

    def training_step(self, batch, batch_idx):
        raise AssertionError("training began before the refusal")


class Plain(Untrained, Classifier):
    pass


def fit(make_trainer, loaders, callbacks, model=None, **kwargs):
    make_trainer(1, callbacks, **kwargs).fit(model or Plain(), *loaders)


@pytest.mark.parametrize("max_drop", [0, 1, 1.5, -0.01, True])
def test_max_drop_outside_zero_and_one(max_drop):
    with pytest.raises(ConfigurationError, match="must lie in"):
        HQPPruning("val_acc", max_drop)


def test_an_accumulator_that_measures_something_else(make_trainer, loaders):
    pruning = HQPPruning("val_acc", 0.01, estimator="gate")
    with pytest.raises(ConfigurationError, match=r"estimator='gate'\) would rank by .*estimator='weight'"):
        fit(make_trainer, loaders, [FisherAccumulator("weight"), pruning])


def test_an_accumulator_that_adds_up_the_ranks_too_late():
    pruning, fisher = HQPPruning("val_acc", 0.01), FisherAccumulator()
    trainer = SimpleNamespace(callbacks=[pruning, fisher], world_size=2)
    with pytest.raises(ConfigurationError, match="FisherAccumulator must come before HQPPruning"):
        shared(trainer, pruning, pruning.own_fisher, "gate")
    trainer.world_size = 1
    assert shared(trainer, pruning, pruning.own_fisher, "gate") is fisher
    trainer.callbacks.remove(fisher)
    assert shared(trainer, pruning, pruning.own_fisher, "gate") is pruning.own_fisher


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "maximum"}, "mode='maximum'"),
        ({"estimator": "taylor"}, "estimator='taylor'"),
        ({"cost": "time"}, "cost='time'"),
        ({"step": 0.0}, "step=0.0"),
        ({"min_step": 0.2}, "min_step=0.2 is larger than step=0.05"),
        ({"round_to": 0}, "round_to=0"),
        ({"every_n_epochs": 0}, "every_n_epochs=0"),
        ({"target_macs": 1.2}, "target_macs=1.2"),
        ({"fisher_batches": 0}, "fisher_batches=0"),
        ({"fisher_batches": 2.5}, "fisher_batches=2.5 must be an integer"),
        ({"step": "a"}, r"step='a' must be a fraction in \(0, 1\)"),
        ({"min_step": None}, "min_step=None must be a fraction"),
        ({"target_macs": [0.5]}, r"target_macs=\[0.5\] must be a fraction"),
        ({"baseline": "0.9"}, "baseline='0.9' must be a finite number"),
        ({"cost": "latency", "target_speedup": math.inf}, "target_speedup=inf must be a number above 1"),
        ({"max_drop": None}, r"max_drop=None must lie in \(0, 1\)"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        HQPPruning("val_acc", **{"max_drop": 0.01, **arguments})


@pytest.mark.parametrize("sanity", [0, 2])
@pytest.mark.parametrize("start_epoch", [0, 5])
def test_a_monitor_that_is_never_logged_lists_the_names_that_are(loaders, make_trainer, sanity, start_epoch):
    pruning = HQPPruning("val_accuracy", 0.01, start_epoch=start_epoch)
    with pytest.raises(ConfigurationError, match=r"'val_accuracy' was not logged.*\['val_acc'\]"):
        fit(make_trainer, loaders, [pruning], num_sanity_val_steps=sanity)


def test_the_monitor_of_an_export_alone_is_checked_in_the_sanity_run(loaders, make_trainer, tmp_path):
    export = Int8Export(tmp_path, monitor="accuracy", max_drop=0.01)
    with pytest.raises(ConfigurationError, match="'accuracy' was not logged"):
        fit(make_trainer, loaders, [export], num_sanity_val_steps=1)


@pytest.mark.parametrize("own", [{"max_drop": 0.02}, {"monitor": "val_loss"}, {"mode": "min"}])
def test_a_second_budget_beside_that_of_the_pruning(loaders, make_trainer, tmp_path, own):
    with pytest.raises(ConfigurationError, match=f"{next(iter(own))}=.* holds, the budget of HQPPruning"):
        fit(make_trainer, loaders, [HQPPruning("val_acc", 0.01), Int8Export(tmp_path, **own)])


@pytest.mark.parametrize("callback", [HQPPruning("val_acc", 0.01, module="backbone"), None])
def test_a_module_path_that_does_not_exist(loaders, make_trainer, tmp_path, callback):
    callback = callback or Int8Export(tmp_path, "val_acc", 0.01, module="backbone")
    with pytest.raises(ConfigurationError, match=r"module='backbone' is not in Plain.*\['net'\]"):
        fit(make_trainer, loaders, [callback])


def test_an_ignored_name_that_does_not_exist(loaders, make_trainer):
    with pytest.raises(ConfigurationError, match=r"ignore=\['head'\] names no module"):
        fit(make_trainer, loaders, [HQPPruning("val_acc", 0.01, ignore=["head"])])


def test_a_network_without_prunable_groups(loaders, make_trainer):
    model = Plain()
    model.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(ConfigurationError, match="no prunable channel groups"):
        fit(make_trainer, loaders, [HQPPruning("val_acc", 0.01)], model)


class ThreeItems(Untrained, Classifier):
    def validation_step(self, batch, batch_idx):
        x, y, _ = batch
        self.accuracy(self.net(x), y)
        self.log("val_acc", self.accuracy)


def three(digits):
    x, y = digits
    return DataLoader(TensorDataset(x[:128], y[:128], torch.ones(128)), 64)


class Switched(nn.Module):
    """Computes gradients in training alone."""

    def __init__(self):
        super().__init__()
        self.layers = small_net()

    def forward(self, x):
        with torch.set_grad_enabled(self.training):
            return self.layers(x)


@pytest.mark.parametrize(
    ("estimator", "reason"),
    [
        ("gate", r"scores has no gradient: loss_fn, or the network's forward, computes it under torch.no_grad"),
        ("magnitude", r"layers.0: no gradient leads to it .* set_grad_enabled\(self.training\)"),
    ],
)
def test_a_forward_without_gradients_is_named(loaders, make_trainer, estimator, reason):
    model = Plain()
    model.net = Switched()
    with pytest.raises(ConfigurationError, match=reason):
        fit(make_trainer, loaders, [HQPPruning("val_acc", 0.01, estimator=estimator)], model)


def test_a_batch_that_is_no_pair_needs_a_loss_fn(digits, make_trainer):
    with pytest.raises(ConfigurationError, match=r"list of 3, not a pair of tensors \(x, y\); pass loss_fn"):
        fit(make_trainer, (three(digits), three(digits)), [HQPPruning("val_acc", 0.01)], ThreeItems())


def test_a_loss_fn_makes_any_batch_work_and_the_export_needs_none(digits, make_trainer, tmp_path):
    class Weighted(ThreeItems):
        def training_step(self, batch, batch_idx):
            x, y, w = batch
            return (w * nn.functional.cross_entropy(self.net(x), y, reduction="none")).mean()

    def loss(pl_module, batch):
        x, y, w = batch
        return w * nn.functional.cross_entropy(pl_module.net(x), y, reduction="none")

    pruning = HQPPruning("val_acc", 0.5, loss_fn=loss, step=0.2)
    export = Int8Export(tmp_path, engines=["onnxruntime"], threads=1, latency_runs=1, calibration_batches=1)
    fit(make_trainer, (three(digits), three(digits)), [pruning, export], Weighted())
    assert [r.outcome for r in pruning.records] == ["kept"]
    assert export.report.int8.macs == pruning.records[0].macs


def losses(pl_module, batch):
    return nn.functional.cross_entropy(pl_module.net(batch[0]), batch[1], reduction="none")


@pytest.mark.parametrize(
    ("loss_fn", "message"),
    [
        (torch.no_grad()(losses), "the loss of the Fisher scores has no gradient: loss_fn, or"),
        (lambda *given: losses(*given).mean().item(), "loss_fn returned a float: return per-sample losses"),
    ],
)
def test_a_loss_fn_without_gradients(loaders, make_trainer, loss_fn, message):
    with pytest.raises(ConfigurationError, match=message):
        fit(make_trainer, loaders, [HQPPruning("val_acc", 0.01, loss_fn=loss_fn, start_epoch=1)])


def test_a_loss_fn_that_never_calls_the_network(loaders, make_trainer):
    pruning = HQPPruning("val_acc", 0.01, loss_fn=lambda pl_module, batch: torch.zeros(64))
    with pytest.raises(ConfigurationError, match="loss_fn never called the network"):
        fit(make_trainer, loaders, [pruning])


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")
@pytest.mark.parametrize("kwargs", [{"limit_val_batches": 0}, {}])
def test_a_missing_validation_loader(loaders, make_trainer, kwargs):
    pair = loaders if kwargs else (loaders[0], None)
    with pytest.raises(ConfigurationError, match="validation is off"):
        fit(make_trainer, pair, [HQPPruning("val_acc", 0.01)], **kwargs)


def test_a_trainer_that_logs_nothing(loaders):
    trainer = Trainer(accelerator="cpu", max_epochs=1, barebones=True, callbacks=[HQPPruning("val_acc", 0.01)])
    with pytest.raises(
        ConfigurationError, match="HQPPruning judges by a metric, and Trainer\\(barebones=True\\) logs none"
    ):
        trainer.fit(Plain(), *loaders)


def test_an_unwritable_dirpath(loaders, make_trainer, tmp_path):
    (tmp_path / "file").write_text("")
    export = Int8Export(tmp_path / "file" / "deploy", "val_acc", 0.01)
    with pytest.raises(ConfigurationError, match="can't be written"):
        fit(make_trainer, loaders, [export])


def test_an_export_without_a_budget(loaders, make_trainer, tmp_path):
    with pytest.raises(ConfigurationError, match="needs a budget of its own"):
        fit(make_trainer, loaders, [Int8Export(tmp_path)])


def test_an_export_before_the_pruning(loaders, make_trainer, tmp_path):
    with pytest.raises(ConfigurationError, match="must come after HQPPruning"):
        fit(make_trainer, loaders, [Int8Export(tmp_path), HQPPruning("val_acc", 0.01)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"engines": ["tflite"]}, r"engines=\['tflite'\]"),
        ({"engines": []}, r"engines=\[\] must be a list of some of .* to score the INT8 file"),
        ({"engines": "openvino"}, "engines='openvino' must be a list"),
        ({"method": "mode"}, "method='mode'"),
        ({"calibration_batches": 0}, "calibration_batches=0"),
        ({"calibration_data": "test"}, "calibration_data='test' is not known; choose one of"),
        ({"threads": 0}, "threads=0"),
    ],
)
def test_export_arguments_out_of_range(tmp_path, arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        Int8Export(tmp_path, **arguments)


def test_engines_of_which_none_runs_here(loaders, make_trainer, tmp_path, monkeypatch):
    monkeypatch.setattr(TensorRTBackend, "unavailable", lambda _: "TensorRT skipped: no GPU")
    export = Int8Export(tmp_path, "val_acc", 0.5, engines=["tensorrt"])
    with pytest.raises(
        ConfigurationError, match=r"engines=\['tensorrt'\]: none .* can run here: TensorRT skipped: no GPU"
    ):
        fit(make_trainer, loaders, [export])


@pytest.mark.parametrize("neighbour", [StochasticWeightAveraging(1e-2), ModelPruning("l1_unstructured", amount=0.1)])
def test_callbacks_that_keep_a_copy_of_the_weights(loaders, make_trainer, neighbour):
    with pytest.raises(ConfigurationError, match=f"does not work beside {type(neighbour).__name__}"):
        fit(make_trainer, loaders, [HQPPruning("val_acc", 0.01), neighbour])


def test_an_unknown_estimator_of_the_accumulator():
    with pytest.raises(ConfigurationError, match="estimator='hessian'"):
        FisherAccumulator(estimator="hessian")


class TwoHeads(nn.Module):
    """Features to a linear head and to a convolutional one."""

    def __init__(self):
        super().__init__()
        self.body = small_net()[:9]
        self.classes, self.mask = nn.Linear(64, 10), nn.Conv2d(64, 3, 1)

    def forward(self, x):
        x = self.body(x)
        return self.classes(x.mean((2, 3))), self.mask(x)


class Heads(Scripted):
    def __init__(self):
        super().__init__([0.9])
        self.net = TwoHeads()

    def training_step(self, batch, batch_idx):
        return heads_loss(self, batch).mean()


def heads_loss(pl_module, batch):
    classes, mask = pl_module.net(batch[0])
    return nn.functional.cross_entropy(classes, batch[1], reduction="none") + mask.square().mean((1, 2, 3))


def test_several_heads_are_pruned_with_a_loss_fn(loaders, make_trainer):
    kept, model = HQPPruning("val_acc", 0.05, loss_fn=heads_loss, step=0.2), Heads()
    fit(make_trainer, loaders, [kept], model)
    assert [r.outcome for r in kept.records] == ["kept"]
    assert (model.net.classes.out_features, model.net.mask.out_channels) == (10, 3)
    assert sum(p.numel() for p in model.net.parameters()) == kept.records[0].params


class Reshaping(nn.Module):
    """Its forward knows the number of channels: a prune of ``conv`` would break it."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 3, padding=1)
        self.conv = nn.Conv2d(32, 64, 3, padding=1)
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        x = self.conv(self.stem(x).relu()).relu()
        return self.head(x.reshape(-1, 64, 64).mean(2))


def test_a_group_that_would_break_the_model_is_left_out_and_the_others_are_pruned(loaders, make_trainer):
    model = Scripted([0.9])
    model.net = Reshaping()
    pruning = HQPPruning("val_acc", 0.05, step=0.5, min_step=0.4)
    make_trainer(1, [pruning]).fit(model, *loaders)
    assert [r.outcome for r in pruning.records] == ["kept"]
    assert [(n.group, n.status) for n in pruning.state.notes] == [("conv", "left out")]
    assert "holds a number of channels as a constant" in pruning.state.notes[0].reason
    assert model.net.conv.out_channels == 64
    assert model.net.stem.out_channels < 32
    assert model.net(torch.rand(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize("strategy", [FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy, XLAStrategy])
def test_strategies_that_shard_the_parameters(make_trainer, strategy):
    trainer = make_trainer(1, [])
    setting = trainer_in_setup(strategy.__new__(strategy))  # some can't be made without their own packages
    with pytest.raises(ConfigurationError, match=f"{strategy.__name__} shards or replaces; use"):
        check_trainer(setting, HQPPruning("val_acc", 0.01))
    for fine in (trainer.strategy, DDPStrategy()):
        check_trainer(trainer_in_setup(fine), HQPPruning("val_acc", 0.01))


def test_a_communication_hook_whose_state_is_sized_by_the_gradients():
    setting = trainer_in_setup(DDPStrategy(ddp_comm_state=object()))
    with pytest.raises(ConfigurationError, match="does not work with a ddp_comm_state"):
        check_trainer(setting, Int8Export("deploy"))


@pytest.mark.parametrize("start", ["spawn", "fork"])
def test_processes_whose_weights_come_back_to_an_unpruned_network(start):
    setting = trainer_in_setup(DDPStrategy(start_method=start))
    with pytest.raises(ConfigurationError, match="forked or spawned"):
        check_trainer(setting, HQPPruning("val_acc", 0.01))


def trainer_in_setup(of_strategy):
    class Stub:
        enable_validation, strategy, callbacks = True, of_strategy, []

    return Stub()
