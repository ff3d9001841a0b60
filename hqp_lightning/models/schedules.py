"""Learning rates over a run."""

from __future__ import annotations

import math

from hqp_lightning.errors import ConfigurationError, check_numbers

__all__ = ["check_schedule", "lr_factor"]


def check_schedule(schedule: str, warmup_epochs: float, decay_epochs: float, restart_epochs: int) -> None:
    """See that there is such a schedule.

    Raises:
        ConfigurationError: an unknown name, or a length out of range.
    """
    if schedule not in ("cosine", "constant", "restarts"):
        raise ConfigurationError(f"schedule must be 'cosine', 'constant' or 'restarts', got {schedule!r}")
    check_numbers(warmup_epochs=warmup_epochs, decay_epochs=decay_epochs, restart_epochs=restart_epochs)
    if min(warmup_epochs, decay_epochs) < 0:
        raise ConfigurationError(f"expected numbers of at least 0, got {warmup_epochs=}, {decay_epochs=}")
    if restart_epochs < 1:
        raise ConfigurationError(f"restart_epochs must be at least 1, got {restart_epochs}")


def lr_factor(progress: float, schedule: str, warmup: float, decay: float, restarts: float = 1) -> float:
    """Learning rate as a part of its peak.

    A linear warm-up, then ``"cosine"``: half a cosine down to zero at the end; or ``"constant"``: the peak, with a
    linear fall to zero over the last ``decay`` of the run; or ``"restarts"``: one half cosine after another, so that
    each pruning step heals at full speed and is judged after the rate has come down.

    Args:
        progress: part of all training steps that is done, in [0, 1].
        schedule: ``"cosine"``, ``"constant"`` or ``"restarts"``.
        warmup: part of the steps for the warm-up.
        decay: part of the steps for the final fall (``"constant"`` only).
        restarts: number of half cosines (``"restarts"`` only).

    Examples:
        >>> [round(lr_factor(p, "cosine", 0.2, 0.0), 3) for p in (0.1, 0.2, 0.6, 1.0)]
        [0.5, 1.0, 0.5, 0.0]
        >>> [round(lr_factor(p, "constant", 0.0, 0.25), 3) for p in (0.1, 0.75, 0.875, 1.0)]
        [1.0, 1.0, 0.5, 0.0]
        >>> [round(lr_factor(p, "restarts", 0.0, 0.0, restarts=2), 3) for p in (0.0, 0.25, 0.499, 0.5, 0.75)]
        [1.0, 0.5, 0.0, 1.0, 0.5]
    """
    if warmup > 0 and progress <= warmup:
        return progress / warmup
    if schedule == "restarts":
        return 0.5 * (1.0 + math.cos(math.pi * (progress * restarts % 1.0)))
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (progress - warmup) / (1.0 - warmup))))
    return 1.0 if decay <= 0.0 else min(1.0, max(0.0, (1.0 - progress) / decay))
