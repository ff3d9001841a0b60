"""`Report` to JSON and back, field by field; the type hints of the records are the schema."""

from __future__ import annotations

import json
import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from hqp_lightning.board.files import write_whole
from hqp_lightning.errors import ConfigurationError
from hqp_lightning.records import Report

__all__ = ["SCHEMA_VERSION", "decode", "encode", "from_dict", "read_json", "to_dict", "write_json"]

SCHEMA_VERSION = 1


def to_dict(report: Report) -> dict[str, Any]:
    """The report as plain dicts, lists, strings and finite numbers, keys in the order of the records' fields.

    A field that may be absent (``accuracy`` of a step) and is not a number becomes None: a step that diverged
    must not cost the report of a whole run.

    Args:
        report: what to convert.

    Returns:
        What ``json.dump`` writes without NaN; `from_dict` is the inverse.

    Raises:
        ConfigurationError: if a figure that must be there is not finite, or is of another type than its record says.
    """
    return encode(report, Report, "report")


def from_dict(data: Mapping[str, Any]) -> Report:
    """The inverse of `to_dict`.

    Args:
        data: what ``json.load`` gave.

    Returns:
        A report equal to the one that was written.

    Raises:
        ConfigurationError: for the report of an export that failed, another ``schema_version``, an unknown or missing
            field, or a value of the wrong type.
    """
    if isinstance(data, Mapping) and "failed" in data:
        raise ConfigurationError(f"the export of that run failed: {data['failed']}. Make it later: {data.get('later')}")
    version = data.get("schema_version") if isinstance(data, Mapping) else None
    if version != SCHEMA_VERSION:
        raise ConfigurationError(
            f"the report has schema_version {version!r}; this version of hqp-lightning reads {SCHEMA_VERSION}: "
            "read it with the version that wrote it (its field `versions` says which)"
        )
    return decode(data, Report, "report")


def write_json(report: Report, path: str | PathLike[str]) -> Path:
    """Write ``report.json``, whole or not at all; equal reports give equal bytes. See `to_dict` for what is raised."""
    text = json.dumps(to_dict(report), indent=2, ensure_ascii=False, allow_nan=False)
    path = Path(path)
    write_whole(path, f"{text}\n".encode())
    return path


def read_json(path: str | PathLike[str]) -> Report:
    """Read ``report.json``. See `from_dict` for what is raised."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ConfigurationError(f"{path} is not JSON ({error}); expected a report.json of hqp-lightning") from error
    return from_dict(data)


def _wrong(where: str, value: Any, expected: str) -> ConfigurationError:
    return ConfigurationError(f"{where} is {value!r}; expected {expected}")


def _optional(hint: Any) -> tuple[Any, bool]:
    """``X | None`` to ``(X, True)``, anything else to ``(hint, False)``."""
    if get_origin(hint) in (Union, types.UnionType):
        (inner,) = (a for a in get_args(hint) if a is not type(None))
        return inner, True
    return hint, False


def _number(value: Any, kind: type, where: str) -> Any:
    # bool is an int to Python; numpy's and torch's scalars are numbers to us and not to json
    if isinstance(value, bool) or not hasattr(value, "__index__" if kind is int else "__float__"):
        raise _wrong(where, value, "an integer" if kind is int else "a number")
    return kind(value)


def encode(value: Any, hint: Any, where: str) -> Any:
    """A value of type ``hint`` as plain JSON; ``where`` names it in errors. See `to_dict`."""
    hint, optional = _optional(hint)
    if value is None and optional:
        return None
    if is_dataclass(hint):
        hints = get_type_hints(hint)
        return {f.name: encode(getattr(value, f.name), hints[f.name], f"{where}.{f.name}") for f in fields(hint)}
    if get_origin(hint) is tuple:
        return [encode(v, get_args(hint)[0], f"{where}[{i}]") for i, v in enumerate(value)]
    if get_origin(hint) is Mapping:
        return {str(k): encode(v, get_args(hint)[1], f"{where}[{k!r}]") for k, v in value.items()}
    if hint is float:
        number = _number(value, float, where)
        if math.isfinite(number):
            return number
        if optional:
            return None
        raise _wrong(where, value, "a finite number: measure it again, a report must not hold NaN or infinity")
    return _scalar(value, hint, where)


def decode(value: Any, hint: Any, where: str) -> Any:
    """The inverse of `encode`; see `from_dict`."""
    hint, optional = _optional(hint)
    if value is None and optional:
        return None
    if is_dataclass(hint):
        return _decode_record(value, hint, where)
    if get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise _wrong(where, value, "a list")
        return tuple(decode(v, get_args(hint)[0], f"{where}[{i}]") for i, v in enumerate(value))
    if get_origin(hint) is Mapping:
        if not isinstance(value, Mapping):
            raise _wrong(where, value, "an object")
        return {k: decode(v, get_args(hint)[1], f"{where}[{k!r}]") for k, v in value.items()}
    return _number(value, float, where) if hint is float else _scalar(value, hint, where)


def _decode_record(value: Any, record: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise _wrong(where, value, f"an object with the fields of {record.__name__}")
    known = {f.name: f for f in fields(record)}
    needed = {n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING}
    unknown, missing = sorted(value.keys() - known.keys()), sorted(needed - value.keys())
    if unknown or missing:
        raise ConfigurationError(
            f"{where} has unknown fields {unknown} and lacks {missing}; expected those of {record.__name__}: "
            f"{', '.join(known)}"
        )
    hints = get_type_hints(record)
    return record(**{name: decode(v, hints[name], f"{where}.{name}") for name, v in value.items()})


def _scalar(value: Any, hint: Any, where: str) -> Any:
    if hint is int:
        return _number(value, int, where)
    if not isinstance(value, hint):
        raise _wrong(where, value, f"a {hint.__name__}")
    return value
