"""Evaluation of a backbone: how well it predicts each modality from each other modality.

The results are an `EvaluationRecord`. During an evaluation it is in unfinished.json, and a killed evaluation resumes
from it. A finished evaluation can be extended by further pairs, or by pairs scored over another number of samples;
other scores are kept.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tokenizers_zoo.contract.registry import Zoo
from tokenizers_zoo.contract.samples import TEST
from tokenizers_zoo.errors import DataError
from tokenizers_zoo.files.run_folder import RunFolder, RunKind, locked
from tokenizers_zoo.machine.progress import progress_bar
from tokenizers_zoo.records.config import from_mapping
from tokenizers_zoo.records.io import write_table
from tokenizers_zoo.records.typed import as_dicts
from zoo_backbone.generate import TargetPlan
from zoo_backbone.generate.request import GenerationRequest
from zoo_backbone.learn.checkpoint import load_model
from zoo_backbone.learn.data import TokenData
from zoo_backbone.learn.masking import Masker
from zoo_backbone.measure.evaluation import (
    FILE,
    FOLDER,
    PAIR_METRICS,
    CrossEntropy,
    Entropy,
    EvaluatedModality,
    EvaluationRecord,
    GalleryRecord,
    Pair,
    PairPredictions,
    PairScore,
    read_evaluation,
)
from zoo_backbone.measure.evaluation_data import EvaluationData, title_of
from zoo_backbone.measure.gallery import sheet_name, write_gallery
from zoo_backbone.model.config import EvaluationConfig, MaskingConfig

GALLERY, UNFINISHED = "gallery", "unfinished.json"
EVALUATION = RunKind(name="evaluation", files=(FILE, GALLERY), state=UNFINISHED, results=(FILE,))
LOSS = "cross-entropy"
"""Its name among what was skipped."""


def evaluate(
    run: Path,
    zoo: Zoo,
    tokens_root: Path,
    data_root: Path,
    *,
    config: EvaluationConfig | None = None,
    device: str = "cpu",
    out: Path | None = None,
    overwrite: bool = False,
) -> EvaluationRecord:
    """Evaluate the backbone in `run` into `out` (default: RUN/evaluation), and return the content of evaluation.json.

    Every set of inputs predicts every target that is not in it. Defaults: each modality alone, and all discrete ones,
    pictures first. An input such as `rgb` is replaced by the form that the model reads, `rgb_patches`.
    Finished pairs of the same evaluation are kept. Modalities without test tokens, values or their tokenizer, and pairs
    without a common test sample or a training value, are left out with the reason. Model and tokenizers run on
    `device`. Raises DataError if these were named, or there are no training values, and FolderError if `out` holds
    anything else and not `overwrite`.
    """
    folder = Path(run) / FOLDER if out is None else Path(out)
    model = load_model(Path(run), device=device).eval()
    data = EvaluationData(model, zoo, Path(tokens_root), Path(data_root), config or EvaluationConfig(), device)
    pairs = data.pairs()
    folders = {"run": Path(run), "tokens": data.tokens_root, "data": data.values.root}
    recorded = {key: str(path.resolve()) for key, path in folders.items()}
    with RunFolder(folder, EVALUATION, as_dicts(data.identity()), recorded).open(overwrite) as state, locked(folder):
        evaluation = _Evaluation(folder, data)
        evaluation.measure_loss()
        evaluation.measure_pairs(pairs)
        record = evaluation.record()
        write_table(folder / FILE, record)
        state.finish(pairs=len(record.pairs))
    return record


class _Evaluation:
    """A running evaluation."""

    def __init__(self, folder: Path, data: EvaluationData) -> None:
        self.folder, self.data, self.config = folder, data, data.config
        self.skipped = dict(data.skipped)
        self.unreadable: dict[str, dict[str, str]] = {}
        self.cross_entropy: CrossEntropy | None = None
        self.pairs: dict[Pair, PairScore] = {}
        self.galleries: dict[Pair, GalleryRecord] = {}
        self._started = time.perf_counter()
        file = next((folder / name for name in (UNFINISHED, FILE) if (folder / name).is_file()), None)
        if file is not None:
            earlier = read_evaluation(file)
            self.unreadable = {column: dict(reasons) for column, reasons in earlier.unreadable.items()}
            self.cross_entropy, self._started = earlier.cross_entropy, self._started - earlier.seconds
            self.pairs = {score.pair: score for score in earlier.pairs}
            self.galleries = {
                gallery.pair: gallery
                for gallery in earlier.galleries
                if gallery.picture is None or (folder / gallery.picture).is_file()
            }

    def record(self) -> EvaluationRecord:
        """Return everything that is known so far."""
        for column, reasons in self.data.unreadable.items():
            self.unreadable.setdefault(column, {}).update(reasons)
        return EvaluationRecord(
            identity=self.data.identity(),
            modalities={
                name: EvaluatedModality(test_samples=self.data.columns[name].count, metrics=handle.spec.metrics)
                for name, handle in self.data.handles.items()
            },
            skipped=self.skipped,
            unreadable=self.unreadable,
            cross_entropy=self.cross_entropy,
            pairs=tuple(self.pairs.values()),
            galleries=tuple(self.galleries.values()),
            seconds=round(time.perf_counter() - self._started, 3),
        )

    def _save(self) -> None:
        write_table(self.folder / UNFINISHED, self.record())

    def measure_loss(self) -> None:
        """Measure the cross-entropy of each modality's tokens, unless it is known."""
        if self.cross_entropy is not None and self.cross_entropy.tokens_of == tuple(self.data.tokens_of):
            return
        try:
            self.cross_entropy = cross_entropy(self.data)
        except DataError as error:
            self.cross_entropy, self.skipped[LOSS] = None, str(error)
        else:
            self._save()

    def measure_pairs(self, pairs: Sequence[Pair]) -> None:
        """Score the remaining pairs, and draw the galleries of the first ones.

        A pair that cannot be scored is left out with the reason, or raises DataError if the settings name all pairs.
        """
        number = 0  # of the pairs that can be scored
        scored = {pair for pair, score in self.pairs.items() if score.samples == self._sample_count(pair)}
        longest = max(map(title_of, pairs), key=len, default="")
        with progress_bar(f"evaluate {longest}", len(pairs)) as advance:
            for pair in pairs:
                advance(0, f"evaluate {title_of(pair)}")
                if pair in scored or self._can_score(pair):
                    if pair not in scored:
                        self.pairs[pair] = self._score(*pair)
                        self._save()
                    if pair not in self.galleries and number < self.config.gallery_pairs:
                        self.galleries[pair] = self._gallery(*pair)
                        self._save()
                    number += 1
                advance(1)
        order = {pair: number for number, pair in enumerate(pairs)}
        self.pairs = dict(sorted(self.pairs.items(), key=lambda item: order.get(item[0], len(order))))
        self.galleries = dict(sorted(self.galleries.items(), key=lambda item: order.get(item[0], len(order))))
        self._save()

    def _sample_count(self, pair: Pair) -> int:
        """Return the number of samples that a pair of this or an earlier evaluation is scored over now."""
        inputs, target = pair
        is_usable = all(name in self.data.handles for name in (*inputs, target))
        return len(self.data.samples((*inputs, target), self.config.samples)) if is_usable else 0

    def _can_score(self, pair: Pair) -> bool:
        """Return whether a pair has samples and training values; note the reason, or raise it for a named pair."""
        inputs, target = pair
        try:
            self.data.samples((*inputs, target), self.config.samples)
            self.data.constant(target)
        except DataError as error:
            if self.config.inputs and self.config.targets:
                raise
            self.skipped[title_of(pair)] = str(error)
            return False
        return True

    def _draw(self, inputs: Sequence[str], samples: Sequence[int], draws: int, plan: TargetPlan) -> list[Any]:
        """Return values of the target, with `draws` consecutive draws per sample."""
        data = self.data
        request = GenerationRequest(
            model=data.model,
            handles=data.handles,
            targets=[plan],
            numbers=range(0, len(samples) * draws, draws),
            tokens_of=lambda rows: ({name: data.tokens(name, [samples[row] for row in rows]) for name in inputs}, {}),
            seed=self.config.seed,
            draws=draws,
            stride=1,
            batch=self.config.batch_size * draws,
        )
        return [sample.value for sample in request.generate()[plan.name]]

    def _score(self, inputs: Sequence[str], target: str) -> PairScore:
        data, count, handle = self.data, self.config.draws, self.data.handles[target]
        samples = data.samples((*inputs, target), self.config.samples)
        temperature = self.config.temperature if count > 1 else 0.0
        plan = TargetPlan(name=target, temperature=temperature, top_p=1, steps=self.config.steps)
        drawn = self._draw(inputs, samples, count, plan)
        draws = [drawn[first : first + count] for first in range(0, len(drawn), count)]
        values = [handle.constant_baseline(of_sample) for of_sample in draws] if count > 1 else drawn
        baseline, reconstruction = data.bounds(target, samples)
        predictions = PairPredictions(
            handle=handle,
            draws=draws,
            values=values,
            truth=data.truth(target, samples),
            score=data.score(target, values, samples),
            constant_baseline=baseline,
            reconstruction=reconstruction,
        )
        return PairScore(
            inputs=tuple(inputs),
            target=target,
            samples=len(samples),
            score=predictions.score.scores,
            constant_baseline=baseline.scores,
            reconstruction=reconstruction.scores,
            figures={name: metric.measure(predictions) for name, metric in PAIR_METRICS.items()},
        )

    def _gallery(self, inputs: Sequence[str], target: str) -> GalleryRecord:
        """Draw a gallery and return its record."""
        data, draws = self.data, self.config.gallery_draws
        samples = data.samples((*inputs, target), self.config.gallery_samples)
        values = self._draw(inputs, samples, draws, TargetPlan(name=target))
        columns = {name: data.truth(name, samples) for name in inputs}
        columns |= {f"{target} {draw + 1}": values[draw::draws] for draw in range(draws)}
        columns[f"true {target}"] = data.truth(target, samples)
        handles = [data.handles[name] for name in (*inputs, *[target] * (draws + 1))]
        rendered = (map(handle.render, column) for handle, column in zip(handles, columns.values(), strict=True))
        gallery = GalleryRecord(
            inputs=tuple(inputs),
            target=target,
            picture=f"{GALLERY}/{sheet_name(inputs, target)}",
            columns=tuple(columns),
            rows=(),
        )
        keys = list(map(data.split.key, samples))
        return write_gallery(self.folder, gallery, keys, list(zip(*rendered, strict=True)))


@torch.inference_mode()
def cross_entropy(data: EvaluationData) -> CrossEntropy:
    """Return the cross-entropy of each modality's tokens, with tokens of the training's tokenizers only.

    Raises DataError if there is nothing to predict.
    """
    model, config, names = data.model, data.config, data.tokens_of
    layout = model.layout
    if not set(names) & set(layout.discrete):
        raise DataError(f"{data.tokens_root / TEST}: has no tokens to predict from a tokenizer of the training")
    table = model.record.train.get("masking", {}) if model.record else {}  # imported models have none
    masking = from_mapping(MaskingConfig, table)
    token_data = TokenData(data.tokens_root, TEST, layout.specs, names=names)
    samples = np.random.default_rng(config.seed).permutation(len(token_data))[: config.loss_samples]
    device = model.token_embedding.weight.device
    sums, counts = np.zeros(len(layout)), np.zeros(len(layout))
    for batch in token_data.batches(samples, config.batch_size, Masker(layout, masking), config.seed):
        losses = model(batch.to(device))
        sums, counts = sums + losses.sums.cpu().numpy(), counts + losses.counts.cpu().numpy()
    return CrossEntropy(
        samples=len(samples),
        tokens_of=tuple(names),
        modalities={
            spec.name: Entropy(nats=total / count, uniform=math.log(spec.vocab_size), targets=int(count))
            for spec, total, count in zip(layout.specs, sums.tolist(), counts.tolist(), strict=True)
            if count
        },
    )
