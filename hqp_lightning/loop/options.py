"""The validated arguments of the callbacks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hqp_lightning.core.calibration import ACTIVATION_TYPES, METHODS
from hqp_lightning.core.saliency import ESTIMATORS
from hqp_lightning.core.selection import COSTS
from hqp_lightning.errors import ConfigurationError
from hqp_lightning.export.engines import backends
from hqp_lightning.export.engines.rtx import check_rtx
from hqp_lightning.loop.network import LossFn

__all__ = ["MAGNITUDE", "ExportOptions", "PruningOptions"]

PLACEMENTS = ("paying", "compiled", "all")

MAGNITUDE = "magnitude"
"""The estimator that looks at the weights alone, to compare with."""


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
    max_channel_ratio: float
    round_to: int
    fisher_batches: int | None
    recalibrate_batches: int
    compensate: bool
    baseline: float | None
    loss_fn: LossFn | None
    max_snapshots: int

    def __post_init__(self) -> None:
        for name in ("step", "min_step", "target_macs", "max_channel_ratio"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise ConfigurationError(f"{name}={value!r} must be a fraction in (0, 1).")
        if self.min_step > self.step:
            raise ConfigurationError(f"min_step={self.min_step} is larger than step={self.step}.")
        _at_least(self, every_n_epochs=1, patience=0, start_epoch=0, round_to=1, recalibrate_batches=0, max_snapshots=1)
        _one_of(self, estimator=(*ESTIMATORS, MAGNITUDE), cost=COSTS, compensate=(False, True))


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """See `hqp_lightning.callbacks.Int8Export`."""

    calibration_batches: int
    calibration_data: str
    method: str
    activation_type: str
    placement: str
    max_float_layers: int
    quantize_hardswish: bool
    quantize_se: bool
    recovery_epochs: int
    recovery_lr_scale: float
    holdout: Any
    engines: tuple[str, ...] | None
    rtx: tuple[str, ...]
    batch_size: int
    threads: int
    latency_runs: int
    loss_fn: LossFn | None

    def __post_init__(self) -> None:
        known = {b.name: b for b in backends()}
        unknown = sorted(set(self.engines or ()) - set(known))
        if unknown:
            raise ConfigurationError(f"engines={unknown} are not known; choose from {list(known)}.")
        _at_least(
            self, calibration_batches=1, max_float_layers=0, recovery_epochs=0, batch_size=1, threads=1, latency_runs=1
        )
        if isinstance(self.recovery_lr_scale, bool) or not 0 < self.recovery_lr_scale <= 1:
            raise ConfigurationError(f"recovery_lr_scale={self.recovery_lr_scale!r} must lie in (0, 1].")
        _one_of(self, placement=PLACEMENTS)
        _one_of(self, method=METHODS, activation_type=ACTIVATION_TYPES, calibration_data=("train", "val"))
        unread = [n for n in self.engines or () if self.activation_type not in known[n].activation_types]
        if unread:
            raise ConfigurationError(
                f"engines={unread} do not read activation_type={self.activation_type!r}: take 'int8', or name engines "
                "for a CPU, such as ['openvino']."
            )
        check_rtx(self.rtx)
        _one_of(self, quantize_hardswish=(False, True), quantize_se=(False, True))


def _at_least(options: Any, **least: int) -> None:
    for name, bound in least.items():
        value = getattr(options, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < bound:
            raise ConfigurationError(f"{name}={value!r} must be an integer of at least {bound}.")


def _one_of(options: Any, **known: tuple[object, ...]) -> None:
    for name, choices in known.items():
        if getattr(options, name) not in choices:
            raise ConfigurationError(f"{name}={getattr(options, name)!r} is not known; choose one of {choices}.")
