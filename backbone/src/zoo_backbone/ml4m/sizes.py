"""The size of a published tokenizer: as stated, else by its name, else as built.

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
"""The settings that say how many tokens a grid has."""
CHOSEN = "size.json"
"""File of a tokenizer with the size that its import chose, which a backbone may change."""


@dataclass(frozen=True)
class Size:
    """The size of a tokenizer, and the reason."""

    table: Mapping[str, Any]
    """That size, as settings."""
    stated: bool
    """Whether it was stated, by the registry or by a backbone whose modality it is."""
    note: str
    """The decision in words; empty for the size that the tokenizer was built for."""


def shown(size: Mapping[str, Any]) -> str:
    """A size as registry.toml has it."""
    return ", ".join(f"{key} = {value}" for key, value in size.items())


def size_for(
    zoo: Zoo, name: str, own: Mapping[str, Any], keys: Sequence[str], title: str, config: Mapping[str, Any]
) -> Size:
    """The size for a modality with a tokenizer: `own` are settings that take it, at `keys` the size it was built for.

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
    """The smaller size of a name such as `rgb_16k_224-448`, where the tokenizer was built for the larger, `pixels`."""
    for smaller, larger in re.findall(r"(?<![^_.-])(\d+)-(\d+)(?![^_.-])", title):
        low, high = int(smaller), int(larger)
        whole = all(isinstance(side, int) and side * low % high == 0 for side in built.values())
        if high == pixels and 0 < low < high and whole:
            return {key: side * low // high for key, side in built.items()}
    return {}


def sides(size: Any) -> list[int]:
    """A size as its two sides."""
    return [size, size] if isinstance(size, int) else list(size)


def refusal(zoo: Zoo, name: str, own: Mapping[str, Any]) -> str:
    """Why a modality cannot have these settings; empty where it can."""
    try:
        _ = Zoo.from_tables({**zoo.tables, "modalities": {name: own}}, zoo.path)[name]
    except ConfigError as error:
        return str(error).removeprefix(f"{zoo.path}: ")
    return ""


def record_chosen(folder: Path, size: Size) -> None:
    """Remember with a tokenizer whether its import chose its size."""
    if size.table and not size.stated:
        write_json(folder / CHOSEN, dict(size.table))
    else:
        (folder / CHOSEN).unlink(missing_ok=True)


def is_chosen(folder: Path, table: Mapping[str, Any]) -> bool:
    """Whether a modality's table has the size that the import of its tokenizer, in `folder`, chose."""
    path = folder / CHOSEN
    return path.is_file() and all(table.get(key) == side for key, side in read_table(path).items())


def resized(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Return the change of a size by a backbone in words."""
    sizes = [{key: table[key] for key in SIZES if key in table} for table in (after, before)]
    return f"{shown(sizes[0])}, as this backbone has it; it was {shown(sizes[1])}"
