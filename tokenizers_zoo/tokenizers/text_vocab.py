"""Shared, append-only text vocabularies: exact text, coordinates, special tokens and sentinels in one id space.

Ids, from 0: pad, end and behind it sentinels (1 and 2 unless the configuration says otherwise), coordinates (axis by
axis: `v0=0 v0=1 ... v1=0 ...`), the special tokens known when the vocabulary was trained, the byte alphabet, the
learned pieces, and then whatever was grown later. Nothing ever moves: end, sentinels and coordinates follow from the
configuration alone, and growing keeps every old id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np

from tokenizers_zoo.contract.spec import OrderedIds
from tokenizers_zoo.errors import CheckpointError, ConfigError, InvalidValueError
from tokenizers_zoo.files.checkpoint import CONFIG, CheckpointRecord, fingerprint, load_record, save_checkpoint
from tokenizers_zoo.files.run_folder import locked
from tokenizers_zoo.records.config import Checked, Origin, from_mapping
from tokenizers_zoo.records.typed import Interval, NonNegativeInt, PositiveInt, as_dicts, convert
from tokenizers_zoo.tokenizers.ml4m.words import UNKNOWN, WordMatcher
from tokenizers_zoo.tokenizers.wordpieces import ALPHABET, PieceMatcher, checked_text, learn_pieces

CLASS = "TextVocabulary"
PAD = 0
TEXT_OF = "text_of"
"""Key of `trained_on`: the modalities whose text the vocabulary was learned from."""
FIXED = ("end", "unused", "sentinels", "coordinate_axes", "coordinate_bins")
"""Settings that a vocabulary keeps: its first ids follow from them."""


@dataclass(frozen=True, kw_only=True)
class VocabularyRecord(CheckpointRecord):
    """config.json. Raises ValueError for other modalities than a list of names."""

    vocabulary: Mapping[str, Any]
    special_tokens: tuple[str, ...]
    grown_tokens: tuple[str, ...]
    trained_on: Mapping[str, Any]

    def __post_init__(self) -> None:
        _ = self.text_of

    @property
    def text_of(self) -> tuple[str, ...] | None:
        """The modalities whose text the vocabulary was learned from; None if they are unknown."""
        names: tuple[str, ...] | None = convert(
            self.trained_on.get(TEXT_OF), tuple[str, ...] | None, "trained_on", TEXT_OF
        )
        return names


@dataclass(frozen=True, kw_only=True, slots=True)
class VocabularyConfig(Checked):
    """The table `[vocabularies.NAME]` of registry.toml. Raises ValueError for a size that cannot hold the fixed ids."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # Its first sentinel, [S_0], is never used: spans are marked from [S_1] on.
        "4m": dict(size=30_000, end=3, unused=1, sentinels=199, coordinate_axes=4, coordinate_bins=1000)
    }

    preset: Literal["4m"] | None = None
    """4m: the vocabulary of the 4M papers (arXiv 2312.06647, 2406.09406)."""
    size: PositiveInt = 4096
    """Capacity: the `vocab_size` of every modality that shares the vocabulary; it may be raised later."""
    end: PositiveInt = 1
    """Id of the end token. The ids between pad (0) and end stay free for tokens of other programs' vocabularies."""
    unused: NonNegativeInt = 0
    """Ids between end and the sentinels that stay free."""
    sentinels: PositiveInt = 64
    """Ids that mark masked spans: the maximal number of spans in a sequence."""
    coordinate_axes: NonNegativeInt = 4
    """Axes of coordinate tokens: v0, v1, ..."""
    coordinate_bins: Annotated[int, Interval("[2, inf)")] = 256
    """Levels per axis; a fraction x becomes level round(x * (bins - 1)), so 0 and 1 are exact."""
    reserve: NonNegativeInt = 256
    """Ids that training leaves free for the special tokens of later modalities."""

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        if self.size < (least_size := self.special_start + len(ALPHABET)):
            expected = f"{least_size} for sentinels, coordinates and bytes"
            raise ValueError(f"size: expected at least {expected}, got {self.size}")

    @property
    def sentinel_start(self) -> int:
        return self.end + 1 + self.unused

    @property
    def coordinate_start(self) -> int:
        return self.sentinel_start + self.sentinels

    @property
    def ordered_ids(self) -> tuple[OrderedIds, ...]:
        """The coordinates of each axis, for a ModalitySpec."""
        return OrderedIds.of_axes(self.coordinate_start, self.coordinate_axes, self.coordinate_bins)

    @property
    def special_start(self) -> int:
        """First id that depends on more than the configuration."""
        return self.coordinate_start + self.coordinate_axes * self.coordinate_bins


@dataclass(frozen=True, slots=True)
class Coordinate:
    """A coordinate token: level `level` of axis `axis`."""

    axis: int
    level: int

    def __str__(self) -> str:
        return f"v{self.axis}={self.level}"


@dataclass(frozen=True, slots=True)
class Special:
    """A special token by its name, which text can never produce."""

    name: str

    def __str__(self) -> str:
        return self.name


Piece = str | Coordinate | Special


def coordinate_level(fraction: float, bins: int) -> int:
    """Return the level in [0, bins) nearest to a fraction, which is clipped to [0, 1]."""
    return int(np.clip(round(float(fraction) * (bins - 1)), 0, bins - 1))


def coordinate_fraction(level: int, bins: int) -> float:
    """Return the fraction in [0, 1] of a level, within half a level of the encoded fraction."""
    return min(level, bins - 1) / (bins - 1)


@dataclass(eq=False)
class TextVocabulary:
    """One shared vocabulary. Text round-trips exactly, and any sequence of ids decodes to something.

    Only text pieces are ever matched in text, so "v0=5" or the name of a special token in it stays plain text.

    A vocabulary published by 4M (`published` is the text of its file) uses that file instead of `pieces`: it loses
    capitals and the spaces around punctuation.
    """

    config: VocabularyConfig
    special_tokens: tuple[str, ...] = ()
    pieces: tuple[str, ...] = ()
    grown_tokens: tuple[str, ...] = ()
    lineage: tuple[tuple[str, int], ...] = ()
    trained_on: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: str | None = None
    """Fingerprint of the loaded or saved checkpoint; None before saving."""
    published: str = ""

    def __post_init__(self) -> None:
        config, published = self.config, self.published
        self._text_start = config.special_start + len(self.special_tokens)
        self._matcher = (
            WordMatcher(published, self._text_start, _fixed_ids(config)) if published else PieceMatcher(self.pieces)
        )
        self._grown_start = self._text_start + self._matcher.count
        names = self.all_special_tokens
        if len(set(names)) != len(names) or not all(isinstance(name, str) and name for name in names):
            raise CheckpointError("vocabulary: special tokens must be distinct, non-empty strings")
        if self.used > self.config.size:
            raise ConfigError(
                f"the vocabulary needs {self.used} ids and has {self.config.size}: "
                "raise `size` in its [vocabularies.*] table of registry.toml (old ids keep their meaning)"
            )
        self._special_ids = {name: config.special_start + i for i, name in enumerate(self.special_tokens)}
        self._special_ids |= {name: self._grown_start + i for i, name in enumerate(self.grown_tokens)}
        self._special_names = {index: name for name, index in self._special_ids.items()}

    @property
    def used(self) -> int:
        """Number of ids in use; the ids from here to `config.size` are free."""
        return self._grown_start + len(self.grown_tokens)

    @property
    def parts(self) -> dict[str, tuple[int, int]]:
        """The parts of the vocabulary in the order of the ids: first id and number of ids."""
        config = self.config
        counts = {
            "pad and end": config.sentinel_start,
            "sentinels": config.sentinels,
            "coordinates": config.coordinate_axes * config.coordinate_bins,
            "special tokens": len(self.special_tokens),
            "bytes": self._matcher.alphabet,
            "learned pieces": self._matcher.count - self._matcher.alphabet,
            "special tokens grown later": len(self.grown_tokens),
            "free": config.size - self.used,
        }
        starts = accumulate(counts.values(), initial=0)
        return {name: (start, count) for (name, count), start in zip(counts.items(), starts, strict=False)}

    @property
    def all_special_tokens(self) -> tuple[str, ...]:
        """All special tokens, in the order of their ids."""
        return self.special_tokens + self.grown_tokens

    @property
    def compatible_fingerprints(self) -> dict[str, int]:
        """Fingerprints of the vocabularies that this one grew from, and its own, each with its number of ids."""
        return dict(self.lineage) | ({self.fingerprint: self.used} if self.fingerprint else {})

    # ---- training and growing

    @classmethod
    def train(
        cls,
        config: VocabularyConfig,
        texts: Iterable[str],
        special_tokens: Iterable[str] = (),
        provenance: Mapping[str, Any] | None = None,
    ) -> TextVocabulary:
        """Learn the most frequent pieces of `texts`; the result depends on the word counts only.

        Pieces fill all ids except the reserve. `provenance` records the origin of the texts (JSON types). Raises
        ConfigError if bytes and special tokens do not fit.
        """
        empty = cls(config, tuple(dict.fromkeys(special_tokens)))
        max_pieces = config.size - config.reserve - empty.used
        pieces = tuple(learn_pieces(texts, max_pieces)) if max_pieces > 0 else ()
        return cls(config, empty.special_tokens, pieces, trained_on=dict(provenance or {}))

    def grow(self, special_tokens: Iterable[str], size: int | None = None) -> TextVocabulary:
        """Return the vocabulary with missing special tokens added at its end, and its capacity raised to `size`.

        Old ids keep their meaning; the lineage records the old vocabulary. Raises ConfigError if there is no room.
        """
        missing = tuple(name for name in dict.fromkeys(special_tokens) if name not in self._special_ids)
        config = replace(self.config, size=max(self.config.size, size or 0))
        if not missing and config == self.config:
            return self
        lineage = tuple(self.compatible_fingerprints.items())
        grown = (*self.grown_tokens, *missing)
        return replace(self, config=config, grown_tokens=grown, lineage=lineage, fingerprint=None)

    # ---- tokens

    def encode_text(self, text: str, limit: int | None = None) -> list[int]:
        """Return the ids of plain text. Raises InvalidValueError for lone surrogates, which UTF-8 cannot write.

        A text with more than `limit` ids is cut after a whole character. With spaces in the text, the cut is before the
        word that crosses the limit; otherwise, or inside a long first word, it is as late as possible. Text far beyond
        the limit is not matched.
        """
        longest = self._matcher.longest
        if limit is not None and longest is not None:
            text = checked_text(text)[: (limit + 2) * longest]
        numbers, words = self._matcher.match(text)
        if limit is not None and len(numbers) > limit:
            numbers = self._matcher.cut(text, numbers, words, limit)
        return [self._text_start + number for number in numbers]

    def encode(self, pieces: Iterable[Piece]) -> list[int]:
        """Return the ids of text, coordinates and special tokens in a row. Raises InvalidValueError for a piece without
        an id."""
        config, ids = self.config, list[int]()
        for piece in pieces:
            if isinstance(piece, str):
                ids += self.encode_text(piece)
            elif isinstance(piece, Coordinate):
                if not (0 <= piece.axis < config.coordinate_axes and 0 <= piece.level < config.coordinate_bins):
                    raise InvalidValueError(
                        f"coordinate {piece}: the vocabulary has axes v0 to v{config.coordinate_axes - 1} "
                        f"with levels 0 to {config.coordinate_bins - 1}"
                    )
                ids.append(config.coordinate_start + piece.axis * config.coordinate_bins + piece.level)
            elif piece.name in self._special_ids:
                ids.append(self._special_ids[piece.name])
            else:
                raise InvalidValueError(
                    f"the vocabulary has no special token {piece.name!r}: run `zoo vocabulary grow`, which adds it at "
                    "its end and keeps all ids"
                )
        return ids

    def decode(self, ids: Iterable[int]) -> list[Piece]:
        """Return text, coordinates and special tokens; never fails.

        Stops at the end token. Pad, sentinels and free ids are skipped; bytes that are not UTF-8 become U+FFFD.
        """
        config, pieces, run = self.config, list[Piece](), list[int]()

        def close_run() -> None:
            if run:
                pieces.append(self._matcher.text(run))
                run.clear()

        for index in map(int, ids):
            if index == config.end:
                break
            if self._text_start <= index < self._grown_start:
                run.append(index - self._text_start)
            elif config.coordinate_start <= index < config.special_start:
                close_run()
                pieces.append(Coordinate(*divmod(index - config.coordinate_start, config.coordinate_bins)))
            elif index in self._special_names:
                close_run()
                pieces.append(Special(self._special_names[index]))
        close_run()
        return pieces

    def decode_text(self, ids: Iterable[int]) -> str:
        """Return the text among `ids`, without other tokens."""
        return "".join(piece for piece in self.decode(ids) if isinstance(piece, str))

    # ---- on disk

    def save(self, folder: Path) -> str:
        """Write a checkpoint folder and return its fingerprint."""
        import torch

        name, data = ("file", self.published) if self.published else ("pieces", "\n".join(self.pieces))
        config = {
            "class": CLASS,
            "vocabulary": as_dicts(self.config),
            "special_tokens": list(self.special_tokens),
            "grown_tokens": list(self.grown_tokens),
            "lineage": [{"fingerprint": past, "length": length} for past, length in self.lineage],
            "trained_on": self.trained_on,
        }
        file_bytes = bytearray(data.encode())
        tensors = {name: torch.frombuffer(file_bytes, dtype=torch.uint8) if file_bytes else torch.zeros(0).byte()}
        self.fingerprint = save_checkpoint(folder, tensors, config, _card(self))
        return self.fingerprint

    @classmethod
    def train_folder(
        cls,
        folder: Path,
        config: VocabularyConfig,
        texts: Callable[[], Iterable[str]],
        special_tokens: Iterable[str],
        provenance: Mapping[str, Any],
        text_of: Iterable[str] = (),
    ) -> None:
        """Train the vocabulary of a folder, or grow the existing one, without reading the texts.

        Only the origin of the texts is kept from `provenance`: other texts never retrain a vocabulary. `text_of` names
        the modalities that the texts belong to. Raises the errors of `train` and `grow_folder`.
        """
        with locked(folder):
            if (folder / CONFIG).is_file():
                cls.grow_folder(folder, config, special_tokens)
            else:
                origin = {key: item for key, item in provenance.items() if key not in ("contents", "settings")}
                cls.train(config, texts(), special_tokens, {**origin, TEXT_OF: list(text_of)}).save(folder)

    @classmethod
    def grow_folder(
        cls, folder: Path, config: VocabularyConfig, special_tokens: Iterable[str]
    ) -> tuple[TextVocabulary, TextVocabulary]:
        """Grow the vocabulary in a folder if it lacks anything; return the old and the new vocabulary.

        Only config.json is replaced. Raises CheckpointError if the vocabulary has another id space than `config`,
        FolderError if it is being trained or grown, and ConfigError if it has no room.
        """
        with locked(folder):
            cls.load(folder, config)  # refuses another id space
            old = cls.load(folder)
            new = old.grow(special_tokens, config.size)
            if new is not old:
                new.save(folder)
        return old, new

    @classmethod
    def load(cls, folder: Path, config: VocabularyConfig | None = None) -> TextVocabulary:
        """Load a vocabulary. With `config`, check it against the checkpoint and use its capacity.

        Raises CheckpointError for a damaged folder or another id space.
        """
        tensors, record = load_record(folder, CLASS, VocabularyRecord)
        try:
            table = {**record.vocabulary, "preset": None}  # it has the preset's keys
            stored_config = from_mapping(VocabularyConfig, table, Origin(table="vocabulary"))
            ((kind, tensor),) = tensors.items()
            text = tensor.numpy().tobytes().decode("utf-8")
            pieces = tuple(text.split("\n")) if text else ()
            content: dict[str, Any] = {"published": text} if kind == "file" else {"pieces": pieces}
            for name in FIXED if config else ():
                old, new = getattr(stored_config, name), getattr(config, name)
                if old != new:
                    raise CheckpointError(
                        f"the vocabulary was trained with {name} = {old}, registry.toml says {new}: "
                        "set it back, or train the vocabulary again elsewhere"
                    )
            return cls(
                replace(stored_config, size=config.size, reserve=config.reserve) if config else stored_config,
                record.special_tokens,
                grown_tokens=record.grown_tokens,
                lineage=tuple((entry.fingerprint, entry.length) for entry in record.lineage),
                trained_on=record.trained_on,
                fingerprint=fingerprint(folder),
                **content,
            )
        except (CheckpointError, ConfigError) as error:
            raise CheckpointError(f"{folder}: {error}") from None
        except ValueError as error:
            raise CheckpointError(f"{folder}: damaged vocabulary: {error}") from None


def _fixed_ids(config: VocabularyConfig) -> dict[str, int]:
    """Return the names of a published file whose ids follow from the configuration."""
    names = {"[PAD]": PAD, UNKNOWN: PAD + 1, "[EOS]": config.end}
    names |= {f"[S_{number}]": config.end + 1 + number for number in range(config.unused + config.sentinels)}
    for axis in range(config.coordinate_axes):
        start = config.coordinate_start + axis * config.coordinate_bins
        names |= {f"v{axis}={level}": start + level for level in range(config.coordinate_bins)}
    return names


def _card(vocabulary: TextVocabulary) -> str:
    rows = "\n".join(f"| {name} | {count} |" for name, (_, count) in vocabulary.parts.items())
    kind = "Byte-level WordPiece; text round-trips exactly."
    if vocabulary.published:
        kind = "The lower-case WordPiece vocabulary of 4M (github.com/apple/ml-4m)."
    return f"# Text vocabulary\n\n{kind}\n\n| part | ids |\n|---|---|\n{rows}\n"
