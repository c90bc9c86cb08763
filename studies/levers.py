"""Which settings bring one model over all modalities nearer to the specialists of `transfer.py`?

    python studies/levers.py --steps 1000 --seeds 3

The generalist over all modalities is taken as it is in that study, and with one setting changed at a time. Each is
compared with the specialists that take as many steps. Both are that study's, where it was run with the same options.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import GIVEN, Study, Variant, begin, format_mean, interval
from rich.table import Table
from transfer import generalist, picture_question, sets_of, specialist, target_names

from zoo_backbone.learn.optim import for_width

AS_IT_IS = "as it is"
COLUMNS = 4
"""Width of a table that fits 80 characters."""
SEVERAL, ONE = 10.0, 0.1
"""Dirichlet concentrations of the target budget: even, or mostly one modality."""


def levers(study: Study, base: Variant) -> list[Variant]:
    """The generalist with one setting changed."""
    masking = base.train.masking
    asking, any_to_any = masking.mixtures

    def changed(name: str, **settings: Any) -> Variant:
        return dataclasses.replace(base, name=name, train=dataclasses.replace(base.train, **settings))

    def masked(name: str, **settings: Any) -> Variant:
        return changed(name, masking=dataclasses.replace(masking, **settings))

    def shared(alpha: float) -> tuple[Any, ...]:
        return tuple(dataclasses.replace(part, target_alpha=alpha) for part in masking.mixtures)

    model = base.model
    larger = dataclasses.replace(
        model, dim=model.dim * 3 // 2, heads=model.heads * 3 // 2, encoder_depth=model.encoder_depth + 1
    )
    rate = study.arguments.rate * for_width(1.0, larger.dim) / for_width(1.0, model.dim)
    return [
        masked("asked in 4 of 5", mixtures=(dataclasses.replace(asking, weight=4.0), any_to_any)),
        masked("mostly one target", mixtures=shared(ONE)),
        masked("several targets", mixtures=shared(SEVERAL)),
        masked("twice the targets", target_budget=2 * masking.target_budget),
        changed("mean by modality", loss="modality"),
        changed("uncertainty", balance="uncertainty"),
        dataclasses.replace(changed("1.5 times as wide", learning_rate=rate), model=larger),
    ]


def main() -> None:
    study = Study.from_command_line(
        "levers", __doc__, steps=1000, rivals=("runs/studies/transfer", "folder of the study transfer")
    )  # fmt: skip
    rival_arguments = vars(study.arguments) | {"study": "transfer", "out": Path(study.arguments.rivals)}
    rivals = Study(argparse.Namespace(**rival_arguments), study.zoo)
    names = sets_of(study)[-1]
    targets = target_names(study, names)
    base = generalist(study, names, GIVEN)
    specialists = [specialist(study, target, study.arguments.steps) for target in targets]

    def with_questions(variant: Variant) -> list[Variant]:
        return [dataclasses.replace(variant, question=picture_question(target)) for target in targets]

    changes = levers(study, base)
    theirs = rivals.losses(specialists)
    losses = iter(
        [
            *rivals.losses(with_questions(base)),
            *study.losses([question for change in changes for question in with_questions(change)]),
        ]
    )
    rows = {}
    for name in (AS_IT_IS, *(variant.name for variant in changes)):
        gains = {
            target: [rival_loss[target] - loss[target] for rival_loss, loss in zip(of, next(losses), strict=True)]
            for target, of in zip(targets, theirs, strict=True)
        }
        mean = [sum(of_seed) / len(of_seed) for of_seed in zip(*gains.values(), strict=True)]
        rows[name] = {"mean": interval(mean)} | {target: interval(of) for target, of in gains.items()}
    columns = ["mean", *targets]
    tables = [table_of(rows, columns[first : first + COLUMNS]) for first in range(0, len(columns), COLUMNS)]
    tables[0].title = "held-out loss, nats: how much lower than the specialists'"
    tables[-1].caption = "given the picture, paired by seed; half of the 95 % interval"
    study.finish({"gains": rows}, *tables)


def table_of(rows: Mapping[str, Mapping[str, Mapping[str, float]]], columns: Sequence[str]) -> Table:
    """Some columns of all settings."""
    table = Table("", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for name, row in rows.items():
        table.add_row(name, *(format_mean(row[column]) for column in columns))
    return table


if __name__ == "__main__":
    begin(main)
