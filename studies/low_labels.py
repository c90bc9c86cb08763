"""What does a trained encoder give with few labels, and what does a second modality add?

    python studies/low_labels.py --run runs/demo/backbone --tasks semseg depth metadata.num_objects

Every task is learned on a share of its labels: on the frozen encoder, with the encoder tuned, too, and by the same
network from random weights, in as many steps, and with most labels also in LONGER times as many: it may lack nothing
but steps. Where pretraining made the task's modality, as of these, the trained encoder has seen all the answers: few
labels then say how soon a head finds them again. Only the frozen encoder gets sets of inputs after the first.
A share of the labels chooses the step whose weights are kept. Held-out scores.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from common import begin, positive
from rich.console import Console

from tokenizers_zoo import Zoo
from tokenizers_zoo.build.workers import cores, run_jobs
from tokenizers_zoo.errors import ConfigError
from tokenizers_zoo.records.io import write_table
from zoo_backbone.model.run import Run
from zoo_backbone.use.transfer.config import TransferConfig, transfer_config
from zoo_backbone.use.transfer.results import compare, comparison_table
from zoo_backbone.use.transfer.train import train_probe

TUNINGS = "frozen", "full", "scratch"
LONGER = 3
"""How many times the steps a further probe from random weights takes."""
EVALUATIONS = 20
"""Score of a run on its validation samples."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One training of the study."""

    run: Path
    data: Path | None
    task: str
    inputs: tuple[str, ...]
    config: TransferConfig
    seed: int
    out: Path

    @staticmethod
    def train(zoo: Zoo, probe: Probe) -> None:
        """Write its folder where it is not there."""
        run = Run.load(probe.run)
        train_probe(run, zoo, probe.task, probe.inputs, probe.out, probe.config, seed=probe.seed, data=probe.data)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--run", type=Path, default=Path("runs/demo/backbone"), help="the backbone")
    parser.add_argument("--registry", type=Path, default=Path("registry.toml"), help="with the tasks' modalities")
    parser.add_argument("--data", type=Path, help="the labels, where they are not among the run's values")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/studies/low_labels"), help="folder of probes and results"
    )
    parser.add_argument("--tasks", nargs="+", default=["semseg", "depth", "metadata.num_objects"], help="what is asked")
    parser.add_argument("--inputs", nargs="+", default=["rgb_patches"], help="comma-separated, for each set of inputs")
    parser.add_argument("--labels", nargs="+", type=float, default=[0.01, 0.1, 1.0], help="shares of the labels")
    parser.add_argument("--tunings", nargs="+", default=TUNINGS, choices=TUNINGS, help="what moves")
    parser.add_argument(
        "--steps", type=positive, default=400, help=f"of each probe; one of scratch takes {LONGER} times as many"
    )
    parser.add_argument(
        "--validation", type=float, default=0.2, help="share of the labels that chooses the step; 0: none"
    )
    parser.add_argument("--seeds", type=positive, default=3, help="probes of each kind")
    parser.add_argument("--workers", type=positive, default=cores(), help="probes at once, which share the cores")
    arguments = parser.parse_args()
    zoo = Zoo.from_toml(arguments.registry)
    probes = []
    variants = [(share, tuning, 1) for share, tuning in product(arguments.labels, arguments.tunings)]
    variants += [(max(arguments.labels), "scratch", LONGER)] if "scratch" in arguments.tunings else []
    for task, names, (share, tuning, times), seed in product(
        arguments.tasks, arguments.inputs, variants, range(arguments.seeds)
    ):
        inputs = names.split(",")
        table = task.lower().endswith(".csv")
        leaks = not table and task.split(".")[0] in inputs
        if leaks or (tuning != "frozen" and names != arguments.inputs[0]):
            continue
        name = Path(task).name if table else task
        longer = f"-{times}-times-the-steps" if times > 1 else ""
        probes.append(
            Probe(
                run=arguments.run, data=arguments.data, task=task, inputs=tuple(inputs), seed=seed,
                config=settings(tuning, share, times * arguments.steps, arguments.validation),
                out=arguments.out / name / f"{names}-{tuning}-{share:g}{longer}-seed-{seed}",
            )
        )  # fmt: skip
    if not probes:
        raise ConfigError("--tasks, --inputs: every task is also an input; nothing is left to predict")
    console = Console(width=None if Console().is_terminal else 120)
    for number, _ in enumerate(run_jobs(zoo, Probe.train, probes, arguments.workers), 1):
        console.print(f"low_labels: trained {number} of {len(probes)}", highlight=False)
    rows = compare([probe.out for probe in probes])
    write_table(arguments.out / "results.json", {"study": "low_labels", "rows": rows})
    console.print(comparison_table(rows))
    console.print(f"every figure: {arguments.out / 'results.json'}", highlight=False, soft_wrap=True)


def settings(tuning: str, share: float, steps: int, validation: float) -> TransferConfig:
    """Training settings: the same number of steps for few labels as for all, and EVALUATIONS checkpoints to choose
    from."""
    changes = {"steps": steps, "validation": validation, "eval_every": max(1, steps // EVALUATIONS)}
    return transfer_config({"tuning": tuning, "labels": float(share), **changes})


if __name__ == "__main__":
    begin(main)
