"""`zoo backbone generate`: generate into a folder, as values, tokens and pictures.

OUT/<key>/<draw>/<modality>.<ext>, .png, .tokens.json
OUT/<key>/ranking.json       with a scorer: {"by", "draws": their numbers, best first, "scores"}
OUT/done.txt                 finished samples, until all are finished
OUT/plan.toml                written last
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tokenizers_zoo.data.tar import key_problem, shown_name
from tokenizers_zoo.data.tokens import token_text
from tokenizers_zoo.errors import ConfigError, DataError, InvalidValueError
from tokenizers_zoo.io import replacing_file, write_json
from tokenizers_zoo.progress import decoded_samples, progress_bars
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
        names = [target.name for target in targets]
        scorer = Agreement(model, plan.rank, handles[plan.rank].decode, request.inputs, names)
    with RunFolder(out, GENERATION, identity, places={"backbone": str(folder.resolve())}).open(overwrite) as state:
        if state.finished is None:
            done = set((out / DONE).read_text(encoding="utf-8").split("\n")[:-1]) if state.resuming else set()
            _generate_rows(model, handles, request, plan, out, scorer, done)
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


def _generate_rows(
    model: FourM,
    handles: Mapping[str, ModalityHandle],
    request: Request,
    plan: GenerationPlan,
    out: Path,
    scorer: Scorer | None,
    done: set[str],
) -> None:
    """Draw, decode, rank and write the samples that are not `done`. Several samples fit into a batch."""
    targets, draws = plan.target_plans(), plan.draws
    once = {target.name: handles[target.name].single_ids() for target in targets}
    todo = [row for row, name in enumerate(request.names) if name not in done]
    blocks = _blocks(todo, max(1, BATCH // draws))
    totals = {"generate": len(blocks) * -(-draws // BATCH) * plan_steps(model, targets)}
    totals |= {f"decode {target.name}": len(todo) * draws for target in targets}
    totals["rank"] = len(todo) * draws if scorer else 0
    with progress_bars(totals) as (generated, *decoded, ranked):
        for rows in blocks:
            tokens: dict[str, list[Any]] = {target.name: [] for target in targets}
            values: dict[str, list[Any]] = {target.name: [] for target in targets}
            whole, partial = request.rows(rows)
            for part in _blocks(range(draws), BATCH):
                numbers = [request.numbers[row] + draw * DRAW for row in rows for draw in part]
                found = generate(
                    model, whole, targets, plan.seed, numbers, partial=partial, draws=len(part), once=once,
                    advance=generated,
                )  # fmt: skip
                for (name, ids), advance in zip(found.items(), decoded, strict=True):
                    advance(0)
                    with decoded_samples(advance):
                        values[name].extend(handles[name].decode(ids, trusted=True))
                    tokens[name].extend(ids)
            scores: list[float] = []
            if scorer:
                ranked(0)
                of_draws, _ = request.rows([row for row in rows for _ in range(draws)])
                scores = [float(score) for score in scorer(of_draws, tokens)]
                if len(scores) != len(rows) * draws or any(map(math.isnan, scores)):
                    wanted = f"a number for each of {len(rows) * draws} draws"
                    raise InvalidValueError(f"rank: expected {wanted}, got {describe(scores)}")
                ranked(len(scores))
            for number, row in enumerate(rows):
                first, order, place = number * draws, list(range(draws)), out / request.names[row]
                if scorer:
                    own = scores[first : first + draws]
                    order = best_first(own)
                    table = {"by": plan.rank or "scorer", "draws": order, "scores": [own[draw] for draw in order]}
                    write_json(place / RANKING, table)
                for rank, draw in enumerate(order):
                    for name, listed in values.items():
                        write_value(place / str(rank), handles[name], listed[first + draw], tokens[name][first + draw])
                with open(out / DONE, "a", encoding="utf-8") as lines:
                    lines.write(f"{request.names[row]}\n")


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
        self.plan = [TargetPlan(name=name, temperature=0, steps=1).resolved(model.layout.spec(name))]
        value = model.layout.spec(name).value
        if value.kind != "array" or value.classes or value.dtype.startswith("int"):
            kind = "ids or other whole numbers" if value.kind == "array" else value.kind
            wanted = "expected a numeric modality, such as a global vector"
            raise ConfigError(f"rank {name}: draws are compared as vectors, and its values are {kind}; {wanted}")
        if name in targets:
            raise ConfigError(f"rank {name}: is a target itself; rank by another modality")
        if not inputs:
            raise ConfigError(f"rank {name}: there is no whole input to compare draws with")

    def __call__(self, inputs: Mapping[str, Any], generated: Mapping[str, Any]) -> list[float]:
        """Return the score of each row. Equal neighbouring inputs are predicted from once."""
        condition = {self.name: inputs[self.name]} if self.name in inputs else inputs
        firsts: list[int] = []
        groups = []
        count = len(next(iter(generated.values())))
        for row in range(count):
            if not row or not all(np.array_equal(values[row], values[row - 1]) for values in condition.values()):
                firsts.append(row)
            groups.append(len(firsts) - 1)
        wanted = list(self._vectors(condition, firsts))
        return [cosine(one, wanted[of]) for one, of in zip(self._vectors(generated, range(count)), groups, strict=True)]

    def _vectors(self, tokens: Mapping[str, Any], rows: Sequence[int]) -> Iterator[np.ndarray[Any, Any]]:
        """Yield the modality's values in these rows, or their predictions from the other modalities."""
        for chosen in _blocks(rows, BATCH):
            block = {name: rows_of(values, chosen) for name, values in tokens.items()}
            found = block.get(self.name)
            if found is None:
                found = generate(self.model, block, self.plan, seed=0)[self.name]
            for value in self.decode(found):
                yield np.asarray(value, np.float64).ravel()


def best_first(scores: Sequence[float]) -> list[int]:
    """Return the numbers of a sample's draws, best first."""
    return sorted(range(len(scores)), key=lambda draw: -scores[draw])


def cosine(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    """Return the cosine of two vectors; 0 if a vector is 0."""
    size = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / size if size else 0.0
