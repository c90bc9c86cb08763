"""Shared by the studies: runs that are trained once, the same held-out question to each, a table and a JSON file."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import torch
from rich.console import Console
from rich.table import Table

from tokenizers_zoo import Zoo
from tokenizers_zoo.build.workers import cores, run_jobs
from tokenizers_zoo.contract.intervals import interval as mean_and_half
from tokenizers_zoo.contract.samples import TRAIN
from tokenizers_zoo.errors import DataError, OneLineError
from tokenizers_zoo.records.io import write_table
from tokenizers_zoo.stores.tokens import TokenStore
from zoo_backbone.learn.losses import losses_of
from zoo_backbone.learn.train import train
from zoo_backbone.measure.evaluate import evaluate
from zoo_backbone.measure.evaluation import PairScore
from zoo_backbone.model.config import PRESETS, EvaluationConfig, MaskingConfig, Mixture, ModelConfig, TrainConfig
from zoo_backbone.model.fourm import FourM

Job = TypeVar("Job")
Result = TypeVar("Result")

GIVEN = "rgb_patches"
"""Input modality of the demo's pictures."""
GIVEN_PICTURE: Mapping[str, Mixture] = {"given the picture": Mixture(inputs=(GIVEN,))}
"""Questions in addition to the default one."""


def positive(text: str) -> int:
    """An option's whole number above 0. Raises ValueError, which argparse tells."""
    if (number := int(text)) < 1:
        raise ValueError
    return number


def above_zero(text: str) -> float:
    """An option's number above 0. Raises ValueError, which argparse tells."""
    if not 0 < (number := float(text)) < math.inf:
        raise ValueError
    return number


def begin(main: Callable[[], None]) -> None:
    """Run a study; an error meant for the user is one line and exit code 1."""
    try:
        main()
    except OneLineError as error:
        sys.exit(f"error: {error}")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One run of a study."""

    name: str
    modalities: tuple[str, ...]
    model: ModelConfig
    train: TrainConfig
    question: Mixture = field(default_factory=Mixture)
    """How held-out samples are masked; the budgets are those of `Study.settings`, whatever the run's."""


class Study:
    """The command line of a study, and the runs in its folder. A study that was stopped goes on where it was."""

    def __init__(self, arguments: argparse.Namespace, zoo: Zoo) -> None:
        self.arguments, self.zoo = arguments, zoo
        self.name: str = arguments.study
        self.out: Path = arguments.out
        self.tokens: Path = arguments.tokens

    @classmethod
    def from_command_line(cls, name: str, doc: str, steps: int, **texts: tuple[str, str]) -> Self:
        """`texts` are options of this study, each with its default and help text."""
        parser = argparse.ArgumentParser(
            description=doc.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        parser.set_defaults(study=name)
        parser.add_argument("--tokens", type=Path, default=Path("runs/demo/tokens"), help="token store")
        parser.add_argument("--registry", type=Path, default=Path("registry.toml"), help="its registry")
        parser.add_argument("--out", type=Path, default=Path("runs/studies") / name, help="folder of runs and results")
        parser.add_argument("--preset", default="nano", choices=list(PRESETS), help="size, where the study names none")
        parser.add_argument("--steps", type=positive, default=steps, help="steps of the longest run")
        parser.add_argument("--batch", type=positive, default=16, help="samples per step")
        parser.add_argument("--seeds", type=positive, default=3, help="runs of each kind")
        parser.add_argument("--rate", type=above_zero, default=8e-3, help="peak learning rate")
        parser.add_argument("--samples", type=positive, default=256, help="held-out samples")
        parser.add_argument("--workers", type=positive, default=cores(), help="runs at once, which share the cores")
        parser.add_argument(
            "--parts", type=positive, default=1, help="parts of a batch, each on one of its run's cores"
        )
        for option, (default, help_text) in texts.items():
            parser.add_argument(f"--{option}", default=default, help=help_text)
        arguments = parser.parse_args()
        return cls(arguments, Zoo.from_toml(arguments.registry))

    @property
    def console(self) -> Console:
        """Folder of the results."""
        return Console(width=None if Console().is_terminal else 100)

    @property
    def model(self) -> ModelConfig:
        """The size in use."""
        return PRESETS[self.arguments.preset]

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities in the training split of the tokens."""
        return tuple(TokenStore(self.tokens).modalities(TRAIN))

    def settings(self, mixtures: Sequence[Mixture] = (Mixture(),), steps: int = 0, **changes: Any) -> TrainConfig:
        """How the demo trains, for `steps` steps."""
        arguments = self.arguments
        steps = steps or arguments.steps
        masking = MaskingConfig(input_budget=64, min_input=0, target_budget=160, mixtures=tuple(mixtures))
        config = TrainConfig(
            steps=steps, batch_size=arguments.batch, grad_accum_steps=arguments.parts, optimizer="muon",
            masking=masking, learning_rate=arguments.rate, warmup_steps=max(1, steps // 20), loss="token",
            eval_every=steps, eval_samples=arguments.samples, save_every=max(1, steps // 5),
        )  # fmt: skip
        return dataclasses.replace(config, **changes)

    def folder(self, name: str, seed: int) -> Path:
        """Training settings of a run."""
        return self.out / name / f"seed-{seed}"

    def run(self, variant: Variant, seed: int) -> Path:
        """The folder of the variant's run, which is trained where it is not."""
        specs = [self.zoo[name].spec for name in variant.modalities]
        config = dataclasses.replace(variant.train, seed=seed)
        return train(self.folder(variant.name, seed), self.tokens, specs, variant.model, config)

    def train(self, variants: Iterable[Variant]) -> None:
        """Train the runs of all variants, with all seeds, that are not there yet."""
        of_name = {variant.name: variant for variant in variants}
        runs = [(variant, seed) for seed in range(self.arguments.seeds) for variant in of_name.values()]
        self.run_parallel("trained", _run, runs)

    def losses(self, variants: Sequence[Variant]) -> list[list[dict[str, float]]]:
        """For each variant, and for each seed, by modality the loss of its run on held-out samples.

        All are trained first. Variants of one name are one run that is asked several questions.
        """
        self.train(variants)
        once = {(variant.name, variant.question): variant for variant in variants}
        jobs = [(variant, seed) for variant in once.values() for seed in range(self.arguments.seeds)]
        losses = iter(self.run_parallel("asked", _losses, jobs))
        by_seed = {key: list(itertools.islice(losses, self.arguments.seeds)) for key in once}
        return [by_seed[variant.name, variant.question] for variant in variants]

    def run_parallel(self, done: str, function: Callable[[Study, Job], Result], jobs: Sequence[Job]) -> list[Result]:
        """Map a function over jobs in `--workers` processes.

        `done` is the verb for progress messages.
        """
        indexed_jobs = [
            IndexedJob(function=function, arguments=self.arguments, job=job, at=at) for at, job in enumerate(jobs)
        ]
        results: dict[int, Result] = {}
        for at, result in run_jobs(self.zoo, IndexedJob.do, indexed_jobs, self.arguments.workers):
            results[at] = result
            self.console.print(f"{self.name}: {done} {len(results)} of {len(jobs)}", highlight=False)
        return [results[at] for at in range(len(jobs))]

    def losses_in(self, folder: Path, modalities: Sequence[str], question: Mixture) -> dict[str, float]:
        """By modality, the loss of the backbone in a folder on held-out samples."""
        specs = [self.zoo[name].spec for name in modalities]
        losses = losses_of(folder, specs, self.tokens, self.settings((question,)))
        return {name: loss for name, (loss, _) in losses.items()}

    @property
    def data(self) -> Path:
        """The values that the tokens are of. Raises DataError where the tokens do not say."""
        data = TokenStore(self.tokens).data
        if data is None:
            raise DataError(f"{self.tokens}: does not say where its values are; write it with zoo tokenize DATA")
        return data

    def picture_pairs(
        self, folder: Path, zoo: Zoo, tokens: Path, targets: Sequence[str] | None = None
    ) -> tuple[PairScore, ...]:
        """The `pairs` of `zoo backbone eval` that lead from the picture to each target, by default to all."""
        samples = self.arguments.samples
        target_names = None if targets is None else tuple(targets)
        sizes = {"samples": samples, "loss_samples": samples, "gallery_pairs": 0}
        config = EvaluationConfig(inputs=((GIVEN,),), targets=target_names, **sizes)
        return evaluate(folder, zoo, tokens, self.data, config=config).pairs

    def parameters(self, variant: Variant) -> int:
        """Parameters in the blocks of a variant's model."""
        with torch.device("meta"):
            return FourM(variant.model, [self.zoo[name].spec for name in variant.modalities]).transformer_parameters()

    def finish(self, result: Mapping[str, Any], *tables: Table) -> None:
        """Show the tables, and write OUT/results.json."""
        settings = {key: str(value) for key, value in vars(self.arguments).items()}
        write_table(self.out / "results.json", {"study": self.name, "settings": settings, **result})
        for table in tables:
            self.console.print(table)
        self.console.print(f"every figure: {self.out / 'results.json'}", highlight=False, soft_wrap=True)


@dataclass(frozen=True, kw_only=True)
class IndexedJob(Generic[Job, Result]):
    """A job of a study and its place among the others, as a worker gets it."""

    function: Callable[[Study, Job], Result]
    arguments: argparse.Namespace
    job: Job
    at: int

    @staticmethod
    def do(zoo: Zoo, indexed: IndexedJob[Job, Result]) -> tuple[int, Result]:
        """Run folder and result of a variant."""
        return indexed.at, indexed.function(Study(indexed.arguments, zoo), indexed.job)


def _run(study: Study, job: tuple[Variant, int]) -> Path:
    return study.run(*job)


def _losses(study: Study, job: tuple[Variant, int]) -> dict[str, float]:
    variant, seed = job
    return study.losses_in(study.folder(variant.name, seed), variant.modalities, variant.question)


def compare(study: Study, variants: Sequence[Variant], *, also: Mapping[str, Mixture] | None = None) -> None:
    """Train all variants, and show their losses by modality and the mean over shared modalities.

    `also` are further questions by title; each has its own table.
    """
    answers, tables = {}, []
    for question_name, question in {"": None, **(also or {})}.items():
        runs = [dataclasses.replace(variant, question=question or variant.question) for variant in variants]
        title = f"{study.name}, {question_name}" if question_name else study.name
        answers[question_name or "own question"], table = _loss_table(title, runs, study.losses(runs))
        tables.append(table)
    study.finish(answers, *tables)


def _loss_table(
    title: str, variants: Sequence[Variant], losses: Sequence[Sequence[Mapping[str, float]]]
) -> tuple[dict[str, Any], Table]:
    """The losses of all runs with their intervals, and as a table."""
    runs_of = dict(zip([variant.name for variant in variants], losses, strict=True))
    names = [name for name in variants[0].modalities if all(name in run for runs in losses for run in runs)]
    rows = {
        name: {"mean": interval([sum(run[target] for target in names) / len(names) for run in runs])}
        | {target: interval([run[target] for run in runs]) for target in names}
        for name, runs in runs_of.items()
    }
    table = Table("held-out loss, nats", box=None, pad_edge=False, title=title)
    for name in rows:
        table.add_column(name, justify="right")
    for target in ("mean", *names):
        table.add_row(target, *(format_mean(row[target]) for row in rows.values()))
    return {"losses": rows, "runs": runs_of}, table


def interval(values: Sequence[float]) -> dict[str, float]:
    """The mean, and half of its 95 % interval; 0 where there is one value."""
    mean, half = mean_and_half(values)
    return {"mean": mean, "half": half or 0.0}


def format_mean(value: Mapping[str, float]) -> str:
    """A mean with half of its interval."""
    return f"{value['mean']:.3f}" + (f" ± {value['half']:.3f}" if value["half"] else "")


def over_seeds(values: Sequence[float | None]) -> dict[str, float] | None:
    """The interval of one figure per seed; None where a seed has none."""
    scores = [value for value in values if value is not None]
    return interval(scores) if scores and len(scores) == len(values) else None


def cell(value: Mapping[str, float] | None) -> str:
    """A mean with half of its interval, or a dash."""
    return format_mean(value) if value else "-"
