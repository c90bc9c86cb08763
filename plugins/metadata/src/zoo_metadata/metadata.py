"""Metadata: named numbers and words about a sample, from a declared table of fields."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Literal

from tokenizers_zoo import hookimpl
from tokenizers_zoo.config import Settings
from tokenizers_zoo.errors import ConfigError, InvalidValueError
from tokenizers_zoo.families.text import TextModality, TextTokenizer, read_json
from tokenizers_zoo.modality import Metric, ModalitySpec, ValueSpec
from tokenizers_zoo.vocabulary import Coordinate, Piece, Special, VocabularyConfig
from zoo_metadata.fields import DEFAULT_FIELDS, MetadataField, Number, parse_token


@dataclass(frozen=True, kw_only=True, slots=True)
class MetadataSettings:
    """Settings of `metadata`. Raises ValueError, naming the field, for a name that cannot be one."""

    fields: Mapping[str, MetadataField] = field(default_factory=lambda: MappingProxyType({}))
    """Fields to add, or to declare anew in place of a default one: tables `[modalities.metadata.fields.NAME]`."""
    default_fields: bool = True
    """Whether the default table is part of it."""
    unknown: Literal["refuse", "drop"] = "refuse"
    """What to do with a field that is not declared."""

    def __post_init__(self) -> None:
        if wrong := [name for name in self.fields if not re.fullmatch(r"[a-z][a-z0-9_]*", name)]:
            raise ValueError(f"fields: expected lower-case letters, digits and underscores, got {wrong[0]!r}")
        if not self.table:
            raise ValueError("fields: at least one is needed where default_fields is false")

    @property
    def table(self) -> dict[str, MetadataField]:
        """All declared fields; in this order they become tokens."""
        return {**(DEFAULT_FIELDS if self.default_fields else {}), **self.fields}


class Metadata(TextModality[MetadataSettings]):
    """Any subset of the declared fields; each is a special token and a coordinate token with its level."""

    summary = "Numbers and words about the sample, from a declared table of fields"
    value = ValueSpec(kind="object", description="{field: number or word}, any subset of the declared fields")
    settings_type = MetadataSettings
    axes = 1
    metrics = (
        Metric(
            name="range_error",
            unit="fraction of range",
            higher_is_better=False,
            meaning="mean over the target's fields of the absolute error over the field's range; 1 for a missing field",
        ),
        Metric(
            name="field_accuracy",
            higher_is_better=True,
            meaning="share of the target's fields that are right: numbers within one level, counts and words equal",
        ),
    )

    def max_length(self, options: MetadataSettings) -> int:
        return 2 * len(options.table)

    @hookimpl
    def modality_spec(self, settings: Settings) -> ModalitySpec:
        """As for all text modalities. Raises ConfigError for a field with more levels than an axis has."""
        bins = settings.vocabulary(self.vocabulary_name, VocabularyConfig).coordinate_bins
        for name, declared in settings.take(MetadataSettings).table.items():
            if declared.levels(bins) > bins:
                raise ConfigError(
                    f"{settings.name}: field {name} has {declared.levels(bins)} levels, [vocabularies."
                    f"{self.vocabulary_name}] coordinate_bins is {bins}: raise it, or give the field fewer"
                )
        spec: ModalitySpec = super().modality_spec(settings)
        return spec

    @hookimpl
    def vocabulary_tokens(self, settings: Settings) -> Sequence[str]:
        """One per field."""
        bins = settings.vocabulary(self.vocabulary_name, VocabularyConfig).coordinate_bins
        return [declared.token(name, bins) for name, declared in settings.take(MetadataSettings).table.items()]

    def encode_value(self, value: Any, tokenizer: TextTokenizer[MetadataSettings]) -> list[int]:
        known, bins = checked_metadata(value, tokenizer.settings), tokenizer.bins
        pieces: list[Piece] = []
        for name, declared in tokenizer.settings.table.items():
            if name in known:
                level = level_of(name, declared, known[name], bins)
                pieces += [Special(declared.token(name, bins)), Coordinate(0, level)]
        return tokenizer.vocabulary.encode(pieces)

    def decode_value(self, pieces: Sequence[Piece], tokenizer: TextTokenizer[MetadataSettings]) -> dict[str, Number]:
        """Each field token that a level follows, the first of a name; numbers are the centres of their levels."""
        found: dict[str, Number] = {}
        for token, level in pairwise(pieces):
            if isinstance(token, Special) and isinstance(level, Coordinate) and level.axis == 0:
                parsed = parse_token(token.name)
                if parsed is not None and parsed[0] not in found:
                    found[parsed[0]] = parsed[1].value(level.level, tokenizer.bins)
        return found

    @hookimpl
    def read_value(self, data: bytes, extension: str, settings: Settings) -> dict[str, Number]:
        """A `.json` file with one table."""
        bins = settings.vocabulary(self.vocabulary_name, VocabularyConfig).coordinate_bins
        options = settings.take(MetadataSettings)
        known = checked_metadata(read_json(data, extension), options)
        for name, number in known.items():
            level_of(name, options.table[name], number, bins)
        return known

    @hookimpl
    def write_value(self, value: Mapping[str, Number], settings: Settings) -> tuple[bytes, str]:
        """The table as JSON."""
        known = checked_metadata(value, settings.take(MetadataSettings))
        return json.dumps(known, ensure_ascii=False, allow_nan=False).encode(), "json"

    @hookimpl
    def render(self, value: Mapping[str, Number], settings: Settings) -> str:
        """One line per field, with its unit."""
        table = settings.take(MetadataSettings).table
        lines = []
        for name, number in value.items():
            shown = f"{number:.3g}" if isinstance(number, float) else str(number)
            unit = table[name].unit if name in table else ""
            lines.append(f"{name} {shown} {unit}".rstrip())
        return "\n".join(lines)

    @hookimpl
    def score(
        self, predicted: Sequence[Mapping[str, Number]], target: Sequence[Mapping[str, Number]], settings: Settings
    ) -> dict[str, float]:
        """Over all declared fields of all targets together; fields that only the prediction has do not count."""
        table = settings.take(MetadataSettings).table
        bins = settings.vocabulary(self.vocabulary_name, VocabularyConfig).coordinate_bins
        errors, right = list[float](), list[bool]()
        for guess, truth in zip(predicted, target, strict=True):
            for name in truth.keys() & table.keys():
                error = table[name].error(guess.get(name), truth[name])
                tolerance = 1 / (table[name].levels(bins) - 1) if table[name].kind == "float" else 0.0
                errors.append(error)
                right.append(error <= tolerance + 1e-9)
        if not errors:
            return {"range_error": 0.0, "field_accuracy": 1.0}
        return {"range_error": sum(errors) / len(errors), "field_accuracy": sum(right) / len(right)}

    @hookimpl
    def constant_answer(self, values: Sequence[Mapping[str, Number]], settings: Settings) -> dict[str, Number]:
        """Per field the median, which no other number beats in mean absolute error, or the most frequent word."""
        answer: dict[str, Number] = {}
        for name, declared in settings.take(MetadataSettings).table.items():
            given = [value[name] for value in values if name in value]
            if given:
                answer[name] = statistics.mode(given) if declared.kind == "choice" else statistics.median_low(given)
        return answer


def checked_metadata(value: Any, options: MetadataSettings) -> dict[str, Number]:
    """The declared fields of `value`. Raises InvalidValueError where it is no table, or has others that are refused."""
    if not isinstance(value, Mapping):
        raise InvalidValueError(f"expected a table of fields, got {type(value).__name__}")
    table = options.table
    if options.unknown == "refuse" and (others := [name for name in value if name not in table]):
        raise InvalidValueError(
            f"field {others[0]!r} is not declared; declared: {', '.join(table)}; declare it in a table "
            '[modalities.metadata.fields.NAME], or set unknown = "drop"'
        )
    return {name: number for name, number in value.items() if name in table}


def level_of(name: str, declared: MetadataField, value: Any, bins: int) -> int:
    """The level of a field's value. Raises InvalidValueError naming the field, its range and unit."""
    try:
        return declared.level(value, bins)
    except InvalidValueError as error:
        raise InvalidValueError(f"field {name}: {error}") from None


plugin = Metadata()
