"""The sections of the page that show data: tables, bars, the trajectory. Each is HTML, escaped, or empty."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from hqp_lightning.records import EngineReport, GroupSensitivity, LayerChannels, QuantizedLayer, Report
from hqp_lightning.report.assemble import worsening
from hqp_lightning.report.gone import lost_line
from hqp_lightning.report.rows import conditions, model_rows
from hqp_lightning.report.sentences import fastest, outcome_words, steps_summary, unit_counts
from hqp_lightning.report.units import change, count, decibel, factor, fraction, latency, ms, node, size

__all__ = ["channels", "latencies", "models", "quantization", "sensitivity", "steps", "trajectory"]

NOISIEST = 20  # layers on the page; report.json has them all

# shapes as in the trajectory, so that nothing hangs on colour
MARKS = {
    "kept": "\N{BLACK CIRCLE}",
    "rolled_back": "\N{MULTIPLICATION SIGN}",
    "refused": "\N{WHITE UP-POINTING TRIANGLE}",
}


def table(headers: Iterable[str], rows: Iterable[str], classes: dict[str, str] | None = None) -> str:
    """A table that scrolls by itself where the page is narrow; ``rows`` are HTML, ``headers`` text."""
    heads = "".join(f'<th class="{(classes or {}).get(h, "number")}">{escape(h)}</th>' for h in headers)
    element = f"<table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{''.join(rows)}</tbody></table>"
    return f'<div class="scroll">{element}</div>'


def models(report: Report) -> str:
    """The stages of the model as a table."""
    rows = model_rows(report)
    held, control = any(r.figures.holdout_accuracy is not None for r in rows), report.control is not None
    headers = ["model", report.budget.monitor, "drop", *(["held-out", "held-out drop"] if held else [])]
    headers += ["drop vs control"] if control else []
    headers += ["MACs", "params", "ONNX size", "latency, ms (p95)", "speedup"]

    lines = []
    for r in rows:
        f = r.figures
        cells = [r.name, fraction(f.accuracy), fraction(r.drop)]
        cells += [fraction(f.holdout_accuracy), fraction(r.holdout_drop)] if held else []
        cells += [fraction(r.control_drop)] if control else []
        cells += [count(f.macs), count(f.params), size(f.file_bytes), latency(r.latency_ms), factor(r.speedup)]
        main = ' class="main"' if r.name == "INT8" else ""
        lines.append(f"<tr{main}>{''.join(f'<td>{escape(c)}</td>' for c in cells)}</tr>\n")
    return table(headers, lines)


def trajectory(report: Report) -> str:
    """The score against MACs, drawn once for a screen and once for a phone."""
    if not report.steps:
        return "<p>No pruning step was made.</p>"
    from hqp_lightning.report.plots import edge_score, trajectory_svg  # matplotlib, where something is drawn

    drawings = trajectory_svg(report, 7.6, 3.9, "wide") + trajectory_svg(report, 3.9, 3.6, "narrow")
    scores = [s.accuracy for s in report.steps if s.accuracy is not None]
    far = any(worsening(edge_score(report), score, report.budget.mode) > 0 for score in scores)
    caption = "<figcaption>A score far beyond the budget stands at the edge, in brackets.</figcaption>" if far else ""
    return f'<p class="small">{escape(steps_summary(report))}.</p>\n<figure>\n{drawings}{caption}</figure>'


def channels(report: Report) -> str:
    """Channels of every layer as bars: the dense width behind, the final one in front."""
    if not report.channels:
        return ""
    most = max(max(c.before, c.after) for c in report.channels) or 1

    def bar(c: LayerChannels) -> str:
        kind = "same" if c.before == c.after else "pruned"
        return (
            f'<li class="{kind}"><span>{escape(c.layer)}</span><span class="bar">'
            f'<i class="before" style="width:{100 * c.before / most:.2f}%"></i>'
            f'<i class="after" style="width:{100 * c.after / most:.2f}%"></i></span>'
            f'<span class="value">{c.before} &rarr; {c.after}</span></li>\n'
        )

    bars = "".join(map(bar, report.channels))
    key = '<p class="small"><span class="key before"></span> dense <span class="key after"></span> final</p>\n'
    return f'{key}<ul class="bars channels">\n{bars}</ul>'


def sensitivity(report: Report) -> str:
    """What every coupled group of the dense model is worth: all of its channels behind, the cheaper half in front."""
    most = max((g.whole for g in report.sensitivity), default=0.0)
    if not most:
        return ""

    def bar(g: GroupSensitivity) -> str:
        return (
            f'<li><span>{escape(g.group)}</span><span class="bar">'
            f'<i class="before" style="width:{100 * g.whole / most:.2f}%"></i>'
            f'<i class="after" style="width:{100 * g.cheaper_half / most:.2f}%"></i></span>'
            f'<span class="value">{g.cheaper_half:.2g} of {g.whole:.2g}</span></li>\n'
        )

    lead = "Predicted rise of the dense model's loss, in nats: channels of a coupled group, named by one of its layers."
    key = '<span class="key before"></span> all <span class="key after"></span> the cheaper half'
    bars = "".join(map(bar, report.sensitivity))
    return f'<p class="small">{lead}</p>\n<p class="small">{key}</p>\n<ul class="bars noises">\n{bars}</ul>'


def latencies(report: Report) -> str:
    """Every engine as a bar, grouped by the conditions it was timed under."""
    groups: dict[str, list[EngineReport]] = {}
    for engine in report.engines:
        groups.setdefault(conditions(engine), []).append(engine)
    if not groups:
        return ""
    longest = max(max(e.latency_ms.p95, e.latency_ms.median) for e in report.engines)

    def bar(e: EngineReport) -> str:
        kind = "int8" if e.precision.startswith("int8") else "dense" if e.model == "dense" else "pruned"
        median, p95 = (100 * value / longest for value in (e.latency_ms.median, e.latency_ms.p95))
        rate = "" if e.images_per_s is None else f"<br>{count(e.images_per_s)} images/s"
        whisker = f'<i class="whisker" style="left:{median:.2f}%;width:{max(p95 - median, 0):.2f}%"></i>'
        return (
            f'<li><span>{escape(e.model)} {escape(e.precision)}</span><span class="bar">'
            f'<i class="{kind}" style="width:{median:.2f}%"></i>{whisker}</span>'
            f'<span class="value">{ms(e.latency_ms.median)} ms (p95 {ms(e.latency_ms.p95)}){rate}</span></li>\n'
        )

    best = f"<p><b>{escape(text)}</b></p>\n" if (text := fastest(report)) else ""
    return f'{best}<p class="small">Bars end at the median, whiskers at the 95th percentile.</p>\n' + "".join(
        f'<h3>{escape(name)}</h3>\n<ul class="bars latencies">\n{"".join(map(bar, engines))}</ul>\n'
        for name, engines in groups.items()
    )


def quantization(layers: Sequence[QuantizedLayer]) -> str:
    """The noisiest layers as bars, each with its part of the sum over all layers; those left in float are marked."""
    total = sum(q.noise for q in layers)
    if not total:
        return ""
    shown = sorted(layers, key=lambda q: q.noise, reverse=True)[:NOISIEST]

    def bar(q: QuantizedLayer) -> str:
        return (
            f"<li><span>{escape(node(q.layer))}{' (float)' if q.precision == 'float' else ''}</span>"
            f'<span class="bar"><i class="{"float" if q.precision == "float" else "noise"}" '
            f'style="width:{100 * q.noise / shown[0].noise:.2f}%"></i></span>'
            f'<span class="value">{decibel(q.noise)} ({100 * q.noise / total:.0f} %)'
            f"{'' if q.float_cost_ms is None else f', in float {q.float_cost_ms:+.3f} ms'}</span></li>\n"
        )

    lead = f"Noise of the logits with that layer alone quantized, the {len(shown)} noisiest of {len(layers)}."
    return f'<p class="small">{lead}</p>\n<ul class="bars noises">\n{"".join(map(bar, shown))}</ul>'


def steps(report: Report) -> str:
    """Every pruning step, its outcome and the reason."""
    headers = ["step", "outcome", "epoch", "MACs", "change", "params", report.budget.monitor, "drop"]
    headers += ["channels removed", "loss predicted", "step size", "surgery, s"]
    lines = []
    for s in report.steps:
        cells = [str(s.epoch), count(s.macs), change(1 - s.macs / report.baseline.macs), count(s.params)]
        cells += [
            fraction(s.accuracy),
            fraction(s.accuracy_drop),
            ", ".join(filter(None, (str(s.channels_removed), unit_counts(s.units_removed)))),
        ]
        cells += [f"{s.predicted_loss_increase:.2g}", f"{s.step:.3g}", f"{s.surgery_s:.1f}"]
        lines.append(
            f'<tr class="{escape(s.outcome)}"><td>{s.index}</td><td class="mark">{MARKS.get(s.outcome, "")} '
            f"{escape(outcome_words(s.outcome))}</td>{''.join(f'<td>{escape(c)}</td>' for c in cells)}"
            f'</tr>\n<tr class="why"><td></td><td class="text" colspan="{len(headers) - 1}">'
            f"<span>{'; '.join(escape(text) for text in (s.reason, lost_line(s)) if text)}</span></td></tr>\n"
        )
    return table(headers, lines, {"outcome": "mark"}) if lines else ""
