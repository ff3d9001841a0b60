"""The validated arguments of the callbacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hqp_lightning.core.saliency import ESTIMATORS
from hqp_lightning.core.selection import COSTS, LATENCY
from hqp_lightning.errors import ConfigurationError, check_numbers, is_number
from hqp_lightning.export.options import FileOptions, at_least, one_of
from hqp_lightning.loop.exportable import LAYOUTS
from hqp_lightning.loop.network import LossFn
from hqp_lightning.records import UNIT_KINDS

__all__ = ["CHANNELS", "COMPARED", "ISOMORPHIC", "MAGNITUDE", "ExportOptions", "PruningOptions", "check_units"]

CHANNELS = "channels"
MAGNITUDE, ISOMORPHIC = "magnitude", "isomorphic"
COMPARED = (MAGNITUDE, ISOMORPHIC)
"""Torch-Pruning's criteria, to compare with: of the weights alone, and Taylor, a share of each kind of layers."""


@dataclass(frozen=True, slots=True)
class PruningOptions:
    """See `hqp_lightning.callbacks.HQPPruning`."""

    module: str | None
    ignore: tuple[str, ...]
    estimator: str
    cost: str
    step: float
    min_step: float
    every_n_epochs: int
    patience: int
    start_epoch: int
    target_macs: float | None
    target_speedup: float | None
    target_latency_ms: float | None
    max_channel_ratio: float
    round_to: int
    fisher_batches: int | None
    recalibrate_batches: int
    compensate: bool
    baseline: float | None
    loss_fn: LossFn | None
    max_snapshots: int
    units: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in ("step", "min_step", "target_macs", "max_channel_ratio"):
            value = getattr(self, name)
            if name == "target_macs" and value is None:
                continue
            if not is_number(value) or not 0 < value < 1:
                raise ConfigurationError(f"{name}={value!r} must be a fraction in (0, 1).")
        if self.baseline is not None:
            check_numbers(baseline=self.baseline)
        if self.min_step > self.step:
            raise ConfigurationError(f"min_step={self.min_step} is larger than step={self.step}.")
        at_least(self, every_n_epochs=1, patience=0, start_epoch=0, round_to=1, recalibrate_batches=0, max_snapshots=1)
        if self.fisher_batches is not None:
            at_least(self, fisher_batches=1)
        one_of(self, estimator=(*ESTIMATORS, *COMPARED), compensate=(False, True))
        check_units(self.units, self.estimator)
        if not self.table:
            one_of(self, cost=(*COSTS, "FILE.json"))
        for name, least in {"target_speedup": 1.0, "target_latency_ms": 0.0}.items():
            value = getattr(self, name)
            if value is None:
                continue
            if not is_number(value) or not value > least:
                raise ConfigurationError(f"{name}={value!r} must be a number above {least:g}.")
            if not self.by_latency:
                raise ConfigurationError(f"{name}={value!r} needs cost='latency' or a table, not cost={self.cost!r}.")

    @property
    def compares(self) -> bool:
        """Whether the criterion is another library's, which a validation measures nothing of."""
        return self.estimator in COMPARED

    @property
    def table(self) -> str | None:
        """The file of a latency table, if ``cost`` names one."""
        return self.cost if isinstance(self.cost, str) and self.cost.endswith(".json") else None

    @property
    def by_latency(self) -> bool:
        """Whether channels are ranked by milliseconds."""
        return self.cost == LATENCY or self.table is not None


@dataclass(frozen=True, slots=True)
class ExportOptions(FileOptions):
    """See `hqp_lightning.callbacks.Int8Export`."""

    calibration_batches: int
    calibration_data: str
    outputs: Sequence[str] | None
    layout: str
    max_float_layers: int
    recovery_epochs: int
    recovery_lr_scale: float
    holdout: Any
    loss_fn: LossFn | None

    def __post_init__(self) -> None:
        FileOptions.__post_init__(self)
        at_least(self, calibration_batches=1, max_float_layers=0, recovery_epochs=0)
        if not is_number(self.recovery_lr_scale) or not 0 < self.recovery_lr_scale <= 1:
            raise ConfigurationError(f"recovery_lr_scale={self.recovery_lr_scale!r} must lie in (0, 1].")
        one_of(self, calibration_data=("train", "val"), layout=LAYOUTS)
        if isinstance(self.outputs, str):
            raise ConfigurationError(f"outputs={self.outputs!r} must be a list of names, such as ('out',).")


def check_units(units: Sequence[str], estimator: str) -> tuple[str, ...]:
    """The units; refused where nothing is known of them, or an estimator has no value of them."""
    known = (CHANNELS, *UNIT_KINDS)
    if isinstance(units, str) or not isinstance(units, Sequence):
        raise ConfigurationError(f"units={units!r} must be a list, of some of {list(known)}.")
    unknown = [u for u in units if u not in known]
    if unknown or not units:
        raise ConfigurationError(f"units={list(units)} must be some of {list(known)}.")
    whole = [u for u in units if u != CHANNELS]
    if whole and estimator != "gate":
        raise ConfigurationError(
            f"units={list(units)}: the estimator {estimator!r} has no value of {whole}; take estimator='gate'."
        )
    return tuple(units)
