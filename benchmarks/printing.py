"""What the benchmarks have in common: whole-number options, and a table under a line that names the machine."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence

import torch
import torchvision

from hqp_lightning.export.engines.base import processor_name


def arguments(doc: str | None, **defaults: int) -> argparse.Namespace:
    """``--name N`` for each of the defaults; ``threads`` is set at once."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    return args


def print_table(about: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Markdown; every row appears when it is measured."""
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    print(f"{processor_name()}, {torch.get_num_threads()} threads, {versions}; {about}\n")
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)
