"""How a pruned network follows the dense one: by its logits, and by the features that its classifier reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hqp_lightning.errors import ConfigurationError

__all__ = [
    "FeatureDistance",
    "FeatureDistances",
    "check_layers",
    "distillation_loss",
    "feature_reader",
    "with_features",
]

_WINDOW = 50  # batches over which the regression looks back
_STATE = ("_batches", "_samples", "_gram", "_cross", "_square")
_RIDGE = 1e-2  # of the mean square of a feature
_POSITIONS = 4  # of a layer's output, along each side: neighbours are much alike
_LAYER = 0.5  # weight of a layer's distance beside that of the classifier's features


def distillation_loss(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``T**2 * KL(softmax(teacher / T) || softmax(logits / T))``, mean over batch and pixels (arXiv 1503.02531).

    Args:
        logits: of the student, ``[B, num_classes, ...]``.
        teacher: logits of the teacher, ``[B, num_classes, ...]``.
        temperature: ``T``; the factor ``T**2`` keeps the gradient's scale.

    Examples:
        >>> x = torch.tensor([[1.0, 2.0]])
        >>> float(distillation_loss(x, x + 5, 2.0))
        0.0
    """
    student, target = (F.log_softmax(x.float() / temperature, dim=1) for x in (logits, teacher))
    pixels = logits.shape[2:].numel()
    return temperature**2 * F.kl_div(student, target, reduction="batchmean", log_target=True) / pixels


def feature_reader(net: nn.Module) -> str:
    """Name of the layer whose input the features are: the first linear one behind all convolutions.

    Raises:
        ConfigurationError: no linear layer comes after the last convolution.

    Examples:
        >>> feature_reader(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 8), nn.Linear(8, 2)))
        '2'
    """
    found = ""
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            found = ""
        elif isinstance(module, nn.Linear) and not found:
            found = name
    if not found:
        raise ConfigurationError(
            "feature_distillation compares what the first linear layer behind the convolutions reads; "
            f"{type(net).__name__} has none: leave feature_distillation at 0"
        )
    return found


def check_layers(net: nn.Module, layers: Sequence[str]) -> tuple[str, ...]:
    """Names of modules of a network.

    Raises:
        ConfigurationError: the network has no module of that name.
    """
    known = [n for n, _ in net.named_modules() if n]
    for name in layers:
        if name not in known:
            near = get_close_matches(name, known, 3) or known[:3]
            raise ConfigurationError(
                f"feature_layers={list(layers)}: {type(net).__name__} has no module {name!r}; it has {', '.join(near)}"
            )
    return tuple(layers)


def with_features(
    net: nn.Module, run: Callable[[], Tensor], layers: Sequence[str] = ()
) -> tuple[Tensor, dict[str, Tensor]]:
    """What ``run`` returns, and what was followed meanwhile.

    Args:
        net: the network.
        run: calls it.
        layers: names of modules whose outputs ``[B, C, ...]`` are followed, too; one that was pruned away is left out.

    Returns:
        The logits; and by ``""`` the features ``[B, C]`` that the classifier read, by its name the output of each
        layer as ``[B * P, C]``, its mean at no more than 4 x 4 positions.

    Raises:
        ConfigurationError: a layer returns something else.
    """
    seen: dict[str, Tensor] = {}

    def read(_: nn.Module, args: tuple[Any, ...]) -> None:
        seen[""] = args[0].flatten(1)

    def written(name: str, _: nn.Module, __: Any, out: Any) -> None:
        if not isinstance(out, Tensor) or out.dim() not in (2, 4):
            raise ConfigurationError(f"feature_layers: {name!r} returns no tensor [B, C] or [B, C, H, W]")
        if out.dim() == 4:
            height, width = (min(_POSITIONS, side) for side in out.shape[2:])
            out = F.adaptive_avg_pool2d(out, (height, width)).permute(0, 2, 3, 1).flatten(0, 2)
        seen[name] = out

    handles = [net.get_submodule(feature_reader(net)).register_forward_pre_hook(read)]
    there = dict(net.named_modules())
    handles += [there[n].register_forward_hook(partial(written, n)) for n in layers if n in there]
    try:
        return run(), seen
    finally:
        for handle in handles:
            handle.remove()


class FeatureDistances:
    """The distance of the features that the classifier reads, and half that of every further layer's output."""

    def __init__(self) -> None:
        self._of: dict[str, FeatureDistance] = {}

    def state_dict(self) -> dict[str, Any]:
        """What was seen, for a checkpoint; on several devices that of this one."""
        return {name: distance.state_dict() for name, distance in self._of.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        for name, seen in state.items():
            self._of.setdefault(name, FeatureDistance()).load_state_dict(seen)

    def __call__(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Tensor:
        """Distance, a scalar.

        Args:
            student: of `with_features`, with their graph.
            teacher: the same of the teacher; what the student has lost is left out.
        """
        parts = [
            (_LAYER if name else 1.0) * self._of.setdefault(name, FeatureDistance())(features, teacher[name])
            for name, features in student.items()
        ]
        return torch.stack(parts).sum()


class FeatureDistance:
    """How much of the teacher's features no linear function of the student's explains, as part of their variance.

    The function is a ridge regression on the batches before (running sums of the last fifty or so), so that nothing
    has to be trained and the student's features may have any number of channels, fewer after each pruning step. Hints
    of A. Romero et al. (arXiv 1412.6550) with a regressor in closed form. It begins as soon as twice as many samples
    were seen as the student has features, and again after each change of their number.
    """

    def __init__(self) -> None:
        self._restart()

    def _restart(self) -> None:
        self._batches, self._samples = 0, 0
        self._gram = self._cross = self._square = torch.zeros(())

    def state_dict(self) -> dict[str, Any]:
        """What was seen, for a checkpoint; on several devices that of this one."""
        return {name: getattr(self, name) for name in _STATE}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        for name in _STATE:
            setattr(self, name, state[name])

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Distance, a scalar; 0 until enough samples were seen.

        Args:
            student: features ``[B, C]``, with their graph.
            teacher: features ``[B, D]`` of the same samples.
        """
        with torch.autocast(student.device.type, enabled=False):
            s, t = (
                torch.cat([x.float(), x.new_ones(len(x), 1, dtype=torch.float32)], 1)
                for x in (student, teacher.detach())
            )
            if self._gram.shape != (s.shape[1], s.shape[1]):
                self._restart()
            self._gram, self._cross, self._square = (x.to(s) for x in (self._gram, self._cross, self._square))
            distance = s.new_zeros(())
            if self._samples >= 2 * s.shape[1]:
                means = self._square[-1] / self._square[-1, -1]
                variance = (self._square.diagonal() - means.square())[:-1].mean().clamp_min(1e-12)
                distance = (s @ self._map() - t[:, :-1]).square().mean() / variance
            self._see(s.detach(), t.detach())
        return distance

    def _map(self) -> Tensor:
        """``[C + 1, D]``; the constant is not shrunk."""
        strength = _RIDGE * self._gram.diagonal()[:-1].mean().clamp_min(1e-12)
        ridge = torch.diag(torch.cat([strength.expand(len(self._gram) - 1), strength.new_zeros(1)]))
        return torch.linalg.solve(self._gram + ridge, self._cross)

    def _see(self, s: Tensor, t: Tensor) -> None:
        new = (s.mT @ s / len(s), s.mT @ t[:, :-1] / len(s), t.mT @ t / len(s))
        if not all(bool(x.isfinite().all()) for x in new):
            return  # of a step that diverged and will be taken back: it would stay in the sums
        self._batches, self._samples = self._batches + 1, self._samples + len(s)
        share = 1.0 / min(self._batches, _WINDOW)
        old = (self._gram, self._cross, self._square)
        self._gram, self._cross, self._square = (o + share * (n - o) for o, n in zip(old, new, strict=True))
