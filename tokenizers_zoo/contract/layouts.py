"""Token layouts: how the tokens of a sample are arranged, stored and padded.

| layout | tokens of a sample | a batch |
|---|---|---|
| GridLayout | ids on one to three axes | int64 `(batch, *shape)` |
| VectorLayout | ids without an order in space | int64 `(batch, length)` |
| SequenceLayout | up to `max_length` ids, read left to right | list of int64 `(tokens,)` |
| PatchesLayout | vectors of `dim` numbers on one or more axes, an input only | float32 `(batch, length, dim)` |
| EmbeddingsLayout | up to `max_length` vectors of `dim` numbers, an input only | list of float32 `(tokens, dim)` |
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tokenizers_zoo.records.typed import Variant

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]

LARGEST = 1 << 24
"""Most tokens, and most numbers of a token."""


class TokenLayout(Variant):
    """What all layouts answer. By default, a sample has a fixed number of ids.

    Raises ValueError for a layout without tokens, or with too many or too long ones.
    """

    continuous: ClassVar[bool] = False
    """True if tokens are vectors of numbers, which can only be an input; False if they are ids of a vocabulary."""
    variable: ClassVar[bool] = False
    """True if samples differ in their number of tokens: a batch is then a list, not one tensor."""
    causal: ClassVar[bool] = False
    """True if tokens are predicted left to right, each from those before it."""
    spatial: ClassVar[bool] = False
    """True if tokens have a place on axes of space or time."""

    if TYPE_CHECKING:  # a field or a property of each layout

        @property
        def length(self) -> int:
            """Number of tokens of a sample; the greatest if it varies."""

    def __post_init__(self) -> None:
        sizes = *self.axes, self.length, self.numbers_per_token
        if not self.axes or min(sizes) < 1 or max(sizes) > LARGEST:
            raise ValueError(f"a layout without tokens, or with too many or too long ones: {self}")

    @property
    def axes(self) -> tuple[int, ...]:
        """Number of tokens along each axis, slowest first."""
        return (self.length,)

    @property
    def numbers_per_token(self) -> int:
        """Size of a token's vector; 1 for an id."""
        return 1

    @property
    def token_shape(self) -> tuple[int, ...]:
        """Shape of a sample's tokens as `encode` returns them; the first axis is the longest if it varies."""
        return (self.length, self.numbers_per_token) if self.continuous else self.axes

    @property
    def special(self) -> Mapping[str, int]:
        """Ids that only the backbone adds: the end of a sequence, and its sentinels; empty without any."""
        return {}

    def is_special(self, ids: Any) -> Any:
        """Return a bool array or tensor like `ids`, True where an id is special."""
        return ids < 0

    def stored_as(self, vocab_size: int) -> str:
        """Return the numpy dtype of tokens in files."""
        return "uint16" if vocab_size <= 1 << 16 else "int32"

    def error(self, vocab_size: int) -> str | None:
        """Return why a modality cannot have this layout with `vocab_size` ids, or None."""
        return None

    @property
    def meaning(self) -> dict[str, int]:
        """What may not change if stored tokens and trained weights are to keep their meaning."""
        return {"dim": self.numbers_per_token} if self.continuous else {}

    def same_tokens(self, other: TokenLayout) -> bool:
        """Return whether tokens of one layout are tokens of the other; a varying number may have another limit."""
        same_axes = self.variable or self.axes == other.axes
        return self.kind == other.kind and self.meaning == other.meaning and same_axes

    def padded(self, tokens: Any, samples: Ints, batch: int) -> tuple[NDArray[Any], Ints]:
        """Return a batch with these tokens in the rows `samples` and zeros elsewhere, and each row's number of tokens.

        The batch is int64 `(batch, length)`, or float32 `(batch, length, dim)` of continuous tokens.
        """
        import numpy as np

        lengths = np.zeros(batch, np.int64)
        if self.continuous:
            padded: NDArray[Any] = np.zeros((batch, self.length, self.numbers_per_token), np.float32)
        else:
            padded = np.zeros((batch, self.length), np.int64)
        if not self.variable:
            padded[samples], lengths[samples] = tokens.reshape(len(samples), *padded.shape[1:]), self.length
            return padded, lengths
        for sample, row in zip(samples, tokens, strict=True):
            padded[sample, : len(row)], lengths[sample] = row, len(row)
        return padded, lengths

    def __str__(self) -> str:
        """`grid 8x8`, `sequence <=64`, `patches 8x8 of 48 numbers`."""
        size = f"<={self.length}" if self.variable else "x".join(map(str, self.axes))
        return f"{self.kind} {size}{f' of {self.numbers_per_token} numbers' if self.continuous else ''}"


@dataclass(frozen=True, kw_only=True)
class GridLayout(TokenLayout):
    """A fixed grid of tokens with one to three axes, slowest first: `(h, w)`, `(t, h, w)`, `(t, q)`."""

    kind = "grid"
    spatial = True
    shape: tuple[int, ...]

    @property
    def length(self) -> int:
        return math.prod(self.shape)

    @property
    def axes(self) -> tuple[int, ...]:
        return self.shape

    def error(self, vocab_size: int) -> str | None:
        if not 1 <= len(self.shape) <= 3:
            return f"a grid has one to three axes, got {self.shape}"
        return None


@dataclass(frozen=True, kw_only=True)
class VectorLayout(TokenLayout):
    """A fixed number of tokens without an order in space."""

    kind = "vector"
    length: int

    @property
    def meaning(self) -> dict[str, int]:
        return {"length": self.length}


@dataclass(frozen=True, kw_only=True)
class SequenceLayout(TokenLayout):
    """Up to `max_length` content tokens, read left to right.

    `encode` returns content only. The backbone adds `end` after the last token and marks masked spans with the ids
    `sentinel_start ... sentinel_start + num_sentinels - 1`. They belong to the modality's vocabulary.
    """

    kind = "sequence"
    variable = causal = True
    max_length: int
    end: int
    sentinel_start: int
    num_sentinels: int

    @property
    def length(self) -> int:
        return self.max_length

    @property
    def special(self) -> Mapping[str, int]:
        return {"end": self.end, "sentinel_start": self.sentinel_start, "num_sentinels": self.num_sentinels}

    @property
    def meaning(self) -> dict[str, int]:
        return {"end": self.end, "sentinel_start": self.sentinel_start}

    def is_special(self, ids: Any) -> Any:
        sentinels = (ids >= self.sentinel_start) & (ids < self.sentinel_start + self.num_sentinels)
        return sentinels | (ids == self.end)

    def error(self, vocab_size: int) -> str | None:
        sentinels = range(self.sentinel_start, self.sentinel_start + self.num_sentinels)
        fits = all(0 <= index < vocab_size for index in (self.end, *sentinels[:1], *sentinels[-1:]))
        if not (fits and sentinels) or self.end in sentinels:
            return "end and sentinels must be different ids below vocab_size, with at least one sentinel"
        return None


@dataclass(frozen=True, kw_only=True)
class PatchesLayout(TokenLayout):
    """Continuous input only: a grid of `dim` numbers per patch, projected linearly. Stored as `dtype`."""

    kind = "patches"
    continuous = spatial = True
    shape: tuple[int, ...]
    dim: int
    dtype: Literal["uint8", "float16", "float32"] = "float16"
    """"uint8": 256 levels between the numbers of the least and the greatest value; needs values with bounds."""

    @property
    def length(self) -> int:
        return math.prod(self.shape)

    @property
    def axes(self) -> tuple[int, ...]:
        return self.shape

    @property
    def numbers_per_token(self) -> int:
        return self.dim

    def stored_as(self, vocab_size: int) -> str:
        return self.dtype


@dataclass(frozen=True, kw_only=True)
class EmbeddingsLayout(TokenLayout):
    """Continuous input only: up to `max_length` vectors of `dim` numbers, projected linearly. Stored as `dtype`."""

    kind = "embeddings"
    continuous = variable = True
    max_length: int
    dim: int
    dtype: Literal["float16", "float32"] = "float16"

    @property
    def length(self) -> int:
        return self.max_length

    @property
    def numbers_per_token(self) -> int:
        return self.dim

    def stored_as(self, vocab_size: int) -> str:
        return self.dtype
