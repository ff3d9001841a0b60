"""torchvision's and timm's classifiers, with the recipe's number of classes and weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from hqp_lightning.errors import ConfigurationError
from hqp_lightning.models.timm_models import build_timm

__all__ = ["build_network", "finished_", "load_weights_"]


def build_network(
    name: str,
    num_classes: int,
    weights: str | None = None,
    checkpoint: str | Path | None = None,
    bn_momentum: float | None = None,
) -> nn.Module:
    """Build a classifier of torchvision or timm for ``num_classes``.

    Args:
        name: as in ``torchvision.models.list_models()``, for example ``"resnet18"``, or ``"timm/NAME"``.
        num_classes: outputs of the head.
        weights: torchvision's pretrained weights, for example ``"DEFAULT"`` (downloaded once); the head, if it does
            not fit, starts afresh.
        checkpoint: file with a state dict of exactly this network, loaded last.
        bn_momentum: of every BatchNorm. torchvision's MobileNetV3 has 0.01, which needs thousands of steps before
            the running statistics, and with them the validation score, mean anything; a short training takes 0.1.

    Returns:
        The network, in training mode.

    Raises:
        ConfigurationError: an unknown name or weights, weights that can't be downloaded, or a checkpoint that does not
            fit.

    Examples:
        >>> build_network("resnet18", num_classes=7).fc
        Linear(in_features=512, out_features=7, bias=True)
    """
    if num_classes < 1:
        raise ConfigurationError(f"num_classes must be at least 1, got {num_classes}")
    if name.startswith("timm/"):
        net = build_timm(name.removeprefix("timm/"), num_classes, weights)
    else:
        net = _build_torchvision(name, num_classes, weights)
    return finished_(net, checkpoint, bn_momentum)


def finished_(net: nn.Module, checkpoint: str | Path | None, bn_momentum: float | None) -> nn.Module:
    """The network with the momentum and the weights that were asked for, see `build_network`."""
    if bn_momentum is not None:
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = bn_momentum
    if checkpoint is not None:
        load_weights_(net, checkpoint)
    return net


def _build_torchvision(name: str, num_classes: int, weights: str | None) -> nn.Module:
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise ConfigurationError(f"torchvision has no classifier {name!r}; it has {', '.join(known)}")
    if weights is None:
        dense: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
        return dense
    try:
        pretrained: nn.Module = torchvision.models.get_model(name, weights=weights)
    except (ValueError, KeyError) as error:
        raise ConfigurationError(f"no weights {weights!r} of {name}: {error}; try 'DEFAULT'") from error
    except OSError as error:  # urllib's errors are of this kind
        url = torchvision.models.get_model_weights(name)[weights].url
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise ConfigurationError(
            f"could not download the weights of {name}: {error}. Put {url} into {folder}, or leave them out with "
            "model.net.weights=null"
        ) from error
    _fit_head_(pretrained, num_classes)
    return pretrained


def load_weights_(net: nn.Module, path: str | Path) -> None:
    """Load a state dict into ``net``, all of it or nothing.

    Args:
        net: the network, changed in place.
        path: file written by ``torch.save(net.state_dict(), path)``; only tensors are read, no code.

    Raises:
        ConfigurationError: no such file, no state dict in it, or keys or shapes that differ.
    """
    if not Path(path).is_file():
        raise ConfigurationError(f"no checkpoint at {path}")
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ConfigurationError(f"{path} does not hold a plain state dict: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ConfigurationError(
            f"{path} holds no state dict of a network (name -> tensor), but {_describe(state)}; "
            "write one with torch.save(net.state_dict(), path)"
        )
    own = net.state_dict()
    differences = {
        "missing": [k for k in own if k not in state],
        "unexpected": [k for k in state if k not in own],
        "of another shape": [
            f"{k} {tuple(state[k].shape)} instead of {tuple(v.shape)}"
            for k, v in own.items()
            if k in state and state[k].shape != v.shape
        ],
    }
    found = [
        f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for what, keys in differences.items()
        if keys
    ]
    if found:
        raise ConfigurationError(f"{path} does not fit {type(net).__name__}: {'; '.join(found)}")
    net.load_state_dict(state, strict=True)


def _fit_head_(net: nn.Module, num_classes: int) -> None:
    # In torchvision's classifiers the head is the last linear layer (in SqueezeNet a 1x1 convolution).
    name, head = [(n, m) for n, m in net.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    if isinstance(head, nn.Linear):
        if head.out_features == num_classes:
            return
        new: nn.Module = nn.Linear(head.in_features, num_classes, bias=head.bias is not None)
    else:
        new = nn.Conv2d(head.in_channels, num_classes, kernel_size=1, bias=head.bias is not None)
    parent, _, leaf = name.rpartition(".")
    setattr(net.get_submodule(parent), leaf, new)


def _describe(state: object) -> str:
    if isinstance(state, dict):
        return f"a dict with the keys {', '.join(map(str, list(state)[:3]))}"
    return f"a {type(state).__name__}"
