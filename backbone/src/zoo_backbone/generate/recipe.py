"""A plan in a TOML file: inputs, targets, and how each target is generated.

    inputs = ["rgb", \'caption="a red ball"\']   # as --input
    seed = 0
    [inpaint]                                  # as --inpaint
    depth = "box:0,0,1,0.5"
    [guidance]                                 # of all targets that have none of their own
    scale = 3.0
    [[targets]]                                # in the order in which they are generated
    name = "depth"
    steps = 8
    guidance = { weights = { caption = 3.0 } }

Paths in it are relative to its folder.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tokenizers_zoo.config import Origin, default_of, from_mapping, load_toml
from tokenizers_zoo.data.samples import TEST
from tokenizers_zoo.errors import ConfigError
from zoo_backbone.generate.giving import is_written_out, sources_of
from zoo_backbone.generate.guidance import Guidance
from zoo_backbone.generate.plan import TargetPlan
from zoo_backbone.generate.regions import ranges

MASK = "mask:"
DEFAULT_SAMPLES, DEFAULT_SPLIT = 4, TEST


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """All that one generation depends on beside the model and the stored samples."""

    targets: tuple[TargetPlan, ...]
    """Generated in this order."""
    inputs: tuple[str, ...] = ()
    """NAME (stored samples), NAME=FILE, NAME="TEXT" or NAME={JSON}."""
    inpaint: Mapping[str, str] = field(default_factory=dict)
    """The region of an input to generate anew, by modality; the rest stays. Regions: docs/generation.md."""
    guidance: Guidance = field(default_factory=Guidance)
    """Of all targets that have none of their own."""
    samples: str = ""
    """How many samples, or which: "4" the first four, "0-7,12" these numbers; "": four, or the one that values make."""
    keys: tuple[str, ...] = ()
    """Keys of stored samples; none: as `samples` says."""
    split: str = DEFAULT_SPLIT
    """Of the stored samples."""
    draws: int = 1
    """Draws per sample."""
    seed: int = 0
    """Seed of the draws."""
    rank: str = ""
    """A modality by which draws are compared with their condition, the best written first; none: as drawn."""

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise ValueError(f"draws: expected a number from 1 on, got {self.draws}")
        if self.seed < 0:
            raise ValueError(f"seed: expected a number from 0 on, got {self.seed}")
        if self.samples.isdecimal() and not int(self.samples):
            raise ValueError(f"samples: expected a number from 1 on or numbers such as 0-7, got {self.samples!r}")
        if self.keys and self.samples:
            raise ValueError(f"samples: {self.samples!r}, and keys say which, too; leave one of them out")

    def plan(self) -> list[TargetPlan]:
        """The targets, each with its guidance."""
        return [replace(target, guidance=target.guidance or self.guidance) for target in self.targets]

    def files(self) -> set[Path]:
        """The files that it reads."""
        files = [source for source in sources_of(self.inputs).values() if not is_written_out(source)]
        masks = [region.partition(MASK)[2] for region in self.inpaint.values()]
        return {Path(file).resolve() for file in (*files, *masks) if file}

    def ranges(self) -> list[tuple[int, int]]:
        """The first and last number of each range of `samples`. Raises ConfigError."""
        if not self.samples:
            return [(0, DEFAULT_SAMPLES - 1)]
        if self.samples.isdecimal():
            return [(0, int(self.samples) - 1)]
        return ranges(self.samples, f"samples {self.samples}")

    def numbers(self) -> Sequence[int]:
        """The numbers of the samples. Raises ConfigError."""
        asked = self.ranges()
        if len(asked) == 1:
            return range(asked[0][0], asked[0][1] + 1)
        found = [number for first, last in asked for number in range(first, last + 1)]
        if len(set(found)) < len(found):
            raise ConfigError(f"samples {self.samples}: a number is asked for twice")
        return found


def read_recipe(path: Path) -> dict[str, Any]:
    """The tables of a plan's file, checked, with the files in it as paths that hold anywhere. Raises ConfigError."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such plan; expected a TOML file with tables [[targets]]")
    table = load_toml(path)
    from_mapping(Recipe, table, Origin(path=path))
    folder = path.parent.resolve()
    inputs = []
    for name, source in sources_of(table.get("inputs", ())).items():
        placed = source if not source or is_written_out(source) else str(folder / source)
        inputs.append(f"{name}={placed}" if placed else name)
    inpaint = {name: _placed(region, folder) for name, region in table.get("inpaint", {}).items()}
    return {**table, "inputs": inputs, "inpaint": inpaint}


def _placed(region: str, folder: Path) -> str:
    """A region whose mask's file is a path that holds anywhere."""
    before, mask, file = region.partition(MASK)
    return f"{before}{mask}{folder / file}" if mask and not before.replace("not:", "") else region


def written_recipe(recipe: Recipe, notes: Mapping[str, str]) -> str:
    """The TOML of a recipe, what is not at its default, so that read again it makes the same; notes as comments."""
    lines = [f"# {key}: {note}" for key, note in notes.items()]
    here = Path.cwd()
    inputs = [
        f"{name}={source if is_written_out(source) else here / source}" if source else name
        for name, source in sources_of(recipe.inputs).items()
    ]
    changed = replace(recipe, inputs=tuple(inputs), inpaint={k: _placed(v, here) for k, v in recipe.inpaint.items()})
    lines += _lines(_changes(replace(changed, targets=())))
    for target in recipe.targets:
        lines += ["", "[[targets]]", *_lines(_changes(target))]
    return "\n".join(lines) + "\n"


def _changes(item: Any) -> dict[str, Any]:
    """The fields of a dataclass that differ from their defaults, dataclasses among them likewise."""
    changes = {}
    for declared in dataclasses.fields(item):
        value = getattr(item, declared.name)
        if value != default_of(declared) and value != ():
            if isinstance(value, Guidance):
                # All of it where it differs from none at all: it stands for something, if only for no guidance.
                value = _changes(value) or {key: part for key, part in asdict(value).items() if part not in ((), {})}
            changes[declared.name] = value
    return changes


def _lines(table: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """A table as lines `key = value`, tables in it with dotted keys."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _lines(value, f"{prefix}{key}.")
        else:
            # JSON's strings, numbers, booleans and lists are TOML, too, but for this character.
            yield f"{prefix}{key} = {json.dumps(value, ensure_ascii=False)}".replace("\x7f", "\\u007f")
