"""The text pieces of the vocabulary that 4M published: lower-case WordPiece, class names as pieces of their own.

Unlike our own vocabularies it loses something of a text: capitals, spaces around punctuation, and words with
characters that it never saw.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tokenizers_zoo.errors import CheckpointError, is_of_the_machine
from tokenizers_zoo.tokenizers.wordpieces import checked_text, word_start

UNKNOWN = "[UNK]"


class WordMatcher:
    """The pieces of a file of the tokenizers library, numbered from id `start`; lower ids are not text.

    `expected` maps names to their required ids. Raises CheckpointError if the file has other ids.
    """

    alphabet = 0
    """Number of initial pieces that represent single bytes."""
    longest = None
    """Maximum bytes per piece. None: an unknown word is one piece of any length."""

    def __init__(self, file: str, start: int, expected: dict[str, int]) -> None:
        from tokenizers import Tokenizer

        try:
            table: dict[str, Any] = json.loads(file)
            vocabulary: dict[str, int] = dict(table["model"]["vocab"])
            # Text must not produce sentinels or coordinates, whatever a user writes.
            table["added_tokens"] = [token for token in table["added_tokens"] if token["id"] >= start]
            table["truncation"] = table["padding"] = None  # each modality has its own length
            self._tokenizer = Tokenizer.from_str(json.dumps(table))
        except Exception as error:  # the library raises a plain Exception for a file that it cannot read
            if is_of_the_machine(error):
                raise
            raise CheckpointError(f"not a file of the tokenizers library: {' '.join(str(error).split())}") from None
        for name, index in expected.items():
            if vocabulary.get(name) != index:
                raise CheckpointError(f"{name} has the id {vocabulary.get(name)}, expected {index}: another vocabulary")
        self.start = start
        self.count = self._tokenizer.get_vocab_size() - start

    def match(self, text: str) -> tuple[list[int], list[int | None]]:
        """Return the numbers of the text's pieces, and for each piece the number of its word. Raises InvalidValueError.

        An unknown word has one number below 0, the number of the unknown token.
        """
        matched = self._tokenizer.encode(checked_text(text), add_special_tokens=False)
        return [index - self.start for index in matched.ids], matched.word_ids

    def cut(self, text: str, numbers: Sequence[int], words: Sequence[int | None], limit: int) -> list[int]:
        """Cut the result of `match` before the word that crosses the limit; cut only a first word inside."""
        return list(numbers[: word_start(words, limit) or limit])

    def text(self, numbers: Sequence[int]) -> str:
        """Return the text of pieces, with one space between words."""
        return str(self._tokenizer.decode([number + self.start for number in numbers], skip_special_tokens=False))
