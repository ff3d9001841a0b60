"""Re-wrap the model for the strategy around a change of its parameters' shapes."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.nn.parallel import DistributedDataParallel

__all__ = ["rewrapped"]


@contextmanager
def rewrapped(strategy: Any, module: Any) -> Iterator[None]:
    """Inside, the bare ``module`` is the strategy's model; afterwards a new DDP wrapper is around it, if there was one.

    DDP sizes its gradient buckets once. The old wrapper must be gone before the new one is made: a live reference to
    it would keep its hooks on the parameters, and the next backward would wait for them forever. Making the new one
    takes all ranks, so after an exception, which may be one rank's alone, the module stays bare.

    Args:
        strategy: a Lightning strategy.
        module: the LightningModule that it wraps.
    """
    if not isinstance(strategy.model, DistributedDataParallel):
        yield
        return
    strategy.model = module
    gc.collect()
    yield
    strategy.model = strategy._setup_model(module)
    strategy._register_ddp_hooks()
    strategy._pl_static_graph_delay_done = False  # the new wrapper's first backward is a first one again
