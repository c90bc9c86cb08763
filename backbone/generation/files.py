"""`zoo backbone generate`: from samples of the token store or from files, to values, tokens and pictures on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from backbone.generation.plan import TargetPlan
from backbone.generation.sampler import generate
from backbone.run import Run, model_config
from backbone.saving import load_model
from tokenizers_zoo.checkpoint import replacing_file, write_json
from tokenizers_zoo.data.tokens import TokenStore, grew_from
from tokenizers_zoo.errors import DataError, UnknownNameError
from tokenizers_zoo.modality import Crop
from tokenizers_zoo.pipeline.engines import progress_bar
from tokenizers_zoo.registry import ModalityHandle, Zoo

PLAN = "plan.json"
BATCH = 32
"""Samples generated at a time; what is made does not depend on it."""


def given_from_store(
    run: Run,
    handles: Mapping[str, ModalityHandle],
    names: Sequence[str],
    split: str,
    keys: Sequence[str] | None,
    count: int,
) -> tuple[list[str], dict[str, Any]]:
    """Keys and tokens of stored samples that have all of `names`. Raises UnknownNameError, DataError."""
    store = TokenStore(run.tokens)
    columns = {name: store.open(split, name) for name in names}
    for name, column in columns.items():
        column.check_codec(handles[name])
    shared = [
        key for key in next(iter(columns.values())).keys if all(key in column.rows for column in columns.values())
    ]
    if not shared:
        raise DataError(f"{run.tokens / split}: no sample has tokens of {', '.join(names)}")
    for key in keys or ():
        if key not in shared:
            raise UnknownNameError.of("sample", key, shared[:1000], f"(in {run.tokens / split})")
    chosen = list(keys or shared[:count])
    return chosen, {name: column.take([column.rows[key] for key in chosen]) for name, column in columns.items()}


def given_from_files(handles: Mapping[str, ModalityHandle], files: Mapping[str, Path]) -> dict[str, Any]:
    """Tokens of one sample whose modalities are files. Raises InvalidValueError."""
    given = {}
    for name, path in files.items():
        handle = handles[name]
        value = handle.transform(handle.read(path.read_bytes(), path.suffix.removeprefix(".").lower()), Crop())
        given[name] = handle.encode([value])
    return given


def generate_to_folder(
    folder: Path,
    zoo: Zoo,
    *,
    given: Sequence[str],
    plan: Sequence[TargetPlan],
    out: Path,
    files: Mapping[str, Path] | None = None,
    split: str = "test",
    keys: Sequence[str] | None = None,
    samples: int = 4,
    draws: int = 1,
    seed: int = 0,
) -> list[Path]:
    """Generate with the backbone in `folder`; writes OUT/<key>/<draw>/<modality>.<ext>, .png and .tokens.json.

    OUT/plan.json says what made them. Gives the sample folders. Raises ZooErrors for what does not fit together.
    """
    run, config = Run.load(folder), model_config(folder)
    model = load_model(folder).eval()
    handles = {name: zoo[name] for name in [*given, *(target.name for target in plan)] if model.tables.spec(name)}
    trained_on = config["fingerprints"]
    for name, handle in handles.items():
        codec = trained_on.get(name)
        if codec not in (None, handle.fingerprint) and not grew_from(handle, codec, 0):
            raise DataError(
                f"{name}: the backbone was trained on codec {codec[:12]}, the registry has "
                f"{handle.fingerprint[:12]} ({handle.checkpoint}); use the registry of its training"
            )
    if files:
        names, tokens = ["files"], given_from_files(handles, files)
    elif given:
        names, tokens = given_from_store(run, handles, given, split, keys, samples)
    else:
        names, tokens = [f"sample-{i:03}" for i in range(samples)], {}
    total = len(names) * draws
    with progress_bar("generate", total) as advance:
        for start in range(0, total, BATCH):
            numbers = range(start, min(start + BATCH, total))
            here = [number // draws for number in numbers]
            made = generate(model, {name: _rows(value, here) for name, value in tokens.items()}, plan, seed, numbers)
            for name, generated in made.items():
                for number, value, ids in zip(numbers, handles[name].decode(generated), generated, strict=True):
                    place = out / names[number // draws] / str(number % draws)
                    _write_value(place, handles[name], value, ids)
            advance(len(numbers))
    write_json(
        out / PLAN,
        {
            "run": str(folder.resolve()), "given": list(given), "files": {k: str(v) for k, v in (files or {}).items()},
            "samples": names, "draws": draws, "seed": seed, "plan": [asdict(target) for target in plan],
            "weights_sha256": config["weights_sha256"],
        },
    )  # fmt: skip
    return sorted(out / name / str(draw) for name in names for draw in range(draws))


def _rows(tokens: Any, rows: Sequence[int]) -> Any:
    """The tokens of the samples `rows`, of which some may be asked for several times."""
    return [tokens[row] for row in rows] if isinstance(tokens, list) else np.asarray(tokens)[rows]


def _write_value(place: Path, handle: ModalityHandle, value: Any, ids: Any) -> None:
    data, extension = handle.write(value)
    with replacing_file(place / f"{handle.name}.{extension}") as temporary:
        temporary.write_bytes(data)
    tokens = {"modality": handle.name, "fingerprint": handle.fingerprint, "tokens": np.asarray(ids).tolist()}
    with replacing_file(place / f"{handle.name}.tokens.json") as temporary:
        temporary.write_text(json.dumps(tokens) + "\n", encoding="utf-8")
    drawn = handle.render(value)
    if not isinstance(drawn, str) and extension != "png":
        with replacing_file(place / f"{handle.name}.png") as temporary:
            drawn.save(temporary, format="PNG")
