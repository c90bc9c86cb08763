"""`zoo tokenizer train`: a modality's values as training samples, and tokenizers trained on them."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers_zoo.build.workers import run_jobs
from tokenizers_zoo.contract.samples import TEST, TRAIN, TrainingSamples
from tokenizers_zoo.errors import CheckpointError, ConfigError, DataError
from tokenizers_zoo.files.checkpoint import CONFIG, CheckpointRecord, is_complete
from tokenizers_zoo.files.run_folder import TOKENIZER, OtherRunError, read_run, replacing
from tokenizers_zoo.machine.device import AUTO
from tokenizers_zoo.machine.progress import say
from tokenizers_zoo.machine.terminal import console
from tokenizers_zoo.records.config import Origin, reject_unknown
from tokenizers_zoo.records.io import disk_errors, read_record
from tokenizers_zoo.stores.shards import ValueStore, reading_settings
from tokenizers_zoo.tokenizers.text_vocab import TextVocabulary, VocabularyConfig

if TYPE_CHECKING:
    from tokenizers_zoo.contract.registry import ModalityHandle, Zoo

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
    device: str = AUTO


def train_tokenizers(
    zoo: Zoo, jobs: Sequence[TokenizerJob], workers: int = 1, *, skipped: dict[str, str] | None = None
) -> Iterator[tuple[str, Path]]:
    """Train tokenizers in up to `workers` processes that share the CPU cores; yield name and folder of each.

    With `skipped`, a tokenizer that was trained with other settings or data is left as it is, and the reason is written
    there by name. Without, it is an OtherRunError.

    Modalities with a shared vocabulary are trained first and sequentially, because only one process may write to it.
    With `overwrite` the vocabulary is retrained only once. The remaining jobs start with the longest, so that no long
    job runs alone at the end. The weights equal a run with one worker and the same number of threads per process.
    Raises the errors of `train_tokenizer` after the running jobs have finished.
    """
    for job in jobs:
        zoo[job.name].check_overrides(job.overrides)
    folders = [(job.out or zoo[job.name].checkpoint).resolve() for job in jobs]

    def sample_count(job: TokenizerJob) -> int:
        """Return the number of training samples from steps and batch size; 0 if the table has no steps."""
        table = zoo[job.name].known_settings().get("tokenizer")
        return math.prod(int(job.overrides.get(key, getattr(table, key, 0))) for key in ("steps", "batch_size"))

    sequential, parallel, retrained = list[TokenizerJob](), list[TokenizerJob](), set[Path]()
    for job, folder in zip(jobs, folders, strict=True):
        if workers > 1 and folders.count(folder) == 1 and not zoo[job.name].spec.shared_vocabulary:
            parallel.append(job)
            continue
        # A shared tokenizer that an earlier job has retrained is not removed again.
        sequential.append(replace(job, overwrite=job.overwrite and folder not in retrained))
        retrained.add(folder)
    train = partial(_train, leave=skipped is not None)
    trained = itertools.chain(
        (train(zoo, job) for job in sequential),
        run_jobs(zoo, train, sorted(parallel, key=sample_count, reverse=True), workers),
    )
    for name, result in trained:
        if skipped is not None and isinstance(result, str):
            skipped[name] = result
        else:
            zoo.forget_tokenizers(Path(result))
            yield name, Path(result)


def _train(zoo: Zoo, job: TokenizerJob, *, leave: bool) -> tuple[str, Path | str]:
    """Train a tokenizer; return its name and folder, or with `leave` its name and the text of an OtherRunError."""
    try:
        return job.name, train_tokenizer(zoo, **dataclasses.asdict(job))
    except OtherRunError as error:
        if not leave:
            raise
        return job.name, str(error)


def plan_of(zoo: Zoo, job: TokenizerJob) -> str:
    """Return what `train_tokenizer` would do, in words."""
    handle = zoo[job.name]
    folder, table = job.out or handle.checkpoint, handle.known_settings().get("tokenizer")
    steps = job.overrides.get("steps", getattr(table, "steps", None))
    length = "" if steps is None else f" for {steps} steps"
    record = read_run(folder)
    if job.overwrite and (folder / CONFIG).is_file():
        return f"replace the tokenizer in {folder}, trained{length}"
    if is_complete(folder):
        return f"{folder} is there; it is kept, unless settings or data differ"
    return f"{'resume' if record else 'train'}{length} in {folder}"


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
    device: str = AUTO,
) -> Path:
    """Train the tokenizer of modality `name` on `data` and return its checkpoint folder.

    The folder is `out` or, by default, the registry's. Training runs on `device`. `overrides` replace keys of the
    modality's tokenizer table. With `overwrite` an existing tokenizer is replaced, but kept if training fails. Without
    it, an interrupted run is resumed, and a checkpoint that was trained with another modality of the same vocabulary is
    kept. If the modality has its own tokenizer and also needs a shared vocabulary that does not exist, the vocabulary
    is trained first. With `limit` at most so many samples of each split are read, spread over the split. Raises
    DataError if `data` lack the modality or no value can be read. Raises ConfigError if the folder belongs to a shared
    vocabulary of other modalities, is the checkpoint of another modality, or has the unfinished tokenizer of a modality
    that shares it.
    """
    handle = zoo[name]
    folder = Path(out) if out is not None else handle.checkpoint
    handle.check_overrides(overrides or {})  # before anything is read, or removed
    _check_folder(zoo, handle, folder)
    sharer = _other_owner(zoo, name, folder)
    if sharer and not overwrite:
        if is_complete(folder):
            return folder
        raise ConfigError(
            f"{name}: {folder} holds the half-trained tokenizer of {sharer}, which shares its vocabulary; finish that: "
            f"zoo tokenizer train {sharer} --data DATA"
        )
    samples = training_samples(zoo, handle, ValueStore(data), limit)
    if out is None and handle.files.lacks_vocabulary:
        with disk_errors(handle.files.vocabulary):
            train_vocabulary(handle, samples, handle.files.vocabulary)
    with disk_errors(folder), replacing(folder, TOKENIZER, overwrite):
        return handle.train_tokenizer(samples, folder, seed, device=device, **(overrides or {}))


def _check_folder(zoo: Zoo, handle: ModalityHandle, folder: Path) -> None:
    """Raise ConfigError if a tokenizer in this folder would replace the text vocabulary of other modalities."""
    spec = handle.spec
    for user in zoo.handles() if spec.own_tokenizer or not handle.writes_text else ():
        shares = spec.shares_checkpoint and spec.vocabulary == user.spec.vocabulary
        writes_text = user.writes_text and user.spec.shared_vocabulary and user is not handle
        if writes_text and not shares and user.files.vocabulary.resolve() == folder.resolve():
            raise ConfigError(
                f"{handle.name}: {folder} is the folder of the text vocabulary {user.spec.vocabulary!r} of "
                f"{user.name}; rename the modality, or give it another folder"
            )


def _other_owner(zoo: Zoo, name: str, folder: Path) -> str:
    """Return the other modality that the shared tokenizer in a folder was trained with; "" if there is none.

    Raises ConfigError if the folder is the checkpoint of a modality that shares no tokenizer with `name`.
    """
    owner_name = trained_for(folder)
    if owner_name not in (None, name) and owner_name in zoo:
        spec, owner = zoo[name].spec, zoo[owner_name]
        if spec.vocabulary == owner.spec.vocabulary and not spec.own_tokenizer and not owner.spec.own_tokenizer:
            return owner.name
        if owner.checkpoint.resolve() == folder.resolve():
            raise ConfigError(f"{name}: {folder} holds the tokenizer of {owner_name}; give it a checkpoint of its own")
    return ""


def trained_for(folder: Path) -> Any:
    """Return the modality of the finished or unfinished tokenizer in a folder, or None if it is unknown."""
    with contextlib.suppress(CheckpointError):
        if (folder / CONFIG).is_file():
            return read_record(folder / CONFIG, CheckpointRecord).modality
        if (record := read_run(folder)) is not None:
            return record.identity["model"]["modality"]
    return None


def train_vocabulary(handle: ModalityHandle, samples: TrainingSamples, folder: Path) -> None:
    """Train the shared vocabulary of a modality into `folder`, on the texts of all modalities that share it."""
    config = handle.settings.vocabulary(handle.spec.vocabulary, VocabularyConfig)
    TextVocabulary.train_folder(
        folder, config, samples.texts, samples.special_tokens, samples.provenance, samples.text_of
    )


def usable_modalities(zoo: Zoo, data: Path, split: str = TRAIN) -> list[str]:
    """Return the enabled modalities in a split, sorted by name. Raises DataError if there are none."""
    store = ValueStore(data)
    present = store.modalities(split)
    names = [handle.name for handle in zoo.handles() if handle.name in present]
    if not names:
        raise DataError(f"{store.root / split}: holds {', '.join(present)}, and no modality of it can be used")
    return names


def overrides_of_each(zoo: Zoo, names: Sequence[str], overrides: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return, for each modality, the `overrides` that its tokenizer table has a key for.

    Raises ConfigError for a key that no table has. `train_tokenizers` checks whether they are consistent.
    """
    keys_by_modality: dict[str, set[str]] = {}
    for name in names:
        table = zoo[name].known_settings().get("tokenizer")
        fields = dataclasses.fields(table) if dataclasses.is_dataclass(table) else ()
        keys_by_modality[name] = {field.name for field in fields}
    reject_unknown(overrides, set().union(*keys_by_modality.values()), Origin(table="modalities.*.tokenizer"))
    return {name: {key: value for key, value in overrides.items() if key in keys_by_modality[name]} for name in names}


def training_samples(zoo: Zoo, handle: ModalityHandle, store: ValueStore, limit: int | None = None) -> TrainingSamples:
    """Return the values of a modality, and the text of all modalities that write in its vocabulary.

    With `limit` at most so many values of each split are used, spread over the split. Values were validated when they
    were written. If a value cannot be read with the present settings, training stops with an error that names it.
    """
    sharers = [zoo[modality] for modality in zoo.vocabularies().get(handle.spec.vocabulary, [])]
    writers = [sharer for sharer in sharers if sharer.implements("vocabulary_texts")]
    present = store.modalities(TRAIN)
    values = {split: store.values(handle, split, limit) for split in (TRAIN, TEST) if split in {TRAIN, *store.splits()}}
    if not len(values[TRAIN]):
        raise DataError(f"{store.root / TRAIN / handle.name}: holds no values")
    provenance = {
        "data": store.record(TRAIN, handle.name) or {"folder": store.root.name},
        "contents": {
            split: store.contents(split, handle.name)[:16] if split in values and limit is None else ""
            for split in (TRAIN, TEST)
        },
        "settings": reading_settings(handle),
    }
    return TrainingSamples(
        train=values[TRAIN],
        test=values.get(TEST, ()),
        texts=lambda: _texts(store, writers, limit),
        special_tokens=tuple(dict.fromkeys(token for sharer in sharers for token in sharer.vocabulary_tokens())),
        text_of=tuple(writer.name for writer in writers if writer.name in present),
        provenance=provenance,
    )


def _texts(store: ValueStore, writers: Sequence[ModalityHandle], limit: int | None) -> Iterator[str]:
    """Yield the text of the training values of these modalities, one after the other.

    Warn on stderr at the end if no text was found.
    """
    present, has_text = store.modalities(TRAIN), False
    for handle in writers:
        values = store.values(handle, TRAIN, limit, cache_bytes=0) if handle.name in present else ()
        for start in range(0, len(values), TEXT_BATCH):
            texts = handle.vocabulary_texts(values[start : start + TEXT_BATCH])
            has_text = has_text or any(map(str.strip, texts))
            yield from texts
    if writers and not has_text:
        line = (
            f"vocabulary {writers[0].spec.vocabulary}: {store.root / TRAIN} has no text of "
            f"{', '.join(handle.name for handle in writers)}: no pieces are learned, and text is then written byte by "
            "byte; once there is some, train the vocabulary anew (--overwrite)"
        )
        say(console(), line, warning=True)
