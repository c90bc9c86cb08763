"""Pairs of inputs and target that an evaluation scores, and their order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers_zoo.errors import ConfigError
from tokenizers_zoo.spec import ModalitySpec
from zoo_backbone.checkpoint import architecture_for
from zoo_backbone.config import ModelConfig
from zoo_backbone.evaluation.data import EvaluationData
from zoo_backbone.model import FourM

Pair = tuple[tuple[str, ...], str]
"""Input modalities and a target."""


def pair_of(entry: dict[str, Any]) -> Pair:
    """Return the pair of an entry of evaluation.json."""
    return tuple(entry["inputs"]), entry["target"]


def title_of(pair: Pair) -> str:
    """ "a + b to c"."""
    return f"{' + '.join(pair[0])} to {pair[1]}"


def chosen_pairs(
    model: FourM, data: EvaluationData, inputs: Sequence[Sequence[str]] | None, targets: Sequence[str] | None
) -> list[Pair]:
    """The pairs to evaluate, each once, in order.

    Raises UnknownNameError, DataError or ConfigError for names that cannot be.
    """
    layout, sought = model.layout, [name for names in inputs or () for name in names]
    for name in sought:
        layout.check_read(name, "evaluate")
    for name in targets or ():
        layout.check_made(name, "evaluate")
    data.require([*sought, *(targets or ())])
    specs = [handle.spec for handle in data.handles.values()]
    if inputs is None and targets is None:
        return default_pairs(specs, model.config)
    ranked = ranked_names(specs)
    read = [(name,) for name in ranked if name in layout.readable]
    sources = read if inputs is None else [tuple(dict.fromkeys(names)) for names in inputs]
    wanted = targets if targets is not None else [name for name in ranked if name in layout.discrete]
    pairs = [(names, target) for names in sources for target in wanted if target not in names]
    if not pairs:
        raise ConfigError("evaluate: every target is one of its inputs; expected another target")
    return list(dict.fromkeys(pairs))


def ranked_names(specs: Sequence[ModalitySpec]) -> list[str]:
    """Names with those first that show a sample best: pictures before all else, then what others are derived from."""

    def rank(spec: ModalitySpec) -> tuple[bool, bool, int, str]:
        children = sum(spec.name in other.derived_from for other in specs)
        return len(spec.places) != 2, bool(spec.derived_from), -children, spec.name

    return [spec.name for spec in sorted(specs, key=rank)]


def default_pairs(specs: Sequence[ModalitySpec], config: ModelConfig | None = None) -> list[Pair]:
    """Each modality to each other discrete one: from the first-ranked, then to the first-ranked, then the rest.

    Without those that a model with this configuration does not read, or does not make.
    """
    config = config or ModelConfig()
    layout, names = architecture_for(config).layout_class(specs, config), ranked_names(specs)
    given = [name for name in names if name in layout.readable]
    made = [name for name in names if name in layout.discrete]
    pairs: list[Pair] = [((a,), b) for a in given for b in made if a != b]
    return sorted(pairs, key=lambda pair: (pair[0] != (given[0],), pair[1] != made[0]))
