"""Averages that the user's own module keeps are cut along; a teacher stays; what can't be cut is refused by name."""

import copy

import pytest
import torch
from classifier import Classifier, Scripted, cut_by_hand, small_net
from lightning.pytorch import Callback
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hqp_lightning import ConfigurationError, HQPPruning, load_pruned
from hqp_lightning.loop.network import find_network

DECAY = 0.9


@pytest.fixture
def loaders(small_loaders):
    """Nothing need be learnt here."""
    return small_loaders


def lerp_(average, module):
    with torch.no_grad():
        for a, p in zip(average.parameters(), module.parameters(), strict=True):
            a.lerp_(p, 1 - DECAY)


class Torchs(Scripted):
    def __init__(self, scores):
        super().__init__(scores)
        self.ema = AveragedModel(self.net, multi_avg_fn=get_ema_multi_avg_fn(DECAY))

    def on_train_batch_end(self, *_):
        self.ema.update_parameters(self.net)

    def copy(self):
        return self.ema.module


class Timms(Scripted):
    version = "ModelEmaV2"

    def __init__(self, scores):
        super().__init__(scores)
        self.ema = getattr(pytest.importorskip("timm.utils"), self.version)(self.net, decay=DECAY)

    def on_train_batch_end(self, *_):
        self.ema.update(self.net)

    def copy(self):
        return self.ema.module


class TimmsThird(Timms):
    version = "ModelEmaV3"


class Unnamed(Scripted):
    """Nothing says that the copy is an average, until a batch has shown it."""

    def __init__(self, scores):
        super().__init__(scores)
        self.second = copy.deepcopy(self.net).requires_grad_(False)

    def on_train_batch_end(self, *_):
        lerp_(self.second, self.net)

    def copy(self):
        return self.second


class Hand(Callback):
    """The average by its formula, cut by hand; the live network's values at every batch are the reference."""

    def __init__(self):
        self.average, self.compared = None, 0

    def on_train_start(self, trainer, pl_module):
        self.average = {n: p.detach().clone() for n, p in pl_module.copy().named_parameters(prefix="net")}

    def on_train_epoch_start(self, trainer, pl_module):
        state = trainer.callbacks[0].state
        if state.pending is not None:
            cut_by_hand(self.average, state.rejected[-1])

    def on_train_batch_end(self, trainer, pl_module, *_):
        first = isinstance(pl_module, Torchs) and trainer.global_step == 1  # AveragedModel begins with a copy
        for name, p in pl_module.net.named_parameters(prefix="net"):
            self.average[name] = p.detach().clone() if first else self.average[name].lerp(p.detach(), 1 - DECAY)

    def on_train_batch_start(self, trainer, pl_module, *_):  # the module's own hooks come after those of callbacks
        for name, p in pl_module.copy().named_parameters(prefix="net"):
            torch.testing.assert_close(p.detach(), self.average[name])
        self.compared += 1


@pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode")  # timm's
@pytest.mark.parametrize(("kind", "steps"), [(Torchs, 2), (Timms, 2), (TimmsThird, 2), (Unnamed, 1)])
def test_an_average_of_the_module_s_own_is_cut_along(loaders, make_trainer, tmp_path, kind, steps):
    pruning = HQPPruning("val_acc", 0.02, step=0.2, module="net", compensate=False)
    hand, model = Hand(), kind([0.9])
    trainer = make_trainer(2, [pruning, hand])
    trainer.fit(model, *loaders)
    assert [r.outcome for r in pruning.records] == ["kept"] * steps
    assert hand.compared == 10
    trainer.save_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    loaded = load_pruned(kind([0.9]), tmp_path / "a.ckpt")
    for p, q in zip(model.copy().parameters(), loaded.copy().parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_rollback_restores_the_average(loaders, make_trainer):
    model = Torchs([0.9, 0.5])
    pruning = HQPPruning("val_acc", 0.02, step=0.2, min_step=0.2)
    make_trainer(2, [pruning]).fit(model, *loaders)  # the network is found: an average is no second one
    assert [r.outcome for r in pruning.records] == ["rolled_back"]
    assert [tuple(p.shape) for p in model.copy().parameters()] == [tuple(p.shape) for p in small_net().parameters()]


class Validated(Torchs):
    """Validation scores the average, so the average is what is pruned."""

    def validation_step(self, batch, batch_idx):
        self.ema(batch[0])
        self.log("val_acc", torch.tensor(0.9, dtype=torch.float64))


def test_an_average_that_validation_scores_is_the_network(loaders, make_trainer):
    with pytest.raises(ConfigurationError, match=r"never calls 'net'; it calls \['ema'\]"):
        make_trainer(1, [HQPPruning("val_acc", 0.02, module="net")]).fit(Validated([0.9]), *loaders)
    pruning, model = HQPPruning("val_acc", 0.02, step=0.2, module="ema.module"), Validated([0.9])
    make_trainer(1, [pruning]).fit(model, *loaders)
    assert [r.outcome for r in pruning.records] == ["kept"]
    assert sum(p.numel() for p in model.net.parameters()) == pruning.records[0].params


class Taught(Scripted):
    def __init__(self, scores):
        super().__init__(scores)
        self.teacher = copy.deepcopy(self.net).requires_grad_(False)

    def training_step(self, batch, batch_idx):
        with torch.no_grad():
            soft = self.teacher(batch[0])
        return nn.functional.mse_loss(self.net(batch[0]), soft)


def test_a_teacher_of_the_same_structure_stays(loaders, make_trainer):
    model, pruning = Taught([0.9]), HQPPruning("val_acc", 0.02, step=0.2, module="net")
    before = {n: p.clone() for n, p in model.teacher.named_parameters()}
    make_trainer(2, [pruning]).fit(model, *loaders)
    assert [r.outcome for r in pruning.records] == ["kept"]  # of two epochs; in the first one nobody knew
    assert all(torch.equal(t, before[n]) for n, t in model.teacher.named_parameters())


class Peers(Scripted):
    """Both are trained."""

    def __init__(self, scores):
        super().__init__(scores)
        self.peer = copy.deepcopy(self.net)

    def training_step(self, batch, batch_idx):
        return sum(nn.functional.cross_entropy(n(batch[0]), batch[1]) for n in (self.net, self.peer))


def test_a_second_network_that_is_trained_for_itself_stays(loaders, make_trainer):
    model, pruning = Peers([0.9]), HQPPruning("val_acc", 0.02, step=0.2, module="net")
    make_trainer(2, [pruning]).fit(model, *loaders)
    assert [r.outcome for r in pruning.records] == ["kept"]
    assert [tuple(p.shape) for p in model.peer.parameters()] == [tuple(p.shape) for p in small_net().parameters()]


class Hidden:
    def __init__(self, network):
        self.weights = [p.detach().clone() for p in network.parameters()]


@pytest.mark.parametrize(
    ("name", "made", "said"),
    [
        ("start", lambda net: {n: p.detach().clone() for n, p in net.named_parameters()}, "a dict of 10 tensors"),
        ("start", lambda net: [p.detach().clone() for p in net.parameters()], "a list of 10 tensors"),
        ("ema", lambda net: (copy.deepcopy(net),), "a Sequential of its structure"),
        ("ema", Hidden, "a list of 10 tensors"),
        ("helper", Hidden, "a list of 10 tensors"),
    ],
)
def test_copies_that_are_no_submodule_are_refused_by_name(loaders, make_trainer, name, made, said):
    model = Classifier()
    setattr(model, name, made(model.net))
    with pytest.raises(ConfigurationError, match=rf"Classifier\.{name} keeps the network's weights .*{said}"):
        make_trainer(1, [HQPPruning("val_acc", 0.02)]).fit(model, *loaders)


class AverageOfACallback(Callback):
    def on_fit_start(self, trainer, pl_module):
        self.model_ema = copy.deepcopy(pl_module.net)


def test_an_average_in_a_callback_is_refused_by_name(loaders, make_trainer):
    with pytest.raises(ConfigurationError, match=r"AverageOfACallback\.model_ema keeps the network's weights"):
        make_trainer(1, [AverageOfACallback(), HQPPruning("val_acc", 0.02)]).fit(Classifier(), *loaders)


def test_a_hidden_teacher_and_the_optimizer_s_own_parameters_are_no_copies(loaders, make_trainer):
    model = Scripted([0.9])
    model.known = (copy.deepcopy(model.net),)
    model.params = list(model.net.parameters())
    pruning = HQPPruning("val_acc", 0.02, step=0.2)
    make_trainer(1, [pruning]).fit(model, *loaders)
    assert [r.outcome for r in pruning.records] == ["kept"]
    assert find_network(model, None)[0] == "net"
