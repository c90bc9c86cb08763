"""`zoo backbone generate`: generate into a folder, as values, tokens and pictures.

OUT/<key>/<draw>/<modality>.<ext>, .png, .tokens.json
OUT/<key>/ranking.json       with a scorer: {"by", "draws": their numbers, best first, "scores"}
OUT/done.jsonl               finished samples, each line with a checksum, until all are finished
OUT/sheet.png                inputs and results of the first samples, side by side
OUT/plan.toml                written last
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tokenizers_zoo.contract.validation import describe
from tokenizers_zoo.errors import ConfigError, DataError, InvalidValueError
from tokenizers_zoo.files.run_folder import RunFolder, RunKind
from tokenizers_zoo.files.tar import key_problem, shown_name
from tokenizers_zoo.machine.progress import progress_bar
from tokenizers_zoo.records.io import line_text, read_regular, replacing_file, write_table
from tokenizers_zoo.stores.tokens import read_tokens
from zoo_backbone.generate.plans import GenerationPlan, TargetPlan, written_plan
from zoo_backbone.generate.request import BATCH, TOKENS, blocks, taken
from zoo_backbone.generate.sampler import generate
from zoo_backbone.measure.gallery import Shown, write_sheet
from zoo_backbone.model.fourm import FourM
from zoo_backbone.use.any_to_any import AnyToAny
from zoo_backbone.use.plan_request import PlanRequest

PLAN, RANKING, DONE, SHEET = "plan.toml", "ranking.json", "done.jsonl", "sheet.png"
GENERATION = RunKind(name="generation", files=(PLAN, RANKING, SHEET, "[0-9]*"), state=DONE, results=(PLAN,))
SHEET_ROWS, SHEET_DRAWS = 16, 4
"""Most samples, and most draws of each, in the sheet."""
Scorer = Callable[[Mapping[str, Any], Mapping[str, Any]], Sequence[float]]
"""Maps input and generated tokens, a row per draw, to a number per draw; larger is better."""


def generate_to_folder(
    pipeline: AnyToAny,
    plan: GenerationPlan,
    out: Path,
    tokens: Path,
    scorer: Scorer | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Carry out a plan, and return the folders of all draws. `tokens` is the store of stored samples.

    With a scorer, or `plan.rank`, draw 0 is the best. A killed call resumes after the finished samples, unless it has a
    scorer. Raises FolderError if `out` holds anything else and not `overwrite`, and other ZooErrors for settings and
    inputs that do not fit, before anything is written.
    """
    model, out = pipeline.model, Path(out)
    request = PlanRequest(plan, pipeline, tokens)
    for name in request.names:
        if reason := key_problem(name):
            raise DataError(f"split {plan.split}: sample {name!r}: {reason}; no file can be written for it")
    for file in sorted(request.read_files):
        if overwrite and out.resolve() in file.parents:
            raise ConfigError(f"{file}: is an input and would be overwritten; give another --out")
    paths, weights = {"backbone": str(pipeline.run.folder.resolve())}, model.weights_sha256
    written = written_plan(request.plan, {**paths, "weights sha256": weights})
    for line in written.splitlines():
        if line != shown_name(line):
            raise ConfigError(f"{shown_name(line)}: is not UTF-8, so {PLAN} cannot name it; rename the file or folder")
    scored_by = os.urandom(8).hex() if scorer else None  # a function has no identity
    if plan.rank:
        if scorer:
            raise ConfigError(f"rank {plan.rank}: expected either rank or a scorer, got both")
        targets = [target.name for target in request.targets]
        scorer = Agreement(model, plan.rank, request.handles[plan.rank].decode, request.input_names, targets)
    identity = {
        "plan": dataclasses.asdict(request.plan),
        "weights": weights,
        "device": str(pipeline.device),
        "scorer": scored_by,
        "inputs": request.digest(BATCH),
    }
    with RunFolder(out, GENERATION, identity, paths).open(overwrite) as state:
        if state.finished is None:
            lines = {*((read_regular(out / DONE) or b"") if state.resuming else b"").splitlines(keepends=True)}
            done = {name for name in request.names if line_text({"sample": name}).encode() in lines}
            _generate_rows(request, out, scorer, done)
            _write_sheet(request, out)
            with replacing_file(out / PLAN) as temporary:
                temporary.write_text(written, encoding="utf-8")
            state.finish(samples=len(request.names))
    return sorted(out / name / str(draw) for name in request.names for draw in range(plan.draws))


def _generate_rows(request: PlanRequest, out: Path, scorer: Scorer | None, done: set[str]) -> None:
    """Draw, decode, rank and write the samples that are not `done`."""
    draws = request.draws
    remaining_rows = [row for row, name in enumerate(request.names) if name not in done]
    with progress_bar("generate", len(remaining_rows) * draws) as advance:
        for rows, generated in request.draw(remaining_rows, advance=advance):
            scores: list[float] = []
            if scorer:
                draw_inputs, _ = request.tokens_of([row for row in rows for _ in range(draws)])
                tokens = {name: [sample.tokens for sample in samples] for name, samples in generated.items()}
                scores = [float(score) for score in scorer(draw_inputs, tokens)]
                if len(scores) != len(rows) * draws or any(map(math.isnan, scores)):
                    expected = f"a number for each of {len(rows) * draws} draws"
                    raise InvalidValueError(f"rank: expected {expected}, got {describe(scores)}")
            for number, row in enumerate(rows):
                first, order, folder = number * draws, list(range(draws)), out / request.names[row]
                if scorer:
                    sample_scores = scores[first : first + draws]
                    order = best_first(sample_scores)
                    ranked_scores = [sample_scores[draw] for draw in order]
                    ranking = {"by": request.plan.rank or "scorer", "draws": order, "scores": ranked_scores}
                    write_table(folder / RANKING, ranking)
                for rank, draw in enumerate(order):
                    for samples in generated.values():
                        samples[first + draw].save(folder / str(rank))
                with open(out / DONE, "a", encoding="utf-8") as lines:
                    lines.write(line_text({"sample": request.names[row]}))


def _write_sheet(request: PlanRequest, out: Path) -> None:
    """Write a picture with a row per sample: its inputs, and the first draws of each target."""
    rows, draws = range(min(SHEET_ROWS, len(request.names))), range(min(SHEET_DRAWS, request.draws))
    columns: dict[str, list[Shown]] = {}
    for name, tokens in request.tokens_of(rows)[0].items():
        values = request.handles[name].decode_if_able(tokens)
        columns |= {} if values is None else {request.titles[name]: list(map(request.handles[name].render, values))}
    for target, draw in itertools.product(request.targets, draws):
        handle, title = request.handles[target.name], f"generated {target.name}"
        files = [out / request.names[row] / str(draw) / f"{target.name}{TOKENS}" for row in rows]
        values = [handle.decode([read_tokens(handle, file)])[0] for file in files]
        columns[f"{title} {draw + 1}" if len(draws) > 1 else title] = list(map(handle.render, values))
    write_sheet(out / SHEET, list(columns), list(zip(*columns.values(), strict=True)))


# --- ranking


class Agreement:
    """Scores draws by self-consistency with their inputs.

    The modality `name` is predicted from the targets of a draw alone, by the most likely tokens in one step, and
    compared with the input, or with its prediction from the inputs. Both are decoded; the score is the cosine of the
    two values as vectors. Details that the model does not see are not scored. Raises ConfigError if there is nothing to
    compare, or nothing numeric.
    """

    def __init__(
        self,
        model: FourM,
        name: str,
        decode: Callable[[Any], Sequence[Any]],
        inputs: Collection[str],
        targets: Collection[str],
    ) -> None:
        self.model, self.name, self.decode = model, name, decode
        self.plan = [TargetPlan(name=name, temperature=0, steps=1)]
        value = model.layout.spec(name).value
        if value.kind != "array" or value.classes or value.dtype.startswith("int"):
            kind = "ids or other whole numbers" if value.kind == "array" else value.kind
            expected = "expected a numeric modality, such as a global vector"
            raise ConfigError(f"rank {name}: draws are compared as vectors, and its values are {kind}; {expected}")
        if name in targets:
            raise ConfigError(f"rank {name}: is a target itself; rank by another modality")
        if not inputs:
            raise ConfigError(f"rank {name}: there is no whole input to compare draws with")

    def __call__(self, inputs: Mapping[str, Any], generated: Mapping[str, Any]) -> list[float]:
        """Return the score of each row."""
        condition = {self.name: inputs[self.name]} if self.name in inputs else inputs
        return list(map(cosine, self._vectors(condition), self._vectors(generated)))

    def _vectors(self, tokens: Mapping[str, Any]) -> Iterator[np.ndarray[Any, Any]]:
        """Yield the modality's values, or their predictions from the other modalities."""
        for rows in blocks(range(len(next(iter(tokens.values())))), BATCH):
            block = taken(tokens, rows)
            scored_tokens = block.get(self.name)
            if scored_tokens is None:
                scored_tokens = generate(self.model, block, self.plan, seed=0)[self.name]
            for value in self.decode(scored_tokens):
                yield np.asarray(value, np.float64).ravel()


def best_first(scores: Sequence[float]) -> list[int]:
    """Return the numbers of a sample's draws, best first."""
    return sorted(range(len(scores)), key=lambda draw: -scores[draw])


def cosine(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    """Return the cosine of two vectors; 0 if a vector is 0."""
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / size if size else 0.0
