"""How a file is quantized, and its engines timed: what an export of a run and one of a file alone have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hqp_lightning.core.calibration import ACTIVATION_TYPES, METHODS
from hqp_lightning.errors import ConfigurationError
from hqp_lightning.export.engines import backends
from hqp_lightning.export.engines.rtx import check_rtx

__all__ = ["PLACEMENTS", "FileOptions", "as_tuple", "at_least", "one_of"]

PLACEMENTS = ("paying", "compiled", "timed", "all")


@dataclass(frozen=True, slots=True)
class FileOptions:
    """See `hqp_lightning.callbacks.Int8Export`."""

    method: str
    activation_type: str
    placement: str
    quantize_hardswish: bool
    quantize_se: bool
    engines: tuple[str, ...] | None
    rtx: tuple[str, ...]
    batch_size: int
    threads: int
    latency_runs: int

    def __post_init__(self) -> None:
        known = {b.name: b for b in backends()}
        if self.engines is not None and (isinstance(self.engines, str) or not self.engines):
            raise ConfigurationError(
                f"engines={self.engines if isinstance(self.engines, str) else []!r} must be a list of some of "
                f"{list(known)}, or left out: it takes one of them to score the INT8 file."
            )
        unknown = sorted(set(self.engines or ()) - set(known))
        if unknown:
            raise ConfigurationError(f"engines={unknown} are not known; choose from {list(known)}.")
        at_least(self, batch_size=1, threads=1, latency_runs=1)
        one_of(self, placement=PLACEMENTS)
        one_of(self, method=METHODS, activation_type=ACTIVATION_TYPES)
        unread = [n for n in self.engines or () if self.activation_type not in known[n].activation_types]
        if unread:
            raise ConfigurationError(
                f"engines={unread} do not read activation_type={self.activation_type!r}: take 'int8', or name engines "
                "for a CPU, such as ['openvino']."
            )
        check_rtx(self.rtx)
        one_of(self, quantize_hardswish=(False, True), quantize_se=(False, True))


def as_tuple(value: Any) -> Any:
    """A list as a tuple; no list, None or a word, as it is, which is refused later."""
    return value if value is None or isinstance(value, str) else tuple(value)


def at_least(options: Any, **least: int) -> None:
    """Refuse what is no integer, or too small a one.

    Raises:
        ConfigurationError: with the name and the bound.
    """
    for name, bound in least.items():
        value = getattr(options, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < bound:
            raise ConfigurationError(f"{name}={value!r} must be an integer of at least {bound}.")


def one_of(options: Any, **known: tuple[object, ...]) -> None:
    """Refuse what is none of the choices.

    Raises:
        ConfigurationError: with the name and the choices.
    """
    for name, choices in known.items():
        if getattr(options, name) not in choices:
            raise ConfigurationError(f"{name}={getattr(options, name)!r} is not known; choose one of {choices}.")
