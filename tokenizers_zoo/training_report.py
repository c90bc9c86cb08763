"""What a training run shows and leaves behind: live progress, TensorBoard, metrics.jsonl, pictures, the model card."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenizers_zoo.checkpoint import drop_lines_after, replacing_file
from tokenizers_zoo.modality import ModalitySpec

if TYPE_CHECKING:
    import PIL.Image

    from tokenizers_zoo.training import TokenizerTask, TrainConfig

METRICS, PICTURES, TENSORBOARD = "metrics.jsonl", "samples", "tensorboard"
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


class TrainingReport:
    """Live progress in the terminal, TensorBoard, and metrics.jsonl, of a run that starts after `done` steps."""

    def __init__(self, task: TokenizerTask, config: TrainConfig, out_dir: Path, done: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.spec, self.config, self.folder, self.done = task.spec, config, out_dir, done
        self.console = Console(stderr=True)
        columns = ("{task.description}", "loss {task.fields[loss]}", "{task.fields[held_out]}", "{task.fields[speed]}")
        texts = [TextColumn(column) for column in columns]
        self.progress = Progress(
            texts[0], BarColumn(bar_width=20), MofNCompleteColumn(), *texts[1:], TimeRemainingColumn(),
            console=self.console,
        )  # fmt: skip
        self.window: list[dict[str, float]] = []
        self.started = time.perf_counter()

    def __enter__(self) -> TrainingReport:
        from torch.utils.tensorboard import SummaryWriter

        drop_lines_after(self.folder / METRICS, self.done)
        self.stack = contextlib.ExitStack()
        self.log = self.stack.enter_context(open(self.folder / METRICS, "a", encoding="utf-8"))
        writer = SummaryWriter(str(self.folder / TENSORBOARD), purge_step=self.done + 1 if self.done else None)
        self.board = self.stack.enter_context(contextlib.closing(writer))
        self.stack.enter_context(self.progress)
        if self.done:
            self.console.print(f"{self.spec.name}: goes on after step {self.done}")
        self.bar = self.progress.add_task(
            f"tokenizer {self.spec.name}", total=self.config.steps, completed=self.done, loss="-", held_out="", speed=""
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def step(self, done: int, losses: Mapping[str, float], learning_rate: float) -> None:
        """Count a finished step; every LOG_EVERY steps write the means since the last line."""
        self.window.append(dict(losses))
        speed = (
            (done - self.done) * self.config.batch_size * self.config.accumulate / (time.perf_counter() - self.started)
        )
        self.progress.update(self.bar, completed=done, loss=f"{losses['loss']:.4f}", speed=f"{speed:.0f} samples/s")
        if done % LOG_EVERY == 0 or done == self.config.steps:
            means = {name: float(np.mean([entry[name] for entry in self.window])) for name in losses}
            self._write(done, {f"train/{name}": value for name, value in means.items()} | {
                "train/learning_rate": learning_rate, "train/samples_per_second": speed,
            })  # fmt: skip
            self.window.clear()

    def evaluation(self, done: int, evaluation: Evaluation) -> None:
        """Show, log and picture an evaluation; say so where the codebook collapses."""
        codebook = evaluation.codebook
        scalars = {f"held_out/{name}": value for name, value in evaluation.metrics.items()}
        self._write(done, scalars | {f"codebook/{name}": value for name, value in codebook.items() if name != "size"})
        text = _main_metric(self.spec, evaluation.metrics)
        if codebook:
            text += f" codebook {codebook['usage']:.0%}"
        self.progress.update(self.bar, held_out=text)
        if evaluation.collapsed:
            self.console.print(
                f"[bold yellow]{self.spec.name}: step {done}: the codebook collapses: {codebook['usage']:.1%} of"
                f" {codebook['size']:.0f} codes are used on held-out samples; use fewer levels or a smaller codebook,"
                " another quantizer, or a lower learning rate[/]"
            )
        pictures = picture_rows(evaluation.shown)
        if pictures is not None:
            self.board.add_image("held_out/input_and_reconstruction", np.asarray(pictures), done, dataformats="HWC")
        self.board.flush()

    def _write(self, done: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            self.board.add_scalar(name, value, done)
        finite = {name: value if np.isfinite(value) else None for name, value in scalars.items()}
        self.log.write(json.dumps({"step": done, **finite}) + "\n")
        self.log.flush()


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
