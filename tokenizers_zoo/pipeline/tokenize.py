"""`zoo tokenize`: encode values into a token store, one shard of one modality at a time.

A shard whose inputs digest is unchanged is skipped, any other one is made again.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tokenizers_zoo.data.manifest import Manifest, inputs_digest, read_manifest, remove_shard, shards_of, sound_manifest
from tokenizers_zoo.data.samples import TRAIN
from tokenizers_zoo.data.shards import ValueStore, reading_settings
from tokenizers_zoo.data.token_shard import TokenMetadata, write_token_shard
from tokenizers_zoo.data.tokens import STORE, TokenSplit, TokenStore, write_store
from tokenizers_zoo.errors import ConfigError, DataError, ReadError, ZooError, passing
from tokenizers_zoo.io import disk_errors, remove_folder
from tokenizers_zoo.pipeline.engines import Outcome, RunResult, read_ahead
from tokenizers_zoo.pipeline.vocabulary import check_special_tokens
from tokenizers_zoo.progress import progress_bar
from tokenizers_zoo.run_folder import entries, locked
from tokenizers_zoo.spec import Crop, layout_to_json

if TYPE_CHECKING:
    from tokenizers_zoo.registry import ModalityHandle, Zoo

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
    threads: int = 2,
    overwrite: bool = False,
    device: str = "cpu",
    dry_run: bool = False,
) -> RunResult:
    """Encode the values in `data` into the token store `out`.

    With `crops` above 1, each sample of the split "train" has the whole picture and `crops - 1` random crops, which all
    modalities share. Shards whose inputs are unchanged are skipped; `overwrite` encodes every shard again. With
    `dry_run` nothing is written, and the result counts the samples to encode.

    Raises DataError if the data lack one of `modalities`, if no modality has a tokenizer, or if `out` has other files
    or tokens of other samples. Also raises DataError, after encoding the other modalities, if no sample of a modality
    could be encoded. Raises CheckpointError if a vocabulary lacks special tokens, and FolderError if another process
    writes to `out`.
    """
    if crops < 1 or batch_size < 1:
        raise ConfigError(f"crops {crops}, batch size {batch_size}: expected at least 1 of each")
    store, out, result = ValueStore(data), Path(out), RunResult(planned=dry_run)
    _check_place(out)
    splits = splits or store.splits()
    for split in splits:
        for name in store.modalities(split):  # of a killed `zoo data make`
            there, wanted = len(shards_of(store.folder(split, name))), store.split(split).shards
            if there < wanted:
                place = f"{split}/{name}: {there} of {wanted} shards are there"
                result.notes.append(f"{place}: `zoo data make` did not finish")
    for name in modalities or ():
        if not any(name in store.modalities(split) for split in splits):
            store.folder(splits[0], name)  # raises the error that lists the modalities
    chosen = {split: _chosen(zoo, store, split, modalities, result) for split in splits}
    for split, handles in chosen.items():
        for handle in handles:
            store.check_size(handle, split)
    lacking = sorted(one.name for one in zoo.handles() if one.name in result.skipped and not one.has_tokenizer)
    if lacking and not any(chosen.values()):
        raise DataError(
            f"{store.root}: none of its modalities has a tokenizer ({', '.join(lacking)}); `zoo tokenizer train"
            f" {lacking[0]} --data {store.root}` trains one tokenizer, --all in place of the name trains all"
        )
    with disk_errors(out), locked(out):
        jobs = []
        for split, handles in chosen.items():
            samples = store.split(split)
            views = crops if split == TRAIN else 1
            target = TokenSplit(
                out, split, samples.samples, samples.shard_size, crops=views, seed=seed if views > 1 else 0,
                source=store.source(split),
            )  # fmt: skip
            _check_same_samples(store, target, [handle.name for handle in handles], overwrite)
            for handle in handles:
                handle.device = device
                jobs.append(_Job(handle, store, target, batch_size=batch_size, threads=threads))
        for job in jobs:
            job.plan(overwrite)
        if dry_run:
            for job in jobs:
                job.outcome.written = sum(map(job.split.rows, job.todo)) * job.split.crops
            result.outcomes += [job.outcome for job in jobs]
            return result
        for job in jobs:
            for shard in shards_of(job.folder):
                if shard in job.todo or shard >= job.split.shards:
                    remove_shard(job.folder, shard)
        write_store(out, store.root, {job.split.name: job.split for job in jobs}.values())
        for job in jobs:
            job.folder.mkdir(parents=True, exist_ok=True)
        for job in jobs:
            job.run()
            result.outcomes.append(job.outcome)
            if job.outcome.nothing:
                remove_folder(job.folder)
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
    top, left = (float(place) for place in rng.uniform(0, 1 - side, 2))
    return Crop(top=top, left=left, height=side, width=side)


# ---------------------------------------------------------------------- checks before anything is written


def _check_place(out: Path) -> None:
    """Raise DataError if a folder holds files and no store.json; hidden files do not count."""
    with disk_errors(out):
        if not (out / STORE).is_file() and (found := entries(out)):
            raise DataError(f"{out}: holds {found[0].name}, and no token store; give another --out")


def _chosen(
    zoo: Zoo, store: ValueStore, split: str, wanted: Sequence[str] | None, result: RunResult
) -> list[ModalityHandle]:
    """Return the modalities to encode: `wanted`, as far as the split has them, or all with a tokenizer."""
    present = store.modalities(split)
    if wanted is not None:
        result.skipped |= {name: f"{store.root / split} lacks it" for name in wanted if name not in present}
        return [zoo[name] for name in wanted if name in present]
    handles = [handle for handle in zoo.handles() if handle.name in present]
    for handle in handles:
        if not handle.has_tokenizer:
            result.skipped[handle.name] = f"no tokenizer at {handle.checkpoint}; train one first"
    problems = zoo.problems()
    for name in sorted(set(present) - {handle.name for handle in handles}):
        result.skipped[name] = problems.get(name, "no enabled modality of this name")
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
    before, names = store.split(target.name), store.modalities(target.name)
    staying = sorted(set(names) - set(encoded))
    if before.source and target.source:
        same = before.source == target.source
    else:
        same = store.data == values.root.resolve() or any(_same_values(values, target, name) for name in names)
    if not same:
        problem = f"holds tokens made of {store.data}, which are other samples than those of {values.root}"
    elif (before.crops, before.seed) != (target.crops, target.seed):
        problem = f"holds tokens made with --crops {before.crops} --seed {before.seed}"
    elif before.samples > target.samples and not overwrite:
        problem = f"holds {before.samples} samples, and {values.root} has {target.samples}"
    else:
        return
    if staying and overwrite:
        missing = " ".join(str(target.folder / name) for name in staying if name not in values.modalities(target.name))
        way_out = f"delete {missing}" if missing else "leave out --modalities"
        raise DataError(f"{target.folder / staying[0]}: {problem}; give another folder, or {way_out}")
    if not overwrite:
        raise DataError(f"{target.folder / names[0]}: {problem}; give another folder, or --overwrite")


def _same_values(values: ValueStore, target: TokenSplit, name: str) -> bool:
    """Return whether the first shard of a modality's tokens was made of these values."""
    manifest = read_manifest(target.folder / name, 0) if name in values.modalities(target.name) else None
    return manifest is not None and manifest.record.get("values") == values.contents(target.name, name, [0])


# ---------------------------------------------------------------------- one modality of one split


class View(NamedTuple):
    """One view of one sample, to be encoded."""

    row: int
    number: int
    shard: int


class _Job:
    """Encodes one modality of one split."""

    def __init__(
        self, handle: ModalityHandle, values: ValueStore, split: TokenSplit, *, batch_size: int, threads: int
    ) -> None:
        self.handle, self.values, self.split = handle, values, split
        self.batch_size, self.threads = batch_size, threads
        self.metadata = TokenMetadata.of(handle, reading_settings(handle))
        self.folder = split.folder / handle.name
        self.outcome = Outcome(split=split.name, modality=handle.name)
        self.todo: list[int] = []

    def _contents(self, shard: int) -> str:
        return self.values.contents(self.split.name, self.handle.name, [shard])

    def _inputs(self, shard: int, fingerprint: str) -> str:
        return inputs_digest(
            values=self._contents(shard), tokenizer=fingerprint, settings=self.metadata.settings,
            layout=layout_to_json(self.metadata.layout), crops=self.split.crops, seed=self.split.seed,
        )  # fmt: skip

    def plan(self, overwrite: bool) -> None:
        """Fill `todo` with the shards that are missing or of other inputs, and count the others."""
        speaks = cache(self.handle.speaks)
        kept: dict[int, Manifest] = {}
        for shard in range(self.split.shards) if not overwrite else ():
            manifest = sound_manifest(self.folder, shard)
            if manifest is not None and manifest.keys == self.split.sound_keys(shard):
                record = manifest.record
                writer = record["writer"]["fingerprint"]
                if manifest.inputs == self._inputs(shard, writer) and speaks(writer, record["needed_vocab_size"]):
                    kept[shard] = manifest
        if len(kept) < self.split.shards:  # all shards of a modality have one fingerprint
            now = self.metadata.to_json()
            kept = {shard: manifest for shard, manifest in kept.items() if manifest.record["writer"] == now}
        for shard, manifest in kept.items():
            self.outcome.add(self.split, shard, manifest, kept=True)
        self.todo = [shard for shard in range(self.split.shards) if shard not in kept]
        if self.todo:
            _ = self.handle.tokenizer  # an altered one is refused before anything is removed
            check_special_tokens(self.handle)

    def run(self) -> None:
        """Write the shards of `todo`. A sample with an invalid value or view is dropped.

        A shard is made again next time where one was dropped for a reason that may pass.
        """
        crops = self.split.crops
        samples = sum(self.split.rows(shard) for shard in self.todo)
        with progress_bar(f"tokenize {self.split.name}/{self.handle.name}", samples * crops) as advance:
            batches = read_ahead(self._read, self._batches(), threads=self.threads)
            for shard in self.todo:
                present = int(self.values.present(self.split.name, self.handle.name, shard).sum()) * crops
                encoded: defaultdict[int, list[npt.NDArray[Any]]] = defaultdict(list)
                dropped: dict[int, str] = {}
                passes = False
                for _ in range(0, present, self.batch_size):
                    views, read = next(batches)
                    tokens = iter(self.handle.encode_each([one for one in read if not isinstance(one, ZooError)]))
                    for view, value in zip(views, read, strict=True):
                        found = value if isinstance(value, ZooError) else next(tokens)
                        if isinstance(found, ZooError):
                            dropped.setdefault(view.row, str(found))
                            passes = passes or passing(found)
                        elif problem := self.metadata.number_problem(np.asarray(found)):
                            dropped.setdefault(view.row, f"{self.handle.name}: {problem}")
                        else:
                            encoded[view.row].append(self.metadata.to_stored(np.asarray(found)))
                    advance(len(views))
                advance(self.split.rows(shard) * crops - present)
                rows = [None if row in dropped else encoded.get(row) for row in range(self.split.rows(shard))]
                keys = self.split.write_keys(shard, self.values.split(self.split.name).keys(shard))
                inputs = "" if passes else self._inputs(shard, self.metadata.fingerprint)
                manifest = write_token_shard(
                    self.folder, shard, self.metadata, rows, keys=keys, crops=crops, dropped=dropped, inputs=inputs,
                    values=self._contents(shard),
                )  # fmt: skip
                self.outcome.add(self.split, shard, manifest)

    def _batches(self) -> Iterator[Sequence[View]]:
        """Yield the views to encode; a batch is of one shard."""
        for shard in self.todo:
            rows = np.flatnonzero(self.values.present(self.split.name, self.handle.name, shard)).tolist()
            views = [View(row, number, shard) for row in rows for number in range(self.split.crops)]
            yield from (views[start : start + self.batch_size] for start in range(0, len(views), self.batch_size))

    def _read(self, view: View) -> Any:
        """Return a value, or the error if the sample is invalid."""
        key = self.values.split(self.split.name).keys(view.shard)[view.row]
        crop = random_crop(self.split.seed, key, view.number)
        try:
            return self.values.read(self.handle, self.split.name, view.shard, view.row, crop)
        except ReadError:
            raise
        except ZooError as error:
            return error
