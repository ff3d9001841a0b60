"""What an engine's logits are held to: labels, or the logits of the float network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from hqp_lightning.board.arrays import Arrays, each
from hqp_lightning.core.verdict import check_budget, judge
from hqp_lightning.errors import ConfigurationError, ExportError
from hqp_lightning.export.engines import Engine
from hqp_lightning.export.logits import noise
from hqp_lightning.records import Budget, Verdict
from hqp_lightning.standalone.pictures import Pictures

__all__ = ["Scoring", "budget_of", "scoring_of"]

MAX_DROP, MAX_NOISE = 0.01, 15.0
"""Where nothing is said: of top-1 with labels; in dB without them."""


@dataclass(frozen=True)
class Scoring:
    """How engines are scored on some pictures, and the budget.

    Attributes:
        budget: of top-1 (``"max"``), or of the noise of the logits (``"min"``), squared error over signal.
        pictures: what is scored.
        reference: float64 ``(n, classes)``, the float network's logits.
    """

    budget: Budget
    pictures: Pictures
    reference: np.ndarray

    @property
    def labelled(self) -> bool:
        """Whether scores are accuracies."""
        return self.budget.mode == "max"

    @property
    def baseline(self) -> float:
        """The float network's score."""
        return self._score(self.reference)

    def measure(self, engine: Engine) -> tuple[float, float]:
        """An engine's score, and for how many of the pictures it gives the float network's class."""
        found = logits_of(engine.run, self.pictures)
        return self._score(found), float((_classes(found) == _classes(self.reference)).mean())

    def judge(self, score: float) -> Verdict:
        """What a score means."""
        return judge(self.baseline, score, self.budget)

    def _score(self, logits: np.ndarray) -> float:
        if self.labelled:
            return float((_classes(logits) == self.pictures.labels).mean())
        return noise((_centred(logits),), (_centred(self.reference),))


def budget_of(pictures: Pictures, max_drop: float | None, max_noise: float | None) -> Budget:
    """What the INT8 network is held to.

    Args:
        pictures: what is scored.
        max_drop: of top-1, a fraction; needs labels.
        max_noise: the least SQNR of the logits, dB. Neither: `MAX_DROP` with labels, else `MAX_NOISE`.

    Raises:
        ConfigurationError: a number out of range, or no labels to ``max_drop``.
    """
    if max_drop is not None and pictures.labels is None:
        raise ConfigurationError(
            "--max-drop needs labels: a folder with a folder for each class, or labels in the .npz; without them say "
            "--max-noise"
        )
    if pictures.labels is not None and max_noise is None:
        return check_budget(Budget(MAX_DROP if max_drop is None else max_drop, "top-1"))
    decibels = MAX_NOISE if max_noise is None else max_noise
    if not 0 < decibels <= 100:
        raise ConfigurationError(f"--max-noise {decibels}: expected the least SQNR of the logits in dB, such as 15")
    return Budget(10 ** (-decibels / 10), "noise of the logits", "min")


def scoring_of(float_engine: Engine, pictures: Pictures, max_drop: float | None, max_noise: float | None) -> Scoring:
    """Score the float network, and hold the INT8 one to its `budget_of`.

    Raises:
        ConfigurationError: as `budget_of`.
        ExportError: labels that the network has no class for.
    """
    reference = logits_of(float_engine.run, pictures)
    if pictures.labels is not None and max_noise is None:
        _check_labels(pictures, reference.shape[1])
    return Scoring(budget_of(pictures, max_drop, max_noise), pictures, reference)


def logits_of(run: Callable[[Arrays], Arrays], pictures: Pictures) -> np.ndarray:
    """All of them, float64 ``(n, classes)``."""

    def parts() -> Iterator[np.ndarray]:
        for batch in pictures.batches():
            yield each(run(batch))[0].reshape(len(batch), -1).astype(np.float64)

    return np.concatenate(list(parts()))


def sqnr(ratio: float) -> str:
    """Noise over signal in words.

    Examples:
        >>> sqnr(0.01), sqnr(0.0)
        ('20.00 dB', 'inf dB')
    """
    return f"{-10 * math.log10(ratio) if ratio > 0 else math.inf:.2f} dB"


def _centred(logits: np.ndarray) -> np.ndarray:
    """A shift of all logits of a sample changes no class."""
    return logits - logits.mean(axis=1, keepdims=True) if logits.shape[1] > 1 else logits


def _classes(logits: np.ndarray) -> np.ndarray:
    return logits.argmax(axis=1) if logits.shape[1] > 1 else (logits[:, 0] > 0).astype(np.int64)


def _check_labels(pictures: Pictures, classes: int) -> None:
    labels = pictures.labels
    known = max(classes, 2)
    if pictures.classes is not None and len(pictures.classes) != known:
        raise ExportError(
            f"there are {len(pictures.classes)} folders of pictures, and the network has {classes} classes: give the "
            "--manifest that names them, or say --max-noise, which needs no labels"
        )
    if labels is not None and (labels.min() < 0 or labels.max() >= known):
        raise ExportError(f"labels go from {labels.min()} to {labels.max()}, the network has {classes} classes")
