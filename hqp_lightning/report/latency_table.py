"""`LatencyTable` to JSON and back: this machine's, and what ``hqp-engine profile`` wrote on a board."""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path

from hqp_lightning.board.files import write_whole
from hqp_lightning.errors import ConfigurationError
from hqp_lightning.records import LatencyTable
from hqp_lightning.report.schema import decode, encode

__all__ = ["read_table", "write_table"]

_VERSION = 1


def write_table(table: LatencyTable, path: str | PathLike[str]) -> Path:
    """Write ``latency_table.json``, whole or not at all."""
    text = json.dumps(encode(table, LatencyTable, "table"), allow_nan=False)
    write_whole(Path(path), f"{text}\n".encode())
    return Path(path)


def read_table(path: str | PathLike[str]) -> LatencyTable:
    """Read a latency table.

    Raises:
        ConfigurationError: there is no such file, or it is no table of this schema; with what is wrong.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(
            f"no latency table at {path} ({error}): `hqp-engine profile` writes one, or take cost='latency'"
        ) from error
    except ValueError as error:
        raise ConfigurationError(f"{path} is not JSON ({error}); expected a table of `hqp-engine profile`") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != _VERSION or "networks" not in data:
        raise ConfigurationError(f"{path} is no latency table of schema version {_VERSION}: make it again")
    return decode(data, LatencyTable, str(path))
