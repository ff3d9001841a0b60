"""What a search measured, on disk, so that an interrupted one goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hqp_lightning.export.board_files import write_whole

__all__ = ["Known"]


class Known:
    """Answers of a search, model by model: a walk back tries several in turn.

    Args:
        path: of the file; one that can't be read is begun anew.
        of: what the answers are of. Another model, or another machine, has others.
    """

    def __init__(self, path: Path, of: Mapping[str, object]) -> None:
        self._path = path
        try:
            content = json.loads(path.read_text(encoding="utf-8"))["searches"]
            self._searches = [{"of": dict(s["of"]), "costs": dict(s["costs"])} for s in content]
        except (OSError, ValueError, LookupError, TypeError):
            self._searches = []
        found = next((s for s in self._searches if s["of"] == of), None)
        if found is None:
            found = {"of": dict(of), "costs": {}}
            self._searches.append(found)
        self._costs: dict[str, Any] = found["costs"]

    def get(self, key: str, measure: Callable[[], Any]) -> Any:
        """What ``measure`` said of a key, now or before; of what JSON has."""
        if key not in self._costs:
            self._costs[key] = measure()
            write_whole(self._path, json.dumps({"searches": self._searches}, indent=1).encode())
        return self._costs[key]
