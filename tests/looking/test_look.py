import copy
import json
import random

import numpy as np
import pytest
import torch
from classifier import Classifier
from gated import GatedClassifier
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hqp_lightning import ConfigurationError, FisherAccumulator, HQPPruning, look
from hqp_lightning.records import LatencyTable, NetworkTime, Part
from hqp_lightning.report.latency_table import write_table


class Digits(LightningDataModule):
    def __init__(self, train, val):
        super().__init__()
        self.loaders = train, val

    def train_dataloader(self):
        return self.loaders[0]

    def val_dataloader(self):
        return self.loaders[1]


class Counting(Callback):
    calls = 0

    def on_validation_batch_end(self, *_):
        self.calls += 1


def a_trainer(**settings):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    return Trainer(enable_checkpointing=False, **quiet, **settings)


def everything(trainer, model, data):
    """What a look must not change, in plain form."""
    return {
        "weights": {n: t.clone() for n, t in model.state_dict().items()},
        "modes": [m.training for m in model.modules()],
        "asked": [p.requires_grad for p in model.parameters()],
        "grads": [p.grad for p in model.parameters()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()],
        "attributes": sorted(model.__dict__),
        "data": sorted(data.__dict__),
        "loops": (list(trainer.callbacks), list(trainer.loggers), trainer.limit_val_batches, trainer.global_step),
        "metric": {n: copy.deepcopy(s) for n, s in model.accuracy.metric_state.items()},
        "random": (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()),
    }


@pytest.fixture(scope="module")
def looked(tmp_path_factory, digits):
    """A look at a small classifier whose Trainer has something to lose, what it was before and after, and its files."""
    folder = tmp_path_factory.mktemp("looked")
    x, y = digits
    train = DataLoader(TensorDataset(x[:320], y[:320]), 64)
    data = Digits(train, DataLoader(TensorDataset(x[1200:1400], y[1200:1400]), 64))
    torch.manual_seed(0)
    model, counting = Classifier(), Counting()
    model.net[3].eval()  # a frozen layer, which training mode would not leave so
    pruning = HQPPruning("val_acc", 0.1, fisher_batches=1)
    trainer = a_trainer(callbacks=[counting, pruning], default_root_dir=folder)
    before = everything(trainer, model, data)
    found = look(trainer, model, data, folder / "look", samples=128)
    return found, before, everything(trainer, model, data), counting, folder / "look", (trainer, model, data)


def test_nothing_is_changed(looked):
    _, before, after, counting, _, _ = looked
    for name, tensor in before.pop("weights").items():
        assert torch.equal(tensor, after["weights"][name])
    after.pop("weights")
    assert before == after
    assert counting.calls == 0


def test_training_goes_on_as_if_nobody_had_looked(looked, digits):
    _, _, _, counting, _, (trainer, model, data) = looked
    fresh = Classifier()
    fresh.load_state_dict(model.state_dict())
    other = a_trainer(max_steps=2, num_sanity_val_steps=0, limit_val_batches=1)
    again = copy.deepcopy(fresh)
    other.fit(fresh, data)
    trainer.callbacks, trainer.fit_loop.epoch_loop.max_steps, trainer.num_sanity_val_steps = [], 2, 0
    trainer.fit(again, data)
    for a, b in zip(fresh.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_prices_are_half_the_fisher_values_of_samples_that_are_evenly_spread(looked, digits):
    found, _, _, _, _, (_, model, _) = looked
    x, y = (t[1200:1400][[i * 200 // 128 for i in range(128)]] for t in digits)
    fisher = FisherAccumulator()
    loader = DataLoader(TensorDataset(x, y), 64)
    a_trainer(callbacks=[fisher]).validate(model, loader, verbose=False)
    prices = {p.name: p for p in found.parts}
    assert found.samples == 128
    for name, values in fisher.saliency().items():
        assert prices[name].loss == pytest.approx(float(values.sum()) / 2, rel=1e-3)
        half = float(values.sort().values[: len(values) // 2].sum()) / 2
        assert prices[name].cheaper_half == pytest.approx(half, rel=1e-3, abs=1e-9)


def test_costs_are_those_counted_by_hand(looked):
    found, *_ = looked
    prices = {p.name: p for p in found.parts}
    # 4 x 4 pixels: 1 -> 32 and 32 -> 64; 2 x 2: 64 -> 64; then 64 -> 10.
    first, second, third, head = 16 * 9 * 32, 16 * 9 * 32 * 64, 4 * 9 * 64 * 64, 640
    assert found.macs == first + second + third + head
    assert prices["0"].macs == first + second
    assert prices["3"].macs == second + third
    assert prices["7"].macs == third + head
    assert prices["0"].params == 9 * 32 + 2 * 32 + 9 * 32 * 64  # filters, norm, readers
    assert prices["7"].params == 9 * 64 * 64 + 64 + 640
    assert found.params == 9 * 32 + 64 + 9 * 32 * 64 + 128 + 9 * 64 * 64 + 64 + 650


def test_the_curve_rises_and_every_point_is_a_whole_structure(looked):
    found, *_ = looked
    losses = [p.predicted_loss_increase for p in found.channels]
    assert len(losses) >= 3
    assert losses == sorted(losses)
    for p in found.channels:
        assert p.macs == pytest.approx(found.macs * (1 - p.macs_removed))
        assert p.channels % 8 == 0
    assert found.with_units == ()  # it has none


def test_what_stays_is_named(looked):
    found, *_ = looked
    (head,) = found.kept
    assert (head.group, head.channels) == ("11", 10)
    assert "outputs" in head.reason


def test_every_layer_has_a_noise_in_int8_and_the_sum_is_about_the_whole(looked):
    found, *_ = looked
    assert len(found.quantization) >= 4
    assert all(q.noise > 0 for q in found.quantization)
    assert 0.3 < found.int8_noise / sum(q.noise for q in found.quantization) < 3


def test_an_untrained_network_is_told_before_the_settings(looked):
    found, _, _, _, folder, _ = looked
    (said,) = found.remarks
    assert "the network looks untrained. Train it first" in said
    page = (folder / "look.html").read_text()
    assert page.index("looks untrained") < page.index("Predicted loss against MACs removed")


def test_callbacks_that_the_module_brings(tmp_path, loaders):
    """Its HQPPruning counts, before the Trainer's, and none of them is called."""

    class Own(Classifier):
        def configure_callbacks(self):
            return [counting, HQPPruning("val_acc", 0.1, ignore=("7",))]

    torch.manual_seed(0)
    counting, model = Counting(), Own()
    trainer = a_trainer(callbacks=[HQPPruning("val_acc", 0.1)])
    found = look(trainer, model, loaders[1], tmp_path / "look", samples=16)
    assert {k.group: k.reason for k in found.kept}["7"] == "ignored, as asked"
    assert "7" not in {p.name for p in found.parts}
    assert counting.calls == 0
    assert "configure_callbacks" not in model.__dict__
    assert len(trainer.callbacks) == 1


def test_the_files_are_written(looked):
    found, _, _, _, folder, _ = looked
    content = json.loads((folder / "look.json").read_text())
    assert content["channels"][0]["predicted_loss_increase"] == found.channels[0].predicted_loss_increase
    assert (folder / "look.png").read_bytes().startswith(b"\x89PNG")
    assert "Predicted loss against MACs removed" in (folder / "look.html").read_text()
    assert sorted(f.name for f in folder.iterdir()) == ["look.html", "look.json", "look.png"]


def test_milliseconds_are_those_of_the_table_for_what_is_left(tmp_path, loaders):
    """A table by which a call takes as many milliseconds as the head has inputs, a tenth each."""
    torch.manual_seed(0)
    widths = {"0": (1, 32), "3": (32, 64), "7": (64, 64), "11": (64, 10)}
    networks = [
        NetworkTime("", "int8", {**widths, "7": (64, w), "11": (w, 10)}, w / 10, {"11": w / 10}) for w in (64, 32, 8)
    ]
    parts = {"11": Part("11", ("11",), per_channel=False)}
    table = LatencyTable("openvino", "1", "a CPU", 1, "processor", 1, ((1, 8, 8),), parts, tuple(networks))
    path = write_table(table, tmp_path / "table.json")
    trainer = a_trainer(callbacks=[HQPPruning("val_acc", 0.1, cost=str(path))])
    found = look(trainer, Classifier(), loaders[1], tmp_path / "look", samples=64)
    assert found.latency_ms == pytest.approx(6.4, rel=0.02)
    left = {p.latency_ms for p in found.channels}
    assert all(any(abs(ms - w / 10) < 0.15 for w in range(8, 65, 8)) for ms in left)
    assert min(left) < 6
    # Cuts take fractions of the milliseconds, whatever share of the MACs goes with them; so does the step advised.
    sizes = [1 - p.latency_ms / found.latency_ms for p in found.channels]
    (step,) = (a.value for a in found.advice if a.setting == "step")
    assert step == pytest.approx(max(s for s in sizes if s <= 0.22), abs=0.03)
    assert all(p.macs_removed < s for p, s in zip(found.channels, sizes, strict=True) if s > 0.3)


class Flat(Classifier):
    """One linear layer: a head, and nothing before it."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


class Stepless(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(1, 1)


@pytest.mark.parametrize(
    ("module", "data", "said"),
    [
        (nn.Linear(1, 1), [], "module is a Linear; expected a LightningModule"),
        (Classifier(), LightningDataModule(), "LightningDataModule gives nothing to validate: .*val_dataloader"),
        (Classifier(), None, "Classifier gives nothing to validate: .*val_dataloader"),
        (Classifier(), 3, "datamodule is a int; expected a LightningDataModule"),
        (Classifier(), [], "the validation loader is empty"),
        (Stepless(), [torch.zeros(1, 1)], "gives nothing to validate: No `validation_step"),
        (Flat(), None, "Sequential has nothing to prune"),
    ],
    ids=["no module", "no loader", "no data", "no data module", "empty", "no step", "nothing to prune"],
)
def test_what_can_not_work_is_refused_in_a_line(module, data, said, tmp_path, loaders):
    data = loaders[1] if isinstance(module, Flat) else data
    with pytest.raises(ConfigurationError, match=said) as caught:
        look(a_trainer(), module, data, tmp_path / "look")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "look").glob("*")) if (tmp_path / "look").exists() else True


def test_blocks_are_worth_what_the_loss_rises_without_them(digits, tmp_path):
    """By hand, on the one batch there is: half the Fisher values have another order of size."""
    torch.manual_seed(10)  # it rises without each
    model, (x, y) = GatedClassifier(), digits
    model.net[6].body[4].weight.data.mul_(3)
    model.net[-1].weight.data.mul_(30)
    with torch.no_grad():
        y = model.net.eval()(x).argmax(1)  # so that it is right as it is
    loaders = [DataLoader(TensorDataset(x[i : i + 64], y[i : i + 64]), batch_size=64) for i in (0, 1200)]
    found = look(a_trainer(), model, Digits(*loaders), dirpath=tmp_path)
    losses = []
    for gone in ("", "5", "6"):
        cut = nn.Sequential(*(nn.Identity() if str(i) == gone else m for i, m in enumerate(model.net)))
        with torch.no_grad():
            losses.append(float(nn.functional.cross_entropy(cut.eval()(x[1200:1264]), y[1200:1264])))
    told = {p.name: p.loss for p in found.parts if p.kind == "branch"}
    assert told["5"] / told["6"] == pytest.approx((losses[1] - losses[0]) / (losses[2] - losses[0]), rel=1e-3)
