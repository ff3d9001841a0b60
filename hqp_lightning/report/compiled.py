"""What NVIDIA's compiler made of the models, in words and as a table: counts of kernels, never times."""

from __future__ import annotations

from html import escape

from hqp_lightning.records import CompiledEngine, Report
from hqp_lightning.report.units import count, size

__all__ = ["advice", "compiler_html", "compiler_line", "compiler_table"]


def compiler_line(report: Report) -> str:
    """One line: for which GPUs, and kernels and INT8 layers on the first of them; empty where nothing was compiled."""
    if not report.compiled:
        return ""
    capabilities = list(dict.fromkeys(e.compute_capability for e in report.compiled))
    first = [e for e in report.compiled if e.compute_capability == capabilities[0]]
    parts = "; ".join(f"{_name(e)} {e.kernels} kernels{_int8(e)}, {size(e.engine_bytes)}" for e in first)
    return (
        f"NVIDIA's compiler ({first[0].version}), engines for compute capability {', '.join(capabilities)}, "
        f"not run here; {capabilities[0]}: {parts}"
    )


def advice(report: Report) -> str:
    """Which file to take where INT8 wins nothing in the compiler's tables; empty where it wins something."""
    losing = []
    for int8 in (e for e in report.compiled if e.precision == "int8"):
        same = (int8.model, int8.compute_capability)
        fp16 = next(
            (e for e in report.compiled if e.precision == "fp16" and (e.model, e.compute_capability) == same), None
        )
        if fp16 and int8.kernels >= fp16.kernels and int8.bytes_moved >= fp16.bytes_moved:
            losing.append((int8, fp16))
    if not losing:
        return ""
    int8, fp16 = losing[0]
    files = ", ".join(f"{f.path} for compute capability {f.compute_capability}" for _, f in losing)
    return (
        f"Take {files}: by the compiler's tables INT8 wins nothing over FP16 there "
        f"({int8.kernels} kernels to {fp16.kernels}, {size(int8.bytes_moved)} moved to {size(fp16.bytes_moved)}); only "
        "a measurement on the GPU can say more."
    )


def compiler_table(report: Report) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headers and rows: an engine a row."""
    headers = ("model", "GPUs", "kernels", "moved", "INT8 layers", "left in float", "engine")
    rows: list[tuple[str, ...]] = []
    for e in report.compiled:
        left = ", ".join(e.in_float[:3]) + " ..." * (len(e.in_float) > 3)
        layers = f"{e.int8_layers} of {e.int8_asked}" if e.int8_asked else "-"
        rows.append(
            (_name(e), e.compute_capability, count(e.kernels), size(e.bytes_moved), layers, left, size(e.engine_bytes))
        )
    return headers, rows


def compiler_html(report: Report) -> str:
    """The table on the page, with what it says and what it does not."""
    if not report.compiled:
        return ""
    headers, rows = compiler_table(report)
    head = "".join(f'<th class="{"number" if k else ""}">{escape(h)}</th>' for k, h in enumerate(headers))
    body = "".join(f"<tr>{''.join(f'<td>{escape(c)}</td>' for c in row)}</tr>\n" for row in rows)
    lead = (
        f"TensorRT for RTX {report.compiled[0].version} compiled these engines for other machines' GPUs. Nothing ran: "
        "fewer kernels and more INT8 layers are no measured time."
    )
    text = f"<p><b>{escape(words)}</b></p>\n" if (words := advice(report)) else ""
    return (
        f'{text}<p class="small">{escape(lead)}</p>\n<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}</tbody></table></div>"
    )


def _name(engine: CompiledEngine) -> str:
    return f"{engine.model} {engine.precision.upper()}"


def _int8(engine: CompiledEngine) -> str:
    return f" ({engine.int8_layers} of {engine.int8_asked} layers in INT8)" if engine.int8_asked else ""
