"""How long generation takes: a grid in steps, a sequence with and without its cache, a chain of targets.

    python bench/generation.py --preset tiny --repeats 3 --json out.json

Weights are random: what a model has learned does not change what a step costs. Modalities have the sizes of the 4M
paper at 224 pixels: grids of 14 x 14 tokens, 8,192 and 16,384 ids, texts of 30,000 ids. The time is the shortest of
several runs, which other work on the machine disturbs least; the last two are run once.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from backbone.batch import PackedTargets
from backbone.config import PRESETS, preset
from backbone.generation import TargetPlan, generate
from backbone.generation.inputs import GrowingInputs
from backbone.model import FourM
from tokenizers_zoo.modality import GridLayout, ModalitySpec, SequenceLayout, TokenLayout, ValueSpec

LENGTH = 64
TEXT = SequenceLayout(max_length=LENGTH, end=1, sentinel_start=2, num_sentinels=200)
GRID = GridLayout(shape=(14, 14))


def spec(name: str, layout: TokenLayout, vocab_size: int) -> ModalitySpec:
    return ModalitySpec(
        name=name, summary="benchmark", value=ValueSpec(kind="object"), layout=layout, vocab_size=vocab_size
    )


def seconds(work: Callable[[], object], repeats: int) -> tuple[float, float]:
    """The shortest wall time of several runs, and the least processor time."""
    wall, busy = [], []
    for _ in range(repeats):
        start, start_busy = time.perf_counter(), time.process_time()
        work()
        wall.append(time.perf_counter() - start)
        busy.append(time.process_time() - start_busy)
    return min(wall), min(busy)


@torch.inference_mode()
def without_cache(model: FourM, given: torch.Tensor) -> None:
    """Greedy text as the public 4M code makes it: inputs encoded once, the whole stream decoded anew for each token.

    What the decoder sees of the inputs is kept, which that code projects anew, too.
    """
    tables = model.tables
    start = tables.token_rows("text").start
    inputs = GrowingInputs(tables, len(given), torch.device("cpu"))
    inputs.add_whole("image", given)
    context = model.context(inputs.packed())
    read = torch.full((len(given), 1), start + TEXT.sentinel_start)
    for _ in range(LENGTH):
        targets = _stream(model, read)
        x = model.embed_targets(targets.read, targets.positions, targets.modalities)
        hidden = model.decode(x, model.turns(targets.positions), context, model.target_mask(targets))
        read = torch.cat([read, start + model.logits(hidden, "text")[:, -1:].argmax(2)], 1)


def _stream(model: FourM, read: torch.Tensor) -> PackedTargets:
    positions = model.tables.positions["text"].start + torch.arange(read.shape[1]).expand_as(read)
    modalities = torch.full_like(read, model.tables.index("text"))
    return PackedTargets(
        ids=read, read=read, positions=positions, modalities=modalities, mask=torch.ones_like(read, dtype=torch.bool)
    )


def measure(name: str, repeats: int) -> list[tuple[str, tuple[float, float]]]:
    """What was done and how long it took, for one model size."""
    torch.manual_seed(0)
    specs = [
        spec("image", GRID, 16384),
        spec("field", GRID, 8192),
        spec("labels", GRID, 4096),
        spec("text", TEXT, 30000),
    ]
    model = FourM(preset(name), specs).eval()
    image = torch.randint(0, 16384, (4, 14, 14))
    generate(model, {"image": image}, [TargetPlan(name="labels", steps=1)], seed=0)  # warms up
    field, text = TargetPlan(name="field", steps=8), TargetPlan(name="text")
    chain = [TargetPlan(name="field", steps=25), TargetPlan(name="labels", steps=25), text]

    def made(batch: int, plan: Sequence[TargetPlan], draws: int = 1) -> Callable[[], object]:
        return lambda: generate(model, {"image": image[:batch]}, plan, seed=0, draws=draws)

    def slow() -> None:
        without_cache(model, image)

    return [
        ("196 tokens in 1 step", seconds(made(1, [TargetPlan(name="field", steps=1)]), repeats)),
        ("196 tokens in 8 steps, MaskGIT", seconds(made(1, [field]), repeats)),
        (
            "196 tokens in 8 steps, random order",
            seconds(made(1, [TargetPlan(name="field", scheme="roar", steps=8)]), repeats),
        ),
        ("4 samples in 1 step", seconds(made(4, [TargetPlan(name="field", steps=1)]), repeats)),
        ("4 draws of one sample in 1 step", seconds(made(1, [TargetPlan(name="field", steps=1)], 4), repeats)),
        ("4 texts of 64", seconds(made(4, [text]), repeats)),
        ("4 draws of one text of 64", seconds(made(1, [text], 4), repeats)),
        ("4 texts of 64, the whole stream decoded anew each token", seconds(slow, 1)),
        ("2 grids of 25 steps and a text, chained", seconds(made(1, chain), 1)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", nargs="+", default=["nano", "tiny"], choices=sorted(PRESETS), help="model sizes")
    parser.add_argument("--repeats", type=int, default=3, help="runs of which the shortest counts")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    figures = {name: dict(measure(name, arguments.repeats)) for name in arguments.preset}
    table = Table("seconds, of wall clock and processor", *figures, box=None, pad_edge=False)
    for what in figures[arguments.preset[0]]:
        table.add_row(what, *("{:.3f} {:.3f}".format(*figures[name][what]) for name in figures))
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"threads": torch.get_num_threads(), "wall and processor seconds": figures}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
