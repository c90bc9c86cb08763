"""Modalities whose value is one plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

from tokenizers_zoo import hookimpl
from tokenizers_zoo.config import Settings, check_counts
from tokenizers_zoo.errors import InvalidValueError
from tokenizers_zoo.families.text import TextModality, TextTokenizer, control_character, printable, read_json
from tokenizers_zoo.spec import Metric, ValueSpec
from tokenizers_zoo.text_vocab import Piece
from tokenizers_zoo.validation import text_of
from zoo_language.scores import BLEU_2, EXACT, WORD_F1, best_words, bleu_2, word_f1, words

ALLOWED = "\n\t"
MARK = "\ufeff"  # at the start of a file, says that it is UTF-8


@dataclass(frozen=True, kw_only=True, slots=True)
class PlainTextSettings:
    """Settings of a plain text. Raises ValueError, naming the field, for a value out of range."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"4m": {"max_length": 256}}

    preset: Literal["4m"] | None = None
    """4m: texts of up to 256 tokens, as the 4M papers have them."""
    max_length: int = 64
    """Most tokens of a text; a longer one is cut before the word that crosses it."""
    max_characters: int = 2000
    """A longer text is refused."""

    def __post_init__(self) -> None:
        check_counts(self, "max_length", "max_characters")


S = TypeVar("S", bound=PlainTextSettings)


class PlainText(TextModality[S]):
    """One text. Encoding is exact up to `max_length` tokens: beyond, what is kept is an exact beginning of the text."""

    value = ValueSpec(kind="text", description="text without control characters other than line feed and tab")
    metrics: ClassVar[tuple[Metric, ...]] = (WORD_F1, BLEU_2, EXACT)

    def encode_value(self, value: Any, tokenizer: TextTokenizer[S]) -> list[int]:
        text = checked_text(value, tokenizer.settings)
        return tokenizer.vocabulary.encode_text(text, tokenizer.settings.max_length)

    def decode_value(self, pieces: Sequence[Piece], tokenizer: TextTokenizer[S]) -> str:
        text = "".join(piece for piece in pieces if isinstance(piece, str))
        return printable(text, ALLOWED)[: tokenizer.settings.max_characters]

    @hookimpl
    def read_value(self, data: bytes, extension: str, settings: Settings) -> str:
        """`.txt` in UTF-8 (a mark at its start, or a line feed at its end, is not part of the text), or `.json`.

        JSON holds the text, or a list of texts of which the first is taken. In both, lines may end as on Windows.
        """
        options = settings.take(self.settings_class)
        if extension == "json":
            value = read_json(data, extension)
            if isinstance(value, list) and value:
                value = value[0]
            value = unix_lines(value) if isinstance(value, str) else value
        elif extension == "txt":
            value = unix_lines(text_of(data)).removesuffix("\n")
        else:
            raise InvalidValueError(f"expected a .txt or .json file, got .{extension}")
        return checked_text(value, options)

    @hookimpl
    def write_value(self, value: Any, settings: Settings) -> tuple[bytes, str]:
        """The text in UTF-8, with a line feed at its end."""
        text = checked_text(value, settings.take(self.settings_class))
        mark = MARK if text.startswith(MARK) else ""  # so that reading takes off what is not part of it
        return f"{mark}{text}\n".encode(), "txt"

    @hookimpl
    def render(self, value: str) -> str:
        """The text itself."""
        return value or "(no text)"

    @hookimpl
    def vocabulary_texts(self, values: Sequence[str], settings: Settings) -> Sequence[str]:
        """All of them."""
        return list(values)

    @hookimpl
    def score(self, predicted: Sequence[str], target: Sequence[str]) -> dict[str, float]:
        """Over all words of all texts together, without case and punctuation."""
        pairs = [(words(p), words(t)) for p, t in zip(predicted, target, strict=True)]
        exact = sum(p == t for p, t in zip(predicted, target, strict=True)) / len(target)
        scores = {"word_f1": word_f1(pairs), "bleu_2": bleu_2(pairs), "exact": exact}
        return {metric.name: scores[metric.name] for metric in self.metrics}

    @hookimpl
    def constant_baseline(self, values: Sequence[str]) -> str:
        """The bag of words that no other beats in `word_f1`, in the order in which the texts mostly have them."""
        return best_words([words(value) for value in values])


def unix_lines(text: str) -> str:
    """The text with a line feed alone where lines end as on Windows."""
    return text.replace("\r\n", "\n")


def checked_text(value: Any, options: PlainTextSettings) -> str:
    """The text itself. Raises InvalidValueError where it is no text, too long, or has control characters."""
    if not isinstance(value, str):
        raise InvalidValueError(f"expected a text, got {type(value).__name__}")
    if len(value) > options.max_characters:
        raise InvalidValueError(
            f"text of {len(value)} characters; at most {options.max_characters} are expected (setting max_characters)"
        )
    if where := control_character(value, ALLOWED):
        raise InvalidValueError(f"control character {where}; only line feed and tab are expected in a text")
    return value
