"""Habits of users' loops: the lines of the table of docs/supported.md, in small, to run with both callbacks."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from classifier import Classifier, small_net
from lightning.pytorch import LightningDataModule
from lightning.pytorch import callbacks as lc
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint_sequential
from torch.utils.data import DataLoader, TensorDataset

from hqp_lightning import HQPPruning, PrunedCheckpointMixin, load_pruned
from hqp_lightning.loop.checkpoint import carry_structure


@dataclass(frozen=True)
class Habit:
    """A module, settings and callbacks around `HQPPruning` and `Int8Export`; what is said here is what is unusual.

    Attributes:
        model: makes the module.
        settings: of the Trainer; called with the test's folder if it is callable.
        before: makes the callbacks before ours.
        after: those between ours and the end.
        pruning: arguments of `HQPPruning`.
        data: changes ``(x, y)`` of the digits.
        loaders: makes loaders or a datamodule of the train and validation pair.
        fitted: what ``trainer.fit`` gets for the module.
        prepared: what the network receives of an image.
        outcome: of the steps; None: nothing is pruned or exported.
        fails: the export does.
        then: ``then(trainer, model, folder)`` after ``fit``.
    """

    model: Callable[[], Classifier] = Classifier
    settings: dict = field(default_factory=dict)
    before: Callable[[], list] = list
    after: Callable[[], list] = list
    pruning: dict = field(default_factory=dict)
    data: Callable = lambda x, y: (x, y)
    loaders: Callable = lambda train, val: (train, val)
    fitted: Callable = lambda model: model
    prepared: Callable = lambda x: x
    outcome: str | None = "kept"
    fails: bool = False
    then: Callable = lambda trainer, model, folder: None


class Optimized(Classifier):
    """Any optimizers and schedules, given as a function of the module."""

    def __init__(self, configured):
        super().__init__()
        self.configured = configured

    def configure_optimizers(self):
        return self.configured(self)


def optimized(configured):
    return Habit(partial(Optimized, configured))


def groups(m):
    kernels = [p for p in m.parameters() if p.dim() > 1]
    return torch.optim.AdamW([{"params": kernels}, {"params": [p for p in m.parameters() if p.dim() == 1]}], 3e-3)


def scheduled(make, **settings):
    def configured(m):
        optimizer = torch.optim.SGD(m.parameters(), 0.05)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": make(optimizer), **settings}}

    return optimized(configured)


class Manual(Classifier):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self):
        return [torch.optim.SGD(self.net[:4].parameters(), 0.05, 0.9), torch.optim.AdamW(self.net[4:].parameters())]

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()


class Frozen(Classifier):
    def __init__(self, part="norm"):
        super().__init__()
        if part == "norm":
            self.net[1].momentum = 0.0
        else:
            self.net[:3].requires_grad_(False)


class Mixed(PrunedCheckpointMixin, Classifier):
    pass


class Stopped(Classifier):
    """Its process ends in the second epoch, once."""

    ended = False

    def training_step(self, batch, batch_idx):
        if self.current_epoch == 1 and not Stopped.ended:
            Stopped.ended = True
            raise SystemExit
        return super().training_step(batch, batch_idx)


class Attentive(Classifier):
    def __init__(self):
        super().__init__()
        encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.net = nn.Sequential(*small_net()[:7], Tokens(), nn.Linear(64, 16), encoder, Mean(), nn.Linear(16, 10))


class Tokens(nn.Module):
    def forward(self, x):
        return x.flatten(2).transpose(1, 2)


class Mean(nn.Module):
    def forward(self, x):
        return x.mean(1)


class Late(Classifier):
    def __init__(self):
        super().__init__()
        self.net = None

    def configure_model(self):
        self.net = small_net() if self.net is None else self.net

    def configure_callbacks(self):
        return [lc.Timer()]


class TwoLoaders(Classifier):
    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        right = (self.net(batch[0]).argmax(1) == batch[1]).float().mean()
        self.log(["val_acc", "val_other"][dataloader_idx], right, add_dataloader_idx=False)


class Asking(Manual):
    """Its schedule is stepped by the score, and what it says of itself goes to the logger."""

    def configure_optimizers(self):
        first, second = super().configure_optimizers()
        return [first, second], [torch.optim.lr_scheduler.ReduceLROnPlateau(first, "max")]

    def on_validation_epoch_end(self):
        if self.current_epoch <= self.trainer.max_epochs and not self.trainer.sanity_checking:
            self.lr_schedulers().step(0.5)
        rates = {f"lr{k}": o.param_groups[0]["lr"] for k, o in enumerate(self.trainer.optimizers)}
        self.logger.experiment.log_metrics({**rates, self.logger.log_dir: 1.0}, self.global_step)


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = small_net()

    def forward(self, *, pixels):
        return self.layers(pixels)


class Called(Classifier):
    """The module prepares the batch and calls its network; ``how`` differs."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        if how == "by name":
            self.net = Named()
        elif how == "in parts":
            layers = self.net
            del self.net
            self.body, self.head = layers[:11], layers[11:]

    def forward(self, x):
        x = (x.float() - 4) / 8
        return self.net(pixels=x) if self.how == "by name" else self.net(x)

    def logits(self, x):
        return self.head(self.body((x.float() - 4) / 8)) if self.how == "in parts" else self(x)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.logits(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.accuracy(self.logits(batch[0]), batch[1])
        self.log("val_acc", self.accuracy)


class WholeInParts(Called):
    def forward(self, x):
        return self.head(self.body(x))


def called(model):
    return Habit(model, data=lambda x, y: ((x * 16).byte(), y), prepared=lambda x: (x.float() - 4) / 8)


class Keeps(Classifier):
    """Graphs live on over a step: in an attribute, and in a list for the end of the epoch."""

    def __init__(self):
        super().__init__()
        self.training_step_outputs = []

    def training_step(self, batch, batch_idx):
        self.last_logits = self.net(batch[0])
        loss = F.cross_entropy(self.last_logits, batch[1])
        self.training_step_outputs.append(loss)
        return loss

    def on_train_epoch_end(self):
        self.log("train_loss", torch.stack(self.training_step_outputs).mean())
        self.training_step_outputs = self.training_step_outputs[-1:]


class KeepsMaps(Classifier):
    """Its network keeps maps of features, with their graph."""

    def __init__(self):
        super().__init__()
        for layer in self.net[:3]:
            layer.register_forward_hook(lambda layer, _, out: layer.__dict__.update(seen={"maps": [out]}))


class Averaging(Classifier):
    def __init__(self, kind):
        super().__init__()
        self.ema = AveragedModel(self.net) if kind == "torch" else copy.deepcopy(self.net)

    def on_train_batch_end(self, *_):
        if isinstance(self.ema, AveragedModel):
            self.ema.update_parameters(self.net)
            return
        with torch.no_grad():
            for a, p in zip(self.ema.parameters(), self.net.parameters(), strict=True):
                a.lerp_(p, 0.1)


class Targets(Classifier):
    """Other targets than classes; the "accuracy" is the share of labels with the right sign."""

    def __init__(self, outputs):
        super().__init__()
        self.net[-1] = nn.Linear(64, outputs)

    def training_step(self, batch, batch_idx):
        logits = self.net(batch[0])
        return F.mse_loss(logits, batch[1].reshape(logits.shape).to(logits.dtype))

    def validation_step(self, batch, batch_idx):
        logits = self.net(batch[0])
        self.log("val_acc", ((logits > 0) == (batch[1].reshape(logits.shape) > 0)).float().mean())


class Recomputed(nn.Sequential):
    """Keeps no activations of its layers, and computes them once more for the gradients."""

    def forward(self, x):
        x.requires_grad_(self.training)
        return checkpoint_sequential(self, 3, x, use_reentrant=True)


class Recomputing(Classifier):
    def __init__(self):
        super().__init__()
        self.net = Recomputed(*self.net)


class Compiled(Classifier):
    def __init__(self, how):
        super().__init__()
        torch._dynamo.reset()
        if how == "in place":
            self.net.compile(backend="eager")
        elif how == "wrapped":
            self.net = torch.compile(self.net, backend="eager")


class Data(LightningDataModule):
    def __init__(self, train, val):
        super().__init__()
        self.pair, self.batch_size = (train, val), 32

    def train_dataloader(self):
        return DataLoader(self.pair[0].dataset, self.batch_size)

    def val_dataloader(self):
        return self.pair[1]


def smaller(train, val):
    x, y = train.dataset.tensors
    return DataLoader(TensorDataset(F.interpolate(x, size=(6, 6)), y), 32), val


def workers(train, val):
    return DataLoader(train.dataset, 32, num_workers=1, persistent_workers=True), val


def checkpoint():
    return lc.ModelCheckpoint(monitor="val_acc", mode="max", save_last=True, save_top_k=1)


def resumed(trainer, model, folder):
    """The files load: by our function, by Lightning's own way, into another run, and into a validation."""
    loaded = load_pruned(type(model), folder / "pruned.ckpt")
    state = model.state_dict()
    assert all(torch.equal(t, state[n]) for n, t in loaded.state_dict().items())
    if isinstance(model, PrunedCheckpointMixin):
        again = type(model).load_from_checkpoint(folder / "pruned.ckpt")
        assert all(torch.equal(t, state[n]) for n, t in again.state_dict().items())
    fresh = type(model)()
    carry_structure(fresh)  # as HQPPruning does in ``setup``
    trainer.validate(fresh, trainer.val_dataloaders, ckpt_path=folder / "pruned.ckpt", verbose=False)
    assert all(torch.equal(t, state[n]) for n, t in fresh.state_dict().items())


def goes_on(trainer, model, folder):
    """A second ``fit`` with one epoch more makes one step more, from what the first one accepted."""
    pruning = next(c for c in trainer.callbacks if isinstance(c, HQPPruning))
    before = [r.macs for r in pruning.records]
    trainer.fit_loop.max_epochs += 1
    trainer.fit(model, trainer.train_dataloader, trainer.val_dataloaders)
    assert [r.macs for r in pruning.records[:-1]] == before
    assert pruning.records[-1].macs < before[-1]


def optimizers(**kinds):
    return [optimized(lambda m, k=k: k(m.parameters())) for k in kinds.values()]


sgd = partial(torch.optim.SGD, lr=0.05)
adam = partial(torch.optim.Adam, lr=1e-3)

HABITS = {
    "SGD (momentum, Nesterov), Adam (AMSGrad), AdamW, RMSprop; `foreach` and `fused`": optimizers(
        nesterov=partial(sgd, momentum=0.9, nesterov=True, foreach=True),
        amsgrad=partial(adam, amsgrad=True),
        fused=partial(torch.optim.AdamW, fused=True),
        rmsprop=partial(torch.optim.RMSprop, lr=1e-3, momentum=0.9),
    ),
    "parameter groups, weight-decay groups, a part of the model only, several optimizers with manual optimization": [
        optimized(groups),
        optimized(lambda m: adam(m.net[-1].parameters())),
        Habit(Manual),
    ],
    "Adafactor, LBFGS, 8-bit optimizers: state that is not of the parameter's shape": [
        Habit(
            partial(Optimized, lambda m: torch.optim.Adafactor(m.parameters())),
            outcome="refused",
            pruning={"start_epoch": 1, "min_step": 0.2},
        ),
    ],
    'OneCycle, warm-up, StepLR, ReduceLROnPlateau, `interval="step"` or `"epoch"`': [
        scheduled(lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=9), interval="step"),
        scheduled(lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, "max"), monitor="val_acc"),
    ],
    "`accumulate_grad_batches`, `gradient_clip_val`, `bf16-mixed`, `16-mixed` with its `GradScaler`": [
        Habit(settings={"accumulate_grad_batches": 2, "gradient_clip_val": 0.5, "precision": "bf16-mixed"}),
        Habit(settings={"plugins": lambda folder: [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))]}),
    ],
    "`bf16-true`, `64-true`, attention layers": [
        Habit(settings={"precision": "bf16-true"}),
        Habit(settings={"precision": "64-true"}),
        Habit(Attentive),
    ],
    "Fisher scores under `bf16-mixed`, `16-mixed`": [
        Habit(settings={"precision": "bf16-mixed"}, pruning={"estimator": "weight"})
    ],
    "frozen BatchNorm: in eval mode, `momentum=0`, `track_running_stats=False`": [Habit(Frozen)],
    "frozen parameters": [Habit(partial(Frozen, "stem"))],
    "gradient checkpoints (`torch.utils.checkpoint`), with `use_reentrant=True` or without": [Habit(Recomputing)],
    "`EMAWeightAveraging`, and what else derives from Lightning's `WeightAveraging`": [
        Habit(before=lambda: [lc.EMAWeightAveraging(decay=0.9)])
    ],
    "an average that the module keeps itself: torch's `AveragedModel`, timm's `ModelEmaV2`, a deepcopy": [
        Habit(partial(Averaging, "torch")),
        Habit(partial(Averaging, "deepcopy"), pruning={"module": "net"}),
    ],
    "`ModelCheckpoint`: `save_last`, `save_top_k`, `save_weights_only`, best, within an epoch": [
        Habit(after=lambda: [checkpoint()], settings={"enable_checkpointing": True})
    ],
    "`load_pruned(MyModule, path)`": [Habit(then=resumed)],
    "`MyModule.load_from_checkpoint(path)`": [Habit(Mixed, then=resumed)],
    "`fit(ckpt_path=...)`": [
        Habit(before=lambda: [checkpoint()], settings={"enable_checkpointing": True, "max_epochs": 3})
    ],
    "a process that is killed, while it prunes, rolls back, exports or writes a file": [
        Habit(Stopped, before=lambda: [checkpoint()], settings={"enable_checkpointing": True})
    ],
    "a second `fit` with the same callback; `trainer.save_checkpoint` after `fit`, and more epochs": [
        Habit(then=goes_on)
    ],
    "`validate(ckpt_path=...)` of an unpruned file on a pruned module, and the reverse": [Habit(then=resumed)],
    "EarlyStopping, LearningRateMonitor, GradientAccumulationScheduler, Timer, progress bars, ModelSummary": [
        Habit(
            before=lambda: [lc.EarlyStopping("val_acc", mode="max", patience=9), lc.LearningRateMonitor()],
            after=lambda: [lc.Timer(), lc.GradientAccumulationScheduler({1: 2}), lc.ModelSummary()],
            settings={"logger": lambda folder: CSVLogger(folder), "enable_model_summary": True},
        )
    ],
    '`profiler="simple"`, `"advanced"`; a debugger, coverage': [Habit(settings={"profiler": "advanced"})],
    "CSVLogger, TensorBoardLogger, MLFlowLogger, WandbLogger": [
        Habit(settings={"logger": lambda folder: CSVLogger(folder)})
    ],
    "`LearningRateFinder`, before or after `HQPPruning`, and `Tuner(trainer).lr_find`": [
        Habit(before=lambda: [lc.LearningRateFinder(num_training_steps=8, early_stop_threshold=None)])
    ],
    "`BatchSizeFinder`, before or after `HQPPruning`, and `Tuner(trainer).scale_batch_size`": [
        Habit(before=lambda: [lc.BatchSizeFinder(steps_per_trial=1, init_val=8, max_trials=2)], loaders=Data)
    ],
    "`torch.compile(module)`, `module.net.compile()`, `self.net = torch.compile(net)`": [
        Habit(fitted=lambda model: torch.compile(model, backend="eager")),
        Habit(partial(Compiled, "in place")),
        Habit(partial(Compiled, "wrapped")),
    ],
    "graphs that live on over a step: `self.last_logits = ...`, `training_step_outputs`": [
        Habit(Keeps),
        Habit(KeepsMaps),
    ],
    "preprocessing in the module's `forward` or steps, networks called with keyword arguments": [
        called(partial(Called, "by place")),
        called(partial(Called, "by name")),
    ],
    "networks whose parts or methods the steps call, not they themselves": [called(partial(WholeInParts, "in parts"))],
    "training images of another size than validation's": [Habit(loaders=smaller)],
    "targets that are no classes: one logit, several labels, a regression": [
        Habit(partial(Targets, 1), data=lambda x, y: (x, (y > 4).long())),
        Habit(partial(Targets, 3), data=lambda x, y: (x, (y[:, None] > torch.tensor([2, 4, 6])).float())),
        Habit(partial(Targets, 1), data=lambda x, y: (x, y[:, None] / 3 - 1)),
    ],
    "`configure_model`, `configure_callbacks`": [Habit(Late)],
    "`val_check_interval` < 1, `check_val_every_n_epoch` > 1, `limit_val_batches`, `overfit_batches`": [
        Habit(settings={"val_check_interval": 0.5, "limit_val_batches": 1})
    ],
    "validation hooks that ask for optimizers, schedules, loggers, the epoch": [
        Habit(Asking, settings={"logger": lambda folder: CSVLogger(folder)})
    ],
    "an export that fails": [Habit(fails=True)],
    "several validation loaders": [
        Habit(TwoLoaders, loaders=lambda train, val: (train, [val, train]), settings={"num_sanity_val_steps": 2})
    ],
    "`fast_dev_run`, `num_sanity_val_steps`": [
        Habit(settings={"fast_dev_run": True}, outcome=None),
        Habit(settings={"num_sanity_val_steps": -1}),
    ],
    "`persistent_workers=True`": [Habit(loaders=workers)],
}
"""What stands in the first column of the table, and the habits that are run for it."""
