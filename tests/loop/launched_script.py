"""What a launcher starts on every rank: an ordinary training script; several nodes export as well."""

import hashlib
import json
import sys
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hqp_lightning import HQPPruning, Int8Export
from hqp_lightning.surgery import record


class Digits(LightningModule):
    def __init__(self):
        super().__init__()
        front = [nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU()]
        self.net = nn.Sequential(*front, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, _):
        accuracy = (self.net(batch[0]).argmax(1) == batch[1]).double().mean()
        self.log("val_acc", accuracy, sync_dist=True, batch_size=len(batch[1]))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-2)


def main(folder, num_nodes, devices):
    seed_everything(0, verbose=False)
    data = load_digits()
    x, y = torch.tensor(data.images / 16, dtype=torch.float32).unsqueeze(1), torch.tensor(data.target)
    train = DataLoader(TensorDataset(x[:256], y[:256]), 32, shuffle=True)
    val = DataLoader(TensorDataset(x[1200:1300], y[1200:1300]), 32)
    pruning = HQPPruning("val_acc", 0.5, step=0.2)
    export = Int8Export(folder / "deploy", engines=["onnxruntime"], rtx=(), latency_runs=1, threads=1)
    callbacks = [pruning, export] if num_nodes > 1 else [pruning]
    trainer = Trainer(
        accelerator="cpu",
        strategy="ddp",
        devices=devices,
        num_nodes=num_nodes,
        max_epochs=2,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = Digits()
    trainer.fit(model, train, val)
    weights = b"".join(t.numpy().tobytes() for t in model.state_dict().values())
    left = {
        "world_size": trainer.world_size,
        "node_rank": trainer.node_rank,
        "environment": type(trainer.strategy.cluster_environment).__name__,
        "steps": [[r.outcome, r.channels_removed, r.macs, r.accuracy] for r in pruning.records],
        "structure": record(model).to_plain(),
        "parameters": sum(p.numel() for p in model.net.parameters()),
        "weights": hashlib.sha256(weights).hexdigest(),
    }
    (folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(left), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
