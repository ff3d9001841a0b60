"""How an error reaches whoever typed the command."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from hydra.errors import InstantiationException

from hqp_lightning.errors import HQPError

__all__ = ["cause", "fail"]


def cause(error: BaseException) -> BaseException:
    """What Hydra's instantiation wrapped, or the error itself."""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    return error


def fail(error: Exception) -> NoReturn:
    """End the process with one line for an error that a setting caused; raise any other.

    ``HYDRA_FULL_ERROR=1`` raises every one.
    """
    ours = isinstance(error, HQPError | InstantiationException) and isinstance(cause(error), HQPError | TypeError)
    if not ours or os.environ.get("HYDRA_FULL_ERROR") == "1":
        raise error
    print(f"hqp: error: {cause(error)}", file=sys.stderr)
    raise SystemExit(1) from None
