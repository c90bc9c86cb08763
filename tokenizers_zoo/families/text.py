"""The base of modalities that are sequences over a shared text vocabulary: text, coordinates and special tokens.

A plugin says how one value becomes ids, and how pieces become a value; the rest of the contract is here. Pieces may
come from a model and make no sense: what is malformed is skipped, and decoding never fails.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from tokenizers_zoo.config import Settings
from tokenizers_zoo.data.samples import TrainingSamples
from tokenizers_zoo.errors import CONTROL, ConfigError, InvalidValueError
from tokenizers_zoo.hookspecs import hookimpl
from tokenizers_zoo.spec import Metric, ModalitySpec, SequenceLayout, ValueSpec
from tokenizers_zoo.text_vocab import Piece, TextVocabulary, VocabularyConfig
from tokenizers_zoo.validation import text_of

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class TextTokenizer(Generic[S]):
    """What encode and decode are given: the shared vocabulary, and the name and settings of this instance."""

    vocabulary: TextVocabulary
    name: str
    settings: S

    @property
    def bins(self) -> int:
        """Levels per coordinate axis."""
        return self.vocabulary.config.coordinate_bins


class TextModality(Generic[S]):
    """The hooks of one sequence modality; `S` is its settings, a frozen dataclass.

    A subclass gives `summary`, `value`, `metrics` and `settings_class`, and implements `encode_value`, `decode_value`;
    where it writes text, beside special tokens and coordinates, also the hook `vocabulary_texts`.
    """

    summary: ClassVar[str]
    value: ClassVar[ValueSpec]
    metrics: ClassVar[tuple[Metric, ...]] = ()
    settings_class: type[S]
    derived_from: ClassVar[tuple[str, ...]] = ()
    vocabulary_name: ClassVar[str] = "text"
    aliases: ClassVar[tuple[str, ...]] = ()
    axes: ClassVar[int] = 0
    """Coordinate axes that the modality writes: v0 to v(axes - 1)."""

    def value_spec(self, options: S) -> ValueSpec:
        """The value under these settings; `value` unless its shape depends on them."""
        return self.value

    def max_length(self, options: S) -> int:
        """Most tokens of one value: the setting `max_length`, unless it follows from others."""
        length: int = getattr(options, "max_length")  # noqa: B009  (S is any dataclass that has it)
        return length

    def encode_value(self, value: Any, tokenizer: TextTokenizer[S]) -> list[int]:
        """Ids of one value, at most `max_length` of them. Raises InvalidValueError for what is not a value."""
        raise NotImplementedError

    def decode_value(self, pieces: Sequence[Piece], tokenizer: TextTokenizer[S]) -> Any:
        """The value of any pieces at all: what is malformed is skipped."""
        raise NotImplementedError

    @hookimpl
    def modality_spec(self, settings: Settings) -> ModalitySpec:
        """Describe the modality: a sequence over the shared vocabulary, whose size is its capacity."""
        config = self._vocabulary_config(settings)
        options = settings.take(self.settings_class)
        return ModalitySpec(
            name=settings.name,
            summary=self.summary,
            value=self.value_spec(options),
            layout=SequenceLayout(
                max_length=self.max_length(options),
                end=config.end,
                sentinel_start=config.sentinel_start,
                num_sentinels=config.sentinels,
            ),
            vocab_size=config.size,
            vocabulary=self.vocabulary_name,
            ordered_ids=config.ordered_ids,
            family="text",
            derived_from=self.derived_from,
            metrics=self.metrics,
            aliases=self.aliases,
        )

    @hookimpl
    def train_tokenizer(self, config: Settings, samples: TrainingSamples, out_dir: Path) -> Path:
        """Train the shared vocabulary on the texts of all who share it, or grow the one that is there.

        Where `samples` gives no texts, as from a script, it learns from the text of the training values.
        A vocabulary at `out_dir` keeps its ids: it gets the special tokens that it lacks, and the capacity that the
        settings say, and is left as it is where it lacks none. Nothing is random here.
        """
        config.take(self.settings_class)
        wanted = self._vocabulary_config(config)
        special_tokens = (*samples.special_tokens, *self.vocabulary_tokens(config))
        texts = functools.partial(self._texts, samples, config)
        TextVocabulary.train_folder(out_dir, wanted, texts, special_tokens, samples.provenance)
        return out_dir

    def _texts(self, samples: TrainingSamples, settings: Settings) -> Iterator[str]:
        """The texts of `samples`; where it gives none, those that this modality writes of the training values."""
        found = False
        for text in samples.texts():
            found = True
            yield text
        hook = getattr(self, "vocabulary_texts", None)
        if found or hook is None:
            return
        taken = inspect.signature(hook).parameters  # a plugin may leave out what it does not need
        given = {"settings": settings} if "settings" in taken else {}
        for value in samples.train:
            yield from hook(values=[value], **given)

    @hookimpl
    def load_tokenizer(self, checkpoint: Path, settings: Settings) -> TextTokenizer[S]:
        """Load the vocabulary, checked against the settings. Raises CheckpointError."""
        vocabulary = TextVocabulary.load(checkpoint, self._vocabulary_config(settings))
        return TextTokenizer(vocabulary, settings.name, settings.take(self.settings_class))

    @hookimpl
    def encode(self, tokenizer: TextTokenizer[S], values: Sequence[Any]) -> list[np.ndarray[Any, Any]]:
        """Ids of each value, int64 `(tokens,)`. Raises InvalidValueError, naming the place in the batch."""
        tokens = []
        for index, value in enumerate(values):
            try:
                tokens.append(np.asarray(self.encode_value(value, tokenizer), dtype=np.int64))
            except InvalidValueError as error:
                place = f" (value {index} of {len(values)})" if len(values) > 1 else ""
                raise InvalidValueError(f"{tokenizer.name}: {error}{place}") from None
        return tokens

    @hookimpl
    def decode(self, tokenizer: TextTokenizer[S], tokens: Sequence[Any]) -> Any:
        """The value of each sequence of ids, whatever they are."""
        return [self.decode_value(tokenizer.vocabulary.decode(ids), tokenizer) for ids in tokens]

    @hookimpl
    def vocabulary_tokens(self, settings: Settings) -> Sequence[str]:
        """No special tokens."""
        return ()

    def _vocabulary_config(self, settings: Settings) -> VocabularyConfig:
        config = settings.vocabulary(self.vocabulary_name, VocabularyConfig)
        if config.coordinate_axes < self.axes:
            raise ConfigError(
                f"{settings.name}: writes coordinates on {self.axes} axes, [vocabularies.{self.vocabulary_name}] "
                f"coordinate_axes is {config.coordinate_axes}; set it to {self.axes} or more, or disable the modality"
            )
        return config


def whole_groups(groups: Iterable[Sequence[int]], limit: int) -> list[int]:
    """The ids of the leading groups that fit in `limit` together; a group is never cut."""
    ids: list[int] = []
    for group in groups:
        if len(ids) + len(group) > limit:
            break
        ids += group
    return ids


def read_json(data: bytes, extension: str) -> Any:
    """A file of JSON. Raises InvalidValueError for another extension, or what is not JSON."""
    if extension != "json":
        raise InvalidValueError(f"expected a .json file, got .{extension}")
    try:
        return json.loads(text_of(data), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidValueError(f"not valid JSON: {str(error) or type(error).__name__}") from None


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def control_character(text: str, allowed: str = "") -> str | None:
    """The first control character of `text` that is not `allowed`, as `U+0007 at character 12`; None without one."""
    for found in CONTROL.finditer(text):
        if found.group() not in allowed:
            return f"U+{ord(found.group()):04X} at character {found.start()}"
    return None


def printable(text: str, allowed: str = "") -> str:
    """The text with U+FFFD for control characters that are not `allowed`."""
    return CONTROL.sub(lambda found: found.group() if found.group() in allowed else "\ufffd", text)


def words_of(text: str) -> list[str]:
    """Runs of letters and digits, with the marks on them (accents, vowel signs) and the joiners between them."""
    return _word_pattern().findall(text)


@functools.cache
def _word_pattern() -> re.Pattern[str]:
    """`\\w` lacks marks (category M of Unicode), at which words of Indian scripts, among others, would fall apart."""
    marks = "".join(char for char in map(chr, range(0x300, 0xE0200)) if unicodedata.category(char).startswith("M"))
    return re.compile(rf"\w+(?:[{marks}\u200c\u200d]+\w*)*")
