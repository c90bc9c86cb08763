"""Memory and work of a training step by preset and token budgets.

python bench/sizes.py [--write docs/sizes.md] [--presets nano,tiny]

The memory of a sample is the difference of two batches, in the bytes that the forward pass keeps for the backward pass.
With checkpointing, one block at a time is computed again: its share of all blocks' bytes is added. Work is counted by
PyTorch, forward and backward, in one sample.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
from pathlib import Path

import torch
from backbone_data import modalities, samples
from pages import publish
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from zoo_backbone.learn.masking import Masker
from zoo_backbone.model.batch import PackedBatch
from zoo_backbone.model.config import MaskingConfig, Mixture, preset
from zoo_backbone.model.fourm import FourM

BUDGETS = (64, 128, 256)
NOTE = (
    "Measured by `bench/sizes.py` on a CPU: seven modalities, 196 tokens per picture, full budgets. Memory: MiB per"
    " sample, without weights, gradients and optimizer. Work: forward and backward, in GFLOP per sample."
)


def kept(model: FourM, batch: PackedBatch, precision: torch.dtype) -> int:
    """Return the bytes that the forward pass leaves allocated for the backward pass."""
    gc.collect()
    with (
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled,
        torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16),
    ):
        losses = model(batch, "token")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    memory = [event for event in events if event.get("name") == "[memory]"]
    totals = [event["args"]["Total Allocated"] for event in sorted(memory, key=lambda event: event["ts"])]
    del losses
    return totals[-1] - totals[0]


def per_sample(model: FourM, batches: dict[int, PackedBatch], precision: torch.dtype, checkpointing: bool) -> float:
    """Return MiB per sample."""
    blocks = [*model.encoder, *model.decoder]
    for block in blocks:
        block.activation_checkpointing = checkpointing
    small, large = batches
    difference = kept(model, batches[large], precision) - kept(model, batches[small], precision)
    for block in blocks:
        block.activation_checkpointing = False
    return difference / (large - small) / 2**20


def main() -> None:
    """Measure, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--presets", default="nano,tiny,small,base")
    arguments = parser.parse_args()
    specs = modalities(7)
    rows = []
    for name in arguments.presets.split(","):
        model = FourM.seeded(preset(name), specs, 0)
        for budget in BUDGETS:
            even = Mixture(input_alpha=10.0, target_alpha=10.0)
            full = MaskingConfig(input_budget=budget, target_budget=budget, min_input=0, mixtures=(even,))
            masker = Masker(model.layout, full)
            batches = {size: masker(samples(specs, size), 0, 0) for size in (2, 6)}
            batch = masker(samples(specs, 1), 0, 0)
            assert bool(batch.inputs.mask.all() and batch.targets.mask.all())
            with FlopCounterMode(display=False) as counter:
                model(batch, "token").loss.backward()
            plain, half, inputs = (
                per_sample(model, batches, precision, checkpointing)
                for precision, checkpointing in (
                    (torch.float32, False), (torch.bfloat16, False), (torch.float32, True),
                )
            )  # fmt: skip
            blocks = len(model.encoder) + len(model.decoder)
            row = {
                "preset": f"`{name}`", "`input_budget`, `target_budget`": f"{budget}, {budget}",
                "float32": f"{plain:,.1f}", "bfloat16": f"{half:,.1f}",
                "float32, checkpointing": f"{inputs + (plain - inputs) / blocks:,.1f}",
            }  # fmt: skip
            row["work"] = f"{counter.get_total_flops() / 1e9:,.1f}"
            rows.append(row)
    publish("sizes", rows, NOTE, arguments.write)


if __name__ == "__main__":
    main()
