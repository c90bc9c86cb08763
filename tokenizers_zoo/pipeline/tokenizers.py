"""`zoo tokenizer train`: a modality's values as training samples, and tokenizers trained on them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from tokenizers_zoo.checkpoint import CONFIG, fingerprint, is_complete
from tokenizers_zoo.config import Origin, reject_unknown
from tokenizers_zoo.data.provenance import reading_settings
from tokenizers_zoo.data.samples import TEST, TRAIN, TrainingSamples, spread
from tokenizers_zoo.data.shards import LazyValues, Place, ValueStore
from tokenizers_zoo.errors import CheckpointError, ConfigError, DataError, InvalidValueError
from tokenizers_zoo.io import disk_errors, read_table
from tokenizers_zoo.pipeline.engines import run_jobs
from tokenizers_zoo.progress import say
from tokenizers_zoo.run_folder import TOKENIZER, read_run, replacing
from tokenizers_zoo.text_vocab import TextVocabulary, VocabularyConfig

if TYPE_CHECKING:
    from tokenizers_zoo.registry import ModalityHandle, Zoo

TEXT_BATCH = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerJob:
    """One tokenizer to train; see `train_tokenizer`."""

    name: str
    data: Path
    out: Path | None = None
    seed: int = 0
    overrides: Mapping[str, Any] = field(default_factory=dict)
    overwrite: bool = False

    def samples(self, zoo: Zoo) -> int:
        """How many the training takes, as far as its table says; 0 where it says nothing of steps."""
        table = zoo[self.name].known_settings().get("tokenizer")
        steps, batch = (self.overrides.get(key, getattr(table, key, 0)) for key in ("steps", "batch_size"))
        return int(steps) * int(batch)

    def place(self, zoo: Zoo) -> Path:
        """The folder that it is trained into, which modalities that share a vocabulary share."""
        return (self.out or zoo[self.name].checkpoint).resolve()

    def run(self, zoo: Zoo) -> TrainedTokenizer:
        """Train it, in this process."""
        before = _fingerprint(self.out or zoo[self.name].checkpoint)
        folder = train_tokenizer(
            zoo, self.name, self.data, out=self.out, seed=self.seed, overrides=self.overrides, overwrite=self.overwrite
        )
        as_it_was = _fingerprint(folder) == before
        return TrainedTokenizer(
            name=self.name, folder=folder, as_it_was=as_it_was, of=_trained_for(folder) or self.name
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedTokenizer:
    """Where a tokenizer is, and whether it was there, just so, before."""

    name: str
    folder: Path
    as_it_was: bool
    of: str
    """The modality that it is trained with, where others share it."""


def train_tokenizers(zoo: Zoo, jobs: Sequence[TokenizerJob], workers: int = 1) -> Iterator[TrainedTokenizer]:
    """Train tokenizers, up to `workers` at a time, in processes that share the cores; gives each as it is finished.

    Those of a shared vocabulary come first and one after the other, since one process at a time writes in it; it is
    trained anew once for all of them. Of the others the longest ones come first, so that none is left to train alone.
    The weights are those of one worker with as many threads as a process has here. Raises as `train_tokenizer`, once
    those that run already have come to their end; before any begins where two of one folder share no vocabulary.
    """
    for job in jobs:
        zoo[job.name].check_overrides(job.overrides)
    places = [job.place(zoo) for job in jobs]
    first: dict[Path, ModalityHandle] = {}
    for job, place in zip(jobs, places, strict=True):
        one, other = first.setdefault(place, zoo[job.name]), zoo[job.name]
        if other.name != one.name and _is_of(one) != _is_of(other):
            raise ConfigError(
                f"{other.name}: its tokenizer and that of {one.name} would both be in {place}, and they share no"
                f" vocabulary; change {other.settings.origin.at('checkpoint')}"
            )
    shared = [job for job, place in zip(jobs, places, strict=True) if places.count(place) > 1]
    apart = [job for job in jobs if workers > 1 and job not in shared and not zoo[job.name].spec.shared_vocabulary]
    before = {place: _fingerprint(place) for place in places}
    done = set[Path]()
    for job in (*shared, *(job for job in jobs if job not in shared and job not in apart)):
        place = job.place(zoo)
        # What was trained anew a moment ago, for this one, too, is not removed again.
        trained = replace(job, overwrite=job.overwrite and place not in done).run(zoo)
        done.add(place)
        yield replace(trained, as_it_was=_fingerprint(place) == before[place])
    apart.sort(key=lambda job: job.samples(zoo), reverse=True)
    for trained in run_jobs(zoo, _train, apart, workers, lambda _: None):
        zoo.forget_tokenizers(trained.folder)
        yield trained


def _is_of(handle: ModalityHandle) -> str:
    """Whose a modality's checkpoint is: its own, or its vocabulary's."""
    return handle.name if handle.spec.own_tokenizer else handle.spec.vocabulary


def _train(zoo: Zoo, job: TokenizerJob) -> TrainedTokenizer:
    return job.run(zoo)


def _fingerprint(folder: Path) -> str | None:
    """The fingerprint of the checkpoint in a folder, None where there is none."""
    with contextlib.suppress(CheckpointError):
        return fingerprint(folder)
    return None


def train_tokenizer(
    zoo: Zoo,
    name: str,
    data: Path,
    *,
    out: Path | None = None,
    seed: int = 0,
    overrides: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    limit: int | None = None,
) -> Path:
    """Train the tokenizer of modality `name` on `data`; returns its checkpoint folder.

    That is `out`, or the one that the registry says. `overrides` replace keys of the modality's tokenizer table. With
    `overwrite` the tokenizer that is there is replaced, and stays where nothing is trained; else a run that was killed
    goes on. What was trained with another modality of its vocabulary, which shares the checkpoint, stays without it.
    The shared vocabulary that it writes in is trained before, where its own tokenizer is beside that and there
    is none yet. With `limit` no more samples of a split are read than that, spread over it. Raises DataError where
    `data` lack the modality, or no value of it can be read, ConfigError where the folder is that of a shared vocabulary
    of others, holds the tokenizer of another modality whose checkpoint it is, or is shared with one that is half way.
    """
    handle = zoo[name]
    folder = Path(out) if out is not None else handle.checkpoint
    handle.check_overrides(overrides or {})  # before anything is read, or removed
    zoo.check_place(name, folder)
    other = _check_whose(zoo, name, folder)
    if other and not overwrite:
        if is_complete(folder):
            return folder
        raise ConfigError(
            f"{name}: {folder} holds the half-trained tokenizer of {other}, which shares its vocabulary; finish that: "
            f"zoo tokenizer train {other} --data DATA"
        )
    samples = training_samples(zoo, handle, ValueStore(data), limit)
    if out is None and handle.files.lacks_vocabulary:
        with disk_errors(handle.files.vocabulary):
            train_vocabulary(handle, samples, handle.files.vocabulary)
    with disk_errors(folder), replacing(folder, TOKENIZER, overwrite):
        return handle.train_tokenizer(samples, folder, seed, **(overrides or {}))


def _check_whose(zoo: Zoo, name: str, folder: Path) -> str:
    """The modality beside `name` that the tokenizer in a folder is trained with, where they share it; else nothing.

    Raises ConfigError where they share none and the folder is the other's checkpoint.
    """
    whose = _trained_for(folder)
    for other in zoo.handles() if whose not in (None, name) else ():
        if other.name == whose and _is_of(other) == _is_of(zoo[name]):
            return other.name
        if other.name == whose and other.checkpoint.resolve() == folder.resolve():
            raise ConfigError(f"{name}: {folder} holds the tokenizer of {whose}; give it a checkpoint of its own")
    return ""


def _trained_for(folder: Path) -> Any:
    """The modality that the tokenizer in a folder, which may be half trained, was for; None where it does not say."""
    with contextlib.suppress(CheckpointError):
        if (folder / CONFIG).is_file():
            return read_table(folder / CONFIG).get("modality")
        if (record := read_run(folder)) is not None:
            return record["identity"]["model"]["modality"]
    return None


def train_vocabulary(handle: ModalityHandle, samples: TrainingSamples, folder: Path) -> None:
    """Train the shared vocabulary of a modality on the texts of all who share it, into `folder`."""
    config = handle.settings.vocabulary(handle.spec.vocabulary, VocabularyConfig)
    TextVocabulary.train_folder(folder, config, samples.texts, samples.special_tokens, samples.provenance)


def trainable(zoo: Zoo, data: Path) -> list[str]:
    """The enabled modalities that `data` hold for training, in the order of their names. Raises DataError for none."""
    store = ValueStore(data)
    present = store.modalities(TRAIN)
    names = [handle.name for handle in zoo.handles() if handle.name in present]
    if not names:
        raise DataError(f"{store.root / TRAIN}: holds {', '.join(present)}, and no modality of it can be used")
    return names


def overrides_of_each(zoo: Zoo, names: Sequence[str], overrides: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """By modality, those of `overrides` that its tokenizer table has a key for.

    Raises UnknownKeyError for a key that no table has. Whether they go together `train_tokenizers` finds.
    """
    known: dict[str, set[str]] = {}
    for name in names:
        table = zoo[name].known_settings().get("tokenizer")
        known[name] = {item.name for item in dataclasses.fields(table)} if dataclasses.is_dataclass(table) else set()
    reject_unknown(overrides, set().union(*known.values()), Origin(table="modalities.*.tokenizer"))
    return {name: {key: value for key, value in overrides.items() if key in known[name]} for name in names}


def training_samples(zoo: Zoo, handle: ModalityHandle, store: ValueStore, limit: int | None = None) -> TrainingSamples:
    """Return the values of a modality, and the text of all modalities that write in its vocabulary.

    With `limit` a split of more values gives so many, spread over it. Values were validated when they were written; one
    that cannot be read with the present settings stops the training with an error that names it.
    """
    sharing = [zoo[other] for other in zoo.vocabularies().get(handle.spec.vocabulary, [])]
    special = dict.fromkeys(token for other in sharing for token in other.vocabulary_tokens())
    places = {TRAIN: _places(store, TRAIN, handle.name, limit)}
    if TEST in store.splits():
        places[TEST] = _places(store, TEST, handle.name, limit)
    if not len(places[TRAIN]):
        raise DataError(f"{store.root / TRAIN / handle.name}: holds no values")
    provenance = {
        "data": store.record(TRAIN, handle.name) or {"folder": store.root.name},
        "contents": {
            split: store.contents(split, handle.name)[:16] if split in places and limit is None else ""
            for split in (TRAIN, TEST)
        },
        "settings": reading_settings(handle),
    }
    return TrainingSamples(
        train=LazyValues(places[TRAIN], lambda place: _value(store, handle, TRAIN, place)),
        test=LazyValues(places.get(TEST, ()), lambda place: _value(store, handle, TEST, place)),
        texts=lambda: _texts(store, sharing, limit),
        special_tokens=tuple(special),
        provenance=provenance,
    )


def _places(store: ValueStore, split: str, modality: str, limit: int | None) -> Sequence[Place]:
    """Return where a modality's values are, or `limit` of them, spread over the split."""
    rows = store.rows(split, [modality])
    return rows if limit is None else [rows[number] for number in spread(len(rows), limit)]


def _value(store: ValueStore, handle: ModalityHandle, split: str, place: Place) -> Any:
    """Return a value; the error of one that cannot be read with the present settings names it."""
    try:
        return store.read(handle, split, *place)
    except InvalidValueError as error:
        key = store.split(split).keys(place.shard)[place.row]
        advice = f"if a setting has changed since it was written, make {store.root} again"
        raise InvalidValueError(f"{store.root / split / handle.name}: {key}: {error}; {advice}") from error


def _texts(store: ValueStore, sharing: Sequence[ModalityHandle], limit: int | None) -> Iterator[str]:
    """Yield the text of the training values of all modalities that write in a vocabulary, by modality.

    Where some write text and there is none, a line on stderr says so at the end.
    """
    present, found = store.modalities(TRAIN), False
    writers = [handle for handle in sharing if handle.implements("vocabulary_texts")]
    for handle in writers:
        places = _places(store, TRAIN, handle.name, limit) if handle.name in present else ()
        for start in range(0, len(places), TEXT_BATCH):
            texts = handle.vocabulary_texts(
                [_value(store, handle, TRAIN, place) for place in places[start : start + TEXT_BATCH]]
            )
            found = found or any(map(str.strip, texts))
            yield from texts
    if writers and not found:
        line = (
            f"vocabulary {writers[0].spec.vocabulary}: {store.root / TRAIN} has no text of "
            f"{', '.join(handle.name for handle in writers)}: no pieces are learned, and text is then written byte by "
            "byte; once there is some, train the vocabulary anew (--overwrite)"
        )
        say(Console(stderr=True), line)
