"""Keys and choices on the command line, before Hydra composes: its own refusal does not know what was meant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf

from hqp_lightning.configs.nearest import did_you_mean
from hqp_lightning.configs.values import parameters
from hqp_lightning.errors import ConfigurationError

__all__ = ["check_overrides"]

_OTHER_CONFIG = ("-cp", "--config-path", "-cn", "--config-name", "-cd", "--config-dir", "--hydra-help", "-sc")


def check_overrides(arguments: Sequence[str], config_dir: Path) -> None:
    """Refuse an unknown choice or key, with the nearest one that there is.

    What Hydra can't parse or compose is left to Hydra, which says why; so is a command line that brings other
    configurations along (``--config-dir``).

    Args:
        arguments: the command line without the program's name.
        config_dir: folder of ``config.yaml``.

    Raises:
        ConfigurationError: no recipe, an option that its group does not have, or a key that nothing reads.
    """
    if any(a.split("=")[0] in _OTHER_CONFIG or a.startswith("hydra.searchpath") for a in arguments):
        return
    words = [a for a in arguments if "=" in a.lstrip("-~+") and not a.startswith("-")]
    with initialize_config_dir(str(config_dir), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        try:
            overrides = OverridesParser.create(config_loader=loader).parse_overrides(words)
            groups = {o.key_or_group: list(_choices(o)) for o in overrides if loader.get_group_options(o.key_or_group)}
            if "recipe" not in groups:
                raise ConfigurationError(f"no recipe; say hqp recipe=NAME, NAME one of {_options(loader, 'recipe')}")
            for group, choices in groups.items():
                _check_choices(loader, group, choices)
            cfg = compose("config", overrides=[f"{g}={c[0]}" for g, c in groups.items() if c])
        except HydraException:
            return
        known = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(known, dict)
    for o in overrides:
        if o.key_or_group not in groups and not o.is_add() and not o.key_or_group.startswith("hydra."):
            _check_key(o.key_or_group, known, None if o.is_delete() else o.value())


def _choices(override: Override) -> Iterator[str]:
    if override.is_sweep_override():
        yield from (s.strip("'\"") for s in override.sweep_string_iterator())
    elif isinstance(override.value(), str):
        yield str(override.value())


def _options(loader: ConfigLoader, group: str) -> str:
    return ", ".join(loader.get_group_options(group))


def _check_choices(loader: ConfigLoader, group: str, choices: list[str]) -> None:
    options = loader.get_group_options(group)
    for choice in choices:
        if choice not in options and "/" not in choice:
            hint = did_you_mean(choice, options)
            there = f"{hint} There are" if hint else ": there are"
            raise ConfigurationError(f"no {group}={choice}{there} {', '.join(options)}")


def _check_key(key: str, known: Mapping[Any, Any], value: Any) -> None:
    node: Any = known
    for i, part in enumerate(parts := key.split(".")):
        if not isinstance(node, dict):
            return  # an element of a list, or a value that an interpolation will bring
        if part in node:
            node = node[part]
            continue
        taken = parameters(node["_target_"]) if "_target_" in node else {}
        if taken is None or (i == len(parts) - 1 and part in taken):
            raise ConfigurationError(f"{key} has no value that could be changed; add it with +{key}=...")
        prefix = "".join(f"{p}." for p in parts[:i])
        raise ConfigurationError(
            f"{key} is unknown{did_you_mean(key, [*_flat(known, ''), *(prefix + name for name in taken)])}"
        )
    if isinstance(node, list) and isinstance(value, dict):
        raise ConfigurationError(f"{key} is a list, also of one: {key}=[{{...}}]")


def _flat(node: Mapping[Any, Any], prefix: str) -> Iterator[str]:
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
