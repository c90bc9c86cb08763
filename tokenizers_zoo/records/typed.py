"""Typed records: a frozen dataclass is the one definition of a settings table, or of the content of a file.

`convert` checks JSON types, and the ranges of numbers, against the class; its errors name the key. `as_dicts` is the
way back.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

LONGEST_VALUE = 100
"""Letters of a value in an error."""
OPTIONAL = {"optional": True}
"""Metadata of a field that files leave out at its default."""


class Variant:
    """Base of abstract classes. In files, the key "kind" tells which subclass a table is."""

    kind: ClassVar[str]


class Complete:
    """Base of records that describe all of their file: `convert` refuses keys that they, or records in them, lack."""


class Interval:
    """The range of a number in a type hint, as mathematics writes it: `Annotated[float, Interval("(0, 1]")]`."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.low, self.high = map(float, text[1:-1].split(","))

    def __contains__(self, number: float) -> bool:
        above = self.low <= number if self.text[0] == "[" else self.low < number
        return above and (number <= self.high if self.text[-1] == "]" else number < self.high)

    def __str__(self) -> str:
        """Return the interval for a message, after the type: `>= 1` or `in (0, 1]`."""
        if self.high == math.inf:
            return f"{'>=' if self.text[0] == '[' else '>'} {self.low:g}"
        return f"in {self.text}"


PositiveInt = Annotated[int, Interval("[1, inf)")]
NonNegativeInt = Annotated[int, Interval("[0, inf)")]
PositiveFloat = Annotated[float, Interval("(0, inf)")]
NonNegativeFloat = Annotated[float, Interval("[0, inf)")]


class RecordError(ValueError):
    """A value is not of its type. `keys` lead to it, through tables by name and through lists by number."""

    def __init__(self, keys: tuple[str | int, ...], reason: str) -> None:
        self.keys, self.reason = keys, reason
        key_path = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).removeprefix(".")
        super().__init__(f"{key_path}: {reason}" if keys else reason)


def convert(value: Any, hint: Any, *keys: str) -> Any:
    """Return a value of JSON types as `hint`: a dataclass, or another type hint. Raises RecordError.

    Whole numbers become floats, lists become tuples, and texts become paths; no other type is converted. Numbers have
    to lie in the `Interval` of their hint; dataclasses check their own fields (`config.Checked`). Keys that a class
    does not have are skipped. `keys` lead to the value, for the error.
    """
    import msgspec  # 15 ms

    try:
        converted = msgspec.convert(value, hint, str_keys=True, dec_hook=_convert_other)
    except msgspec.ValidationError as error:
        located = _located(value, hint, error)
        raise RecordError((*keys, *located.keys), located.reason) from None
    if _has_interval(hint):
        _check_ranges(converted, hint, keys)
    if isinstance(hint, type) and issubclass(hint, Complete):
        _check_known(value, hint, keys)
    return converted


def _check_known(value: Any, hint: Any, keys: tuple[str | int, ...]) -> None:
    """Raise RecordError for a key that a dataclass does not have, also in inner tables."""
    for option in _options(hint):
        if dataclasses.is_dataclass(option) and isinstance(value, Mapping):
            known = field_hints(option)
            for key in value.keys() - known.keys():
                raise RecordError((*keys, key), f"is unknown; expected {', '.join(known)}")
    for key, item, item_hint in _inner_values(value, hint):
        _check_known(item, item_hint, (*keys, key))


def _check_ranges(value: Any, hint: Any, keys: tuple[str | int, ...]) -> None:
    """Raise RecordError for a number outside the Interval of its hint, also in lists and tables."""
    for option in _options(hint):
        if typing.get_origin(option) is Annotated and type(value) is option.__origin__:
            (interval,) = option.__metadata__
            if value not in interval:
                raise RecordError(keys, f"expected {in_words(hint)}, got {_shown(value)}")
    if isinstance(value, dict | list | tuple):
        for key, item, item_hint in _inner_values(value, hint):
            _check_ranges(item, item_hint, (*keys, key))


@functools.cache
def _has_interval(hint: Any) -> bool:
    """Return whether a number anywhere in a hint has an interval; most hints have none."""
    return typing.get_origin(hint) is Annotated or any(map(_has_interval, typing.get_args(hint)))


@functools.cache
def _options(hint: Any) -> tuple[Any, ...]:
    """Return the types of a union, or the only type of another hint."""
    return typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)


def _field_hints(cls: Any) -> dict[str, Any]:
    """Return the type hints of a dataclass's fields; changed defaults keep the intervals of their base."""
    hints = typing.get_type_hints(cls, include_extras=True)
    for base in filter(dataclasses.is_dataclass, cls.__mro__[1:]):
        plain = typing.get_type_hints(base)
        for name, hint in field_hints(base).items():
            ranges = {option.__origin__: option for option in _options(hint) if typing.get_origin(option) is Annotated}
            hints[name] = hint if hints[name] == plain[name] else ranges.get(hints[name], hints[name])
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


field_hints: Callable[[Any], dict[str, Any]] = functools.cache(_field_hints)


def _convert_other(hint: Any, value: Any) -> Any:
    """Return a value as a type that msgspec does not know."""
    if isinstance(value, hint):
        return value
    if hint is Path and isinstance(value, str) and "\0" not in value:
        return Path(value)
    if issubclass(hint, Variant) and isinstance(value, Mapping):
        kinds = {subclass.kind: subclass for subclass in hint.__subclasses__()}
        kind = value.get("kind")
        if not isinstance(kind, str) or kind not in kinds:
            raise RecordError(("kind",), f"expected {' or '.join(sorted(kinds))}, got {_shown(kind)}")
        return convert(value, kinds[kind])
    raise TypeError


def as_dicts(record: Any) -> Any:
    """Return a dataclass as dicts and tuples, for a file."""
    if dataclasses.is_dataclass(record):
        fields = {field.name: field for field in dataclasses.fields(record)}
        kind: dict[str, str] = {"kind": record.kind} if isinstance(record, Variant) else {}
        return kind | {
            name: as_dicts(value)
            for name, field in fields.items()
            if (value := getattr(record, name)) != field.default or "optional" not in field.metadata
        }
    if isinstance(record, Mapping):
        return {key: as_dicts(value) for key, value in record.items()}
    return type(record)(map(as_dicts, record)) if isinstance(record, (list, tuple)) else record


def _located(value: Any, hint: Any, error: Exception) -> RecordError:
    """Return the error of the first inner value that is not of its type: msgspec does not name the keys of a dict."""
    for key, inner, inner_hint in _inner_values(value, hint):
        try:
            convert(inner, inner_hint)
        except RecordError as inner_error:
            return RecordError((key, *inner_error.keys), inner_error.reason)
    if isinstance(error.__cause__, RecordError):
        return error.__cause__
    if error.__cause__ is not None and dataclasses.is_dataclass(hint):  # from its __post_init__
        return RecordError((), str(error.__cause__))
    if missing := re.search(r"missing required field `(\w+)`", str(error)):
        return RecordError((missing[1],), "is missing")
    return RecordError((), f"expected {in_words(hint)}, got {_shown(value)}")


def _inner_values(value: Any, hint: Any) -> Iterator[tuple[str | int, Any, Any]]:
    """Yield key, value and type hint of the items of a table or list."""
    outer, arguments = typing.get_origin(hint), typing.get_args(hint)
    if len(options := _options(hint)) > 1:
        yield from itertools.chain.from_iterable(_inner_values(value, option) for option in options)
    elif isinstance(value, Mapping) and dataclasses.is_dataclass(hint):
        yield from ((name, value[name], inner) for name, inner in field_hints(hint).items() if name in value)
    elif isinstance(value, Mapping) and outer in (dict, Mapping):
        yield from ((key, item, arguments[1]) for key, item in value.items())
    elif isinstance(value, list | tuple) and outer in (list, tuple):
        is_any_length = outer is list or Ellipsis in arguments
        item_hints = itertools.repeat(arguments[0], len(value)) if is_any_length else arguments
        yield from zip(range(len(value)), value, item_hints, strict=False)


def _shown(value: Any) -> str:
    """Return type and value for a message."""
    return f"{type(value).__name__} {value!r}"[:LONGEST_VALUE]


def in_words(hint: Any) -> str:
    """Return a type in words: `int`, `list of int`, `"a" or "b"`."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Annotated:
        return f"{in_words(arguments[0])} {' '.join(map(str, arguments[1:]))}"
    if typing.get_origin(hint) is Literal:
        return " or ".join(json.dumps(value) for value in arguments)
    if len(_options(hint)) > 1:
        return " or ".join(dict.fromkeys(in_words(option) for option in arguments if option is not type(None)))
    if typing.get_origin(hint) is tuple:
        kinds = dict.fromkeys(in_words(kind) for kind in arguments if kind is not Ellipsis)
        return f"list of {'' if Ellipsis in arguments else f'{len(arguments)} '}{' or '.join(kinds)}"
    if typing.get_origin(hint) in (dict, Mapping) and arguments[0] is int:
        return "table with whole numbers as keys"
    if typing.get_origin(hint) in (dict, Mapping) or dataclasses.is_dataclass(hint) or hint in Variant.__subclasses__():
        return "table"
    return "path" if hint is Path else str(getattr(hint, "__name__", hint))
