"""Whatever fails in an export, the model is there, the report says why, and the export is made later."""

import errno
import json
import os

import pytest
import torch
from classifier import Classifier, Scripted, accuracy_by_hand

from hqp_lightning import ConfigurationError, ExportError, HQPPruning, Int8Export, load_pruned
from hqp_lightning.report import read_json
from hqp_lightning.shipping import run, ship

SMALL = {"engines": ["onnxruntime"], "latency_runs": 1, "threads": 1}


def failing(*_, **__):
    raise RuntimeError("the compiler has died")


@pytest.fixture
def failed(loaders, make_trainer, tmp_path, monkeypatch):
    """A run that pruned and whose export fails: its module, its folder, and what it would have given."""
    model, pruning = Classifier(), HQPPruning("val_acc", 0.9, step=0.2)
    export = Int8Export(tmp_path / "deploy", calibration_batches=3, **SMALL)
    with monkeypatch.context() as broken:
        broken.setattr(run.Exporting, "engines", failing)
        with pytest.raises(RuntimeError, match="the compiler has died"):
            make_trainer(2, [pruning, export]).fit(model, *loaders)
    return model, tmp_path / "deploy", pruning


def test_the_model_and_the_reason_are_there(failed):
    model, deploy, pruning = failed
    assert sum(r.outcome == "kept" for r in pruning.records) == 2
    loaded = load_pruned(Classifier, deploy / "pruned.ckpt")
    assert all(torch.equal(t, loaded.state_dict()[n]) for n, t in model.state_dict().items())
    report = json.loads((deploy / "report.json").read_text())
    assert report["failed"] == "RuntimeError: the compiler has died"
    assert [s["outcome"] for s in report["steps"]] == [r.outcome for r in pruning.records]
    page = (deploy / "report.html").read_text()
    assert "the compiler has died" in page
    assert "load_pruned(Classifier" in page
    with pytest.raises(ConfigurationError, match=r"the export of that run failed: .*died\. Make it later: from hqp"):
        read_json(deploy / "report.json")


class Preempted(Classifier):
    """As if a SIGTERM came while the export scores, which Lightning notes, and answers after the batch."""

    def on_validation_start(self):
        if self.trainer.state.fn == "validate":
            self.trainer._signal_connector.received_sigterm = True


def test_a_process_that_is_asked_to_end_says_so(loaders, make_trainer, tmp_path):
    export = Int8Export(tmp_path, "val_acc", 0.9, calibration_batches=1, **SMALL)
    with pytest.raises(SystemExit):
        make_trainer(1, [export]).fit(Preempted(), *loaders)
    assert json.loads((tmp_path / "report.json").read_text())["failed"] == "the process was stopped (SIGTERMException)"


def test_what_it_says_makes_the_export(failed, loaders, digits):
    """The code of the report, as it stands there; the same figures as a run that does not fail."""
    _, deploy, pruning = failed
    names = dict(zip(("train_loader", "val_loader"), loaders, strict=True))
    later = json.loads((deploy / "report.json").read_text())["later"]
    assert "engines=('onnxruntime',), threads=1, latency_runs=1, calibration_batches=3" in later
    exec(later, names)
    report = read_json(deploy / "report.json")
    assert report.steps == pruning.records
    assert report.budget == pruning.budget
    assert report.reference == pruning.state.best
    assert report.pruned.macs == pruning.records[-1].macs
    x, y = digits[0][1200:1400], digits[1][1200:1400]
    assert report.int8.accuracy == pytest.approx(accuracy_by_hand(deploy / "model.int8.onnx", x, y), abs=1e-6)
    assert not list(deploy.glob("*search*"))


def test_the_search_of_another_model_is_not_taken_for_it(failed, loaders):
    _, deploy, _ = failed
    with pytest.raises(ConfigurationError, match=r"search\.ckpt is of another model than the one given"):
        Int8Export(deploy, **SMALL).export(Classifier(), *loaders)


def test_any_model_is_exported_without_training(loaders, digits, tmp_path):
    model = Classifier()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    export = Int8Export(tmp_path, "val_acc", 0.9, **SMALL)
    report = export.export(model, *loaders, enable_progress_bar=False)
    assert export.report is report
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in before.items())
    x, y = digits[0][1200:1400], digits[1][1200:1400]
    assert report.int8.accuracy == pytest.approx(accuracy_by_hand(tmp_path / "model.int8.onnx", x, y), abs=1e-6)


def test_a_walk_back_is_in_the_checkpoint_in_the_end(loaders, make_trainer, tmp_path, monkeypatch):
    """It holds the last accepted model first, and then the one that shipped."""
    attempt, kept = ship._Shipping._attempt, []

    def params():
        return sum(p.numel() for p in load_pruned(Scripted([0.9]), tmp_path / "pruned.ckpt").net.parameters())

    def look(self, *args):
        kept.append(params())
        return attempt(self, *args)

    monkeypatch.setattr(ship._Shipping, "_attempt", look)
    model = Scripted([0.90, 0.89, 0.885], int8=[0.80, 0.888])
    export = Int8Export(tmp_path, max_float_layers=0, **SMALL)
    make_trainer(2, [HQPPruning("val_acc", 0.02, step=0.2), export]).fit(model, *loaders)
    first, second = (step.params for step in export.report.steps)
    assert kept == [second, second]
    assert params() == first


class Diverged(Classifier):
    def on_train_end(self):
        self.net[0].weight.data.fill_(float("nan"))


class Worded(Classifier):
    """Its metric becomes a word when it is asked for the score of the export."""

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        if not self.trainer.callbacks:  # the second Trainer, of the export
            self.log("val_acc", "good")


def unreadable(loaders):
    """The validation loader breaks after the training."""
    data, read = loaders[1].dataset, type(loaders[1].dataset).__getitem__

    class Broken(type(data)):
        training = True

        def __getitem__(self, index):
            if not self.training:
                raise OSError("the disk with the pictures is gone")
            return read(self, index)

    data.__class__ = Broken
    return data


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        (Diverged, "the network's output is NaN or infinite in evaluation mode"),
        (Worded, "str"),
        (None, "the disk with the pictures is gone"),
    ],
)
def test_what_is_wrong_after_the_training_is_one_line_of_the_report(kind, line, loaders, make_trainer, tmp_path):
    model, callbacks = (kind or Classifier)(), [Int8Export(tmp_path, "val_acc", 0.9, **SMALL)]
    if kind is None:
        data = unreadable(loaders)
        model.on_train_end = lambda: setattr(data, "training", False)
    with pytest.raises(Exception, match=line):
        make_trainer(1, callbacks).fit(model, *loaders)
    failed = json.loads((tmp_path / "report.json").read_text())["failed"]
    assert line in failed
    assert load_pruned(Classifier, tmp_path / "pruned.ckpt")


@pytest.mark.parametrize("full", ["pruned.ckpt", "search.ckpt", "manifest.json", "report.json"])
def test_a_full_disk_is_one_clear_line(full, loaders, make_trainer, tmp_path, monkeypatch):
    """What was there of that file stays as it was, and no part of one is left."""
    replace = os.replace

    def no_space(source, target):
        if str(target).endswith(full):
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        replace(source, target)

    deploy = tmp_path / "deploy"
    deploy.mkdir()
    (deploy / full).write_text("of an earlier run")
    with monkeypatch.context() as disk:
        disk.setattr(os, "replace", no_space)
        with pytest.raises(ExportError, match=rf"cannot write .*{full}.*No space left"):
            make_trainer(1, [Int8Export(deploy, "val_acc", 0.9, **SMALL)]).fit(Classifier(), *loaders)
    assert (deploy / full).read_text() == "of an earlier run"
    assert not [p for p in deploy.iterdir() if p.name.endswith(".part")]
    assert full == "pruned.ckpt" or load_pruned(Classifier, deploy / "pruned.ckpt")
