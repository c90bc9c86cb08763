"""JSON files: written atomically, read with one-line errors, and compared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

from tokenizers_zoo.errors import CheckpointError
from tokenizers_zoo.io import replacing_file

SHORT = 100
"""Letters up to which a list is shown whole where two differ."""
REMEDY = "copy it again, or delete it and run what wrote it"
"""What is to be done about a damaged file, unless a caller knows better."""


def write_json(path: Path, data: Any) -> None:
    """Write `data` as readable JSON, atomically."""
    with replacing_file(path) as temporary:
        temporary.write_text(json_text(data), encoding="utf-8")


def json_text(data: Any) -> str:
    """What `write_json` writes."""
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def as_json(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record as it is read back from JSON: lists for tuples, text for paths."""
    result: dict[str, Any] = json.loads(json.dumps(dict(record), default=str))
    return result


def read_json(path: Path, remedy: str = REMEDY) -> Any:
    """Read a JSON file. Raises CheckpointError, with what is to be done, where it is absent or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON: {error}; {remedy}") from None


def read_table(path: Path, *keys: str, remedy: str = REMEDY) -> dict[str, Any]:
    """Read a JSON file that holds a table with these keys. Raises CheckpointError where it does not."""
    table = read_json(path, remedy)
    missing = [key for key in keys if key not in table] if isinstance(table, dict) else ["any table"]
    if missing:
        wanted = f"a table with {', '.join(keys)}" if keys else "a table"
        raise CheckpointError(f"{path}: expected {wanted}, lacks {missing[0]}; {remedy}")
    return table


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The finished lines of a .jsonl file, tables with a step, as a killed process may have left it; [] without one.

    Raises CheckpointError for a line that is damaged.
    """
    if not path.is_file():
        return []
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if line.endswith("}"):
            try:
                found.append(json.loads(line))
                _ = found[-1]["step"]
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise CheckpointError(f"{path}:{number}: damaged line ({error}); delete the line or the file") from None
    return found


def drop_lines_after(path: Path, step: int) -> None:
    """Remove from a metrics.jsonl what a killed run logged after the state, at `step`, from which it goes on."""
    if path.is_file():
        kept = [line for line in read_lines(path) if line["step"] <= step]
        with replacing_file(path) as temporary:
            temporary.write_text("".join(f"{json.dumps(line)}\n" for line in kept), encoding="utf-8")


def as_recorded(old: Mapping[str, Any], new: Mapping[str, Any], *added: str) -> dict[str, Any]:
    """`new` without those of the keys `added` that `old` lacks, as records of older versions do: it is as it was."""
    return {key: value for key, value in new.items() if key in old or key not in added}


def difference(old: Any, new: Any, where: str = "") -> str:
    """The first place where two JSON values differ, as `train.steps was 400, is 800`; empty where they agree.

    Lists that are short are shown whole, of others the first item that differs: `fields[2] was "a", is "b"`.
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys((*old, *new)):
            if inner := difference(old.get(key), new.get(key), f"{where}.{key}" if where else key):
                return inner
        return ""
    if old == new:
        return ""
    was, now = json.dumps(old), json.dumps(new)
    if isinstance(old, list) and isinstance(new, list) and max(len(was), len(now)) > SHORT:
        for place, pair in enumerate(zip_longest(old, new)):
            if inner := difference(*pair, f"{where}[{place}]"):
                return inner
    return f"{where} was {was}, is {now}"
