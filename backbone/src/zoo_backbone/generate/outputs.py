"""`zoo backbone generate`: generate into a folder, as values, tokens and pictures.

OUT/<key>/<draw>/<modality>.<ext>, .png, .tokens.json
OUT/<key>/ranking.json       with a scorer: {"by", "draws": their numbers, best first, "scores"}
OUT/done.jsonl               finished samples, until all are finished
OUT/plan.toml                written last
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tokenizers_zoo.data.tar import key_problem, shown_name
from tokenizers_zoo.data.tokens import token_text
from tokenizers_zoo.errors import ConfigError, DataError, InvalidValueError
from tokenizers_zoo.io import replacing_file, write_json
from tokenizers_zoo.progress import Advance, decoded_samples, progress_bars
from tokenizers_zoo.registry import ModalityHandle, Zoo
from tokenizers_zoo.run_folder import RunFolder, RunKind
from tokenizers_zoo.validation import describe
from zoo_backbone.checkpoint import load_model
from zoo_backbone.generate.inputs import DRAW, Request, handles_of, read_inputs, with_input_forms
from zoo_backbone.generate.plans import GenerationPlan, TargetPlan, resolved_plan, written_plan
from zoo_backbone.generate.sampler import generate, plan_steps, rows_of
from zoo_backbone.model import FourM
from zoo_backbone.run import Run, stored_config

PLAN, RANKING, TOKENS, DONE = "plan.toml", "ranking.json", ".tokens.json", "done.txt"
GENERATION = RunKind(name="generation", files=(PLAN, RANKING, "[0-9]*"), state=DONE, results=(PLAN,))
BATCH = 32
"""Draws generated, or scored, at a time; results do not depend on it."""
Scorer = Callable[[Mapping[str, Any], Mapping[str, Any]], Sequence[float]]
"""Maps input and generated tokens, a row per draw, to a number per draw; larger is better."""


def generate_to_folder(
    folder: Path,
    zoo: Zoo,
    plan: GenerationPlan,
    out: Path,
    scorer: Scorer | None = None,
    device: str = "cpu",
    overwrite: bool = False,
) -> list[Path]:
    """Generate with the backbone in `folder`, and return the folders of all draws.

    With a scorer, or `plan.rank`, draw 0 is the best. A killed call resumes after the finished samples, unless it has a
    scorer. Model and tokenizers run on `device`. Raises FolderError if `out` holds anything else and not `overwrite`,
    and other ZooErrors for settings and inputs that do not fit, before anything is written.
    """
    folder, out = Path(folder), Path(out)
    run, config = Run.load(folder), stored_config(folder)
    model = load_model(folder, device=device).eval()
    plan = with_input_forms(plan, model, zoo, run.tokens)
    handles = handles_of(zoo, model, plan, config["fingerprints"])
    for handle in handles.values():
        handle.device = device
    request = read_inputs(run, model, handles, plan)
    targets = plan.target_plans()
    resolved_plan(model.layout, targets, request.inputs, request.partial)
    for name in request.names:
        if problem := key_problem(name):
            raise DataError(f"{run.tokens / plan.split}: sample {name!r}: {problem}; no file can be written for it")
    for file in sorted(plan.files()):
        if overwrite and out.resolve() in file.parents:
            raise ConfigError(f"{file}: is an input and would be overwritten; give another --out")
    written = written_plan(plan, {"backbone": str(folder.resolve()), "weights sha256": str(config["weights_sha256"])})
    for line in written.splitlines():
        if line != shown_name(line):
            raise ConfigError(f"{shown_name(line)}: is not UTF-8, so {PLAN} cannot name it; rename the file or folder")
    identity = {
        "plan": dataclasses.asdict(plan), "weights": config["weights_sha256"], "device": device,
        "scorer": os.urandom(8).hex() if scorer else None, "inputs": _digest(handles, request),
    }  # fmt: skip
    if plan.rank:
        if scorer:
            raise ConfigError(f"rank {plan.rank}: expected either rank or a scorer, got both")
        scorer = Agreement(model, plan.rank, handles[plan.rank].decode)
        scorer.check(request.inputs, [target.name for target in targets])
    with RunFolder(out, GENERATION, identity, places={"backbone": str(folder.resolve())}).open(overwrite) as state:
        if state.finished is None:
            done = set((out / DONE).read_text(encoding="utf-8").split("\n")[:-1]) if state.resuming else set()
            _Generation(model, handles, request, plan, out, scorer).run(done)
            with replacing_file(out / PLAN) as temporary:
                temporary.write_text(written, encoding="utf-8")
            state.finish(samples=len(request.names))
    return sorted(out / name / str(draw) for name in request.names for draw in range(plan.draws))


def _digest(handles: Mapping[str, ModalityHandle], request: Request) -> str:
    """Return a sha256 prefix (hex) of tokenizers, samples and input tokens."""
    digest = hashlib.sha256()
    for handle in handles.values():
        digest.update(repr((handle.name, handle.fingerprint, handle.known_settings())).encode())
    digest.update(repr((request.names, request.numbers)).encode())
    for block in _blocks(range(len(request.names)), BATCH):
        for tokens in request.rows(block):
            for name, whole in tokens.items():
                for item in [whole] if hasattr(whole, "shape") else whole:
                    array = item.numpy(force=True) if isinstance(item, torch.Tensor) else np.asarray(item)
                    digest.update(
                        f"{name} {array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes()
                    )
    return digest.hexdigest()[:16]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Draw:
    """Tokens and values of the targets for one draw of the sample `row`."""

    row: int
    tokens: dict[str, Any]
    values: dict[str, Any]


class _Generation:
    """Draws, decodes, ranks and writes the samples of a request."""

    def __init__(
        self,
        model: FourM,
        handles: Mapping[str, ModalityHandle],
        request: Request,
        plan: GenerationPlan,
        out: Path,
        scorer: Scorer | None,
    ) -> None:
        self.model, self.handles, self.request, self.plan = model, handles, request, plan
        self.out, self.scorer = out, scorer
        self.targets = plan.target_plans()
        self.once = {target.name: handles[target.name].single_ids() for target in self.targets}

    def run(self, done: set[str]) -> None:
        """Generate the samples that are not done."""
        plan, names = self.plan, self.request.names
        todo = [row for row, name in enumerate(names) if name not in done]
        blocks = _blocks(todo, max(1, BATCH // plan.draws))
        totals = {"generate": len(blocks) * -(-plan.draws // BATCH) * plan_steps(self.model, self.targets)}
        totals |= {f"decode {target.name}": len(todo) * plan.draws for target in self.targets}
        totals["rank"] = len(todo) * plan.draws if self.scorer else 0
        with progress_bars(totals) as (generated, *decoded, ranked):
            for rows in blocks:
                draws = self._draw(rows, generated, decoded)
                ranking = {}
                if self.scorer:
                    ranked(0)
                    ranking = self._ranked(draws)
                    ranked(len(draws))
                for row in rows:
                    self._write(names[row], [draw for draw in draws if draw.row == row], ranking.get(row))
                    with open(self.out / DONE, "a", encoding="utf-8") as lines:
                        lines.write(f"{names[row]}\n")

    def _draw(self, rows: Sequence[int], generated: Advance, decoded: Sequence[Advance]) -> list[_Draw]:
        """Return all draws of some samples, in order. Several samples fit into a batch."""
        found = []
        whole, partial = self.request.rows(rows)
        for part in _blocks(range(self.plan.draws), BATCH):
            drawn = [(row, draw) for row in rows for draw in part]
            numbers = [self.request.numbers[row] + draw * DRAW for row, draw in drawn]
            tokens = generate(
                self.model, whole, self.targets, self.plan.seed, numbers, partial=partial, draws=len(part),
                once=self.once, advance=generated,
            )  # fmt: skip
            values = {}
            for (name, ids), advance in zip(tokens.items(), decoded, strict=True):
                advance(0)
                with decoded_samples(advance):
                    values[name] = self.handles[name].decode(ids, trusted=True)
            for number, (row, _) in enumerate(drawn):
                of_draw = ({name: listed[number] for name, listed in table.items()} for table in (tokens, values))
                found.append(_Draw(row=row, tokens=next(of_draw), values=next(of_draw)))
        return found

    def _ranked(self, draws: Sequence[_Draw]) -> dict[int, tuple[list[int], list[float]]]:
        """Return for each sample the numbers of its draws, best first, and their scores. Raises InvalidValueError."""
        assert self.scorer is not None
        whole, _ = self.request.rows([draw.row for draw in draws])
        generated = {name: [draw.tokens[name] for draw in draws] for name in draws[0].tokens}
        scores = [float(score) for score in self.scorer(whole, generated)]
        if len(scores) != len(draws) or any(map(math.isnan, scores)):
            raise InvalidValueError(f"rank: expected a number for each of {len(draws)} draws, got {describe(scores)}")
        result = {}
        for number, order in enumerate(best_first(scores, self.plan.draws)):
            first = number * self.plan.draws
            result[draws[first].row] = order, [scores[first + draw] for draw in order]
        return result

    def _write(self, name: str, draws: Sequence[_Draw], ranking: tuple[list[int], list[float]] | None) -> None:
        if ranking:
            order, scores = ranking
            draws = [draws[number] for number in order]
            table = {"by": self.plan.rank or "scorer", "draws": order, "scores": scores}
            write_json(self.out / name / RANKING, table)
        for rank, draw in enumerate(draws):
            for modality, value in draw.values.items():
                write_value(self.out / name / str(rank), self.handles[modality], value, draw.tokens[modality])


def write_value(place: Path, handle: ModalityHandle, value: Any, ids: Any) -> None:
    """Write a value, its tokens, and its picture."""
    with replacing_file(place / f"{handle.name}{TOKENS}") as temporary:
        temporary.write_text(token_text(handle, ids) + "\n", encoding="utf-8")
    data, extension = handle.write(value)
    with replacing_file(place / f"{handle.name}.{extension}") as temporary:
        temporary.write_bytes(data)
    picture = handle.render(value)
    if not isinstance(picture, str) and extension != "png":
        with replacing_file(place / f"{handle.name}.png") as temporary:
            picture.save(temporary, format="PNG")


def _blocks(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[first : first + size] for first in range(0, len(items), size)]


# --- ranking


class Agreement:
    """Scores draws by self-consistency with their inputs.

    The modality `name` is predicted from the targets of a draw alone, by the most likely tokens in one step, and
    compared with the input, or with its prediction from the inputs. Both are decoded; the score is the cosine of the
    two values as vectors. Details that the model does not see are not scored.
    """

    def __init__(self, model: FourM, name: str, decode: Callable[[Any], Sequence[Any]]) -> None:
        self.model = model
        self.name = name
        self.decode = decode
        self.plan = [TargetPlan(name=name, temperature=0, steps=1).resolved(model.layout.spec(name))]
        value = model.layout.spec(name).value
        if value.kind != "array" or value.classes or value.dtype.startswith("int"):
            kind = "ids or other whole numbers" if value.kind == "array" else value.kind
            raise ConfigError(f"rank {name}: draws are compared as vectors, and its values are {kind}; expected "
                              "a numeric modality, such as a global vector")  # fmt: skip

    def check(self, inputs: Iterable[str], targets: Iterable[str]) -> None:
        """Raise ConfigError if there is nothing to compare."""
        if self.name in targets:
            raise ConfigError(f"rank {self.name}: is a target itself; rank by another modality")
        if not list(inputs):
            raise ConfigError(f"rank {self.name}: there is no whole input to compare draws with")

    def __call__(self, inputs: Mapping[str, Any], generated: Mapping[str, Any]) -> list[float]:
        """Return the score of each row. Equal neighbouring inputs are predicted from once."""
        self.check(inputs, generated)
        condition = {self.name: inputs[self.name]} if self.name in inputs else inputs
        firsts, numbers = equal_neighbours(condition)
        wanted = list(self._vectors(condition, firsts))
        seen = self._vectors(generated, range(len(next(iter(generated.values())))))
        return [cosine(one, wanted[number]) for one, number in zip(seen, numbers, strict=True)]

    def _vectors(self, tokens: Mapping[str, Any], rows: Sequence[int]) -> Iterator[np.ndarray[Any, Any]]:
        """Yield the modality's values in these rows, or their predictions from the other modalities."""
        for chosen in _blocks(rows, BATCH):
            block = {name: rows_of(values, chosen) for name, values in tokens.items()}
            found = block.get(self.name)
            if found is None:
                found = generate(self.model, block, self.plan, seed=0)[self.name]
            for value in self.decode(found):
                yield np.asarray(value, np.float64).ravel()


def best_first(scores: Sequence[float], draws: int) -> list[list[int]]:
    """Return the numbers of each sample's draws, best first, where `draws` consecutive scores belong to a sample."""
    rows = [scores[first : first + draws] for first in range(0, len(scores), draws)]
    return [sorted(range(draws), key=lambda draw: -row[draw]) for row in rows]


def equal_neighbours(tokens: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    """Group equal neighbouring rows; return the first row of each group, and the group of each row."""
    firsts: list[int] = []
    numbers = []
    for row in range(len(next(iter(tokens.values())))):
        if not row or not all(np.array_equal(values[row], values[row - 1]) for values in tokens.values()):
            firsts.append(row)
        numbers.append(len(firsts) - 1)
    return firsts, numbers


def cosine(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    """Return the cosine of two vectors; 0 if a vector is 0."""
    size = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / size if size else 0.0
