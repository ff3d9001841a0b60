"""At the end of ``hqp -m ...``: the table over all runs. And the same as a command, for any folder of runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from hqp_lightning.errors import HQPError
from hqp_lightning.sweeps.pareto import print_runs, write_csv, write_png
from hqp_lightning.sweeps.runs import read_runs

__all__ = ["ParetoAtEnd", "main", "summarize"]


def summarize(folder: Path, csv: Path | None = None, png: Path | None = None) -> bool:
    """Print the table of the runs below a folder; write ``pareto.csv`` and ``pareto.png``.

    Args:
        folder: ``hydra.sweep.dir``.
        csv: where to, by default into the folder.
        png: likewise; not drawn where no run was finished.

    Returns:
        Whether every run was finished.
    """
    runs = read_runs(folder)
    print_runs(runs)
    written = [write_csv(runs, csv or folder / "pareto.csv")]
    if any(r.report is not None for r in runs):
        written.append(write_png(runs, png or folder / "pareto.png"))
    print(f"Written: {', '.join(map(str, written))}")
    return all(r.report is not None for r in runs)


class ParetoAtEnd(Callback):
    """Hydra's callback that ends a sweep with the table; the command fails if a run did."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print, write, and exit with 1 if a run has no report."""
        try:
            finished = summarize(Path(config.hydra.sweep.dir))
        except HQPError:  # export=none leaves nothing to compare
            return
        if not finished:
            raise SystemExit(1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``hqp-pareto FOLDER``; exit code 1 if a run has no report or there are none."""
    parser = argparse.ArgumentParser(
        prog="hqp-pareto", description="One Pareto table over the runs of a sweep: the INT8 score against latency."
    )
    parser.add_argument("folder", type=Path, help="folder of the sweep, outputs/multirun/...")
    parser.add_argument("--csv", type=Path, help="where to write the table (default: FOLDER/pareto.csv)")
    parser.add_argument("--png", type=Path, help="where to draw the plot (default: FOLDER/pareto.png)")
    given = parser.parse_args(arguments)
    try:
        return 0 if summarize(given.folder, given.csv, given.png) else 1
    except HQPError as error:
        print(f"hqp-pareto: error: {error}", file=sys.stderr)
        return 1
