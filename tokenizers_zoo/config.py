"""TOML tables to frozen dataclasses: unknown keys and wrong types are errors that name file, line and key."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import itertools
import json
import math
import re
import textwrap
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from tokenizers_zoo.errors import ConfigError, UnknownKeyError

T = TypeVar("T")
SHARED = "zoo"
"""The table of registry.toml with the keys that all instances are offered."""
TOML = "utf-8-sig"
"""The encoding of TOML files: editors of Windows put a mark before UTF-8, which is no part of it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a table was written, so that an error about one of its keys can say file and line."""

    path: Path | None = None
    table: str = ""
    given: frozenset[str] = frozenset()
    """Keys, after their tables' names, that do not stand in the file but on the command line; see `keys_of`."""
    shared: frozenset[str] = frozenset()
    """Keys of this table that do not stand in it, but in `[zoo]` for all."""
    beside: frozenset[str] = frozenset()
    """Keys that may stand in this table, too, and are read elsewhere: what a mistyped key may have meant."""

    def at(self, key: str) -> str:
        """`registry.toml:12 [modalities.x] key`, with the line where it can be found."""
        if key in self.shared:
            return self._of_all.at(key)
        if self.path is None or f"{self.table}.{key}" in self.given:
            return f"[{self.table}] {key}" if self.table else key
        line = find_line(self.path, self.table, key)
        return f"{self.path}{f':{line}' if line else ''} {f'[{self.table}] ' if self.table else ''}{key}"

    @property
    def file(self) -> str:
        """The file's name, to say where something can be set; registry.toml where there is none yet."""
        return str(self.path or "registry.toml")

    def inner(self, key: str) -> Origin:
        """The origin of the table that `key` holds."""
        if key in self.shared:
            return self._of_all.inner(key)
        table = f"{self.table}.{key}" if self.table else key
        return dataclasses.replace(self, table=table, shared=frozenset(), beside=frozenset())

    @property
    def _of_all(self) -> Origin:
        return Origin(path=self.path, table=SHARED, given=self.given)


def keys_of(table: Mapping[str, Any], name: str) -> Iterator[str]:
    """The keys of the table of this name, and those of the tables in it, each after its table's name."""
    for key, value in table.items():
        yield f"{name}.{key}"
        if isinstance(value, Mapping):
            yield from keys_of(value, f"{name}.{key}")


def find_line(path: Path, table: str, key: str) -> int | None:
    """The 1-based line of `key` in `[table]` of the TOML file `path`; inline tables count, None if not found."""
    try:
        lines = path.read_text(encoding=TOML).splitlines()
    except OSError:
        return None
    parts = table.split(".") if table else []
    for depth in range(len(parts), -1, -1):  # an inner table may be written inline, under one of its parents
        header = ".".join(parts[:depth])
        wanted = [*parts[depth:], key][0]
        current = ""
        for number, line in enumerate(lines, 1):
            if match := re.match(r"\s*\[\s*([^\[\]]+?)\s*\]", line):
                current = match.group(1).replace('"', "")
            elif current == header and re.match(rf'\s*"?{re.escape(wanted)}"?\s*[.=]', line):
                return number
    return None


def load_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file. Raises ConfigError with the parser's line where it is not TOML or cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding=TOML))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; a TOML file was expected") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None


def reject_unknown(given: Mapping[str, Any], known: typing.Iterable[str], origin: Origin) -> None:
    """Raise UnknownKeyError for the first key of `given` that is not `known`, with the close ones."""
    known = set(known)
    names = sorted(known | origin.beside)
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(key, names, n=2, cutoff=0.5)
            offer = f"did you mean {' or '.join(close)}?" if close else f"known keys: {', '.join(names) or 'none'}"
            raise UnknownKeyError(f"{origin.at(key)}: unknown key; {offer}")


def from_mapping(cls: type[T], given: Mapping[str, Any], origin: Origin | None = None) -> T:
    """Build the dataclass `cls` from `given`, recursing into nested dataclasses.

    A table given for a field whose default is a dataclass replaces only the keys that it has, and those that it leaves
    no use for; see `_beneath`. Raises ConfigError for an unknown key, a value of another type, a missing required key,
    or whatever the class's `__post_init__` rejects with ValueError.
    """
    origin = origin or Origin()
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    reject_unknown(given, fields, origin)
    values = dict.fromkeys(emptied(cls, given))
    values |= {key: _field(fields[key], hints[key], value, origin) for key, value in given.items()}
    for name, field in fields.items():
        if name not in values and default_of(field) is dataclasses.MISSING:
            raise ConfigError(f"{origin.at(name)}: required, and not given")
    try:
        return cls(**values)
    except ValueError as error:
        key = _blamed(given, str(error))
        table = f"[{origin.table}]" if origin.table else cls.__name__
        where = origin.at(key) if key else table if origin.path is None else f"{origin.path}: {table}"
        raise ConfigError(f"{where}: {str(error).removeprefix(f'{key}: ')}") from None


def _field(field: dataclasses.Field[Any], hint: Any, value: Any, origin: Origin) -> Any:
    """The value of a field. Keys that a table leaves out are as in the field's default, where that is a dataclass."""
    default = default_of(field)
    nested = isinstance(hint, type) and dataclasses.is_dataclass(hint) and isinstance(default, hint)
    if not (nested and isinstance(value, Mapping)):
        return _convert(hint, value, origin, field.name)
    own = {f.name: (getattr(default, f.name), default_of(f)) for f in dataclasses.fields(default) if f.init}
    others = {name: given for name, (given, usual) in own.items() if given != usual}
    return from_mapping(type(default), {**_beneath(type(default), others, value), **value}, origin.inner(field.name))


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The default of a field; MISSING where it has none."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def emptied(cls: type, table: Mapping[str, Any]) -> typing.Iterable[str]:
    """The fields of `cls` that a table leaves no use for, as the class's own `emptied_by(table)` says; mostly none."""
    return getattr(cls, "emptied_by", lambda _: ())(table)


def _beneath(cls: type, table: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """A table for `cls` without the keys, in its inner tables, too, that the table `over` it leaves no use for."""
    empty = set(emptied(cls, over))
    kept = {key: value for key, value in table.items() if key not in empty}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        inner, own = kept.get(field.name), over.get(field.name)
        if isinstance(inner, Mapping) and isinstance(own, Mapping):
            default = default_of(field)
            if dataclasses.is_dataclass(default):
                kept[field.name] = _beneath(type(default), inner, own)
    return kept


def _blamed(given: Mapping[str, Any], message: str) -> str | None:
    """The key of `given` that a message begins with, or speaks of in words: `image_size` as "image size"."""
    begins = (key for key in given if re.match(rf"{re.escape(key)}\b", message))
    in_words = (key for key in given if "_" in key and re.search(rf"\b{key.replace('_', ' ')}\b", message))
    return next(begins, None) or next(in_words, None)


def _convert(hint: Any, value: Any, origin: Origin, key: str) -> Any:
    """Check `value` against the type `hint`, turning tables into dataclasses and lists into tuples."""
    outer = typing.get_origin(hint)
    if hint is Any:
        return value
    if outer in (types.UnionType, typing.Union):
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        failures: list[tuple[bool, int, ConfigError]] = []
        for option in options:
            if option is not type(None):
                try:
                    return _convert(option, value, origin, key)
                except ConfigError as error:  # told is that of a list where a list was given
                    is_list = typing.get_origin(option) is tuple and isinstance(value, (list, tuple))
                    failures.append((not is_list, len(failures), error))
        raise min(failures)[2]
    if outer is typing.Literal:
        if value in typing.get_args(hint):
            return value
        raise ConfigError(f"{origin.at(key)}: expected one of {list(typing.get_args(hint))}, got {value!r}")
    if outer is tuple and isinstance(value, (list, tuple)):
        args = typing.get_args(hint)
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_convert(args[0], item, origin, key) for item in value)
        if len(args) == len(value):
            return tuple(_convert(arg, item, origin, key) for arg, item in zip(args, value, strict=True))
        raise ConfigError(f"{origin.at(key)}: expected {len(args)} items, got {len(value)}")
    if outer in (dict, Mapping) or outer is typing.get_origin(Mapping[str, Any]):
        if isinstance(value, Mapping):
            inner = typing.get_args(hint)[1]
            return {k: _convert(inner, v, origin.inner(key), k) for k, v in value.items()}
    elif isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if isinstance(value, hint):
            return value
        if isinstance(value, Mapping):
            return from_mapping(hint, value, origin.inner(key))
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ConfigError(f"{origin.at(key)}: expected a float, got a whole number that none can hold") from None
    elif isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    elif hint is Path and isinstance(value, str):
        return Path(value)
    expected = getattr(hint, "__name__", str(hint)) if outer is None else str(hint)
    raise ConfigError(f"{origin.at(key)}: expected {expected}, got {type(value).__name__} {value!r}")


SHOWN = {"shown": True}
"""Metadata of a setting that only says how values are shown: whatever it is, values and tokens are the same."""
ADDED = {"added": True}
"""Metadata of a field that came after files were written with its class; see `recorded`.

Where files from before mean something else than its default, "was" beside it is a function of the dataclass that says.
"""


def check_counts(config: object, *names: str) -> None:
    """Raise ValueError for the first of these fields that is below 1."""
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name}: expected at least 1, got {getattr(config, name)}")


def check_amounts(config: object, *names: str) -> None:
    """Raise ValueError for the first of these fields that is below 0 or not finite."""
    for name in names:
        if not 0 <= getattr(config, name) < math.inf:
            raise ValueError(f"{name}: expected 0 or more, got {getattr(config, name)}")


def recorded(config: Any) -> Any:
    """A dataclass as tables and lists, for a file. Fields that were ADDED are left out at what they were.

    So what a record says of an older configuration stays the same to the letter, and so does what is compared with it.
    """
    if dataclasses.is_dataclass(config):
        fields = [(field, getattr(config, field.name)) for field in dataclasses.fields(config)]
        kept = [(f.name, value) for f, value in fields if not (f.metadata.get("added") and value == _was(f, config))]
        return {name: recorded(value) for name, value in kept}
    if isinstance(config, Mapping):
        return {key: recorded(value) for key, value in config.items()}
    return type(config)(map(recorded, config)) if isinstance(config, (list, tuple)) else config


def _was(field: dataclasses.Field[Any], config: Any) -> Any:
    """What files from before an ADDED field mean."""
    return field.metadata["was"](config) if "was" in field.metadata else field.default


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `over` in their place; a table over a table replaces only the keys that it has."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def preset_of(cls: type, table: Mapping[str, Any], origin: Origin) -> Mapping[str, Any]:
    """The preset of `cls` that the table's key `preset` names; none where there is no such key, or `cls` knows none."""
    presets: Mapping[str, Mapping[str, Any]] = getattr(cls, "presets", {})
    if "preset" not in table or not presets:
        return {}
    chosen = table["preset"]
    if not isinstance(chosen, str) or chosen not in presets:
        known = " or ".join(f'"{name}"' for name in presets)
        raise ConfigError(f"{origin.at('preset')}: expected {known}, or no such key; got {chosen!r}")
    return presets[chosen]


class Settings(Mapping[str, Any]):
    """What registry.toml (and the command line) say for one instance of a plugin.

    As a mapping it holds the instance's own keys. `shared` holds what all instances are offered (`[zoo]`: image_size,
    patch_size, ...): a plugin takes of it what it knows. `vocabularies` holds the `[vocabularies.*]` tables.
    """

    def __init__(
        self,
        name: str,
        own: Mapping[str, Any] | None = None,
        *,
        shared: Mapping[str, Any] | None = None,
        vocabularies: Mapping[str, Mapping[str, Any]] | None = None,
        origin: Origin | None = None,
    ) -> None:
        self.name = name
        self.own = dict(own or {})
        self.shared = dict(shared or {})
        self.vocabularies = {key: dict(table) for key, table in (vocabularies or {}).items()}
        # A preset goes before what is shared, and who reads the table alone knows what is in it.
        shared_keys = frozenset() if "preset" in self.own else frozenset(self.shared.keys() - self.own.keys())
        self.origin = dataclasses.replace(origin or Origin(), shared=shared_keys)
        self.taken: dict[type, Any] = {}
        """What `take` gave, by class."""
        self.taken_vocabularies: dict[tuple[str, type], Any] = {}
        """What `vocabulary` gave, by the table's name and class."""

    def __getitem__(self, key: str) -> Any:
        return self.own[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.own)

    def __len__(self) -> int:
        return len(self.own)

    def __repr__(self) -> str:
        return f"Settings({self.name!r}, {self.own!r})"

    def take(self, cls: type[T]) -> T:
        """These settings as the dataclass `cls`, all checked; cached.

        Shared keys that it has; over them the keys of the preset that the own key `preset` names, one of the tables of
        the class's attribute `presets`; over them own keys. Raises ConfigError.
        """
        if cls not in self.taken:
            names = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
            offered = {key: value for key, value in self.shared.items() if key in names}
            own = merged(_beneath(cls, preset_of(cls, self.own, self.origin), self.own), self.own)
            origin = dataclasses.replace(self.origin, shared=frozenset(offered.keys() - own.keys()))
            self.taken[cls] = from_mapping(cls, {**offered, **own}, origin)
        result: T = self.taken[cls]
        return result

    def vocabulary(self, name: str, cls: type[T]) -> T:
        """The table `[vocabularies.NAME]` as the dataclass `cls`; a preset as in `take`, defaults without one."""
        if (name, cls) not in self.taken_vocabularies:
            origin = Origin(path=self.origin.path, table=f"vocabularies.{name}")
            table = self.vocabularies.get(name, {})
            table = merged(preset_of(cls, table, origin), table)
            self.taken_vocabularies[name, cls] = from_mapping(cls, table, origin)
        result: T = self.taken_vocabularies[name, cls]
        return result

    def replaced(self, **own: Any) -> Settings:
        """A copy with some own keys replaced whole, tables, too, and without a preset under them."""
        table = {key: value for key, value in self.own.items() if key != "preset"} | own
        return Settings(self.name, table, shared=self.shared, vocabularies=self.vocabularies, origin=self.origin)

    def changed(self, **own: Any) -> Settings:
        """A copy with some own keys replaced; a table given for a table is merged into it."""
        table = merged(self.own, own)
        return Settings(self.name, table, shared=self.shared, vocabularies=self.vocabularies, origin=self.origin)


UNSET = "-"
"""Stands for a default of None: the key is absent."""
REQUIRED = "required"
ITS_TABLE = "its table"
"""Stands for a default that the keys of the table below say."""
Kind = Literal["one", "list", "named"]
TABLES: Mapping[Kind, str] = {"one": "table", "list": "list of tables", "named": "table of tables"}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """One key of a table: type, default and the value in use as TOML would have them, and its docstring."""

    name: str
    type: str
    default: str
    used: str
    meaning: str
    inner: bool
    """Whether it holds tables that are told apart."""

    @property
    def elsewhere(self) -> bool:
        """Whether all that there is to say of it is in the table of its name."""
        return self.inner and {self.default, self.used} <= {UNSET, ITS_TABLE}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table with its keys. `kind`: one table, a list of them (`[[NAME]]`), or any number by names of the user's."""

    name: str
    about: str
    """What the class says of itself."""
    kind: Kind = "one"
    absent: bool = False
    """Whether there is no such table unless it is given."""
    keys: tuple[Key, ...]

    @property
    def header(self) -> str:
        """As TOML has it."""
        name = f"{self.name}.NAME" if self.kind == "named" else self.name
        return f"[[{name}]]" if self.kind == "list" else f"[{name}]"


def tables_of(config: Any, name: str) -> Iterator[Table]:
    """The table `name` ("" for the top of a file) of a settings dataclass, then those in it.

    `config` is the class, or an instance with the values in use; defaults are those of the class either way.
    """
    cls = config if isinstance(config, type) else type(config)
    yield from _tables(cls, name, default=None, used=None if config is cls else config, kind="one", absent=False)


def _tables(cls: type, name: str, *, default: Any, used: Any, kind: Kind, absent: bool) -> Iterator[Table]:
    """`default` and `used` are instances; None stands for what the class itself says."""
    hints, meanings = typing.get_type_hints(cls), field_docstrings(cls)
    keys, inner = [], []
    for field in filter(lambda field: field.init, dataclasses.fields(cls)):
        first = default_of(field) if default is None else getattr(default, field.name)
        now = first if used is None else getattr(used, field.name)
        below, how = inner_table(hints[field.name])
        words = in_words(hints[field.name]) if below is None else TABLES[how]
        texts = {"default": _text(first, below), "used": _text(now, below), "meaning": meanings.get(field.name, "")}
        keys.append(Key(name=field.name, type=words, **texts, inner=below is not None))
        if below is not None:
            inner.append(
                _tables(
                    below,
                    f"{name}.{field.name}" if name else field.name,
                    default=first if isinstance(first, below) else None,
                    used=now if isinstance(now, below) else None,
                    kind=how,
                    absent=how == "one" and first is None,
                )
            )
    yield Table(
        name=name, about=" ".join((inspect.getdoc(cls) or "").split()), kind=kind, absent=absent, keys=tuple(keys)
    )
    yield from itertools.chain.from_iterable(inner)


def _text(value: Any, below: type | None) -> str:
    if value is dataclasses.MISSING:
        return REQUIRED
    if value is None or (below is not None and value in ((), {})):
        return UNSET
    return ITS_TABLE if below is not None and isinstance(value, below) else plain(value)


def inner_table(hint: Any) -> tuple[type | None, Kind]:
    """The dataclass that a type makes a table of, itself, optional, in a tuple or by name; None where it makes none."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    for option in options:
        outer, inner = typing.get_origin(option), typing.get_args(option)
        held: Any = inner[0] if outer is tuple else inner[1] if outer in (dict, Mapping) else option
        if isinstance(held, type) and dataclasses.is_dataclass(held):
            return held, "list" if outer is tuple else "one" if outer is None else "named"
    return None, "one"


def field_docstrings(cls: type) -> dict[str, str]:
    """The string below each field of a dataclass, its own or inherited, on one line; none where there is no source."""
    found: dict[str, str] = {}
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
                found.setdefault(field.target.id, " ".join(str(words).split()))
    return found


def in_words(hint: Any) -> str:
    """A type as it is written in TOML: `int`, `list of int`, `"a" or "b"`."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return " or ".join(json.dumps(value) for value in arguments)
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return " or ".join(dict.fromkeys(in_words(option) for option in arguments if option is not type(None)))
    if typing.get_origin(hint) is tuple:
        kinds = dict.fromkeys(in_words(kind) for kind in arguments if kind is not Ellipsis)
        return f"list of {'' if Ellipsis in arguments else f'{len(arguments)} '}{' or '.join(kinds)}"
    if typing.get_origin(hint) in (dict, Mapping):
        return "table"
    return "path" if hint is Path else str(getattr(hint, "__name__", hint))


def plain(value: Any) -> str:
    """A value as TOML would have it; of a dataclass what differs from its defaults."""
    if dataclasses.is_dataclass(value):
        fields = {field.name: (getattr(value, field.name), default_of(field)) for field in dataclasses.fields(value)}
        value = {key: now for key, (now, default) in fields.items() if now != default}
    if isinstance(value, Mapping):
        bare = {key: key if re.fullmatch(r"[\w-]+", str(key)) else json.dumps(key) for key in value}
        pairs = ", ".join(f"{bare[key]} = {plain(item)}" for key, item in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(plain, value))}]"
    return json.dumps(value, ensure_ascii=False, default=str)
