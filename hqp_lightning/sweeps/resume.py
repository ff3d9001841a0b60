"""What a run leaves in its folder, so that the same command with ``resume=true`` goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from hqp_lightning.errors import ConfigurationError
from hqp_lightning.records import Report
from hqp_lightning.report import read_failure, read_json

__all__ = ["FAILURE", "Found", "find_earlier", "note_failure", "note_settings", "set_logs_aside"]

FAILURE, _SETTINGS = "failure.json", "settings.json"
# Not what the run does, but where and how it was started, and what comes after it.
_NOT_SETTINGS = ("output_dir", "resume", "ckpt_path", "control", "compare")
# What these folders hold are results: not what training goes on from.
_RESULTS = ("deploy", "control", "comparison")


@dataclass(frozen=True, slots=True)
class Found:
    """What an earlier start of the same run left: its report if it was finished, else its newest checkpoint."""

    report: Report | None = None
    checkpoint: Path | None = None


def note_settings(cfg: DictConfig) -> None:
    """Write the run's settings into its folder, and forget an earlier failure.

    Args:
        cfg: the composed configuration; ``output_dir`` is created.
    """
    folder = Path(cfg.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _SETTINGS).write_text(json.dumps(_settings(cfg), indent=2) + "\n", encoding="utf-8")
    (folder / FAILURE).unlink(missing_ok=True)


def note_failure(folder: Path, error: BaseException) -> None:
    """Write the reason of a failed run into its folder, for `read_runs`."""
    folder.mkdir(parents=True, exist_ok=True)
    reason = {"error": type(error).__name__, "reason": str(error) or type(error).__name__}
    (folder / FAILURE).write_text(json.dumps(reason, indent=2) + "\n", encoding="utf-8")


def set_logs_aside(folder: Path) -> None:
    """Rename every ``metrics.csv`` to the next free ``metrics.N.csv``: Lightning's logger deletes what it finds."""
    for log in list(folder.rglob("metrics.csv")):
        log.rename(log.with_suffix(f".{len(list(log.parent.glob('metrics.*.csv'))) + 1}.csv"))


def find_earlier(cfg: DictConfig) -> Found:
    """Look in ``output_dir`` for an earlier start of this run.

    Args:
        cfg: the composed configuration.

    Returns:
        The finished report, or the newest checkpoint or neither.

    Raises:
        ConfigurationError: the folder holds a run of other settings.
    """
    folder = Path(cfg.output_dir)
    if not (folder / _SETTINGS).is_file():
        return Found()
    before = dict(_flat(json.loads((folder / _SETTINGS).read_text(encoding="utf-8")), ""))
    now = dict(_flat(_settings(cfg), ""))
    other = [k for k in sorted(before.keys() | now.keys()) if before.get(k, "absent") != now.get(k, "absent")]
    if other:
        changes = ", ".join(f"{k}: {before.get(k, 'absent')!r} there, {now.get(k, 'absent')!r} now" for k in other[:5])
        raise ConfigurationError(
            f"resume=true, but {folder} holds a run of other settings ({changes}); give those, or choose another "
            "folder with hydra.run.dir=... (hydra.sweep.dir=... for a sweep)"
        )
    report = Path(cfg.export.dirpath) / "report.json" if cfg.get("export") and "dirpath" in cfg.export else None
    if report is not None and report.is_file() and read_failure(report) is None:
        return Found(report=read_json(report))
    saved = [p for p in folder.rglob("*.ckpt") if not set(_RESULTS) & set(p.relative_to(folder).parts)]
    newest = max(saved, key=lambda p: p.stat().st_mtime_ns, default=None)
    return Found(checkpoint=newest)


def _settings(cfg: DictConfig) -> dict[str, Any]:
    # Unresolved, so that what follows from output_dir stays out of it.
    plain = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(plain, dict)
    return {str(k): v for k, v in plain.items() if k not in _NOT_SETTINGS}


def _flat(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
