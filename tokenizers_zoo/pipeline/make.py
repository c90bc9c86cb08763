"""`zoo data make`: a source's samples to value shards, over all cores, resumed shard by shard."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers_zoo.config import default_of
from tokenizers_zoo.data.folder import FolderSamples
from tokenizers_zoo.data.made_of import note_made_of, read_made_of
from tokenizers_zoo.data.provenance import (
    READ_WITH,
    check_same_source,
    digest,
    has_shards,
    one_writer,
    read_entry,
    reading_settings,
    record_entry,
    value_identity,
)
from tokenizers_zoo.data.samples import TEST, TRAIN
from tokenizers_zoo.data.shards import SHARD_NAME
from tokenizers_zoo.data.tar import TARS, looks_whole, scan_shard, shown_key
from tokenizers_zoo.errors import ConfigError, DataError, close_names, count_of
from tokenizers_zoo.io import as_json, disk_errors
from tokenizers_zoo.pipeline.engines import run_jobs
from tokenizers_zoo.pipeline.make_shard import Samples, Shard, make_shard, open_samples, samples_of
from tokenizers_zoo.pipeline.results import Outcome, RunResult, read_failures, remove_shards
from tokenizers_zoo.progress import progress_bar
from tokenizers_zoo.source_handle import name_at_source

if TYPE_CHECKING:
    from tokenizers_zoo.registry import ModalityHandle, SourceHandle, Zoo

ALIKE = 0.85
"""How alike a name that nobody knows is to one that was meant: `captions` and `caption`, not `boxes_3d` and `boxes`."""
SHARD_SIZE = 500


def make_data(
    zoo: Zoo,
    source_name: str,
    out: Path,
    *,
    train: int | None,
    test: int | None,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    workers: int | None = None,
    shard_size: int = SHARD_SIZE,
) -> RunResult:
    """Write all modalities that the source gives and that are enabled, at the size of their settings, to `out`.

    `train` and `test` count samples; None means all that the source has, 0 none. What is there already is kept: the
    same command goes on after a kill, writes a modality that was installed since, or makes more of the same samples.
    Of files that were replaced, or that a modality reads with other settings now, values are made again.
    The bytes do not depend on `workers`. Raises ConfigError without a setting that the source has to be given, and for
    a modality whose classes, or settings that have to agree, are not the source's, DataError where `out` holds values
    of another source, seed or size, CheckpointError where another command writes it.
    """
    source = zoo.source(source_name)
    options = dict(options or {})
    _check_required(source, options)
    out = Path(out)
    result = RunResult()
    samples_of.cache_clear()  # what a source reads may be other than at the last call in this process
    splits = [(split, wanted) for split, wanted in ((TRAIN, train), (TEST, test)) if wanted != 0]
    opened = {split: open_samples(zoo, source, split, wanted, seed, options, out) for split, wanted in splits}
    given = {split: _given(zoo, source, samples, options, result) for split, samples in opened.items()}
    result.notes = [line for split, samples in opened.items() for line in _lost(split, samples)]
    result.notes += _apart(opened, given)
    result.notes += dict.fromkeys(line for found in given.values() for line in _enlarged(source, options, found))
    with disk_errors(out), one_writer(out):
        jobs = []
        for split, samples in opened.items():
            plan = _Plan(
                source=source, samples=samples, out=out, split=split, seed=seed, options=options, shard_size=shard_size
            )
            jobs += plan.jobs(given[split], result)
        outcomes = {(outcome.split, outcome.modality): outcome for outcome in result.outcomes}
        with progress_bar(f"make {source_name}", sum(job.stop - job.start for job in jobs)) as advance:
            shards = sum(math.ceil(len(samples) / shard_size) for samples in opened.values())
            for job, counts in run_jobs(zoo, make_shard, jobs, workers, advance, of=shards):
                for modality, (written, failures) in counts.items():
                    outcomes[job.split, modality].add(written, failures)
                    if job.made_of:
                        shard = job.path(modality).name
                        note_made_of(out, job.split, modality, {shard: job.made_of[modality]})
    return result.check()


def _check_required(source: SourceHandle, options: Mapping[str, Any]) -> None:
    """Raise ConfigError for the first setting without a default that neither `options` nor `[zoo]` gives.

    A key that is unknown may be a misspelt one: it is told by whoever takes the settings.
    """
    fields = () if source.spec.settings is None else dataclasses.fields(source.spec.settings)
    if options.keys() <= {field.name for field in fields}:
        given = options.keys() | source.shared_settings()
        for field in fields:
            if field.init and field.name not in given and default_of(field) is dataclasses.MISSING:
                raise ConfigError(f"[{source.name}] {field.name}: required, and not given; give --set {field.name}=...")


def _given(
    zoo: Zoo, source: SourceHandle, samples: Samples, options: Mapping[str, Any], result: RunResult
) -> list[ModalityHandle]:
    """The enabled modalities that the source gives; instances under other names get their plugin's values.

    Raises ConfigError where a modality's classes are not the source's, or a setting that has to agree with one of the
    source's does not.
    """
    names = samples.modalities
    at_source = {handle.name: name_at_source(handle, samples.offered) for handle in zoo.handles()}
    found = [handle for handle in zoo.handles() if at_source[handle.name] in names]
    served = {at_source[handle.name] for handle in found}
    problems = zoo.problems()
    for name in names:
        if name not in served:
            meant = "".join(f"; did you mean {close}?" for close in close_names(name, zoo.names(), ALIKE)[:1])
            reason = f"no enabled modality of this name: install its plugin, or enable it{meant}"
            result.skipped[name] = problems.get(name, reason)
    for handle in found:
        theirs = source.spec.classes.get(at_source[handle.name])
        ours = handle.spec.value.classes
        if theirs is not None and ours and tuple(theirs) != tuple(ours):
            raise ConfigError(
                f"{handle.name}: declared with the {count_of(len(ours), 'class', 'classes')} {_names(ours)}, and "
                f"{source.name} gives the {count_of(len(theirs), 'class', 'classes')} {_names(theirs)}; set "
                f"[modalities.{handle.name}] classes to the source's"
            )
        _check_agrees(source, options, handle, source.spec.agrees.get(at_source[handle.name], {}))
    if not found:
        raise ConfigError(
            f"{source.name} gives {', '.join(sorted(names)) or 'nothing'}, none of which is enabled; "
            f"enabled: {', '.join(zoo.names()) or 'none'}"
        )
    return found


def _lost(split: str, samples: Samples) -> Iterator[str]:
    """What the folders of shards among a user's files hold and is not used, a line for each modality."""
    for name, dropped in samples.dropped.items() if isinstance(samples, FolderSamples) else ():
        first = dropped[0]
        reason = f"{first.shard}: {first.key or 'unknown member'}: {first.reason}"
        yield f"{split}/{name}: not used of what its folder holds: {len(dropped)} (first: {reason})"


def _apart(opened: Mapping[str, Samples], given: Mapping[str, Sequence[ModalityHandle]]) -> Iterator[str]:
    """The modalities of a user's files of which no sample has another one, too, a line for each."""
    first: dict[str, str] = {}
    together: set[str] = set()
    for split, samples in opened.items():
        known = {name_at_source(handle, samples.offered) for handle in given[split]}
        for key, files in samples.files if isinstance(samples, FolderSamples) else ():
            names = known & files.keys()
            first |= {name: key for name in names - first.keys()}
            if len(names) > 1:
                together |= names
    for name in sorted(first.keys() - together) if len(first) > 1 else ():
        other = min(first.keys() - {name})
        yield (
            f"{name}: no sample has it beside another modality (keys such as {shown_key(first[name])}, and "
            f"{shown_key(first[other])} of {other}): the files of a sample have the same name"
        )


def _enlarged(source: SourceHandle, options: Mapping[str, Any], found: Sequence[ModalityHandle]) -> Iterator[str]:
    """The modalities whose pictures are larger than those that the source draws, a line for each."""
    drawn: Any = getattr(source.settings_with(options), "image_size", None)
    for handle in found if isinstance(drawn, int) else ():
        size = handle.known_settings().get("image_size", drawn)
        largest = size if isinstance(size, int) else max(size)
        if largest > drawn and _is_picture(handle):
            yield (
                f"{handle.name}: enlarged, as {source.name} draws {drawn} pixels and image_size is {largest}; "
                f"--set image_size={largest} draws as many"
            )


def _check_agrees(
    source: SourceHandle, options: Mapping[str, Any], handle: ModalityHandle, agrees: Mapping[str, str]
) -> None:
    """Raises ConfigError where a setting of the modality is another than the one of the source that it goes by."""
    if not agrees:
        return
    known, given = handle.known_settings(), source.settings_with(options)
    for key, own in agrees.items():
        if key in known and known[key] != (theirs := getattr(given, own)):
            raise ConfigError(
                f"{handle.name}: {key} is {known[key]}, and {source.name} gives values of {own}={theirs}; set "
                f"[modalities.{handle.name}] {key} = {theirs}, or make data with --set {own}={known[key]}"
            )


def _names(classes: Sequence[str]) -> str:
    return ", ".join(classes[:8]) + (", ..." if len(classes) > 8 else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    """What one split of the output needs, after what is there was found to be of the same kind."""

    source: SourceHandle
    samples: Samples
    out: Path
    split: str
    seed: int
    options: dict[str, Any]
    shard_size: int

    def entry(self, handle: ModalityHandle) -> dict[str, Any]:
        shared = {key: item for key, item in self.source.shared_settings().items() if key != "image_size"}
        return as_json(
            {
                "source": self.source.name,
                "distribution": self.source.distribution,
                "seed": self.seed,
                "options": {**shared, **self.options},
                "image_size": handle.settings.shared.get("image_size"),
                "value": value_identity(handle),
                "plugin": handle.distribution,
                "count": self.count,
                "shard_size": self.shard_size,
                **({READ_WITH: reading_settings(handle)} if self.files is not None else {}),
            }
        )

    def jobs(self, handles: Sequence[ModalityHandle], result: RunResult) -> list[Shard]:
        """One job per shard that any of the modalities lacks; records what the folder is going to hold first."""
        for handle in handles:
            self._check_foreign(handle)
        for handle in handles:  # all are checked before any is changed
            check_same_source(self.out, self.split, handle.name, self.entry(handle))
            self._check_count(handle)
        for handle in handles:
            self._forget_read_otherwise(handle)
            self._drop_partial_shard(handle)
            record_entry(self.out, self.split, handle.name, self.entry(handle))
        jobs = []
        outcomes = {handle.name: Outcome(split=self.split, modality=handle.name) for handle in handles}
        pictures = tuple(handle.name for handle in handles if _is_picture(handle))
        names = {handle.name: self._at_source(handle) for handle in handles}
        from_files = names if self.files is not None else {}
        known = {handle.name: read_made_of(self.out, self.split, handle.name) for handle in handles}
        kept: dict[str, dict[str, str]] = {handle.name: {} for handle in handles}
        read_with = digest({handle.name: reading_settings(handle) for handle in handles if handle.name in pictures})
        for number, start in enumerate(range(0, self.count, self.shard_size)):
            stop = min(start + self.shard_size, self.count)
            job = Shard(
                root=self.out, source=self.source.name, options=json.dumps(self.options, sort_keys=True, default=str),
                seed=self.seed, split=self.split, count=self.count, number=number, start=start,
                stop=stop, modalities=tuple(outcomes), pictures=pictures, names=names,
                made_of={name: self._made_of({given}, start, stop) for name, given in from_files.items()},
                beside=f"{self._made_of({names[name] for name in pictures}, start, stop)} {read_with}",
                files=() if self.files is None else self.files.files[start:stop],
            )  # fmt: skip
            missing = tuple(handle.name for handle in handles if not self._is_made(job, handle, known[handle.name]))
            for name in set(outcomes) - set(missing):
                outcomes[name].kept_shards += 1
                shard = job.path(name).name
                beside = (known[name] or {}).get(shard) == job.beside
                kept[name][shard] = job.beside if beside else job.made_of.get(name, "")
            for name in missing:
                kept[name][job.path(name).name] = ""  # of nothing, until it is written: a kill may come before its note
            if missing:
                jobs.append(dataclasses.replace(job, modalities=missing))
        for handle in handles:
            if self.files is not None:
                note_made_of(self.out, self.split, handle.name, kept[handle.name])
        result.outcomes += outcomes.values()
        return jobs

    @property
    def count(self) -> int:
        return len(self.samples)

    @property
    def files(self) -> FolderSamples | None:
        """The samples, where they are files in folders."""
        return self.samples if isinstance(self.samples, FolderSamples) else None

    def _at_source(self, handle: ModalityHandle) -> str:
        return name_at_source(handle, self.samples.offered)

    def _made_of(self, names: Collection[str], start: int, stop: int) -> str:
        """Which files of these modalities the samples [start, stop) have; empty where they are no files."""
        return "" if self.files is None else self.files.signature(names, start, stop)

    def _is_made(self, job: Shard, handle: ModalityHandle, known: Mapping[str, str] | None) -> bool:
        """True for a whole shard, of files with just these samples, none replaced since.

        Files that were added or removed move the others. A shard that is cut off is made again.
        """
        path = job.path(handle.name)
        if not path.exists() or not looks_whole(path):
            return False
        if self.files is None:
            return True
        if known is not None and not self._is_made_of(job, handle, known.get(path.name)):
            return False
        try:
            made = {*scan_shard(path).members, *read_failures(path)}
        except DataError:  # damaged: it is ours, so it is made again
            return False
        return made == self.files.keys(job.names[handle.name], job.start, job.stop)

    def _is_made_of(self, job: Shard, handle: ModalityHandle, noted: str | None) -> bool:
        """True where what was noted of a shard is what it would be made of now.

        Older versions noted the plugin's files as well, which then stood in for those that an instance lacks.
        """
        if self.files is None or noted in (job.made_of[handle.name], job.beside):
            return True
        return noted == self.files.signature((handle.name, handle.plugin_name), job.start, job.stop)

    def _check_foreign(self, handle: ModalityHandle) -> None:
        folder = self.out / self.split / handle.name
        entry = read_entry(self.out, self.split, handle.name)
        if has_shards(folder) and (entry is None or "source" not in entry):
            maker = "by `zoo data derive`" if entry else "by something else than `zoo data make`"
            raise DataError(f"{folder}: holds shards that were written {maker}; give another folder, or move them away")

    def _check_count(self, handle: ModalityHandle) -> None:
        entry = read_entry(self.out, self.split, handle.name)
        if entry and entry["count"] > self.count and has_shards(self.out / self.split / handle.name):
            more = "ask for as many or more, " if self.files is None else "ask for more where a number was asked for, "
            raise DataError(
                f"{self.out}: {self.split}/{handle.name} was made with {count_of(entry['count'], 'sample')}, now it "
                f"would be {self.count}; {more}give another folder, or delete {self.out / self.split}"
            )

    def _forget_read_otherwise(self, handle: ModalityHandle) -> None:
        """Where the modality reads files otherwise now, no shard is of what it would be made of: see `_is_made`."""
        before, now = read_entry(self.out, self.split, handle.name) or {}, self.entry(handle)
        if READ_WITH in before and before[READ_WITH] != now.get(READ_WITH):
            shards = (self.out / self.split / handle.name).glob(TARS)
            note_made_of(self.out, self.split, handle.name, {path.name: "" for path in shards})

    def _drop_partial_shard(self, handle: ModalityHandle) -> None:
        """Where more samples are asked for than before, the last shard is made again with all that belong in it.

        That of files stays until then: `_is_made` sees what it lacks.
        """
        if self.files is not None:
            return
        entry = read_entry(self.out, self.split, handle.name)
        if entry and entry["count"] < self.count and entry["count"] % self.shard_size:
            last = SHARD_NAME.format(entry["count"] // self.shard_size)
            remove_shards([self.out / self.split / handle.name / last])


def _is_picture(handle: ModalityHandle) -> bool:
    """True for arrays that crops cut by the fractions of height and width that all pictures of a sample share.

    Their tokens are a grid of two axes, or they are of the `image_size` of the settings, as masks and frames are.
    """
    value, size = handle.spec.value, handle.known_settings().get("image_size")
    sized = value.shape[-2:] == ((size, size) if isinstance(size, int) else tuple(size or ()))
    flat = value.kind == "array" and len(value.shape) >= 2 and handle.implements("transform")
    return flat and (sized or len(handle.spec.places) == 2)
