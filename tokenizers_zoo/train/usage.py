"""How much of a codebook is used: counts of tokens, summarised."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

COLLAPSED = 0.2
"""Usage, as a share of what as many evenly spread tokens would reach, below which a codebook has collapsed."""


def reachable_usage(tokens: int, codebook_size: int) -> float:
    """Share of the codes that `tokens` drawn evenly and independently would use, in expectation."""
    return 1 - math.exp(-tokens / codebook_size)


class CodebookUsage:
    """Running counts over all tokens given to `update`.

    With several codebooks, tokens are (..., num_codebooks), counts are kept per codebook, and figures are their means:
    good ones hide a bad one, so that judging takes the figures of each (`per_codebook`).
    """

    def __init__(self, codebook_size: int, num_codebooks: int = 1) -> None:
        self.codebook_size = codebook_size
        self.num_codebooks = num_codebooks
        self.counts = np.zeros((num_codebooks, codebook_size), dtype=np.int64)

    def update(self, tokens: torch.Tensor | np.ndarray[Any, Any]) -> None:
        """Count integer tokens of any shape (with several codebooks the last axis is the codebooks), on any device.

        Raises ValueError for an id outside [0, codebook_size).
        """
        ids = np.asarray(tokens if isinstance(tokens, np.ndarray) else tokens.detach().cpu().numpy())
        if ids.size and not (ids.min() >= 0 and ids.max() < self.codebook_size):
            raise ValueError(f"tokens: expected ids in [0, {self.codebook_size}), got {ids.min()} to {ids.max()}")
        for counts, column in zip(self.counts, ids.reshape(-1, self.num_codebooks).T, strict=True):
            counts += np.bincount(column, minlength=self.codebook_size)

    def per_codebook(self) -> list[CodebookUsage]:
        """Return one CodebookUsage per codebook, with the counts so far."""
        books = [CodebookUsage(self.codebook_size) for _ in self.counts]
        for book, counts in zip(books, self.counts, strict=True):
            book.counts += counts
        return books

    def figures(self) -> dict[str, float]:
        """Return the figures by name, with `codebook_summary`. `reachable`: see `reachable_usage`, for all tokens."""
        count = int(self.counts.sum()) // self.num_codebooks
        return {
            "size": self.codebook_size,
            "usage": self.usage,
            "perplexity": self.perplexity,
            "entropy_bits": self.entropy_bits,
            "reachable": reachable_usage(count, self.codebook_size),
            **self.codebook_summary(),
        }

    def codebook_summary(self) -> dict[str, float]:
        """Return figures of several codebooks; empty for a single one. `codebooks`: their number; `least_usage`: the
        lowest usage; `least_used`: the number of that codebook, from 1."""
        usages = [book.usage for book in self.per_codebook()]
        least = {"codebooks": len(usages), "least_usage": min(usages), "least_used": usages.index(min(usages)) + 1}
        return least if len(usages) > 1 else {}

    @property
    def usage(self) -> float:
        """Fraction of the codes that occurred at least once, in [0, 1]."""
        return float((self.counts > 0).mean())

    @property
    def entropy_bits(self) -> float:
        """Entropy of the code frequencies, in [0, log2(codebook size)] bits; 0 before any token."""
        return float(np.mean([_entropy(counts) for counts in self.counts])) / math.log(2)

    @property
    def perplexity(self) -> float:
        """exp(entropy): how many equally frequent codes would be as varied, in [1, codebook size]."""
        return float(np.mean([math.exp(_entropy(counts)) for counts in self.counts]))


def _entropy(counts: np.ndarray[Any, Any]) -> float:
    """Entropy of counts in nats, 0 log 0 = 0."""
    positive = counts[counts > 0]
    if not positive.size:
        return 0.0
    shares = positive / positive.sum()
    return float(-(shares * np.log(shares)).sum())
