"""Does one model over many modalities make each of them better than a specialist does that makes it alone?

    python studies/transfer.py --steps 3000 --seeds 3

All are given the picture, whole, and asked for one modality. Generalists over 3, 7 and all modalities take S steps.
Against each stand, for each of its T targets, a specialist that also takes S steps (equal steps per target, T times
the compute in all) and one that takes S / T (equal compute in all).
"""

from __future__ import annotations

from typing import Any

from common import GIVEN, Study, Variant, interval, shown
from rich.table import Table

from backbone.config import Mixture
from backbone.training.mixing import TRAIN
from tokenizers_zoo.data.tokens import TokenStore

ORDER = GIVEN, "depth", "semseg", "normal", "caption", "boxes", "metadata"
"""Which come first in the smaller sets; others follow by name."""
SIZES = 3, 7


def asked(target: str) -> Mixture:
    """The picture is given, and one modality is asked for."""
    return Mixture(inputs=(GIVEN,), targets=(target,), input_alpha=10.0)


def specialist(study: Study, target: str, steps: int) -> Variant:
    """A model that makes one modality of the picture and nothing else."""
    return Variant(
        name=f"specialist/{target}-{steps}", modalities=(GIVEN, target), model=study.model,
        train=study.settings((asked(target),), steps), question=asked(target),
    )  # fmt: skip


def generalist(study: Study, names: tuple[str, ...], target: str) -> Variant:
    """A model of many modalities: half of its samples are asked as specialists are, half lead from any to any."""
    targets = tuple(name for name in names if not study.zoo[name].spec.continuous)
    mixtures = Mixture(inputs=(GIVEN,), targets=targets, input_alpha=10.0), Mixture()
    return Variant(
        name=f"generalist/{len(names)}", modalities=names, model=study.model,
        train=study.settings(mixtures), question=asked(target),
    )  # fmt: skip


def main() -> None:
    study = Study("transfer", __doc__, steps=3000)
    there = TokenStore(study.tokens).modalities(TRAIN)
    ordered = [name for name in ORDER if name in there] + [name for name in there if name not in ORDER]
    sets = [tuple(ordered[:size]) for size in dict.fromkeys((*SIZES, len(ordered))) if size <= len(ordered)]
    steps = study.arguments.steps
    rows: list[dict[str, Any]] = []
    for names in sets:
        targets = [name for name in names if not study.zoo[name].spec.continuous]
        for target in targets:
            runs = {
                "generalist": study.losses(generalist(study, names, target)),
                "equal steps": study.losses(specialist(study, target, steps)),
                "equal compute": study.losses(specialist(study, target, max(1, steps // len(targets)))),
            }
            found = {how: [run[target] for run in of] for how, of in runs.items()}
            gains = {f"gain at {how}": interval([theirs - ours for theirs, ours in
                                                 zip(found[how], found["generalist"], strict=True)])
                     for how in ("equal steps", "equal compute")}  # fmt: skip
            rows.append({"modalities": len(names), "target": target, "runs": found, **gains}
                        | {how: interval(values) for how, values in found.items()})  # fmt: skip
    table = Table("modalities", "target", box=None, pad_edge=False, title="held-out loss, nats, given the picture")
    columns = "generalist", "equal steps", "gain at equal steps", "equal compute", "gain at equal compute"
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(str(row["modalities"]), row["target"], *(shown(row[column]) for column in columns))
    table.caption = "gain: how much lower the generalist's loss is, paired by seed; mean and half of the 95 % interval"
    study.finish({"rows": rows}, table)


if __name__ == "__main__":
    main()
