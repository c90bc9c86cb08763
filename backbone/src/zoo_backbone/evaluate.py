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
import math
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from tokenizers_zoo.checkpoint import load_config
from tokenizers_zoo.config import check_amounts, check_counts, from_mapping
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
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature: expected a number above 0, got {self.temperature:g}")


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
    pictures first. Finished pairs of the same evaluation are kept. Modalities without test tokens, values or their
    tokenizer, and pairs without a common test sample or a training value, are left out with the reason. Model and
    tokenizers run on `device`. Raises DataError if these were named, or there are no training values, and FolderError
    if `out` holds anything else and not `overwrite`.
    """
    run, config = Path(run), config or EvaluationConfig()
    model = load_model(run, device=device).eval()
    card = load_config(run, CLASS)
    data = EvaluationData(
        zoo, model.layout.names, card["fingerprints"], tokens_root, data_root, config.seed, model.layout.specs
    )  # fmt: skip
    if TRAIN not in data.values.splits():
        raise DataError(f"{data.values.root}: no split {TRAIN!r}, which the constant baseline is fitted to")
    for handle in data.handles.values():
        handle.device = device
    pairs = chosen_pairs(model, data, inputs, targets)
    if not pairs and data.problems:
        raise DataError(f"{run}: no modality can be predicted from another one; {left_out_text(data.problems)}")
    identity = {
        "weights": card["weights_sha256"],
        "settings": dataclasses.asdict(config),
        "tokenizers": {name: column.fingerprint for name, column in data.columns.items()},
        "samples": samples_digest(data.columns),
        "values": {f"{split}/{name}": data.contents(split, name) for split in (TRAIN, TEST) for name in data.handles},
        "decoders": {name: decoder_of(handle) for name, handle in data.handles.items()},
    }
    masking = from_mapping(MaskingConfig, card.get("train", {}).get("masking", {}))  # imported models have none
    folder = run / FOLDER if out is None else Path(out)
    places = {"run": run, "tokens": Path(tokens_root), "data": data.values.root}
    with (
        RunFolder(
            folder, EVALUATION, identity, places={key: str(place.resolve()) for key, place in places.items()}
        ).open(overwrite) as state,
        locked(folder),
    ):
        evaluation = _Evaluation(folder, model, data, config, identity)
        evaluation.describe()
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
        self.result: dict[str, Any] = {} if found is None else read_table(found, "identity", "pairs", "galleries")
        self.result |= {"identity": identity}
        for key, empty in (("pairs", []), ("galleries", []), ("unreadable", {}), ("seconds", 0.0)):
            self.result.setdefault(key, empty)
        self._started = time.perf_counter() - self.result["seconds"]

    def _write(self) -> None:
        self.result["seconds"] = round(time.perf_counter() - self._started, 3)
        for place, reasons in self.data.unreadable.items():
            self.result["unreadable"].setdefault(place, {}).update(reasons)
        write_json(self.folder / UNFINISHED, self.result)

    def describe(self) -> None:
        """Describe the modalities, and which are left out."""
        self.result["modalities"] = {
            name: {
                "summary": handle.spec.summary,
                "layout": layout_to_json(handle.spec.layout),
                "vocab_size": handle.spec.vocab_size,
                "test_samples": self.data.columns[name].count,
                "metrics": [dataclasses.asdict(metric) for metric in handle.spec.metrics],
            }
            for name, handle in self.data.handles.items()
        }
        self.result["skipped"] = dict(self.data.problems)

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

    def measure_pairs(self, pairs: Sequence[Pair], named: bool = True) -> None:
        """Score the remaining pairs, and draw the galleries of the first ones.

        A pair that cannot be scored is left out with the reason, or raises DataError if the pairs are `named`.
        """
        scored = {pair_of(entry) for entry in self.result["pairs"]}
        self.result["galleries"] = [
            entry for entry in self.result["galleries"]
            if entry["picture"] is None or (self.folder / entry["picture"]).is_file()
        ]  # fmt: skip
        drawn = {pair_of(entry) for entry in self.result["galleries"]}
        longest = max(map(title_of, pairs), key=len, default="")
        work = [
            self._work(pair[1], pair not in scored, self._draws_gallery(pair, drawn, place))
            for place, pair in enumerate(pairs)
        ]
        totals = {
            f"evaluate {longest}": len(pairs),
            f"generate {longest}": sum(steps for steps, _ in work),
            f"decode {longest}": sum(values for _, values in work),
        }
        with progress_bars(totals) as (advance, generated, decoded):
            number = 0  # among the pairs that can be scored
            for pair, (steps, values) in zip(pairs, work, strict=True):
                title = title_of(pair)
                advance(0, f"evaluate {title}")
                with (
                    part_of(generated, steps, f"generate {title}") as step,
                    part_of(decoded, values, f"decode {title}") as value,
                    decoded_samples(value),
                ):
                    if pair in scored or self._possible(pair, named):
                        if pair not in scored:
                            self.result["pairs"].append(self._score(pair, step))
                            self._write()
                        if self._draws_gallery(pair, drawn, number):
                            self.result["galleries"].append(self._gallery(pair, step))
                            self._write()
                        number += 1
                advance(1)
        order = {pair: number for number, pair in enumerate(pairs)}
        for key in ("pairs", "galleries"):
            self.result[key].sort(key=lambda entry: order.get(pair_of(entry), len(order)))
        self._write()

    def _draws_gallery(self, pair: Pair, drawn: Collection[Pair], number: int) -> bool:
        return pair not in drawn and number < self.config.gallery_pairs

    def _work(self, target: str, scores: bool, draws: bool) -> tuple[int, int]:
        """Return upper bounds on the decoding steps and decoded values of a pair, for the progress bars."""
        config = self.config
        steps = values = 0
        for wanted, samples, each, plan in (
            (scores, config.samples, config.draws, self._scored_plan(target)),
            (draws, config.gallery_samples, config.gallery_draws, _gallery_plan(target)),
        ):
            if wanted:
                steps += -(-samples // config.batch_size) * plan_steps(self.model, [plan])
                values += samples * each
        return steps, values + (config.samples if scores else 0)

    def _scored_plan(self, target: str) -> TargetPlan:
        temperature = self.config.temperature if self.config.draws > 1 else 0.0
        return TargetPlan(name=target, temperature=temperature, steps=self.config.steps)

    def _possible(self, pair: Pair, named: bool) -> bool:
        """Return whether a pair has samples and training values; note the reason, or raise it if `named`."""
        inputs, target = pair
        try:
            self.data.keys([*inputs, target], self.config.samples)
            self.data.constant(target, self.config.baseline_samples)
        except DataError as error:
            if named or isinstance(error, ReadError):  # an error of the disk, not of the data
                raise
            self.result["skipped"][title_of(pair)] = str(error)
            return False
        return True

    def _draw(self, pair: Pair, keys: Sequence[str], draws: int, plan: TargetPlan, advance: Advance) -> Any:
        """Return tokens of the target, with `draws` consecutive draws per sample: a tensor, or a list for sequences."""
        inputs, target = pair
        once = {target: self.data.handles[target].single_ids()}
        parts = []
        for start in range(0, len(keys), self.config.batch_size):
            here = keys[start : start + self.config.batch_size]
            numbers = range(start * draws, (start + len(here)) * draws)
            tokens = {name: self.data.tokens(name, here) for name in inputs}
            found = generate(
                self.model, tokens, [plan], self.config.seed, numbers, draws=draws, once=once, advance=advance
            )
            parts.append(found[target])
        return torch.cat(parts) if isinstance(parts[0], torch.Tensor) else [row for part in parts for row in part]

    def _score(self, pair: Pair, advance: Advance) -> dict[str, Any]:
        """Return an entry of "pairs"."""
        inputs, target = pair
        config = self.config
        keys = self.data.keys([*inputs, target], config.samples)
        reference = self.data.reference(target, keys, config.baseline_samples, config.batch_size)
        start = time.perf_counter()
        tokens = self._draw(pair, keys, config.draws, self._scored_plan(target), advance)
        generated = time.perf_counter()
        decoding: list[float] = []
        values = timed(self.data.decoded(target, tokens, config.batch_size), decoding)
        predicted = self.data.combined(target, values, config.draws)
        combined = time.perf_counter()
        score = self.data.score(target, predicted, reference.truth)
        main = self.data.handles[target].spec.metrics[0]
        baseline, best = reference.baseline, reference.reconstruction
        skill = skill_score(score[main.name], baseline[main.name], best[main.name], main.higher_is_better)
        return {
            "inputs": list(inputs),
            "target": target,
            "samples": len(keys),
            "score": score,
            "constant_baseline": baseline,
            "reconstruction": best,
            "skill": skill,
            "seconds": {
                "generate": round(generated - start, 4),
                "decode": round(sum(decoding), 4),
                "combine": round(combined - generated - sum(decoding), 4),
            },
        }

    def _gallery(self, pair: Pair, advance: Advance) -> dict[str, Any]:
        """Draw a gallery, and return its entry of "galleries"."""
        inputs, target = pair
        draws = self.config.gallery_draws
        keys = self.data.keys([*inputs, target], self.config.gallery_samples)
        tokens = self._draw(pair, keys, draws, _gallery_plan(target), advance)
        values = list(self.data.decoded(target, tokens, self.config.batch_size))
        columns = [list(map(self.data.handles[name].render, self.data.truth(name, keys))) for name in inputs]
        show = self.data.handles[target].render
        columns += [[show(value) for value in values[draw::draws]] for draw in range(draws)]
        columns.append([show(value) for value in self.data.truth(target, keys)])
        headers = [*inputs, *(f"{target} {draw + 1}" for draw in range(draws)), f"true {target}"]
        rows = list(zip(*columns, strict=True))
        picture = f"{GALLERY}/{sheet_name(inputs, target)}"
        return {
            "inputs": list(inputs),
            "target": target,
            "picture": picture if write_sheet(self.folder / picture, headers, rows) else None,
            "columns": headers,
            "rows": [{"key": key, "cells": list(map(text_of, row))} for key, row in zip(keys, rows, strict=True)],
        }


def _gallery_plan(target: str) -> TargetPlan:
    return TargetPlan(name=target, top_p=0.95)


def timed(items: Iterable[Any], seconds: list[float]) -> Iterator[Any]:
    """Yield the items, and append the seconds that each takes to the list."""
    start = time.perf_counter()
    for item in items:
        seconds.append(time.perf_counter() - start)
        yield item
        start = time.perf_counter()


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
    metrics = {target: result["modalities"][target]["metrics"][0] for _, target in entries}
    first = min(max([len("input"), *(len(" + ".join(inputs)) for inputs in sources)]), width // 3)
    tables: list[Table] = []
    for group in _groups_that_fit({name: metric["name"] for name, metric in metrics.items()}, width - first):
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("input", overflow="fold", max_width=width // 3)
        for target in group:
            table.add_column(f"{target}\nskill", justify="right", no_wrap=True)
            table.add_column(f"\n{metrics[target]['name']}", justify="right", no_wrap=True)
        for inputs in sources:
            cells = [
                cell for target in group for cell in _cells(entries.get((inputs, target)), metrics[target]["name"])
            ]
            table.add_row(" + ".join(inputs), *cells)
        tables.append(table)
    return tables


def _groups_that_fit(metrics: dict[str, str], width: int) -> list[list[str]]:
    groups: list[list[str]] = []
    room = 0
    for name, metric in metrics.items():
        columns = max(len(name) + 2, NUMBER) + max(len(metric) + 2, NUMBER)
        if not groups or room < columns:
            groups.append([])
            room = width
        groups[-1].append(name)
        room -= columns
    return groups


def _cells(entry: dict[str, Any] | None, metric: str) -> Sequence[str]:
    if entry is None:
        return "[dim]·[/]", ""
    skill, score = entry["skill"], entry["score"].get(metric)
    raw = "-" if score is None else f"{score:.3g}"
    if skill is None:
        return "[dim]-[/]", raw
    style = "green" if skill >= 0.5 else "yellow" if skill > 0.05 else "red"
    return f"[{style}]{skill:z.2f}[/]", raw
