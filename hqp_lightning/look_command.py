"""``hqp-look``: what would pruning cost this model? Of a recipe, or of a LightningModule by its dotted path."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hydra.utils import instantiate
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hqp_lightning.app import CONFIG_DIR, build
from hqp_lightning.callbacks import load_pruned
from hqp_lightning.configs import cause, check_overrides, check_values, offer_timm
from hqp_lightning.errors import ConfigurationError, HQPError
from hqp_lightning.looking import look
from hqp_lightning.loop.checkpoint import STRUCTURE_KEY

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``hqp-look``: 0, or 1 where nothing could be looked at."""
    options = _parser().parse_args(arguments)
    # Lightning's own use of torch, and loaders without workers: nothing that the user could change here.
    for message in (".*does not have many workers.*", ".*LeafSpec.*"):
        warnings.filterwarnings("ignore", message=message)
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.WARNING)  # which devices there are, and advertisements
    try:
        trainer, module, data = _of_recipe(options) if options.module is None else _of_module(options)
        look(trainer, module, data, options.output, options.samples)
    except (HQPError, OSError) as error:
        print(f"hqp-look: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("hqp-look: interrupted", file=sys.stderr)
        return 130
    finally:
        log.setLevel(level)
    return 0


def _of_recipe(options: argparse.Namespace) -> tuple[Trainer, LightningModule, Any]:
    if options.checkpoint or options.datamodule:
        raise ConfigurationError("--checkpoint and --datamodule belong to --module; a recipe has model.checkpoint=...")
    if not options.overrides:
        raise ConfigurationError("say which model: recipe=NAME, or --module package.module:Class --datamodule ...")
    offer_timm(options.overrides, CONFIG_DIR)
    check_overrides(options.overrides, CONFIG_DIR)
    try:
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            cfg = compose("config", overrides=[*options.overrides, f"output_dir={options.output}"])
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigurationError(str(error)) from error
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise ConfigurationError(f"no value for {', '.join(missing)}; add {' '.join(f'{k}=...' for k in missing)}")
    check_values(cfg)
    if "cache" in cfg.data:
        cfg.data.cache = False  # decoding all of the training images would take longer than the look
    settings = {"enable_checkpointing": False, "enable_progress_bar": False}
    try:
        callbacks = [instantiate(cfg.hqp)] if cfg.hqp and "_target_" in cfg.hqp else []
        model, data, trainer = build(cfg, callbacks, "/look", **settings)
    except Exception as error:
        if isinstance(cause(error), (HQPError, TypeError)):
            raise ConfigurationError(str(cause(error))) from error
        raise
    return trainer, model, data


def _of_module(options: argparse.Namespace) -> tuple[Trainer, LightningModule, Any]:
    if options.overrides:
        raise ConfigurationError(f"{options.overrides[0]} is a setting of a recipe, and --module is given: name one.")
    sys.path.insert(0, os.getcwd())  # as `python -m` does
    made, path = _named("--module", options.module), options.checkpoint
    if path is not None and not path.is_file():
        raise ConfigurationError(f"--checkpoint {path}: there is no such file")
    if path is None or not isinstance(made, type):
        module = _called("--module", options.module, made)
    elif not issubclass(made, LightningModule):
        raise ConfigurationError(f"--module {options.module} is no LightningModule")
    else:
        module = _loaded(made, path)
    if not isinstance(module, LightningModule):
        raise ConfigurationError(f"--module {options.module} gives a {type(module).__name__}, no LightningModule")
    if path is not None and not isinstance(made, type):
        module.load_state_dict(_read(path).get("state_dict", {}))
    data = None
    if options.datamodule is not None:
        data = _called("--datamodule", options.datamodule, _named("--datamodule", options.datamodule))
        if not isinstance(data, LightningDataModule):
            raise ConfigurationError(
                f"--datamodule {options.datamodule} gives a {type(data).__name__}, no LightningDataModule"
            )
    settings: dict[str, Any] = {"enable_checkpointing": False, "enable_progress_bar": False, "logger": False}
    return Trainer(devices=1, enable_model_summary=False, **settings), module, data


def _named(option: str, path: str) -> Any:
    """What ``package.module:name`` stands for."""
    where, colon, name = path.partition(":")
    if not (where and colon and name):
        raise ConfigurationError(f"{option} {path}: expected package.module:Name")
    try:
        found: Any = importlib.import_module(where)
    except ImportError as error:
        raise ConfigurationError(f"{option} {path}: {error}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise ConfigurationError(f"{option} {path}: {where} has no {name}")
        found = getattr(found, part)
    if not callable(found):
        raise ConfigurationError(f"{option} {path} is a {type(found).__name__}; expected a class or a function")
    return found


def _called(option: str, path: str, made: Any) -> Any:
    try:
        return made()
    except TypeError as error:
        raise ConfigurationError(
            f"{option} {path}: {error}; name a class or a function that needs no arguments"
        ) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ConfigurationError(f"--checkpoint {path} can't be read: {type(error).__name__}: {error}") from error
    return found if isinstance(found, dict) else {}


def _loaded(made: type[LightningModule], path: Path) -> LightningModule:
    checkpoint = _read(path)
    if "state_dict" not in checkpoint:
        raise ConfigurationError(f"--checkpoint {path} is no Lightning checkpoint: it holds no 'state_dict'")
    try:
        if STRUCTURE_KEY in checkpoint:
            return load_pruned(made, path)
        return made.load_from_checkpoint(path, map_location="cpu")
    except (RuntimeError, TypeError) as error:
        raise ConfigurationError(f"--checkpoint {path} does not fit {made.__name__}: {error}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hqp-look", description=__doc__)
    parser.add_argument("overrides", nargs="*", metavar="recipe=NAME [key=value ...]", help="as of the command hqp")
    parser.add_argument("--module", metavar="PKG:CLASS", help="a LightningModule, or a function that gives one")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="its weights, from Lightning")
    parser.add_argument("--datamodule", metavar="PKG:CLASS", help="its data; default: the module's own loaders")
    parser.add_argument("--samples", type=int, default=512, metavar="N", help="of validation, evenly spread (512)")
    parser.add_argument("-o", "--output", type=Path, default=Path("look"), metavar="DIR", help="to write (look)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
