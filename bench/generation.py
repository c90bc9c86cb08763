"""How long generation takes: a grid in steps, a sequence with and without its cache, a chain of targets.

    python bench/generation.py --preset tiny --repeats 3 --json out.json

Weights are random, since the cost of a step does not depend on them. Modalities have the sizes of the 4M paper at 224
pixels: grids of 14 x 14 tokens, 8,192 and 16,384 ids, texts of 30,000 ids. Each time is the minimum over several
interleaved runs, which is least disturbed by other work; the last two are single runs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from backbone_data import seconds
from rich.console import Console
from rich.table import Table

from tokenizers_zoo.contract.layouts import GridLayout, SequenceLayout, TokenLayout
from tokenizers_zoo.contract.spec import ModalitySpec, ValueSpec
from zoo_backbone.generate import TargetPlan, generate
from zoo_backbone.model.batch import PackedTargets
from zoo_backbone.model.config import PRESETS, preset
from zoo_backbone.model.fourm import FourM
from zoo_backbone.model.packing import EncoderInputs

LENGTH = 64
TEXT = SequenceLayout(max_length=LENGTH, end=1, sentinel_start=2, num_sentinels=200)
GRID = GridLayout(shape=(14, 14))


def spec(name: str, layout: TokenLayout, vocab_size: int) -> ModalitySpec:
    return ModalitySpec(
        name=name, summary="benchmark", value=ValueSpec(kind="object"), layout=layout, vocab_size=vocab_size
    )


@torch.inference_mode()
def without_cache(model: FourM, images: torch.Tensor) -> None:
    """Greedy text as in the public 4M code: inputs are encoded once, and the whole sequence is decoded again for each
    token.

    The decoder's keys and values of the inputs are cached; the public code computes them again.
    """
    tables = model.layout
    start = tables.token_rows("text").start
    inputs = EncoderInputs(tables, len(images), torch.device("cpu"))
    inputs.add_whole("image", images)
    context = model.context(inputs.packed())
    read = torch.full((len(images), 1), start + TEXT.sentinel_start)
    for _ in range(LENGTH):
        targets = _stream(model, read)
        x = model.embed_targets(targets.read, targets.positions, targets.modalities)
        hidden = model.decode(x, model.rotations(targets.positions), context, model.target_mask(targets))
        read = torch.cat([read, start + model.logits(hidden, "text")[:, -1:].argmax(2)], 1)


def _stream(model: FourM, read: torch.Tensor) -> PackedTargets:
    positions = model.layout.positions["text"].start + torch.arange(read.shape[1]).expand_as(read)
    modalities = torch.full_like(read, model.layout.index("text"))
    return PackedTargets(
        ids=read, read=read, positions=positions, modalities=modalities, mask=torch.ones_like(read, dtype=torch.bool)
    )


def measure(name: str, repeats: int) -> dict[str, tuple[float, float]]:
    """Yield each task with its wall-clock and processor seconds, for one model size."""
    torch.manual_seed(0)
    specs = [
        spec("image", GRID, 16384),
        spec("field", GRID, 8192),
        spec("labels", GRID, 4096),
        spec("text", TEXT, 30000),
    ]
    model = FourM(preset(name), specs).eval()
    image = torch.randint(0, 16384, (4, 14, 14))
    once, eight = (TargetPlan(name="field", steps=steps) for steps in (1, 8))
    random_order, text = TargetPlan(name="field", scheme="roar", steps=8), TargetPlan(name="text")
    chain = [TargetPlan(name="field", steps=25), TargetPlan(name="labels", steps=25), text]

    def made(batch: int, plan: Sequence[TargetPlan], draws: int = 1) -> Callable[[], object]:
        return lambda: generate(model, {"image": image[:batch]}, plan, seed=0, draws=draws)

    def slow() -> None:
        without_cache(model, image)

    quick = {
        "196 tokens in 1 step": made(1, [once]),
        "196 tokens in 8 steps, MaskGIT": made(1, [eight]),
        "196 tokens in 8 steps, random order": made(1, [random_order]),
        "4 samples in 1 step": made(4, [once]),
        "4 draws of one sample in 1 step": made(1, [once], 4),
        "4 texts of 64": made(4, [text]),
        "4 draws of one text of 64": made(1, [text], 4),
    }
    long = {
        "4 texts of 64, the whole stream decoded anew each token": slow,
        "2 grids of 25 steps and a text, chained": made(1, chain),
    }
    times = seconds(list(quick.values()), repeats) + seconds(list(long.values()), 1)
    return dict(zip([*quick, *long], times, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", nargs="+", default=["nano", "tiny"], choices=sorted(PRESETS), help="model sizes")
    parser.add_argument("--repeats", type=int, default=3, help="runs of which the shortest counts")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    figures = {name: measure(name, arguments.repeats) for name in arguments.preset}
    table = Table("seconds, of wall clock and processor", *figures, box=None, pad_edge=False)
    for measurement in figures[arguments.preset[0]]:
        table.add_row(measurement, *("{:.3f} {:.3f}".format(*figures[name][measurement]) for name in figures))
    console = Console()
    console.print(table)
    results = {"threads": torch.get_num_threads(), "wall and processor seconds": figures}
    console.print_json(json.dumps(results))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
