"""Mixtures of two images: by hand."""

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from hqp_lightning.errors import ConfigurationError
from hqp_lightning.models import ImageClassifier, ImageSegmenter
from hqp_lightning.models.mixing import mixed


def _batch(n=5):
    return torch.randn(n, 3, 4, 4, generator=torch.Generator().manual_seed(1)), torch.arange(n) % 5


def test_images_and_labels_are_mixed_by_the_same_part():
    torch.manual_seed(0)
    images, labels = _batch()
    found, wanted = mixed(images, labels, 0.4, 5)
    one_hot = F.one_hot(labels, 5).double()
    part = float(wanted[0, labels[0]])
    assert 0 < part < 1
    others = torch.roll(images, 1, 0)
    torch.testing.assert_close(found, part * images + (1 - part) * others)
    torch.testing.assert_close(wanted.double(), part * one_hot + (1 - part) * torch.roll(one_hot, 1, 0))


def test_parts_are_beta_distributed():
    torch.manual_seed(0)
    images, labels = _batch(2)
    parts = torch.tensor([float(mixed(images, labels, 0.3, 5)[1][0, 0]) for _ in range(2000)])
    variance = 1 / (4 * (2 * 0.3 + 1))  # of Beta(a, a)
    assert float(parts.mean()) == pytest.approx(0.5, abs=0.04)
    assert float(parts.var()) == pytest.approx(variance, rel=0.08)


def test_the_loss_of_a_step_is_that_of_the_mixture(tmp_path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    model = ImageClassifier(net, 5, mixup=0.4, distillation=0.25, temperature=2.0)
    images, labels = _batch()
    seen = []
    with torch.no_grad():
        net[1].weight.mul_(1.5)  # so that it is no longer its own teacher
        weight, bias, teacher = net[1].weight.clone(), net[1].bias.clone(), net[1].weight / 1.5
    net.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, max_epochs=1, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(model, *[DataLoader(TensorDataset(images, labels), batch_size=5)] * 2)
    x, others = seen[0], torch.roll(images, 1, 0)
    part = float(((x - others) * (images - others)).sum() / (images - others).square().sum())
    torch.testing.assert_close(x, part * images + (1 - part) * others)
    logits = F.linear(x.flatten(1), weight, bias)
    losses = [F.cross_entropy(logits, y) for y in (labels, torch.roll(labels, 1, 0))]
    p, q = (z.div(2).log_softmax(1) for z in (F.linear(x.flatten(1), teacher, bias), logits))
    expected = 0.75 * (part * losses[0] + (1 - part) * losses[1]) + 0.25 * 4 * (p.exp() * (p - q)).sum(1).mean()
    assert float(trainer.callback_metrics["train_loss"]) == pytest.approx(float(expected), rel=1e-5)


def test_what_cannot_be_mixed_is_told():
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    for wrong in (-1.0, float("inf"), float("nan")):
        with pytest.raises(ConfigurationError, match="mixup=.* must be at least 0"):
            ImageClassifier(net, 5, mixup=wrong)
    with pytest.raises(ConfigurationError, match="one for every pixel"):
        ImageSegmenter(net, 5, mixup=0.2)
