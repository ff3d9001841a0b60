"""Networks of timm, an optional dependency."""

from __future__ import annotations

import difflib

from torch import nn

from hqp_lightning.errors import ConfigurationError

__all__ = ["build_timm"]


def build_timm(name: str, num_classes: int, weights: str | None) -> nn.Module:
    """Build ``timm.create_model(name)`` for ``num_classes``.

    Args:
        name: as in ``timm.list_models()``, for example ``"resnet26d"``.
        num_classes: outputs of the head.
        weights: None, ``"DEFAULT"`` for timm's default pretrained weights, or the tag of others; downloaded once.

    Returns:
        The network, in training mode.

    Raises:
        ConfigurationError: timm is not installed, an unknown name or tag, or a download that failed.
    """
    try:
        import timm
    except ImportError as error:
        raise ConfigurationError(
            f"timm/{name} needs timm: pip install 'hqp-lightning[timm]' (or pip install timm)"
        ) from error
    if not timm.is_model(name):
        near = " or ".join(difflib.get_close_matches(name, timm.list_models(), n=3))
        raise ConfigurationError(f"timm has no model {name!r}" + (f"; did you mean {near}?" if near else ""))
    full = name if weights in (None, "DEFAULT") else f"{name}.{weights}"
    try:
        net: nn.Module = timm.create_model(full, pretrained=weights is not None, num_classes=num_classes)
    except Exception as error:  # what a failed download raises depends on the hub's client and on its transport
        if weights is None:
            raise
        tags = timm.list_pretrained(f"{name}.*")
        raise ConfigurationError(
            f"no weights {weights!r} of timm/{name}: {error}. timm knows {', '.join(tags) or 'none'}; without a "
            "network, fetch the file elsewhere and give a state dict with model.checkpoint=FILE"
        ) from error
    return net
