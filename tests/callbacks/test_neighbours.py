"""What else is in a serious user's loop: callbacks, loggers, and the Trainer's settings."""

import pytest
import torch
from classifier import Classifier, Scripted, small_net
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelSummary,
    RichProgressBar,
    Timer,
    TQDMProgressBar,
)
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.tuner import Tuner
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hqp_lightning import HQPPruning, Int8Export, load_pruned

SCORES = [0.9, 0.89, 0.5, 0.885]


@pytest.fixture
def loaders(digits):
    """Five batches of 16, and four: most scores here are scripted."""
    x, y = digits
    train, val = TensorDataset(x[:80], y[:80]), TensorDataset(x[1200:1250], y[1200:1250])
    return DataLoader(train, 16), DataLoader(val, 16)


def few(*args, **kwargs):
    """A pruning that looks at few images after a cut: what it learns from them is not the matter here."""
    return HQPPruning(*args, **{"compensate": False, "recalibrate_batches": 1, **kwargs})


def steps(pruning):
    return [(r.epoch, r.outcome) for r in pruning.records]


STORY = [(0, "kept"), (1, "rolled_back"), (2, "kept")]

CALLBACKS = {
    "rich_progress_bar": lambda: RichProgressBar(),
    "tqdm_progress_bar": lambda: TQDMProgressBar(),
    "model_summary": lambda: ModelSummary(max_depth=2),
    "timer": lambda: Timer(),
    "accumulation_scheduler": lambda: GradientAccumulationScheduler({0: 1, 2: 2}),
    "patient_early_stopping": lambda: EarlyStopping("val_acc", mode="max", patience=5),
}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("name", CALLBACKS)
def test_beside_other_callbacks_in_either_order(loaders, make_trainer, name, first):
    pruning, other = few("val_acc", 0.02, step=0.2, min_step=0.05), CALLBACKS[name]()
    settings = {"enable_progress_bar": True} if "bar" in name else {}
    settings |= {"enable_model_summary": True} if "summary" in name else {}
    make_trainer(3, [other, pruning] if first else [pruning, other], **settings).fit(Scripted(SCORES), *loaders)
    assert steps(pruning) == STORY


def test_a_step_is_told_above_the_progress_bar_in_its_own_way(loaders, make_trainer, capsys):
    def told(bar):
        pruning = few("val_acc", 0.02, step=0.2, min_step=0.05)
        make_trainer(2, [bar, pruning], enable_progress_bar=bar is not None).fit(Scripted(SCORES), *loaders)
        return capsys.readouterr().out

    terminal = {"force_terminal": True, "color_system": "standard", "width": 200}
    rich, tqdm = told(RichProgressBar(console_kwargs=terminal)), told(TQDMProgressBar())
    assert "\x1b[32mhqp step 1 kept: " in rich
    assert "\x1b[33mhqp step 2 rolled back: " in rich
    for outcome in ("1 kept", "2 rolled back"):
        assert f"\rhqp step {outcome}: " in tqdm  # at the start of a line, where the bar was cleared
        assert rich.count(f"hqp step {outcome}: ") == tqdm.count(f"hqp step {outcome}: ") == 1


def test_early_stopping_ends_with_the_last_accepted_model(loaders, make_trainer):
    pruning, model = few("val_acc", 0.02, step=0.2, min_step=0.05), Scripted(SCORES)
    trainer = make_trainer(9, [pruning, EarlyStopping("val_acc", mode="max", patience=1)])
    trainer.fit(model, *loaders)
    assert trainer.current_epoch == 2
    assert steps(pruning) == STORY[:2]
    assert sum(p.numel() for p in model.net.parameters()) == pruning.records[0].params


class Watch(Callback):
    """Keeps the saliencies that every step is ranked by; stands before the pruning in the list."""

    def __init__(self, pruning):
        self.pruning, self.saliencies = pruning, []

    def on_train_epoch_start(self, trainer, pl_module):
        self.saliencies.append(torch.cat(list(self.pruning.state.saliency.values())).clone())


def test_loggers_get_the_steps_and_the_learning_rate(loaders, make_trainer, tmp_path):
    pruning, logger = few("val_acc", 0.02, step=0.2, min_step=0.05), CSVLogger(tmp_path)
    callbacks = [LearningRateMonitor("step"), pruning]
    make_trainer(3, callbacks, logger=logger, log_every_n_steps=1).fit(Scripted(SCORES), *loaders)
    assert steps(pruning) == STORY
    lines = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()
    assert {"hqp/kept", "hqp/macs", "lr-AdamW", "val_acc"} <= set(lines[0].split(","))


def test_what_tensorboard_reads(loaders, make_trainer, tmp_path):
    """The file, read by TensorBoard's own reader."""
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="TensorBoard is not installed"
    )
    pruning, logger = few("val_acc", 0.02, step=0.2, min_step=0.05), TensorBoardLogger(tmp_path)
    callbacks = [watch := Watch(pruning), LearningRateMonitor("step"), pruning]
    make_trainer(3, callbacks, logger=logger, log_every_n_steps=1).fit(Scripted(SCORES), *loaders)
    assert steps(pruning) == STORY
    # By default the reader keeps a sample of the scalars and one histogram.
    events = accumulator.EventAccumulator(logger.log_dir, {"scalars": 0, "histograms": 0}).Reload()

    def scalars(name):
        return [e.value for e in events.Scalars(name)]

    assert [e.step for e in events.Scalars("hqp/kept")] == [5, 10, 15]
    assert scalars("hqp/kept") == [1, 0, 1]
    assert scalars("hqp/macs") == [r.macs for r in pruning.records]
    assert scalars("hqp/params") == [r.params for r in pruning.records]
    assert scalars("hqp/accuracy_drop") == pytest.approx([0.01, 0.4, 0.015], abs=1e-6)
    assert scalars("hqp/step") == pytest.approx([r.step for r in pruning.records])
    assert "lr-AdamW" in events.Tags()["scalars"]
    histograms = events.Histograms("hqp/log10_saliency")
    assert [h.step for h in histograms] == [0, 5, 10]
    for h, saliency in zip(histograms, watch.saliencies, strict=True):
        expected = saliency[saliency > 0].double().log10()
        assert h.histogram_value.num == len(expected)
        assert h.histogram_value.min == pytest.approx(expected.min().item(), rel=1e-5)
        assert h.histogram_value.max == pytest.approx(expected.max().item(), rel=1e-5)
        assert h.histogram_value.sum == pytest.approx(expected.sum().item(), rel=1e-5)
        assert sum(h.histogram_value.bucket) == len(expected)


class Recorder(TensorBoardLogger):
    """TensorBoardLogger's interface without TensorBoard: the calls are kept."""

    def __init__(self):
        self.scalars, self.histograms = {}, []

    @property
    def experiment(self):
        return self

    def add_histogram(self, tag, values, global_step=None):
        self.histograms.append((tag, values, global_step))

    def log_metrics(self, metrics, step=None):
        for name, value in metrics.items():
            self.scalars.setdefault(name, []).append((step, value))

    name = version = save_dir = root_dir = log_dir = "nowhere"
    log_hyperparams = log_graph = save = finalize = after_save_checkpoint = lambda self, *args, **kwargs: None


def test_tensorboard_gets_a_histogram_of_the_saliency_at_every_step(loaders, make_trainer):
    pruning, logger = few("val_acc", 0.02, step=0.2, min_step=0.05), Recorder()
    watch = Watch(pruning)
    make_trainer(3, [watch, pruning], logger=logger).fit(Scripted(SCORES), *loaders)
    assert [(tag, step) for tag, _, step in logger.histograms] == [("hqp/log10_saliency", 5 * e) for e in range(3)]
    for (_, values, _), saliency in zip(logger.histograms, watch.saliencies, strict=True):
        assert torch.allclose(10 ** values.double(), saliency[saliency > 0].double(), rtol=1e-4)
    assert 100 < logger.histograms[0][1].numel() <= 32 + 64 + 64  # the dead ones have no logarithm
    assert [value for _, value in logger.scalars["hqp/kept"]] == [1, 0, 1]
    assert [value for _, value in logger.scalars["hqp/macs"]] == [r.macs for r in pruning.records]


def test_several_validations_an_epoch(loaders, make_trainer):
    # 5 batches: validation after the 2nd and the 4th; the epoch's end has none of its own, so the next one judges.
    pruning = few("val_acc", 0.02, step=0.2, min_step=0.05)
    model = Scripted([0.9, 0.1, 0.1, 0.89, 0.5, 0.885])
    make_trainer(3, [pruning], val_check_interval=0.4).fit(model, *loaders)
    assert steps(pruning)[0] == (0, "kept")
    assert pruning.records[0].accuracy == pytest.approx(0.89)


def test_a_validation_every_second_epoch(loaders, make_trainer):
    pruning = few("val_acc", 0.02, step=0.2, min_step=0.05)
    make_trainer(6, [pruning], check_val_every_n_epoch=2).fit(Scripted(SCORES), *loaders)
    assert steps(pruning) == [(0, "kept"), (2, "rolled_back"), (4, "kept")]


def test_a_limited_validation(loaders, make_trainer, digits):
    pruning = few("val_acc", 0.9, step=0.2)
    model = Classifier()
    make_trainer(1, [pruning], limit_val_batches=1).fit(model, *loaders)
    x, y = digits[0][1200:1216], digits[1][1200:1216]
    with torch.no_grad():
        accuracy = float((model.eval().net(x).argmax(1) == y).double().mean())
    assert pruning.records[0].accuracy == pytest.approx(accuracy, abs=1e-6)


@pytest.mark.filterwarnings("ignore:.*lr_find")
@pytest.mark.parametrize("how", ["before", "after", "tuner"])
def test_a_learning_rate_that_was_searched_gives_the_run_of_one_set_by_hand(loaders, make_trainer, how):
    loaders = DataLoader(loaders[0].dataset, 4), loaders[1]  # an epoch is long enough for the search

    def run(how, lr=3e-3):
        torch.manual_seed(0)
        pruning, model = few("val_acc", 0.3, step=0.2), Classifier(lr)
        search = {"max_lr": 0.1, "early_stop_threshold": None}
        finder = [LearningRateFinder(num_training_steps=20, **search)] * (how in ("before", "after"))
        trainer = make_trainer(2, [*finder, pruning] if how == "before" else [pruning, *finder])
        if how == "tuner":
            Tuner(trainer).lr_find(model, *loaders, num_training=20, **search)
        trainer.fit(model, *loaders)
        return model, pruning

    searched, found = run(how)
    assert searched.hparams.lr != 3e-3
    by_hand, given = run("hand", searched.hparams.lr)
    assert [(r.outcome, r.macs) for r in found.records] == [(r.outcome, r.macs) for r in given.records]
    assert len(given.records) == 2
    for (name, a), b in zip(searched.state_dict().items(), by_hand.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


class TwoLoaders(Classifier):
    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        x, y = batch
        accuracy = (self.net(x).argmax(1) == y).double().mean()
        self.log("val_acc", accuracy, batch_size=len(y))


def test_several_validation_loaders_are_scored_on_the_first_and_judged_by_the_named_metric(loaders, make_trainer):
    train, val = loaders
    both = [val, DataLoader(train.dataset, 64)]
    pruning = HQPPruning("val_acc/dataloader_idx_1", 0.9, step=0.2)
    model = TwoLoaders()
    make_trainer(1, [pruning]).fit(model, train, both)
    assert pruning.own_fisher.state.samples == len(val.dataset)
    x, y = train.dataset.tensors
    with torch.no_grad():
        accuracy = float((model.eval().net(x).argmax(1) == y).double().mean())
    assert pruning.records[0].accuracy == pytest.approx(accuracy, abs=1e-6)


@pytest.mark.filterwarnings("ignore:You requested to overfit:UserWarning")
def test_overfit_batches(loaders, make_trainer):
    pruning = few("val_acc", 0.02, step=0.2, min_step=0.05)
    make_trainer(3, [pruning], overfit_batches=2).fit(Scripted(SCORES), *loaders)
    assert steps(pruning) == STORY


@pytest.mark.parametrize("batches", [True, 2])
def test_fast_dev_run_touches_nothing(loaders, make_trainer, tmp_path, batches):
    pruning, export = HQPPruning("val_acc", 0.02), Int8Export(tmp_path / "deploy")
    model = Classifier()
    make_trainer(1, [pruning, export], fast_dev_run=batches).fit(model, *loaders)
    assert pruning.records == ()
    assert model.net[0].out_channels == 32
    assert list((tmp_path / "deploy").iterdir()) == []


@pytest.mark.parametrize("sanity", [1, -1])
def test_a_sanity_check_is_no_measurement(loaders, make_trainer, sanity):
    pruning = few("val_acc", 0.02, step=0.2, min_step=0.05)
    make_trainer(3, [pruning], num_sanity_val_steps=sanity).fit(Scripted(SCORES), *loaders)
    assert steps(pruning) == STORY
    assert pruning.state.dense.score == pytest.approx(0.9)


class Late(Scripted):
    """Builds its network in ``configure_model``, and brings its callbacks along."""

    def __init__(self, scores, callbacks=()):
        super().__init__(scores)
        self.net, self.brought = None, list(callbacks)

    def configure_model(self):
        if self.net is None:
            self.net = small_net()

    def configure_callbacks(self):
        return self.brought


def test_configure_model_builds_the_network_later(loaders, make_trainer):
    pruning, model = few("val_acc", 0.02, step=0.2, min_step=0.05), Late(SCORES)
    make_trainer(3, [pruning]).fit(model, *loaders)
    assert steps(pruning) == STORY


def test_a_wrong_path_is_refused_even_if_the_network_is_built_later(loaders, make_trainer):
    from hqp_lightning import ConfigurationError

    with pytest.raises(ConfigurationError, match=r"module='backbone' is not in Late.*\['net'\]"):
        make_trainer(1, [HQPPruning("val_acc", 0.02, module="backbone")]).fit(Late(SCORES), *loaders)


def test_configure_callbacks_brings_the_pruning(loaders, make_trainer):
    pruning = few("val_acc", 0.02, step=0.2, min_step=0.05)
    make_trainer(3, []).fit(Late(SCORES, [pruning]), *loaders)
    assert steps(pruning) == STORY


class Held(DataLoader):
    """Somebody else has its iterators, too."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.held = []

    def _get_iterator(self):
        self.held.append(super()._get_iterator())
        return self.held[-1]


def test_loaders_with_persistent_workers_lose_no_batch_and_their_workers_end(loaders, make_trainer):
    class Seen(Callback):
        def __init__(self):
            self.rows = []

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.rows.append(batch[0].clone())

    train, val = loaders
    workers = Held(train.dataset, 16, num_workers=1, persistent_workers=True)
    pruning, seen = HQPPruning("val_acc", 0.02, step=0.2, recalibrate_batches=2), Seen()
    make_trainer(2, [pruning, seen]).fit(Scripted([0.9]), workers, val)
    assert len(pruning.records) == 2
    epoch = torch.cat(list(b[0] for b in train))
    assert torch.equal(torch.cat(seen.rows), torch.cat([epoch, epoch]))
    assert len(workers.held) > 2  # the epochs' and those that the pruning looked with
    assert all(iterator._shutdown for iterator in workers.held)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("how", ["whole_module", "network_in_place"])
def test_a_compiled_module(loaders, make_trainer, how):
    torch._dynamo.reset()
    model, plain = Scripted(SCORES, optimizer="sgd"), Scripted(SCORES, optimizer="sgd")
    plain.load_state_dict(model.state_dict())
    if how == "whole_module":
        compiled = torch.compile(model, backend="eager")
    else:
        compiled = model
        model.net.compile(backend="eager")
    ran = []
    for module in (compiled, plain):
        pruning = HQPPruning("val_acc", 0.02, step=0.2, min_step=0.05)
        make_trainer(2, [pruning]).fit(module, *loaders)
        ran.append(pruning)
    assert steps(ran[0]) == steps(ran[1]) == STORY[:2]
    for (name, a), b in zip(model.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_a_network_inside_a_compiled_wrapper(loaders, make_trainer, tmp_path):
    torch._dynamo.reset()
    model = Scripted([0.0], int8=SCORES)  # the wrapper has a forward of its own, as an engine's stand-in has
    model.net = torch.compile(model.net, backend="eager")
    pruning = HQPPruning("val_acc", 0.02, step=0.2, min_step=0.05)
    trainer = make_trainer(3, [pruning])
    trainer.fit(model, *loaders)
    assert steps(pruning) == STORY
    trainer.save_checkpoint(tmp_path / "x.ckpt", weights_only=True)
    fresh = Scripted(SCORES)
    fresh.net = torch.compile(fresh.net, backend="eager")
    load_pruned(fresh, tmp_path / "x.ckpt")
    assert fresh.net._orig_mod[0].out_channels == model.net._orig_mod[0].out_channels


def test_checkpoints_in_the_middle_of_an_epoch(loaders, make_trainer, tmp_path):
    pruning = few("val_acc", 0.02, step=0.2, min_step=0.05)
    checkpoint = ModelCheckpoint(tmp_path / "a", "{step}", every_n_train_steps=2, save_top_k=-1)
    make_trainer(2, [pruning, checkpoint], enable_checkpointing=True).fit(Scripted(SCORES), *loaders)
    for path in (tmp_path / "a").iterdir():
        load_pruned(Scripted([0.0]), path)


class TwoNetworks(Scripted):
    """A teacher that stays as it is beside the student that is pruned."""

    def __init__(self, scores):
        super().__init__(scores)
        self.teacher = nn.Sequential(
            nn.Conv2d(1, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)
        )
        self.teacher.requires_grad_(False)

    def training_step(self, batch, batch_idx):
        logits = self.net(batch[0])
        return nn.functional.mse_loss(logits, self.teacher(batch[0])) + nn.functional.cross_entropy(logits, batch[1])


def test_one_of_two_networks_is_pruned(loaders, make_trainer):
    model = TwoNetworks(SCORES)
    before = {n: t.clone() for n, t in model.teacher.state_dict().items()}
    pruning = few("val_acc", 0.02, step=0.2, min_step=0.05, module="net")
    make_trainer(3, [pruning]).fit(model, *loaders)
    assert steps(pruning) == STORY
    assert all(torch.equal(t, before[n]) for n, t in model.teacher.state_dict().items())
    assert sum(p.numel() for p in model.net.parameters()) == pruning.records[-1].params


class IsTheNetwork(Classifier):
    """The LightningModule itself is the network: ``self(x)``."""

    def __init__(self):
        super().__init__()
        del self.net
        self.stem, self.deep = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(32), nn.Linear(32, 10)

    def forward(self, x):
        return self.head(self.norm(self.deep(self.stem(x).relu())).relu().mean((2, 3)))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.accuracy(self(batch[0]), batch[1])
        self.log("val_acc", self.accuracy)


def test_the_module_itself_is_the_network(loaders, make_trainer):
    pruning, model = few("val_acc", 0.9, step=0.2), IsTheNetwork()
    make_trainer(2, [pruning]).fit(model, *loaders)
    assert [r.outcome for r in pruning.records] == ["kept", "kept"]
    assert model.stem.out_channels + model.deep.out_channels < 64
    assert model.head.out_features == 10


def test_a_frozen_backbone_stays_frozen_and_is_pruned_consistently(loaders, make_trainer):
    model = Scripted(SCORES)
    model.net[:6].requires_grad_(False)
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    pruning = few("val_acc", 0.02, step=0.2, min_step=0.05)
    make_trainer(3, [pruning]).fit(model, *loaders)
    assert steps(pruning) == STORY
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == frozen
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


class Sized(LightningDataModule):
    """``batch_size`` is what a search of the batch size sets."""

    def __init__(self, loaders, batch_size):
        super().__init__()
        self.loaders, self.batch_size = loaders, batch_size

    def train_dataloader(self):
        return DataLoader(self.loaders[0].dataset, self.batch_size)

    def val_dataloader(self):
        return self.loaders[1]


@pytest.mark.parametrize("how", ["before", "after", "tuner"])
def test_a_batch_size_that_was_searched_gives_the_run_of_one_set_by_hand(loaders, make_trainer, how):
    def run(how, batch_size):
        torch.manual_seed(0)
        pruning, model, data = few("val_acc", 0.3, step=0.2), Classifier(), Sized(loaders, batch_size)
        search = {"steps_per_trial": 1, "init_val": 8, "max_trials": 3}
        finder = [BatchSizeFinder(**search)] * (how in ("before", "after"))
        trainer = make_trainer(2, [*finder, pruning] if how == "before" else [pruning, *finder])
        if how == "tuner":
            Tuner(trainer).scale_batch_size(model, datamodule=data, **search)
        trainer.fit(model, data)
        return model, pruning, data, trainer

    searched, found, data, trainer = run(how, 2)
    assert data.batch_size == 32
    assert trainer.global_step == 2 * 3
    by_hand, given, _, _ = run("hand", 32)
    assert [(r.outcome, r.macs) for r in found.records] == [(r.outcome, r.macs) for r in given.records]
    assert len(given.records) == 2
    for (name, a), b in zip(searched.state_dict().items(), by_hand.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
