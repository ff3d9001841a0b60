"""Copies of a run's state, to compare."""

import copy

import torch
from lightning.pytorch import Callback

from hqp_lightning.surgery import record


class Probe(Callback):
    """Copies everything at the start of some epochs; its place in the list says before or after the pruning."""

    def __init__(self, *epochs):
        self.epochs, self.seen = epochs, {}

    @property
    def state_key(self):
        return f"Probe{self.epochs}"

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch in self.epochs:
            optimizer = trainer.optimizers[0]
            self.seen[trainer.current_epoch] = {
                "tensors": copy.deepcopy({**dict(pl_module.named_parameters()), **dict(pl_module.named_buffers())}),
                "optimizer": copy.deepcopy(optimizer.state_dict()),
                "scheduler": copy.deepcopy(trainer.lr_scheduler_configs[0].scheduler.state_dict()),
                "structure": record(pl_module),
            }


def assert_same(a, b):
    assert a["structure"] == b["structure"]
    assert a["scheduler"] == b["scheduler"]
    for name, tensor in a["tensors"].items():
        assert torch.equal(tensor, b["tensors"][name]), name
    assert a["optimizer"]["param_groups"] == b["optimizer"]["param_groups"]
    for key, state in a["optimizer"]["state"].items():
        for name, value in state.items():
            assert torch.equal(value, b["optimizer"]["state"][key][name]), (key, name)


def channels(model):
    return [m.out_channels for m in model.net if isinstance(m, torch.nn.Conv2d)]
