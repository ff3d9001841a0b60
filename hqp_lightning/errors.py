"""What can go wrong, by whom it is to be mended."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

__all__ = [
    "ConfigurationError",
    "ExportError",
    "HQPError",
    "LoaderError",
    "LossError",
    "SurgeryError",
    "check_numbers",
    "in_words",
    "is_number",
]


class HQPError(Exception):
    """Base of every error that this package raises on purpose."""


class ConfigurationError(HQPError, ValueError):
    """An argument, a configuration or a model that cannot work; raised before any training."""


class SurgeryError(HQPError, RuntimeError):
    """A structural change that would break the model; the model is left as it was."""


class ExportError(HQPError, RuntimeError):
    """An artifact that could not be written, built or run."""


class LoaderError(HQPError, RuntimeError):
    """The user's loader failed to give a batch."""


class LossError(HQPError, RuntimeError):
    """The user's ``loss_fn`` failed; the cause is its own error."""


def in_words(error: BaseException) -> str:
    """An error in a line that names its kind, unless it is one of ours, which say all themselves.

    Examples:
        >>> in_words(KeyError("label")), in_words(SurgeryError("no group is left"))
        ("KeyError: 'label'", 'no group is left')
    """
    return str(error) if isinstance(error, HQPError) else f"{type(error).__name__}: {error}"


def is_number(value: Any) -> bool:
    """Whether what was given is a finite number; a truth value is none.

    Examples:
        >>> is_number(0.5), is_number("0.5"), is_number(True), is_number(float("inf"))
        (True, False, False, False)
    """
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def check_numbers(**given: Any) -> None:
    """See that all of these, by their names, are finite numbers.

    Raises:
        ConfigurationError: with the name and the value of the first that is none.
    """
    for name, value in given.items():
        if not is_number(value):
            raise ConfigurationError(f"{name}={value!r} must be a finite number.")
