"""Does one model over many modalities predict each modality better than a specialist does?

    python studies/transfer.py --steps 1000 --seeds 3

The whole picture is the input, and one modality the target. Generalists over 3, 7 and all modalities take S steps. Each
is compared, for each of its T targets, with a specialist of S steps (T times the steps in all) and a specialist of S /
T steps (equal steps in all; a specialist's step is cheaper, since it predicts fewer tokens).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from common import GIVEN, Study, Variant, begin, format_mean, interval
from rich.table import Table

from zoo_backbone.model.config import Mixture

ORDER = GIVEN, "depth", "semseg", "normal", "caption", "boxes", "metadata"
"""Which come first in the smaller sets; others follow by name."""
SIZES = 3, 7
GENERALIST = "generalist"


def picture_question(target: str) -> Mixture:
    """The picture is the input, and one modality the target."""
    return Mixture(inputs=(GIVEN,), targets=(target,), input_alpha=10.0)


def specialist(study: Study, target: str, steps: int) -> Variant:
    """A model that makes one modality of the picture and nothing else."""
    return Variant(
        name=f"specialist/{target}-{steps}", modalities=(GIVEN, target), model=study.model,
        train=study.settings((picture_question(target),), steps), question=picture_question(target),
    )  # fmt: skip


def generalist(study: Study, names: tuple[str, ...], target: str) -> Variant:
    """A model of many modalities: half of its samples are asked as specialists are, half lead from any to any."""
    mixtures = Mixture(inputs=(GIVEN,), targets=tuple(target_names(study, names)), input_alpha=10.0), Mixture()
    return Variant(
        name=f"generalist/{len(names)}", modalities=names, model=study.model,
        train=study.settings(mixtures), question=picture_question(target),
    )  # fmt: skip


def target_names(study: Study, names: Sequence[str]) -> list[str]:
    """Modalities that can be targets."""
    return [name for name in names if not study.zoo[name].spec.continuous]


def sets_of(study: Study) -> list[tuple[str, ...]]:
    """The modalities of each generalist, the smallest set first."""
    modalities = study.modalities
    ordered = [name for name in ORDER if name in modalities] + [name for name in modalities if name not in ORDER]
    return [tuple(ordered[:size]) for size in dict.fromkeys((*SIZES, len(ordered))) if size <= len(ordered)]


def rivals(study: Study, names: tuple[str, ...], target: str) -> dict[str, Variant]:
    """The generalist over `names` and the specialists that stand against it, for one target."""
    steps, share = study.arguments.steps, len(target_names(study, names))
    return {
        GENERALIST: generalist(study, names, target),
        "S steps": specialist(study, target, steps),
        "S / T steps": specialist(study, target, max(1, steps // share)),
    }


def target_losses(losses: Mapping[str, Sequence[Mapping[str, float]]], target: str) -> dict[str, Any]:
    """The losses of a target in a generalist and in its rivals, and by how much the generalist's is lower."""
    losses_by_model = {how: [run[target] for run in runs] for how, runs in losses.items()}
    ours = losses_by_model[GENERALIST]
    gains = {
        f"gain over {how}": interval([rival_loss - loss for rival_loss, loss in zip(theirs, ours, strict=True)])
        for how, theirs in losses_by_model.items() if how != GENERALIST
    }  # fmt: skip
    return {
        "target": target,
        "runs": losses_by_model,
        **{how: interval(values) for how, values in losses_by_model.items()},
        **gains,
    }


def main() -> None:
    study = Study.from_command_line("transfer", __doc__, steps=1000)
    asked_for = [(names, target) for names in sets_of(study) for target in target_names(study, names)]
    questions = [(len(names), target, rivals(study, names, target)) for names, target in asked_for]
    losses = iter(study.losses([variant for _, _, variants in questions for variant in variants.values()]))
    rows = [
        {"modalities": size} | target_losses({how: next(losses) for how in variants}, target)
        for size, target, variants in questions
    ]
    table = Table("modalities", "target", box=None, pad_edge=False, title="held-out loss, nats, given the picture")
    columns = GENERALIST, "S steps", "gain over S steps", "S / T steps", "gain over S / T steps"
    for column in columns:
        table.add_column("gain" if column.startswith("gain") else column, justify="right")
    for row in rows:
        table.add_row(str(row["modalities"]), row["target"], *(format_mean(row[column]) for column in columns))
    table.caption = (
        "S, S / T steps: specialists; gain: how much lower the generalist's loss is; half of the 95 % interval"
    )
    study.finish({"rows": rows}, table)


if __name__ == "__main__":
    begin(main)
