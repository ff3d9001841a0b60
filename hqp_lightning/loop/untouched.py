"""Run the user's own steps for what they compute, and leave logs, metrics, modes and random states as they were."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger, Logger
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from hqp_lightning.loop.trainer import loose

__all__ = ["eager", "fixed_seed", "forget_compiled", "mute", "remembered", "untouched"]


@contextmanager
def untouched(trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
    """Inside, steps run in eval mode without gradients, log nothing, and what they note is forgotten afterwards.

    Forgotten are attributes that a step sets on the module, what it appends to lists and dicts there, the states of its
    metrics, its buffers, and random numbers it draws; loggers, also those asked for directly, are dummies.
    """
    modes, loggers = {m: m.training for m in pl_module.modules()}, trainer.loggers
    with remembered(pl_module), fixed_seed(), eager(), torch.no_grad(), trainer.precision_plugin.val_step_context():
        try:
            pl_module.eval()
            loose(trainer).loggers = mute(trainer)
            pl_module.__dict__.update(log=_nothing, log_dict=_nothing)
            yield
        finally:
            loose(trainer).loggers = loggers
            for module, mode in modes.items():
                module.training = mode


def mute(trainer: Trainer) -> list[Logger]:
    """Loggers that write nothing and are called as those of ``trainer``, with folders of the same names."""
    return [_MuteLogger(logger) for logger in trainer.loggers]


class _MuteLogger(DummyLogger):
    def __init__(self, logger: Logger) -> None:
        super().__init__()
        self._of = logger

    name = property(lambda self: self._of.name)
    version = property(lambda self: self._of.version)
    save_dir = property(lambda self: self._of.save_dir)
    root_dir = property(lambda self: self._of.root_dir)
    log_dir = property(lambda self: self._of.log_dir)


@contextmanager
def remembered(pl_module: LightningModule) -> Iterator[None]:
    """Inside, the module's attributes and buffers and its metrics' states may change; afterwards they have not."""
    owners = [m for m in pl_module.modules() if m is pl_module or isinstance(m, (Metric, MetricCollection))]
    saved = [(m, dict(m.__dict__)) for m in owners]
    try:
        for owner, state in saved:
            owner.__dict__.update({k: _copied(v, isinstance(owner, Metric)) for k, v in state.items()})
            owner.__dict__["_buffers"] = {k: _copied(b, True) for k, b in owner._buffers.items()}
        yield
    finally:
        for owner, state in saved:
            owner.__dict__.clear()
            owner.__dict__.update(state)


@contextmanager
def fixed_seed(seed: int | None = None) -> Iterator[None]:
    """Leave the global random states as they were; inside, start from ``seed`` if there is one."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(() if _on_cpu_alone(os.environ.get("CUDA_VISIBLE_DEVICES")) else None):
        if seed is not None:
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def eager() -> Iterator[None]:
    """Inside, what ``torch.compile`` compiled runs as it was written.

    Compiled code does not see hooks that come later, nor an engine in the place of a network.
    """
    if "torch._dynamo" not in sys.modules or not hasattr(torch.compiler, "set_stance"):  # torch has it since 2.6
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def forget_compiled() -> None:
    """Drop compiled code: it is of shapes that are gone, and after eight of them torch would compile no more."""
    if (dynamo := sys.modules.get("torch._dynamo")) is not None:
        dynamo.reset()


@cache
def _on_cpu_alone(visible: str | None) -> bool:
    """Whether no accelerator has a random state; torch would look for NVIDIA's library on the disk each time."""
    accelerator = getattr(torch, "accelerator", torch.cuda)  # torch has it since 2.6
    return not accelerator.is_available()


def _copied(value: Any, tensors: bool) -> Any:
    """What a step may change in place, once more; the originals are put back as they were."""
    if isinstance(value, Tensor):
        return value.detach().clone() if tensors and not isinstance(value, nn.Parameter) else value
    if type(value) is dict:
        return {k: list(v) if type(v) is list else v for k, v in value.items()}
    return value.copy() if type(value) in (list, set) else value


def _nothing(*_: Any, **__: Any) -> None:
    pass
