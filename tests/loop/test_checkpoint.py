"""Pruned files are read by ``load_from_checkpoint`` with the mixin, and by ``load_pruned`` without it."""

import copy
import pickle

import pytest
import torch
from classifier import Classifier, small_net
from lightning.pytorch import LightningModule
from torch import nn

from hqp_lightning import ConfigurationError, HQPPruning, Int8Export, PrunedCheckpointMixin, SurgeryError, load_pruned
from hqp_lightning.shipping.later import export_later
from hqp_lightning.surgery import record


@pytest.fixture
def loaders(small_loaders):
    """Nothing need be learnt here."""
    return small_loaders


class Mixed(PrunedCheckpointMixin, Classifier):
    pass


class Hooked:
    """Hooks of the user's own, which do not call super; on load, the network has the file's structure already."""

    def on_save_checkpoint(self, checkpoint):
        checkpoint["note"] = [self.net[0].out_channels]

    def on_load_checkpoint(self, checkpoint):
        assert checkpoint["note"] == [self.net[0].out_channels]
        self.note = checkpoint["note"]


class HookedBefore(PrunedCheckpointMixin, Hooked, Classifier):
    pass


class HookedAfter(Hooked, Classifier, PrunedCheckpointMixin):
    pass


class Cooperative(PrunedCheckpointMixin, Classifier):
    def on_load_checkpoint(self, checkpoint):
        super().on_load_checkpoint(checkpoint)
        self.note = self.net[0].out_channels


class Late(PrunedCheckpointMixin, Classifier):
    """Builds its network in ``configure_model``."""

    def __init__(self, lr=3e-3):
        super().__init__(lr)
        self.net = None

    def configure_model(self):
        if self.net is None:
            self.net = small_net()


class OneArgument(Classifier):
    """Hyperparameters as one dictionary: Lightning records the argument's name beside them."""

    def __init__(self, conf):
        super().__init__(conf["lr"])
        self._hparams = self._hparams_initial = None
        self.save_hyperparameters(conf)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.hparams.lr)


def pruned(make_trainer, loaders, model, path):
    """A fit that prunes, and its file."""
    pruning = HQPPruning("val_acc", 0.9, step=0.3)
    trainer = make_trainer(1, [pruning])
    trainer.fit(model, *loaders)
    assert [r.outcome for r in pruning.records] == ["kept"]
    trainer.save_checkpoint(path, weights_only=True)
    return model


def assert_same(loaded, model, x):
    assert record(loaded) == record(model)
    assert sum(p.numel() for p in loaded.net.parameters()) < sum(p.numel() for p in small_net().parameters())
    with torch.no_grad():
        assert torch.equal(loaded.eval().net(x), model.eval().net(x))


CLASSES = [Mixed, HookedBefore, HookedAfter, Cooperative, Late]


@pytest.mark.parametrize("cls", CLASSES)
def test_load_from_checkpoint_rebuilds_the_pruned_network(loaders, digits, make_trainer, tmp_path, cls):
    path = tmp_path / "x.ckpt"
    model = pruned(make_trainer, loaders, cls(lr=1e-3), path)
    ways = [cls.load_from_checkpoint(path, strict=strict, weights_only=True) for strict in (None, True, False)]
    for loaded in (*ways, load_pruned(cls, path), load_pruned(cls(lr=1e-3), path)):
        assert type(loaded) is cls
        assert loaded.hparams.lr == 1e-3
        assert_same(loaded, model, digits[0][:8])
        if cls not in (Mixed, Late):
            assert loaded.note


def test_without_the_mixin_load_pruned_reads_what_load_from_checkpoint_does_not(
    loaders, digits, make_trainer, tmp_path
):
    model = pruned(make_trainer, loaders, Classifier(), tmp_path / "x.ckpt")
    assert_same(load_pruned(Classifier, tmp_path / "x.ckpt"), model, digits[0][:8])
    with pytest.raises(RuntimeError, match="size mismatch"):
        Classifier.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=True)


class WithPath(Classifier):
    def __init__(self, root):
        super().__init__()
        self.save_hyperparameters({"root": root})


def test_objects_among_the_hyperparameters_are_read_when_the_file_is_trusted(loaders, digits, make_trainer, tmp_path):
    model = pruned(make_trainer, loaders, WithPath(tmp_path), tmp_path / "x.ckpt")
    with pytest.raises(ConfigurationError, match=r"holds more than tensors .*weights_only=False"):
        load_pruned(WithPath, tmp_path / "x.ckpt")
    for given in (WithPath, WithPath(tmp_path)):
        loaded = load_pruned(given, tmp_path / "x.ckpt", weights_only=False)
        assert loaded.hparams.root == tmp_path
        assert_same(loaded, model, digits[0][:8])


def test_files_without_a_structure_load_as_ever(loaders, digits, make_trainer, tmp_path):
    trainer, model = make_trainer(1, []), Classifier()
    trainer.fit(model, *loaders)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    loaded = Mixed.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=True)
    x = digits[0][:8]
    assert torch.equal(loaded.eval().net(x), model.eval().net(x))
    with pytest.raises(ConfigurationError, match="carries no 'hqp_structure'"):
        load_pruned(Classifier, tmp_path / "x.ckpt")


def test_a_loaded_module_trains_on_and_is_saved_with_its_structure(loaders, digits, make_trainer, tmp_path):
    pruned(make_trainer, loaders, Mixed(), tmp_path / "x.ckpt")
    model = Mixed.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=True)
    trainer = make_trainer(1, [])  # nothing of this package
    trainer.fit(model, *loaders)
    trainer.save_checkpoint(tmp_path / "y.ckpt")
    assert_same(Mixed.load_from_checkpoint(tmp_path / "y.ckpt", weights_only=True), model, digits[0][:8])
    fresh = Mixed()
    make_trainer(1, []).validate(fresh, loaders[1], ckpt_path=tmp_path / "y.ckpt", weights_only=True, verbose=False)
    assert_same(fresh, model, digits[0][:8])


class Deeper(PrunedCheckpointMixin, Classifier):
    def __init__(self, lr=3e-3, optimizer="adamw"):
        super().__init__(lr, optimizer)
        self.net.insert(3, nn.Conv2d(32, 32, 3))


def test_a_file_of_another_architecture_is_one_clear_error(loaders, make_trainer, tmp_path):
    path = tmp_path / "x.ckpt"
    pruned(make_trainer, loaders, Mixed(), path)
    for strict in (True, False):
        with pytest.raises(SurgeryError, match=r"is of another model: .* Build the model with the arguments"):
            Deeper.load_from_checkpoint(path, strict=strict, weights_only=True)
    with pytest.raises(SurgeryError, match="is of another model"):
        load_pruned(Deeper, path)


def test_copies_apply_the_structure_to_themselves(loaders, digits, make_trainer, tmp_path):
    model, original = pruned(make_trainer, loaders, Mixed(), tmp_path / "x.ckpt"), Mixed()
    checkpoint = torch.load(tmp_path / "x.ckpt", weights_only=True)
    for other in (copy.deepcopy(original), pickle.loads(pickle.dumps(original))):
        other.on_load_checkpoint(checkpoint)
        other.load_state_dict(checkpoint["state_dict"])
        assert_same(other, model, digits[0][:8])
        assert original.net[0].out_channels == 32


def test_load_pruned_reads_hyperparameters_as_lightning_does(loaders, digits, make_trainer, tmp_path):
    model = pruned(make_trainer, loaders, OneArgument({"lr": 0.02}), tmp_path / "x.ckpt")
    loaded = load_pruned(OneArgument, tmp_path / "x.ckpt")
    assert loaded.hparams == {"lr": 0.02}
    assert_same(loaded, model, digits[0][:8])


class Given(LightningModule):
    """Is made of a network, which is no hyperparameter."""

    training_step = Classifier.training_step

    def __init__(self, net, rate):
        super().__init__()
        self.save_hyperparameters(ignore=["net"])
        self.net = net

    def validation_step(self, batch, batch_idx):
        self.log("val_acc", self.net(batch[0]).mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.hparams.rate)


def test_arguments_that_the_file_does_not_hold_are_named(loaders, digits, make_trainer, tmp_path):
    model = Given(small_net(), 0.1)
    trainer = make_trainer(1, [HQPPruning("val_acc", 0.9, step=0.2)], limit_train_batches=1)
    trainer.fit(model, *loaders)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    with pytest.raises(
        ConfigurationError, match=r"all that Given is made of: load_pruned\(Given, path, net=...\), with"
    ):
        load_pruned(Given, tmp_path / "x.ckpt")
    assert_same(load_pruned(Given, tmp_path / "x.ckpt", net=small_net()), model, digits[0][:8])
    code = export_later(Int8Export, {"batch_size": 1}, tmp_path, trainer, model)
    assert f"load_pruned(Given, {str(tmp_path / 'pruned.ckpt')!r}, net=net)" in code


@pytest.mark.parametrize("name", ["checkpoint", "map_location"])
def test_an_argument_by_a_name_of_lightnings_own_goes_to_an_instance(name, tmp_path):
    with pytest.raises(
        ConfigurationError, match=rf"pass {name}='cpu' on to Classifier: .*\(Classifier\(\.\.\.\), path"
    ):
        load_pruned(Classifier, tmp_path / "x.ckpt", **{name: "cpu"})


def test_load_pruned_reads_the_files_of_lightning_cli(loaders, digits, make_trainer, tmp_path, monkeypatch):
    pytest.importorskip("jsonargparse")
    from lightning.pytorch.cli import LightningCLI

    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning's own calls of jsonargparse
    settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    monkeypatch.setattr("sys.argv", ["train.py", "--model.lr=0.002", "--seed_everything=false"])
    cli = LightningCLI(Classifier, run=False, save_config_callback=None, trainer_defaults=settings)
    model = pruned(make_trainer, loaders, cli.model, tmp_path / "x.ckpt")
    assert "_instantiator" in torch.load(tmp_path / "x.ckpt", weights_only=True)["hyper_parameters"]
    loaded = load_pruned(Classifier, tmp_path / "x.ckpt")
    assert loaded.hparams.lr == 0.002
    assert_same(loaded, model, digits[0][:8])
