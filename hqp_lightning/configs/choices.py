"""Options of groups that have no file among the application's own configurations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

__all__ = ["offer_recipes", "offer_timm"]


def offer_recipes(recipe_dir: Path) -> None:
    """Make an option ``recipe=NAME`` of every ``NAME.yaml`` in the folder."""
    for file in recipe_dir.glob("*.yaml"):
        # Every recipe says how to read it with "@package _global_"; Hydra's store wants that as an argument.
        ConfigStore.instance().store(
            group="recipe", name=file.stem, node=OmegaConf.load(file), package="_global_", provider="hqp_lightning"
        )


def offer_timm(arguments: Sequence[str], config_dir: Path) -> None:
    """Make an option ``model=timm/NAME`` of every one that the command line names; timm has too many to list.

    Args:
        arguments: the command line; others than ``model=`` are passed over.
        config_dir: folder of ``model/timm.yaml``, which every such option is made of.
    """
    chosen = [a.removeprefix("model=") for a in arguments if a.startswith("model=")]
    for option in (o for options in chosen for o in options.split(",") if o.startswith("timm/")):
        node = OmegaConf.merge(OmegaConf.load(config_dir / "model" / "timm.yaml"), {"net": {"name": option}})
        name = option.removeprefix("timm/")
        ConfigStore.instance().store(group="model/timm", name=name, node=node, provider="hqp_lightning")
