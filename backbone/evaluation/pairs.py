"""Which modalities are made of which: the pairs that an evaluation asks for, and their order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from backbone.evaluation.data import EvaluationData
from backbone.model import FourM
from tokenizers_zoo.errors import ConfigError
from tokenizers_zoo.modality import ModalitySpec

Pair = tuple[tuple[str, ...], str]
"""What is given, and what is made of it."""


def pair_of(entry: dict[str, Any]) -> Pair:
    """That of an entry of evaluation.json."""
    return tuple(entry["given"]), entry["target"]


def title_of(pair: Pair) -> str:
    """ "a + b to c"."""
    return f"{' + '.join(pair[0])} to {pair[1]}"


def chosen_pairs(
    model: FourM, data: EvaluationData, given: Sequence[Sequence[str]] | None, targets: Sequence[str] | None
) -> list[Pair]:
    """The pairs to evaluate, each once, in order.

    Raises UnknownNameError, DataError or ConfigError for names that cannot be.
    """
    named = [*(name for names in given or () for name in names), *(targets or ())]
    for name in named:
        if model.tables.spec(name).continuous and name in (targets or ()):
            raise ConfigError(f"evaluate {name}: a {model.tables.spec(name).layout.kind} modality is an input only")
    data.require(named)
    if given is None and targets is None:
        return default_pairs([handle.spec for handle in data.handles.values()])
    ranked = ranked_names([handle.spec for handle in data.handles.values()])
    sources = [tuple(dict.fromkeys(names)) for names in given] if given is not None else [(name,) for name in ranked]
    wanted = targets if targets is not None else [name for name in ranked if name in model.tables.discrete]
    pairs = [(names, target) for names in sources for target in wanted if target not in names]
    if not pairs:
        raise ConfigError("evaluate: every target is among the given modalities, so there is nothing to generate")
    return list(dict.fromkeys(pairs))


def ranked_names(specs: Sequence[ModalitySpec]) -> list[str]:
    """Names with those first that show a sample best: pictures before all else, then what others are derived from."""

    def rank(spec: ModalitySpec) -> tuple[bool, bool, int, str]:
        children = sum(spec.name in other.derived_from for other in specs)
        return len(spec.places) != 2, bool(spec.derived_from), -children, spec.name

    return [spec.name for spec in sorted(specs, key=rank)]


def default_pairs(specs: Sequence[ModalitySpec]) -> list[Pair]:
    """Each modality to each other discrete one: from the first-ranked, then to the first-ranked, then the rest."""
    names = ranked_names(specs)
    continuous = {spec.name for spec in specs if spec.continuous}
    pairs: list[Pair] = [((a,), b) for a in names for b in names if a != b and b not in continuous]
    first_target = next((name for name in names if name not in continuous), "")
    return sorted(pairs, key=lambda pair: (pair[0] != (names[0],), pair[1] != first_target))
