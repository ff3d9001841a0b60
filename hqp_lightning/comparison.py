"""``compare=true``: the paper's table, every method on the same dense model."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from lightning.pytorch import Callback
from omegaconf import DictConfig

from hqp_lightning.callbacks.comparing import CompareMethods, Exported, last_of, lift_budget_
from hqp_lightning.callbacks.pruning import HQPPruning
from hqp_lightning.loop.options import ISOMORPHIC, MAGNITUDE
from hqp_lightning.records import MethodComparison, Report
from hqp_lightning.report import print_methods, read_methods, write_methods

__all__ = ["compare"]

_log = logging.getLogger(__name__)
_CHANNELS: dict[str, Any] = {"units": ["channels"], "target_speedup": None, "target_latency_ms": None}
_MARGIN = 1.15  # steps save a little less than predicted; with it, as many as HQP kept are enough


def compare(cfg: DictConfig, report: Report, build: Callable[..., tuple[Any, Any, Any]]) -> MethodComparison | None:
    """Prune the same model by other criteria to HQP's MACs, quantize the dense one alone, and print the table of all.

    A run whose units or cost are more than that is also made with channels alone, priced by MACs, under its own budget.

    Those have the recipe's seed, schedule and epochs, steps that reach HQP's MACs in as many as HQP kept, and no
    budget: all of their steps are kept. They are Torch-Pruning's: magnitude, ranked over all layers as
    Torch-Pruning does (divided by MACs, as HQP's loss is, norms that were brought to a mean of one would hardly
    count), and isomorphic Taylor, ranked within each kind of groups, of which it takes the same share.

    Args:
        cfg: the composed configuration; ``comparison.json`` and ``comparison.md`` go to its ``output_dir``.
        report: of the HQP run.
        build: ``build(cfg, callbacks, suffix, **trainer settings)`` gives the model, the data and the trainer.

    Returns:
        The comparison, with ``resume=true`` that of an earlier start; None on the ranks that only waited.
    """
    folder, left = Path(cfg.output_dir), report.int8.macs / report.baseline.macs
    if cfg.resume and (folder / "comparison.json").is_file():
        found = read_methods(folder / "comparison.json")
        print_methods(found)
        return found
    settings = {"enable_checkpointing": False, "max_epochs": cfg.trainer.max_epochs}
    alone = _channels_alone(cfg, build, settings) if left < 1 and _has_more(cfg) else None
    others = {}
    if left < 1:
        taylor = _to_macs(cfg, report, ISOMORPHIC)
        model, data, trainer = build(cfg, [taylor], "/comparison/isomorphic_taylor", **settings)
        trainer.fit(model, datamodule=data)
        others["isomorphic Taylor"] = last_of(taylor)
    made = folder / "comparison"
    ending = CompareMethods(report, instantiate(cfg.export), made, others=others, channels_alone=alone)
    callbacks: list[Callback] = [ending]
    if left < 1:
        callbacks.insert(0, _to_macs(cfg, report, MAGNITUDE))
    else:
        settings["max_epochs"] = 0  # nothing to train: only the INT8 form is missing
    model, data, trainer = build(cfg, callbacks, "/comparison", **settings)
    trainer.fit(model, datamodule=data)
    if ending.comparison is not None:
        print_methods(ending.comparison)
        print(f"Written: {', '.join(map(str, write_methods(ending.comparison, folder)))}")
    return ending.comparison


def _to_macs(cfg: DictConfig, report: Report, estimator: str) -> HQPPruning:
    """What prunes by another criterion to the MACs of a finished run."""
    _log.info("compare: pruning by %s, with the same schedule and for the same epochs", estimator)
    left, kept = report.int8.macs / report.baseline.macs, sum(record.outcome == "kept" for record in report.steps)
    step = min(max(cfg.hqp.step, _MARGIN * (1 - left) / kept), 0.95)
    asked = {"estimator": estimator, "cost": "none", "step": step, "target_macs": left, "compensate": False}
    pruning: HQPPruning = instantiate(cfg.hqp, **asked, **_CHANNELS)
    lift_budget_(pruning)
    return pruning


def _has_more(cfg: DictConfig) -> bool:
    """Whether more than channels may go, or milliseconds rank them."""
    return set(cfg.hqp.units) != set(_CHANNELS["units"]) or cfg.hqp.cost not in ("macs", "none")


def _channels_alone(cfg: DictConfig, build: Callable[..., tuple[Any, Any, Any]], settings: dict[str, Any]) -> Exported:
    _log.info("compare: channels alone, priced by MACs, with the same budget, schedule and epochs")
    dirpath = Path(cfg.output_dir) / "comparison" / "channels_only"
    cost = cfg.hqp.cost if cfg.hqp.cost == "none" else "macs"
    callbacks = [instantiate(cfg.hqp, cost=cost, **_CHANNELS), instantiate(cfg.export, dirpath=str(dirpath))]
    model, data, trainer = build(cfg, callbacks, "/comparison/channels_only", **settings)
    trainer.fit(model, datamodule=data)
    return callbacks[-1].report, dirpath
