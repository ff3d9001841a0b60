"""Arguments that both commands have: the pictures, and how they are prepared."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hqp_lightning.board.provenance import read_manifest
from hqp_lightning.errors import ConfigurationError, ExportError
from hqp_lightning.records import OnnxArtifact
from hqp_lightning.standalone.pictures import Pictures, find_pictures, layout_of

__all__ = ["add_pictures", "given_pictures", "input_size"]

_COLOURS = (1, 3)


def add_pictures(parser: argparse.ArgumentParser, limit: int | None = None) -> None:
    """Add them to a parser; ``limit`` is the number of pictures where nobody says one, None for all."""
    pictures = parser.add_argument_group("how the pictures are prepared (resized, cut, scaled to [0, 1], normalised)")
    pictures.add_argument("--manifest", type=Path, help="manifest.json of a run, which says all of it")
    pictures.add_argument("--size", help="PX of the shorter side, or HxW; default: what the network takes")
    pictures.add_argument("--crop", help="PX or HxW of the centre, behind --size; or 'square', before it")
    pictures.add_argument("--mean", type=_numbers, metavar="R,G,B", help="such as 0.485,0.456,0.406; 0 for none")
    pictures.add_argument("--std", type=_numbers, metavar="R,G,B", help="such as 0.229,0.224,0.225; 1 for none")
    pictures.add_argument("--layout", choices=("NCHW", "NHWC"), help="of the network's input; default: by its shape")
    text = f"use so many pictures, evenly spread (default: {limit or 'all'})"
    parser.add_argument("--limit", type=int, default=limit, metavar="N", help=text)


def input_size(options: argparse.Namespace) -> tuple[int, int] | None:
    """Height and width of what the network gets, as far as the options say."""
    for name in ("crop", "size"):
        if (given := getattr(options, name)) and given != "square":
            pixels = _pixels(name, given)
            return (pixels[0], pixels[1]) if isinstance(pixels, list) else (pixels, pixels)
    return None


def given_pictures(options: argparse.Namespace, artifact: OnnxArtifact) -> Pictures:
    """The pictures of the command line, for a network.

    Raises:
        ConfigurationError: options that contradict each other, or are no numbers.
        ExportError: see `find_pictures`.
    """
    manifest: Mapping[str, Any] = {} if options.manifest is None else read_manifest(options.manifest)
    named = [n for n in ("size", "crop", "mean", "std") if getattr(options, n) is not None]
    told = manifest.get("preprocessing")
    if told and named:
        raise ConfigurationError(
            f"--manifest says how pictures are prepared, and so does --{named[0]}: give one of them"
        )
    if options.limit is not None and options.limit < 1:
        raise ConfigurationError(f"--limit {options.limit}: expected at least 1")
    layout = options.layout or layout_of(artifact.input_shape)
    steps = told or _steps(options, artifact, layout)
    found = find_pictures(options.images, artifact, steps, layout, manifest.get("classes"))
    return found.some(options.limit)


def _steps(options: argparse.Namespace, artifact: OnnxArtifact, layout: str) -> dict[str, Any] | None:
    """None: the options do not say enough."""
    bytes_ = artifact.input_dtype == "uint8"
    if not bytes_ and (options.mean is None or options.std is None):
        if options.mean is not None or options.std is not None:
            raise ConfigurationError("--mean and --std belong together: give both (0 and 1 for none)")
        return None
    shape = artifact.input_shape
    if len(shape) != 3:
        raise ExportError(f"the network takes {shape}, no pictures: give a .npz of prepared arrays")
    steps: dict[str, Any] = {}
    if options.crop == "square" or (options.crop is None and options.size is None):
        steps["crop"] = "square"
    steps["resize"] = list(shape[1:] if layout == "NCHW" else shape[:2])
    if options.size is not None:
        steps["resize"] = _pixels("size", options.size)
    if options.crop not in (None, "square"):
        steps["center_crop"] = _pixels("crop", options.crop)
        if options.size is None:
            del steps["resize"]
    if not bytes_:
        if max(map(abs, options.mean)) > 2 or max(options.std) > 2 or min(options.std) <= 0:
            raise ConfigurationError(
                f"--mean {options.mean} --std {options.std}: they are of pictures scaled to [0, 1]; divide by 255"
            )
        steps |= {"mean": options.mean, "std": options.std}
    return steps


def _pixels(name: str, text: str) -> int | list[int]:
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)?", text):
        raise ConfigurationError(f"--{name} {text}: expected pixels, such as 224 or 224x160 (height x width)")
    numbers = [int(part) for part in text.split("x")]
    return numbers[0] if len(numbers) == 1 else numbers


def _numbers(text: str) -> Sequence[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers with commas between") from error
    if len(values) not in _COLOURS:
        raise argparse.ArgumentTypeError(f"{text!r}: expected one number, or three for R, G and B")
    return values * 3 if len(values) == 1 else values
