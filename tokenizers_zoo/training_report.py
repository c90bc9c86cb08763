"""What a tokenizer's training shows and leaves behind: losses, held-out metrics, pictures, the model card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenizers_zoo.checkpoint import replacing_file
from tokenizers_zoo.modality import ModalitySpec
from tokenizers_zoo.step_log import StepLog

if TYPE_CHECKING:
    import PIL.Image

    from tokenizers_zoo.training import TokenizerTask, TrainConfig

PICTURES = "samples"
LOG_EVERY = 10
"""Steps between two lines of metrics.jsonl."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Held-out metrics, codebook statistics (none for continuous modalities), and pairs (input, reconstruction)."""

    metrics: Mapping[str, float]
    shown: Sequence[tuple[PIL.Image.Image | str, PIL.Image.Image | str]]
    samples: int
    codebook: Mapping[str, float] = field(default_factory=dict)
    collapsed: bool = False


class TrainingReport(StepLog):
    """The log of a tokenizer's training; samples/ and the model card are written at its end."""

    def __init__(self, task: TokenizerTask, config: TrainConfig, out_dir: Path, done: int) -> None:
        samples = config.batch_size * config.accumulate
        title = f"tokenizer {task.spec.name}"
        super().__init__(out_dir, title, steps=config.steps, done=done, samples_per_step=samples)
        self.spec = task.spec
        self.window: list[dict[str, float]] = []

    def step(self, done: int, losses: Mapping[str, float], learning_rate: float) -> None:
        """Count a finished step; every LOG_EVERY steps write the means since the last line."""
        self.window.append(dict(losses))
        self.advance(done, losses["loss"])
        if done % LOG_EVERY == 0 or done == self.steps:
            means = {f"train/{name}": float(np.mean([entry[name] for entry in self.window])) for name in losses}
            self.write(done, means | {"train/learning_rate": learning_rate})
            self.write_speed()
            self.window.clear()

    def evaluation(self, done: int, evaluation: Evaluation) -> None:
        """Show, log and picture an evaluation; say so where the codebook collapses."""
        codebook = evaluation.codebook
        scalars = {f"held_out/{name}": value for name, value in evaluation.metrics.items()}
        self.write(done, scalars | {f"codebook/{name}": value for name, value in codebook.items() if name != "size"})
        found = [_main_metric(self.spec, evaluation.metrics), f"codebook {codebook['usage']:.0%}" if codebook else ""]
        self.note = ", ".join(part for part in found if part)
        if evaluation.collapsed:
            self.say(
                f"{self.spec.name}: step {done}: the codebook collapses: {codebook['usage']:.1%} of"
                f" {codebook['size']:.0f} codes are used on held-out samples; use fewer levels or a smaller codebook,"
                " another quantizer, or a lower learning rate",
                style="bold yellow",
            )
        pictures = picture_rows(evaluation.shown)
        if pictures is not None:
            self.board.add_image("held_out/input_and_reconstruction", np.asarray(pictures), done, dataformats="HWC")
        self.flush()


def _main_metric(spec: ModalitySpec, metrics: Mapping[str, float]) -> str:
    if not spec.metrics or spec.metrics[0].name not in metrics:
        return ""
    main = spec.metrics[0]
    return f"{main.name} {metrics[main.name]:.4g}{f' {main.unit}' if main.unit else ''}"


def picture_rows(shown: Sequence[tuple[Any, Any]]) -> PIL.Image.Image | None:
    """Pairs of pictures as one: a row per pair, input left, reconstruction right; None where they are text."""
    from PIL import Image

    pairs = [pair for pair in shown if not any(isinstance(side, str) for side in pair)]
    if not pairs:
        return None
    width = max(side.width for pair in pairs for side in pair)
    height = max(side.height for pair in pairs for side in pair)
    sheet = Image.new("RGB", (2 * width + 2, len(pairs) * (height + 2) - 2), "white")
    for row, pair in enumerate(pairs):
        for column, side in enumerate(pair):
            sheet.paste(side.convert("RGB"), (column * (width + 2), row * (height + 2)))
    return sheet


def write_pictures(folder: Path, shown: Sequence[tuple[Any, Any]]) -> None:
    """Write each pair of input and reconstruction to `samples/`: a .png side by side, or a .txt for text."""
    for number, pair in enumerate(shown):
        picture = picture_rows([pair])
        with replacing_file(folder / PICTURES / f"{number:02}.{'txt' if picture is None else 'png'}") as temporary:
            if picture is None:
                temporary.write_text(f"input:          {pair[0]}\nreconstruction: {pair[1]}\n", encoding="utf-8")
            else:
                picture.save(temporary, format="PNG")


def model_card(spec: ModalitySpec, identity: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """The README.md of a tokenizer: what it is, how to load it, how good it is, and what it was trained on."""
    rows = [
        f"| {metric.name} | {_number(result['metrics'][metric.name])} | {metric.unit or '-'} |"
        f" {'higher' if metric.higher_is_better else 'lower'} | {metric.meaning} |"
        for metric in spec.metrics
    ]
    if codebook := result["codebook"]:
        meaning = f"codes of {codebook['size']} used on the held-out samples; perplexity {codebook['perplexity']:.0f}"
        rows.append(f"| codebook usage | {100 * codebook['usage']:.1f} | % | higher | {meaning} |")
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

On {result["samples"]} held-out samples, after {result["steps"]} steps in {result["training_seconds"]:.0f} s:

| metric | value | unit | better | meaning |
|---|---|---|---|---|
{chr(10).join(rows)}

## Data

{data["train"]} training and {data["test"]} held-out samples.

```json
{json.dumps(data["provenance"], indent=2, ensure_ascii=False)}
```

## Settings

```json
{json.dumps({key: value for key, value in identity.items() if key != "data"}, indent=2, ensure_ascii=False)}
```
"""


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
