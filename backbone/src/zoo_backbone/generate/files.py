"""`zoo backbone generate`: from samples of the token store or from values, to values, tokens and pictures on disk."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers_zoo.config import from_mapping
from tokenizers_zoo.data.tar import key_problem, shown_name
from tokenizers_zoo.data.token_file import token_text
from tokenizers_zoo.errors import ConfigError, DataError, InvalidValueError
from tokenizers_zoo.io import held, replacing_file, write_json
from tokenizers_zoo.progress import Advance, decoded_samples, progress_bars
from tokenizers_zoo.registry import ModalityHandle, Zoo
from tokenizers_zoo.validation import describe
from zoo_backbone.checkpoint import load_model
from zoo_backbone.generate.plan import resolved_plan
from zoo_backbone.generate.ranking import BATCH, Agreement, Scorer, best_first
from zoo_backbone.generate.recipe import Recipe, read_recipe, written_recipe
from zoo_backbone.generate.request import DRAW, Request, handles_of, requested
from zoo_backbone.generate.sampler import generate, plan_steps
from zoo_backbone.generate.unfinished import Unfinished, digest_of
from zoo_backbone.model import FourM
from zoo_backbone.run import Run, stored_config

PLAN, RANKING, TOKENS = "plan.toml", "ranking.json", ".tokens.json"
MADE_BY = "made by"
BUSY = "{}: another generation writes it right now; wait for its end, or give another folder"


def generate_to_folder(
    folder: Path, zoo: Zoo, recipe: Recipe, out: Path, scorer: Scorer | None = None, device: str = "cpu"
) -> list[Path]:
    """Generate with the backbone in `folder`; writes OUT/<key>/<draw>/<modality>.<ext>, .png and .tokens.json.

    With a scorer, or `recipe.rank`, draw 0 is the best, and OUT/<key>/ranking.json has the scores. OUT/plan.toml, which
    is written last, makes the same again, but for the order that a scorer gave. What an earlier generation made of
    these samples is replaced, and its plan removed before. Killed, the same call goes on after the samples that are
    done, unless it has a scorer, of which nothing is known. Model and tokenizers run on `device`. Gives the folders of
    all draws. Raises ZooErrors for what does not fit together, before anything is written.
    """
    folder, out = Path(folder), Path(out)
    run, config = Run.load(folder), stored_config(folder)
    model = load_model(folder, device=device).eval()
    handles = handles_of(zoo, model, recipe, config["fingerprints"])
    for handle in handles.values():
        handle.device = device
    request = requested(run, model, handles, recipe)
    plan = recipe.plan()
    resolved_plan(model.layout, plan, request.given, request.kept)
    for name in request.names:
        if problem := key_problem(name):
            raise DataError(f"{run.tokens / recipe.split}: sample {name!r}: {problem}; no file can be written for it")
    _check_inputs(recipe, out, request.names)
    _check_plan(out / PLAN)
    notes = {MADE_BY: str(folder.resolve()), "weights sha256": str(config["weights_sha256"])}
    written = written_recipe(recipe, notes)
    _check_names(written)
    identity = "" if scorer else _identity(written, device, handles, request)
    if recipe.rank:
        if scorer:
            raise ConfigError(f"rank {recipe.rank}: a scorer is given, too; draws are ranked by one of the two")
        scorer = Agreement(model, recipe.rank, handles[recipe.rank].decode)
        scorer.check(list(request.given), [target.name for target in plan])
    maker = _Maker(model, handles, request, recipe)
    out.mkdir(parents=True, exist_ok=True)
    with held(out, BUSY.format(out)):
        unfinished = Unfinished(out, identity)
        _generate(maker, out, unfinished, scorer)
        _write_text(out / PLAN, written)
        unfinished.end()
    return sorted(out / name / str(rank) for name in request.names for rank in range(recipe.draws))


def _generate(maker: _Maker, out: Path, unfinished: Unfinished, scorer: Scorer | None) -> None:
    """Make the samples that are not done, and say of each that it is."""
    recipe, request = maker.recipe, maker.request
    todo = [row for row, name in enumerate(request.names) if name not in unfinished.done]
    blocks = _blocks(todo, max(1, BATCH // recipe.draws))
    batches, draws_in_all = len(blocks) * -(-recipe.draws // BATCH), len(todo) * recipe.draws
    totals = {"generate": batches * plan_steps(maker.model, maker.plan)}
    totals |= {f"decode {target.name}": draws_in_all for target in maker.plan}
    totals["rank"] = draws_in_all if scorer else 0
    with progress_bars(totals) as (generated, *decoded, ranked):
        for rows in blocks:
            draws = maker.draw(rows, generated, decoded)
            ranking = {}
            if scorer:
                ranked(0)
                ranking = _ranked(scorer, request, draws, recipe)
                ranked(len(draws))
            if rows is blocks[0]:
                _withdraw_plan(out / PLAN, recipe)
                unfinished.begin()
            for row in rows:
                of_row = [draw for draw in draws if draw.row == row]
                files = maker.write(out / request.names[row], of_row, ranking.get(row))
                unfinished.add(request.names[row], files)


def _identity(written: str, device: str, handles: Mapping[str, ModalityHandle], request: Request) -> str:
    """Of all that the files of a generation depend on."""
    codecs = [repr((name, handle.fingerprint, handle.known_settings())) for name, handle in handles.items()]
    blocks = _blocks(range(len(request.names)), BATCH)
    tokens = (part for rows in blocks for part in request.rows(rows))
    samples = map(repr, zip(request.names, request.numbers, strict=True))
    return digest_of((written, device, *samples, *codecs), tokens)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Draw:
    """One draw of the sample `row`: tokens and values of each target."""

    row: int
    tokens: dict[str, Any]
    values: dict[str, Any]


class _Maker:
    """Draws and decodes the samples of a request."""

    def __init__(self, model: FourM, handles: Mapping[str, ModalityHandle], request: Request, recipe: Recipe) -> None:
        self.model, self.handles, self.request, self.recipe = model, handles, request, recipe
        self.plan = recipe.plan()
        self.once = {target.name: handles[target.name].single_ids() for target in self.plan}

    def draw(self, rows: Sequence[int], generated: Advance, decoded: Sequence[Advance]) -> list[_Draw]:
        """All draws of the samples `rows`, sample by sample: one sample, or so many that all fit into a batch.

        `generated` is told of steps, and that of each target in `decoded` of values.
        """
        found = []
        given, kept = self.request.rows(rows)
        for part in _blocks(range(self.recipe.draws), BATCH):
            drawn = [(row, draw) for row in rows for draw in part]
            numbers = [self.request.numbers[row] + draw * DRAW for row, draw in drawn]
            made = generate(
                self.model, given, self.plan, self.recipe.seed, numbers, kept=kept, draws=len(part), once=self.once,
                advance=generated,
            )  # fmt: skip
            values = {}
            for (name, tokens), advance in zip(made.items(), decoded, strict=True):
                advance(0)
                with decoded_samples(advance):
                    values[name] = self.handles[name].decode(tokens)
            found += [
                _Draw(
                    row=row,
                    tokens={name: tokens[number] for name, tokens in made.items()},
                    values={name: listed[number] for name, listed in values.items()},
                )
                for number, (row, _) in enumerate(drawn)
            ]
        return found

    def write(self, place: Path, draws: Sequence[_Draw], ranking: tuple[list[int], list[float]] | None) -> set[Path]:
        """Write the draws of one sample, the best first, in the place of earlier ones; gives the files."""
        written: set[Path] = set()
        if ranking:
            order, scores = ranking
            draws = [draws[number] for number in order]
            write_json(place / RANKING, {"by": self.recipe.rank or "scorer", "draws": order, "scores": scores})
            written.add((place / RANKING).resolve())
        for rank, draw in enumerate(draws):
            for name, value in draw.values.items():
                written |= _write_value(place / str(rank), self.handles[name], value, draw.tokens[name])
        _clear(place, written | self.recipe.files())
        return written


def _ranked(
    scorer: Scorer, request: Request, draws: Sequence[_Draw], recipe: Recipe
) -> dict[int, tuple[list[int], list[float]]]:
    """For each sample the numbers of its draws, the best first, and their scores.

    Raises InvalidValueError where the scorer does not give a number for each draw.
    """
    given, _ = request.rows([draw.row for draw in draws])
    made = {name: [draw.tokens[name] for draw in draws] for name in draws[0].tokens}
    scores = [float(score) for score in scorer(given, made)]
    if len(scores) != len(draws) or any(map(math.isnan, scores)):
        raise InvalidValueError(f"rank: expected a number for each of {len(draws)} draws, got {describe(scores)}")
    result = {}
    for number, order in enumerate(best_first(scores, recipe.draws)):
        first = number * recipe.draws
        result[draws[first].row] = order, [scores[first + draw] for draw in order]
    return result


def _blocks(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[first : first + size] for first in range(0, len(items), size)]


def _write_value(place: Path, handle: ModalityHandle, value: Any, ids: Any) -> set[Path]:
    """Write one value, its tokens, and its picture; gives the files."""
    data, extension = handle.write(value)
    files = [place / f"{handle.name}{TOKENS}", place / f"{handle.name}.{extension}"]
    _write_text(files[0], token_text(handle, ids) + "\n")  # first: it says whose the others are, see `_clear`
    with replacing_file(files[1]) as temporary:
        temporary.write_bytes(data)
    drawn = handle.render(value)
    if not isinstance(drawn, str) and extension != "png":
        files.append(place / f"{handle.name}.png")
        with replacing_file(files[2]) as temporary:
            drawn.save(temporary, format="PNG")
    return {path.resolve() for path in files}


def _check_inputs(recipe: Recipe, out: Path, names: Sequence[str]) -> None:
    """Raise ConfigError where what is made would replace a file that is given: the plan would not make it again."""
    places, targets = {(out / name).resolve() for name in names}, {target.name for target in recipe.targets}
    for file in sorted(recipe.files()):
        of_draw = file.parent.parent in places and file.parent.name in map(str, range(recipe.draws))
        if of_draw and targets & {file.stem, file.name.removesuffix(TOKENS)}:
            raise ConfigError(f"{file}: is an input and would be overwritten; give another --out")


def _check_plan(path: Path) -> None:
    """Raise ConfigError where somebody's own plan would be replaced."""
    if path.is_file() and not path.read_bytes().startswith(f"# {MADE_BY}: ".encode()):
        raise ConfigError(f"{path}: no generation wrote it, and it would be replaced; rename it, or give another --out")


def _check_names(written: str) -> None:
    """Raise ConfigError where a path in a plan is not UTF-8, as the file of a plan is."""
    for line in written.splitlines():
        if line != shown_name(line):
            raise ConfigError(f"{shown_name(line)}: is not UTF-8, so {PLAN} cannot name it; rename the file or folder")


def _withdraw_plan(path: Path, recipe: Recipe) -> None:
    """Remove an earlier generation's plan, unless it says the same: killed from here on, no plan tells of its files."""
    with contextlib.suppress(ConfigError):
        if written_recipe(from_mapping(Recipe, read_recipe(path)), {}) == written_recipe(recipe, {}):
            return
    path.unlink(missing_ok=True)


def _clear(place: Path, kept: set[Path]) -> None:
    """Remove what generations wrote of one sample, but for the files `kept`.

    That is its ranking, and in the folder of each draw, where tokens of a modality are, the files of its name.
    """
    stale = [place / RANKING]
    for tokens in place.glob(f"*/*{TOKENS}"):
        if tokens.parent.name.isdecimal():
            name = tokens.name.removesuffix(TOKENS)
            stale += [path for path in tokens.parent.iterdir() if path.stem == name and path.is_file()]
            stale.append(tokens)  # last: without it the others are nobody's
    for path in stale:
        if path.resolve() not in kept:
            path.unlink(missing_ok=True)
    for draw in {path.parent for path in stale} - {place}:
        with contextlib.suppress(OSError):  # it holds something
            draw.rmdir()


def _write_text(path: Path, text: str) -> None:
    with replacing_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
