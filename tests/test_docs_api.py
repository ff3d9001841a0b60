"""The API reference names every public name; that the names resolve is what `mkdocs build --strict` holds."""

import pkgutil
import re
from importlib import import_module
from pathlib import Path

import pytest

from hqp_lightning import core

PAGE = Path(__file__).parents[1] / "docs" / "api.md"
DIRECTIVES = set(re.findall(r"^::: (\S+)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE))
ROOMS = ["hqp_lightning"]
ROOMS += [f"hqp_lightning.{name}" for name in ("export", "export.engines", "records", "report", "surgery")]
ROOMS += [f"hqp_lightning.core.{module.name}" for module in pkgutil.iter_modules(core.__path__)]


def missing(room, directives):
    """Public names of a module that no directive shows, neither their own nor their module's."""
    module = import_module(room)
    files = {m.name for m in pkgutil.iter_modules(getattr(module, "__path__", ()))}

    def shown(name):
        if name in files:  # mkdocstrings takes export.quantize for the module of that name
            return f"{room}.{name}.{name}" in directives
        return room in directives or f"{room}.{name}" in directives

    return [name for name in module.__all__ if not shown(name)]


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_is_in_the_api_reference(room):
    assert missing(room, DIRECTIVES) == []


def test_a_name_without_a_directive_is_found():
    assert missing("hqp_lightning", DIRECTIVES - {"hqp_lightning.HQPPruning"}) == ["HQPPruning"]
    assert missing("hqp_lightning.export", DIRECTIVES - {"hqp_lightning.export.quantize.quantize"}) == ["quantize"]
    assert "merge" in missing("hqp_lightning.core.fisher", set())
