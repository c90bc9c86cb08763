"""Report of a tokenizer's training: losses, held-out metrics, pictures, checkpoint and model card."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenizers_zoo.contract.spec import ModalitySpec
from tokenizers_zoo.errors import count_of
from tokenizers_zoo.files.checkpoint import card_row, save_checkpoint
from tokenizers_zoo.files.run_folder import RunFolder
from tokenizers_zoo.records.io import replacing_file, write_table
from tokenizers_zoo.records.typed import as_dicts
from tokenizers_zoo.train.log import StepLog
from tokenizers_zoo.train.usage import COLLAPSED

if TYPE_CHECKING:
    import PIL.Image
    import torch

    from tokenizers_zoo.train.config import TrainConfig

EVALUATION, PICTURES = "evaluation.json", "samples"
LOG_EVERY = 10
"""Steps between two lines of metrics.jsonl."""
SETTLED = 20
"""Steps before which little usage of a codebook says nothing about the training."""
NOT_LOGGED = ("size", "reachable", "codebooks", "least_used")
"""Codebook statistics that are not logged as curves."""
ENOUGH = 0.98
"""If uniform tokens would use less than this, the report shows their usage, too."""
COLLAPSE_ADVICE = "use fewer levels or a smaller codebook, another quantizer, or a lower learning rate"


def of_split(name: str, split: str) -> str:
    """Return the name of EVALUATION or PICTURES for another split than the held-out one."""
    return f"{Path(name).stem}-{split}{Path(name).suffix}"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Held-out metrics, codebook statistics (none for continuous modalities), and pairs (input, reconstruction)."""

    metrics: Mapping[str, float]
    pairs: Sequence[tuple[PIL.Image.Image | str, PIL.Image.Image | str]]
    samples: int
    codebook: Mapping[str, float] = field(default_factory=dict)
    """size, usage, perplexity, entropy_bits, and the usage that as many evenly spread tokens would reach.

    For several codebooks, these are means. `codebooks` is their number, `least_usage` the smallest usage, and
    `least_used` the number of that codebook, counted from 1."""

    @property
    def collapse(self) -> str:
        """How little of a codebook is used, in words; empty unless usage is far below reach (see COLLAPSED).

        With several codebooks it is about the least used one.
        """
        book = self.codebook
        if not book or (usage := book.get("least_usage", book["usage"])) >= COLLAPSED * book["reachable"]:
            return ""
        name = "the codebook"
        if "codebooks" in book:
            name = f"codebook {book['least_used']:.0f} of {book['codebooks']:.0f}"
        return f"{name} collapses: {usage:.1%} of {book['size']:.0f} codes are used on held-out samples"


class TrainingReport(StepLog):
    """Log of a tokenizer's or probe's training: losses, held-out metrics and pictures of reconstructions."""

    def __init__(
        self,
        spec: ModalitySpec,
        title: str,
        validates: bool,
        config: TrainConfig,
        out_dir: Path,
        done: int,
        window: list[dict[str, float]],
    ) -> None:
        samples = config.batch_size * config.grad_accum_steps
        super().__init__(
            out_dir,
            title,
            steps=config.steps,
            done=done,
            samples_per_step=samples,
            loggers=config.loggers,
            config={"modality": spec.name, "train": as_dicts(config)},
        )
        self.spec, self.split_name = spec, "validation" if validates else "held_out"
        self.window = window
        """Losses of the steps since the last line."""

    def step(self, done: int, losses: Mapping[str, float], learning_rate: float) -> None:
        """Count a finished step; every LOG_EVERY steps write the means since the last line."""
        self.window.append(dict(losses))
        self.advance(done, losses["loss"])
        if done % LOG_EVERY == 0 or done == self.steps:
            names = dict.fromkeys(name for entry in self.window for name in entry)
            means = {
                f"train/{name}": float(np.mean([entry[name] for entry in self.window if name in entry]))
                for name in names
            }
            self.write(done, means | {"train/learning_rate": learning_rate})
            self.write_speed()
            self.window.clear()

    def evaluation(self, done: int, evaluation: Evaluation, best: str = "") -> None:
        """Log and print an evaluation with the best so far in words, and warn about a collapsing codebook."""
        codebook = evaluation.codebook
        scalars = {f"{self.split_name}/{name}": value for name, value in evaluation.metrics.items()}
        scalars |= {f"codebook/{name}": value for name, value in codebook.items() if name not in NOT_LOGGED}
        self.write(done, scalars)
        main = self.spec.metrics[0]
        score = f"{main.name} {evaluation.metrics[main.name]:.4g}{f' {main.unit}' if main.unit else ''}"
        used = ""
        if codebook:  # with the usage of as many uniform tokens, if that is below 1
            used, reachable = f"codebook {codebook['usage']:.0%}", codebook["reachable"]
            used += "" if reachable >= ENOUGH else f" (even: {reachable:.0%})"
        score_parts = ["" if self.split_name == "held_out" else self.split_name, score]
        self.note = ", ".join(part for part in (" ".join(filter(None, score_parts)), best, used) if part)
        if (collapse := evaluation.collapse) and done >= SETTLED:
            self.say(f"{self.spec.name}: step {done}: {collapse}; {COLLAPSE_ADVICE}", style="bold yellow", warning=True)
        pictures = picture_rows(evaluation.pairs)
        if pictures is not None:
            self.write_image(done, f"{self.split_name}/input_and_reconstruction", pictures)
        self.window.clear()
        self.flush()


def picture_rows(picture_grid: Sequence[Sequence[Any]]) -> PIL.Image.Image | None:
    """Rows of pictures as one, such as inputs left and reconstructions right; None where they are text."""
    from PIL import Image

    rows = [row for row in picture_grid if not any(isinstance(picture, str) for picture in row)]
    if not rows:
        return None
    width = max(picture.width for row in rows for picture in row)
    height = max(picture.height for row in rows for picture in row)
    sheet = Image.new("RGB", (len(rows[0]) * (width + 2) - 2, len(rows) * (height + 2) - 2), "white")
    for down, row in enumerate(rows):
        for right, picture in enumerate(row):
            sheet.paste(picture.convert("RGB"), (right * (width + 2), down * (height + 2)))
    return sheet


def write_pictures(folder: Path, pairs: Sequence[tuple[Any, Any]], name: str = PICTURES) -> None:
    """Write each pair of input and reconstruction to the subfolder `name`: a .png side by side, or a .txt for text.

    Files of an earlier evaluation are removed.
    """
    written = set()
    for number, pair in enumerate(pairs):
        picture = picture_rows([pair])
        path = folder / name / f"{number:02}.{'txt' if picture is None else 'png'}"
        written.add(path)
        with replacing_file(path) as temporary:
            if picture is None:
                temporary.write_text(f"input:          {pair[0]}\nreconstruction: {pair[1]}\n", encoding="utf-8")
            else:
                picture.save(temporary, format="PNG")
    for older in {*(folder / name).glob("*.png"), *(folder / name).glob("*.txt")} - written:
        older.unlink()


def finish_run(
    run: RunFolder,
    spec: ModalitySpec,
    tensors: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    evaluation: Evaluation,
    *,
    steps: int,
    seconds: float,
    kept_step: int | None = None,
) -> None:
    """Write pictures, checkpoint, card and evaluation, and finish the run; also of tokenizers fitted without the loop.

    `kept_step` is the step of the weights if it is not the last one.
    """
    write_pictures(run.path, evaluation.pairs)
    scores = {metric.name: evaluation.metrics.get(metric.name) for metric in spec.metrics}
    result = {
        "steps": steps,
        **({"kept_step": kept_step} if kept_step is not None else {}),
        "training_seconds": round(seconds, 1),
        "samples": evaluation.samples,
        "metrics": {
            name: value if value is not None and math.isfinite(value) else None for name, value in scores.items()
        },
        "units": {metric.name: metric.unit for metric in spec.metrics},
        "codebook": dict(evaluation.codebook),
    }
    card = model_card(spec, run.identity, result)
    save_checkpoint(run.path, tensors, config, card)
    write_table(run.path / EVALUATION, result)
    run.finish(steps=steps)


def mean_of(codebook: Mapping[str, float]) -> str:
    """Return "; mean of N codebooks", or an empty string for a single one."""
    return f"; mean of {codebook['codebooks']:.0f} codebooks" if "codebooks" in codebook else ""


def mean_and_least(codebook: Mapping[str, float]) -> str:
    """Return `mean_of` with the usage of the least used codebook."""
    least = codebook.get("least_usage")
    return "" if least is None else f"{mean_of(codebook)}, the least of them {least:.1%}"


def model_card(spec: ModalitySpec, identity: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """Return the README.md of a tokenizer: loading, quality, data and settings."""
    rows = []
    for metric in spec.metrics:
        value = result["metrics"][metric.name]
        number, better = "-" if value is None else f"{value:.4g}", "higher" if metric.higher_is_better else "lower"
        rows.append(card_row(metric.name, number, metric.unit or "-", better, metric.meaning))
    if codebook := result["codebook"]:
        meaning = f"codes of {codebook['size']} used on the held-out samples; perplexity {codebook['perplexity']:.0f}"
        meaning += mean_and_least(codebook)
        if codebook["reachable"] < ENOUGH:
            meaning += f"; as many evenly spread tokens would use {codebook['reachable']:.0%}"
        rows.append(card_row("codebook usage", f"{100 * codebook['usage']:.1f}", "%", "higher", meaning))
    data = identity["data"]
    return f"""---
license: {spec.licence.lower()}
tags: [tokenizers-zoo, {spec.name}]
---

# {spec.name}: {spec.summary}

Values: {spec.value}. Tokens: {spec.layout}, vocabulary `{spec.vocabulary}` of {spec.vocab_size}.\
{f" Tokenized in {spec.token_space}." if spec.token_space else ""} Licence: {spec.licence}.

## Load

With this folder as `checkpoint` of `[modalities.{spec.name}]` in registry.toml:

```python
from tokenizers_zoo import Zoo

zoo = Zoo.from_toml("registry.toml")
tokens = zoo["{spec.name}"].encode(values)
```

## Quality

On {count_of(result["samples"], "held-out sample")}, after {count_of(result["steps"], "step")} in \
{result["training_seconds"]:.0f} s\
{f" (weights of step {result['kept_step']}, the best on held-out samples)" if "kept_step" in result else ""}:

| metric | value | unit | better | meaning |
|---|---|---|---|---|
{chr(10).join(rows)}

## Data

{data["train"]} training and {count_of(data["test"], "held-out sample")}.

```json
{json.dumps(data["provenance"], indent=2, ensure_ascii=False)}
```

## Settings

```json
{json.dumps({key: value for key, value in identity.items() if key != "data"}, indent=2, ensure_ascii=False)}
```
"""
