"""The optimizers, schedulers and precision of the user's loop go on through a prune as if nothing had happened."""

import copy
from operator import gt, lt

import pytest
import torch
from classifier import Scripted, cut_by_hand
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

from hqp_lightning import HQPPruning

pytestmark = pytest.mark.filterwarnings("ignore:Attribute .schedule. removed from hparams")

EPOCH = 5  # batches


def decay_groups(module):
    """Weight decay for the kernels only, as most recipes have it."""
    kernels = [p for p in module.parameters() if p.dim() > 1]
    return [{"params": kernels}, {"params": [p for p in module.parameters() if p.dim() == 1], "weight_decay": 0.0}]


@pytest.fixture
def loaders(digits):
    """Eight samples a batch: what goes on through a step does so on few, and a CPU has to emulate float16."""
    x, y = digits
    data = TensorDataset(x[: 8 * EPOCH], y[: 8 * EPOCH]), TensorDataset(x[1200:1216], y[1200:1216])
    return tuple(DataLoader(d, 8) for d in data)


OPTIMIZERS = {
    "sgd_momentum": lambda m: torch.optim.SGD(m.parameters(), 0.05, momentum=0.9),
    "sgd_nesterov_groups": lambda m: torch.optim.SGD(
        decay_groups(m), 0.05, momentum=0.9, nesterov=True, weight_decay=1e-2
    ),
    "adam_amsgrad": lambda m: torch.optim.Adam(m.parameters(), 1e-3, amsgrad=True),
    "adamw_groups": lambda m: torch.optim.AdamW(decay_groups(m), 1e-3),
    "adamw_fused": lambda m: torch.optim.AdamW(m.parameters(), 1e-3, fused=True),
    "adamw_foreach": lambda m: torch.optim.AdamW(m.parameters(), 1e-3, foreach=True),
    "rmsprop": lambda m: torch.optim.RMSprop(m.parameters(), 1e-3, momentum=0.9, centered=True),
    "head_only": lambda m: torch.optim.Adam(list(m.parameters())[-2:], 1e-3),
}


class Any(Scripted):
    """A classifier with the given optimizer and scheduler."""

    def __init__(self, optimizer="adamw_groups", schedule=None):
        super().__init__([0.9])  # its hyperparameters are saved, the schedule is a function
        self.make, self.schedule = OPTIMIZERS[optimizer], schedule
        if optimizer == "head_only":
            self.net.requires_grad_(False)
            self.net[-1].requires_grad_(True)

    def configure_optimizers(self):
        optimizer = self.make(self.net)
        return {"optimizer": optimizer, **({"lr_scheduler": self.schedule(optimizer)} if self.schedule else {})}


class PlainLoop(Callback):
    """After a prune, trains a copy of everything for the epoch in a loop of plain torch, and compares."""

    def __init__(self, train, accumulate=1, clip=None, dtype=None):
        self.train, self.accumulate, self.clip, self.dtype, self.compared = train, accumulate, clip, dtype, 0

    def on_train_epoch_start(self, trainer, pl_module):
        network = copy.deepcopy(pl_module.net)
        optimizer = pl_module.make(network)
        optimizer.load_state_dict(copy.deepcopy(trainer.optimizers[0].state_dict()))
        scaler = torch.amp.GradScaler("cpu", enabled=self.dtype is torch.float16)
        scaler.load_state_dict(trainer.precision_plugin.state_dict())
        for i, (x, y) in enumerate(self.train):
            with torch.autocast("cpu", self.dtype, enabled=self.dtype is not None):
                loss = nn.functional.cross_entropy(network(x), y)
            scaler.scale(loss / self.accumulate).backward()
            if (i + 1) % self.accumulate == 0 or i + 1 == EPOCH:
                scaler.unscale_(optimizer)
                if self.clip:
                    # In the order of the optimizer: another sum rounds otherwise, and float16 makes much of that.
                    torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], self.clip)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
        self.network, self.optimizer, self.scaler = network, optimizer, scaler.state_dict()

    def on_train_epoch_end(self, trainer, pl_module):
        expected = self.network.state_dict()
        for name, value in pl_module.net.state_dict().items():
            torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")
        states = zip(trainer.optimizers[0].state.values(), self.optimizer.state.values(), strict=True)
        for mine, reference in states:
            for key, value in reference.items():
                torch.testing.assert_close(mine[key], value, rtol=1e-5, atol=1e-7)
        assert trainer.precision_plugin.state_dict() == self.scaler
        self.compared += 1


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_training_goes_on_as_in_a_loop_of_plain_torch(loaders, make_trainer, kind):
    pruning, plain = HQPPruning("val_acc", 0.05, step=0.2), PlainLoop(loaders[0])
    model = Any(kind)
    flags = [p.requires_grad for p in model.parameters()]
    make_trainer(3, [pruning, plain]).fit(model, *loaders)
    assert [r.outcome for r in pruning.records] == ["kept"] * 3
    assert plain.compared == 3
    assert [p.requires_grad for p in model.parameters()] == flags


@pytest.mark.parametrize(
    ("settings", "same"),
    [
        ({"accumulate_grad_batches": 2}, {"accumulate": 2}),
        ({"gradient_clip_val": 0.05}, {"clip": 0.05}),
        ({"accumulate_grad_batches": 3, "gradient_clip_val": 0.05}, {"accumulate": 3, "clip": 0.05}),
        ({"precision": "bf16-mixed"}, {"dtype": torch.bfloat16}),
    ],
)
def test_accumulation_clipping_and_mixed_precision(loaders, make_trainer, settings, same):
    pruning, plain = HQPPruning("val_acc", 0.05, step=0.2), PlainLoop(loaders[0], **same)
    make_trainer(2, [pruning, plain], **settings).fit(Any("sgd_momentum"), *loaders)
    assert [r.outcome for r in pruning.records] == ["kept"] * 2
    assert plain.compared == 2


def scaled(scale=2.0**20):
    """``precision="16-mixed"`` on a CPU; from this scale on, the first steps overflow and are skipped."""
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=3)
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}


class Scales(Callback):
    """The scaler's state when a batch ends, and on both sides of a step: before the pruning, and after it."""

    def __init__(self):
        self.seen = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.seen.append(trainer.precision_plugin.state_dict())

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.seen.append(trainer.precision_plugin.state_dict())
        for state in trainer.optimizers[0].state.values():
            assert all(t.isfinite().all() for t in state.values() if isinstance(t, torch.Tensor))


@pytest.mark.parametrize(("clip", "accumulate"), [(None, 1), (0.05, 2)])
def test_the_loss_scale_goes_on_through_prune_roll_back_prune(loaders, make_trainer, clip, accumulate):
    pruning, model = HQPPruning("val_acc", 0.02, step=0.2, min_step=0.05), Any("adamw_groups")
    model.scores = [0.9, 0.89, 0.5, 0.885]
    before, after = Scales(), Scales()
    plain = PlainLoop(loaders[0], accumulate, clip, torch.float16)
    settings = {**scaled(), "accumulate_grad_batches": accumulate, "gradient_clip_val": clip}
    make_trainer(3, [before, pruning, after, plain], **settings).fit(model, *loaders)
    assert [r.outcome for r in pruning.records] == ["kept", "rolled_back", "kept"]
    assert plain.compared == 3
    assert before.seen == after.seen
    scales = [s["scale"] for s in after.seen]
    grew, shrank = (any(f(b, a) for a, b in zip(scales, scales[1:], strict=False)) for f in (gt, lt))
    assert shrank
    assert grew or accumulate > 1


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_a_resumed_run_with_a_loss_scale_equals_the_straight_one(loaders, make_trainer, tmp_path):
    scores = [0.9, 0.89, 0.5, 0.885, 0.88]

    def run(epochs_before, ckpt=None):
        torch.manual_seed(0)
        pruning, scales, model = HQPPruning("val_acc", 0.02, step=0.2, min_step=0.05), Scales(), Any("adamw_groups")
        model.scores = scores[epochs_before + bool(ckpt) :]
        checkpoint = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, enable_version_counter=False)
        trainer = make_trainer(4, [pruning, scales, checkpoint], enable_checkpointing=True, **scaled())
        trainer.fit(model, *loaders, ckpt_path=ckpt, weights_only=True)
        state = {n: t for n, t in model.state_dict().items()}
        moments = trainer.optimizers[0].state_dict()["state"]
        state |= {f"{i}/{k}": torch.as_tensor(v) for i, s in moments.items() for k, v in s.items()}
        return state, [(r.outcome, r.macs) for r in pruning.records], scales.seen

    straight, steps, scales = run(0)
    assert [s[0] for s in steps] == ["kept", "rolled_back", "kept", "kept"]
    for epoch in (0, 1):  # a step was kept, and one is to be rolled back
        resumed, again, seen = run(epoch + 1, tmp_path / f"epoch={epoch}.ckpt")
        assert again == steps
        assert seen == scales[(epoch + 1) * (EPOCH + 1) :]
        assert list(resumed) == list(straight)
        assert all(torch.equal(t, straight[n]) for n, t in resumed.items())


class Sliced(Callback):
    """Stands after the pruning; ``Before`` stands before it. Compares with what is sliced by hand."""

    def __init__(self):
        self.compared = 0

    def on_train_epoch_start(self, trainer, pl_module):
        state = trainer.callbacks[1].state
        if state.pending is None or not state.rejected:
            return
        for before, optimizer in zip(trainer.callbacks[0].states, trainer.optimizers, strict=True):
            held = [p for g in optimizer.param_groups for p in g["params"]]
            names = {id(p): n for n, p in pl_module.named_parameters()}
            assert [names[id(p)] for p in held] == before["held"]
            for key, tensors in before["state"].items():
                expected = {**dict.fromkeys(["net.3.weight", "net.7.weight", "net.11.weight"], EMPTY), **tensors}
                cut_by_hand(expected, state.rejected[-1])
                for p in held:
                    assert torch.equal(optimizer.state[p][key], expected[names[id(p)]]), (key, names[id(p)])
                    self.compared += 1


EMPTY = torch.zeros(64, 64)


class Before(Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        names = {id(p): n for n, p in pl_module.named_parameters()}
        self.states = []
        for optimizer in trainer.optimizers:
            state = {}
            for p, values in optimizer.state.items():
                for key, value in values.items():
                    if isinstance(value, torch.Tensor) and value.dim():
                        state.setdefault(key, {})[names[id(p)]] = value.clone()
            held = [names[id(p)] for g in optimizer.param_groups for p in g["params"]]
            self.states.append({"held": held, "state": state})


class Manual(Scripted):
    """Two optimizers of different kinds, each over a part of the network, stepped by hand."""

    def __init__(self):
        super().__init__([0.9])
        self.automatic_optimization = False

    def configure_optimizers(self):
        front, back = self.net[:4], self.net[4:]
        return [
            torch.optim.SGD(front.parameters(), 0.05, momentum=0.9),
            torch.optim.AdamW(back.parameters(), 1e-3),
        ]

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()


# Kinds of optimizer, and tensors of state: those of a parameter's shape, times the parameters held.
STATES = {
    "sgd_momentum": 1 * 10,
    "sgd_nesterov_groups": 1 * 10,
    "adam_amsgrad": 3 * 10,
    "adamw_groups": 2 * 10,
    "adamw_fused": 2 * 10,
    "adamw_foreach": 2 * 10,
    "rmsprop": 3 * 10,
    "head_only": 2 * 2,
    "manual": 1 * 4 + 2 * 6,
}


def made(kind):
    return Manual() if kind == "manual" else Any(kind)


def test_no_kind_of_optimizer_is_left_out():
    assert set(STATES) == {*OPTIMIZERS, "manual"}


@pytest.mark.parametrize("kind", STATES)
def test_every_state_equals_the_one_sliced_by_hand(loaders, make_trainer, kind):
    sliced, model = Sliced(), made(kind)
    pruning = HQPPruning("val_acc", 0.05, step=0.2, start_epoch=1)
    make_trainer(2, [Before(), pruning, sliced]).fit(model, *loaders)
    assert [r.outcome for r in pruning.records] == ["kept"]
    assert sliced.compared == STATES[kind]
    assert sum(p.numel() for p in model.net.parameters()) == pruning.records[0].params


class Living(Before):
    """Stands after the pruning: the optimizers hold the module's own parameters and state of their shapes."""

    def __init__(self):
        self.pages = []

    def on_train_epoch_start(self, trainer, pl_module):
        super().on_train_epoch_start(trainer, pl_module)
        living = {id(p) for p in pl_module.parameters() if p.requires_grad}
        assert {id(p) for o in trainer.optimizers for g in o.param_groups for p in g["params"]} == living
        for optimizer in trainer.optimizers:
            assert set(map(id, optimizer.state)) <= living
            for p, values in optimizer.state.items():
                assert all(v.shape == p.shape for v in values.values() if isinstance(v, torch.Tensor) and v.dim())
        self.pages.append(self.states)


class Pages(Before):
    """Stands before the pruning."""

    def __init__(self):
        self.pages = []

    def on_train_epoch_start(self, trainer, pl_module):
        super().on_train_epoch_start(trainer, pl_module)
        self.pages.append(self.states)


@pytest.mark.parametrize("kind", STATES)
def test_optimizers_hold_what_lives_and_go_back_bit_for_bit(loaders, make_trainer, kind):
    before, after, model = Pages(), Living(), made(kind)
    model.scores = [0.9, 0.89, 0.5, 0.885]
    # The rejected step is the second one; no third one is small enough.
    pruning = HQPPruning("val_acc", 0.02, step=0.2, min_step=0.15)
    make_trainer(3, [before, pruning, after]).fit(model, *loaders)
    assert [r.outcome for r in pruning.records] == ["kept", "rolled_back"]
    for was, restored in zip(before.pages[1], after.pages[2], strict=True):
        assert was["held"] == restored["held"]
        assert {k: list(t) for k, t in was["state"].items()} == {k: list(t) for k, t in restored["state"].items()}
        assert was["state"]
        assert all(torch.equal(t, restored["state"][k][n]) for k, held in was["state"].items() for n, t in held.items())


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_a_resumed_run_of_several_optimizers_equals_the_straight_one(loaders, make_trainer, tmp_path):
    scores = [0.9, 0.89, 0.5, 0.885, 0.88]

    def run(seen, ckpt=None):
        torch.manual_seed(0)
        pruning, model = HQPPruning("val_acc", 0.02, step=0.2, min_step=0.05), Manual()
        model.scores = scores[seen:]
        checkpoint = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, enable_version_counter=False)
        trainer = make_trainer(4, [pruning, checkpoint], enable_checkpointing=True)
        trainer.fit(model, *loaders, ckpt_path=ckpt, weights_only=True)
        moments = [o.state_dict()["state"] for o in trainer.optimizers]
        state = {f"{o}/{i}/{k}": v for o, held in enumerate(moments) for i, s in held.items() for k, v in s.items()}
        return {**model.state_dict(), **state}, [(r.outcome, r.macs, r.accuracy) for r in pruning.records]

    straight, steps = run(0)
    assert [s[0] for s in steps] == ["kept", "rolled_back", "kept", "kept"]
    for epoch in (0, 1, 2):
        resumed, again = run(epoch + 2, tmp_path / f"epoch={epoch}.ckpt")
        assert again == steps
        assert list(resumed) == list(straight)
        assert all(torch.equal(torch.as_tensor(t), torch.as_tensor(straight[n])) for n, t in resumed.items())


def one_cycle(optimizer):
    cycle = lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=4 * EPOCH)
    return {"scheduler": cycle, "interval": "step"}


def warm_up(optimizer):
    ramp = lr_scheduler.LinearLR(optimizer, 0.1, total_iters=2 * EPOCH)
    decay = lr_scheduler.CosineAnnealingLR(optimizer, 2 * EPOCH)
    return {"scheduler": lr_scheduler.SequentialLR(optimizer, [ramp, decay], [2 * EPOCH]), "interval": "step"}


SCHEDULES = {
    "one_cycle": one_cycle,
    "warm_up": warm_up,
    "step": lambda o: {"scheduler": lr_scheduler.StepLR(o, 2), "interval": "epoch"},
    "plateau": lambda o: {
        "scheduler": lr_scheduler.ReduceLROnPlateau(o, "max", patience=0, factor=0.5),
        "monitor": "val_acc",
    },
}


class Rates(Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, *_):
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


def rates_of_plain_torch(kind, scores):
    """Learning rate of every batch, from the scheduler alone."""
    optimizer = OPTIMIZERS["sgd_momentum"](nn.Linear(1, 1))
    config, rates = SCHEDULES[kind](optimizer), []
    for score in scores:
        for _ in range(EPOCH):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if config.get("interval") == "step":
                config["scheduler"].step()
        if "monitor" in config:
            config["scheduler"].step(score)
        elif config["interval"] == "epoch":
            config["scheduler"].step()
    return rates


@pytest.mark.parametrize("kind", SCHEDULES)
def test_schedulers_do_not_notice_a_prune(loaders, make_trainer, kind):
    scores = [0.9, 0.91, 0.905, 0.906, 0.92]
    pruning, rates, model = HQPPruning("val_acc", 0.05, step=0.1), Rates(), Any("sgd_momentum", SCHEDULES[kind])
    model.scores = list(scores)
    make_trainer(4, [pruning, rates]).fit(model, *loaders)
    assert [r.outcome for r in pruning.records] == ["kept"] * 4
    assert rates.seen == pytest.approx(rates_of_plain_torch(kind, scores[1:]))


@pytest.mark.parametrize("kind", SCHEDULES)
def test_schedulers_go_back_with_a_rollback(loaders, make_trainer, kind):
    pruning = HQPPruning("val_acc", 0.05, step=0.1, min_step=0.1, start_epoch=1)
    rates, model = Rates(), Any("sgd_momentum", SCHEDULES[kind])
    model.scores = [0.9, 0.91, 0.5, 0.92]
    make_trainer(3, [pruning, rates]).fit(model, *loaders)
    assert [r.outcome for r in pruning.records] == ["rolled_back"]
    # The epoch of the step that failed is run again at the same rates.
    first_two = rates_of_plain_torch(kind, [0.91, 0.5])
    assert rates.seen == pytest.approx(first_two + first_two[EPOCH:])
