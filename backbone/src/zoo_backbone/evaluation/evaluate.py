"""How well a trained backbone makes each modality from each other: figures, a table, and galleries.

evaluation.json, in RUN/evaluation or another folder, is written anew after every pair, so that one that was interrupted
goes on where it was:

    identity       what the figures belong to: {"weights": sha256 of the weights, "settings": EvaluationConfig,
                   "codecs": {name: fingerprint}, "data" and "tokens": their folders, "samples": sha256 of the test
                   samples' keys and tokens, "values": {"<split>/<name>": of the shards}, "decoders": {name: sha256 of
                   the tokenizer and the settings that values are made and judged with}}. Earlier versions did not note
                   the last five: such figures are made anew
    complete       true once every pair asked for is there
    modalities     {name: {"summary", "layout", "vocab_size", "test_samples",
                   "metrics": [{"name", "unit", "higher_is_better", "meaning"}]}}; the first metric is the main one
    skipped        {name: reason} for modalities of the backbone that could not be evaluated, and, as "a + b to c", for
                   pairs that nobody named and that have no sample, or no training value, to be scored with
    unreadable     {"<split>/<name>": {key: reason}}: values that were asked for, cannot be read, and were left out
    cross_entropy  {"samples", "tokens_of": [names], "modalities": {name: {"nats", "uniform", "targets"}}} on test
                   samples, of which the tokens of the training's codecs are seen, masked as in training (an imported
                   one: by the default settings): mean per target token, and log(vocab_size), which is knowing
                   nothing; or {"problem"}. Earlier versions did not note tokens_of: they saw all
    pairs          [{"inputs": [names], "target": name, "samples", "score", "constant_baseline", "reconstruction",
                   "skill", "seconds": {"generate", "decode", "combine"}}] in the order of the command. The scores map
                   metric names to numbers (null: not finite), over the same test samples: of the predictions, of the
                   best constant prediction for training values, and of the tokenizer's reconstruction of the truth.
                   skill is (score - constant_baseline) / (reconstruction - constant_baseline) of the main metric; null
                   if the reconstruction is not better than the baseline
    galleries      [{"inputs", "target", "picture": path relative to the folder, or null, "columns": [headers],
                   "rows": [{"key", "cells": [text, or null where the picture shows it]}]}]: the given values, several
                   draws, the truth
    seconds        time spent so far

The scored prediction minimises the expected error (minimum Bayes risk, Kumar and Byrne, NAACL 2004): it is the best
single value for several draws. A single draw would add its own spread to the error. The constant baseline is the best
single value for training values, so a model that knows only the distribution of values has a skill of about 0.
Galleries show the draws.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from tokenizers_zoo.checkpoint import load_config
from tokenizers_zoo.config import from_mapping
from tokenizers_zoo.data.samples import TEST, TRAIN
from tokenizers_zoo.data.tokens import samples_digest
from tokenizers_zoo.errors import DataError, ReadError
from tokenizers_zoo.io import difference, held, read_table, write_json
from tokenizers_zoo.progress import Advance, decoded_samples, part_of, progress_bars, say
from tokenizers_zoo.registry import ModalityHandle, Zoo
from tokenizers_zoo.spec import layout_to_json
from zoo_backbone.checkpoint import CLASS, load_model
from zoo_backbone.config import MaskingConfig
from zoo_backbone.evaluation.config import EvaluationConfig
from zoo_backbone.evaluation.data import EvaluationData, left_out_text, skill_score
from zoo_backbone.evaluation.gallery import sheet_name, text_of, write_sheet
from zoo_backbone.evaluation.loss import cross_entropy
from zoo_backbone.evaluation.pairs import Pair, chosen_pairs, pair_of, title_of
from zoo_backbone.generate import TargetPlan, generate
from zoo_backbone.generate.sampler import plan_steps
from zoo_backbone.model import FourM

FOLDER, FILE, GALLERY = "evaluation", "evaluation.json", "gallery"
BUSY = "{}: another zoo backbone eval writes it right now; wait for its end, or stop it"


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
) -> dict[str, Any]:
    """Evaluate the backbone in `run` and write the folder `out` (RUN/evaluation); gives what evaluation.json holds.

    Every set of `given` modalities is asked for every one of `targets` that is not in it. Defaults: each modality
    alone, and all discrete ones, picture-like ones first. Pairs that an earlier evaluation of the same identity (see
    above) has finished are kept; a gallery whose picture is gone is drawn again. Modalities that cannot be evaluated
    (no test tokens or values, another codec than that of the training), and pairs that cannot be scored (no common test
    sample, no training value), are left out with the reason; raises DataError where that modality, or both sides of
    that pair, were named, where `out` holds something else, and where there are no training values at all; and
    CheckpointError where another evaluation writes it. Model and tokenizers run on `device`.
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
        "codecs": {name: column.fingerprint for name, column in data.columns.items()},
        "data": str(Path(data_root).resolve()),
        "tokens": str(Path(tokens_root).resolve()),
        "samples": samples_digest(data.columns),
        "values": _digests(data),
        "decoders": {name: decoder_of(handle) for name, handle in data.handles.items()},
    }
    trained = card.get("train", {})  # how it was, which an imported one does not say
    folder = run / FOLDER if out is None else Path(out)
    if out is not None:
        check_own(folder, identity)
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder, BUSY.format(folder)):
        evaluation = _Evaluation(folder, model, data, config, identity)
        evaluation.describe()
        evaluation.measure_loss(Path(tokens_root), from_mapping(MaskingConfig, trained.get("masking", {})))
        evaluation.measure_pairs(pairs, named=inputs is not None and targets is not None)
    return read_table(folder / FILE)


def check_own(folder: Path, identity: Mapping[str, Any]) -> None:
    """Raise DataError where a folder holds something else than an evaluation of the same weights, tokens and data."""
    if not folder.exists():
        return
    inside = [path.name for path in folder.iterdir()] if folder.is_dir() else ["a file"]
    for name in sorted(inside):
        if name not in (FILE, GALLERY) and not name.startswith("."):  # such as what a killed one leaves
            raise DataError(f"{folder}: expected an evaluation, or nothing, found {name}; give another --out")
    if FILE in inside:
        found = read_table(folder / FILE, "identity", "pairs", "galleries")["identity"]
        for key in ("weights", "tokens", "data"):
            if not isinstance(found, Mapping) or found.get(key) != identity[key]:
                raise DataError(f"{folder}: has the scores of other {key}; give another --out")


def decoder_of(handle: ModalityHandle) -> str:
    """sha256 (hex) of what a modality's figures depend on beside tokens and values.

    A tokenizer with another decoder, or one that samples otherwise, may go on with the same tokens. A shared vocabulary
    that has grown since reads those that it had as before.
    """
    codec = "" if handle.spec.shares_checkpoint else handle.fingerprint
    return hashlib.sha256(repr((codec, handle.known_settings())).encode()).hexdigest()


def _digests(data: EvaluationData) -> dict[str, str]:
    """Of all shards of values that figures may come from: test values, and training values for the floor."""
    store = data.values
    return {
        f"{split}/{name}": store.contents(split, name)
        for split in (TRAIN, TEST)
        if split in store.splits()
        for name in data.handles
        if name in store.modalities(split)
    }


class _Evaluation:
    """One evaluation while it runs; `result` is what evaluation.json holds."""

    def __init__(
        self, folder: Path, model: FourM, data: EvaluationData, config: EvaluationConfig, identity: dict[str, Any]
    ) -> None:
        self.folder, self.model, self.data, self.config = folder, model, data, config
        self.result: dict[str, Any] = {"identity": identity}
        if (folder / FILE).is_file():
            earlier = read_table(folder / FILE, "identity", "pairs", "galleries")
            if earlier["identity"] == identity:
                self.result = earlier
            elif earlier["pairs"]:
                changed = difference(earlier["identity"], identity)
                say(Console(stderr=True), f"{folder / FILE}: its scores give way to others ({changed})")
        self.result.setdefault("pairs", [])
        self.result.setdefault("galleries", [])
        self.result.setdefault("unreadable", {})
        self._spent = float(self.result.get("seconds", 0.0))
        self._started = time.perf_counter()

    def _write(self, complete: bool = False) -> None:
        self.result["complete"] = complete
        self.result["seconds"] = round(self._spent + time.perf_counter() - self._started, 3)
        for place, reasons in self.data.unreadable.items():
            self.result["unreadable"].setdefault(place, {}).update(reasons)
        write_json(self.folder / FILE, self.result)

    def describe(self) -> None:
        """Note what the modalities are, and which are left out."""
        self.result["modalities"] = {
            name: {
                "summary": handle.spec.summary,
                "layout": layout_to_json(handle.spec.layout),
                "vocab_size": handle.spec.vocab_size,
                "test_samples": len(self.data.columns[name]),
                "metrics": [dataclasses.asdict(metric) for metric in handle.spec.metrics],
            }
            for name, handle in self.data.handles.items()
        }
        self.result["skipped"] = dict(self.data.problems)

    def measure_loss(self, tokens: Path, masking: MaskingConfig) -> None:
        """Measure the cross-entropy of every modality's targets, unless an earlier run has.

        Tokens of another codec than that of the training are neither targets nor inputs.
        """
        names, earlier = self.data.tokens_of, self.result.get("cross_entropy", {})
        if "modalities" in earlier and earlier.get("tokens_of", list(self.model.layout.names)) == names:
            return
        try:
            self.result["cross_entropy"] = cross_entropy(self.model, tokens, names, masking, self.config)
        except DataError as error:
            self.result["cross_entropy"] = {"problem": str(error)}
        else:
            self._write()

    def measure_pairs(self, pairs: Sequence[Pair], named: bool = True) -> None:
        """Score every pair that has not been, and draw the galleries of the first ones.

        One that cannot be scored is left out with the reason, unless the pairs are `named`: then DataError is raised.
        """
        scored = {pair_of(entry) for entry in self.result["pairs"]}
        self.result["galleries"] = list(filter(self._has_picture, self.result["galleries"]))
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
            number = 0  # of those that can be scored
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
        self._write(complete=True)

    def _draws_gallery(self, pair: Pair, drawn: Collection[Pair], number: int) -> bool:
        """Whether a pair gets a gallery now; it has this number among those that can be scored."""
        return pair not in drawn and number < self.config.gallery_pairs

    def _work(self, target: str, scores: bool, draws: bool) -> tuple[int, int]:
        """How many steps of decoding, and values from a tokenizer, a pair takes at most, to be scored and drawn.

        It takes fewer where the data have fewer samples, or another pair of the target had them reconstructed.
        """
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
        """How answers are drawn."""
        temperature = self.config.temperature if self.config.draws > 1 else 0.0
        return TargetPlan(name=target, temperature=temperature, steps=self.config.steps)

    def _has_picture(self, gallery: dict[str, Any]) -> bool:
        """Whether an earlier gallery is still there: its picture may be gone."""
        return gallery["picture"] is None or (self.folder / gallery["picture"]).is_file()

    def _possible(self, pair: Pair, named: bool) -> bool:
        """Whether the data let a pair be scored; where not, the reason is noted, or raised where it was `named`."""
        given, target = pair
        try:
            self.data.keys([*given, target], self.config.samples)
            self.data.constant(target, self.config.baseline_samples)
        except DataError as error:
            if named or isinstance(error, ReadError):  # the disk is to blame for that, not the data
                raise
            self.result["skipped"][title_of(pair)] = str(error)
            return False
        return True

    def _draw(self, pair: Pair, keys: Sequence[str], draws: int, plan: TargetPlan, advance: Advance) -> Any:
        """Tokens of the target, `draws` of each sample one after the other: a tensor, or a list for sequences."""
        given, target = pair
        once = {target: self.data.handles[target].single_ids()}
        parts = []
        for start in range(0, len(keys), self.config.batch_size):
            here = keys[start : start + self.config.batch_size]
            numbers = range(start * draws, (start + len(here)) * draws)
            tokens = {name: self.data.tokens(name, here) for name in given}
            made = generate(
                self.model, tokens, [plan], self.config.seed, numbers, draws=draws, once=once, advance=advance
            )
            parts.append(made[target])
        return torch.cat(parts) if isinstance(parts[0], torch.Tensor) else [row for part in parts for row in part]

    def _score(self, pair: Pair, advance: Advance) -> dict[str, Any]:
        """One entry of "pairs"."""
        given, target = pair
        config = self.config
        keys = self.data.keys([*given, target], config.samples)
        reference = self.data.reference(target, keys, config.baseline_samples, config.batch_size)
        start = time.perf_counter()
        tokens = self._draw(pair, keys, config.draws, self._scored_plan(target), advance)
        generated = time.perf_counter()
        decoding: list[float] = []
        made = timed(self.data.decoded(target, tokens, config.batch_size), decoding)
        predicted = self.data.combined(target, made, config.draws)
        combined = time.perf_counter()
        score = self.data.score(target, predicted, reference.truth)
        main = self.data.handles[target].spec.metrics[0]
        return {
            "inputs": list(given),
            "target": target,
            "samples": len(keys),
            "score": score,
            "constant_baseline": reference.baseline,
            "reconstruction": reference.reconstruction,
            "skill": skill_score(
                score[main.name],
                reference.baseline[main.name],
                reference.reconstruction[main.name],
                main.higher_is_better,
            ),
            "seconds": {
                "generate": round(generated - start, 4),
                "decode": round(sum(decoding), 4),
                "combine": round(combined - generated - sum(decoding), 4),
            },
        }

    def _gallery(self, pair: Pair, advance: Advance) -> dict[str, Any]:
        """One entry of "galleries"; writes its picture."""
        given, target = pair
        draws = self.config.gallery_draws
        keys = self.data.keys([*given, target], self.config.gallery_samples)
        tokens = self._draw(pair, keys, draws, _gallery_plan(target), advance)
        made = list(self.data.decoded(target, tokens, self.config.batch_size))
        columns = [list(map(self.data.handles[name].render, self.data.truth(name, keys))) for name in given]
        show = self.data.handles[target].render
        columns += [[show(value) for value in made[draw::draws]] for draw in range(draws)]
        columns.append([show(value) for value in self.data.truth(target, keys)])
        headers = [*given, *(f"{target} {draw + 1}" for draw in range(draws)), f"true {target}"]
        rows = list(zip(*columns, strict=True))
        picture = f"{GALLERY}/{sheet_name(given, target)}"
        return {
            "inputs": list(given),
            "target": target,
            "picture": picture if write_sheet(self.folder / picture, headers, rows) else None,
            "columns": headers,
            "rows": [{"key": key, "cells": list(map(text_of, row))} for key, row in zip(keys, rows, strict=True)],
        }


def _gallery_plan(target: str) -> TargetPlan:
    """How what a gallery shows is drawn."""
    return TargetPlan(name=target, top_p=0.95)


def timed(items: Iterable[Any], seconds: list[float]) -> Iterator[Any]:
    """The same items; the seconds that each takes to come are added to the list."""
    start = time.perf_counter()
    for item in items:
        seconds.append(time.perf_counter() - start)
        yield item
        start = time.perf_counter()
