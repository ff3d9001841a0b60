"""TensorRT for RTX: engines for other machines' GPUs, compiled on this one. Nothing runs, so it is no `Backend`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hqp_lightning.board.rtx import CAPABILITIES, Compiled, check_capabilities, compile_rtx, missing, rtx_path
from hqp_lightning.errors import ConfigurationError, ExportError
from hqp_lightning.records import CompiledEngine

__all__ = ["CAPABILITIES", "check_rtx", "compile_engines", "missing"]

_AT_ONCE = 3  # processes of some 300 MB and one thread each


def check_rtx(capabilities: Sequence[str]) -> None:
    """Refuse what is no list of compute capabilities.

    Raises:
        ConfigurationError: with the expected form.
    """
    if isinstance(capabilities, str):
        raise ConfigurationError(f"rtx={capabilities!r}: expected a list such as {list(CAPABILITIES)}; [] for none.")
    try:
        check_capabilities(tuple(capabilities))
    except ExportError as error:
        raise ConfigurationError(f"rtx={list(capabilities)}: {error}") from error


def compile_engines(
    models: Mapping[tuple[str, str], Path],
    folder: Path,
    capabilities: Sequence[str],
    *,
    batch_size: int = 1,
    threads: int = 1,
) -> tuple[list[CompiledEngine], list[str]]:
    """Compile every model for every capability.

    Args:
        models: ``(model, precision)`` to a file that is typed as it shall compute.
        folder: the engines go to its ``engines`` folder, and their paths are relative to it.
        capabilities: compute capabilities of GPUs.
        batch_size: the one size that the engines take.
        threads: how many processors may be busy.

    Returns:
        The engines, and one line for each model and reason that the compiler refused.
    """

    def compiled(job: tuple[str, str, str]) -> Compiled | str:
        model, precision, capability = job
        path = rtx_path(folder / "engines" / f"model.{model}.{precision}.engine", capability)
        try:
            return compile_rtx(models[model, precision], path, capability, batch_size=batch_size)
        except ExportError as error:
            return str(error)

    jobs = [(*key, capability) for key in models for capability in capabilities]
    with ThreadPoolExecutor(max(1, min(threads, _AT_ONCE))) as pool:
        results = list(pool.map(compiled, jobs))
    made, refused = [], dict[tuple[str, str], list[tuple[str, str]]]()
    for (model, precision, capability), result in zip(jobs, results, strict=True):
        if isinstance(result, str):
            refused.setdefault((model, precision), []).append((capability, result))
            continue
        made.append(
            CompiledEngine(
                model=model,
                precision=precision,
                compute_capability=capability,
                kernels=result.kernels,
                bytes_moved=result.bytes_moved,
                int8_layers=result.asked - len(result.floats),
                int8_asked=result.asked,
                in_float=result.floats,
                engine_bytes=result.path.stat().st_size,
                path=Path(os.path.relpath(result.path, folder)).as_posix(),
                version=result.version,
                batch_size=batch_size,
            )
        )
    notes = [
        f"No {model} {precision} engine for compute capability {', '.join(c for c, _ in said)}: {said[0][1]}"
        for (model, precision), said in refused.items()
    ]
    return made, notes
