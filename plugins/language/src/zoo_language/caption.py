"""Captions: what a picture shows, in words."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tokenizers_zoo import hookimpl
from tokenizers_zoo.config import Settings
from tokenizers_zoo.errors import InvalidValueError
from tokenizers_zoo.families.text import TextModality, TextTokenizer, control_character, printable, read_json
from tokenizers_zoo.modality import Crop, Metric, ValueSpec
from tokenizers_zoo.vocabulary import Piece

ALLOWED = "\n\t"


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionSettings:
    """Settings of `caption`. Raises ValueError, naming the field, for a value out of range."""

    max_length: int = 64
    """Most tokens of a caption; a longer one is cut before the word that crosses it."""
    max_characters: int = 2000
    """A longer text is refused as no caption."""

    def __post_init__(self) -> None:
        for name in ("max_length", "max_characters"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


class Caption(TextModality[CaptionSettings]):
    """One text. Encoding is exact up to `max_length` tokens: beyond, what is kept is an exact beginning of the text.

    A mirrored picture's caption says left for right ("to the left of", "the right side"); a crop leaves it as it is.
    """

    summary = "What the picture shows, in words"
    value = ValueSpec(kind="text", description="text without control characters other than line feed and tab")
    settings_type = CaptionSettings
    metrics = (
        Metric(
            name="word_f1",
            higher_is_better=True,
            meaning="harmonic mean of two shares: predicted words that the target has, target words that are predicted",
        ),
        Metric(
            name="bleu_2",
            higher_is_better=True,
            meaning="geometric mean of the shares of predicted words and word pairs in the target, less for short text",
        ),
        Metric(name="exact", higher_is_better=True, meaning="share of texts predicted to the character"),
    )

    def encode_value(self, value: Any, tokenizer: TextTokenizer[CaptionSettings]) -> list[int]:
        text = checked_caption(value, tokenizer.settings)
        return tokenizer.vocabulary.encode_text(text, tokenizer.settings.max_length)

    def decode_value(self, pieces: Sequence[Piece], tokenizer: TextTokenizer[CaptionSettings]) -> str:
        text = "".join(piece for piece in pieces if isinstance(piece, str))
        return printable(text, ALLOWED)[: tokenizer.settings.max_characters]

    @hookimpl
    def read_value(self, data: bytes, extension: str, settings: Settings) -> str:
        """`.txt` in UTF-8 (a line feed at its end is not part of the caption), or `.json`: a str, or a list's first."""
        options = settings.take(CaptionSettings)
        if extension == "json":
            value = read_json(data, extension)
            if isinstance(value, list) and value:
                value = value[0]
        elif extension == "txt":
            try:
                value = data.decode("utf-8").replace("\r\n", "\n").removesuffix("\n")
            except UnicodeDecodeError as error:
                raise InvalidValueError(f"not UTF-8 at byte {error.start}; save the text as UTF-8") from None
        else:
            raise InvalidValueError(f"expected a .txt or .json file, got .{extension}")
        return checked_caption(value, options)

    @hookimpl
    def write_value(self, value: Any, settings: Settings) -> tuple[bytes, str]:
        """The text in UTF-8, with a line feed at its end."""
        return f"{checked_caption(value, settings.take(CaptionSettings))}\n".encode(), "txt"

    @hookimpl
    def transform(self, value: str, crop: Crop) -> str:
        """The text, with left and right exchanged where the picture is mirrored."""
        return mirrored(value) if crop.flip else value

    @hookimpl
    def render(self, value: str) -> str:
        """The text itself."""
        return value

    @hookimpl
    def vocabulary_texts(self, values: Sequence[str], settings: Settings) -> Sequence[str]:
        """All of them."""
        return list(values)

    @hookimpl
    def score(self, predicted: Sequence[str], target: Sequence[str]) -> dict[str, float]:
        """Over all words of all texts together, without case and punctuation."""
        pairs = [(words(p), words(t)) for p, t in zip(predicted, target, strict=True)]
        exact = sum(p == t for p, t in zip(predicted, target, strict=True)) / len(target)
        return {"word_f1": word_f1(pairs), "bleu_2": bleu_2(pairs), "exact": exact}

    @hookimpl
    def constant_answer(self, values: Sequence[str]) -> str:
        """The bag of words that no other beats in `word_f1`, in the order in which the texts mostly have them."""
        return best_words([words(value) for value in values])


def checked_caption(value: Any, options: CaptionSettings) -> str:
    """The text itself. Raises InvalidValueError where it is no caption."""
    if not isinstance(value, str):
        raise InvalidValueError(f"expected a text, got {type(value).__name__}")
    if len(value) > options.max_characters:
        raise InvalidValueError(
            f"text of {len(value)} characters; at most {options.max_characters} are expected of a caption "
            "(setting max_characters)"
        )
    if where := control_character(value, ALLOWED):
        raise InvalidValueError(f"control character {where}; only line feed and tab are expected in a caption")
    return value


def mirrored(text: str) -> str:
    """The text with left and right exchanged where they are sides: after "the", or before "of", "side" and "hand"."""
    other = {"left": "right", "right": "left", "Left": "Right", "Right": "Left"}
    sides = r"(?<=\bthe )(left|right)\b|\b([Ll]eft|[Rr]ight)(?=(?: of|[ -]side|[ -]hand)\b)"
    return re.sub(sides, lambda match: other[match.group()], text)


def words(text: str) -> list[str]:
    """Runs of letters and digits, in lower case."""
    return re.findall(r"\w+", text.lower())


def overlap(predicted: Sequence[Any], target: Sequence[Any]) -> int:
    """How many items of `predicted` are in `target`, each item of which counts once."""
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
    places: defaultdict[tuple[str, int], float] = defaultdict(float)
    for text in texts:
        seen: Counter[str] = Counter()
        for place, word in enumerate(text):
            seen[word] += 1
            gains[word, seen[word]] += 1
            places[word, seen[word]] += place / len(text)
    total, found, chosen = sum(map(len, texts)), 0, list[tuple[str, int]]()
    for copy, gain in sorted(gains.items(), key=lambda item: (-item[1], item[0])):
        if (found + gain) * (total + len(chosen) * len(texts)) <= found * (total + (len(chosen) + 1) * len(texts)):
            break
        found += gain
        chosen.append(copy)
    chosen.sort(key=lambda copy: (places[copy] / gains[copy], copy))
    return " ".join(word for word, _ in chosen)


plugin = Caption()
