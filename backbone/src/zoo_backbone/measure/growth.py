"""growth.json: losses and pair metrics of a grown backbone, before and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers_zoo.records.typed import Complete
from zoo_backbone.measure.evaluation import FILE, FOLDER, PAIR_METRICS, EvaluationRecord, Number, read_evaluation
from zoo_backbone.model.run import Start, stored_config

GROWTH = "growth.json"


@dataclass(frozen=True, kw_only=True)
class LossChange:
    """Nats per target token of held-out samples, with the same masks and vocabularies before and after."""

    before: float
    """For an added modality, the loss of a uniform prediction."""
    after: float
    targets: int


@dataclass(frozen=True, kw_only=True)
class PairChange:
    """A pair metric of a pair that was measured on both backbones."""

    metric: str
    inputs: tuple[str, ...]
    target: str
    before: Number
    after: Number


@dataclass(frozen=True, kw_only=True)
class Growth(Complete):
    """The content of growth.json."""

    start: Start
    losses: Mapping[str, LossChange]
    """Old modalities."""
    new: Mapping[str, LossChange]
    """Added modalities."""
    pairs: tuple[PairChange, ...]
    """Pairs that zoo backbone eval has scored with both backbones."""

    def rows(self) -> list[tuple[str, Number, Number]]:
        """Return label, figure before and figure after, for a table."""
        losses = [(f"loss of {name}, nats", loss) for name, loss in self.losses.items()]
        losses += [(f"loss of {name} (new), nats; before: uniform", loss) for name, loss in self.new.items()]
        return [
            *((label, loss.before, loss.after) for label, loss in losses),
            *(
                (f"{pair.metric} from {' + '.join(pair.inputs)} to {pair.target}", pair.before, pair.after)
                for pair in self.pairs
            ),
        ]


def pair_changes(before: Path, after: Path) -> tuple[PairChange, ...]:
    """Return the metrics of pairs that both backbones were evaluated on, with the same settings and data.

    An evaluation of other weights than the folder has now does not count.
    """
    first, second = _evaluation(before), _evaluation(after)
    if first is None or second is None:
        return ()
    old, new = _dependencies(first), _dependencies(second)
    # A name in only one evaluation belongs to no shared pair.
    if any(old[name] != new[name] for name in old.keys() & new.keys()):
        return ()
    scores = {(score.pair, score.samples): score for score in second.pairs}
    return tuple(
        PairChange(
            metric=metric,
            inputs=score.inputs,
            target=score.target,
            before=score.figure(metric),
            after=scores[score.pair, score.samples].figure(metric),
        )
        for metric in PAIR_METRICS
        for score in first.pairs
        if (score.pair, score.samples) in scores
    )


def _evaluation(folder: Path) -> EvaluationRecord | None:
    """Return the evaluation of the weights in a folder, or None."""
    path = folder / FOLDER / FILE
    if not path.is_file():
        return None
    evaluation = read_evaluation(path)
    return evaluation if evaluation.identity.weights == stored_config(folder).weights_sha256 else None


def _dependencies(evaluation: EvaluationRecord) -> dict[tuple[str, str], Any]:
    """Return the digests and settings that scores depend on, apart from the weights."""
    identity = evaluation.identity
    tables = {"decoders": identity.decoders, "values": identity.values, "settings": identity.settings}
    return {(key, name): value for key, table in tables.items() for name, value in table.items()}
