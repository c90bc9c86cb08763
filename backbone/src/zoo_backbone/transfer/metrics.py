"""What is known of a finished probe, in its metrics.json, and in words: lines, a table, the model card.

metrics.json:

    task         {"name", "kind"}; given [names]; head; tuning; seed
    labels       {"asked", "train", "validation", "test"}: samples that were learned from, that chose the step, held-out
    metrics      [{"name", "unit", "higher_is_better", "meaning", "score", "floor"}], the main one first; null: not
                 finite. The floor is the best single answer to the labels of "train" and "validation"; of maps, and
                 where a modality's own metrics judge, to up to 1,000 of them, evenly spread.
    settings     TransferConfig
    left_out     {"train": {"no_input", "no_label", "unreadable": labels that cannot be read, where there are any},
                 "test": ..., "unknown_keys"}
    unseen       by class that some held-out samples have and no training sample has, how many: no answer to these is
                 right
    backbone     {"run", "weights_sha256"}
    parameters   {"trained", "all"}; steps (done); seconds {"training", "all"}
    kept_step    the step that the weights are of, and validation {"name", "score"}: the main metric of that step on
                 the validation samples; both absent where there are none
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from tokenizers_zoo.checkpoint import card_row
from tokenizers_zoo.cli.options import plain_table
from tokenizers_zoo.data.samples import TEST, TRAIN
from tokenizers_zoo.errors import CheckpointError, and_others
from tokenizers_zoo.io import read_table
from tokenizers_zoo.report.transfer import NEEDED

METRICS = "metrics.json"
NAMED = 5
"""Classes, at most, that a line names."""


def read_metrics(folder: Path) -> dict[str, Any]:
    """The metrics.json of a finished probe. Raises CheckpointError."""
    if not (folder / METRICS).is_file():
        raise CheckpointError(f"{folder}: no finished probe here; train one with zoo transfer train")
    return read_table(folder / METRICS, *NEEDED)


def score_table(metrics: Sequence[Mapping[str, Any]]) -> Table:
    """Scores beside the floor, for the terminal."""
    table = plain_table("metric", ">score", ">constant baseline", "better")
    for metric in metrics:
        unit = f" ({metric['unit']})" if metric["unit"] else ""
        numbers = [number_text(metric[key]) for key in ("score", "floor")]
        table.add_row(metric["name"] + unit, *numbers, "higher" if metric["higher_is_better"] else "lower")
    return table


def number_text(number: float | None) -> str:
    """Four digits; a dash where there is none."""
    return "-" if number is None else f"{number:.4g}"


def left_out_text(left_out: Mapping[str, Any]) -> str:
    """What was left out, in words; empty where nothing was."""
    parts = []
    for split in (TRAIN, TEST):
        counts = left_out[split]
        parts += [f"{counts['no_input']} of {split} without an input"] if counts["no_input"] else []
        parts += [f"{counts['no_label']} of {split} without a label"] if counts["no_label"] else []
        if "unreadable" in counts:
            parts.append(f"{counts['unreadable']} of {split} with a label that cannot be read")
    if left_out["unknown_keys"]:
        parts.append(f"{left_out['unknown_keys']} keys of the table that no split has")
    return f"left out: {', '.join(parts)}" if parts else ""


def unseen_text(unseen: Mapping[str, int]) -> str:
    """Which classes only held-out samples have, in words; empty where there are none."""
    if not unseen:
        return ""
    count = sum(unseen.values())
    said = "has a label" if count == 1 else "have a label" if len(unseen) == 1 else "have labels"
    names = [f"{name!r} ({number})" if number > 1 else repr(name) for name, number in unseen.items()]
    others = and_others(max(0, len(names) - NAMED))
    return f"{count} of test {said} that no training sample has: {', '.join(names[:NAMED])}{others}"


def kept_text(metrics: Mapping[str, Any]) -> str:
    """Which weights a probe has, and by what they were chosen, in words; empty where they are the last."""
    if "kept_step" not in metrics:
        return ""
    best, samples = metrics["validation"], metrics["labels"]["validation"]
    return (
        f"weights of step {metrics['kept_step']} of {metrics['steps']}, the best by {samples} validation samples"
        f" ({best['name']} {number_text(best['score'])})"
    )


def probe_card(config: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """The README.md of a probe."""
    rows = [
        card_row(
            row["name"], number_text(row["score"]), number_text(row["floor"]), row["unit"] or "-",
            "higher" if row["higher_is_better"] else "lower", row["meaning"],
        )
        for row in metrics["metrics"]
    ]  # fmt: skip
    labels, parameters, kept = metrics["labels"], metrics["parameters"], kept_text(metrics)
    unseen = unseen_text(metrics["unseen"])
    needs = {
        "frozen": f"Its encoder is that of the run {config['backbone']['run']}, which it needs.",
        "lora": f"Its encoder is that of the run {config['backbone']['run']}, which it needs, with additions.",
    }.get(metrics["tuning"], "It holds its encoder.")
    return f"""# {metrics["task"]["name"]} from {", ".join(metrics["given"])}

A 4M encoder ({metrics["tuning"]}) with a {metrics["head"]} head that gives {metrics["task"]["kind"]}. {needs}
{parameters["trained"]:,} of {parameters["all"]:,} parameters were trained, with the labels of {labels["train"]} samples
(seed {metrics["seed"]}){f"; {kept}" if kept else ""}.

```python
from zoo_backbone.transfer import load
probe = load("this folder")
answers = probe.predict_values({{{", ".join(f'"{name}": values' for name in metrics["given"])}}})
```

On {labels["test"]} held-out samples:

| metric | score | constant baseline | unit | better | meaning |
|---|---|---|---|---|---|
{chr(10).join(rows)}
{f"{chr(10)}{unseen}.{chr(10)}" if unseen else ""}"""
