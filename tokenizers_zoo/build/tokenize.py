"""`zoo tokenize`: encode values into a token store, one shard of one modality at a time.

A shard whose inputs digest is unchanged is skipped, any other one is made again.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from tokenizers_zoo.build.outcomes import Outcome, RunResult
from tokenizers_zoo.build.workers import ShardJob, WorkerError, Workers, report, suspects, working_on
from tokenizers_zoo.contract.samples import TRAIN
from tokenizers_zoo.contract.spec import Crop
from tokenizers_zoo.errors import CheckpointError, ConfigError, DataError, ReadError, ZooError, is_transient
from tokenizers_zoo.files.run_folder import entries, locked
from tokenizers_zoo.machine.progress import progress_bar
from tokenizers_zoo.records.io import disk_errors, remove_folder
from tokenizers_zoo.records.typed import as_dicts
from tokenizers_zoo.stores.manifest import (
    Manifest,
    inputs_digest,
    read_manifest,
    remove_shard,
    shards_of,
    sound_manifest,
)
from tokenizers_zoo.stores.shards import ValueStore, reading_settings
from tokenizers_zoo.stores.token_shard import TokenManifest, TokenMetadata, write_token_shard
from tokenizers_zoo.stores.tokens import STORE, SUMMARY, TokenSplit, TokenStore, TokenSummary, write_store
from tokenizers_zoo.tokenizers.vocabulary import check_special_tokens

if TYPE_CHECKING:
    from tokenizers_zoo.contract.registry import ModalityHandle, Zoo

Item = TypeVar("Item")
Result = TypeVar("Result")
BATCHES_AHEAD = 3
"""Batches whose values are read while an earlier one is encoded."""
CROP_SIDE = (0.5, 1.0)
"""Shortest and longest side of a random crop, as fractions of the picture's side."""


def tokenize(
    zoo: Zoo,
    data: Path,
    out: Path,
    *,
    modalities: Sequence[str] | None = None,
    splits: Sequence[str] | None = None,
    batch_size: int = 128,
    crops: int = 1,
    seed: int = 0,
    workers: int = 0,
    overwrite: bool = False,
    device: str = "cpu",
    dry_run: bool = False,
) -> RunResult:
    """Encode the values in `data` into the token store `out`.

    With `crops` above 1, each sample of the split "train" has the whole picture and `crops - 1` random crops, which all
    modalities share. Shards whose inputs are unchanged are skipped; `overwrite` encodes every shard again. With
    `dry_run` nothing is written, and the result counts the samples to encode. With `workers` above 0, so many processes
    encode shards, and a value that kills or blocks its process is dropped.

    Raises DataError if the data lack one of `modalities`, if no modality has a tokenizer, or if `out` has other files
    or tokens of other samples. Also raises DataError, after encoding the other modalities, if no sample of a modality
    could be encoded. Raises CheckpointError if a vocabulary lacks special tokens, FolderError if another process writes
    to `out`, and WorkerError, after the other modalities, if the values of a modality kill process after process.
    """
    if crops < 1 or batch_size < 1:
        raise ConfigError(f"crops {crops}, batch size {batch_size}: expected at least 1 of each")
    store, out, result = ValueStore(data), Path(out), RunResult(planned=dry_run)
    _check_output_folder(out)
    splits = splits or store.splits()
    for split in splits:
        for name in store.modalities(split):  # of a killed `zoo data make`
            shard_count, expected_count = len(shards_of(store.folder(split, name))), store.split(split).shards
            if shard_count < expected_count:
                counts = f"{shard_count} of {expected_count} shards are there"
                result.notes.append(f"{split}/{name}: {counts}: `zoo data make` did not finish")
    for name in modalities or ():
        if not any(name in store.modalities(split) for split in splits):
            store.folder(splits[0], name)  # raises the error that lists the modalities
    handles_by_split = {split: _select_modalities(zoo, store, split, modalities, result) for split in splits}
    for split, handles in handles_by_split.items():
        for handle in handles:
            store.check_size(handle, split)
    untrained = [handle.name for handle in zoo.handles() if handle.name in result.skipped and not handle.has_tokenizer]
    if untrained and not any(handles_by_split.values()):
        raise DataError(
            f"{store.root}: none of its modalities has a tokenizer ({', '.join(untrained)}); `zoo tokenizer train"
            f" {untrained[0]} --data {store.root}` trains one tokenizer, --all in place of the name trains all"
        )
    with disk_errors(out), locked(out):
        jobs = []
        for split, handles in handles_by_split.items():
            samples = store.split(split)
            views = crops if split == TRAIN else 1
            target = TokenSplit(
                out,
                split,
                samples.samples,
                samples.shard_size,
                crops=views,
                seed=seed if views > 1 else 0,
                source=store.source(split),
            )
            _check_same_samples(store, target, [handle.name for handle in handles], overwrite)
            for handle in handles:
                handle.device = "cpu" if workers else device
                jobs.append(_Plan(handle, store, target))
        for job in jobs:
            job.plan(overwrite)
            if workers:
                job.handle.forget_tokenizer()  # each worker loads its own
        if dry_run:
            for job in jobs:
                job.outcome.written = sum(map(job.split.rows, job.todo)) * job.split.crops
            result.outcomes += [job.outcome for job in jobs]
            return result
        for job in jobs:
            if job.todo:
                (job.folder / SUMMARY).unlink(missing_ok=True)
            for shard in shards_of(job.folder):
                if shard in job.todo or shard >= job.split.shards:
                    remove_shard(job.folder, shard)
        write_store(out, store.root, {job.split.name: job.split for job in jobs}.values())
        for job in jobs:
            job.folder.mkdir(parents=True, exist_ok=True)
        with Workers(zoo, workers, max((job.split.shards for job in jobs), default=0)) as pool:
            for job in jobs:
                try:
                    job.run(pool, batch_size, device)
                except WorkerError as error:
                    result.errors.append(error)
                result.outcomes.append(job.outcome)
                if job.outcome.all_dropped:
                    remove_folder(job.folder)
                elif 0 < job.split.shards == len(shards_of(job.folder)):
                    TokenSummary.of(job.split, job.handle.name).write(job.folder)
    return result.check()


def random_crop(seed: int, key: str, number: int) -> Crop:
    """Return view `number` of a sample, a function of seed and key, so that all modalities share it. 0 is the whole.

    Sides keep the picture's proportions and are uniform in [0.5, 1] of it; the place is uniform.
    """
    if number == 0:
        return Crop()
    name = hashlib.sha256(f"{seed}/{number}/{key}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(name[:16], "big"))
    side = float(rng.uniform(*CROP_SIDE))
    top, left = (float(offset) for offset in rng.uniform(0, 1 - side, 2))
    return Crop(top=top, left=left, height=side, width=side)


# ---------------------------------------------------------------------- checks before anything is written


def _check_output_folder(out: Path) -> None:
    """Raise DataError if a folder holds files and no store.json; hidden files do not count."""
    with disk_errors(out):
        if not (out / STORE).is_file() and (files := entries(out)):
            raise DataError(f"{out}: holds {files[0].name}, and no token store; give another --out")


def _select_modalities(
    zoo: Zoo, store: ValueStore, split: str, modalities: Sequence[str] | None, result: RunResult
) -> list[ModalityHandle]:
    """Return the modalities to encode: `modalities`, as far as the split has them, or all with a tokenizer."""
    present = store.modalities(split)
    if modalities is not None:
        result.skipped |= {name: f"{store.root / split} lacks it" for name in modalities if name not in present}
        return [zoo[name] for name in modalities if name in present]
    handles = [handle for handle in zoo.handles() if handle.name in present]
    for handle in handles:
        if not handle.has_tokenizer:
            result.skipped[handle.name] = f"no tokenizer at {handle.checkpoint}; train one first"
    plugin_errors = zoo.problems()
    for name in sorted(set(present) - {handle.name for handle in handles}):
        result.skipped[name] = plugin_errors.get(name, "no enabled modality of this name")
    return [handle for handle in handles if handle.has_tokenizer]


def _check_same_samples(values: ValueStore, target: TokenSplit, encoded: Collection[str], overwrite: bool) -> None:
    """Raise DataError if tokens in the store are of other samples or crops than the tokens to be written.

    Samples of two data folders may have the same keys. `overwrite` allows it if all modalities of the store are
    `encoded`, so that no tokens remain.
    """
    if not (target.root / STORE).is_file():
        return
    store = TokenStore(target.root)
    if target.name not in store.splits():
        return
    recorded, names = store.split(target.name), store.modalities(target.name)
    remaining = sorted(set(names) - set(encoded))
    if recorded.source and target.source:
        same = recorded.source == target.source
    else:
        same = store.data == values.root.resolve() or any(_same_values(values, target, name) for name in names)
    if not same:
        reason = f"holds tokens made of {store.data}, which are other samples than those of {values.root}"
    elif (recorded.crops, recorded.seed) != (target.crops, target.seed):
        reason = f"holds tokens made with --crops {recorded.crops} --seed {recorded.seed}"
    elif recorded.samples > target.samples and not overwrite:
        reason = f"holds {recorded.samples} samples, and {values.root} has {target.samples}"
    else:
        return
    if remaining and overwrite:
        present = values.modalities(target.name)
        missing = " ".join(str(target.folder / name) for name in remaining if name not in present)
        advice = f"delete {missing}" if missing else "leave out --modalities"
        raise DataError(f"{target.folder / remaining[0]}: {reason}; give another folder, or {advice}")
    if not overwrite:
        raise DataError(f"{target.folder / names[0]}: {reason}; give another folder, or --overwrite")


def _same_values(values: ValueStore, target: TokenSplit, name: str) -> bool:
    """Return whether the first shard of a modality's tokens was made of these values."""
    manifest = read_manifest(target.folder / name, 0, TokenManifest) if name in values.modalities(target.name) else None
    return manifest is not None and manifest.record.values == values.contents(target.name, name, [0])


# ---------------------------------------------------------------------- one modality of one split


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizeShard(ShardJob):
    """One job: the tokens of one shard of a modality."""

    data: Path
    split: TokenSplit
    metadata: TokenMetadata
    values: str
    """Digest of the values."""
    batch_size: int


class View(NamedTuple):
    """One view of one sample, to be encoded."""

    row: int
    number: int


class _Plan:
    """The work for one modality of one split."""

    def __init__(self, handle: ModalityHandle, values: ValueStore, split: TokenSplit) -> None:
        self.handle, self.values, self.split = handle, values, split
        self.metadata = TokenMetadata.of(handle, reading_settings(handle))
        self.folder = split.folder / handle.name
        self.outcome = Outcome(split=split.name, modality=handle.name)
        self.todo: list[int] = []

    def _contents(self, shard: int) -> str:
        return self.values.contents(self.split.name, self.handle.name, [shard])

    def _inputs(self, shard: int, fingerprint: str) -> str:
        return inputs_digest(
            values=self._contents(shard),
            tokenizer=fingerprint,
            settings=self.metadata.settings,
            layout=as_dicts(self.metadata.layout),
            crops=self.split.crops,
            seed=self.split.seed,
            **self.handle.limits.identity(),
        )

    def plan(self, overwrite: bool) -> None:
        """Fill `todo` with the shards that are missing or of other inputs, and count the others."""
        is_compatible = cache(self.handle.can_read)
        unchanged: dict[int, TokenManifest] = {}
        for shard in range(self.split.shards) if not overwrite else ():
            manifest = sound_manifest(self.folder, shard, TokenManifest)
            if manifest is not None and manifest.keys == self.split.sound_keys_digest(shard):
                fingerprint = manifest.record.writer.fingerprint
                same_inputs = manifest.inputs == self._inputs(shard, fingerprint)
                if same_inputs and is_compatible(fingerprint, manifest.record.needed_vocab_size):
                    unchanged[shard] = manifest
        if len(unchanged) < self.split.shards:  # all shards of a modality have one fingerprint
            unchanged = {
                shard: manifest for shard, manifest in unchanged.items() if manifest.record.writer == self.metadata
            }
        for shard, manifest in unchanged.items():
            self.outcome.add(self.split, shard, manifest, unchanged=True)
        self.todo = [shard for shard in range(self.split.shards) if shard not in unchanged]
        if self.todo:
            _ = self.handle.tokenizer  # an altered one is refused before anything is removed
            check_special_tokens(self.handle)

    def run(self, workers: Workers, batch_size: int, device: str) -> None:
        """Write the shards of `todo`."""
        jobs = (
            TokenizeShard(
                data=self.values.root,
                split=self.split,
                modality=self.handle.name,
                shard=shard,
                metadata=self.metadata,
                inputs=self._inputs(shard, self.metadata.fingerprint),
                values=self._contents(shard),
                batch_size=batch_size,
                device=device,
            )
            for shard in self.todo
        )
        crops, title = self.split.crops, f"tokenize {self.split.name}/{self.handle.name}"
        with progress_bar(title, sum(map(self.split.rows, self.todo)) * crops) as advance:
            for shard, manifest in workers.run(tokenize_shard, jobs, advance):
                self.outcome.add(self.split, shard, manifest)


def tokenize_shard(zoo: Zoo, job: TokenizeShard) -> tuple[int, Manifest]:
    """Encode and write one shard; returns its number and manifest. A sample with an invalid value or view is dropped.

    If one was dropped for a reason that may pass, the shard is noted without an inputs digest: the next run makes it
    again. Raises CheckpointError if the tokenizer was replaced meanwhile.
    """
    handle, store, split, metadata = zoo[job.modality], ValueStore(job.data), job.split, job.metadata
    keys = store.split(split.name).keys(job.shard)
    handle.device = job.device
    if handle.fingerprint != metadata.fingerprint:
        raise CheckpointError(f"{handle.checkpoint}: was replaced while it was in use; run the same command again")
    _ = handle.tokenizer  # loading it is not part of a value's time

    def read(view: View) -> Any:
        """Return a value, or the error if the sample is invalid."""
        crop = random_crop(split.seed, keys[view.row], view.number)
        try:
            with working_on((view.row, job.modality)):
                return store.read(handle, split.name, job.shard, view.row, crop)
        except ReadError:
            raise
        except ZooError as error:
            return error

    def encode(views: Sequence[View], values: Sequence[Any]) -> Iterator[tuple[View, Any]]:
        """Yield each view with its tokens, or with the error of its value."""
        sound = {view: value for view, value in zip(views, values, strict=True) if not isinstance(value, ZooError)}
        with working_on(*((row, job.modality) for row in {view.row for view in sound})):
            tokens = dict(zip(sound, handle.encode_each(list(sound.values())), strict=True))
        yield from ((view, tokens.get(view, value)) for view, value in zip(views, values, strict=True))

    def views_of(rows: Iterable[int]) -> list[View]:
        return [View(row, number) for row in rows for number in range(split.crops)]

    for view in views_of(suspects()):
        list(encode([view], [read(view)]))
    views = views_of(np.flatnonzero(store.present(split.name, job.modality, job.shard)).tolist())
    batches = (views[start : start + job.batch_size] for start in range(0, len(views), job.batch_size))
    encoded: defaultdict[int, list[npt.NDArray[Any]]] = defaultdict(list)
    dropped: dict[int, str] = {}
    retry = False
    for batch, values in read_ahead(read, batches):
        for view, encoding in encode(batch, values):
            if isinstance(encoding, ZooError):
                dropped.setdefault(view.row, str(encoding))
                retry = retry or is_transient(encoding)
            elif reason := metadata.number_problem(np.asarray(encoding)):
                dropped.setdefault(view.row, f"{job.modality}: {reason}")
            else:
                encoded[view.row].append(metadata.to_stored(np.asarray(encoding)))
        report(len(batch))
    report(split.rows(job.shard) * split.crops - len(views))
    rows = [None if row in dropped else encoded.get(row) for row in range(split.rows(job.shard))]
    with disk_errors(split.folder):
        manifest = write_token_shard(
            split.folder / job.modality,
            job.shard,
            metadata,
            rows,
            keys=split.write_keys(job.shard, keys),
            crops=split.crops,
            dropped=dropped,
            inputs="" if retry else job.inputs,
            values=job.values,
        )
    return job.shard, manifest


def read_ahead(
    read: Callable[[Item], Result], batches: Iterable[Sequence[Item]]
) -> Iterator[tuple[Sequence[Item], list[Result]]]:
    """Yield batches with the results of `read` for their items, in order; two threads read some batches ahead."""
    with ThreadPoolExecutor(2, thread_name_prefix="read") as pool:
        waiting: deque[tuple[Sequence[Item], Iterator[Result]]] = deque()
        try:
            for batch in batches:
                waiting.append((batch, pool.map(read, batch)))
                if len(waiting) == BATCHES_AHEAD:
                    first, results = waiting.popleft()
                    yield first, list(results)
            for first, results in waiting:
                yield first, list(results)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
