"""Byte-level WordPiece: matches text exactly, and learns pieces from text.

WordPiece (Wu et al. 2016, arXiv 1609.08144, sec. 4.1) over the bytes of UTF-8: every byte is a piece, at the start of a
word and inside one, so nothing is ever unknown.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from functools import cached_property, partial
from itertools import accumulate
from typing import TYPE_CHECKING

from tokenizers_zoo.errors import LONE_SURROGATE, CheckpointError, InvalidValueError

if TYPE_CHECKING:
    import tokenizers

CONTINUES = "\u203f"  # marks a piece inside a word; the byte alphabet has no such character
LONGEST_WORD = 64  # bytes matched at a time: longer words are cut here, which bounds the matching and loses nothing


def byte_characters() -> dict[int, str]:
    """Map each byte to a printable character: itself if printable, else from U+0100 on (Radford et al. 2019, GPT-2)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    unprintable = (byte for byte in range(256) if byte not in printable)
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(unprintable)}


CHARACTER_OF = byte_characters()
BYTE_OF = {character: byte for byte, character in CHARACTER_OF.items()}
ALPHABET = (*sorted(BYTE_OF), *(CONTINUES + character for character in sorted(BYTE_OF)))


def learn_pieces(texts: Iterable[str], count: int) -> list[str]:
    """Up to `count` pieces beyond the alphabet, most useful first; they depend on the counts of the texts' words only.

    Raises InvalidValueError for text with lone surrogates.
    """
    from tokenizers import Tokenizer, models, trainers

    # The alphabet goes in as special tokens, in a fixed order: left to itself, the trainer numbers inner characters in
    # the order of a hash table that is seeded per process, and ties between merges follow those numbers.
    trainer = trainers.WordPieceTrainer(
        vocab_size=len(ALPHABET) + count,
        min_frequency=2,
        show_progress=False,
        special_tokens=list(ALPHABET),
        continuing_subword_prefix=CONTINUES,
    )
    learner = Tokenizer(models.WordPiece(unk_token="", continuing_subword_prefix=CONTINUES))
    learner.pre_tokenizer = _word_splitter()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # with threads it warns when the process forks
    learner.train_from_iterator((checked_text(text) for text in texts), trainer)
    ids = learner.get_vocab(with_added_tokens=False)
    alphabet = set(ALPHABET)
    return [piece for piece in sorted(ids, key=lambda piece: ids[piece]) if piece not in alphabet][:count]


class PieceMatcher:
    """The alphabet and the learned pieces, numbered from 0. Raises CheckpointError for invalid pieces."""

    alphabet = len(ALPHABET)
    """The first pieces are single bytes; this is their number."""
    longest = LONGEST_WORD
    """Maximal number of bytes of a piece."""

    def __init__(self, pieces: Sequence[str]) -> None:
        self.texts = (*ALPHABET, *pieces)
        if len(set(self.texts)) != len(self.texts):
            raise CheckpointError("vocabulary: a text piece occurs twice")
        try:
            self.bytes = [bytes(BYTE_OF[c] for c in text.removeprefix(CONTINUES)) for text in self.texts]
        except KeyError as error:
            raise CheckpointError(f"vocabulary: a text piece holds {error}, which stands for no byte") from None
        if not all(self.bytes):
            raise CheckpointError("vocabulary: a text piece is empty")

    @property
    def count(self) -> int:
        """Number of pieces."""
        return len(self.texts)

    def text(self, numbers: Sequence[int]) -> str:
        """Return the text of pieces; bytes that are not UTF-8 become U+FFFD."""
        return b"".join(self.bytes[number] for number in numbers).decode("utf-8", errors="replace")

    def match(self, text: str) -> tuple[list[int], list[int | None]]:
        """Return the numbers of the text's pieces, and each one's word number. Raises InvalidValueError."""
        matched = self._tokenizer.encode(checked_text(text), add_special_tokens=False)
        return matched.ids, matched.word_ids

    def cut(self, text: str, numbers: Sequence[int], words: Sequence[int | None], limit: int) -> list[int]:
        """Return the pieces of a beginning of the text, at most `match` of them.

        The beginning ends after a whole character: before the word that crosses the limit if the text has spaces, else
        as late as possible.
        """
        data = text.encode()
        ends = [0, *accumulate(len(self.bytes[number]) for number in numbers)]
        start = word_start(words, limit) if any(map(str.isspace, text)) else 0
        if start and _starts_character(data, ends[start]):
            return list(numbers[:start])
        # A beginning longer than the first `limit` pieces has more pieces. A shorter beginning may have more pieces
        # too, because a piece that crosses its end is split.
        for end in filter(partial(_starts_character, data), range(ends[limit], 0, -1)):
            piece = bisect_left(ends, end)
            if ends[piece] == end:
                return list(numbers[:piece])
            start = word_start(words, piece - 1)
            word = "".join(CHARACTER_OF[byte] for byte in data[ends[start] : end])
            if start + len(self._tokenizer.model.tokenize(word)) <= limit:
                prefix_pieces, _ = self.match(data[:end].decode())
                if len(prefix_pieces) <= limit:  # a beginning may split into other words
                    return prefix_pieces
        return []

    @cached_property
    def _tokenizer(self) -> tokenizers.Tokenizer:
        from tokenizers import Tokenizer, models

        # unk_token is not in the vocabulary, so an unknown character raises an error.
        model = models.WordPiece(
            {piece: number for number, piece in enumerate(self.texts)},
            unk_token="",
            continuing_subword_prefix=CONTINUES,
            max_input_chars_per_word=LONGEST_WORD,
        )
        tokenizer = Tokenizer(model)
        tokenizer.pre_tokenizer = _word_splitter()
        return tokenizer


def word_start(words: Sequence[int | None], index: int) -> int:
    """Return the first index of the word at an index, given the word numbers of `match`."""
    while index > 0 and words[index] == words[index - 1]:
        index -= 1
    return index


def _starts_character(data: bytes, offset: int) -> bool:
    """Return whether a position lies between two UTF-8 characters."""
    return offset == len(data) or data[offset] & 0xC0 != 0x80


def checked_text(text: str) -> str:
    """Return the text. Raises InvalidValueError for lone surrogates, which UTF-8 cannot write."""
    if surrogate := LONE_SURROGATE.search(text):
        raise InvalidValueError(
            f"text holds a lone surrogate U+{ord(surrogate.group()):04X} at character {surrogate.start()}: "
            "it was decoded wrongly; expected text that UTF-8 can write"
        )
    return text


def _word_splitter() -> tokenizers.pre_tokenizers.PreTokenizer:
    """Return the splitter of text into words of byte characters, none longer than LONGEST_WORD."""
    from tokenizers import Regex, pre_tokenizers

    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    return pre_tokenizers.Sequence([words, pre_tokenizers.Split(Regex(f".{{1,{LONGEST_WORD}}}"), "isolated")])
