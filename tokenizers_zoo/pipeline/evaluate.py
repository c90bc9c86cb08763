"""`zoo tokenizer eval`: how well a trained tokenizer keeps the values of a split, in figures and pictures."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers_zoo.data.samples import TEST
from tokenizers_zoo.data.shards import Place, Rows, ValueStore
from tokenizers_zoo.errors import CheckpointError, DataError, PluginError, ReadError, ZooError, count_of
from tokenizers_zoo.io import disk_errors, read_table, write_json
from tokenizers_zoo.pipeline.decoders import TwoDecoders, compare_decoders, write_sheet
from tokenizers_zoo.progress import progress_bar
from tokenizers_zoo.quantizers.usage import CodebookUsage
from tokenizers_zoo.train.report import EVALUATION, PICTURES, mean_and_least, mean_of, of_split, write_pictures
from tokenizers_zoo.validation import describe, has_fixed_length

if TYPE_CHECKING:
    from tokenizers_zoo.registry import ModalityHandle, Zoo

OF_TRAINING = ("steps", "kept_step", "training_seconds", "units", "codebook")
"""Figures that training leaves and an evaluation has none of."""
BATCH = 64
SHOWN = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerEvaluation:
    """Results of a tokenizer evaluation: the modality's metrics, codebook usage and speed."""

    samples: int
    metrics: dict[str, float]
    tokens_per_sample: float
    encode_seconds: float
    usage: float | None = None
    """Share of the codes used, averaged over codebooks; None for continuous layouts."""
    perplexity: float | None = None
    several: Mapping[str, float] = field(default_factory=dict)
    """`CodebookUsage.of_several`; empty with one codebook."""
    dropped: dict[str, str] = field(default_factory=dict)
    pictures: Path | None = None
    compared: Sequence[tuple[str, float, str, str]] = ()
    """Name, number, unit and meaning of figures that compare two decoders; empty without a plain decoder."""

    @property
    def tokens_per_second(self) -> float:
        """Tokens encoded per second."""
        return self.samples * self.tokens_per_sample / max(self.encode_seconds, 1e-9)

    def codebook_rows(self) -> list[tuple[str, float, str, str]]:
        """Return name, number, unit and meaning of all figures except the modality's metrics."""
        rows = [
            *self.compared,
            ("tokens", self.tokens_per_sample, "", "tokens per sample, on average"),
            ("encoding", self.tokens_per_second, "tokens/s", "speed of encode, without reading"),
        ]
        if self.usage is not None and self.perplexity is not None:
            rows.append(("usage", self.usage, "", f"share of the codes that occurred{mean_and_least(self.several)}"))
            meaning = f"how many equally frequent ids would be as varied{mean_of(self.several)}"
            rows.append(("perplexity", self.perplexity, "ids", meaning))
        if self.dropped:
            rows.append(("dropped", float(len(self.dropped)), "samples", "could not be read or encoded"))
        return rows

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON types, with None for non-finite numbers."""
        figures = {key: number for key, number, _, _ in self.codebook_rows()}
        return {"samples": self.samples, "metrics": _finite(self.metrics), **_finite(figures), **self.several}


def _finite(figures: Mapping[str, float]) -> dict[str, float | None]:
    return {name: number if math.isfinite(number) else None for name, number in figures.items()}


def evaluate_tokenizer(
    zoo: Zoo, name: str, data: Path, *, split: str = TEST, limit: int | None = None, write: bool = True
) -> TokenizerEvaluation:
    """Encode and decode a split's values (up to `limit`, in stored order) and score the reconstructions.

    With `write` the figures are written to evaluation.json and sample images to samples/ in the checkpoint folder. If
    modalities share the checkpoint, both go to its subfolder with the modality's name. For a tokenizer on the hub, both
    go to a folder with its id under `[zoo] checkpoints`. Figures of a split that is not "test", or of a part of a
    split, go to evaluation-SPLIT.json and samples-SPLIT/, so that evaluation.json always has the held-out figures. The
    metrics of an input-only modality without a decoder are NaN. Raises DataError if the data lack the modality,
    ReadError if the system cannot read a file now, CheckpointError if there is no tokenizer.
    """
    handle = zoo[name]
    store = ValueStore(data)
    rows = store.rows(split, [name])
    count = len(rows) if limit is None else min(limit, len(rows))
    of_part = split != TEST or count < len(rows)
    figures, shown = (of_split(file, split) if of_part else file for file in (EVALUATION, PICTURES))
    _ = handle.tokenizer  # loaded before the clock starts
    usage = None if handle.spec.continuous else CodebookUsage(handle.spec.vocab_size, handle.spec.num_codebooks)
    run = _Reconstruction()
    with progress_bar(f"evaluate {split}/{name}", count) as advance:
        for start in range(0, count, BATCH):
            batch = rows[start : min(start + BATCH, count)]
            run.add(handle, rows, batch, usage)
            advance(len(batch))
    if not run.target:
        reason = next(iter(run.dropped.items()), ("no value", "the split is empty"))
        raise DataError(f"{store.root / split / name}: nothing to evaluate; {reason[0]}: {reason[1]}")
    folder = handle.files.evaluations / name if handle.spec.shares_checkpoint else handle.files.evaluations
    with disk_errors(folder):
        pictures = _write_samples(folder, shown, handle, run) if write else None
    compared = compare_decoders(handle, run.plain, run.predicted, run.target) if run.plain else []
    result = TokenizerEvaluation(
        samples=len(run.target),
        metrics=run.metrics(handle),
        tokens_per_sample=run.tokens / len(run.target),
        encode_seconds=run.encode_seconds,
        usage=usage.usage if usage else None,
        perplexity=usage.perplexity if usage else None,
        several=usage.of_several() if usage else {},
        dropped=run.dropped,
        pictures=pictures,
        compared=compared,
    )
    if write:
        report = {"split": split, "data": store.record(split, name), "fingerprint": handle.fingerprint}
        with disk_errors(folder):
            write_json(folder / figures, {**_of_training(folder / figures), **report, **result.to_json()})
    return result


def _of_training(path: Path) -> dict[str, Any]:
    """Return the figures of training in a file; an evaluation keeps them and replaces its own."""
    with contextlib.suppress(CheckpointError):
        return {key: figure for key, figure in read_table(path).items() if key in OF_TRAINING}
    return {}


@dataclass(kw_only=True, slots=True)
class _Reconstruction:
    """Values and their reconstructions."""

    target: list[Any] = field(default_factory=list)
    predicted: list[Any] = field(default_factory=list)
    plain: list[Any] = field(default_factory=list)
    """Reconstructions of the plain decoder from the same tokens, if the tokenizer has two decoders."""
    dropped: dict[str, str] = field(default_factory=dict)
    vectors: list[int] = field(default_factory=list)
    """Number of vectors per value; replaces `predicted` for an input-only modality without a decoder."""
    tokens: int = 0
    encode_seconds: float = 0.0

    def add(self, handle: ModalityHandle, rows: Rows, places: Sequence[Place], usage: Any) -> None:
        """Reconstruct a batch; values that cannot be read or encoded are dropped with the reason.

        Raises ReadError if the disk fails, because the next evaluation would use other samples.
        """
        sound = {}
        for place in places:
            key = rows.key(place)
            try:
                sound[key] = rows.store.read(handle, rows.split.name, *place)
            except ReadError:
                raise  # no value is to blame
            except ZooError as error:
                self.dropped[key] = str(error)
        if sound:
            self._reconstruct(handle, sound, usage)

    def _reconstruct(self, handle: ModalityHandle, sound: Mapping[str, Any], usage: Any) -> None:
        """Encode and decode values by key. If the tokenizer rejects a batch, retry each value alone.

        Raises PluginError if the plugin breaks its contract for every value of the first batch.
        """
        values = list(sound.values())
        start = time.perf_counter()
        try:
            tokens = handle.encode(values)
        except ZooError as error:
            if len(sound) == 1:
                self.dropped.update(dict.fromkeys(sound, str(error)))
                return
            for key, value in sound.items():
                self._reconstruct(handle, {key: value}, usage)
            if isinstance(error, PluginError) and not self.target:
                raise
            return
        self.encode_seconds += time.perf_counter() - start
        self._decode(handle, tokens)
        if isinstance(handle.tokenizer, TwoDecoders) and handle.tokenizer.has_plain:
            import torch

            there = torch.as_tensor(tokens).to(handle.device)
            self.plain += list(handle.tokenizer.decode_plain(there).cpu().numpy())
        self.target += values
        fixed = has_fixed_length(handle.spec.layout)
        self.tokens += handle.spec.layout.length * len(values) if fixed else sum(len(item) for item in tokens)
        if usage is not None:
            for item in [tokens] if fixed else tokens:
                usage.update(item)

    def _decode(self, handle: ModalityHandle, tokens: Any) -> None:
        """Add the reconstructions of a batch of tokens; without a decoder, add the number of vectors."""
        decoded = None if self.vectors else handle.decode_if_able(tokens)
        self.predicted += decoded or []
        self.vectors += [len(row) for row in tokens] if decoded is None else []

    def metrics(self, handle: ModalityHandle) -> dict[str, float]:
        """Return the modality's metrics; NaN if nothing is decoded."""
        if self.vectors:
            return {metric.name: math.nan for metric in handle.spec.metrics}
        return handle.score(self.predicted, self.target)

    def pairs(self, handle: ModalityHandle, count: int) -> list[tuple[Any, Any]]:
        """Return the first values and their reconstructions for display; without a decoder, a description."""
        if self.vectors:
            counts = zip(self.target[:count], self.vectors[:count], strict=True)
            return [(describe(value), f"{count_of(number, 'vector')}, not decoded") for value, number in counts]
        both = zip(self.target[:count], self.predicted[:count], strict=True)
        return [(handle.render(value), handle.render(back)) for value, back in both]


def _write_samples(folder: Path, name: str, handle: ModalityHandle, run: _Reconstruction) -> Path:
    """Draw some values and their reconstructions into the subfolder `name` and return its path."""
    write_pictures(folder, run.pairs(handle, SHOWN), name)
    if run.plain:
        write_sheet(folder / name, handle, *(side[:SHOWN] for side in (run.plain, run.predicted, run.target)))
    return folder / name
