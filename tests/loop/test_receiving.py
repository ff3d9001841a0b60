"""What the network receives is what the user's validation step gives it, and asking leaves no trace."""

import random

import numpy as np
import pytest
import torch
from classifier import Classifier, accuracy_by_hand, small_net
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC

from hqp_lightning import ConfigurationError, HQPPruning, Int8Export
from hqp_lightning.core.calls import Call
from hqp_lightning.loop.calls import Receiver, first_call, step_arguments
from hqp_lightning.loop.parts import Way
from hqp_lightning.loop.untouched import untouched

EXPORT = {"engines": ["onnxruntime"], "rtx": (), "threads": 1, "latency_runs": 1, "calibration_batches": 2}


class ByName(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = small_net()

    def forward(self, *, pixels, scale=1.0):
        return self.net(pixels * scale)


class Prepared(Classifier):
    """Bytes come, floats go into the network, by name; nothing of it is in ``training_step``'s form of a batch."""

    def __init__(self):
        super().__init__()
        self.net = ByName()
        self.train()

    def forward(self, x):
        assert not self.training or self._trainer.training
        return self.net(pixels=(x.float() / 16 - 0.3), scale=3.0)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.accuracy(self(batch[0]), batch[1])
        self.log("val_acc", self.accuracy)


@pytest.fixture
def bytes_of_digits(digits):
    x, y = (digits[0] * 16).byte(), digits[1]
    return DataLoader(TensorDataset(x[:320], y[:320]), 64), DataLoader(TensorDataset(x[1200:1400], y[1200:1400]), 64)


def received(make_trainer, model, batch, training=False, **kwargs):
    trainer = make_trainer(1, [])
    trainer.strategy.connect(model)
    model._trainer = trainer
    return Receiver(trainer, model, model.net, **kwargs).call(batch, training=training)


@pytest.mark.parametrize("training", [False, True])
def test_a_batch_is_prepared_as_in_validation(make_trainer, bytes_of_digits, training):
    x, y = next(iter(bytes_of_digits[0]))
    call = received(make_trainer, Prepared(), [x, y], training)
    assert call.args == ()
    assert call.kwargs["scale"] == 3.0
    assert torch.equal(call.kwargs["pixels"], x.float() / 16 - 0.3)


class Means(Prepared):
    """Notes the mean of what the network receives in every call of it, whoever makes it."""

    def __init__(self):
        super().__init__()
        self.seen = []
        self.net.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, _, args, kwargs):
        if not torch.jit.is_tracing():
            self.seen.append(float(kwargs["pixels"].mean()))


def test_pruning_and_export_of_a_network_called_by_name_behind_preprocessing(make_trainer, bytes_of_digits, tmp_path):
    model = Means()
    pruning, export = HQPPruning("val_acc", 0.9, step=0.2), Int8Export(tmp_path, **EXPORT)
    make_trainer(2, [pruning, export]).fit(model, *bytes_of_digits)
    assert [r.outcome for r in pruning.records] == ["kept", "kept"]
    assert max(model.seen) < 0.3  # bytes would be 5 in the mean
    x, y = bytes_of_digits[1].dataset.tensors
    by_hand = accuracy_by_hand(tmp_path / "model.int8.onnx", x.float() / 16 - 0.3, y)
    assert export.report.int8.accuracy == pytest.approx(by_hand)
    assert abs(export.report.int8.accuracy - pruning.records[-1].accuracy) < 0.05


def test_batchnorm_follows_on_what_validation_gives_the_network(make_trainer, bytes_of_digits):
    """A network that normalises only what it receives: its statistics stay those of prepared training batches."""
    model = Prepared()
    model.net.net[1].momentum = None
    x = torch.cat([b[0] for b in bytes_of_digits[0]])
    pruning = HQPPruning("val_acc", 0.9, step=0.2, recalibrate_batches=5)
    trainer = make_trainer(1, [pruning], limit_train_batches=5)
    trainer.fit(model, *bytes_of_digits)
    assert [r.outcome for r in pruning.records] == ["kept"]
    raw = model.net.net[0](x.float()).mean((0, 2, 3))
    prepared = model.net.net[0]((x.float() / 16 - 0.3) * 3).mean((0, 2, 3))
    near = (model.net.net[1].running_mean - prepared).abs().mean()
    assert near < 0.2 * (model.net.net[1].running_mean - raw).abs().mean()


class Noting(Classifier):
    """Leaves a trace everywhere: metrics, a collection, attributes, lists, loggers, buffers, random numbers."""

    def __init__(self):
        super().__init__()
        self.several = MetricCollection([MulticlassAccuracy(10), MulticlassAUROC(10)])
        self.register_buffer("count", torch.zeros(()))
        self.outputs, self.by_name, self.calls, self.last = [], {"all": []}, 0, None

    def note(self, x, y):
        self.calls += 1
        self.count += 1
        self.log("before", 1.0)
        self.log_dict({"a": 1.0})
        self.outputs.append(y)
        self.by_name["all"].append(y)
        self.by_name["new"] = y
        self.last = torch.rand(1) + np.random.rand() + random.random()
        logits = torch.nn.functional.one_hot(y, 10).float().softmax(1)
        self.several(logits, y)
        self.accuracy.update(logits, y)
        self.logger.experiment.log_metrics({"direct": 1.0}, 0)

    def validation_step(self, batch, batch_idx):
        self.note(*batch)
        self.net(batch[0])
        raise AssertionError("it goes on after the call of the network")


def state(model):
    metrics = {n: {k: getattr(m, k) for k in m._defaults} for n, m in model.named_modules() if hasattr(m, "_defaults")}
    counts = [m._update_count for m in model.modules() if hasattr(m, "_defaults")]
    flags = [m.training for m in model.modules()]
    randomness = torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()
    return repr(
        (metrics, counts, flags, model.calls, model.count, model.outputs, model.by_name, model.last, randomness)
    )


@pytest.mark.filterwarnings("ignore:No .* samples in targets")
def test_nothing_of_it_stays(make_trainer, digits, tmp_path):
    model, logger = Noting(), CSVLogger(tmp_path)
    x, y = digits[0][:20], digits[1][:20]
    trainer = make_trainer(1, [], logger=logger)
    trainer.strategy.connect(model)
    model._trainer = trainer
    model.several.update(torch.eye(10)[y], y)  # the collection has found its groups, and holds something
    model.net[1].eval()
    before, hooks = state(model), len(model.net._forward_pre_hooks)
    call = Receiver(trainer, model, model.net).call([x, y])
    assert torch.equal(call.args[0], x)
    assert state(model) == before
    assert len(model.net._forward_pre_hooks) == hooks
    assert trainer.loggers == [logger]
    assert not logger.experiment.metrics
    assert not dict(trainer.callback_metrics)
    assert model.log.__func__ is Classifier.log
    model.several.update(torch.eye(10)[y], y)
    assert float(model.several.compute()["MulticlassAccuracy"]) == pytest.approx(1)


def test_an_error_inside_leaves_nothing_either(make_trainer):
    model = Noting()
    trainer = make_trainer(1, [])
    model._trainer = trainer
    before = state(model)

    def fail():
        with untouched(trainer, model):
            model.outputs.append(1)
            model.calls = 1 / 0

    with pytest.raises(ZeroDivisionError):
        fail()
    assert state(model) == before


def test_a_step_that_catches_exceptions_is_stopped_all_the_same():
    network = nn.Linear(1, 1)

    def step():
        try:
            network(torch.ones(1, 1))
        except Exception:
            raise AssertionError("caught") from None
        raise AssertionError("went on")

    assert first_call(network, step) == Call((torch.ones(1, 1),))
    assert first_call(nn.Linear(1, 1), lambda: None) is None


def test_the_arguments_of_a_step():
    calls = [
        (lambda batch: 0, 1),
        (lambda batch, batch_idx: 0, 2),
        (lambda batch, batch_idx, dataloader_idx=0: 0, 3),
        (lambda *args: 0, 2),
        (lambda batch, *, name=None: 0, 1),
    ]
    assert [len(step_arguments(f, "b", 7)) for f, _ in calls] == [n for _, n in calls]
    assert step_arguments(calls[2][0], "b", 7) == ("b", 7, 0)


class Views(Classifier):
    """Trains on two views of a smaller size, validates on one."""

    def training_step(self, batch, batch_idx):
        (a, b), y = batch
        return nn.functional.cross_entropy(self.net(2 * a), y) + nn.functional.cross_entropy(self.net(2 * b), y)

    def validation_step(self, batch, batch_idx):
        self.net(batch[0])
        self.log("val_acc", 0.5)


def test_training_batches_of_another_form_go_through_the_training_step(make_trainer, digits):
    x, y = digits[0][:4], digits[1][:4]
    like = Call((x,))
    call = received(make_trainer, Views(), ((x, x.flip(-1)), y), training=True, like=like)
    assert torch.equal(call.args[0], 2 * x)
    small = torch.nn.functional.interpolate(x, size=(6, 6))
    call = received(make_trainer, Views(), (small, y), training=True, like=like)
    expected = torch.nn.functional.interpolate(small, size=(8, 8), mode="bilinear", antialias=True)
    assert torch.equal(call.args[0], expected)


def test_batches_that_lead_to_no_call_are_told_before_training(make_trainer, loaders, digits):
    class Strange(Classifier):
        def training_step(self, batch, batch_idx):
            raise AssertionError("training began before the refusal")

        def validation_step(self, batch, batch_idx):
            x, y, *_ = batch
            self.net(x)
            self.log("val_acc", 0.5)

    train = DataLoader(TensorDataset(digits[0][:64]), 64)
    message = r"no call of Sequential comes of a training batch \(list of 1\).*validation_step fails: ValueError"
    with pytest.raises(ConfigurationError, match=message):
        make_trainer(1, [HQPPruning("val_acc", 0.5)]).fit(Strange(), train, loaders[1])


class Parts(Classifier):
    """The steps call the parts; ``forward`` is for those who use the model."""

    def __init__(self):
        super().__init__()
        layers = small_net()
        del self.net
        self.criterion, self.body, self.head = nn.CrossEntropyLoss(), layers[:11], layers[11:]

    def forward(self, x):
        return self.head(self.body(x))

    def shared(self, batch):
        logits = self.head(self.body(batch[0] - 0.3))
        return logits, self.criterion(logits, batch[1])

    def training_step(self, batch, batch_idx):
        return self.shared(batch)[1]

    def validation_step(self, batch, batch_idx):
        self.accuracy(self.shared(batch)[0], batch[1])
        self.log("val_acc", self.accuracy)


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        layers = small_net()
        self.stem, self.body, self.head = layers[:3], layers[3:11], layers[11:]

    def forward_features(self, x):
        return self.body(self.stem(x))

    def forward(self, x):
        return self.head(self.forward_features(x))


class Methods(Parts):
    """As timm's networks are called."""

    def __init__(self):
        super().__init__()
        del self.body, self.head
        self.net = Backbone()

    def shared(self, batch):
        logits = self.net.head(self.net.forward_features(batch[0] - 0.3))
        return logits, self.criterion(logits, batch[1])


@pytest.mark.parametrize("kind", [Parts, Methods])
def test_parts_that_compute_what_the_network_does_are_scored(make_trainer, loaders, digits, tmp_path, kind):
    pruning, export = HQPPruning("val_acc", 0.9, step=0.2), Int8Export(tmp_path, **EXPORT)
    make_trainer(2, [pruning, export]).fit(kind(), *loaders)
    assert [r.outcome for r in pruning.records] == ["kept", "kept"]
    x, y = digits[0][1200:1400], digits[1][1200:1400]
    by_hand = accuracy_by_hand(tmp_path / "model.int8.onnx", x - 0.3, y)
    assert export.report.int8.accuracy == pytest.approx(by_hand)


class Different(Parts):
    def forward(self, x):
        return self.head(self.body(x)).softmax(1)

    def training_step(self, batch, batch_idx):
        raise AssertionError("training began before the refusal")


def test_parts_that_compute_something_else_are_refused_by_name(make_trainer, loaders, tmp_path):
    message = r"never calls 'Different', but parts of it \(body, head, criterion\).*is not what Different\.forward does"
    for callback in (HQPPruning("val_acc", 0.9), Int8Export(tmp_path, "val_acc", 0.9, **EXPORT)):
        with pytest.raises(ConfigurationError, match=message):
            make_trainer(1, [callback]).fit(Different(), *loaders)


def test_the_way_of_a_plain_network_is_its_own_call(make_trainer, digits):
    model, trainer = Classifier(), make_trainer(1, [])
    model._trainer = trainer
    receiver = Receiver(trainer, model, model.net)
    receiver.call([digits[0][:2], digits[1][:2]])
    assert receiver.way == Way(model.net, model.net)
