"""Metadata: any subset of a declared table of fields, each a special token and a level."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, ClassVar, Literal, TypeVar

from tokenizers_zoo import hookimpl
from tokenizers_zoo.contract.spec import Metric, ModalitySpec, ValueSpec
from tokenizers_zoo.errors import ConfigError, InvalidValueError
from tokenizers_zoo.families.text import TextModality, TextTokenizer, read_json
from tokenizers_zoo.records.config import Settings
from tokenizers_zoo.tokenizers.text_vocab import Coordinate, Piece, Special, VocabularyConfig
from zoo_metadata.fields import MetadataField, Number


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
            level_count = max(declared.levels(bins), (declared.number or 0) + 1)
            if level_count > bins:
                raise ConfigError(
                    f"{settings.name}: field {name} needs {level_count} levels, [vocabularies.{self.vocabulary_name}] "
                    f"coordinate_bins is {bins}: raise it, or give the field fewer"
                )
        spec: ModalitySpec = super().modality_spec(settings)
        declarations = tuple((name, declared.declaration(bins)) for name, declared in table.items())
        return replace(spec, value=replace(spec.value, fields=declarations))

    def bins(self, settings: Settings) -> int:
        """Levels per coordinate axis of the vocabulary."""
        return settings.vocabulary(self.vocabulary_name, VocabularyConfig).coordinate_bins

    @hookimpl
    def vocabulary_tokens(self, settings: Settings) -> Sequence[str]:
        """One per field that has no number."""
        table, bins = self.table(settings.take(self.settings_class)), self.bins(settings)
        return [declared.token(name, bins) for name, declared in table.items() if declared.number is None]

    def names(self, tokenizer: TextTokenizer[S]) -> dict[Piece, str]:
        """Map the piece that names each field, a special token or the field's number on axis v1, to the field."""
        return {
            Special(declared.token(name, tokenizer.bins))
            if declared.number is None
            else Coordinate(1, declared.number): name
            for name, declared in self.table(tokenizer.settings).items()
        }

    @hookimpl
    def single_ids(self, tokenizer: TextTokenizer[S]) -> Sequence[int]:
        """Tokens that name a field. Only the first of two values of a field would count."""
        special_tokens = set(tokenizer.vocabulary.all_special_tokens)
        return tokenizer.vocabulary.encode(
            piece for piece in self.names(tokenizer) if not isinstance(piece, Special) or piece.name in special_tokens
        )

    def encode_value(self, value: Any, tokenizer: TextTokenizer[S]) -> list[int]:
        fields, table = self.declared_values(value, tokenizer.settings), self.table(tokenizer.settings)
        pieces: list[Piece] = []
        for piece, name in self.names(tokenizer).items():
            if name in fields:
                pieces += [piece, Coordinate(0, level_of(name, table[name], fields[name], tokenizer.bins))]
        return tokenizer.vocabulary.encode(pieces)

    def decode_value(self, pieces: Sequence[Piece], tokenizer: TextTokenizer[S]) -> dict[str, Number]:
        """Each declared field's token that a level follows, the first of a name; numbers are the centres of levels.

        Fields of other declarations are left out.
        """
        table, names, fields = self.table(tokenizer.settings), self.names(tokenizer), dict[str, Number]()
        for piece, level in pairwise(pieces):
            if isinstance(level, Coordinate) and level.axis == 0 and piece in names:
                name = names[piece]
                fields.setdefault(name, table[name].value(level.level, tokenizer.bins))
        return fields

    def declared_values(self, value: Any, options: S) -> dict[str, Number]:
        """The declared fields of `value`. Raises InvalidValueError: no table, or a field that is refused."""
        if not isinstance(value, Mapping):
            raise InvalidValueError(f"expected a table of fields, got {type(value).__name__}")
        table = self.table(options)
        if options.unknown == "refuse" and (undeclared := [name for name in value if name not in table]):
            raise InvalidValueError(
                f"field {undeclared[0]!r:.60} is not declared; declared: {', '.join(table)}; declare it in a table "
                '[modalities.NAME.fields.FIELD], or set unknown = "drop"'
            )
        return {name: number for name, number in value.items() if name in table}

    @hookimpl
    def read_value(self, data: bytes, extension: str, settings: Settings) -> dict[str, Number]:
        """A `.json` file with one table."""
        return self.normalised_values(read_json(data, extension), settings)

    def normalised_values(self, value: Any, settings: Settings) -> dict[str, Number]:
        """The declared fields of `value`, each as its field means it.

        Raises InvalidValueError, also for a number outside its field's range.
        """
        options, bins = settings.take(self.settings_class), self.bins(settings)
        fields, table = self.declared_values(value, options), self.table(options)
        for name, number in fields.items():
            level_of(name, table[name], number, bins)
        return {name: table[name].normalise(number) for name, number in fields.items()}

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
        return json.dumps(self.normalised_values(value, settings), ensure_ascii=False, allow_nan=False).encode(), "json"

    @hookimpl
    def render(self, value: Mapping[str, Number], settings: Settings) -> str:
        """One line per field, with its unit."""
        table = self.table(settings.take(self.settings_class))
        lines = []
        for name, number in value.items():
            number_text = f"{number:.3g}" if isinstance(number, float) else str(number)
            unit = table[name].unit if name in table else ""
            lines.append(f"{name} {number_text} {unit}".rstrip())
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
            numbers = [declared.normalise(value[name]) for value in values if name in value]
            if numbers:
                answer[name] = statistics.mode(numbers) if declared.kind == "choice" else statistics.median_low(numbers)
        return answer


def level_of(name: str, declared: MetadataField, value: Any, bins: int) -> int:
    """The level of a field's value. Raises InvalidValueError naming the field, its range and unit."""
    try:
        return declared.level(value, bins)
    except InvalidValueError as error:
        raise InvalidValueError(f"field {name}: {error}") from None


FIELDS = {
    "camera_height": MetadataField(low=0, high=3, unit="m", meaning="of the camera above the floor"),
    "camera_pitch": MetadataField(low=-60, high=30, unit="deg", meaning="of the camera, up is above 0"),
    "camera_fov": MetadataField(low=30, high=110, unit="deg", meaning="vertical angle that the picture spans"),
    "room_width": MetadataField(low=2, high=12, unit="m", meaning="of the room, across"),
    "room_depth": MetadataField(low=2, high=12, unit="m", meaning="of the room, along"),
    "room_height": MetadataField(low=2, high=5, unit="m", meaning="of the room"),
    "mean_depth": MetadataField(low=0, high=15, unit="m", meaning="mean over pixels"),
    "num_objects": MetadataField(kind="int", low=0, high=40, meaning="things seen"),
    "num_people": MetadataField(kind="int", low=0, high=8, meaning="people seen"),
    "num_classes": MetadataField(kind="int", low=0, high=40, meaning="semantic classes seen"),
    "brightness": MetadataField(low=0, high=1, meaning="mean luma"),
    "contrast": MetadataField(low=0, high=0.5, meaning="deviation of the luma"),
    "saturation": MetadataField(low=0, high=1, meaning="mean saturation"),
    "colourfulness": MetadataField(low=0, high=1.5, meaning="spread and strength of the colours"),
    "clutter": MetadataField(low=0, high=1, meaning="share of the picture that things cover"),
    "walkability": MetadataField(low=0, high=1, meaning="share of the picture that can be walked on"),
    "geometric_complexity": MetadataField(low=0, high=1, meaning="spherical variance of the normals"),
}


def _published() -> dict[str, dict[str, Any]]:
    """The fields of the 4M-21 model (arXiv 2406.09406, appendix), by their numbers in its tokens.

    Sizes are in steps of 32 pixels. As there, numbers are rounded down to a level, those beyond the range are clipped,
    and scores may be numbers. A level is read as the middle of its interval; 4M's plots show another number of it.
    """
    count = {"kind": "int", "low": 0, "high": 999, "clip": True}
    pixels = {"low": 0, "high": 32 * 999, "bins": 1000, "unit": "px", "rounding": "down", "clip": True}
    watermark = {"kind": "choice", "choices": ["below 0.5", "0.5 and more"], "thresholds": [0.5]}
    beauty = {"kind": "choice", "choices": ["below 4.5", "4.5 to 5.5", "5.5 and more"], "thresholds": [4.5, 5.5]}

    def steps(high: float, **extra: Any) -> dict[str, Any]:
        return {"low": 0, "high": high, **extra, "bins": 50, "rounding": "down", "clip": True}

    table: dict[str, dict[str, Any]] = {
        "original_width": pixels,
        "original_height": pixels,
        "caption_n_chars": count,
        "caption_n_words": count,
        "caption_n_sentences": count,
        "n_humans": count,
        "n_sam_instances": count,
        "n_coco_instances": count,
        "coco_instance_diversity": count,
        "colorfulness": steps(150),
        "brightness": steps(255),
        "contrast": steps(127),
        "saturation": steps(255),
        "entropy": steps(10, unit="bit"),
        "walkability": steps(1),
        "objectness": steps(1),
        "semantic_diversity": count,
        "geometric_complexity": steps(0.75),
        "occlusion_score": steps(0.25),
        "watermark_score": watermark,
        "aesthetic_score": beauty,
    }
    return {name: {**declared, "number": number} for number, (name, declared) in enumerate(table.items())}


@dataclass(frozen=True, kw_only=True, slots=True)
class TableSettings(MetadataSettings):
    """Settings of `metadata`."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"4m": {"default_fields": False, "fields": _published()}}

    preset: Literal["4m"] | None = None
    """4m: the fields of the 4M-21 model, in its tokens. Numbers become the level at or below them, those outside the
    range its ends, and the two scores may be numbers; a level is read as the middle of the numbers that become it."""


class Metadata(MetadataModality[TableSettings]):
    """Metadata as a source or the user's files give them."""

    summary = "Numbers and words about the sample, from a declared table of fields"
    settings_class = TableSettings
    default_fields = FIELDS


plugin = Metadata()
