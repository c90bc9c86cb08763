"""TOML tables to frozen dataclasses; unknown keys and wrong types are errors that name file, line and key."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import inspect
import itertools
import json
import re
import textwrap
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from tokenizers_zoo.errors import ConfigError, ReadError, SettingError
from tokenizers_zoo.records.io import DEEPEST, read_regular, too_deep
from tokenizers_zoo.records.typed import PositiveInt, RecordError, convert, field_hints, in_words

T = TypeVar("T")
SHARED = "zoo"
"""Table of registry.toml whose keys are offered to all modalities."""
PIPELINE = "pipeline"
"""Table of a pipeline's file (zoo run), which may also hold the tables of a registry and of the backbone."""
KEY_PART = rb"""(?:"(?:[^"\\\n]|\\.)*+"|'[^'\n]*+'|[\w-]++)[ \t]*+"""
LONG_KEY = re.compile(rb"(?m)(?:^|\xef\xbb\xbf|[\[{,])[ \t]*+%b(?:\.[ \t]*+%b){%d}" % (KEY_PART, KEY_PART, DEEPEST))
"""A dotted key of too many parts, at the start of a line or of an item."""
NUL = re.compile(rb"\\(u0000|U00000000)")
LONGEST_TOML = 1 << 20
"""Bytes of a TOML file."""
TOML = "utf-8-sig"
"""Encoding of TOML files; it skips the byte order mark that Windows editors write."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Origin:
    """Place of a table in its file, for errors that name file and line."""

    path: Path | None = None
    table: str = ""
    shared: frozenset[str] = frozenset()
    """Keys that came from `[zoo]`, which all modalities share."""
    other_keys: frozenset[str] = frozenset()
    """Keys of this table that are read elsewhere, offered as corrections of a misspelt key."""
    option: str = ""
    """Option of the command line that sets the keys."""

    def at(self, key: str) -> str:
        """Return `registry.toml:12 [modalities.x] key`."""
        if key in self.shared:
            return self._shared_origin.at(key)
        if self.path is None:
            return f"[{self.table}] {key}" if self.table else key
        line = find_line(self.path, self.table, key)
        return f"{self.path}{f':{line}' if line else ''} {f'[{self.table}] ' if self.table else ''}{key}"

    @property
    def file(self) -> str:
        """Name of the file, or registry.toml if there is none yet."""
        return str(self.path or "registry.toml")

    def inner(self, key: str) -> Origin:
        """Return the origin of the table under `key`."""
        if key in self.shared:
            return self._shared_origin.inner(key)
        table = f"{self.table}.{key}" if self.table else key
        return dataclasses.replace(self, table=table, shared=frozenset(), other_keys=frozenset(), option="")

    @property
    def _shared_origin(self) -> Origin:
        return Origin(path=self.path, table=SHARED)


def find_line(path: Path, table: str, key: str) -> int | None:
    """Return the 1-based line of `key` in `[table]` of a TOML file, or None. Finds keys of inline tables too."""
    try:
        lines = (read_regular(path) or b"").decode(TOML).splitlines()
    except ReadError:
        return None
    parts = table.split(".") if table else []
    for depth in range(len(parts), -1, -1):  # an inner table may be written inline, below a parent table
        header = ".".join(parts[:depth])
        first_key = [*parts[depth:], key][0]
        section = ""
        for number, line in enumerate(lines, 1):
            if match := re.match(r"\s*\[\s*([^\[\]]+?)\s*\]", line):
                section = match.group(1).replace('"', "")
            elif section == header and re.match(rf'\s*"?{re.escape(first_key)}"?\s*[.=]', line):
                return number
    return None


def load_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file. Raises ConfigError, with the parser's line, if it cannot be read or is not TOML.

    A file of more than LONGEST_TOML bytes, or with too many levels, is refused.
    """
    if (data := read_regular(path)) is None:
        raise ConfigError(f"{path}: no such file; a TOML file was expected")
    if len(data) > LONGEST_TOML:
        raise ConfigError(f"{path}: expected at most {LONGEST_TOML:,} bytes, got {len(data):,}")
    try:
        if NUL.search(data):
            raise ValueError("has a text with a NUL character")
        if LONG_KEY.search(data):  # reading it takes quadratic time and memory
            raise RecursionError
        tables = tomllib.loads(data.decode(TOML))
        if too_deep(tables):
            raise RecursionError
        return tables
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path}: is nested too deeply: {DEEPEST} levels at most") from None
    except ValueError as error:  # also for a number of many digits
        raise ConfigError(f"{path}: not valid TOML: {error}") from None


def reject_unknown(table: Mapping[str, Any], known_keys: typing.Iterable[str], origin: Origin) -> None:
    """Raise ConfigError for the first key of `table` that is not in `known_keys`, and offer close ones."""
    known_keys = set(known_keys)
    names = sorted(known_keys | origin.other_keys)
    for key in table:
        if key not in known_keys:
            close = difflib.get_close_matches(str(key)[:80], names, n=2, cutoff=0.5)
            offer = f"did you mean {' or '.join(close)}?" if close else f"known keys: {', '.join(names) or 'none'}"
            raise ConfigError(f"{origin.at(str(key)[:80])}: unknown key; {offer}")


def from_mapping(cls: type[T], table: Mapping[str, Any], origin: Origin | None = None) -> T:
    """Build the dataclass `cls` from a table, recursing into nested dataclasses.

    If a field's default is a dataclass, an inner table replaces only the keys that it has, and the fields that these
    make irrelevant; see `_drop_irrelevant`. Raises ConfigError for an unknown key, a wrong type, a missing required
    key, and for what `__post_init__` rejects with ValueError.
    """
    origin = origin or Origin()
    name = f"[{origin.table}]" if origin.table else cls.__name__
    location = name if origin.path is None else f"{origin.path}: {name}"
    if not isinstance(table, Mapping):
        raise ConfigError(f"{location}: expected a table, got {repr(table)[:80]}")
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    reject_unknown(table, fields, origin)
    values = dict.fromkeys(irrelevant_fields(cls, table))
    values |= {key: _field(fields[key], field_hints(cls)[key], value, origin) for key, value in table.items()}
    for name, field in fields.items():
        if name not in values and default_of(field) is dataclasses.MISSING:
            remedy = f"; give {origin.option} {name}=..." if origin.option else ""
            raise ConfigError(f"{origin.at(name)}: required, and not given{remedy}")
    try:
        return cls(**values)
    except ValueError as error:
        key = _key_in_message(table, str(error))
        raise ConfigError(f"{origin.at(key) if key else location}: {str(error).removeprefix(f'{key}: ')}") from None


def _field(field: dataclasses.Field[Any], hint: Any, value: Any, origin: Origin) -> Any:
    """Return the value of a field; keys missing from an inner table come from the field's default."""
    default = default_of(field)
    nested = isinstance(hint, type) and dataclasses.is_dataclass(hint) and isinstance(default, hint)
    if not (nested and isinstance(value, Mapping)):
        return _convert(hint, value, origin, field.name)
    inherited = _drop_irrelevant(type(default), changed_fields(default), value)
    return from_mapping(type(default), {**inherited, **value}, origin.inner(field.name))


def default_of(field: dataclasses.Field[Any]) -> Any:
    """Return the default of a field, or MISSING."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def changed_fields(config: Any) -> dict[str, Any]:
    """Return the fields of a dataclass that differ from their defaults."""
    values = {field: getattr(config, field.name) for field in dataclasses.fields(config) if field.init}
    return {field.name: value for field, value in values.items() if value != default_of(field)}


def irrelevant_fields(cls: type, table: Mapping[str, Any]) -> typing.Iterable[str]:
    """Return the fields made irrelevant by a table's keys: the class's `irrelevant_fields(table)` if it has one."""
    return getattr(cls, "irrelevant_fields", lambda _: ())(table)


def _drop_irrelevant(cls: type, table: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the keys of a table, and of its inner tables, that the table `over` it makes irrelevant."""
    irrelevant = set(irrelevant_fields(cls, over))
    relevant = {key: value for key, value in table.items() if key not in irrelevant}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        inner, inner_over = relevant.get(field.name), over.get(field.name)
        if isinstance(inner, Mapping) and isinstance(inner_over, Mapping):
            default = default_of(field)
            if dataclasses.is_dataclass(default):
                relevant[field.name] = _drop_irrelevant(type(default), inner, inner_over)
    return relevant


def _key_in_message(table: Mapping[str, Any], message: str) -> str | None:
    """Return the key that a message begins with, or names in words ("image size" for `image_size`)."""
    leading_keys = (key for key in table if re.match(rf"{re.escape(key)}\b", message))
    spelled_keys = (key for key in table if "_" in key and re.search(rf"\b{key.replace('_', ' ')}\b", message))
    return next(leading_keys, None) or next(spelled_keys, None)


def _convert(hint: Any, value: Any, origin: Origin, key: str) -> Any:
    """Return a value as its type hint, see `records.convert`; tables of settings are built by `from_mapping`."""
    hint, value = _narrowed(hint, value), _without_numpy(value)
    inner_class, kind = inner_table(hint)
    if inner_class is None:
        pass
    elif kind == "one" and isinstance(value, inner_class):
        return value
    elif kind == "one" and isinstance(value, Mapping):
        return from_mapping(inner_class, value, origin.inner(key))
    elif kind == "list" and isinstance(value, list | tuple):
        return tuple(_convert(inner_class, item, origin, key) for item in value)
    elif kind == "named" and isinstance(value, Mapping):
        inner_origin = origin.inner(key)
        return {name: _convert(inner_class, table, inner_origin, name) for name, table in value.items()}
    if isinstance(value, set | frozenset):
        raise SettingError(f"{origin.at(key)}: expected {in_words(hint)}, got a set, which has no order")
    try:
        return convert(value, hint)
    except RecordError as error:
        indices = ""
        for inner_key in error.keys:
            if isinstance(inner_key, int):
                indices += f"[{inner_key}]"
            else:
                origin, key = origin.inner(key), inner_key
        raise SettingError(f"{origin.at(key)}{indices}: {error.reason}") from None


def _without_numpy(value: Any) -> Any:
    """Return numbers of numpy, also in lists and tuples, as numbers of Python."""
    if isinstance(value, list | tuple):
        return type(value)(map(_without_numpy, value))
    return value.item() if getattr(value, "ndim", None) == 0 else value


def _narrowed(hint: Any, value: Any) -> Any:
    """Return a hint with several settings classes as one with the class that has all keys of the table `value`."""
    options = typing.get_args(hint)
    classes: list[Any] = [option for option in options if dataclasses.is_dataclass(option)]
    if len(classes) < 2:
        return hint
    keys = value if isinstance(value, Mapping) else ()
    fitting = (cls for cls in classes if isinstance(value, cls) or all(key in cls.__dataclass_fields__ for key in keys))
    table_class = next(fitting, classes[0])
    return typing.Union[(table_class, *(option for option in options if option not in classes))]


SHOWN = {"shown": True}
"""Metadata of a setting for display or memory only: it changes neither values nor tokens."""


def convert_setting(hint: Any, value: Any, key: str) -> Any:
    """Return a setting or argument from Python, with numpy's numbers, as if from a file. Raises SettingError."""
    return _convert(hint, value, Origin(), key)


class Checked:
    """Base of settings classes: frozen dataclasses whose fields are converted and checked, also when Python makes them.

    A class with its own `__post_init__` has to call its base's first. Raises SettingError.
    """

    __slots__ = ()

    def __post_init__(self) -> None:
        for name, hint in field_hints(type(self)).items():
            object.__setattr__(self, name, convert_setting(hint, getattr(self, name), name))


Sides = PositiveInt | tuple[PositiveInt, PositiveInt]
"""The type of a setting: one number for squares, or [height, width]."""


def height_width(sides: Sides) -> tuple[int, int]:
    """Return the two sides of a rectangle."""
    return (sides, sides) if isinstance(sides, int) else sides


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` updated with `over`, table by table."""
    table = dict(base)
    for key, value in over.items():
        inner = table.get(key)
        table[key] = merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return table


def preset_of(cls: type, table: Mapping[str, Any], origin: Origin) -> Mapping[str, Any]:
    """Return the preset of `cls` that the key `preset` names; empty without such a key."""
    presets: Mapping[str, Mapping[str, Any]] = getattr(cls, "presets", {})
    if "preset" not in table or not presets:
        return {}
    preset = table["preset"]
    if not isinstance(preset, str) or preset not in presets:
        options = " or ".join(f'"{name}"' for name in presets)
        raise ConfigError(f"{origin.at('preset')}: expected {options}, or no such key; got {preset!r}")
    return presets[preset]


class Settings(Mapping[str, Any]):
    """Settings of one instance of a plugin, from registry.toml and the command line.

    The mapping holds the instance's own keys. `shared` holds the keys of `[zoo]` (image_size, patch_size, ...), and
    plugins take the ones they know. `vocabularies` holds the `[vocabularies.*]` tables.
    """

    def __init__(
        self,
        name: str,
        table: Mapping[str, Any] | None = None,
        *,
        shared: Mapping[str, Any] | None = None,
        vocabularies: Mapping[str, Mapping[str, Any]] | None = None,
        origin: Origin | None = None,
    ) -> None:
        self.name = name
        self.table = dict(table or {})
        self.shared = dict(shared or {})
        self.vocabularies = {key: dict(table) for key, table in (vocabularies or {}).items()}
        # A preset precedes shared keys, and its keys are known only to the class that declares it.
        shared_keys = frozenset() if "preset" in self.table else frozenset(self.shared.keys() - self.table.keys())
        self.origin = dataclasses.replace(origin or Origin(), shared=shared_keys)
        self.parsed: dict[type, Any] = {}
        """Results of `take`, by class."""
        self.parsed_vocabularies: dict[tuple[str, type], Any] = {}
        """Results of `vocabulary`, by table name and class."""

    def __getitem__(self, key: str) -> Any:
        return self.table[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.table)

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        return f"Settings({self.name!r}, {self.table!r})"

    def take(self, cls: type[T]) -> T:
        """Return these settings as the dataclass `cls`, checked and cached. Raises ConfigError.

        Own keys go over the keys of the preset that the key `preset` names (in the class attribute `presets`), and
        these over shared keys.
        """
        if cls not in self.parsed:
            names = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
            offered = {key: value for key, value in self.shared.items() if key in names}
            keys = merged(_drop_irrelevant(cls, preset_of(cls, self.table, self.origin), self.table), self.table)
            origin = dataclasses.replace(self.origin, shared=frozenset(offered.keys() - keys.keys()))
            self.parsed[cls] = from_mapping(cls, {**offered, **keys}, origin)
        return typing.cast(T, self.parsed[cls])

    def vocabulary(self, name: str, cls: type[T]) -> T:
        """Return the table `[vocabularies.NAME]` as the dataclass `cls`; presets work as in `take`."""
        if (name, cls) not in self.parsed_vocabularies:
            origin = Origin(path=self.origin.path, table=f"vocabularies.{name}")
            self.parsed_vocabularies[name, cls] = Settings(name, self.vocabularies.get(name), origin=origin).take(cls)
        return typing.cast(T, self.parsed_vocabularies[name, cls])

    def changed(self, **overrides: Any) -> Settings:
        """Return a copy with some own keys replaced; tables are merged."""
        table = merged(self.table, overrides)
        return Settings(self.name, table, shared=self.shared, vocabularies=self.vocabularies, origin=self.origin)


# ---------------------------------------------------------------- listing a dataclass's tables and keys

UNSET = "-"
"""Shown for a default of None."""
REQUIRED = "required"
ITS_TABLE = "its table"
"""Shown for a default that is a table of its own."""
Kind = Literal["one", "list", "named"]
TABLES: Mapping[Kind, str] = {"one": "table", "list": "list of tables", "named": "table of tables"}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """One key of a table: type, default and value in use, written as TOML, and its docstring."""

    name: str
    type: str
    default: str
    used: str
    meaning: str
    inner: bool
    """True if it holds tables, which are listed on their own."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table with its keys: one table, a list (`[[NAME]]`), or any number of tables named by the user."""

    name: str
    about: str
    """Docstring of the class."""
    kind: Kind = "one"
    absent: bool = False
    """True if there is no such table by default."""
    keys: tuple[Key, ...]

    @property
    def header(self) -> str:
        """The table's header in TOML."""
        name = f"{self.name}.NAME" if self.kind == "named" else self.name
        return f"[[{name}]]" if self.kind == "list" else f"[{name}]"


def tables_of(config: Any, name: str) -> Iterator[Table]:
    """Yield the table `name` ("" for the top of a file) of a settings dataclass, then its inner tables.

    `config` is the class, or an instance with the values in use.
    """
    cls = config if isinstance(config, type) else type(config)
    yield from _tables(cls, name, default=None, used=None if config is cls else config, kind="one", absent=False)


def _tables(cls: type, name: str, *, default: Any, used: Any, kind: Kind, absent: bool) -> Iterator[Table]:
    """Yield tables with the values of the instances `default` and `used`; None means the class's defaults."""
    hints, meanings = field_hints(cls), field_docstrings(cls)
    keys, inner = [], []
    for field in filter(lambda field: field.init, dataclasses.fields(cls)):
        default_value = default_of(field) if default is None else getattr(default, field.name)
        value = default_value if used is None else getattr(used, field.name)
        inner_class, inner_kind = inner_table(hints[field.name])
        type_text = in_words(hints[field.name]) if inner_class is None else TABLES[inner_kind]
        keys.append(
            Key(
                name=field.name,
                type=type_text,
                default=_text(default_value, inner_class),
                used=_text(value, inner_class),
                meaning=meanings.get(field.name, ""),
                inner=inner_class is not None,
            )
        )
        if inner_class is not None:
            inner.append(
                _tables(
                    inner_class,
                    f"{name}.{field.name}" if name else field.name,
                    default=default_value if isinstance(default_value, inner_class) else None,
                    used=value if isinstance(value, inner_class) else None,
                    kind=inner_kind,
                    absent=inner_kind == "one" and default_value is None,
                )
            )
    yield Table(
        name=name, about=" ".join((inspect.getdoc(cls) or "").split()), kind=kind, absent=absent, keys=tuple(keys)
    )
    yield from itertools.chain.from_iterable(inner)


def _text(value: Any, inner_class: type | None) -> str:
    if value is dataclasses.MISSING:
        return REQUIRED
    if value is None or (inner_class is not None and value in ((), {})):
        return UNSET
    return ITS_TABLE if inner_class is not None and isinstance(value, inner_class) else toml_text(value)


@functools.cache
def inner_table(hint: Any) -> tuple[type | None, Kind]:
    """Return the dataclass in a type hint (itself, optional, in a tuple or a mapping), or None."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    for option in options:
        outer, inner = typing.get_origin(option), typing.get_args(option)
        table_class: Any = inner[0] if outer is tuple else inner[1] if outer in (dict, Mapping) else option
        if isinstance(table_class, type) and dataclasses.is_dataclass(table_class):
            return table_class, "list" if outer is tuple else "one" if outer is None else "named"
    return None, "one"


def field_docstrings(cls: type) -> dict[str, str]:
    """Return the docstring below each field of a dataclass, inherited fields included, on one line."""
    docstrings: dict[str, str] = {}
    for owner in cls.__mro__:
        if not dataclasses.is_dataclass(owner):
            continue
        try:
            (definition,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        except (OSError, TypeError, SyntaxError):
            continue
        assert isinstance(definition, ast.ClassDef)
        for field, text in itertools.pairwise(definition.body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
                words = ast.literal_eval(text.value) if isinstance(text.value, ast.Constant) else ""
                docstrings.setdefault(field.target.id, " ".join(str(words).split()))
    return docstrings


def toml_text(value: Any) -> str:
    """Return a value written as TOML; a dataclass shows only what differs from its defaults."""
    if dataclasses.is_dataclass(value):
        value = changed_fields(value)
    if isinstance(value, Mapping):
        bare = {key: key if re.fullmatch(r"[\w-]+", str(key)) else json.dumps(key) for key in value}
        pairs = ", ".join(f"{bare[key]} = {toml_text(item)}" for key, item in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_text, value))}]"
    return json.dumps(value, ensure_ascii=False, default=str)
