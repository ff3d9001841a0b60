"""The runs of a sweep, as their folders tell them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

from hqp_lightning.errors import ConfigurationError, HQPError
from hqp_lightning.records import Report
from hqp_lightning.report import read_json
from hqp_lightning.sweeps.resume import FAILURE

__all__ = ["SweepRun", "read_runs", "varied"]


@dataclass(frozen=True, slots=True)
class SweepRun:
    """One run: its report, or the reason why it has none.

    Attributes:
        name: name of its folder.
        overrides: what its command line changed, ``key=value``.
        report: None if it did not finish.
        reason: why not; empty if it did.
    """

    name: str
    overrides: tuple[str, ...]
    report: Report | None = None
    reason: str = ""


def read_runs(folder: Path) -> tuple[SweepRun, ...]:
    """Read every run below a sweep's folder.

    Args:
        folder: ``hydra.sweep.dir``, with one folder a run; or any folder of runs.

    Returns:
        The runs in the order of their numbers, then names; those that failed or were interrupted have a reason.

    Raises:
        ConfigurationError: there is no run.
    """
    found = {p.parents[1] for p in folder.rglob("deploy/report.json")}
    found |= {p.parent for p in folder.rglob(FAILURE)} | {p.parent for p in folder.rglob(".hydra")}
    if not found:
        raise ConfigurationError(f"no runs below {folder}; expected the folder of a sweep, outputs/multirun/...")
    return tuple(_read(path, folder) for path in sorted(found, key=_number))


def varied(runs: Sequence[SweepRun]) -> tuple[str, ...]:
    """What each run was given that not all were, joined by spaces.

    Examples:
        >>> varied([SweepRun("0", ("recipe=a", "seed=1")), SweepRun("1", ("recipe=a", "seed=2"))])
        ('seed=1', 'seed=2')
    """
    common = set.intersection(*(set(r.overrides) for r in runs)) if len(runs) > 1 else set()
    return tuple(" ".join(o for o in r.overrides if o not in common) for r in runs)


def _number(path: Path) -> tuple[float, str]:
    # Hydra's folders begin with the number of the job: 10_... comes after 9_...
    head = path.name.split("_")[0]
    return float(head) if head.isdigit() else float("inf"), path.as_posix()


def _read(path: Path, folder: Path) -> SweepRun:
    name = path.relative_to(folder).as_posix()
    listed = path / ".hydra" / "overrides.yaml"
    overrides = tuple(str(o) for o in OmegaConf.load(listed)) if listed.is_file() else ()
    if (path / FAILURE).is_file():
        failure = json.loads((path / FAILURE).read_text(encoding="utf-8"))
        return SweepRun(name, overrides, reason=f"{failure['error']}: {failure['reason']}")
    try:
        return SweepRun(name, overrides, report=read_json(path / "deploy" / "report.json"))
    except FileNotFoundError:
        return SweepRun(name, overrides, reason="not finished")
    except HQPError as error:
        return SweepRun(name, overrides, reason=str(error))
