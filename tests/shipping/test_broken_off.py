"""A training that is broken off leaves its last accepted model, whatever was pending, and how to go on."""

import json
import signal

import pytest
import torch
from classifier import Scripted
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from hqp_lightning import HQPPruning, Int8Export, load_pruned
from hqp_lightning.errors import ConfigurationError
from hqp_lightning.report import read_json

SMALL = {"engines": ["onnxruntime"], "rtx": (), "latency_runs": 1, "threads": 1, "calibration_batches": 1}


@pytest.fixture(autouse=True)
def handled():
    """Lightning ignores Ctrl-C from the first one on."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


class Ended(Callback):
    """Ends the run in the middle of its second epoch, and remembers what was accepted and what was there then."""

    def __init__(self, error):
        self.error = error

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == 1 and batch_idx == 1:
            self.present = {n: t.clone() for n, t in pl_module.state_dict().items()}
            raise self.error


def fit(make_trainer, loaders, model, error, *callbacks, **kwargs):
    """The first step is accepted, the second not yet judged when the error comes."""
    pruning, ended = HQPPruning("val_acc", 0.05, step=0.2, min_step=0.1), Ended(error)
    trainer = make_trainer(3, [*callbacks[:1], pruning, *callbacks[1:], ended], **kwargs)
    with pytest.raises((type(error), SystemExit)):
        trainer.fit(model, *loaders)
    return pruning, ended


def test_the_last_accepted_model_and_the_way_on(small_loaders, make_trainer, tmp_path, caplog):
    torch.manual_seed(0)
    model, saved = Scripted([0.9], [0.9]), ModelCheckpoint(tmp_path / "kept", save_last=True)
    deploy = tmp_path / "deploy"
    export = Int8Export(deploy, **SMALL)
    pruning, ended = fit(
        make_trainer, small_loaders, model, KeyboardInterrupt(), saved, export, enable_checkpointing=True
    )
    (accepted,), pending = pruning.state.accepted, pruning.state.pending
    assert pending.epoch == 1
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in ended.present.items())  # as the training left it
    loaded = load_pruned(Scripted([0.9], [0.9]), deploy / "pruned.ckpt")
    assert accepted.snapshot.is_of(loaded)
    assert accepted.params > sum(p.numel() for p in model.net.parameters())
    assert not list(tmp_path.glob("*.ckpt"))

    report = json.loads((deploy / "report.json").read_text())
    assert report["failed"] == "the training ended in epoch 1: the process was stopped (KeyboardInterrupt)"
    assert [s["outcome"] for s in report["steps"]] == ["kept", "rolled_back"]
    (line,) = [r.getMessage() for r in caplog.records if "last accepted model" in r.getMessage()]
    assert f"(step 1 with val_acc 0.9000, {accepted.macs / pruning.state.dense_macs:.0%} of the MACs)" in line
    assert f"ckpt_path={str(tmp_path / 'kept' / 'last.ckpt')!r}" in line
    assert "\n" not in line

    for other in ({"max_drop": 0.02}, {"monitor": "val_loss", "mode": "min"}, {"mode": "min"}):
        with pytest.raises(ConfigurationError, match="budget of HQPPruning or of the run that left this folder"):
            Int8Export(deploy, **{"monitor": "val_acc", "max_drop": 0.05, **other}, **SMALL).export(
                loaded, *small_loaders
            )
    report = Int8Export(deploy, "val_acc", 0.05, **SMALL).export(loaded, *small_loaders)
    assert report.pruned.macs == accepted.macs
    assert read_json(deploy / "report.json").steps[0] == pruning.records[0]
    assert not list(deploy.glob("*search*"))


def test_pruning_alone_leaves_the_model_where_the_trainer_writes(small_loaders, make_trainer, tmp_path, caplog):
    """Under averaging, what was accepted is the average."""
    model, average = Scripted([0.9], [0.9]), EMAWeightAveraging(decay=0.5)
    pruning, _ = fit(make_trainer, small_loaders, model, RuntimeError("out of\nmemory"), average)
    loaded = load_pruned(Scripted([0.9], [0.9]), tmp_path / "pruned.ckpt")
    wanted = pruning.state.accepted[0].snapshot
    assert wanted.is_of(loaded)
    assert all(torch.equal(t, wanted.to_plain()["tensors"][n]) for n, t in loaded.state_dict().items())
    assert "RuntimeError: out of memory. The last accepted model (step 1 " in caplog.text
    assert "To train on: fit on what load_pruned gives of it." in caplog.text


def test_a_run_that_accepted_nothing_leaves_nothing(small_loaders, make_trainer, tmp_path):
    callbacks = Callback(), Int8Export(tmp_path / "d", **SMALL)
    pruning, _ = fit(make_trainer, small_loaders, Scripted([0.9, 0.8]), SIGTERMException(), *callbacks)
    assert [r.outcome for r in pruning.records] == ["rolled_back"]
    assert not list((tmp_path / "d").iterdir())
