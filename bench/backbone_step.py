"""Time of a training step of the backbone, and its overhead over matrix products and attention.

    python bench/backbone_step.py --presets nano tiny --threads 2 --json out.json

Four questions, each answered by ratios within one run: does the cost depend on the number of modalities (7 and 42 at
equal budgets); how much of the step is matrix products and attention; what does the optimizer cost with large tables:
row-wise AdamW, Muon with it, and dense AdamW; how much is saved if a short text is the only target and leaves slots of
the budget empty. Each time is the minimum over several interleaved runs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from backbone_data import modalities, samples, seconds
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from zoo_backbone.learn.masking import Masker
from zoo_backbone.learn.optim import EPSILON, Optimizer
from zoo_backbone.model.config import PRESETS, MaskingConfig, Mixture, TrainConfig, preset
from zoo_backbone.model.fourm import FourM

PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")


class Case:
    """A model with its batch and optimizer."""

    def __init__(self, name: str, count: int, budget: int, batch: int, vocab_size: int, how: str = "adamw") -> None:
        specs = modalities(count, vocab_size=vocab_size)
        self.model = FourM.seeded(preset(name), specs, 0)
        masking = MaskingConfig(input_budget=budget, min_input=0, target_budget=budget)
        self.batch = Masker(self.model.layout, masking)(samples(specs, batch), seed=0, step=0)
        config = TrainConfig(optimizer="muon" if how == "muon" else "adamw")
        self.dense = torch.optim.AdamW(
            self.model.parameters(), lr=1e-3, betas=config.betas, eps=EPSILON, fused=True
        ) if how == "dense" else None  # fmt: skip
        self.rows = None if how == "dense" else Optimizer(self.model, config)
        self.updates: list[float] = []

    def gradients(self) -> None:
        """Forward and backward."""
        self.model(self.batch).loss.backward()

    def forget(self) -> None:
        """Drop the gradients."""
        self.model.zero_grad(set_to_none=True)

    def forward_backward(self) -> None:
        """Forward and backward, without an update."""
        self.gradients()
        self.forget()

    def step(self) -> None:
        """A whole step; `updates` collects the processor time of its optimizer."""
        self.gradients()
        start = time.process_time()
        if self.dense is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.dense.step()
            self.forget()
        elif self.rows is not None:
            self.rows.step(1e-3)
        self.updates.append(time.process_time() - start)


def product_share(work: Callable[[], None]) -> float:
    """The part of processor time that is in matrix products and attention."""
    work()
    with profile(activities=[ProfilerActivity.CPU]) as record:
        work()
    events = record.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    products = [event for event in events if event.key in PRODUCTS or "scaled_dot_product" in event.key]
    return sum(event.self_cpu_time_total for event in products) / total


def by_modalities(name: str, budget: int, batch: int, counts: list[int], repeats: int) -> list[dict[str, Any]]:
    cases = [Case(name, count, budget, batch, 1000) for count in counts]
    times = seconds([case.forward_backward for case in cases], repeats)
    step_times = seconds([case.step for case in cases], repeats)
    return [
        {
            "preset": name, "budget": budget, "batch": batch, "modalities": count, "forward and backward s": wall,
            "processor s": busy, "times the first": busy / times[0][1], "step s": step,
            "optimizer share": min(case.updates) / step_busy, "products and attention": product_share(case.step),
        }
        for count, case, (wall, busy), (step, step_busy) in zip(counts, cases, times, step_times, strict=True)
    ]  # fmt: skip


def optimizers(name: str, budget: int, batch: int, count: int, sizes: list[int], repeats: int) -> list[dict[str, Any]]:
    rows = []
    for size in sizes:
        cases = [Case(name, count, budget, batch, size, how) for how in ("adamw", "muon", "dense")]
        steps = [busy for _, busy in seconds([case.step for case in cases], repeats)]
        shares = [min(case.updates) / step for case, step in zip(cases, steps, strict=True)]
        rows.append({
            "preset": name, "modalities": count, "ids each": size,
            "parameters M": sum(p.numel() for p in cases[0].model.parameters()) / 1e6,
            "step s": steps[0], "muon / adamw": steps[1] / steps[0], "dense adamw / adamw": steps[2] / steps[0],
            "optimizer's share": shares[0], "with muon": shares[1], "with dense adamw": shares[2],
        })  # fmt: skip
    return rows


def empty_slots(name: str, budget: int, batch: int, repeats: int) -> dict[str, Any]:
    """Pixels as inputs and a text as target, with all slots and without unused slots."""
    cases = [Case(name, 7, budget, batch, 1000) for _ in range(2)]
    pixels_to_text = Mixture(inputs=("m3",), targets=("m2",), input_alpha=10.0)
    masking = MaskingConfig(input_budget=budget, min_input=0, target_budget=budget, mixtures=(pixels_to_text,))
    for case in cases:
        case.batch = Masker(case.model.layout, masking)(samples(modalities(7), batch), seed=0, step=0)
    cases[1].batch = cases[1].batch.trimmed()
    (_, all_slots), (_, used) = seconds([case.step for case in cases], repeats)
    return {
        "preset": name, "budget": budget, "targets of the longest": int(cases[0].batch.targets.mask.sum(1).max()),
        "all slots s": all_slots, "used ones s": used, "used / all": used / all_slots,
    }  # fmt: skip


def show(console: Console, title: str, rows: list[dict[str, Any]]) -> None:
    table = Table(*rows[0], box=None, pad_edge=False, title=title)
    for row in rows:
        table.add_row(*(value if isinstance(value, str) else f"{value:.3g}" for value in row.values()))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presets", nargs="+", default=["nano", "tiny"], choices=sorted(PRESETS))
    parser.add_argument("--modalities", type=int, nargs="+", default=[7, 21, 42])
    parser.add_argument("--budget", type=int, default=128)
    parser.add_argument("--batch", type=int, default=TrainConfig().batch_size, help="as a training has by default")
    parser.add_argument("--ids", type=int, nargs="*", default=[1000, 8192], help="vocabulary sizes for the optimizer")
    parser.add_argument("--repeats", type=int, default=3, help="runs of which the shortest counts")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    console = Console()
    figures: dict[str, Any] = {"threads": arguments.threads, "steps": [], "optimizers": [], "slots": []}
    for name in arguments.presets:
        figures["steps"] += by_modalities(
            name, arguments.budget, arguments.batch, arguments.modalities, arguments.repeats
        )
        figures["slots"].append(empty_slots(name, arguments.budget, arguments.batch, arguments.repeats))
        if arguments.ids:
            count = arguments.modalities[-1]
            figures["optimizers"] += optimizers(
                name, arguments.budget, arguments.batch, count, arguments.ids, arguments.repeats
            )
    show(console, "a step by number of modalities", figures["steps"])
    show(console, "a step that asks for a text alone, processor seconds", figures["slots"])
    if arguments.ids:
        show(console, "optimizers, processor seconds", figures["optimizers"])
    console.print_json(json.dumps(figures))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
