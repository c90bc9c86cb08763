"""What does adding a modality to a trained backbone cost, and what does it do to the old ones?

    python studies/growing.py --add depth --steps 2000 --seeds 3 --shares 0.2,1

A is trained for S steps on all modalities but the new one. B is A grown by it, with the default replay share and the
default learning rate scale of pretrained weights. There is one run for each share of S that growing may take. C is the
same for the first share, with all but the new rows frozen; there is none where the new modality writes in the rows of
old ones alone. D has all modalities from the start, and S steps. Old modalities are compared before and after by `zoo
backbone grow`'s own report, masked as in A's training, and by the skill score from the picture. The new one is compared
by the loss, the skill score from the picture, and the share of S that B takes to be where D ends.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import GIVEN, Study, begin, cell, format_mean, over_seeds
from rich.table import Table
from transfer import generalist, picture_question

from tokenizers_zoo.contract.spec import ModalitySpec
from tokenizers_zoo.errors import ConfigError, UnknownNameError
from zoo_backbone.learn.checkpoint import ids_in_use, initial_model
from zoo_backbone.learn.train import train
from zoo_backbone.measure.grow import Trained, growing_config, grown_specs, replay_mixtures, write_report

SHARES = "0.2"
WORST, SOONEST = -0.01, 0.2
"""Aims: no old modality's skill score falls by more; B is where D ends within this share of S."""
LOSS, SKILL = "held-out loss", "skill score"
BEFORE, GROWN, FROZEN, ALL = "before", "grown", "frozen", "all"

Figures = dict[str, float | None]
"""The held-out loss, and the skill score; None where there is none."""


def shares_of(text: str) -> list[float]:
    """Those of S, from words with commas between. Raises ConfigError for anything else."""
    shares = []
    for word in text.split(","):
        try:
            share = float(word)
        except ValueError:
            share = 0.0
        if not 0 < share <= 1:
            raise ConfigError(f"--shares {word}: expected numbers above 0, up to 1, with commas between")
        shares.append(share)
    return list(dict.fromkeys(shares))


def named(how: str, share: float) -> str:
    """Name of B or C among the figures: its kind, and the share of S it grew for."""
    return f"{how} {share:g}"


class Growing:
    """The runs and measurements of one seed."""

    def __init__(self, study: Study, names: Sequence[str], shares: Sequence[float], seed: int) -> None:
        self.study, self.shares, self.seed = study, shares, seed
        self.new: str = study.arguments.add
        self.names = (*(name for name in names if name != self.new), self.new)

    def trained(self, how: str) -> Path:
        """A or D: a model that is trained from nothing."""
        names, name = (self.names, f"all-{self.new}") if how == ALL else (self.names[:-1], f"without-{self.new}")
        variant = generalist(self.study, names, self.new)
        return self.study.run(dataclasses.replace(variant, name=name), self.seed)

    def kinds(self, start: Path) -> list[tuple[str, float]]:
        """B for each share, and C where the new modality has rows of its own that could move."""
        trained = Trained.load(start)
        begun = initial_model(self.specs(trained), trained.model, self.seed, start, self.ids(start))
        grown = [(GROWN, share) for share in self.shares]
        return grown if begun.without_rows else [*grown, (FROZEN, self.shares[0])]

    def specs(self, trained: Trained) -> list[ModalitySpec]:
        """Modalities of the grown model."""
        return grown_specs(trained, {name: self.study.zoo[name].spec for name in self.names}, [self.new])

    def ids(self, start: Path) -> dict[str, int]:
        """Number of ids in use in text modalities, as counted by `zoo backbone grow`."""
        return ids_in_use(start, [self.study.zoo[name] for name in self.names])

    def grown(self, how: str, share: float, start: Path) -> Path:
        """Train B or C from the backbone in `start`."""
        tokens, trained = self.study.tokens, Trained.load(start)
        steps = max(1, round(share * self.study.arguments.steps))
        settings = self.study.settings(steps=steps)
        table = {key: getattr(settings, key) for key in ("steps", "warmup_steps", "eval_every", "save_every")}
        table |= {"freeze": True} if how == FROZEN else {}
        specs = self.specs(trained)
        config = growing_config(trained, specs, tokens, table)
        folder = self.study.folder(f"{how}-{self.new}-{share:g}", self.seed)
        mixtures = replay_mixtures(trained, specs, table)
        return train(
            folder, tokens, specs, trained.model, config, start=start, ids=self.ids(start), replay_mixtures=mixtures
        )

    def skills(self, folder: Path, targets: Sequence[str] | None = None) -> dict[str, float | None]:
        """By target, by default all, the skill score given the picture."""
        pairs = self.study.picture_pairs(folder, self.study.zoo, self.study.tokens, targets)
        return {pair.target: pair.figure() for pair in pairs}

    def of_new(self, folder: Path) -> Figures:
        """Loss and skill of the new modality in a run, from the picture."""
        loss = self.study.losses_in(folder, self.names, picture_question(self.new))[self.new]
        return {LOSS: loss, SKILL: self.skills(folder, [self.new])[self.new]}

    def measure(self) -> dict[str, Any]:
        """Train the missing runs and return the figures of this seed.

        {"old": {run: {"held-out loss" and "skill score": {name: {"before", "after"}}}} for each of B and C,
         "new": {run: figures} for each of B and C, and "all"}
        """
        start = self.trained(BEFORE)
        before = Trained.load(start)
        self.skills(start)
        old, new = {}, {}
        for how, share in self.kinds(start):
            folder = self.grown(how, share, start)
            self.skills(folder)
            report = write_report(folder, before, self.study.tokens)
            skills = {row.target: row for row in report.pairs if row.inputs == (GIVEN,) and row.metric == "skill"}
            old[named(how, share)] = {
                measure: {name: {"before": row.before, "after": row.after} for name, row in rows}
                for measure, rows in ((LOSS, report.losses.items()), (SKILL, skills.items()))
            }
            new[named(how, share)] = self.of_new(folder)
        new[ALL] = self.of_new(self.trained(ALL))
        return {"old": old, "new": new}


def measure_seed(study: Study, job: tuple[Sequence[str], Sequence[float], int]) -> dict[str, Any]:
    """The figures of one seed, from the modalities, the shares of S and the seed."""
    return Growing(study, *job).measure()


def reached(run: Mapping[str, Any], shares: Sequence[float], measure: str) -> float | None:
    """The smallest share of S after which B is where D ends; None if there are none."""
    end = run["new"][ALL][measure]
    worse = 1 if measure == LOSS else -1
    figures = {share: run["new"][named(GROWN, share)][measure] for share in shares}
    matching_shares = [share for share, at in figures.items() if None not in (end, at) and worse * (at - end) <= 0]
    return min(matching_shares, default=None)


def change(row: Mapping[str, float | None]) -> float | None:
    """From before to after."""
    before, after = row["before"], row["after"]
    return None if before is None or after is None else after - before


def summary(runs: Sequence[Mapping[str, Any]], shares: Sequence[float]) -> dict[str, Any]:
    """Means and intervals over seeds.

    {"old": {measure: {name: {"before", run, "change " + run: of each of B and C}}},
     "worst": {measure: {run: {"modality", "mean", "half"}, where there is one}},
     "new": {measure: {run, "all", "reached": the share of S by seed}}}
    """
    grown = list(runs[0]["old"])
    old: dict[str, Any] = {}
    worst: dict[str, Any] = {}
    for measure in (LOSS, SKILL):
        old[measure] = {}
        for name in runs[0]["old"][grown[0]][measure]:
            rows = {how: [run["old"][how][measure][name] for run in runs] for how in grown}
            old[measure][name] = {BEFORE: over_seeds([row["before"] for row in rows[grown[0]]])}
            old[measure][name] |= {how: over_seeds([row["after"] for row in of]) for how, of in rows.items()}
            old[measure][name] |= {changed(how): over_seeds(list(map(change, of))) for how, of in rows.items()}
        sign = 1 if measure == LOSS else -1
        worst[measure] = {}
        for how in grown:
            changes = {name: row[changed(how)] for name, row in old[measure].items() if row[changed(how)]}
            if changes:
                name = max(changes, key=lambda name: sign * changes[name]["mean"])
                worst[measure][how] = {"modality": name, **changes[name]}
    new = {
        measure: {how: over_seeds([run["new"][how][measure] for run in runs]) for how in (*grown, ALL)}
        | {"reached": [reached(run, shares, measure) for run in runs]}
        for measure in (LOSS, SKILL)
    }
    return {"old": old, "worst": worst, "new": new}


def changed(how: str) -> str:
    """Name of the change from before to after."""
    return f"change {how}"


def title(how: str) -> str:
    """A run as columns are called: its letter, and the share of S that it grew for."""
    word, _, share = how.partition(" ")
    letter = {BEFORE: "A", GROWN: "B", FROZEN: "C", ALL: "D"}[word]
    return f"{letter}, {float(share):.3g} S" if share else letter


def sooner(shares: Sequence[float | None]) -> str:
    """The smallest share of S that was enough, seed by seed."""
    return ", ".join("-" if share is None else f"{share:g} S" for share in shares)


def old_table(result: Mapping[str, Any], measure: str, aim: str) -> Table:
    """One measure of all old modalities, before and its change; the largest loss among them below, and the aim."""
    table = Table("", box=None, pad_edge=False, title=f"old modalities: {measure}, and its change from A")
    rows = result["old"][measure]
    grown = [key.removeprefix("change ") for key in next(iter(rows.values())) if key.startswith("change ")]
    for how in (BEFORE, *grown):
        table.add_column(title(how), justify="right")
    for name, row in rows.items():
        table.add_row(name, cell(row[BEFORE]), *(cell(row[changed(how)]) for how in grown))
    changes = [f"{title(how)} {format_mean(row)} ({row['modality']})" for how, row in result["worst"][measure].items()]
    table.caption = f"the worst change: {'; '.join(changes) or '-'}{aim}"
    return table


def new_table(result: Mapping[str, Any], new: str) -> Table:
    """Result of the new modality, by step."""
    table = Table("", box=None, pad_edge=False, title=f"{new}, given {GIVEN}")
    runs = [how for how in result["new"][LOSS] if how != "reached"]
    for how in runs:
        table.add_column(title(how), justify="right")
    table.add_column("B = D", justify="right")
    for measure, row in result["new"].items():
        table.add_row(measure, *(cell(row[how]) for how in runs), sooner(row["reached"]))
    table.caption = f"B = D: by seed, the first of the shares that is enough; aim: at most {SOONEST:g} S"
    return table


def main() -> None:
    study = Study.from_command_line(
        "growing", __doc__, steps=2000, add=("depth", "the modality that is new"),
        shares=(SHARES, "steps of growing, as shares of --steps, with commas between"),
    )  # fmt: skip
    new, shares = study.arguments.add, shares_of(study.arguments.shares)
    names = study.modalities
    if new not in (can_be := [name for name in names if not study.zoo[name].spec.continuous]):
        raise UnknownNameError.of(f"modality with tokens in {study.tokens}, to be made:", new, can_be)
    runs = study.run_parallel(
        "measured", measure_seed, [(names, shares, seed) for seed in range(study.arguments.seeds)]
    )
    result = summary(runs, shares)
    study.finish(
        {"added": new, "aims": {"worst change of the skill score": WORST, "share of the steps": SOONEST}}
        | result | {"runs": runs},
        old_table(result, LOSS, ""), old_table(result, SKILL, f"; aim: none below {WORST:g}"),
        new_table(result, new),
    )  # fmt: skip


if __name__ == "__main__":
    begin(main)
