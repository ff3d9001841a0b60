"""Callbacks that can be copied and pickled after a ``fit``, and during one."""

from __future__ import annotations

from typing import Any, ClassVar

from lightning.pytorch import Callback

__all__ = ["Portable"]


class Portable(Callback):
    """Its copies and pickles go without the trainer and the module that it has seen.

    Attributes:
        seen: names of attributes that lead to them; a copy has None there.
    """

    seen: ClassVar[tuple[str, ...]] = ()

    def __getstate__(self) -> dict[str, Any]:
        """What a copy gets."""
        lightnings = ("log", "log_dict")  # the module's methods, which Lightning puts here in every fit
        return {n: None if n in self.seen else v for n, v in vars(self).items() if n not in lightnings}
