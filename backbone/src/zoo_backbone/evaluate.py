"""Evaluation of a backbone: how well it predicts each modality from each other modality.

evaluation.json, in RUN/evaluation or another folder, holds

    identity       the inputs of the scores: {"weights": sha256, "settings": EvaluationConfig, "tokenizers":
                   {name: fingerprint}, "samples": sha256 of the test samples' keys and tokens, "values":
                   {"<split>/<name>": digest}, "decoders": {name: sha256 of the tokenizer and its settings}}
    modalities     {name: {"summary", "layout", "vocab_size", "test_samples",
                   "metrics": [{"name", "unit", "higher_is_better", "meaning"}]}}; the first metric is the main one
    skipped        {name: reason} for modalities that could not be evaluated, and {"a + b to c": reason} for pairs that
                   nobody named and that have no sample, or no training value
    unreadable     {"<split>/<name>": {key: reason}}: values that cannot be read and were left out
    cross_entropy  {"samples", "tokens_of": [names], "modalities": {name: {"nats", "uniform", "targets"}}}: mean per
                   target token of test samples, masked as in training, and log(vocab_size), the loss of a uniform
                   guess; or {"problem"}
    pairs          [{"inputs": [names], "target": name, "samples", "score", "constant_baseline", "reconstruction",
                   "skill", "resampled_skill"}] in the order of the command. The scores map metric names to numbers
                   (null: not finite), over the same test samples: of the predictions, of the best constant prediction
                   for training values, and of the tokenizer's reconstruction of the truth. skill is (score -
                   constant_baseline) / (reconstruction - constant_baseline) of the main metric; null if the
                   reconstruction is not better than the baseline. resampled_skill: the skill over bootstrap resamples
                   of the samples, the same ones in all evaluations with equal seed and number of samples
    galleries      [{"inputs", "target", "picture": relative path or null, "columns": [headers],
                   "rows": [{"key", "cells": [text, or null if the picture shows it]}]}]: inputs, several draws, truth
    seconds        time spent

The scored prediction minimises the expected error (minimum Bayes risk, Kumar and Byrne, NAACL 2004): it is the best
single value for several draws. A single draw would add its own spread to the error. The constant baseline is the best
single value for training values, so a model that knows only the distribution of values has a skill of about 0.
Galleries show the draws.

During an evaluation, the same tables are in unfinished.json; a killed evaluation resumes from it. A finished evaluation
can be extended by further pairs, or by pairs scored over another number of samples; other scores are kept.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tokenizers_zoo.config import from_mapping
from tokenizers_zoo.errors import DataError
from tokenizers_zoo.io import as_record, read_table, write_table
from tokenizers_zoo.progress import progress_bar
from tokenizers_zoo.records import as_dicts
from tokenizers_zoo.registry import Zoo
from tokenizers_zoo.report import records
from tokenizers_zoo.run_folder import RunFolder, RunKind, locked
from tokenizers_zoo.samples import TEST
from zoo_backbone.checkpoint import load_model
from zoo_backbone.config import EvaluationConfig, MaskingConfig
from zoo_backbone.data import TokenData
from zoo_backbone.evaluation_data import EvaluationData, Pair, pair_of, title_of
from zoo_backbone.gallery import sheet_name, write_gallery
from zoo_backbone.generate import TargetPlan
from zoo_backbone.masking import Masker
from zoo_backbone.request import GenerationRequest

FOLDER, FILE, GALLERY, UNFINISHED = "evaluation", "evaluation.json", "gallery", "unfinished.json"
EVALUATION = RunKind(name="evaluation", files=(FILE, GALLERY), state=UNFINISHED, results=(FILE,))


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
) -> dict[str, Any]:
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
    with RunFolder(folder, EVALUATION, data.identity(), recorded).open(overwrite) as state, locked(folder):
        evaluation = _Evaluation(folder, data)
        evaluation.measure_loss()
        evaluation.measure_pairs(pairs)
        write_table(folder / FILE, evaluation.result)
        state.finish(pairs=len(evaluation.result["pairs"]))
    return read_table(folder / FILE)


class _Evaluation:
    """A running evaluation; `result` is the content of evaluation.json."""

    def __init__(self, folder: Path, data: EvaluationData) -> None:
        self.folder, self.data, self.config = folder, data, data.config
        record_file = next((folder / name for name in (UNFINISHED, FILE) if (folder / name).is_file()), None)
        earlier = {} if record_file is None else read_table(record_file)
        if record_file is not None:
            as_record(earlier, records.Evaluation, record_file)
        self.result: dict[str, Any] = {"pairs": [], "galleries": [], "unreadable": {}, "seconds": 0.0, **earlier}
        self.result |= {
            "identity": data.identity(),
            "modalities": {
                name: {
                    "summary": handle.spec.summary,
                    "layout": as_dicts(handle.spec.layout),
                    "vocab_size": handle.spec.vocab_size,
                    "test_samples": data.columns[name].count,
                    "metrics": [dataclasses.asdict(metric) for metric in handle.spec.metrics],
                }
                for name, handle in data.handles.items()
            },
            "skipped": dict(data.skipped),
        }
        self._started = time.perf_counter() - self.result["seconds"]

    def _write(self) -> None:
        self.result["seconds"] = round(time.perf_counter() - self._started, 3)
        for column, reasons in self.data.unreadable.items():
            self.result["unreadable"].setdefault(column, {}).update(reasons)
        write_table(self.folder / UNFINISHED, self.result)

    def measure_loss(self) -> None:
        """Measure the cross-entropy of each modality's tokens, unless it is known.

        Tokens of another tokenizer than in training are neither targets nor inputs.
        """
        earlier = self.result.get("cross_entropy", {})
        if "modalities" in earlier and earlier["tokens_of"] == self.data.tokens_of:
            return
        try:
            self.result["cross_entropy"] = cross_entropy(self.data)
        except DataError as error:
            self.result["cross_entropy"] = {"problem": str(error)}
        else:
            self._write()

    def measure_pairs(self, pairs: Sequence[Pair]) -> None:
        """Score the remaining pairs, and draw the galleries of the first ones.

        A pair that cannot be scored is left out with the reason, or raises DataError if the settings name all pairs.
        """
        result, number = self.result, 0  # of the pairs that can be scored
        result["galleries"] = [
            entry for entry in result["galleries"]
            if entry["picture"] is None or (self.folder / entry["picture"]).is_file()
        ]  # fmt: skip
        finished_galleries = {pair_of(entry) for entry in result["galleries"]}
        scored = {pair_of(entry) for entry in result["pairs"] if entry["samples"] == self._sample_count(pair_of(entry))}
        longest = max(map(title_of, pairs), key=len, default="")
        with progress_bar(f"evaluate {longest}", len(pairs)) as advance:
            for pair in pairs:
                advance(0, f"evaluate {title_of(pair)}")
                if pair in scored or self._can_score(pair):
                    if pair not in scored:
                        score = self._score(*pair)
                        result["pairs"] = [entry for entry in result["pairs"] if pair_of(entry) != pair] + [score]
                        self._write()
                    if pair not in finished_galleries and number < self.config.gallery_pairs:
                        result["galleries"].append(self._gallery(*pair))
                        self._write()
                    number += 1
                advance(1)
        order = {pair: number for number, pair in enumerate(pairs)}
        for key in ("pairs", "galleries"):
            result[key].sort(key=lambda entry: order.get(pair_of(entry), len(order)))
        self._write()

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
            self.result["skipped"][title_of(pair)] = str(error)
            return False
        return True

    def _draw(self, inputs: Sequence[str], samples: Sequence[int], draws: int, plan: TargetPlan) -> list[Any]:
        """Return values of the target, with `draws` consecutive draws per sample."""
        data = self.data
        request = GenerationRequest(
            model=data.model, handles=data.handles, targets=[plan], numbers=range(0, len(samples) * draws, draws),
            tokens_of=lambda rows: ({name: data.tokens(name, [samples[row] for row in rows]) for name in inputs}, {}),
            seed=self.config.seed, draws=draws, stride=1, batch=self.config.batch_size * draws,
        )  # fmt: skip
        return [sample.value for sample in request.generate()[plan.name]]

    def _score(self, inputs: Sequence[str], target: str) -> dict[str, Any]:
        """Return an entry of "pairs"."""
        data, draws = self.data, self.config.draws
        samples = data.samples((*inputs, target), self.config.samples)
        temperature = self.config.temperature if draws > 1 else 0.0
        plan = TargetPlan(name=target, temperature=temperature, top_p=1, steps=self.config.steps)
        values = self._draw(inputs, samples, draws, plan)
        if draws > 1:
            of_samples = (values[first : first + draws] for first in range(0, len(values), draws))
            values = [data.handles[target].constant_baseline(of_sample) for of_sample in of_samples]
        score, (baseline, reconstruction) = data.score(target, values, samples), data.bounds(target, samples)
        main = data.handles[target].spec.metrics[0]
        skill = partial(skill_score, higher_is_better=main.higher_is_better)
        resampled = map(skill, score.resampled, baseline.resampled, reconstruction.resampled)
        return {
            "inputs": list(inputs),
            "target": target,
            "samples": len(samples),
            "score": score.scores,
            "constant_baseline": baseline.scores,
            "reconstruction": reconstruction.scores,
            "skill": skill(score.scores[main.name], baseline.scores[main.name], reconstruction.scores[main.name]),
            "resampled_skill": [None if number is None else round(number, 5) for number in resampled],
        }

    def _gallery(self, inputs: Sequence[str], target: str) -> dict[str, Any]:
        """Draw a gallery, and return its entry of "galleries"."""
        data, draws = self.data, self.config.gallery_draws
        samples = data.samples((*inputs, target), self.config.gallery_samples)
        values = self._draw(inputs, samples, draws, TargetPlan(name=target))
        columns = {name: data.truth(name, samples) for name in inputs}
        columns |= {f"{target} {draw + 1}": values[draw::draws] for draw in range(draws)}
        columns[f"true {target}"] = data.truth(target, samples)
        handles = [data.handles[name] for name in (*inputs, *[target] * (draws + 1))]
        rendered = (map(handle.render, column) for handle, column in zip(handles, columns.values(), strict=True))
        rows = list(zip(*rendered, strict=True))
        picture, keys = f"{GALLERY}/{sheet_name(inputs, target)}", list(map(data.split.key, samples))
        gallery = write_gallery(self.folder, picture, list(columns), keys, rows)
        return {"inputs": list(inputs), "target": target, **gallery}


@torch.inference_mode()
def cross_entropy(data: EvaluationData) -> dict[str, Any]:
    """Return the table "cross_entropy" of evaluation.json, with tokens of the training's tokenizers only.

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
    return {
        "samples": len(samples),
        "tokens_of": list(names),
        "modalities": {
            spec.name: {"nats": total / count, "uniform": math.log(spec.vocab_size), "targets": int(count)}
            for spec, total, count in zip(layout.specs, sums.tolist(), counts.tolist(), strict=True)
            if count
        },
    }


def skill_score(
    score: float | None, baseline: float | None, reconstruction: float | None, higher_is_better: bool
) -> float | None:
    """Return (score - baseline) / (reconstruction - baseline): 0 is the constant baseline, 1 the reconstruction.

    None if a score is missing, or the reconstruction is not better than the baseline.
    """
    if score is None or baseline is None or reconstruction is None:
        return None
    gain = reconstruction - baseline if higher_is_better else baseline - reconstruction
    if gain <= 1e-9 * max(abs(reconstruction), abs(baseline), 1e-300):
        return None
    return (score - baseline) / (reconstruction - baseline)
