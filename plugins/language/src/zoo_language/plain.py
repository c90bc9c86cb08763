"""Modalities whose value is one plain text, and web text: documents longer than captions, about anything."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal, TypeVar

from tokenizers_zoo import hookimpl
from tokenizers_zoo.contract.spec import Metric, ValueSpec
from tokenizers_zoo.contract.validation import text_of
from tokenizers_zoo.errors import InvalidValueError
from tokenizers_zoo.families.text import TextModality, TextTokenizer, control_character, printable, read_json, words_of
from tokenizers_zoo.records.config import Checked, Settings
from tokenizers_zoo.records.typed import PositiveInt
from tokenizers_zoo.tokenizers.text_vocab import Piece

WORD_F1 = Metric(
    name="word_f1",
    higher_is_better=True,
    meaning="harmonic mean of two shares: predicted words that the target has, target words that are predicted",
)
BLEU_2 = Metric(
    name="bleu_2",
    higher_is_better=True,
    meaning="geometric mean of the shares of predicted words and word pairs in the target, less for short text",
)
EXACT = Metric(name="exact", higher_is_better=True, meaning="share of texts predicted to the character", bound=0.95)
"""A text of up to `max_length` tokens comes back exactly: the bound leaves room for few longer ones, which are cut."""


def overlap(predicted: Sequence[Any], target: Sequence[Any]) -> int:
    """Count the items of `predicted` that occur in `target`, each at most once."""
    return (Counter(predicted) & Counter(target)).total()


def word_f1(pairs: Sequence[tuple[list[str], list[str]]]) -> float:
    """2 * overlap / (predicted + target words), over all pairs together; 1 where there are no words at all."""
    total = sum(len(p) + len(t) for p, t in pairs)
    return 2 * sum(overlap(p, t) for p, t in pairs) / total if total else 1.0


def bleu_2(pairs: Sequence[tuple[list[str], list[str]]]) -> float:
    """BLEU of word pairs with one reference over all texts together (Papineni et al. 2002, sec. 2.3, N = 2)."""
    predicted, target = sum(len(p) for p, _ in pairs), sum(len(t) for _, t in pairs)
    bigrams = sum(max(0, len(p) - 1) for p, _ in pairs)
    if not predicted or not bigrams:
        return 0.0
    first = sum(overlap(p, t) for p, t in pairs) / predicted
    second = sum(overlap(list(pairwise(p)), list(pairwise(t))) for p, t in pairs) / bigrams
    brevity = 1.0 if predicted > target else math.exp(1 - target / predicted)
    return brevity * math.sqrt(first * second)


def best_words(texts: Sequence[list[str]]) -> str:
    """The constant text with the highest `word_f1`.

    The k-th copy of a word adds to the overlap the number of texts that have k of it, never more than the copy before:
    taking the copies that add most, as long as the score rises, finds the optimum.
    """
    gains: Counter[tuple[str, int]] = Counter()
    positions: defaultdict[tuple[str, int], float] = defaultdict(float)
    for text in texts:
        occurrences: Counter[str] = Counter()
        for position, word in enumerate(text):
            occurrences[word] += 1
            gains[word, occurrences[word]] += 1
            positions[word, occurrences[word]] += position / len(text)
    total, matched, copies = sum(map(len, texts)), 0, list[tuple[str, int]]()
    for copy, gain in sorted(gains.items(), key=lambda item: (-item[1], item[0])):
        if (matched + gain) * (total + len(copies) * len(texts)) <= matched * (total + (len(copies) + 1) * len(texts)):
            break
        matched += gain
        copies.append(copy)
    copies.sort(key=lambda copy: (positions[copy] / gains[copy], copy))
    return " ".join(word for word, _ in copies)


ALLOWED = "\n\t"
WINDOWS = "\r\n", "\n"  # ends of lines
MARK = "\ufeff"  # at the start of a file, says that it is UTF-8


@dataclass(frozen=True, kw_only=True, slots=True)
class PlainTextSettings(Checked):
    """Settings of a plain text. Raises ValueError, naming the field, for a value out of range."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"4m": {"max_length": 256}}

    preset: Literal["4m"] | None = None
    """4m: texts of up to 256 tokens, as the 4M papers have them."""
    max_length: PositiveInt = 64
    """Most tokens of a text; a longer one is cut before the word that crosses it."""
    max_characters: PositiveInt = 2000
    """A longer text is refused."""


S = TypeVar("S", bound=PlainTextSettings)


class PlainText(TextModality[S]):
    """One text. Encoding is exact up to `max_length` tokens. Longer texts keep an exact beginning."""

    value = ValueSpec(kind="text", description="text without control characters other than line feed and tab")
    metrics: ClassVar[tuple[Metric, ...]] = (WORD_F1, BLEU_2, EXACT)

    def encode_value(self, value: Any, tokenizer: TextTokenizer[S]) -> list[int]:
        text = validate_text(value, tokenizer.settings)
        return tokenizer.vocabulary.encode_text(text, tokenizer.settings.max_length)

    def decode_value(self, pieces: Sequence[Piece], tokenizer: TextTokenizer[S]) -> str:
        text = "".join(piece for piece in pieces if isinstance(piece, str))
        return printable(text, ALLOWED)[: tokenizer.settings.max_characters]

    @hookimpl
    def read_value(self, data: bytes, extension: str, settings: Settings) -> str:
        """`.txt` in UTF-8 (a mark at its start, or a line feed at its end, is not part of the text), or `.json`.

        JSON holds the text, or a list whose first text is taken. In both, lines may end as on Windows.
        """
        options = settings.take(self.settings_class)
        if extension == "json":
            value = read_json(data, extension)
            if isinstance(value, list) and value:
                value = value[0]
            value = value.replace(*WINDOWS) if isinstance(value, str) else value
        elif extension == "txt":
            value = text_of(data).replace(*WINDOWS).removesuffix("\n")
        else:
            raise InvalidValueError(f"expected a .txt or .json file, got .{extension}")
        return validate_text(value, options)

    @hookimpl
    def write_value(self, value: Any, settings: Settings) -> tuple[bytes, str]:
        """The text in UTF-8, with a line feed at its end."""
        text = validate_text(value, settings.take(self.settings_class))
        mark = MARK if text.startswith(MARK) else ""  # so that reading removes only this line break
        return f"{mark}{text}\n".encode(), "txt"

    @hookimpl
    def render(self, value: str) -> str:
        return value or "(no text)"

    @hookimpl
    def vocabulary_texts(self, values: Sequence[str], settings: Settings) -> Sequence[str]:
        return list(values)

    @hookimpl
    def score(self, predicted: Sequence[str], target: Sequence[str]) -> dict[str, float]:
        """Over all words of all texts together, without case and punctuation."""
        pairs = [(words_of(p.lower()), words_of(t.lower())) for p, t in zip(predicted, target, strict=True)]
        exact = sum(p == t for p, t in zip(predicted, target, strict=True)) / len(target)
        scores = {"word_f1": word_f1(pairs), "bleu_2": bleu_2(pairs), "exact": exact}
        return {metric.name: scores[metric.name] for metric in self.metrics}

    @hookimpl
    def constant_baseline(self, values: Sequence[str]) -> str:
        """The bag of words that no other beats in `word_f1`, in the order in which the texts mostly have them."""
        return best_words([words_of(value.lower()) for value in values])


def validate_text(value: Any, options: PlainTextSettings) -> str:
    """The text itself. Raises InvalidValueError where it is no text, too long, or has control characters."""
    if not isinstance(value, str):
        raise InvalidValueError(f"expected a text, got {type(value).__name__}")
    if len(value) > options.max_characters:
        raise InvalidValueError(
            f"text of {len(value)} characters; at most {options.max_characters} are expected (setting max_characters)"
        )
    if character := control_character(value, ALLOWED):
        raise InvalidValueError(f"control character {character}; only line feed and tab are expected in a text")
    return value


@dataclass(frozen=True, kw_only=True, slots=True)
class WebTextSettings(PlainTextSettings):
    """Settings of `web_text`."""

    max_length: int = 256
    """Most tokens of a document; of a longer one the beginning is kept, up to the word that crosses it."""
    max_characters: int = 1_000_000
    """A longer document is refused: split it into several."""


class WebText(PlainText[WebTextSettings]):
    """One document."""

    summary = "A plain text document"
    settings_class = WebTextSettings
    metrics = (WORD_F1, BLEU_2)


web_text = WebText()
