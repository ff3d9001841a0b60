"""An ordinary image classifier, as the user of the callbacks would have one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from hqp_lightning.errors import ConfigurationError, check_numbers
from hqp_lightning.models.asking import Ask, answered
from hqp_lightning.models.distillation import check_layers, distillation_loss, feature_reader
from hqp_lightning.models.factory import load_weights_
from hqp_lightning.models.feature_distance import FeatureDistances
from hqp_lightning.models.schedules import check_schedule, lr_factor
from hqp_lightning.models.teachers import check_teachers, mixed_logits

__all__ = ["ImageClassifier"]


class ImageClassifier(L.LightningModule):
    """Cross-entropy training of a network; logs ``train_loss``, ``val_loss``, ``val_acc``, ``test_loss``, ``test_acc``.

    Args:
        net: ``[B, 3, H, W]`` -> logits ``[B, num_classes]``.
        num_classes: number of classes.
        lr: peak learning rate.
        optimizer: ``"sgd"`` (Nesterov momentum) or ``"adamw"``.
        momentum: of ``"sgd"``.
        weight_decay: on all parameters.
        schedule: ``"cosine"``, ``"constant"`` or ``"restarts"``; see `lr_factor`.
        warmup_epochs: epochs of linear warm-up, may be a fraction.
        decay_epochs: epochs of the final linear fall under ``"constant"``, may be a fraction.
        restart_epochs: length of a half cosine under ``"restarts"``; that of a pruning step (``every_n_epochs``).
        label_smoothing: of the training loss, in [0, 1).
        distillation: part ``d`` of the training loss, in [0, 1], that comes from the network as it was given (so it
            must be trained: ``checkpoint``, or weights in ``net``). A pruned network heals with fewer batches towards
            the dense one's soft labels. The loss is ``(1 - d) * CE + d * T**2 * KL(teacher || student)``, the
            divergence of outputs softened by the temperature ``T`` (G. Hinton et al., arXiv 1503.02531).
        temperature: of the distillation.
        feature_distillation: weight of a further part of the training loss: how much of the features that the dense
            network's classifier reads no linear function of the pruned one's explains, in [0, 1] about
            (`hqp_lightning.models.feature_distance.FeatureDistance`). Ten classes say little of a picture, hundreds of
            features more. Needs ``distillation``.
        feature_layers: names of modules in ``net``, each called once, whose outputs ``[B, C, H, W]`` are followed, too,
            with half of that weight each, such as a ResNet's stages: ``("layer1", "layer2", "layer3", "layer4")``.
        teachers: further trained networks that take the same images and answer ``[B, num_classes]``, see
            `hqp_lightning.models.Teacher`: what is followed is the mean of their probabilities and the dense network's,
            and, under ``feature_distillation``, the features of each. Needs ``distillation``.
        compile_teachers: ask what ``torch.compile`` makes of the networks that are followed: the same answers but for
            rounding, sooner. It needs a C++ compiler, and a while for each size of batch.
        channels_last: keep weights and inputs in that memory format (quicker convolutions on most processors).
        checkpoint: file with a state dict of ``net``, loaded at once.

    Raises:
        ConfigurationError: an unknown optimizer or schedule, a number out of range, a checkpoint that does not fit.
    """

    score_name = "acc"

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        lr: float = 0.01,
        optimizer: str = "sgd",
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        schedule: str = "cosine",
        warmup_epochs: float = 0.0,
        decay_epochs: float = 0.0,
        restart_epochs: int = 1,
        label_smoothing: float = 0.0,
        distillation: float = 0.0,
        temperature: float = 4.0,
        feature_distillation: float = 0.0,
        feature_layers: Sequence[str] = (),
        teachers: nn.Module | Sequence[nn.Module] = (),
        compile_teachers: bool = False,
        channels_last: bool = False,
        checkpoint: str | Path | None = None,
    ) -> None:
        super().__init__()
        if optimizer not in ("sgd", "adamw"):
            raise ConfigurationError(f"optimizer must be 'sgd' or 'adamw', got {optimizer!r}")
        check_numbers(num_classes=num_classes, lr=lr, momentum=momentum)
        check_numbers(weight_decay=weight_decay, label_smoothing=label_smoothing)
        check_numbers(distillation=distillation, temperature=temperature, feature_distillation=feature_distillation)
        check_schedule(schedule, warmup_epochs, decay_epochs, restart_epochs)
        if lr <= 0 or weight_decay < 0 or not 0 <= label_smoothing < 1:
            raise ConfigurationError(
                "expected lr > 0, weight_decay >= 0 and label_smoothing in [0, 1), got "
                f"{lr=}, {weight_decay=}, {label_smoothing=}"
            )
        if not 0 <= distillation <= 1 or temperature <= 0:
            raise ConfigurationError(
                f"expected distillation in [0, 1] and temperature > 0, got {distillation=}, {temperature=}"
            )
        if feature_distillation < 0 or (feature_distillation and not distillation):
            raise ConfigurationError(
                f"{feature_distillation=} with {distillation=}: at least 0, and it needs distillation, such as 0.9"
            )
        feature_layers = check_layers(net, feature_layers or ())
        if feature_layers and not feature_distillation:
            raise ConfigurationError(f"{feature_layers=} needs a weight: feature_distillation=1")
        networks = [net, *check_teachers(() if teachers is None else teachers, distillation, compile_teachers)]
        if feature_distillation:
            for network in networks:
                feature_reader(network)
        self.save_hyperparameters(ignore=["net", "checkpoint", "teachers"])
        if checkpoint is not None:
            load_weights_(net, checkpoint)
        layout = torch.channels_last if channels_last else torch.preserve_format
        self.net, *further = (network.to(memory_format=layout) for network in networks)
        # In a tuple, so that they are no submodules: neither trained, pruned nor saved.
        self._teachers = (copy.deepcopy(self.net).eval().requires_grad_(False), *further) if distillation else ()
        self._features = feature_layers if feature_distillation else None
        self._ask = Ask(self._teachers, self._logits, self._features, compile_teachers)
        self._distance = FeatureDistances(self._over_ranks)
        self.val_accuracy, self.test_accuracy = self._metric(num_classes), self._metric(num_classes)

    def _over_ranks(self, seen: Tensor) -> Tensor:
        trainer = self._trainer
        return seen if trainer is None else cast(Tensor, trainer.strategy.reduce(seen, reduce_op="sum"))

    def _metric(self, num_classes: int) -> Metric:
        return MulticlassAccuracy(num_classes, average="micro")

    def _loss(self, logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)

    @staticmethod
    def _logits(answer: Any) -> Tensor:
        return cast(Tensor, answer)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, num_classes]`` of normalised images ``[B, 3, H, W]``."""
        return self._logits(self.net(self._laid_out(images)))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the regression of features has seen, so that a resumed run goes on as if it had not stopped."""
        if self.hparams["feature_distillation"]:
            checkpoint["feature_distance"] = self._distance.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it up again."""
        if "feature_distance" in checkpoint:
            self._distance.load_state_dict(checkpoint["feature_distance"])

    def on_fit_start(self) -> None:
        """Put the teachers where the network is."""
        self._ask.to(next(self.net.parameters()))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        images, labels = batch
        logits, features, given = (
            answered(self.net, lambda: self(images), self._features) if self._teachers else (self(images), {}, images)
        )
        loss = self._loss(logits, labels, label_smoothing=self.hparams["label_smoothing"])
        if self._teachers:
            soft, wanted = self._ask(given)
            part, t = self.hparams["distillation"], self.hparams["temperature"]
            loss = (1 - part) * loss + part * distillation_loss(logits, mixed_logits(soft, t), t)
            if features:
                loss = loss + self.hparams["feature_distillation"] * self._distance(features, *wanted)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log ``val_loss`` and ``val_acc``."""
        self._score("val", self.val_accuracy, batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log ``test_loss`` and ``test_acc``."""
        self._score("test", self.test_accuracy, batch)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer and its schedule, which is stepped after every batch."""
        h = self.hparams
        optimizer: torch.optim.Optimizer
        if h["optimizer"] == "sgd":
            optimizer = torch.optim.SGD(
                self.parameters(),
                lr=h["lr"],
                momentum=h["momentum"],
                weight_decay=h["weight_decay"],
                nesterov=h["momentum"] > 0,
            )
        else:
            optimizer = torch.optim.AdamW(self.parameters(), lr=h["lr"], weight_decay=h["weight_decay"])
        total = max(1, int(self.trainer.estimated_stepping_batches))
        epochs = max(1, self.trainer.max_epochs or 1)
        warmup, decay = (min(1.0, h[k] / epochs) for k in ("warmup_epochs", "decay_epochs"))
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            # The middle of a step: the first of a warm-up must move already, and the last of a fall still.
            optimizer,
            lambda step: lr_factor(
                min(1.0, (step + 0.5) / total), h["schedule"], warmup, decay, epochs / h["restart_epochs"]
            ),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _laid_out(self, images: Tensor) -> Tensor:
        return images.contiguous(memory_format=torch.channels_last) if self.hparams["channels_last"] else images

    def _score(self, split: str, metric: Metric, batch: tuple[Tensor, Tensor]) -> None:
        images, labels = batch
        logits = self(images)
        metric(logits, labels)
        self.log(f"{split}_loss", self._loss(logits, labels), on_step=False, on_epoch=True)
        self.log(f"{split}_{self.score_name}", metric, on_step=False, on_epoch=True, prog_bar=True)
