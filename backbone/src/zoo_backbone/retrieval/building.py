"""Building an index: each modality embedded, its vectors written and let go of, one after the other.

One process at a time makes an index. It does so in `.INDEX.building` beside its place, where the index that it replaces
waits, too, and renames it when it is whole. In there config.json and the space come first and say what is being built;
each further file appears whole. A build that did not come to its end leaves them there, and the same command goes on;
another one, or one for which it can no longer be known, begins anew.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tokenizers_zoo import checkpoint
from tokenizers_zoo.data.samples import TEST
from tokenizers_zoo.errors import CheckpointError, ConfigError
from tokenizers_zoo.io import held, json_text, remove_folder, replacing_file, write_json
from tokenizers_zoo.progress import progress_bar
from tokenizers_zoo.registry import Zoo
from zoo_backbone.retrieval.config import EmbeddingConfig, Search
from zoo_backbone.retrieval.embedding import Embedder, Samples
from zoo_backbone.retrieval.index import CLASS, KEYS, TOGETHER, Index, file_of, spaces_of
from zoo_backbone.retrieval.spaces import Affine, unit
from zoo_backbone.retrieval.vector_files import faiss, write_vectors, written_vectors

SAMPLES = "samples"
"""Where config.json says which samples it is of; indexes of earlier versions do not."""
RUN = "run"
"""Where config.json says in which folder the backbone is: it may be moved, and is the same."""
NEW, OLD = "new", "old"
"""In the folder beside an index: the one that is being built, and the one that it replaces."""
LARGE = 100_000
"""Samples above which an index is approximate where nothing else is asked for."""


def build(
    run: Path,
    zoo: Zoo,
    out: Path,
    *,
    config: EmbeddingConfig,
    split: str = TEST,
    modalities: Sequence[str] | None = None,
    search: Search | None = None,
    overwrite: bool = False,
    device: str = "cpu",
) -> Index:
    """Embed the stored samples of a split and write an index of them to `out`, which is whole or not there.

    An index that is there already and is the same is left as it is. Raises ConfigError where another one is there and
    is not to be replaced, CheckpointError where more than an index would be or another process builds it right now, and
    ZooErrors for what does not fit together.
    """
    faiss()
    run, out = Path(run), Path(out)
    embedder = Embedder(run, zoo, config, device)
    names = embedder.names(modalities, split)
    data = embedder.stored(split, names)
    if lacking := [name for name, has in zip(names, np.any(data.rows >= 0, axis=0), strict=True) if not has]:
        raise ConfigError(f"{lacking[0]}: no sample of this split has it; leave it out of --modalities")
    kind: Search = search or ("approximate" if len(data) > LARGE else "exact")
    described = {
        "class": CLASS, RUN: str(run.resolve()), "fingerprint": embedder.fingerprint, "split": split,
        "embedding": dataclasses.asdict(config), "search": kind,
        "modalities": {name: int((data.rows[:, column] >= 0).sum()) for column, name in enumerate(names)},
        "codecs": data.codecs | embedder.via_codec(),
        "together": len(data), SAMPLES: data.digest(),
    }  # fmt: skip
    place, tokens = out.resolve(), embedder.run.tokens / split
    if not overwrite and _holds(place) and not _beside(place).exists():
        return _same(out, described, tokens)
    with _only_build(out) as folder:
        if _holds(place):
            if not overwrite:
                index = _same(out, described, tokens)
                remove_folder(folder / NEW)
                return index
            _check_replaceable(out)
        _check_movable(out)
        new = folder / NEW
        begun = _begun(new, described)
        if begun is None:
            embedder.fit(names, lambda total: progress_bar("fit the space", total))
            checkpoint.save_checkpoint(new, _tensors(embedder.spaces), described, _card(described))
        else:
            embedder.spaces = begun
        _fill(new, embedder, data, names, kind)
        if _holds(place):
            os.replace(place, folder / OLD)
        os.replace(new, place)
    return Index(out)


def _holds(place: Path) -> bool:
    """True for a folder in which something is."""
    return place.exists() and any(place.iterdir())


def _beside(place: Path) -> Path:
    return place.parent / f".{place.name}.building"


@contextlib.contextmanager
def _only_build(out: Path) -> Iterator[Path]:
    """A folder beside `out` with a NEW, empty or begun, for the only process that builds this index.

    After the block it is removed, unless something is begun there still. An index that is set aside there as OLD comes
    back where none has taken its place, also where a kill left it. Raises CheckpointError where another process that is
    alive builds the index.
    """
    busy = f"{out}: another process builds this index right now; wait for its end, or stop it"
    place = out.resolve()
    folder = _beside(place)
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as until_done:
        try:
            found = folder.stat().st_ino
            until_done.enter_context(held(folder, busy))
            if folder.stat().st_ino != found:  # another's, in the place of the one that is locked now
                raise CheckpointError(busy)
            _tidy(folder, place)
            (folder / NEW).mkdir(exist_ok=True)
        except FileNotFoundError:  # the other removed its folder just now
            raise CheckpointError(busy) from None
        try:
            yield folder
        finally:
            _tidy(folder, place)
            if not (folder / NEW).exists():
                remove_folder(folder)


def _tidy(folder: Path, place: Path) -> None:
    """Put OLD back where there is no index, and remove what else is there but a build that is begun."""
    if checkpoint.is_complete(folder / OLD) and not _holds(place):
        os.replace(folder / OLD, place)
    remove_folder(folder / OLD)
    if not checkpoint.is_complete(folder / NEW):
        remove_folder(folder / NEW)


def _check_movable(out: Path) -> None:
    """Raise CheckpointError for a folder, even an empty one, in whose place no other can be put."""
    place = out.resolve()
    if place.exists() and Path.cwd().is_relative_to(place):
        raise CheckpointError(f"{out}: is where the command runs, and cannot be replaced; run it somewhere else")
    if place.is_mount():
        raise CheckpointError(f"{out}: is a disk of its own, and cannot be replaced; give a folder in it")


def _check_replaceable(out: Path) -> None:
    """Raise CheckpointError for a folder that is no index, or holds more than one: it would be lost."""
    names = checkpoint.load_config(out, CLASS).get("modalities", ())
    own = {checkpoint.CONFIG, checkpoint.WEIGHTS, checkpoint.CARD, KEYS, *map(file_of, (TOGETHER, *names))}
    if foreign := sorted({path.name for path in out.iterdir()} - own):
        raise CheckpointError(
            f"{out}: holds {foreign[0]}, which is no part of an index and would be removed; move it away, or give "
            "another folder"
        )


def _same(out: Path, described: Mapping[str, Any], tokens: Path) -> Index:
    """The index that is there. Raises ConfigError where it is another one, or of other samples than `tokens` has, and
    CheckpointError where a file of vectors is damaged.
    """
    try:
        checkpoint.load_config(out, CLASS, remedy="copy it again")
    except CheckpointError as error:  # --overwrite would not replace it either
        raise ConfigError(f"{error}; that is no index, or a damaged one: give another folder") from None
    try:
        index = Index(out)
    except CheckpointError as error:
        raise ConfigError(
            f"{out}: is there, and is a damaged index ({error}); replace it with --overwrite, or give another folder"
        ) from None
    for key, value in described.items():
        if key == RUN or index.config.get(key) == value or (key == SAMPLES and key not in index.config):
            continue
        held = f"with {_difference(key, index.config.get(key), value)}"
        if key in ("together", SAMPLES) or (key == "modalities" and set(value) == set(index.names)):
            held = f"of other samples than {tokens} has now (their number, keys or tokens)"
        raise ConfigError(f"{out}: holds an index {held}; replace it with --overwrite, or give another folder")
    for name in (TOGETHER, *index.names):
        index.open(name)
    if index.config[RUN] != described[RUN]:
        _note_run(out, index.config, described)
        return Index(out)
    return index


def _difference(key: str, held: Any, wanted: Any) -> str:
    """How an index differs from the one that is wanted, in words; of a table, the first entry that does."""
    if not isinstance(held, Mapping) or not isinstance(wanted, Mapping):
        return f"{key} = {held}, not {wanted}"
    if key == "modalities":
        return f"{key} = {', '.join(held)}, not {', '.join(wanted)}"
    for name in [*held, *wanted]:
        if held.get(name) != wanted.get(name):
            return f"{key}.{name} = {held.get(name)}, not {wanted.get(name)}"
    return f"other {key}"


def _note_run(folder: Path, config: Mapping[str, Any], described: Mapping[str, Any]) -> None:
    """Say in an index where its backbone is now."""
    config = {**config, RUN: described[RUN]}
    with replacing_file(folder / checkpoint.CARD) as temporary:
        temporary.write_text(_card(config), encoding="utf-8")
    write_json(folder / checkpoint.CONFIG, config)


def _begun(new: Path, described: Mapping[str, Any]) -> dict[str, Affine] | None:
    """The space of a build that is begun, and is the one `described`; None without one, and `new` is empty then."""
    with contextlib.suppress(CheckpointError, KeyError):
        tensors, config = checkpoint.load_checkpoint(new, CLASS)
        here = {**config, RUN: described[RUN]}
        here.pop("weights_sha256", None)
        if json_text(here) == json_text(described):  # also modalities in the same order
            spaces = spaces_of(tensors, list(described["modalities"]))
            if config[RUN] != described[RUN]:
                _note_run(new, config, described)
            return spaces
    remove_folder(new)
    new.mkdir()
    return None


def _fill(new: Path, embedder: Embedder, data: Samples, names: Sequence[str], kind: Search) -> None:
    """Write vectors and keys beside the space; the vectors that are there already are taken as they are."""
    owners = {name: np.flatnonzero(data.rows[:, column] >= 0) for column, name in enumerate(names)}
    count, times = sum(map(len, owners.values())), 1 if kind == "exact" else 2  # embedded, and linked
    together = np.zeros(0, np.float32)
    longest = f"embed {max(names, key=len)}"
    with progress_bar(longest, count * times + (times - 1) * len(data)) as advance:
        for column, (name, has) in enumerate(owners.items()):
            path = new / file_of(name)
            vectors = written_vectors(path, len(has))
            if vectors is None:
                told = partial(advance, title=f"embed {name}")
                vectors = embedder.embed_stored(data, name, data.rows[has, column].tolist(), told)
                write_vectors(path, vectors, kind, partial(advance, title=f"link {name}"))
            else:
                advance(len(has) * times)
            if not len(together):
                together = np.zeros((len(data), vectors.shape[1]), np.float32)
            together[has] += vectors
            del vectors  # before those of the next are made
        write_vectors(new / file_of(TOGETHER), unit(together), kind, partial(advance, title="link all"))
    lacks = {name: np.flatnonzero(data.rows[:, column] < 0).tolist() for column, name in enumerate(names)}
    write_json(new / KEYS, {"keys": list(data.keys), "lacks": lacks})


def _tensors(spaces: Mapping[str, Affine]) -> dict[str, torch.Tensor]:
    """A space as model.safetensors has it."""
    tensors = {f"{name}.mean": torch.from_numpy(space.mean) for name, space in spaces.items()}
    return tensors | {
        f"{name}.projection": torch.from_numpy(space.projection)
        for name, space in spaces.items() if space.projection is not None
    }  # fmt: skip


def _card(described: Mapping[str, Any]) -> str:
    """README.md of an index."""
    rows = [f"| {name} | {count} |" for name, count in described["modalities"].items()]
    embedding = ", ".join(f"{key} {value}" for key, value in described["embedding"].items() if value != "")
    return f"""# An index of {described["together"]} samples

Built from the split `{described["split"]}` of the tokens of `{described["run"]}` ({embedding});
{described["search"]} search.

    zoo retrieve query THIS_FOLDER --keys KEY --given NAME

| modality | vectors |
|---|---|
{chr(10).join(rows)}
"""
