"""Scores of texts by their words, and the constant text that scores best."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from tokenizers_zoo.families.text import words_of
from tokenizers_zoo.spec import Metric

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


def words(text: str) -> list[str]:
    """Its words, see `words_of`, in lower case."""
    return words_of(text.lower())


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
