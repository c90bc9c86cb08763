"""`zoo tokenize`: values to a token store, encoded in batches that threads read ahead, resumed part by part."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tokenizers_zoo.data.ahead import read_ahead
from tokenizers_zoo.data.made_of import contents, made_of, stamps
from tokenizers_zoo.data.provenance import (
    DATASET,
    digest,
    read_entries,
    read_entry,
    reading_settings,
    samples_identity,
)
from tokenizers_zoo.data.samples import TRAIN
from tokenizers_zoo.data.shards import ModalityIndex, ValueStore, read_value
from tokenizers_zoo.data.store_record import RECORD, StoreRecord
from tokenizers_zoo.data.token_part import PART_NAME, PARTS, SETTINGS, TokenMetadata, read_part, write_part
from tokenizers_zoo.errors import ConfigError, DataError, ReadError, ZooError, passing
from tokenizers_zoo.io import disk_errors
from tokenizers_zoo.pipeline.results import shards_in
from tokenizers_zoo.pipeline.views import Row, Views
from tokenizers_zoo.pipeline.vocabulary import check_special_tokens
from tokenizers_zoo.progress import progress_bar
from tokenizers_zoo.spec import EmbeddingsLayout, ModalitySpec, PatchesLayout

if TYPE_CHECKING:
    from tokenizers_zoo.registry import ModalityHandle, Zoo

PART_SAMPLES, PART_BYTES = 4096, 2**28
"""Most samples of a part, and most bytes of vectors, as the whole of a part is in memory."""


@dataclass(kw_only=True, slots=True)
class TokenizeOutcome:
    """What became of one modality of one split; `encode_seconds` of the `seconds` were spent in its tokenizer."""

    split: str
    modality: str
    written: int = 0
    kept: int = 0
    dropped: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    encode_seconds: float = 0.0


@dataclass(kw_only=True, slots=True)
class TokenizeResult:
    """The outcomes of a run, the modalities that it left out, each with the reason, and what is not all there."""

    outcomes: list[TokenizeOutcome] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    unfinished: list[str] = field(default_factory=list)

    @property
    def encode_fraction(self) -> float:
        """Part of the wall time that was spent in the tokenizers."""
        seconds = sum(outcome.seconds for outcome in self.outcomes)
        return sum(outcome.encode_seconds for outcome in self.outcomes) / seconds if seconds else 1.0

    def summary(self) -> str:
        """What was done, a line per split and modality."""
        lines = []
        for outcome in self.outcomes:
            rate = f" ({outcome.written / outcome.seconds:.0f}/s)" if outcome.written else ""
            kept = f", {outcome.kept} were there" if outcome.kept else ""
            dropped = ""
            if outcome.dropped:
                key, reason = next(iter(outcome.dropped.items()))
                dropped = f", {len(outcome.dropped)} dropped (first: {key}: {reason})"
            lines.append(f"{outcome.split}/{outcome.modality}: {outcome.written} encoded{rate}{kept}{dropped}")
        lines += [f"{name}: skipped: {reason}" for name, reason in sorted(self.skipped.items())]
        lines += [f"{what}: `zoo data make` did not come to its end" for what in self.unfinished]
        if any(outcome.written for outcome in self.outcomes):
            lines.append(f"{self.encode_fraction:.0%} of the time was spent in the tokenizers")
        return "\n".join(lines) or "nothing to do"


def tokenize(
    zoo: Zoo,
    data: Path,
    out: Path,
    *,
    modalities: Sequence[str] | None = None,
    splits: Sequence[str] | None = None,
    batch_size: int = 64,
    crops: int = 1,
    seed: int = 0,
    threads: int = 2,
    overwrite: bool = False,
    device: str = "cpu",
) -> TokenizeResult:
    """Encode the values in `data` into the token store `out`.

    With `crops` above 1, each sample of the split "train" gives the whole picture and `crops - 1` random crops, the
    same for all its modalities, under the keys `<key>#<number>`. Parts that are there are kept. The tokenizers run on
    `device`.
    Raises DataError where none of the splits has one of `modalities`, where none of all has a tokenizer, where `out`
    holds anything else than a token store, where it holds tokens of another codec, of other data or of other settings,
    unless `overwrite`, and, after all others are encoded, where no sample of a modality could be; CheckpointError where
    the vocabulary lacks special tokens of a modality that is to be encoded.
    """
    if crops < 1 or batch_size < 1:
        raise ConfigError(f"crops {crops}, batch size {batch_size}: expected at least 1 of each")
    store, out = ValueStore.of(data, zoo), Path(out)
    _check_place(out)
    result = TokenizeResult(unfinished=_unfinished(store, splits))
    splits = splits or store.splits()
    for name in modalities or ():
        if not any(name in store.modalities(split) for split in splits):
            store.index(splits[0], name)  # says what is there
    identities = {split: samples_identity(store.root, split) for split in splits}
    runs = []
    for split, identity in identities.items():
        views = crops if split == TRAIN else 1
        chosen = _chosen(zoo, store, split, modalities, result)
        # Of known data the tokens of a modality say themselves of which they are.
        written = [handle.name for handle in chosen] if overwrite or identity else ()
        _check_samples(zoo, store, split, identity, out, written)
        for handle in chosen:
            handle.device = device
            run = _ModalityRun.of(
                handle, store, split, out, crops=views, seed=seed, batch_size=batch_size, threads=threads
            )
            runs.append(run)
    if not runs:
        _check_tokenizers(zoo, store, result)
    todo, rows = [], []
    for run in runs:  # only after that it is known that none is refused
        todo.append(run.todo(overwrite))
        if todo[-1]:
            check_special_tokens(run.handle)
        rows.append((run.outcome.split, run.handle.name, len(run.rows)))
        run.close()
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        for run in runs if overwrite else ():  # all of them first: of other data none may stay beside what is new
            run.remove()
        _forget_deleted(store, out, identities)
        StoreRecord.note(out, store.root, identities, rows)
        problems = []
        for run, parts in zip(runs, todo, strict=True):
            result.outcomes.append(run.write(parts))
            run.close()
            if problem := run.all_dropped():
                run.remove()
                StoreRecord.forget(out, run.outcome.split, run.handle.name)
                problems.append(problem)
    if problems:
        raise DataError("; ".join(problems))
    return result


def part_rows(spec: ModalitySpec, views: int) -> int:
    """Rows of a part: whole samples, each with all its crops."""
    layout, samples = spec.layout, PART_SAMPLES
    if isinstance(layout, PatchesLayout | EmbeddingsLayout):
        size = layout.length * layout.dim * np.dtype(layout.dtype).itemsize
        samples = min(samples, max(1, PART_BYTES // (size * views)))
    return samples * views


def _check_place(out: Path) -> None:
    """Raise DataError where a folder holds files, and no token store: neither its record nor a part.

    Empty folders and hidden files, such as a killed run leaves, are in nobody's way.
    """
    with disk_errors(out):
        if (out / RECORD).is_file() or any(out.glob(f"*/*/{PARTS}")):
            return
        if (out / DATASET).is_file():
            raise DataError(f"{out}: holds data ({DATASET}); give another --out")
        files = [path for path in out.glob("[!.]*") if not path.is_dir()]
        inner = (path for path in out.glob("[!.]*/[!.]*") if not path.is_dir())
        if found := min(files, default=None) or next(inner, None) or next(out.glob("[!.]*/[!.]*/[!.]*"), None):
            raise DataError(f"{out}: holds {found.relative_to(out)}, and no token store; give another --out")


def _check_tokenizers(zoo: Zoo, store: ValueStore, result: TokenizeResult) -> None:
    """Raise DataError where modalities were skipped for want of a tokenizer."""
    lacking = [handle.name for handle in zoo.handles() if handle.name in result.skipped and not handle.has_tokenizer]
    if lacking:
        raise DataError(
            f"{store.root}: none of its modalities has a tokenizer ({', '.join(sorted(lacking))}); `zoo tokenizer train"
            f" {min(lacking)} --data {store.root}` trains that of one, --all in place of the name those of all"
        )


def _unfinished(store: ValueStore, splits: Sequence[str] | None) -> list[str]:
    """Of what a source was to make, by dataset.json, what is begun and not all there, as it was killed."""
    found = []
    for split, entries in read_entries(store.root).items():
        for name, entry in entries.items() if splits is None or split in splits else ():
            if "source" in entry:
                shards = shards_in(store.folder(split, name))
                if 0 < len(shards) < (wanted := -(-entry["count"] // entry["shard_size"])):
                    found.append(f"{split}/{name}: {len(shards)} of {wanted} shards are there")
    return found


def _check_samples(
    zoo: Zoo, store: ValueStore, split: str, now: str | None, out: Path, replaced: Collection[str]
) -> None:
    """Raise DataError where tokens that stay in `out`, all but those `replaced`, are of other samples than these.

    Modalities belong together by key, and keys of other data may be the same. `now` is these samples' identity.
    """
    record = StoreRecord.read(out)
    before = record.samples.get(split)
    others = []
    for name in sorted({path.parent.name for path in (out / split).glob(f"*/{PARTS}")} - set(replaced)):
        same = now == before if now and before else _same_values(store, split, name, now, out / split / name)
        if not (record.data in (None, store.root.resolve()) if same is None else same):
            others.append(name)
    if others:
        made_anew = {handle.name for handle in _chosen(zoo, store, split, None, TokenizeResult())}
        deleted = " ".join(str(out / split / name) for name in others if name not in made_anew)
        way_out = f"delete {deleted}" if deleted else "make all anew by --overwrite without --only"
        raise DataError(
            f"{out / split / others[0]}: holds tokens made of {record.data}; by their keys samples of {store.root} "
            f"would be taken for the same ones; give another folder, or {way_out}"
        )


def _forget_deleted(store: ValueStore, out: Path, identities: Mapping[str, str | None]) -> None:
    """Expect no tokens any more of what is gone from `out`, where they were of other data, which had more modalities.

    `identities` are those of these data's samples, by split.
    """
    record = StoreRecord.read(out)
    for split, now in identities.items():
        before = record.samples.get(split)
        if now == before if now and before else record.data in (None, store.root.resolve()):
            continue
        for name in record.rows.get(split, {}):
            if not (out / split / name).exists() and name not in store.modalities(split):
                StoreRecord.forget(out, split, name)


def _same_values(store: ValueStore, split: str, name: str, now: str | None, folder: Path) -> bool | None:
    """Whether tokens are of these data, by what their first part says of it; None where that is not known.

    They are where it is of the same shards, and are not where a source has made the modality otherwise.
    """
    if name not in store.modalities(split):
        return None
    part, batch = read_part(min(folder.glob(PARTS)))
    crops, count = int(part.metadata.run.get("crops", 1)), batch.num_rows + len(part.dropped)
    views = Views(ModalityIndex(store.shards(split, name), most=count / crops).members, crops, 0)
    rows = range(min(count, len(views)))
    if part.made_of is not None and part.made_of == made_of(contents(store, split, name), views.members(rows)):
        return True
    entry = read_entry(store.root, split, name)
    if now is None or entry is None or "source" not in entry:
        return None
    return bool(part.metadata.run.get("data") == digest(entry))


def _chosen(
    zoo: Zoo, store: ValueStore, split: str, wanted: Sequence[str] | None, result: TokenizeResult
) -> list[ModalityHandle]:
    """The modalities to encode: those asked for that the split has, else all enabled ones with a tokenizer."""
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


@dataclass(frozen=True, kw_only=True)
class _ModalityRun:
    """Encodes one modality of one split."""

    handle: ModalityHandle
    metadata: TokenMetadata
    store: ValueStore
    crops: int
    seed: int
    stamps: Mapping[Path, str]
    """What tells each shard of the values from what may replace it."""
    contents: Mapping[Path, str]
    """A digest of each shard of the values."""
    folder: Path
    part_rows: int
    batch_size: int
    threads: int
    outcome: TokenizeOutcome

    @classmethod
    def of(
        cls, handle: ModalityHandle, store: ValueStore, split: str, out: Path,
        *, crops: int, seed: int, batch_size: int, threads: int,
    ) -> _ModalityRun:  # fmt: skip
        """The values of a modality in `store`, to be tokens in the store `out`."""
        made = {
            "data": digest(read_entry(store.root, split, handle.name)),
            SETTINGS: reading_settings(handle),
            "crops": crops,
            "flips": False,  # as tokens say that older versions wrote
            "seed": seed if crops > 1 else 0,
        }
        return cls(
            handle=handle, metadata=TokenMetadata.of(handle, made), folder=out / split / handle.name,
            store=store, crops=crops, seed=seed, stamps=stamps(store, split, handle.name),
            contents=contents(store, split, handle.name), part_rows=part_rows(handle.spec, crops),
            batch_size=batch_size, threads=threads, outcome=TokenizeOutcome(split=split, modality=handle.name),
        )  # fmt: skip

    @cached_property
    def rows(self) -> Views:
        """What is encoded, until `close`. Raises ReadError where the shards are not those of the run's beginning."""
        split, name = self.outcome.split, self.handle.name
        members = self.store.index(split, name).members
        if stamps(self.store, split, name) != self.stamps:
            where = self.store.folder(split, name)
            raise ReadError(f"{where}: shards came, went or were replaced meanwhile; run the same command again")
        return Views(members, self.crops, self.seed)

    def close(self) -> None:
        """Let go of the rows, to be scanned again when they are needed: all modalities' together take much memory."""
        self.__dict__.pop("rows", None)
        self.store.forget(self.outcome.split, self.handle.name)

    @property
    def parts(self) -> dict[Path, range]:
        """All parts with their rows."""
        starts = range(0, len(self.rows), self.part_rows)
        return {
            self.folder / PART_NAME.format(number): range(start, min(start + self.part_rows, len(self.rows)))
            for number, start in enumerate(starts)
        }

    def todo(self, overwrite: bool) -> dict[Path, range]:
        """The parts that are missing, or of other samples or values. Raises DataError for what cannot stay."""
        _ = self.handle.tokenizer  # an altered one is refused before anything is removed
        parts = self.parts
        if overwrite:
            return parts
        stale: list[Path] = []
        older = [path for path in sorted(self.folder.glob(PARTS)) if self._check_old(path, parts, stale)]
        todo = {path: part for path, part in parts.items() if path in stale or not path.exists()}
        if older and todo:
            raise DataError(
                f"{older[0]}: written with an earlier vocabulary or decoder, and samples were added or changed since;"
                " --overwrite"
            )
        return todo

    def remove(self) -> None:
        """Delete all parts."""
        for path in self.folder.glob(PARTS):
            path.unlink()

    def write(self, todo: dict[Path, range]) -> TokenizeOutcome:
        """Write these parts; those in their place go first, as a key has to be in one part alone.

        One that lacks a sample for a reason that may pass does not say what it is made of, so that it is written again.
        """
        for path in todo:
            path.unlink(missing_ok=True)
        description = f"tokenize {self.outcome.split}/{self.outcome.modality}"
        start = time.perf_counter()
        with progress_bar(description, sum(len(part) for part in todo.values())) as advance:
            encoded: dict[str, npt.NDArray[Any]] = {}
            batches = self._batches(todo)
            for path, part in todo.items():
                dropped: dict[str, str] = {}
                of = self._made_of(part)
                for _ in range(0, len(part), self.batch_size):
                    batch, values = next(batches)
                    read = list(zip((row.key for row in batch), values, strict=True))
                    unread = {key: value for key, value in read if isinstance(value, ZooError)}
                    dropped |= {key: str(error) for key, error in unread.items()}
                    of = "" if any(map(passing, unread.values())) else of
                    sound = [(key, value) for key, value in read if not isinstance(value, ZooError)]
                    self._encode(sound, encoded, dropped)
                    advance(len(batch))
                keys = [key for key in map(self.rows.key, part) if key in encoded]
                tokens = [encoded.pop(key) for key in keys]
                write_part(path, self.metadata, keys, tokens, dropped, of)
                self.outcome.written += len(keys)
                self.outcome.dropped.update(dropped)
        self.outcome.seconds = time.perf_counter() - start
        return self.outcome

    def _check_old(self, path: Path, parts: dict[Path, range], stale: list[Path]) -> bool:
        """Count a part that is what would be written, list one whose samples or values are others, refuse any other.

        Returns True for a part that was written before the vocabulary grew: its ids are still right.
        """
        part, batch = read_part(path)
        names = self.metadata.differences(part.metadata)
        old = part.metadata.fingerprint
        grown = set(names) <= {"fingerprint", "vocab_size"} and self.handle.speaks(old, part.needed_vocab_size)
        if names and not (grown and part.needed_vocab_size <= self.metadata.vocab_size):
            was, now = part.metadata.to_json(), self.metadata.to_json()
            told = {name: f"{was[name]}, now {now[name]}" for name in names}
            if "run" in names:
                told["run"] = part.metadata.run_difference(self.metadata)
            shown = "; ".join(f"{name} {what}" for name, what in told.items())
            raise DataError(f"{path}: holds other tokens ({shown}); give another folder, or --overwrite")
        if path not in parts:
            raise DataError(f"{path}: holds samples that the data lack now; give another folder, or --overwrite")
        expected = set(map(self.rows.key, parts[path]))
        keys = batch.column("key").to_pylist()
        same_values = part.made_of in (None, self._made_of(parts[path]))
        if {*keys, *part.dropped} == expected and same_values:
            self.outcome.kept += len(keys)
            self.outcome.dropped.update(part.dropped)
        else:
            stale.append(path)
        return bool(names)

    def _made_of(self, part: range) -> str:
        return made_of(self.contents, self.rows.members(part))

    def _batches(self, todo: dict[Path, range]) -> Iterator[tuple[Sequence[Row], list[Any]]]:
        """All batches of all parts, read ahead across the parts' borders; a value that cannot be read is its error."""
        batches = (
            [self.rows[row] for row in part[start : start + self.batch_size]]
            for part in todo.values()
            for start in range(0, len(part), self.batch_size)
        )
        return read_ahead(self._read, batches, threads=self.threads)

    def _read(self, row: Row) -> Any:
        try:
            return read_value(self.handle, row.member, row.crop)
        except ReadError:
            raise  # no sample is to blame
        except ZooError as error:
            return error

    def _encode(
        self, values: Sequence[tuple[str, Any]], encoded: dict[str, npt.NDArray[Any]], dropped: dict[str, str]
    ) -> None:
        """Encode values by key; where the tokenizer refuses several, one by one, so that only those are dropped."""
        try:
            tokens = self._forward([value for _, value in values]) if values else []
        except ZooError as error:
            if len(values) == 1:
                dropped[values[0][0]] = str(error)
            else:
                for one in values:
                    self._encode([one], encoded, dropped)
            return
        for (key, _), item in zip(values, tokens, strict=True):
            if problem := self.metadata.number_problem(item):
                dropped[key] = f"{self.handle.name}: {problem}"
            else:
                encoded[key] = item

    def _forward(self, values: list[Any]) -> list[npt.NDArray[Any]]:
        start = time.perf_counter()
        tokens = self.handle.encode(values)
        arrays = [np.asarray(item) for item in tokens]
        self.outcome.encode_seconds += time.perf_counter() - start
        return arrays

    def all_dropped(self) -> str:
        """Why there are no tokens at all; empty where there are, or where there is no sample."""
        if not self.outcome.dropped or self.outcome.written or self.outcome.kept:
            return ""
        key, reason = next(iter(self.outcome.dropped.items()))
        where = f"{self.outcome.split}/{self.handle.name}"
        return f"{where}: none of {len(self.outcome.dropped)} samples could be encoded; {key}: {reason}"
