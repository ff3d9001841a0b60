"""An engine in the place of the user's network, while the user's own validation runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import nn

from hqp_lightning.board.arrays import bundle, each
from hqp_lightning.core.calls import Call
from hqp_lightning.errors import ExportError
from hqp_lightning.export.engines import Engine
from hqp_lightning.loop.exportable import Exportable, laid_out, on_cpu
from hqp_lightning.loop.parts import Way

__all__ = ["counting", "running_on"]


@contextmanager
def running_on(way: Way, engine: Engine, made: Exportable) -> Iterator[None]:
    """Inside, the network that validation runs on that way is the engine.

    Args:
        way: how validation runs the network.
        engine: what takes its place.
        made: says how the file of the engine takes its inputs, and makes what the network returns of its outputs.

    Raises:
        ExportError: on leaving, if nothing called the network: what was scored was not the engine.
    """
    results: list[Any] = []
    calls = 0

    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        given = Call(args, kwargs).tensors()
        batch = [laid_out(on_cpu(x), made.layout).numpy() for x in given]
        double = any(x.dtype == torch.float64 for x in given)
        outputs = [torch.from_numpy(y).to(given[0].device) for y in each(engine.run(bundle(batch)))]
        return made.put_back([y.double() if double and y.is_floating_point() else y for y in outputs])

    def begin(*args: Any, **kwargs: Any) -> Any:
        results.append(forward(*args, **kwargs))
        return first_forward(*args, **kwargs)  # what comes between the parts needs something of the right shape

    first_forward = way.first.forward
    with ExitStack() as stack:
        if way.first is way.last:
            stack.enter_context(_replaced(way.first, forward))
        else:
            stack.enter_context(_replaced(way.first, begin))
            stack.enter_context(_replaced(way.last, lambda *_, **__: results.pop()))
        yield
    if not calls:
        raise ExportError(
            f"validation_step never called {type(way.first).__name__}(...), so the engine can't be scored in its "
            "place; call the network itself there, or name the part that is called with module=..."
        )


@contextmanager
def _replaced(module: nn.Module, forward: Any) -> Iterator[None]:
    own = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        del module.__dict__["forward"]
        if own is not None:
            module.__dict__["forward"] = own


@contextmanager
def counting(pl_module: LightningModule) -> Iterator[list[int]]:
    """Inside, the list collects the number of samples of every batch that ``validation_step`` gets.

    Not of every call of the network: one that sees a flipped copy of an image, too, answers once for it.
    """
    sizes: list[int] = []
    step, own = pl_module.validation_step, pl_module.__dict__.get("validation_step")

    @wraps(step)
    def counted(batch: Any, *args: Any, **kwargs: Any) -> Any:
        sizes.append(min((len(x) for x in Call((batch,)).tensors() if x.dim()), default=0))
        return step(batch, *args, **kwargs)

    pl_module.__dict__["validation_step"] = counted
    try:
        yield sizes
    finally:
        del pl_module.__dict__["validation_step"]
        if own is not None:
            pl_module.__dict__["validation_step"] = own
