"""The regression of features sees the batches of all ranks."""

import os
from datetime import timedelta
from functools import partial

import pytest
import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from processes import exit_codes
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from hqp_lightning.models import ImageClassifier

pytestmark = pytest.mark.filterwarnings("ignore:It is recommended to use `self.log.*sync_dist=True:UserWarning")


def fit(folder, ranks):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    model = ImageClassifier(net, 3, lr=0.05, distillation=0.5, feature_distillation=1.0)
    net[0].weight.data[:2] *= 0.1
    data = TensorDataset(torch.randn(64, 3, 8, 8), torch.arange(64) % 3)
    rank = int(os.environ.get("LOCAL_RANK", 0))
    share = DistributedSampler(data, ranks, rank, shuffle=False)
    several = {"strategy": DDPStrategy(timeout=timedelta(seconds=60)), "devices": 2} if ranks > 1 else {"devices": 1}
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(
        accelerator="cpu", max_epochs=2, limit_val_batches=0, use_distributed_sampler=False, **several, **quiet
    )
    loader = DataLoader(data, 16 // ranks, sampler=share)
    trainer.fit(model, loader, loader)
    left = {"seen": model._distance.state_dict()[""], "weight": net[0].weight.detach()}
    torch.save(left, folder / f"{ranks}.{rank}.pt")


def test_two_ranks_follow_as_one_process_does(tmp_path):
    fit(tmp_path, 1)
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(find_free_network_port()),
        "WORLD_SIZE": "2",
        "NODE_RANK": "0",
    }
    assert exit_codes(partial(fit, tmp_path, 2), [{**common, "LOCAL_RANK": r} for r in "01"]) == [0, 0]
    one, first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("1.0", "2.0", "2.1"))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(first, one, rtol=1e-3, atol=1e-5)
