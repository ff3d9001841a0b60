"""compare=true: every method on one dense model, and the table of them."""

from types import SimpleNamespace

import pytest
import sessions
import torch
from test_recipes import QUICK, composed

from hqp_lightning import app, comparison
from hqp_lightning.errors import ConfigurationError
from hqp_lightning.report import read_json, read_methods

TAYLOR = {"pruned by isomorphic Taylor": "isomorphic_taylor.onnx"}
SETTINGS = [
    *("data.image_size=16", "data.batch_size=8", "trainer.accelerator=cpu", "trainer.max_epochs=2", "model.lr=0.002"),
    *("trainer.limit_train_batches=4", "trainer.limit_val_batches=2", "+trainer.limit_test_batches=2"),
    *("trainer.enable_progress_bar=false", "hqp.max_drop=0.9", "hqp.start_epoch=0", "hqp.fisher_batches=1"),
    *(
        QUICK,
        "hqp.round_to=1",
        "hqp.step=0.1",
        "hqp.target_macs=null",
        "hqp.recalibrate_batches=2",
        "hqp.compensate=false",
    ),
    *("export.calibration_batches=1", "export.engines=[onnxruntime]", "export.latency_runs=3", "export.threads=1"),
]


def config(folder, *overrides):
    return composed("resnet18_digits", *SETTINGS, f"output_dir={folder}", "compare=true", *overrides)


def accuracy_by_hand(path, cfg, split):
    """onnxruntime over the recipe's images, in as many batches as the run was limited to."""
    _, data, _ = app.build(cfg, [])
    data.setup("fit")
    session, right, seen = sessions.session(path), 0, 0
    loader = data.val_dataloader() if split == "val" else data.test_dataloader()
    for i, (images, labels) in enumerate(loader):
        if i < cfg.trainer.limit_val_batches:
            logits = session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]
            right, seen = right + (torch.tensor(logits).argmax(1) == labels).sum().item(), seen + len(labels)
    return right / seen


@pytest.mark.slow
def test_the_table_of_all_methods(tmp_path, monkeypatch, capsys):
    cfg = config(tmp_path, "hqp.units=[channels,branches]")
    report = app.run(cfg)
    found = read_methods(tmp_path / "comparison.json")
    rows = {m.method: m for m in found.methods}
    assert list(rows) == ["dense", "INT8 only", "pruned by magnitude", *TAYLOR, "channels only", "HQP"]
    assert rows["dense"].figures == report.baseline
    assert rows["HQP"].figures == report.int8
    assert rows["HQP"].accuracy_drop == report.accuracy_drop
    channels = read_json(tmp_path / "comparison" / "channels_only" / "report.json")
    assert rows["channels only"].figures == channels.int8
    assert channels.baseline == report.baseline
    assert channels.budget == report.budget

    # The scores are those of the files, computed without the package.
    made = tmp_path / "comparison"
    files = {"INT8 only": "int8_only.onnx", "pruned by magnitude": "magnitude.onnx"}
    for method, file in {**files, **TAYLOR}.items():
        figures = rows[method].figures
        assert figures.file_bytes == (made / file).stat().st_size
        assert figures.accuracy == pytest.approx(accuracy_by_hand(made / file, cfg, "val"), abs=1e-6)
        assert figures.holdout_accuracy == pytest.approx(accuracy_by_hand(made / file, cfg, "test"), abs=1e-6)
        assert rows[method].accuracy_drop == pytest.approx(report.held_to - figures.accuracy)
        assert rows[method].size_reduction == pytest.approx(1 - figures.file_bytes / report.baseline.file_bytes)
    assert rows["INT8 only"].figures.macs == report.baseline.macs
    for method in ("pruned by magnitude", *TAYLOR):
        assert rows[method].figures.macs == pytest.approx(report.int8.macs, rel=0.05)
    assert rows["pruned by magnitude"].figures != rows["pruned by isomorphic Taylor"].figures
    assert report.int8.macs < 0.9 * report.baseline.macs

    # Every method was timed in one run, against the same dense float model.
    timed = {(e.model, e.precision): e.latency_ms for e in found.engines}
    ours = {("channels", "int8"), ("hqp", "int8")}
    assert (
        set(timed)
        == {("dense", "fp32"), ("dense", "int8"), ("magnitude", "fp32"), ("isomorphic_taylor", "fp32")} | ours
    )
    assert rows["HQP"].speedup == pytest.approx(timed["dense", "fp32"].median / timed["hqp", "int8"].median)
    assert "pruned by magnitude" in (tmp_path / "comparison.md").read_text(encoding="utf-8")
    assert "comparison.json" in capsys.readouterr().out

    # Finished, it is only read again.
    monkeypatch.setattr(app, "build", lambda *args, **kwargs: pytest.fail("built again"))
    app.run(config(tmp_path, "hqp.units=[channels,branches]", "resume=true"))
    assert "INT8 only" in capsys.readouterr().out


def test_channels_alone_are_priced_by_macs_under_the_same_budget(tmp_path):
    cfg = config(tmp_path, "hqp.units=[channels,gates]", "hqp.cost=latency", "hqp.target_speedup=2")
    made = []

    def build(cfg, callbacks, suffix, **settings):
        made.extend(callbacks)
        return None, None, SimpleNamespace(fit=lambda model, datamodule: None)

    assert comparison._has_more(cfg)
    assert comparison._channels_alone(cfg, build, {}) == (None, tmp_path / "comparison" / "channels_only")
    pruning, export = made
    assert (pruning.options.units, pruning.options.cost, pruning.options.target_speedup) == (
        ("channels",),
        "macs",
        None,
    )
    assert pruning.budget.max_drop == cfg.hqp.max_drop
    assert not comparison._has_more(config(tmp_path))


def test_it_needs_something_to_compare(tmp_path):
    with pytest.raises(ConfigurationError, match="compare=true compares with a pruned and exported model"):
        app.run(composed("resnet18_digits", f"output_dir={tmp_path}", "hqp=none", "compare=true"))
