"""``hqp-reproduce``: run a recipe again and hold its figures against the published ones."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from hqp_lightning.errors import ConfigurationError, HQPError
from hqp_lightning.records import Report
from hqp_lightning.report import read_json, to_dict

__all__ = ["Comparison", "compare", "main", "read_published"]

_PACKAGE = Path(__file__).resolve().parent
_ROOT = _PACKAGE if (_PACKAGE / "recipes").is_dir() else _PACKAGE.parent
_BOUNDS = ("at_least", "at_most")


@dataclass(frozen=True, slots=True)
class Comparison:
    """One figure: as published, as measured now, and what it has to keep to."""

    name: str
    published: float
    measured: float | None
    at_least: float | None = None
    at_most: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the measured figure is there and within its bounds."""
        value = self.measured
        return (
            value is not None
            and (self.at_least is None or value >= self.at_least)
            and (self.at_most is None or value <= self.at_most)
        )


def read_published(path: Path) -> dict[str, Any]:
    """Read the published figures of a recipe.

    Args:
        path: YAML with ``overrides`` (further ``key=value`` of the command, may be left out) and ``figures``: a field
            of ``report.json`` in dotted form to ``published`` and ``at_least``, ``at_most`` or both.

    Returns:
        What the file holds, checked.

    Raises:
        ConfigurationError: no such file, or another content.
    """
    if not path.is_file():
        raise ConfigurationError(f"nothing is published for this recipe: no {path}. docs/recipes.md says what it holds")
    try:
        held: Any = OmegaConf.to_container(OmegaConf.load(path))
    except (YAMLError, OmegaConfBaseException) as error:
        raise ConfigurationError(f"{path} is no YAML: {error}") from error
    figures = held.get("figures") if isinstance(held, dict) else None
    if not isinstance(figures, dict) or not figures:
        raise ConfigurationError(f"{path} has no figures; expected figures: {{int8.accuracy: {{published: ...}}}}")
    for name, figure in figures.items():
        bounds = set(figure) - {"published"} if isinstance(figure, dict) else set()
        if not bounds or "published" not in figure or not bounds <= set(_BOUNDS):
            raise ConfigurationError(
                f"{path}: {name} is {figure!r}; expected published and at_least, at_most or both, as numbers"
            )
        if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in figure.values()):
            raise ConfigurationError(f"{path}: {name} is {figure!r}; expected numbers")
    return held


def compare(report: Report, published: Mapping[str, Mapping[str, float]]) -> tuple[Comparison, ...]:
    """Put the figures of a report beside the published ones.

    Args:
        report: of the run.
        published: ``figures`` of `read_published`.

    Raises:
        ConfigurationError: a name that is no figure of a report.
    """
    return tuple(Comparison(name, measured=_figure(report, name), **figure) for name, figure in published.items())


def _figure(report: Report, name: str) -> float | None:
    node: Any = to_dict(report)
    for part in name.split("."):
        if node is None:
            return None  # a part of the report that this run does not have
        if not isinstance(node, dict) or part not in node:
            raise ConfigurationError(f"{name} is no figure of report.json; docs/report.md lists them")
        node = node[part]
    if node is not None and not isinstance(node, int | float):
        raise ConfigurationError(f"{name} is {type(node).__name__} in report.json; expected a number")
    return node


def _table(comparisons: Sequence[Comparison]) -> str:
    def cell(value: float | None, sign: str = "") -> str:
        if value is None:
            return "-"
        return sign + (f"{value:.4f}" if abs(value) < 1000 else f"{value:.4g}")

    lines = [f"{'figure':<26}{'published':>12}{'bounds':>24}{'measured':>12}"]
    for c in comparisons:
        bounds = [cell(bound, sign) for bound, sign in ((c.at_least, ">= "), (c.at_most, "<= ")) if bound is not None]
        lines.append(
            f"{c.name:<26}{cell(c.published):>12}{', '.join(bounds):>24}{cell(c.measured):>12}"
            f"  {'holds' if c.holds else 'DOES NOT HOLD'}"
        )
    return "\n".join(lines)


def _recipe(given: str) -> tuple[str, Path]:
    """Name of the recipe, and file of its published figures."""
    name = Path(given).stem
    folder = Path(given).parent if Path(given).is_file() else _ROOT / "recipes"
    if not (folder / f"{name}.yaml").is_file():
        known = sorted(p.stem for p in (folder / "published").glob("*.yaml"))
        raise ConfigurationError(f"no recipe {given}; published are {', '.join(known)}")
    return name, folder / "published" / f"{name}.yaml"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``hqp-reproduce RECIPE [key=value ...]``.

    Returns:
        0 if every published figure holds; 1 if one does not or the run failed; 2 for a recipe without figures.
    """
    parser = argparse.ArgumentParser(
        prog="hqp-reproduce", description="Run a recipe again and hold its figures against the published ones."
    )
    parser.add_argument("recipe", help="recipes/NAME.yaml, or NAME")
    parser.add_argument("overrides", nargs="*", help="further settings of the hqp command, such as data.root=DATA")
    parser.add_argument("--report", type=Path, help="compare this report.json of an earlier run; run nothing")
    given = parser.parse_args(arguments)
    try:
        name, file = _recipe(given.recipe)
        published = read_published(file)
        path = given.report or _run(name, [*published.get("overrides", ()), *given.overrides])
        comparisons = compare(read_json(path), published["figures"])
    except (HQPError, FileNotFoundError) as error:
        print(f"hqp-reproduce: error: {error}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        print(f"hqp-reproduce: the run failed with exit code {error.returncode}", file=sys.stderr)
        return 1
    print(f"{name}, published on {published.get('hardware', 'other hardware')}\n{_table(comparisons)}")
    return 0 if all(c.holds for c in comparisons) else 1


def _run(recipe: str, overrides: Sequence[str]) -> Path:
    # The very command that the recipe's header gives, in a process of its own as a user starts it.
    folder = Path("outputs") / "reproduce" / f"{recipe}_{datetime.now():%Y-%m-%d_%H-%M-%S}"
    command = [sys.executable, "-m", "hqp_lightning.app", f"recipe={recipe}", *overrides, f"hydra.run.dir={folder}"]
    print(" ".join(["hqp", *command[3:]]), flush=True)
    subprocess.run(command, check=True)
    return folder / "deploy" / "report.json"


if __name__ == "__main__":
    sys.exit(main())
