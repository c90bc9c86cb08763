"""What a settings dataclass asks of its user: its tables and keys, each with type, default and meaning in words."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import json
import re
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from tokenizers_zoo.config import default_of

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
