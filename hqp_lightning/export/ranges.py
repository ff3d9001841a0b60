"""The ranges of a float model's activations, over calibration data."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper

from hqp_lightning.board.arrays import Arrays, bundle, each, joined
from hqp_lightning.core import equalization, histogram
from hqp_lightning.core.calibration import Range, compute_range
from hqp_lightning.core.equalization import offset
from hqp_lightning.core.rounding import channel_means
from hqp_lightning.errors import ExportError
from hqp_lightning.export.artifact import describe, feed, load_model
from hqp_lightning.export.balancing import balanceable, rescued
from hqp_lightning.export.choosing import least_noise, rescaled
from hqp_lightning.export.equalize import centrable, correctable, equalizable, shiftable
from hqp_lightning.export.logits import centred
from hqp_lightning.export.placement import placements
from hqp_lightning.export.sessions import return_memory
from hqp_lightning.records import OnnxArtifact

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["DEFAULT_METHOD", "collect_ranges"]

# Of the four the closest to float over both models of the table in docs/int8.md.
DEFAULT_METHOD = "mse"
"""How `collect_ranges` chooses a range; `hqp_lightning.core.calibration.METHODS` are the others."""

_JUDGED = 16  # samples on which ranges with and without factors are compared
_OFFSET = 0.25
_LOOKED = 4  # passes over which the ends of channels are known that few networks need
_MEANS = 4  # every so manieth sample tells the means of channels
_ALL, _LATER = 128, 4  # samples that are all counted; of what comes then one of four is enough for a shape
_PASS = 8  # samples whose activations are in memory at a time, however large the batches are


def collect_ranges(
    onnx_path: str | os.PathLike[str],
    batches: Iterable[Arrays],
    *,
    method: str = DEFAULT_METHOD,
    percentile: float = 99.99,
    activation_type: str = "int8",
    threads: int | None = None,
    exclude: Sequence[str] = (),
    quantize_hardswish: bool = False,
    quantize_se: bool = False,
) -> dict[str, Range]:
    """Run the float model over calibration batches and return a range for every quantized tensor.

    The activations of a few samples at a time are in memory, beside one histogram a tensor.

    Args:
        onnx_path: a float model.
        batches: arrays ``(batch, *shape)`` as the model takes them, preprocessed; of several inputs, tuples of them.
        method: see `hqp_lightning.core.calibration.compute_range`.
        percentile: for ``method="percentile"``.
        activation_type: ``"int8"``, which every runtime reads, or ``"uint8"``, which is finer, but nothing that
            TensorRT reads.
        threads: onnxruntime's; None: its own default.
        exclude: nodes that will stay in float, such as `unprofitable` ones: they have ranges, too, but where several
            ranges are compared by the noise of the whole file, it is that of the file without them.
        quantize_hardswish: see `hqp_lightning.export.placements`.
        quantize_se: see there.

    Returns:
        Tensor name to range, as `quantize` takes it.

    Raises:
        ExportError: no batches, or a batch of the wrong shape.
        ConfigurationError: unknown method or type, or an activation is NaN or infinite.
    """
    artifact, model = describe(onnx_path), load_model(onnx_path)
    placed = placements(onnx_path, quantize_hardswish=quantize_hardswish, quantize_se=quantize_se)
    names = list(dict.fromkeys(p.tensor for p in placed))
    taken, given_back = {t.name for t in artifact.inputs}, {t.name for t in artifact.outputs}
    inner = [name for name in names if name not in taken]
    histograms = {name: histogram.init() for name in names}
    channels = {name: equalization.init(count) for name, count in equalizable(model, placed).items()}
    shifted = shiftable(model, placed) if activation_type == "int8" else {}
    ends = {name: (np.full(count, np.inf), np.full(count, -np.inf)) for name, count in shifted.items()}
    outputs = inner + [t.name for t in artifact.outputs if t.name not in inner]
    judged: list[Arrays] = []
    answers: list[Arrays] = []
    others = [name for name in balanceable(model, placed) if name not in channels]
    seen: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {name: [] for name in others}
    means: dict[str, list[np.ndarray]] = {name: [] for name in correctable(model, placed)}

    def count(values: dict[str, np.ndarray], every: int) -> None:
        for name in names:  # popped, so that the activations are freed as they are counted
            tensor = values.pop(name)
            histograms[name] = histogram.update(histograms[name], tensor, every)
            if name in channels:
                channels[name] = equalization.update(channels[name], tensor)
            axes = (0, *range(2, tensor.ndim))
            if name in ends:
                low, high = ends[name]
                ends[name] = np.minimum(low, tensor.min(axes)), np.maximum(high, tensor.max(axes))
            if name in seen and len(seen[name]) < _LOOKED:
                seen[name].append((tensor.min(axes), tensor.max(axes)))
            if name in means:
                means[name].append(channel_means(tensor[::_MEANS]))

    asked_for = [name for name in inner if name not in given_back]
    model.graph.output.extend(helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in asked_for)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # a mapped file stays on Windows
        written = os.path.join(folder, "model.onnx")
        onnx.save(model, written, save_as_external_data=True)
        del model  # its weights would be in memory beside the session's; it is read again below
        return_memory()
        session = _session(written, threads)
        return_memory()
    with ThreadPoolExecutor(1) as beside:  # one part is counted while the model runs on the next
        counting, passed = None, 0
        for fed in _parts(batches, artifact):
            judging = passed < _JUDGED
            passed += len(next(iter(fed.values())))
            asked = outputs if judging else inner
            values = dict(zip(asked, session.run(asked, fed), strict=True)) if asked else {}
            if judging:
                judged.append(bundle(list(fed.values())))
                answers.append(bundle([values[t.name].copy() for t in artifact.outputs]))  # else they hold the session
            values |= fed
            if counting is not None:
                counting.result()
            counting = beside.submit(count, values, 1 if passed <= _ALL else _LATER)
        if counting is None:
            raise ExportError(
                "no calibration batches: pass an iterable that yields at least one (is it used up already?)"
            )
        counting.result()
    del session
    return_memory()
    plain = {
        name: compute_range(hist, method, percentile=percentile, activation_type=activation_type)
        for name, hist in histograms.items()
    }
    given: dict[str, Any] = {"activation_type": activation_type, "method": method, "percentile": percentile}
    far = [n for n, h in channels.items() if offset(h) > _OFFSET]
    if far:
        model = load_model(onnx_path)
        far = [n for n in far if centrable(model, placed, n)]
        del model
    kinds: list[tuple[float, Sequence[str]]] = [(1.0, ()), (0.5, ())]
    if far and activation_type == "int8":
        kinds.insert(0, (1.0, far))
    candidates = [
        {n: replace(r, means=tuple(np.mean(means[n], 0).tolist())) if n in means else r for n, r in ranges.items()}
        for ranges in (*(rescaled(plain, channels, histograms, ends, *kind, **given) for kind in kinds), plain)
    ]
    ships = [p for p in placed if p.node not in set(exclude)]
    sample, reference = joined(judged), centred(each(joined(answers)))
    chosen = least_noise(onnx_path, ships, candidates, sample, reference, threads)
    whole = {n: (np.min([e[0] for e in v], 0), np.max([e[1] for e in v], 0)) for n, v in seen.items()}
    return rescued(onnx_path, ships, chosen, candidates, whole, sample, reference, threads)


def _parts(batches: Iterable[Arrays], artifact: OnnxArtifact) -> Iterator[dict[str, np.ndarray]]:
    """Eight samples at a time over the ends of batches: ranges depend on samples and order, not on a loader's size."""
    left: dict[str, np.ndarray] = {}
    for batch in batches:
        fed, start = feed(artifact.inputs, batch), 0
        if left:
            start = _PASS - len(next(iter(left.values())))
            left = {n: np.concatenate([left[n], x[:start]]) for n, x in fed.items()}
            if len(next(iter(left.values()))) < _PASS:
                continue
            yield left
        size = len(next(iter(fed.values())))
        last = size - (size - start) % _PASS
        for at in range(start, last, _PASS):
            yield {n: x[at : at + _PASS] for n, x in fed.items()}
        left = {n: x[last:].copy() for n, x in fed.items()} if last < size else {}  # a loader may fill its array again
    if left:
        yield left


def _session(path: str, threads: int | None) -> onnxruntime.InferenceSession:
    """Of a file beside its weights, which onnxruntime maps, so that its copy of them is the only one."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    # Its threads would go on spinning between two operators, on the cores that count the activations.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
