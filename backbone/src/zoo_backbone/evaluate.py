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
                   "skill", "seconds": {"generate", "decode", "combine"}}] in the order of the command. The scores map
                   metric names to numbers (null: not finite), over the same test samples: of the predictions, of the
                   best constant prediction for training values, and of the tokenizer's reconstruction of the truth.
                   skill is (score - constant_baseline) / (reconstruction - constant_baseline) of the main metric; null
                   if the reconstruction is not better than the baseline
    galleries      [{"inputs", "target", "picture": relative path or null, "columns": [headers],
                   "rows": [{"key", "cells": [text, or null if the picture shows it]}]}]: inputs, several draws, truth
    seconds        time spent

The scored prediction minimises the expected error (minimum Bayes risk, Kumar and Byrne, NAACL 2004): it is the best
single value for several draws. A single draw would add its own spread to the error. The constant baseline is the best
single value for training values, so a model that knows only the distribution of values has a skill of about 0.
Galleries show the draws.

During an evaluation, the same tables are in unfinished.json; a killed evaluation resumes from it. A finished evaluation
can be extended by further pairs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from tokenizers_zoo.checkpoint import load_config
from tokenizers_zoo.config import check_amounts, check_counts, check_interval, from_mapping
from tokenizers_zoo.data.samples import TEST, TRAIN
from tokenizers_zoo.data.tokens import samples_digest
from tokenizers_zoo.errors import DataError, ReadError
from tokenizers_zoo.io import read_table, write_json
from tokenizers_zoo.progress import Advance, decoded_samples, part_of, progress_bars
from tokenizers_zoo.registry import ModalityHandle, Zoo
from tokenizers_zoo.run_folder import RunFolder, RunKind, locked
from tokenizers_zoo.spec import layout_to_json
from zoo_backbone.checkpoint import CLASS, load_model
from zoo_backbone.config import MaskingConfig
from zoo_backbone.data import TokenData
from zoo_backbone.evaluation_data import EvaluationData, Pair, chosen_pairs, left_out_text, pair_of, title_of
from zoo_backbone.gallery import sheet_name, text_of, write_sheet
from zoo_backbone.generate import TargetPlan, generate
from zoo_backbone.generate.sampler import plan_steps
from zoo_backbone.masking import Masker
from zoo_backbone.model import FourM, uniform_loss

FOLDER, FILE, GALLERY, UNFINISHED = "evaluation", "evaluation.json", "gallery", "unfinished.json"
EVALUATION = RunKind(name="evaluation", files=(FILE, GALLERY), state=UNFINISHED, results=(FILE,))
NUMBER = 7
"""Width of a number in the terminal's tables."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """The table [eval]: pairs of inputs and target that `zoo backbone eval` scores."""

    inputs: tuple[tuple[str, ...], ...] | None = None
    """Sets of input modalities; absent: each modality alone. `--input` overrides it."""
    targets: tuple[str, ...] | None = None
    """Modalities predicted from each set; absent: all discrete ones. `--target` overrides it."""

    def __post_init__(self) -> None:
        for key, what in (("inputs", "set of modalities"), ("targets", "modality")):
            if getattr(self, key) == ():
                raise ValueError(f"{key}: expected at least one {what}; leave the key out for the default")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """Settings of an evaluation."""

    samples: int = 32
    """Held-out samples per pair."""
    baseline_samples: int = 256
    """Training values that the constant baseline is fitted to."""
    loss_samples: int = 256
    """Held-out samples for the cross-entropy."""
    batch_size: int = 32
    """Samples generated and decoded at a time."""
    draws: int = 16
    """Draws per sample. The scored prediction is the best single value for all draws (minimum expected error); 1: the
    most likely tokens, without sampling."""
    temperature: float = 0.7
    """Sampling temperature of the scored draws. Below 1, fewer draws are enough."""
    steps: int = 1
    """Decoding steps of scored grids and vectors. More steps make the tokens of a draw more consistent."""
    gallery_pairs: int = 24
    """Number of pairs with a gallery: the first ones."""
    gallery_samples: int = 4
    """Samples in a gallery."""
    gallery_draws: int = 3
    """Draws per sample in a gallery."""
    seed: int = 0
    """Seed of the choice of samples, of masks and of draws."""

    def __post_init__(self) -> None:
        counts = "samples", "baseline_samples", "loss_samples", "batch_size", "draws", "steps"
        check_counts(self, *counts, "gallery_samples", "gallery_draws")
        check_amounts(self, "gallery_pairs", "seed")
        check_interval(self, "(0, inf)", "temperature")


def evaluate(
    run: Path,
    zoo: Zoo,
    tokens_root: Path,
    data_root: Path,
    *,
    inputs: Sequence[Sequence[str]] | None = None,
    targets: Sequence[str] | None = None,
    config: EvaluationConfig | None = None,
    device: str = "cpu",
    out: Path | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Evaluate the backbone in `run` into `out` (default: RUN/evaluation), and return the content of evaluation.json.

    Every set of `inputs` predicts every target that is not in it. Defaults: each modality alone, and all discrete ones,
    pictures first. An input that the model reads in another form, such as `rgb` as `rgb_patches`, stands for that form.
    Finished pairs of the same evaluation are kept. Modalities without test tokens, values or their tokenizer, and pairs
    without a common test sample or a training value, are left out with the reason. Model and tokenizers run on
    `device`. Raises DataError if these were named, or there are no training values, and FolderError if `out` holds
    anything else and not `overwrite`.
    """
    run, config = Path(run), config or EvaluationConfig()
    model = load_model(run, device=device).eval()
    card = load_config(run, CLASS)
    data = EvaluationData(zoo, model.layout.specs, card["fingerprints"], tokens_root, data_root, config.seed)
    if TRAIN not in data.values.splits():
        raise DataError(f"{data.values.root}: no split {TRAIN!r}, which the constant baseline is fitted to")
    for handle in data.handles.values():
        handle.device = device
    pairs = chosen_pairs(model, data, zoo, inputs, targets)
    if not pairs and data.problems:
        raise DataError(f"{run}: no modality can be predicted from another one; {left_out_text(data.problems)}")
    contents = {}
    for split in (TRAIN, TEST):
        stored = data.values.modalities(split) if split in data.values.splits() else ()
        for name in data.handles:
            contents[f"{split}/{name}"] = data.values.contents(split, name) if name in stored else ""
    identity = {
        "weights": card["weights_sha256"],
        "settings": dataclasses.asdict(config),
        "tokenizers": {name: column.fingerprint for name, column in data.columns.items()},
        "samples": samples_digest(data.columns),
        "values": contents,
        "decoders": {name: decoder_of(handle) for name, handle in data.handles.items()},
    }
    masking = from_mapping(MaskingConfig, card.get("train", {}).get("masking", {}))  # imported models have none
    folder = run / FOLDER if out is None else Path(out)
    places = {"run": run, "tokens": Path(tokens_root), "data": data.values.root}
    recorded = {key: str(place.resolve()) for key, place in places.items()}
    with RunFolder(folder, EVALUATION, identity, recorded).open(overwrite) as state, locked(folder):
        evaluation = _Evaluation(folder, model, data, config, identity)
        evaluation.measure_loss(Path(tokens_root), masking)
        evaluation.measure_pairs(pairs, named=inputs is not None and targets is not None)
        write_json(folder / FILE, evaluation.result)
        state.finish(pairs=len(evaluation.result["pairs"]))
    return read_table(folder / FILE)


def decoder_of(handle: ModalityHandle) -> str:
    """Return the sha256 (hex) of a tokenizer and its settings; of a shared vocabulary, which may grow, its settings."""
    tokenizer = "" if handle.spec.shares_checkpoint else handle.fingerprint
    return hashlib.sha256(repr((tokenizer, handle.known_settings())).encode()).hexdigest()


class _Evaluation:
    """A running evaluation; `result` is the content of evaluation.json."""

    def __init__(
        self, folder: Path, model: FourM, data: EvaluationData, config: EvaluationConfig, identity: dict[str, Any]
    ) -> None:
        self.folder, self.model, self.data, self.config = folder, model, data, config
        found = next((folder / name for name in (UNFINISHED, FILE) if (folder / name).is_file()), None)
        earlier = {} if found is None else read_table(found, "identity", "pairs", "galleries")
        self.result: dict[str, Any] = {"pairs": [], "galleries": [], "unreadable": {}, "seconds": 0.0, **earlier}
        self.result |= {
            "identity": identity,
            "modalities": {
                name: {
                    "summary": handle.spec.summary,
                    "layout": layout_to_json(handle.spec.layout),
                    "vocab_size": handle.spec.vocab_size,
                    "test_samples": data.columns[name].count,
                    "metrics": [dataclasses.asdict(metric) for metric in handle.spec.metrics],
                }
                for name, handle in data.handles.items()
            },
            "skipped": dict(data.problems),
        }
        self._started = time.perf_counter() - self.result["seconds"]

    def _write(self) -> None:
        self.result["seconds"] = round(time.perf_counter() - self._started, 3)
        for place, reasons in self.data.unreadable.items():
            self.result["unreadable"].setdefault(place, {}).update(reasons)
        write_json(self.folder / UNFINISHED, self.result)

    def measure_loss(self, tokens: Path, masking: MaskingConfig) -> None:
        """Measure the cross-entropy of each modality's tokens, unless it is known.

        Tokens of another tokenizer than in training are neither targets nor inputs.
        """
        names, earlier = self.data.tokens_of, self.result.get("cross_entropy", {})
        if "modalities" in earlier and earlier["tokens_of"] == names:
            return
        try:
            self.result["cross_entropy"] = cross_entropy(self.model, tokens, names, masking, self.config)
        except DataError as error:
            self.result["cross_entropy"] = {"problem": str(error)}
        else:
            self._write()

    def measure_pairs(self, pairs: Sequence[Pair], named: bool) -> None:
        """Score the remaining pairs, and draw the galleries of the first ones.

        A pair that cannot be scored is left out with the reason, or raises DataError if the pairs are `named`.
        """
        config = self.config
        scored = {pair_of(entry) for entry in self.result["pairs"]}
        self.result["galleries"] = [
            entry for entry in self.result["galleries"]
            if entry["picture"] is None or (self.folder / entry["picture"]).is_file()
        ]  # fmt: skip
        drawn = {pair_of(entry) for entry in self.result["galleries"]}
        # Upper bounds on the decoding steps and decoded values of each pair, for the progress bars.
        steps, values = dict.fromkeys(pairs, 0), dict.fromkeys(pairs, 0)
        for number, pair in enumerate(pairs):
            scoring, gallery = self._plans(pair[1])
            if pair not in scored:
                steps[pair] += -(-config.samples // config.batch_size) * plan_steps(self.model, [scoring])
                values[pair] += config.samples * (config.draws + 1)
            if pair not in drawn and number < config.gallery_pairs:
                steps[pair] += -(-config.gallery_samples // config.batch_size) * plan_steps(self.model, [gallery])
                values[pair] += config.gallery_samples * config.gallery_draws
        longest = max(map(title_of, pairs), key=len, default="")
        totals = {
            f"evaluate {longest}": len(pairs),
            f"generate {longest}": sum(steps.values()),
            f"decode {longest}": sum(values.values()),
        }
        with progress_bars(totals) as (advance, generated, decoded):
            number = 0  # among the pairs that can be scored
            for pair in pairs:
                title = title_of(pair)
                advance(0, f"evaluate {title}")
                with (
                    part_of(generated, steps[pair], f"generate {title}") as step,
                    part_of(decoded, values[pair], f"decode {title}") as value,
                    decoded_samples(value),
                ):
                    if pair in scored or self._possible(pair, named):
                        if pair not in scored:
                            self.result["pairs"].append(self._score(pair, step))
                            self._write()
                        if pair not in drawn and number < config.gallery_pairs:
                            self.result["galleries"].append(self._gallery(pair, step))
                            self._write()
                        number += 1
                advance(1)
        order = {pair: number for number, pair in enumerate(pairs)}
        for key in ("pairs", "galleries"):
            self.result[key].sort(key=lambda entry: order.get(pair_of(entry), len(order)))
        self._write()

    def _plans(self, target: str) -> tuple[TargetPlan, TargetPlan]:
        """Return how draws are generated to be scored, and to be shown."""
        temperature = self.config.temperature if self.config.draws > 1 else 0.0
        scoring = TargetPlan(name=target, temperature=temperature, steps=self.config.steps)
        return scoring, TargetPlan(name=target, top_p=0.95)

    def _possible(self, pair: Pair, named: bool) -> bool:
        """Return whether a pair has samples and training values; note the reason, or raise it if `named`."""
        inputs, target = pair
        try:
            self.data.samples([*inputs, target], self.config.samples)
            self.data.constant(target, self.config.baseline_samples)
        except DataError as error:
            if named or isinstance(error, ReadError):  # an error of the disk, not of the data
                raise
            self.result["skipped"][title_of(pair)] = str(error)
            return False
        return True

    def _draw(self, pair: Pair, samples: Sequence[int], draws: int, plan: TargetPlan, advance: Advance) -> Any:
        """Return tokens of the target, with `draws` consecutive draws per sample: a tensor, or a list for sequences."""
        inputs, target = pair
        once = {target: self.data.handles[target].single_ids()}
        parts = []
        for start in range(0, len(samples), self.config.batch_size):
            here = samples[start : start + self.config.batch_size]
            numbers = range(start * draws, (start + len(here)) * draws)
            tokens = {name: self.data.tokens(name, here) for name in inputs}
            found = generate(
                self.model, tokens, [plan], self.config.seed, numbers, draws=draws, once=once, advance=advance
            )
            parts.append(found[target])
        return torch.cat(parts) if isinstance(parts[0], torch.Tensor) else [row for part in parts for row in part]

    def _score(self, pair: Pair, advance: Advance) -> dict[str, Any]:
        """Return an entry of "pairs"."""
        (inputs, target), data, config = pair, self.data, self.config
        samples = data.samples([*inputs, target], config.samples)
        truth, baseline, best = data.reference(target, samples, config.baseline_samples, config.batch_size)
        start = time.perf_counter()
        tokens = self._draw(pair, samples, config.draws, self._plans(target)[0], advance)
        generated = time.perf_counter()
        predicted, draws, combining = [], [], 0.0
        for value in data.decoded(target, tokens, config.batch_size):
            draws.append(value)
            if len(draws) == config.draws:
                before = time.perf_counter()
                predicted.append(value if config.draws == 1 else data.handles[target].constant_baseline(draws))
                combining += time.perf_counter() - before
                draws = []
        decoded = time.perf_counter()
        score = data.score(target, predicted, truth)
        main = data.handles[target].spec.metrics[0]
        return {
            "inputs": list(inputs),
            "target": target,
            "samples": len(samples),
            "score": score,
            "constant_baseline": baseline,
            "reconstruction": best,
            "skill": skill_score(score[main.name], baseline[main.name], best[main.name], main.higher_is_better),
            "seconds": {
                "generate": round(generated - start, 4),
                "decode": round(decoded - generated - combining, 4),
                "combine": round(combining, 4),
            },
        }

    def _gallery(self, pair: Pair, advance: Advance) -> dict[str, Any]:
        """Draw a gallery, and return its entry of "galleries"."""
        (inputs, target), data, draws = pair, self.data, self.config.gallery_draws
        samples = data.samples([*inputs, target], self.config.gallery_samples)
        tokens = self._draw(pair, samples, draws, self._plans(target)[1], advance)
        values = list(data.decoded(target, tokens, self.config.batch_size))
        columns = [list(map(data.handles[name].render, data.truth(name, samples))) for name in inputs]
        show = data.handles[target].render
        columns += [[show(value) for value in values[draw::draws]] for draw in range(draws)]
        columns.append([show(value) for value in data.truth(target, samples)])
        headers = [*inputs, *(f"{target} {draw + 1}" for draw in range(draws)), f"true {target}"]
        rows = list(zip(*columns, strict=True))
        picture = f"{GALLERY}/{sheet_name(inputs, target)}"
        return {
            "inputs": list(inputs),
            "target": target,
            "picture": picture if write_sheet(self.folder / picture, headers, rows) else None,
            "columns": headers,
            "rows": [
                {"key": data.key(sample), "cells": list(map(text_of, row))}
                for sample, row in zip(samples, rows, strict=True)
            ],
        }


@torch.inference_mode()
def cross_entropy(
    model: FourM, tokens: Path, names: Sequence[str], masking: MaskingConfig, config: EvaluationConfig
) -> dict[str, Any]:
    """Return the table "cross_entropy" of evaluation.json, with tokens of `names` only.

    Raises DataError if there is nothing to predict.
    """
    layout, size = model.layout, config.batch_size
    if not set(names) & set(layout.discrete):
        raise DataError(f"{tokens / TEST}: has no tokens to predict from a tokenizer of the training")
    data = TokenData(tokens, TEST, layout.specs, names=names)
    masker = Masker(layout, masking)
    chosen = np.random.default_rng(config.seed).permutation(len(data))[: config.loss_samples]
    device = model.token_embedding.weight.device
    sums, counts = np.zeros(len(layout)), np.zeros(len(layout))
    for step, start in enumerate(range(0, len(chosen), size)):
        batch = masker(data.batch(chosen[start : start + size]), config.seed, step)
        losses = model(batch.trimmed().to(device))
        sums, counts = sums + losses.sums.cpu().numpy(), counts + losses.counts.cpu().numpy()
    return {
        "samples": len(chosen),
        "tokens_of": list(names),
        "modalities": {
            spec.name: {"nats": total / count, "uniform": uniform_loss(spec.vocab_size), "targets": int(count)}
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


# --- the terminal's tables


def skill_tables(result: dict[str, Any], width: int = 80) -> list[Table]:
    """Return tables with a row for each input set and two columns for each target: skill score and main metric.

    Targets that do not fit into the width go to further tables. A dash marks a missing number, a dot a pair that was
    not evaluated.
    """
    entries = {pair_of(entry): entry for entry in result["pairs"]}
    sources = list(dict.fromkeys(inputs for inputs, _ in entries))
    metrics = {target: result["modalities"][target]["metrics"][0]["name"] for _, target in entries}
    first = min(max([len("input"), *(len(" + ".join(inputs)) for inputs in sources)]), width // 3)
    groups: list[list[str]] = []
    room = 0
    for target, metric in metrics.items():
        columns = max(len(target) + 2, NUMBER) + max(len(metric) + 2, NUMBER)
        if not groups or room < columns:
            groups.append([])
            room = width - first
        groups[-1].append(target)
        room -= columns
    tables = []
    for group in groups:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("input", overflow="fold", max_width=width // 3)
        for target in group:
            table.add_column(f"{target}\nskill", justify="right", no_wrap=True)
            table.add_column(f"\n{metrics[target]}", justify="right", no_wrap=True)
        for inputs in sources:
            cells = [" + ".join(inputs)]
            for target in group:
                entry = entries.get((inputs, target))
                skill, score = (None, None) if entry is None else (entry["skill"], entry["score"].get(metrics[target]))
                style = "dim" if skill is None else "green" if skill >= 0.5 else "yellow" if skill > 0.05 else "red"
                text = "·" if entry is None else "-" if skill is None else f"{skill:z.2f}"
                cells.append(f"[{style}]{text}[/]")
                cells.append("" if entry is None else "-" if score is None else f"{score:.3g}")
            table.add_row(*cells)
        tables.append(table)
    return tables
