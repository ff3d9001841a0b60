"""A user's Hydra application in the layout of lightning-hydra-template, which knows nothing of this package."""

TRAIN = """
import hydra
import lightning as L
import torch
from omegaconf import DictConfig


class Net(L.LightningModule):
    def __init__(self, width: int = 32):
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Conv2d(3, width, 3, padding=1), torch.nn.BatchNorm2d(width), torch.nn.ReLU(),
            torch.nn.Conv2d(width, width, 3, padding=1), torch.nn.BatchNorm2d(width), torch.nn.ReLU(),
            torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(width, 4),
        )

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, _):
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, _):
        self.log("val/acc", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Data(L.LightningDataModule):
    def loader(self):
        g = torch.Generator().manual_seed(0)
        x, y = torch.randn(32, 3, 8, 8, generator=g), torch.randint(4, (32,), generator=g)
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8)

    train_dataloader = val_dataloader = loader


@hydra.main(version_base="1.3", config_path="configs", config_name="train.yaml")
def main(cfg: DictConfig):
    callbacks = [hydra.utils.instantiate(c) for c in cfg.callbacks.values() if "_target_" in c]
    trainer = hydra.utils.instantiate(cfg.trainer, callbacks=callbacks)
    trainer.fit(Net(), datamodule=Data())


if __name__ == "__main__":
    main()
"""
FILES = {
    "configs/train.yaml": "defaults:\n  - _self_\n  - callbacks: default\n  - trainer: cpu\nseed: 1\n",
    "configs/trainer/cpu.yaml": (
        "_target_: lightning.Trainer\naccelerator: cpu\nmax_epochs: 2\nenable_progress_bar: false\nlogger: false\n"
        "enable_model_summary: false\nenable_checkpointing: false\n"
    ),
    "configs/callbacks/default.yaml": "defaults:\n  - early_stopping\n  - _self_\n",
    "configs/callbacks/early_stopping.yaml": (
        "early_stopping:\n  _target_: lightning.pytorch.callbacks.EarlyStopping\n  monitor: val/acc\n"
        "  mode: max\n  patience: 100\n"
    ),
    "configs/callbacks/mine.yaml": (
        "defaults:\n  - early_stopping\n  - hqp/default\n  - _self_\nhqp_pruning:\n  max_drop: 0.03\n"
    ),
}


def write(folder):
    """Write the application into a folder."""
    for name, text in {"train.py": TRAIN, **FILES}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
