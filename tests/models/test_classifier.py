import lightning as L
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from hqp_lightning.errors import ConfigurationError
from hqp_lightning.models import ImageClassifier


def _net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))


def _loader(n=20, batch_size=8):
    torch.manual_seed(0)
    return DataLoader(TensorDataset(torch.randn(n, 3, 8, 8), torch.arange(n) % 5), batch_size=batch_size)


def _trainer(tmp_path, **kwargs):
    return L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **kwargs,
    )


def test_logs_accuracy_and_loss_of_all_images(tmp_path):
    model, loader = ImageClassifier(_net(), 5), _loader()
    (val,) = _trainer(tmp_path).validate(model, loader, verbose=False)
    (test,) = _trainer(tmp_path).test(model, loader, verbose=False)
    images, labels = loader.dataset.tensors
    with torch.no_grad():
        logits = model.net(images)
    accuracy, loss = (logits.argmax(1) == labels).double().mean(), F.cross_entropy(logits, labels)
    assert val == {"val_acc": pytest.approx(float(accuracy)), "val_loss": pytest.approx(float(loss), rel=1e-5)}
    assert test == {"test_acc": pytest.approx(float(accuracy)), "test_loss": pytest.approx(float(loss), rel=1e-5)}


def test_training_loss_has_the_label_smoothing(tmp_path):
    model, loader = ImageClassifier(_net(), 5, label_smoothing=0.2), _loader(8)
    images, labels = loader.dataset.tensors
    with torch.no_grad():
        log_p = model.net(images).log_softmax(1)
    expected = -(0.8 * log_p[torch.arange(8), labels] + 0.2 * log_p.mean(1)).mean()
    trainer = _trainer(tmp_path, max_epochs=1)
    trainer.fit(model, loader, loader)
    assert float(trainer.callback_metrics["train_loss"]) == pytest.approx(float(expected), rel=1e-5)


def test_distillation_pulls_towards_the_network_as_it_was_given(tmp_path):
    model, loader = ImageClassifier(_net(), 5, distillation=0.75, temperature=2.0), _loader(8)
    images, labels = loader.dataset.tensors
    with torch.no_grad():
        p = (model.net(images) / 2).softmax(1)
        model.net[4].weight += 0.5 * torch.randn_like(model.net[4].weight)
        logits = model.net(images)
        q = (logits / 2).softmax(1)
    kl = (p * (p / q).log()).sum(1).mean()
    expected = 0.25 * F.cross_entropy(logits, labels) + 0.75 * 2.0**2 * kl
    trainer = _trainer(tmp_path, max_epochs=1)
    trainer.fit(model, loader, loader)
    assert float(trainer.callback_metrics["train_loss"]) == pytest.approx(float(expected), rel=1e-5)


def test_the_teacher_is_neither_trained_nor_saved(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    model = ImageClassifier(net, 5, distillation=1.0, lr=0.1)
    (teacher,) = model._teachers
    before = {n: t.clone() for n, t in teacher.state_dict().items()}
    _trainer(tmp_path, max_epochs=1).fit(model, _loader(), _loader())
    assert all(torch.equal(t, before[n]) for n, t in teacher.state_dict().items())
    assert not torch.equal(model.net[0].weight, before["0.weight"])
    assert set(model.state_dict()) == {f"net.{n}" for n in before}
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not teacher.training


class _Rates(L.Callback):
    def __init__(self):
        self.rates = []

    def on_train_batch_start(self, trainer, pl_module, *args):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def test_schedule_runs_over_the_steps_that_are_taken(tmp_path):
    rates = _Rates()
    model = ImageClassifier(_net(), 5, lr=0.1, schedule="constant", warmup_epochs=1, decay_epochs=2)
    _trainer(tmp_path, max_epochs=5, limit_train_batches=2, callbacks=[rates]).fit(model, _loader(), _loader())
    assert rates.rates == pytest.approx([0.025, 0.075, *[0.1] * 4, 0.0875, 0.0625, 0.0375, 0.0125])


def test_restarts_come_down_within_every_epoch(tmp_path):
    rates = _Rates()
    model = ImageClassifier(_net(), 5, lr=0.1, schedule="restarts")
    _trainer(tmp_path, max_epochs=3, limit_train_batches=2, callbacks=[rates]).fit(model, _loader(), _loader())
    assert rates.rates == pytest.approx([0.0853553, 0.0146447] * 3, abs=1e-6)  # 0.05 (1 + cos(pi/4)), (1 + cos(3pi/4))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_training_learns(tmp_path, optimizer):
    torch.manual_seed(0)
    model, loader = ImageClassifier(_net(), 5, lr=0.02, optimizer=optimizer, channels_last=True), _loader()
    before = _trainer(tmp_path).validate(model, loader, verbose=False)[0]["val_loss"]
    _trainer(tmp_path, max_epochs=10).fit(model, loader, loader)
    assert _trainer(tmp_path).validate(model, loader, verbose=False)[0]["val_loss"] < before


def test_channels_last_changes_the_layout_and_not_the_result():
    torch.manual_seed(0)
    net = _net()
    x = torch.randn(2, 3, 8, 8)
    plain = ImageClassifier(net, 5)(x)
    model = ImageClassifier(net, 5, channels_last=True)
    seen = []
    model.net[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    torch.testing.assert_close(model(x), plain)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert model.net[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_checkpoint_is_loaded(tmp_path):
    source = _net()
    torch.save(source.state_dict(), tmp_path / "net.pth")
    model = ImageClassifier(_net(), 5, checkpoint=tmp_path / "net.pth")
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in model.net.state_dict().items())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"optimizer": "adam"}, "'sgd' or 'adamw', got 'adam'"),
        ({"schedule": "step"}, "'restarts', got 'step'"),
        ({"lr": 0.0}, "lr=0.0"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
        ({"distillation": 1.5}, "distillation=1.5"),
        ({"distillation": 0.5, "temperature": 0.0}, "temperature=0.0"),
        ({"distillation": 0.5, "feature_distillation": -1.0}, "feature_distillation=-1.0"),
        ({"distillation": 0.5, "temperature": float("nan")}, "temperature=nan"),
        ({"distillation": 0.5, "feature_distillation": float("inf")}, "feature_distillation=inf"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"num_classes": None}, "num_classes=None must be a finite number"),
        ({"lr": "0.1"}, "lr='0.1' must be a finite number"),
        ({"momentum": None}, "momentum=None must be a finite number"),
        ({"restart_epochs": [1]}, r"restart_epochs=\[1\] must be a finite number"),
        ({"feature_distillation": 1.0}, "feature_distillation=1.0 with distillation=0.0"),
    ],
)
def test_refuses(kwargs, message):
    with pytest.raises(ConfigurationError, match=message):
        ImageClassifier(_net(), **{"num_classes": 5, **kwargs})
