"""What stands in the place of a unit that was removed: the identity, or one scale per channel.

The module that was there is kept with it, out of sight of parameters, buffers, state dicts and traces: a rollback puts
the same parameters back, which an optimizer's groups may hold again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

__all__ = [
    "IDENTITY",
    "SCALE",
    "Identity",
    "Scale",
    "forms",
    "original_of",
    "put_back_",
    "replace_",
    "scales",
    "set_forms_",
]

IDENTITY, SCALE = "identity", "scale"
"""Forms of a replacement."""


class Identity(nn.Module):
    """Passes its input on, in the place of ``original``."""

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.hidden = (original,)  # a tuple is no submodule

    def forward(self, x: Tensor) -> Tensor:
        """The input."""
        return x


class Scale(Identity):
    """Multiplies every channel by a number, in the place of ``original``.

    Args:
        original: what was there.
        factors: one for each channel, ``(C,)``; trained, if anything of the original was.
    """

    def __init__(self, original: nn.Module, factors: Tensor) -> None:
        super().__init__(original)
        # A parameter, not a buffer: the graph follows those, and slices them with the channels.
        trained = any(p.requires_grad for p in original.parameters())
        self.weight = nn.Parameter(factors.detach().clone().view(-1, 1, 1), trained)

    def forward(self, x: Tensor) -> Tensor:
        """The input times the channels' factors."""
        return x * self.weight


def forms(module: nn.Module) -> dict[str, str]:
    """Names of what was replaced in ``module``, as it stands, to the form of the replacement."""
    known = {Identity: IDENTITY, Scale: SCALE}
    return {n: known[type(m)] for n, m in module.named_modules() if type(m) in known}


def replace_(module: nn.Module, name: str, factors: Tensor | None = None) -> None:
    """Put the identity, or a scale by ``factors``, in the place of the submodule of that name."""
    original = module.get_submodule(name)
    _set_(module, name, Identity(original) if factors is None else Scale(original, factors))


def put_back_(module: nn.Module, name: str) -> None:
    """Put the original back, on the device of what stood for it."""
    _set_(module, name, original_of(module, name).to(_device(module)))


def original_of(module: nn.Module, name: str) -> nn.Module:
    """What the submodule of that name stands for."""
    stand_in = module.get_submodule(name)
    if not isinstance(stand_in, Identity):
        raise TypeError(f"{name} is a {type(stand_in).__name__}, which stands for nothing")
    return stand_in.hidden[0]


def scales(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and factors of the scales in ``module``."""
    for name, m in module.named_modules():
        if isinstance(m, Scale):
            yield name, m.weight


def set_forms_(module: nn.Module, wanted: Mapping[str, str], factors: Mapping[str, Tensor]) -> None:
    """Replace and put back until the replaced units of ``module`` are those ``wanted``.

    Args:
        module: as it stands.
        wanted: names to forms.
        factors: of those that are scales and not there yet.

    Raises:
        AttributeError: ``module`` has no submodule of such a name.
    """
    while odd := [n for n, form in forms(module).items() if wanted.get(n) != form]:
        put_back_(module, odd[0])  # an outer one may bring an inner one back that is wanted
    for name, form in wanted.items():
        if name not in forms(module):
            replace_(module, name, factors[name].to(_device(module)) if form == SCALE else None)


def _device(module: nn.Module) -> torch.device:
    return next((p.device for p in module.parameters()), torch.device("cpu"))


def _set_(module: nn.Module, name: str, value: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    module.get_submodule(parent)._modules[own] = value
