"""Modalities that are metadata: any subset of a declared table of fields, each a special token and a level."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, ClassVar, Literal, TypeVar

from tokenizers_zoo import hookimpl
from tokenizers_zoo.config import Settings
from tokenizers_zoo.errors import ConfigError, InvalidValueError
from tokenizers_zoo.families.text import TextModality, TextTokenizer, read_json
from tokenizers_zoo.spec import Metric, ModalitySpec, ValueSpec
from tokenizers_zoo.text_vocab import Coordinate, Piece, Special, VocabularyConfig
from zoo_metadata.fields import MetadataField, Number, parse_token


@dataclass(frozen=True, kw_only=True, slots=True)
class MetadataSettings:
    """Settings of all metadata. Raises ValueError, naming the field, for a name that cannot be one."""

    fields: Mapping[str, MetadataField] = field(default_factory=dict)
    """Fields to add or to replace: tables `[modalities.NAME.fields.FIELD]`."""
    default_fields: bool = True
    """Whether the plugin's own table is part of it."""
    unknown: Literal["refuse", "drop"] = "refuse"
    """What to do with a field that is not declared."""

    def __post_init__(self) -> None:
        if wrong := [name for name in self.fields if not re.fullmatch(r"[a-z][a-z0-9_]*", name)]:
            raise ValueError(f"fields: expected lower-case letters, digits and underscores, got {wrong[0]!r}")


S = TypeVar("S", bound=MetadataSettings)


class MetadataModality(TextModality[S]):
    """Any subset of the declared fields; each is a special token (or its number on axis v1) and its level on axis v0.

    A subclass gives `summary`, `settings_class` and `default_fields`. Metadata describe the whole picture. Crops do not
    change them.
    """

    default_fields: ClassVar[Mapping[str, MetadataField]]
    value = ValueSpec(kind="object", description="{field: number or word}, any subset of the declared fields")
    axes = 1
    metrics = (
        Metric(
            name="range_error",
            unit="fraction of range",
            higher_is_better=False,
            meaning="mean over the target's fields of the absolute error over the field's range; 1 for a missing field",
            bound=0.01,
        ),
        Metric(
            name="field_accuracy",
            higher_is_better=True,
            meaning="share of the target's fields that are right: numbers within one level, counts and words equal",
            bound=1.0,
        ),
    )

    def table(self, options: S) -> dict[str, MetadataField]:
        """All declared fields; in this order they become tokens."""
        return {**(self.default_fields if options.default_fields else {}), **options.fields}

    def max_length(self, options: S) -> int:
        return 2 * len(self.table(options))

    @hookimpl
    def modality_spec(self, settings: Settings) -> ModalitySpec:
        """As for all text modalities. Raises ConfigError if no field is declared, or if a field has no tokens."""
        table, bins = self.table(settings.take(self.settings_class)), self.bins(settings)
        if not table:
            raise ConfigError(f"{settings.name}: fields: at least one is needed where default_fields is false")
        numbers = [declared.number for declared in table.values() if declared.number is not None]
        if len(set(numbers)) < len(numbers):
            raise ConfigError(f"{settings.name}: fields: two of them have one number")
        for name, declared in table.items():
            if declared.levels(bins) > bins:
                raise ConfigError(
                    f"{settings.name}: field {name} has {declared.levels(bins)} levels, [vocabularies."
                    f"{self.vocabulary_name}] coordinate_bins is {bins}: raise it, or give the field fewer"
                )
            if declared.number is not None and declared.number >= bins:
                raise ConfigError(
                    f"{settings.name}: field {name} has the number {declared.number}, [vocabularies."
                    f"{self.vocabulary_name}] coordinate_bins is {bins}: raise it, or give the field a lower one"
                )
        spec: ModalitySpec = super().modality_spec(settings)
        shown = tuple((name, declared.declaration(bins)) for name, declared in table.items())
        return replace(spec, value=replace(spec.value, fields=shown))

    def bins(self, settings: Settings) -> int:
        """Levels per coordinate axis of the vocabulary."""
        return settings.vocabulary(self.vocabulary_name, VocabularyConfig).coordinate_bins

    @hookimpl
    def vocabulary_tokens(self, settings: Settings) -> Sequence[str]:
        """One per field that has no number."""
        table, bins = self.table(settings.take(self.settings_class)), self.bins(settings)
        return [declared.token(name, bins) for name, declared in table.items() if declared.number is None]

    @hookimpl
    def single_ids(self, tokenizer: TextTokenizer[S]) -> Sequence[int]:
        """Tokens that name a field. Only the first of two values of a field would count."""
        named = [Special(token) for token in tokenizer.vocabulary.all_special_tokens if parse_token(token)]
        numbers = [declared.number for declared in self.table(tokenizer.settings).values()]
        numbered = [Coordinate(1, number) for number in numbers if number is not None]
        return tokenizer.vocabulary.encode([*named, *numbered])

    def encode_value(self, value: Any, tokenizer: TextTokenizer[S]) -> list[int]:
        known, bins = self.checked(value, tokenizer.settings), tokenizer.bins
        pieces: list[Piece] = []
        for name, declared in self.table(tokenizer.settings).items():
            if name in known:
                level = level_of(name, declared, known[name], bins)
                own = declared.number is None
                pieces += [Special(declared.token(name, bins)) if own else Coordinate(1, declared.number or 0)]
                pieces += [Coordinate(0, level)]
        return tokenizer.vocabulary.encode(pieces)

    def decode_value(self, pieces: Sequence[Piece], tokenizer: TextTokenizer[S]) -> dict[str, Number]:
        """Each declared field's token that a level follows, the first of a name; numbers are the centres of levels.

        A token is read by the declaration it was written with, then moved to the nearest value of the current field. A
        level of another unit has no value of this one, and is left out.
        """
        table, found = self.table(tokenizer.settings), dict[str, Number]()
        numbered = {declared.number: (name, declared) for name, declared in table.items()}
        for token, level in pairwise(pieces):
            if isinstance(level, Coordinate) and level.axis == 0:
                name, declared = "", None
                if isinstance(token, Special):
                    name, declared = parse_token(token.name) or ("", None)
                elif isinstance(token, Coordinate) and token.axis == 1:
                    name, declared = numbered.get(token.level, ("", None))
                if declared is not None and name in table and name not in found:
                    value = table[name].translated(declared, level.level, tokenizer.bins)
                    found |= {} if value is None else {name: value}
        return found

    def checked(self, value: Any, options: S) -> dict[str, Number]:
        """The declared fields of `value`. Raises InvalidValueError: no table, or a field that is refused."""
        if not isinstance(value, Mapping):
            raise InvalidValueError(f"expected a table of fields, got {type(value).__name__}")
        table = self.table(options)
        if options.unknown == "refuse" and (others := [name for name in value if name not in table]):
            raise InvalidValueError(
                f"field {others[0]!r:.60} is not declared; declared: {', '.join(table)}; declare it in a table "
                '[modalities.NAME.fields.FIELD], or set unknown = "drop"'
            )
        return {name: number for name, number in value.items() if name in table}

    @hookimpl
    def read_value(self, data: bytes, extension: str, settings: Settings) -> dict[str, Number]:
        """A `.json` file with one table."""
        return self.fitting(read_json(data, extension), settings)

    def fitting(self, value: Any, settings: Settings) -> dict[str, Number]:
        """The declared fields of `value`, each as its field means it.

        Raises InvalidValueError, also for a number outside its field's range.
        """
        options, bins = settings.take(self.settings_class), self.bins(settings)
        known, table = self.checked(value, options), self.table(options)
        for name, number in known.items():
            level_of(name, table[name], number, bins)
        return {name: table[name].meant(number) for name, number in known.items()}

    @hookimpl
    def example_files(self, settings: Settings) -> dict[str, tuple[bytes, str]]:
        """Tables of the declared fields."""
        bins = self.bins(settings)
        middle: dict[str, Number] = {}
        for name, declared in self.table(settings.take(self.settings_class)).items():
            value = declared.value(declared.levels(bins) // 2, bins)
            middle[name] = float(f"{value:.3g}") if isinstance(value, float) else value
        first = dict(list(middle.items())[:1])
        return {
            "all fields": (json.dumps(middle).encode(), "json"),
            "one field only": (json.dumps(first).encode(), "json"),
            "a field of null": (json.dumps(dict.fromkeys(first)).encode(), "json"),
        }

    @hookimpl
    def write_value(self, value: Mapping[str, Number], settings: Settings) -> tuple[bytes, str]:
        """The table as JSON."""
        known = self.fitting(value, settings)
        return json.dumps(known, ensure_ascii=False, allow_nan=False).encode(), "json"

    @hookimpl
    def render(self, value: Mapping[str, Number], settings: Settings) -> str:
        """One line per field, with its unit."""
        table = self.table(settings.take(self.settings_class))
        lines = []
        for name, number in value.items():
            shown = f"{number:.3g}" if isinstance(number, float) else str(number)
            unit = table[name].unit if name in table else ""
            lines.append(f"{name} {shown} {unit}".rstrip())
        return "\n".join(lines) or "nothing"

    @hookimpl
    def score(
        self, predicted: Sequence[Mapping[str, Number]], target: Sequence[Mapping[str, Number]], settings: Settings
    ) -> dict[str, float]:
        """Over all declared fields of all targets together; fields that only the prediction has do not count."""
        table, bins = self.table(settings.take(self.settings_class)), self.bins(settings)
        errors, right = list[float](), list[bool]()
        for guess, truth in zip(predicted, target, strict=True):
            for name in (name for name in table if name in truth):
                error = table[name].error(guess.get(name), truth[name])
                tolerance = 1 / (table[name].levels(bins) - 1) if table[name].kind in ("float", "log") else 0.0
                errors.append(error)
                right.append(error <= tolerance + 1e-9)
        if not errors:
            return {"range_error": 0.0, "field_accuracy": 1.0}
        return {"range_error": sum(errors) / len(errors), "field_accuracy": sum(right) / len(right)}

    @hookimpl
    def constant_baseline(self, values: Sequence[Mapping[str, Number]], settings: Settings) -> dict[str, Number]:
        """Per field the median, which no other number beats in mean absolute error, or the most frequent word."""
        answer: dict[str, Number] = {}
        for name, declared in self.table(settings.take(self.settings_class)).items():
            given = [declared.meant(value[name]) for value in values if name in value]
            if given:
                answer[name] = statistics.mode(given) if declared.kind == "choice" else statistics.median_low(given)
        return answer


def level_of(name: str, declared: MetadataField, value: Any, bins: int) -> int:
    """The level of a field's value. Raises InvalidValueError naming the field, its range and unit."""
    try:
        return declared.level(value, bins)
    except InvalidValueError as error:
        raise InvalidValueError(f"field {name}: {error}") from None


@dataclass(frozen=True, kw_only=True, slots=True)
class DerivedSettings(MetadataSettings):
    """Settings of metadata that are computed from other modalities."""

    inputs: tuple[str, ...] = ()
    """The modalities to compute from; fields that need others are left out."""


D = TypeVar("D", bound=DerivedSettings)


class DerivedMetadata(MetadataModality[D]):
    """Metadata computed from other modalities, as far as they are among the settings' `inputs`.

    A subclass gives `measures`: by modality, the function that computes fields from its value. Results are clipped to
    the declared range. A measure may omit fields that cannot be measured.
    """

    measures: ClassVar[Mapping[str, Callable[..., Mapping[str, float]]]]
    """`measure(value, settings)` gives numbers by field; with further arguments where `measured` passes them."""

    def measured(self, name: str, value: Any, options: D, spec: ModalitySpec | None) -> Mapping[str, float]:
        """Numbers by field from the value of an input, whose spec is given where it is known."""
        return self.measures[name](value, options)

    @hookimpl
    def modality_spec(self, settings: Settings) -> ModalitySpec:
        """As for all metadata. Raises ConfigError for an input that nothing is computed from."""
        inputs = settings.take(self.settings_class).inputs
        known = ", ".join(self.measures)
        if not inputs or set(inputs) - set(self.measures) or len(set(inputs)) < len(inputs):
            raise ConfigError(f"{settings.origin.at('inputs')}: expected some of {known}, got {', '.join(inputs)}")
        spec: ModalitySpec = super().modality_spec(settings)
        return replace(spec, derived_from=inputs)

    @hookimpl
    def derive(
        self, sample: Mapping[str, Any], settings: Settings, specs: Mapping[str, ModalitySpec]
    ) -> dict[str, Number]:
        """All declared fields that the inputs give, in the order of the table."""
        options = settings.take(self.settings_class)
        measured: dict[str, float] = {}
        for name in options.inputs:
            measured |= self.measured(name, sample[name], options, specs.get(name))
        fitted = {name: declared.fitted(measured[name]) for name, declared in self.table(options).items()
                  if name in measured}  # fmt: skip
        return {name: value for name, value in fitted.items() if value is not None}
