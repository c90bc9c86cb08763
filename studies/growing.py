"""What does adding a modality to a trained backbone cost, and what does it do to the old ones?

    python studies/growing.py --add depth --steps 3000 --seeds 3

A is trained for S steps on all modalities but the new one. B is A grown by it for S / 5 steps, old samples replayed in
the default share and old weights moved at the default one; C the same with all but the new rows frozen. D has all
modalities from the start, and S steps.
Old modalities are compared before and after by `zoo backbone grow`'s own report, masked as in A's training, and by the
gap closed given the picture. B is measured every S / 25 steps for when it is where D ends: its rate falls until S / 5,
so what it is on the way is less than a run as short as that could be.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import GIVEN, Study, cell, interval, over_seeds, shown
from rich.table import Table
from transfer import asked, generalist

from backbone.cli.grow import REPLAY
from backbone.config import TrainConfig
from backbone.growing import Trained, growing_config, grown_specs, write_report
from backbone.model import FourM
from backbone.saving import save_model
from backbone.training.mixing import TRAIN
from backbone.training.train import train
from tokenizers_zoo.data.tokens import TokenStore
from tokenizers_zoo.errors import UnknownNameError

GROWING, CHECKS = 5, 25
"""Growing takes S / 5 steps, and is looked at every S / 25."""
WORST, SOONEST = -0.01, 0.2
"""Aims: no old modality's gap closed falls by more; B is where D ends within this share of S."""
LOSS, GAP = "held-out loss", "gap closed"
BEFORE, GROWN, FROZEN, ALL = "before", "grown", "frozen", "all"
LETTERS = {BEFORE: "A", GROWN: "B", FROZEN: "C", ALL: "D"}
ALONG = "along"
"""In a run that grows, the folder of what it was on the way."""

Figures = dict[str, float | None]
"""The held-out loss, and the gap closed; None where there is no gap."""


class Growing:
    """The runs of one seed, and what is measured of them."""

    def __init__(self, study: Study, names: Sequence[str], seed: int) -> None:
        self.study, self.seed = study, seed
        self.new: str = study.arguments.add
        self.names = (*(name for name in names if name != self.new), self.new)
        self.steps = max(1, study.arguments.steps // GROWING)
        self.every = max(1, study.arguments.steps // CHECKS)

    def trained(self, how: str) -> Path:
        """A or D: a model that is trained from nothing."""
        names, name = (self.names, "all") if how == ALL else (self.names[:-1], f"without-{self.new}")
        variant = generalist(self.study, names, self.new)
        return self.study.run(dataclasses.replace(variant, name=name), self.seed)

    def grown(self, how: str, start: Path) -> Path:
        """B or C: what the backbone in `start` becomes."""
        zoo, tokens = self.study.zoo, self.study.tokens
        trained = Trained.load(start)
        specs = grown_specs(trained, {name: zoo[name].spec for name in self.names}, [self.new])
        settings = self.study.settings(steps=self.steps)
        table = {key: getattr(settings, key) for key in ("steps", "warmup_steps", "eval_every", "save_every")}
        table |= {"freeze": True} if how == FROZEN else {"preview_every": self.every}
        config = growing_config(trained, specs, tokens, table, 0.0 if how == FROZEN else REPLAY)
        return train(
            self.folder(how), tokens, specs, trained.model, config, start=start,
            show=lambda model, _, step: self.keep(model, config, step),
        )  # fmt: skip

    def keep(self, model: FourM, config: TrainConfig, step: int) -> dict[str, Path | str]:
        """Write what B is after a step, when a run's previews are drawn; nothing is shown. The last is the run's."""
        if step < self.steps:
            codecs = {name: self.study.zoo[name].fingerprint for name in self.names}
            masking = {"masking": dataclasses.asdict(config.masking)}
            save_model(model, self.along(step), {"train": masking, "fingerprints": codecs})
        return {}

    def folder(self, how: str) -> Path:
        """That of B or C."""
        return self.study.folder(f"{how}-{self.new}", self.seed)

    def along(self, step: int) -> Path:
        """Where B is as it was after a step."""
        return self.folder(GROWN) / ALONG / f"step-{step}"

    def gaps(self, folder: Path, targets: Sequence[str] | None = None) -> dict[str, float | None]:
        """By target, by default all, the gap closed given the picture."""
        pairs = self.study.made_of_the_picture(folder, self.study.zoo, self.study.tokens, targets)
        return {pair["target"]: pair["gap_closed"] for pair in pairs}

    def of_new(self, folder: Path) -> Figures:
        """What the new modality comes to in a run, given the picture."""
        loss = self.study.losses_in(folder, self.names, asked(self.new))[self.new]
        return {LOSS: loss, GAP: self.gaps(folder, [self.new])[self.new]}

    def measure(self) -> dict[str, Any]:
        """Train all that is not there, and give the figures of this seed.

        {"old": {"grown" and "frozen": {"held-out loss" and "gap closed": {name: {"before", "after"}}}},
         "new": {"grown", "frozen" and "all": figures}, "along": {step: figures of B}}
        """
        start = self.trained(BEFORE)
        before = Trained.load(start)
        self.gaps(start)
        old, new = {}, {}
        for how in (GROWN, FROZEN):
            folder = self.grown(how, start)
            self.gaps(folder)
            report = write_report(folder, before, self.study.tokens)
            gaps = {row["target"]: row for row in report["gaps"] if row["given"] == [GIVEN]}
            old[how] = {
                measure: {name: {when: row[when] for when in ("before", "after")} for name, row in rows.items()}
                for measure, rows in ((LOSS, report["losses"]), (GAP, gaps))
            }
            new[how] = self.of_new(folder)
        new[ALL] = self.of_new(self.trained(ALL))
        kept = range(self.every, self.steps, self.every)
        along = {step: self.of_new(self.along(step)) for step in kept}
        return {"old": old, "new": new, "along": {**along, self.steps: new[GROWN]}}


def measured(study: Study, job: tuple[Sequence[str], int]) -> dict[str, Any]:
    """The figures of one seed, from the modalities and the seed."""
    return Growing(study, *job).measure()


def reached(run: Mapping[str, Any], measure: str) -> int | None:
    """After how many steps of growing B first is where D ends; None where it never is."""
    end = run["new"][ALL][measure]
    worse = 1 if measure == LOSS else -1
    found = [step for step, at in run["along"].items() if None not in (end, at[measure])
             and worse * (at[measure] - end) <= 0]  # fmt: skip
    return min(found, default=None)


def change(row: Mapping[str, float | None]) -> float | None:
    """From before to after."""
    before, after = row["before"], row["after"]
    return None if before is None or after is None else after - before


def summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means and intervals over seeds.

    {"old": {measure: {name: {"before", "grown", "frozen", "change grown", "change frozen"}}},
     "worst": {measure: {"grown" and "frozen": {"modality", "mean", "half"}, where there is one}},
     "new": {measure: {"grown", "frozen", "all", "reached": steps by seed}}}
    """
    old: dict[str, Any] = {}
    worst: dict[str, Any] = {}
    for measure in (LOSS, GAP):
        old[measure] = {}
        for name in runs[0]["old"][GROWN][measure]:
            rows = {how: [run["old"][how][measure][name] for run in runs] for how in (GROWN, FROZEN)}
            old[measure][name] = {BEFORE: over_seeds([row["before"] for row in rows[GROWN]])}
            old[measure][name] |= {how: over_seeds([row["after"] for row in of]) for how, of in rows.items()}
            old[measure][name] |= {f"change {how}": over_seeds(list(map(change, of))) for how, of in rows.items()}
        sign = 1 if measure == LOSS else -1
        worst[measure] = {}
        for how in (GROWN, FROZEN):
            changes = {name: row[f"change {how}"] for name, row in old[measure].items() if row[f"change {how}"]}
            if changes:
                name = max(changes, key=lambda name: sign * changes[name]["mean"])
                worst[measure][how] = {"modality": name, **changes[name]}
    new = {
        measure: {how: over_seeds([run["new"][how][measure] for run in runs]) for how in (GROWN, FROZEN, ALL)}
        | {"reached": [reached(run, measure) for run in runs]}
        for measure in (LOSS, GAP)
    }
    return {"old": old, "worst": worst, "new": new}


def when(steps: Sequence[int | None], whole: int) -> str:
    """After how many steps, and what share of `whole` that is."""
    there = [step for step in steps if step is not None]
    if not there:
        return "not reached"
    mean = interval(there)
    half = f" ± {mean['half']:.0f}" if mean["half"] else ""
    seeds = "" if len(there) == len(steps) else f", {len(there)} of {len(steps)} seeds"
    return f"{mean['mean']:.0f}{half} ({mean['mean'] / whole:.1%}){seeds}"


def old_table(result: Mapping[str, Any], measure: str, aim: str) -> Table:
    """One measure of all old modalities, before and after; the largest loss among them below, and the aim."""
    table = Table("", box=None, pad_edge=False, title=f"old modalities: {measure}")
    columns = {BEFORE: BEFORE, GROWN: GROWN, f"change {GROWN}": "B - A", FROZEN: FROZEN, f"change {FROZEN}": "C - A"}
    for key, title in columns.items():
        table.add_column(f"{LETTERS[key]}, {title}" if key in LETTERS else title, justify="right")
    for name, row in result["old"][measure].items():
        table.add_row(name, *(cell(row[key]) for key in columns))
    found = [f"{LETTERS[how]} {shown(row)} ({row['modality']})" for how, row in result["worst"][measure].items()]
    table.caption = f"the worst change: {', '.join(found) or '-'}{aim}"
    return table


def new_table(result: Mapping[str, Any], new: str, steps: int) -> Table:
    """What the new modality comes to, and when."""
    table = Table("", box=None, pad_edge=False, title=f"{new}, given {GIVEN}")
    for how in (GROWN, FROZEN, ALL):
        table.add_column(f"{LETTERS[how]}, {how}", justify="right")
    table.add_column("steps until B is where D ends", justify="right")
    for measure, row in result["new"].items():
        figures = [cell(row[how]) for how in (GROWN, FROZEN, ALL)]
        table.add_row(measure, *figures, when(row["reached"], steps) if row[ALL] else "-")
    table.caption = f"aim: at most {SOONEST:.0%} of the {steps} steps that D takes"
    return table


def main() -> None:
    study = Study.from_command_line("growing", __doc__, steps=3000, add=("depth", "the modality that is new"))
    new, steps = study.arguments.add, study.arguments.steps
    names = TokenStore(study.tokens).modalities(TRAIN)
    if new not in (can_be := [name for name in names if not study.zoo[name].spec.continuous]):
        raise UnknownNameError.of(f"modality with tokens in {study.tokens}, to be made:", new, can_be)
    runs = study.at_once("measured", measured, [(names, seed) for seed in range(study.arguments.seeds)])
    result = summary(runs)
    study.finish(
        {"added": new, "aims": {"worst change of the gap closed": WORST, "share of the steps": SOONEST}}
        | result | {"runs": runs},
        old_table(result, LOSS, ""), old_table(result, GAP, f"; aim: none below {WORST:g}"),
        new_table(result, new, steps),
    )  # fmt: skip


if __name__ == "__main__":
    main()
