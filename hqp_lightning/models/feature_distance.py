"""How far a pruned network's features are from the dense one's, whatever number of channels it has left."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hqp_lightning.errors import ConfigurationError

__all__ = ["FeatureDistance", "FeatureDistances"]

_WINDOW = 50  # batches over which the regression looks back
_STATE = ("_batches", "_samples", "_gram", "_cross", "_square")
_RIDGE = 1e-2  # of the mean square of a feature
_LAYER = 0.5  # weight of a layer's distance beside that of the classifier's features


def _own(seen: Tensor) -> Tensor:
    return seen


class FeatureDistances:
    """The distance of the features that the classifier reads, and half that of every further layer's output.

    Args:
        total: a tensor -> its sum over all devices: each has the regression of what all have seen.
    """

    def __init__(self, total: Callable[[Tensor], Tensor] = _own) -> None:
        self._total, self._of = total, dict[str, FeatureDistance]()

    def state_dict(self) -> dict[str, Any]:
        """What was seen, for a checkpoint."""
        return {name: distance.state_dict() for name, distance in self._of.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        for name, seen in state.items():
            self._of.setdefault(name, FeatureDistance(self._total)).load_state_dict(seen)

    def __call__(self, student: Mapping[str, Tensor], *teachers: Mapping[str, Tensor]) -> Tensor:
        """Distance, a scalar: the mean over the teachers that have such features.

        Args:
            student: of `hqp_lightning.models.distillation.with_features`, with their graph.
            teachers: the same of each teacher; what the student has lost is left out.
        """
        parts = []
        for name, features in student.items():
            having = [(k, t[name]) for k, t in enumerate(teachers) if name in t]
            for k, wanted in having:
                if len(features) != len(wanted):
                    raise ConfigurationError(f"feature_layers: {name!r} of a teacher is of another resolution here")
                distance = self._of.setdefault(f"{name}@{k}" if k else name, FeatureDistance(self._total))
                parts.append((_LAYER if name else 1.0) / len(having) * distance(features, wanted))
        return torch.stack(parts).sum()


class FeatureDistance:
    """How much of the teacher's features no linear function of the student's explains, as part of their variance.

    The function is a ridge regression on the batches before (running sums of the last fifty or so), so that nothing
    has to be trained and the student's features may have any number of channels, fewer after each pruning step. Hints
    of A. Romero et al. (arXiv 1412.6550) with a regressor in closed form. It begins as soon as twice as many samples
    were seen as the student has features, and again after each change of their number.

    Args:
        total: of `FeatureDistances`.
    """

    def __init__(self, total: Callable[[Tensor], Tensor] = _own) -> None:
        self._total = total
        self._restart()

    def _restart(self) -> None:
        self._batches, self._samples = 0, 0
        self._gram = self._cross = self._square = torch.zeros(())

    def state_dict(self) -> dict[str, Any]:
        """What was seen, for a checkpoint."""
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
            if (self._gram.shape[-1:], self._square.shape[-1:]) != (s.shape[1:], t.shape[1:]):
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
        number, *products = (self._total(x) for x in (s.new_tensor(len(s)), s.mT @ s, s.mT @ t[:, :-1], t.mT @ t))
        new = [x / number for x in products]
        if not all(bool(x.isfinite().all()) for x in new):
            return  # of a step that diverged and will be taken back: it would stay in the sums
        self._batches, self._samples = self._batches + 1, self._samples + int(number)
        share = 1.0 / min(self._batches, _WINDOW)
        old = (self._gram, self._cross, self._square)
        self._gram, self._cross, self._square = (o + share * (n - o) for o, n in zip(old, new, strict=True))
