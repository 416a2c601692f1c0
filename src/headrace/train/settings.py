"""How a run is set up: a TOML file, or what a run's own state says, as the frozen dataclass that the run takes."""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from headrace.errors import RequestError

MAX_BYTES = 2**16

Settings = TypeVar("Settings")

SPRITE = Path(__file__).with_name("sprite")
"""The folder with the settings by which sprite is trained."""


def read_settings(file: Path, kind: type[Settings]) -> Settings:
    """The settings in a file, whose tables and keys are the dataclass's fields.

    Raises RequestError where it cannot be read, lacks a field that has no default, or says something else.
    """
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise RequestError(f"{file} is larger than {MAX_BYTES} bytes: it is no file of settings.")
        table = tomllib.loads(content.decode())
    except OSError as error:
        raise RequestError(f"{file} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise RequestError(f"{file} is not TOML: {error}.") from error
    return from_table(file, kind, table)


def from_table(file: Path, kind: type[Settings], table: Mapping[str, Any]) -> Settings:
    """The settings in a table that was read from a file; raises RequestError as `read_settings` does."""
    return typing.cast(Settings, _dataclass(file, "", kind, table))


def _dataclass(file: Path, place: str, kind: type[Any], table: Mapping[str, Any]) -> object:
    types_of = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in table:
        if name not in fields:
            raise RequestError(f"{file}: there is no setting {place}{name}; there are {', '.join(fields)}.")
    for name, field in fields.items():
        if name not in table and field.default is dataclasses.MISSING:
            raise RequestError(f"{file}: {place}{name} is missing.")
    return kind(**{name: _value(file, f"{place}{name}", types_of[name], value) for name, value in table.items()})


def _value(file: Path, place: str, kind: Any, value: Any) -> object:
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type) and isinstance(value, dict):
        return _dataclass(file, f"{place}.", kind, value)
    if origin is tuple and isinstance(value, list) and (parts[-1] is Ellipsis or len(parts) == len(value)):
        each = [parts[0]] * len(value) if parts[-1] is Ellipsis else parts
        return tuple(_value(file, place, part, item) for part, item in zip(each, value, strict=True))
    if origin is typing.Literal and value in parts:
        return value
    if origin in (types.UnionType, typing.Union) and type(None) in parts:
        return None if value is None else _value(file, place, parts[0], value)
    if kind is float and type(value) is int:
        return float(value)
    if isinstance(kind, type) and type(value) is kind:
        return value
    raise RequestError(f"{file}: {place} cannot be {value!r}.")
