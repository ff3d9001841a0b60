"""resume=true: a run that stopped in the middle, one that stopped in the export, and one that had finished."""

import pytest
from test_recipes import QUICK, composed

from hqp_lightning import app
from hqp_lightning.callbacks import Int8Export
from hqp_lightning.errors import ConfigurationError
from hqp_lightning.models import ImageClassifier
from hqp_lightning.report import read_json

SETTINGS = [
    *("data.image_size=32", "data.batch_size=8", "trainer.accelerator=cpu", "trainer.max_epochs=3", "model.lr=0.001"),
    *("trainer.limit_train_batches=2", "trainer.limit_val_batches=2", "+trainer.limit_test_batches=2"),
    *("trainer.enable_progress_bar=false", "hqp.max_drop=0.99", "hqp.start_epoch=1", "hqp.fisher_batches=1"),
    *("hqp.compensate=false", "export.rtx=[]", QUICK),
    *("export.calibration_batches=1", "export.engines=[onnxruntime]", "export.latency_runs=3", "export.threads=1"),
]


def config(folder, *overrides):
    return composed("resnet18_digits", *SETTINGS, f"output_dir={folder}", *overrides)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* directory .* exists and is not empty")  # as the command has it
def test_a_run_goes_on_where_it_stopped(tmp_path, monkeypatch):
    step = ImageClassifier.training_step
    epochs = []

    def stop_in_the_last_epoch(self, batch, batch_idx):
        epochs.append(self.current_epoch)
        if self.current_epoch == 2:
            raise RuntimeError("the power went")
        return step(self, batch, batch_idx)

    def watched(self, batch, batch_idx):
        epochs.append(self.current_epoch)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(ImageClassifier, "training_step", stop_in_the_last_epoch)
    with pytest.raises(RuntimeError, match="the power went"):
        app.run(config(tmp_path))
    assert epochs == [0, 0, 1, 1, 2]

    epochs.clear()
    monkeypatch.setattr(ImageClassifier, "training_step", watched)
    monkeypatch.setattr(Int8Export, "on_fit_end", lambda *args: (_ for _ in ()).throw(OSError("the disk is full")))
    with pytest.raises(OSError, match="the disk is full"):
        app.run(config(tmp_path, "resume=true"))
    assert epochs == [2, 2]
    monkeypatch.undo()

    assert len(list(tmp_path.rglob("metrics.*.csv"))) == 1

    # Training was over, and only the export is made.
    epochs.clear()
    monkeypatch.setattr(ImageClassifier, "training_step", watched)
    report = app.run(config(tmp_path, "resume=true"))
    assert epochs == []
    assert [s.epoch for s in report.steps] == [1, 2]
    assert report.steps[0].outcome == "kept"
    assert report.pruned.macs < report.baseline.macs
    assert report == read_json(tmp_path / "deploy" / "report.json")

    # And a finished run is only read.
    monkeypatch.setattr(app, "build", lambda *args: pytest.fail("built again"))
    assert app.run(config(tmp_path, "resume=true")) == report
    with pytest.raises(ConfigurationError, match=r"model\.lr: 0\.001 there, 0\.002 now"):
        app.run(config(tmp_path, "resume=true", "model.lr=0.002"))
