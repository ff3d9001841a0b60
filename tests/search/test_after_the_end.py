"""A run that stopped after its last epoch goes on with what was left to do: judging, rolling back, exporting."""

import hashlib

import pytest
import torch
from classifier import Classifier, Scripted
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from hqp_lightning import HQPPruning, Int8Export
from hqp_lightning.callbacks import export as export_module
from hqp_lightning.surgery import record

# scores: of the dense model, then of every epoch.
STORIES = {
    "kept": ([0.9, 0.89, 0.885], {}, ["kept", "kept"]),
    "rolled_back": ([0.9, 0.89, 0.5], {}, ["kept", "rolled_back"]),
    "unjudged": ([0.9, 0.89, 0.5], {"patience": 1}, ["kept", "rolled_back"]),
    "nothing_kept": ([0.9, 0.5, 0.4], {}, ["rolled_back", "rolled_back"]),
}


def run(make_trainer, folder, loaders, scores, options, ckpt=None):
    torch.manual_seed(0)
    train = DataLoader(loaders[0].dataset, 64, shuffle=True, generator=torch.Generator().manual_seed(0))
    model = Scripted(scores, int8=[0.9])
    pruning = HQPPruning("val_acc", 0.02, step=0.3, min_step=0.05, **options)
    export = Int8Export(folder / "deploy", engines=["onnxruntime"], latency_runs=1, calibration_batches=2, threads=1)
    checkpoint = ModelCheckpoint(folder, save_last=True, enable_version_counter=False)
    trainer = make_trainer(2, [pruning, checkpoint, export], enable_checkpointing=True)
    trainer.fit(model, train, loaders[1], ckpt_path=ckpt, weights_only=True)
    return model, pruning, export


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
@pytest.mark.parametrize("story", STORIES)
def test_stopped_in_the_export_the_run_ends_as_if_it_had_not(small_loaders, make_trainer, tmp_path, monkeypatch, story):
    scores, options, outcomes = STORIES[story]
    straight, first, exported = run(make_trainer, tmp_path / "straight", small_loaders, scores, options)
    assert [r.outcome for r in first.records] == outcomes

    def fails(*args):
        raise OSError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(export_module, "ship", fails)
        with pytest.raises(OSError, match="the disk is full"):
            run(make_trainer, tmp_path / "again", small_loaders, scores, options)
    last = tmp_path / "again" / "last.ckpt"
    assert torch.load(last, weights_only=True)["epoch"] == 1
    resumed, second, again = run(make_trainer, tmp_path / "again", small_loaders, [0.123], options, ckpt=last)

    def told(records):  # all but how long the surgery took
        return [(r.index, r.epoch, r.outcome, r.reason, r.macs, r.params, r.accuracy) for r in records]

    assert told(second.records) == told(first.records)
    assert record(resumed) == record(straight)
    for (name, a), b in zip(straight.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    for file in ("model.dense.onnx", "model.onnx", "model.int8.onnx"):
        assert sha256(tmp_path / "again" / "deploy" / file) == sha256(tmp_path / "straight" / "deploy" / file), file
    for figures in ("baseline", "pruned", "int8", "accuracy_drop", "channels", "quantization"):
        assert getattr(again.report, figures) == getattr(exported.report, figures), figures


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_export_alone_goes_on_too(small_loaders, make_trainer, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, save_last=True)
    trainer = make_trainer(1, [checkpoint], enable_checkpointing=True)
    trainer.fit(Classifier(), *small_loaders)
    export = Int8Export(tmp_path / "deploy", "val_acc", 0.5, engines=["onnxruntime"], latency_runs=1, threads=1)
    again = make_trainer(1, [ModelCheckpoint(tmp_path, save_last=True), export], enable_checkpointing=True)
    again.fit(Classifier(), *small_loaders, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert export.report.baseline.accuracy == pytest.approx(float(trainer.callback_metrics["val_acc"]), abs=1e-6)
