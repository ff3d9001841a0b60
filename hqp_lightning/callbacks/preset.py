"""The usual set of callbacks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback

from hqp_lightning.callbacks.export import Int8Export
from hqp_lightning.callbacks.pruning import HQPPruning

__all__ = ["hqp_callbacks"]


def hqp_callbacks(
    max_drop: float,
    monitor: str,
    dirpath: str | os.PathLike[str],
    *,
    export: Mapping[str, Any] | None = None,
    **pruning: Any,
) -> list[Callback]:
    """Pruning, then INT8 export, in the order that they need.

    Args:
        max_drop: the budget, a fraction in (0, 1).
        monitor: the metric that validation logs.
        dirpath: folder for the artifacts.
        export: further arguments of `Int8Export`.
        **pruning: further arguments of `HQPPruning`.

    Examples:
        >>> [type(c).__name__ for c in hqp_callbacks(0.015, "val_acc", "deploy", start_epoch=10)]
        ['HQPPruning', 'Int8Export']
    """
    return [HQPPruning(monitor, max_drop, **pruning), Int8Export(dirpath, **(export or {}))]
