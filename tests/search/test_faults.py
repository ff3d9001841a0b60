"""What goes wrong around a run is one clear line, at the level of ``Trainer.fit``; the model is what it was."""

import errno

import pytest
import torch
from classifier import Classifier, Scripted
from lightning.pytorch import Callback
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import Metric

from hqp_lightning import HQPPruning


def lines(capsys, word):
    return [line for line in capsys.readouterr().out.splitlines() if word in line]


class Pictures(TensorDataset):
    """On a disk that may be gone."""

    gone = False

    def __getitem__(self, index):
        if self.gone:
            raise OSError(errno.EIO, "the disk with the pictures is gone")
        return super().__getitem__(index)


class Disk(Callback):
    """Takes the training pictures away while a step is made in the first epoch, if it stands before the pruning."""

    def __init__(self, pictures, gone):
        self.pictures, self.gone, self.weights = pictures, gone, []

    def on_train_epoch_start(self, trainer, pl_module):
        self.pictures.gone = self.gone and trainer.current_epoch == 0
        self.weights.append({n: t.clone() for n, t in pl_module.state_dict().items()})


@pytest.mark.parametrize("compensate", [True, False])
def test_a_loader_that_raises_in_a_step_costs_the_step_an_epoch(small_loaders, make_trainer, capsys, compensate):
    pictures = Pictures(*small_loaders[0].dataset.tensors)
    pruning = HQPPruning("val_acc", 0.02, step=0.2, min_step=0.2, compensate=compensate)
    before, behind = Disk(pictures, True), Disk(pictures, False)
    make_trainer(2, [before, pruning, behind]).fit(Scripted([0.9]), DataLoader(pictures, 64), small_loaders[1])
    assert [(r.index, r.epoch, r.outcome, r.step) for r in pruning.records] == [
        (1, 0, "refused", 0.2),
        (2, 1, "kept", 0.2),
    ]
    said = "the train loader failed: OSError: [Errno 5] the disk with the pictures is gone"
    assert said in pruning.records[0].reason
    assert len(lines(capsys, said)) == 1
    assert all(torch.equal(t, behind.weights[0][n]) for n, t in before.weights[0].items())


def test_a_loss_that_is_nan_makes_no_step_and_is_told_once(small_loaders, make_trainer, capsys):
    train, val = small_loaders
    x, y = val.dataset.tensors
    broken = DataLoader(TensorDataset(x.clone().fill_(float("nan")), y), 64)
    pruning = HQPPruning("val_acc", 0.02, step=0.2)
    make_trainer(2, [pruning]).fit(Scripted([0.9]), train, broken)
    assert not pruning.records
    told = lines(capsys, "hqp")
    assert told == ["hqp: the loss of the validation batches is NaN or infinite; no step is made while it is"]


class Word(Metric):
    """Says how good it is."""

    def update(self, *_):
        pass

    def compute(self):
        return "good"


class Worded(Classifier):
    answer: object

    def validation_step(self, batch, batch_idx):
        logits = self.net(batch[0])
        if isinstance(self.answer, Metric):
            self.answer.update(logits)
        self.log("val_acc", self.answer)


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        ("good", r"`self.log\(val_acc, good\)` was called, but `str` values cannot be logged"),
        (Word(), r"`.compute\(\)` return of the metric logged as 'val_acc' must be a tensor. Found good"),
    ],
)
def test_a_metric_that_is_a_word(small_loaders, make_trainer, answer, line):
    """Lightning says so; what comes through it is refused by the pruning itself (`test_names_and_metrics`)."""
    model = Worded()
    model.answer = answer
    with pytest.raises(ValueError, match=line):
        make_trainer(1, [HQPPruning("val_acc", 0.1)]).fit(model, *small_loaders)


def plain_loss(pl_module, batch):
    return torch.nn.functional.cross_entropy(pl_module.net(batch[0]), batch[1], reduction="none")


def test_a_loss_fn_that_fails_within_a_step_ends_the_run_as_in_a_validation(small_loaders, make_trainer):
    """By its own error; what the step had cut by then is taken back."""
    model, before = Scripted([0.9]), Disk(small_loaders[0].dataset, False)

    def loss_fn(pl_module, batch):
        if before.weights and pl_module.trainer.training:
            raise KeyError("label")
        return plain_loss(pl_module, batch)

    pruning = HQPPruning("val_acc", 0.02, step=0.5, loss_fn=loss_fn)
    with pytest.raises(KeyError, match="label") as failure:
        make_trainer(2, [before, pruning]).fit(model, *small_loaders)
    assert failure.traceback[-1].name == "loss_fn"
    assert (pruning.records, pruning.state.pending) == ((), None)
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in before.weights[0].items())


class Narrow(Scripted):
    """Its network fails once it is narrower, in training, when a proof does not look."""

    def __init__(self):
        super().__init__([0.9])
        self.net.register_forward_pre_hook(self._look)

    def _look(self, net, _):
        if self._trainer is not None and self.trainer.training and net[0].out_channels + net[3].out_channels < 96:
            raise KeyError("width")


def test_a_network_that_fails_within_a_step_costs_the_step(small_loaders, make_trainer, capsys):
    """The cut may be at fault, so that the step is refused; its kind stands in the line."""
    options = {"step": 0.5, "min_step": 0.5, "loss_fn": plain_loss, "recalibrate_batches": 0, "compensate": False}
    pruning = HQPPruning("val_acc", 0.02, **options)
    make_trainer(1, [pruning]).fit(Narrow(), *small_loaders)
    assert [r.outcome for r in pruning.records] == ["refused"]
    (line,) = lines(capsys, "failed: KeyError: 'width'")
    assert line.startswith("hqp step 1 refused")
