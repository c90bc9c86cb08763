"""The size of a published tokenizer: as stated in the registry, else from its name, else as built.

Published tokenizers were trained at several sizes and built for the largest; the 4M models use the smallest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers_zoo.errors import ConfigError
from tokenizers_zoo.io import read_table, write_json
from tokenizers_zoo.registry import Zoo

SIZES = ("image_size", "map_size")
"""Settings that determine the number of tokens of a grid."""
CHOSEN = "size.json"
"""File of a tokenizer with the size that its import selected, which a backbone may change."""


@dataclass(frozen=True)
class Size:
    """The size of a tokenizer, and the reason."""

    table: Mapping[str, Any]
    """The size, as settings."""
    stated: bool
    """Whether the registry or the modality's backbone states the size."""
    note: str
    """The decision in words; empty for the size that the tokenizer was built for."""


def shown(size: Mapping[str, Any]) -> str:
    """Return a size in the form of registry.toml."""
    return ", ".join(f"{key} = {value}" for key, value in size.items())


def size_for(
    zoo: Zoo, name: str, own: Mapping[str, Any], keys: Sequence[str], title: str, config: Mapping[str, Any]
) -> Size:
    """Return the size for a tokenizer's modality: `own` are its settings, `keys` the settings that contain the size it
    was built for.

    `zoo` is the registry as it was before, `title` and `config` are the tokenizer's name and published configuration.
    """
    built = {key: own[key] for key in keys}
    said = zoo.tables["modalities"].get(name, {})
    stated = [key for key in built if key in said or "preset" in said or key in zoo.tables["zoo"]]
    if stated:
        known = zoo[name].known_settings()
        wanted = {key: list(known[key]) if isinstance(known[key], tuple) else known[key] for key in stated}
        why = "as the registry says"
    else:
        wanted, why = named_size(title, config.get("image_size"), built), "as the 4M models use it"
    if not wanted or all(sides(wanted[key]) == sides(built[key]) for key in wanted):
        return Size({**built, **wanted}, bool(stated), "")
    if problem := refusal(zoo, name, {**own, **wanted}):
        return Size(built, False, f"{shown(built)}, its own: {shown(wanted)}, {why}, does not do: {problem}")
    return Size({**built, **wanted}, bool(stated), f"{shown(wanted)}, {why}; it was built for {shown(built)}")


def named_size(title: str, pixels: Any, built: Mapping[str, Any]) -> dict[str, Any]:
    """Return the smaller size in a name such as `rgb_16k_224-448`, if the tokenizer was built for the larger size,
    `pixels`."""
    for smaller, larger in re.findall(r"(?<![^_.-])(\d+)-(\d+)(?![^_.-])", title):
        low, high = int(smaller), int(larger)
        whole = all(isinstance(side, int) and side * low % high == 0 for side in built.values())
        if high == pixels and 0 < low < high and whole:
            return {key: side * low // high for key, side in built.items()}
    return {}


def sides(size: Any) -> list[int]:
    """Return a size as two sides."""
    return [size, size] if isinstance(size, int) else list(size)


def refusal(zoo: Zoo, name: str, own: Mapping[str, Any]) -> str:
    """Return the reason why a modality cannot have these settings; empty if it can."""
    try:
        _ = Zoo.from_tables({**zoo.tables, "modalities": {name: own}}, zoo.path)[name]
    except ConfigError as error:
        return str(error).removeprefix(f"{zoo.path}: ")
    return ""


def record_chosen(folder: Path, size: Size) -> None:
    """Store in a tokenizer's folder whether its import selected the size."""
    if size.table and not size.stated:
        write_json(folder / CHOSEN, dict(size.table))
    else:
        (folder / CHOSEN).unlink(missing_ok=True)


def is_chosen(folder: Path, table: Mapping[str, Any]) -> bool:
    """Return whether a modality's table has the size that the import of its tokenizer, in `folder`, selected."""
    path = folder / CHOSEN
    return path.is_file() and all(table.get(key) == side for key, side in read_table(path).items())


def resized(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Return the change of a size by a backbone in words."""
    sizes = [{key: table[key] for key in SIZES if key in table} for table in (after, before)]
    return f"{shown(sizes[0])}, as this backbone has it; it was {shown(sizes[1])}"
