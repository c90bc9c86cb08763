"""What a recipe asks for, as tokens: the samples with all that is given of them, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers_zoo.data.tokens import TokenColumn
from tokenizers_zoo.errors import ConfigError
from tokenizers_zoo.registry import ModalityHandle, Zoo
from zoo_backbone.codecs import check_codec
from zoo_backbone.generate.giving import (
    numbers_of_keys,
    shared_rows,
    sources_of,
    stored_columns,
    tokens_of_source,
)
from zoo_backbone.generate.inputs import rows_of
from zoo_backbone.generate.partial import checked_partial
from zoo_backbone.generate.recipe import DEFAULT_SPLIT, Recipe
from zoo_backbone.generate.regions import partial_of
from zoo_backbone.model import FourM
from zoo_backbone.run import Run

DRAW = 1 << 32
"""The number of a draw is that of its sample plus so much for each draw before it."""
MOST = 1_000_000
"""Samples of which nothing is given, at once: they and their names are in memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """Samples with their names, numbers and tokens: those given whole, and the kept parts of targets.

    Of stored samples what is given whole is read when `rows` asks for it: all of it may be more than memory holds.
    """

    names: tuple[str, ...]
    numbers: tuple[int, ...]
    stored: Mapping[str, TokenColumn]
    """Given whole, of stored samples, whose keys are `names`."""
    stored_rows: tuple[int, ...]
    """Rows of the stored samples."""
    values: Mapping[str, Any]
    """Given whole: the tokens of one sample, which all samples have."""
    kept: Mapping[str, Any]

    @property
    def given(self) -> tuple[str, ...]:
        """The modalities given whole."""
        return (*self.stored, *self.values)

    def rows(self, rows: Sequence[int]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The tokens given whole, and `kept`, of the samples `rows`."""
        stored = [self.stored_rows[row] for row in rows] if self.stored else []
        given = {name: column.take(stored) for name, column in self.stored.items()}
        given |= {name: rows_of(tokens, [0] * len(rows)) for name, tokens in self.values.items()}
        return given, {name: rows_of(tokens, rows) for name, tokens in self.kept.items()}


def handles_of(zoo: Zoo, model: FourM, recipe: Recipe, trained_on: Mapping[str, str]) -> dict[str, ModalityHandle]:
    """All modalities that the recipe names.

    Raises UnknownNameError, DataError for another codec or shape, and ConfigError where the model cannot rank what is
    made.
    """
    names = [*sources_of(recipe.inputs), *recipe.inpaint, *(target.name for target in recipe.targets)]
    if recipe.rank:
        names.append(recipe.rank)
        model.layout.check_made(recipe.rank, "rank")
        for target in recipe.targets:
            model.layout.check_read(target.name, f"rank {recipe.rank} of")
    handles = {name: zoo[name] for name in names if model.layout.spec(name)}
    for name, handle in handles.items():
        check_codec(handle, trained_on.get(name), model.layout.spec(name))
    return handles


def requested(run: Run, model: FourM, handles: Mapping[str, ModalityHandle], recipe: Recipe) -> Request:
    """The samples, and what is given of them. Raises ZooErrors."""
    sources = sources_of(recipe.inputs)
    for name in recipe.inpaint:
        if name not in sources:
            raise ConfigError(f"inpaint {name}: is not among the inputs; add --input {name}")
    values = {name: tokens_of_source(handles[name], source) for name, source in sources.items() if source}
    stored: dict[str, TokenColumn] = {}
    rows: list[int] = []
    if named := [handles[name] for name, source in sources.items() if not source]:
        stored = stored_columns(run, named, recipe.split)
        place = run.tokens / recipe.split
        shared = shared_rows(stored, place)
        keys = list(shared)
        numbers = stored_numbers(recipe, keys, place)
        names = [keys[number] for number in numbers]
        rows = [shared[name] for name in names]
    else:
        check_nothing_stored(recipe, values)
        numbers = [0] if values else _numbers_of_nothing(recipe)
        names = ["files"] if values else [f"sample-{number:03}" for number in numbers]
    kept = {}
    for name, region in recipe.inpaint.items():
        tokens = stored.pop(name).take(rows) if name in stored else rows_of(values.pop(name), [0] * len(names))
        kept[name] = partial_of(model.layout.spec(name), tokens, region)
        checked_partial(model.layout, name, kept[name], len(names), name in {target.name for target in recipe.targets})
    return Request(
        names=tuple(names), numbers=tuple(numbers), stored=stored, stored_rows=tuple(rows), values=values, kept=kept
    )


def _numbers_of_nothing(recipe: Recipe) -> Sequence[int]:
    """The numbers of samples of which nothing is given. Raises ConfigError for too many, and too large ones."""
    asked = recipe.ranges()
    if sum(last - first + 1 for first, last in asked) > MOST:
        raise ConfigError(
            f"samples {recipe.samples}: expected at most {MOST:,} at once where nothing stored is given; a sample "
            f"depends on its number alone, so make the others by further calls, such as {MOST}-{2 * MOST - 1}"
        )
    if max(last for _, last in asked) >= DRAW:
        raise ConfigError(f"samples {recipe.samples}: expected numbers below {DRAW}")
    return recipe.numbers()


def stored_numbers(recipe: Recipe, shared: Sequence[str], place: Path) -> Sequence[int]:
    """The numbers of the stored samples among those that have all that is given, whose keys are `shared`.

    Raises ConfigError, UnknownNameError.
    """
    if recipe.keys:
        return numbers_of_keys(recipe.keys, shared, place)
    if not recipe.samples or recipe.samples.isdecimal():  # as many as there are
        return recipe.numbers()[: len(shared)]
    if max(last for _, last in recipe.ranges()) >= len(shared):
        raise ConfigError(
            f"samples {recipe.samples}: {place} has {len(shared)} with all that is given, numbers 0 to "
            f"{len(shared) - 1}"
        )
    return recipe.numbers()


def check_nothing_stored(recipe: Recipe, values: Mapping[str, Any]) -> None:
    """Raise ConfigError where a recipe that gives nothing stored chooses among stored samples."""
    split = recipe.split if recipe.split != DEFAULT_SPLIT else ""
    for key, wanted in (("keys", ", ".join(recipe.keys)), ("split", split)):
        if wanted:
            raise ConfigError(f"{key} {wanted}: no modality of stored samples is given; leave it out")
    if recipe.samples not in ("", "1") and values:
        raise ConfigError(
            f"samples {recipe.samples}: values are given, which make one sample; --draws makes several of it"
        )
