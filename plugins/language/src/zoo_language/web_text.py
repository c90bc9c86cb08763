"""Web text: plain documents, longer than captions and about anything."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tokenizers_zoo import hookimpl
from tokenizers_zoo.spec import Crop
from zoo_language.plain import BLEU_2, WORD_F1, PlainText, PlainTextSettings

WORD_START = re.compile(r"(?<=\s)\S")
NEAR = 64
"""Characters that are searched for the start of a word."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WebTextSettings(PlainTextSettings):
    """Settings of `web_text`."""

    max_length: int = 256
    """Most tokens of a document; of a longer one the beginning is kept, up to the word that crosses it."""
    max_characters: int = 1_000_000
    """A longer document is refused: split it into several."""


class WebText(PlainText[WebTextSettings]):
    """One document.

    Text longer than `max_length` tokens is cut in two steps, each before a word. A crop of the sample (`zoo tokenize
    --crops`) takes the same fraction of the document as the crop's rows take of the picture, so that crops see
    different parts. From there, as many tokens as fit are kept.
    """

    summary = "A plain text document"
    settings_class = WebTextSettings
    metrics = (WORD_F1, BLEU_2)

    @hookimpl
    def transform(self, value: str, crop: Crop) -> str:
        """The words that begin in the stretch from `top` to `top + height` of the text."""
        first, last = round(crop.top * len(value)), round((crop.top + crop.height) * len(value))
        return value[word_start(value, first) : word_start(value, last)]


def word_start(text: str, place: int) -> int:
    """Where the next word begins or the text ends, at `place` or soon after; `place` in a text without spaces."""
    if not 0 < place < len(text):
        return place
    found = WORD_START.search(text, place, place + NEAR)
    if found:
        return found.start()
    in_last_word = len(text) - place <= NEAR and WORD_START.search(text)
    return len(text) if in_last_word else place


plugin = WebText()
