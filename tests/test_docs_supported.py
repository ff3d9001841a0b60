"""The code that the documentation shows runs, and so does every line of its table, with both callbacks."""

import re
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from classifier import Classifier, accuracy_by_hand, macs_of
from habits import HABITS, Attentive
from lightning.pytorch import LightningDataModule, seed_everything
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

from hqp_lightning import HQPPruning, Int8Export, load_pruned
from hqp_lightning.loop import batches
from hqp_lightning.report import read_json
from hqp_lightning.shipping import run

DOCS = Path(__file__).parents[1] / "docs"


class Digits(LightningDataModule):
    def __init__(self):
        super().__init__()
        data = load_digits()
        self.x = torch.tensor(data.images / 16, dtype=torch.float32).unsqueeze(1)
        self.y = torch.tensor(data.target)

    def train_dataloader(self):
        return DataLoader(TensorDataset(self.x[:640], self.y[:640]), 32)

    def val_dataloader(self):
        return DataLoader(TensorDataset(self.x[1200:1400], self.y[1200:1400]), 64)


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:Checkpoint directory",
    "ignore:Precision bf16-mixed is not supported by the model summary",
    "ignore:Starting from v1.9.0",  # TensorBoard is optional
)
def test_the_loop_with_everything_in_it(tmp_path, monkeypatch, capsys):
    code, loss_fn, mixin = re.findall(
        r"```python\n(.*?)```", (DOCS / "supported.md").read_text(encoding="utf-8"), re.DOTALL
    )
    monkeypatch.chdir(tmp_path)
    seed_everything(0, verbose=False)
    names = {"MyModule": Classifier, "datamodule": Digits(), "torch": torch}
    exec(code, names)
    exec(loss_fn, names)  # tests/shipping has such a network
    report = read_json("deploy/report.json")
    assert report.within_budget
    assert {r.epoch for r in report.steps} & {4, 5}  # made after the resumption
    checkpoint = torch.load("checkpoints/last.ckpt", weights_only=True)
    (groups,) = (state["param_groups"] for state in checkpoint["optimizer_states"])
    assert [g["weight_decay"] for g in groups] == [0.05]
    assert isinstance(names["MyTraining"]().configure_optimizers()[0][0], torch.optim.AdamW)
    assert checkpoint["epoch"] == 5
    exec(mixin, names)
    loaded = load_pruned(Classifier, "deploy/pruned.ckpt")
    assert sum(p.numel() for p in loaded.net.parameters()) == report.pruned.params
    assert all(torch.equal(t, loaded.state_dict()[n]) for n, t in names["pruned"].state_dict().items())


TABLE = (DOCS / "supported.md").read_text(encoding="utf-8").partition("| part of the loop |")[2].partition("\n\n")[0]
ROWS = re.findall(r"^\| (.*?) \|", TABLE, re.MULTILINE)
EXPORT = {"engines": ["onnxruntime"], "rtx": (), "threads": 1, "latency_runs": 1, "calibration_batches": 2}


def test_every_line_of_the_table_is_run():
    assert list(HABITS) == ROWS


@pytest.mark.filterwarnings("ignore")  # of Lightning and torch, on habits that they would rather not see
@pytest.mark.parametrize(("row", "habit"), [(r, h) for r, habits in HABITS.items() for h in habits])
def test_a_line_of_the_table_with_both_callbacks(make_trainer, tmp_path, digits, monkeypatch, row, habit):
    pages = sys.modules["hqp_lightning.report.publish"]  # the package gives its function that name
    monkeypatch.setattr(pages, "write_html", lambda *_: None)  # a second, and the same for all
    monkeypatch.setattr(batches, "IMAGES", 32)  # of the regression after a cut, which is the same for all, too
    if habit.fails:
        monkeypatch.setattr(run.Exporting, "engines", None)  # no function
    x, y = habit.data(*digits)
    pair = [DataLoader(TensorDataset(x[a:b], y[a:b]), 32) for a, b in ((0, 96), (1200, 1264))]
    data = habit.loaders(*pair)
    data = data if isinstance(data, tuple) else (data,)
    settings = {k: v(tmp_path) if callable(v) else v for k, v in habit.settings.items()}
    epochs = settings.pop("max_epochs", 2)
    trained, folder = habit.model(), tmp_path / "deploy"

    def fit(epochs, model, **kwargs):
        pruning = HQPPruning("val_acc", 0.9, **{"step": 0.2, "recalibrate_batches": 1, **habit.pruning})
        export = Int8Export(folder, **EXPORT)
        trainer = make_trainer(epochs, [*habit.before(), pruning, export, *habit.after()], **settings)
        with pytest.raises(TypeError, match="not callable") if habit.fails else nullcontext():
            trainer.fit(habit.fitted(model), *data, **kwargs)
        return trainer, pruning, export

    if row.startswith("a process that is killed"):
        with pytest.raises(SystemExit):
            fit(epochs, trained)
    if row.startswith(("a process that is killed", "`fit(ckpt_path")):
        fit(1, habit.model()) if "killed" not in row else None
        (last,) = tmp_path.rglob("last.ckpt")
        trained = habit.model()
        trainer, pruning, export = fit(epochs, trained, ckpt_path=last)
    else:
        trainer, pruning, export = fit(epochs, trained)
    outcomes = {r.outcome for r in pruning.records}
    if habit.outcome is None:
        assert (outcomes, export.report) == (set(), None)
        return
    assert outcomes == {habit.outcome}
    if habit.fails:
        assert load_pruned(Classifier, folder / "pruned.ckpt").net[0].out_channels == trained.net[0].out_channels < 32
        return
    kept = [r.macs for r in pruning.records if r.outcome == "kept"]
    macs = kept[-1] if kept else export.report.baseline.macs
    assert export.report.int8.macs == macs
    if habit.model is not Attentive:  # whose linear layers are no Gemm
        assert macs == macs_of(folder / "model.onnx")
    if y.dim() == 1 and y.max() == 9:
        images, labels = habit.prepared(x[1200:1264]), y[1200:1264]
        half = settings.get("limit_val_batches") == 1
        images, labels = (images[:32], labels[:32]) if half else (images, labels)
        by_hand = accuracy_by_hand(folder / "model.int8.onnx", images, labels)
        assert export.report.int8.accuracy == pytest.approx(by_hand, abs=0.04 if "true" in row else 1e-6)
    habit.then(trainer, trained, folder)
