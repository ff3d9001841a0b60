"""Where two files of one network part, tensor by tensor, and which layer is at fault."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from hqp_lightning.board.arrays import Arrays
from hqp_lightning.core import agreement
from hqp_lightning.core.agreement import Agreement
from hqp_lightning.export.artifact import load_model
from hqp_lightning.export.faults import LOOKED, overflows, reading_order, words
from hqp_lightning.export.matching import MADE, Pair, Quantizer, cut, match, sources, with_outputs
from hqp_lightning.export.running import Runner, Values
from hqp_lightning.records import ComparedTensor

__all__ = ["compare_files", "compare_models"]

_PART = 2  # samples whose tensors are in memory at a time, of both files
_RESCALED = 0.1  # a tensor may be divided by factors and shifted if that leaves so much of its noise
_SATURATED = 0.05

_log = logging.getLogger(__name__)


@dataclass
class _Counted:
    """Of one tensor: agreement of both files running, and of the node alone, given plain or rescaled tensors."""

    running: Agreement = field(default_factory=agreement.init)
    alone: dict[tuple[bool, bool], Agreement] = field(default_factory=dict)  # (given, itself) rescaled
    quantized: dict[bool, Agreement] = field(default_factory=dict)
    clipped: dict[bool, np.ndarray] = field(default_factory=dict)
    low: np.ndarray | float = np.inf
    high: np.ndarray | float = -np.inf
    order: np.ndarray | None = None


def compare_models(
    a: onnx.ModelProto, b: onnx.ModelProto, images: np.ndarray, threads: int | None = None
) -> tuple[list[ComparedTensor], str]:
    """Run both files, and every node of the second alone on the first's tensors.

    A tensor that was divided by factors and shifted on purpose, so that its readers undo it (see
    `hqp_lightning.core.equalization`), is compared with what it should be then.

    Args:
        a: the file that is right, usually float.
        b: the file in question, float or Q/DQ.
        images: ``(n, *input_shape)``, prepared.
        threads: onnxruntime's.

    Returns:
        The tensors that both have, in the second file's order, and how they were matched: by ``"name"`` or
        ``"position"``.

    Raises:
        ExportError: the files have nothing in common.
    """
    pairs, how = match(a, b)
    compared = _Comparison(a, b, pairs, images, threads)
    return compared.rows(), how


def compare_files(
    float_path: str | os.PathLike[str],
    int8_path: str | os.PathLike[str],
    images: Arrays,
    threads: int | None = None,
) -> tuple[ComparedTensor, ...]:
    """`compare_models` of a float file and its INT8 form; nothing for networks of several inputs."""
    if not isinstance(images, np.ndarray):
        return ()
    try:
        rows, _ = compare_models(load_model(float_path), load_model(int8_path), images, threads)
    except Exception as error:  # a report without this table is better than none
        _log.info("hqp: %s", error)
        return ()
    return tuple(rows)


class _Comparison:
    def __init__(
        self, a: onnx.ModelProto, b: onnx.ModelProto, pairs: Sequence[Pair], images: np.ndarray, threads: int | None
    ) -> None:
        self.a, self.b, self.images, self.threads = a, b, images, threads
        entry, others = pairs[0], list(pairs[1:])
        run_a = Runner(with_outputs(a, [p.a for p in others]), threads)
        first = run_a({entry.a: images[:1]})
        run_b = Runner(with_outputs(b, [p.b for p in others]), threads)
        seen = run_b({entry.b: images[:1]})
        others = [p for p in others if first[p.a].shape == seen[p.b].shape]  # matched by chance else
        self.entry, self.pairs, self.run_a, self.run_b = entry, [entry, *others], run_a, run_b
        self.counted = {p.b: _Counted() for p in self.pairs}

    def rows(self) -> list[ComparedTensor]:
        for a, b in self._parts(self.run_b):
            for p in self.pairs[1:]:
                c = self.counted[p.b]
                c.running = agreement.update(c.running, a[p.a], b[p.b])
        rescalable = {p.b for p in self.pairs[1:] if self._fits(self.counted[p.b].running)}
        own = [p.quantizer.output for p in self.pairs if p.quantizer and p.quantizer.source == p.b]
        others = {n for p in self.pairs if p.quantizer and p.quantizer.source != p.b for n in _ends(p.quantizer)}
        runner = Runner(cut(self.b, [*(p.b for p in self.pairs), *own], sorted(others)), self.threads)
        for rescaled in (False, True) if rescalable else (False,):
            self._alone(runner, rescalable, rescaled)
        chosen = self._chosen(rescalable)
        over = overflows(self.b)
        return [self._row(p, chosen, over) for p in self.pairs]

    def _parts(self, run_b: Runner | None) -> Iterator[tuple[Values, Values]]:
        for start in range(0, len(self.images), _PART):
            part = self.images[start : start + _PART]
            a = {**self.run_a({self.entry.a: part}), self.entry.a: part.astype(np.float32)}
            yield a, run_b({self.entry.b: part}) if run_b else {}

    def _fits(self, sums: Agreement) -> bool:
        return float(sums.unexplained.sum()) < _RESCALED * float(sums.error.sum())

    def _alone(self, runner: Runner, rescalable: set[str], rescaled: bool) -> None:
        """Give every node the first file's tensors, those of ``rescalable`` as they are or rescaled."""
        for a, _ in self._parts(None):
            plain = {p.b: a[p.a] for p in self.pairs}
            other = {n: _rescale(v, self.counted[n].running) if n in rescalable else v for n, v in plain.items()}
            given = other if rescaled else plain
            behind = {p.quantizer.output: given[p.b] for p in self.pairs if p.quantizer and p.quantizer.source == p.b}
            made = runner({**given, **behind})
            for p in self.pairs:
                c = self.counted[p.b]
                if p is not self.entry:
                    out = made[f"{p.b}{MADE}"]
                    for itself, expected in ((False, plain), (True, other)):
                        key = rescaled, itself
                        c.alone[key] = agreement.update(c.alone.get(key, agreement.init()), expected[p.b], out)
                    c.order = agreement.order(plain[p.b], out) if c.order is None and not rescaled else c.order
                self._quantizer(p, given[p.b], made, rescaled)

    def _quantizer(self, p: Pair, given: np.ndarray, made: Values, rescaled: bool) -> None:
        c, q = self.counted[p.b], p.quantizer
        if q is not None and q.source != p.b:
            given, out = made[q.source], made[q.output]
        else:
            out = given if q is None else made[f"{q.output}{MADE}"]
        others = (0, *range(2, out.ndim))
        if q is not None:
            c.quantized[rescaled] = agreement.update(c.quantized.get(rescaled, agreement.init()), given, out)
            beyond = ((given < q.low) | (given > q.high)).sum(axis=others)
            c.clipped[rescaled] = c.clipped.get(rescaled, 0) + beyond
        if not rescaled:
            seen = made.get(f"{p.b}{MADE}", given) if q is None else out
            c.low, c.high = np.minimum(c.low, seen.min(axis=others)), np.maximum(c.high, seen.max(axis=others))

    def _chosen(self, rescalable: set[str]) -> dict[str, tuple[bool, bool]]:
        """Which tensors are rescaled on purpose: their readers make the right thing of the rescaled tensor alone."""
        places = {p.b: p.b for p in self.pairs}
        places |= {p.quantizer.output: p.b for p in self.pairs if p.quantizer and p.quantizer.source == p.b}
        read = sources(self.b, places)
        readers: dict[str, list[str]] = {}
        for p in self.pairs[1:]:
            for name in read.get(p.b, ()):
                readers.setdefault(name, []).append(p.b)
        on_purpose: set[str] = set()
        for p in reversed(self.pairs[1:]):
            if p.b in rescalable:
                found = [
                    [self.counted[r].alone[given, r in on_purpose].noise for r in readers.get(p.b, ())]
                    for given in (False, True)
                ]
                if found[0] and sum(found[1]) < sum(found[0]):
                    on_purpose.add(p.b)
        return {p.b: (bool(read.get(p.b, set()) & on_purpose), p.b in on_purpose) for p in self.pairs}

    def _row(self, p: Pair, chosen: Mapping[str, tuple[bool, bool]], over: Mapping[str, int]) -> ComparedTensor:
        c = self.counted[p.b]
        key = chosen[p.b]
        itself = key[1]
        alone = c.alone.get(key)
        quantized, clipped = c.quantized.get(itself), c.clipped.get(itself)
        count = quantized.count if quantized is not None else 1
        sums = c.running if p is not self.entry else quantized
        constant = np.ravel(c.high) <= np.ravel(c.low)
        varies = np.ones_like(constant) if sums is None else sums.aa - sums.a**2 / sums.count > 1e-9 * sums.aa
        looked = alone is not None and alone.noise > LOOKED
        reading = reading_order(self.a, self.b, p.a, p.b) if looked else None
        return ComparedTensor(
            tensor=p.b,
            layer=p.layer,
            operator=p.operator,
            running=self._running(c.running, itself),
            alone=0.0 if alone is None else alone.noise,
            quantizing=None if quantized is None else quantized.noise,
            clipped=None if clipped is None else float(clipped.sum() / (count * len(clipped))),
            saturated=None if clipped is None else int((clipped > _SATURATED * count).sum()),
            dead=int((constant & varies).sum()),
            channels=len(constant),
            fault="" if alone is None else words(alone, c.order, quantized, over.get(p.layer, 0), reading),
        )

    def _running(self, sums: Agreement, rescaled: bool) -> float:
        if not sums.count:
            return 0.0  # the input
        return float(sums.unexplained.sum() / max(sums.bb.sum(), 1e-300)) if rescaled else sums.noise


def _ends(quantizer: Quantizer) -> tuple[str, str]:
    return quantizer.source, quantizer.output


def _rescale(values: np.ndarray, sums: Agreement) -> np.ndarray:
    shape = (1, -1, *[1] * (values.ndim - 2))
    return (values * sums.factors.reshape(shape) + sums.shifts.reshape(shape)).astype(np.float32)
