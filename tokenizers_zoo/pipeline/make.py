"""`zoo data make`: a source's samples to aligned value shards, over all cores."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers_zoo.data.files import FileSamples, signature
from tokenizers_zoo.data.manifest import (
    DATASET,
    TWICE,
    Split,
    inputs_digest,
    read_manifest,
    read_record,
    shards_of,
    up_to_date,
    write_record,
)
from tokenizers_zoo.data.samples import TEST, TRAIN
from tokenizers_zoo.data.shards import check_foreign, reading_settings, value_identity
from tokenizers_zoo.data.tar import Member, shown_key
from tokenizers_zoo.errors import ConfigError, DataError, close_names, count_of, size_text
from tokenizers_zoo.io import as_json, difference, disk_errors
from tokenizers_zoo.pipeline.make_shard import MakeShard, Samples, make_shard, open_samples, samples_of
from tokenizers_zoo.pipeline.outcomes import Outcome, RunResult
from tokenizers_zoo.pipeline.workers import Workers
from tokenizers_zoo.progress import progress_bar
from tokenizers_zoo.run_folder import locked
from tokenizers_zoo.source import OwnData
from tokenizers_zoo.source_handle import name_at_source

if TYPE_CHECKING:
    from tokenizers_zoo.registry import ModalityHandle, SourceHandle, Zoo

ALIKE = 0.85
"""Minimum similarity for an unknown name to count as misspelt: `captions` and `caption`, not `boxes_3d` and `boxes`."""
SHARD_SIZES = {0: 500, 20_000: 2_000}
"""Samples per shard from a number of samples on: enough shards for all cores, and few to open."""


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
    shard_size: int | None = None,
    dry_run: bool = False,
) -> RunResult:
    """Write all modalities that the source gives and that are enabled, at the size of their settings, to `out`.

    `train` and `test` count samples; None means all samples, 0 none. A shard with an equal inputs digest is skipped. So
    the same command resumes after a kill, adds a modality that was installed since or more of the same samples, and
    makes again what depends on files, settings or plugins that have changed. The bytes do not depend on `workers`.
    `workers` None means one worker process per core. A value that kills or blocks its process is dropped, except with
    `workers` 0, where all work is done in this process. `shard_size` None means the folder's, or one of SHARD_SIZES.
    With `dry_run` nothing is written, and the result counts the samples to write.
    Raises ConfigError without a required setting of the source, and for a modality whose classes, or settings that have
    to agree, are not the source's; DataError if `out` holds samples of another source, seed or size; FolderError
    where another command writes it.
    """
    source = zoo.source(source_name)
    options = dict(options or {})
    out = Path(out)
    result = RunResult(planned=dry_run)
    samples_of.cache_clear()  # a source may read files that have changed since the last call in this process
    wanted = [(split, count) for split, count in ((TRAIN, train), (TEST, test)) if count != 0]
    opened = {split: open_samples(zoo, source, split, count, seed, options, out) for split, count in wanted}
    given = {split: _given(zoo, source, samples, options, result) for split, samples in opened.items()}
    config = source.settings_with(options)
    crop = config.crop if isinstance(config, OwnData) else None
    result.notes += [*_stored_sizes(given, crop), *_told(opened, given)]
    with disk_errors(out), locked(out):
        record = read_record(out / DATASET)
        plans = []
        for split, samples in opened.items():
            before, count = record["splits"].get(split), len(samples)
            usual = before["shard_size"] if before else max(size for n, size in SHARD_SIZES.items() if n <= count)
            plan = _Plan(
                source=source, samples=samples, handles=given[split], seed=seed, options=options, crop=crop,
                split=Split(out, split, count, shard_size or usual),
            )  # fmt: skip
            plan.check(before)
            plans.append(plan)
        record["splits"] |= {plan.split.name: plan.record for plan in plans}
        if not dry_run:
            write_record(out / DATASET, record)
        shards = max(plan.split.shards for plan in plans)
        with Workers(zoo, workers, shards) as started:
            for plan in plans:
                result.outcomes += plan.run(started, dry_run)
    return result.check()


def _given(
    zoo: Zoo, source: SourceHandle, samples: Samples, options: Mapping[str, Any], result: RunResult
) -> list[ModalityHandle]:
    """Return the enabled modalities of the source; instances under other names get their plugin's values.

    Raises ConfigError if a modality's classes or settings disagree with the source.
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
        known, at = handle.known_settings(), at_source[handle.name]
        theirs, ours = source.spec.classes.get(at), handle.spec.value.classes
        if theirs is not None and ours and tuple(theirs) != tuple(ours):
            raise ConfigError(
                f"{handle.name}: has {len(ours)} classes: {', '.join(ours):.60}, and {source.name} gives "
                f"{len(theirs)}: {', '.join(theirs):.60}; set [modalities.{handle.name}] classes to the source's"
            )
        for key, own in source.spec.agrees.get(at, {}).items():
            if key in known and known[key] != (value := getattr(source.settings_with(options), own)):
                raise ConfigError(
                    f"{handle.name}: {key} is {known[key]}, and {source.name} gives values of {own}={value}; set "
                    f"[modalities.{handle.name}] {key} = {value}, or make data with --set {own}={known[key]}"
                )
    if not found:
        raise ConfigError(
            f"{source.name} gives {', '.join(sorted(names)) or 'nothing'}, none of which is enabled; "
            f"enabled: {', '.join(zoo.names()) or 'none'}"
        )
    return found


def _stored_sizes(given: Mapping[str, Sequence[ModalityHandle]], crop: str | None) -> Iterator[str]:
    """Yield a line about the stored size of a user's pictures, and how they are cropped to it."""
    handles = {handle.name: handle for handles in given.values() for handle in handles if handle.is_picture}
    sizes: dict[tuple[Any, ...], list[str]] = {}
    for name, handle in sorted(handles.items()) if crop else ():
        if "image_size" in handle.known_settings():
            sizes.setdefault(handle.spec.value.shape[-2:], []).append(name)
    for size, names in sizes.items():
        cut = "cropped to the largest middle part" if crop == "middle" else "the whole picture, squeezed"
        other = "whole squeezes the whole picture" if crop == "middle" else "middle crops it"
        settings = handles[names[0]].settings
        is_set = "image_size" in {**settings, **settings.shared}
        at = settings.origin.at("image_size") if is_set else f"the default of image_size in {settings.origin.file}"
        yield f"{', '.join(names)}: stored at {size_text(size)} pixels ({at}), {cut} (--set crop={other})"


def _told(opened: Mapping[str, Samples], given: Mapping[str, Sequence[ModalityHandle]]) -> Iterator[str]:
    """Yield lines about a user's files: unusable members of tar files, and modalities that share no sample."""
    found = {}
    for split, samples in opened.items():
        yield from (f"{split}: {note}" for note in samples.notes)
        if isinstance(samples, FileSamples):
            for name, (count, first) in samples.dropped.items():
                yield f"{split}/{name}: not used of what its folder holds: {count} (first: {first})"
            names = [name_at_source(handle, samples.offered) for handle in given[split]]
            if len(names) > 1:
                found[split] = samples.alone(names)
    alone = {name: key for keys in found.values() for name, key in keys.items()}
    alone = {name: key for name, key in alone.items() if all(name in keys for keys in found.values())}
    for name in sorted(alone) if len(alone) > 1 else ():
        other = min(alone.keys() - {name})
        yield (
            f"{name}: no sample has it beside another modality (keys such as {shown_key(alone[name])}, and "
            f"{shown_key(alone[other])} of {other}): the files of a sample have the same name"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    """The work for one split of the output."""

    source: SourceHandle
    samples: Samples
    handles: Sequence[ModalityHandle]
    split: Split
    seed: int
    options: dict[str, Any]
    crop: str | None
    """How pictures of any proportions are cropped; None for a source that makes its pictures at their size."""

    @property
    def record(self) -> dict[str, Any]:
        """The split's entry in dataset.json. Its `source` is the identity of the samples."""
        shared = {key: item for key, item in self.source.shared_settings().items() if key != "image_size"}
        own = {key: item for key, item in self.options.items() if key != "follow_links"}  # it permits, and chooses none
        source = {
            "source": self.source.name,
            "seed": self.seed,
            "options": {**shared, **own},
            "image_size": self.handles[0].settings.shared.get("image_size"),
        }
        return {"samples": self.split.samples, "shard_size": self.split.shard_size, "source": as_json(source)}

    def check(self, before: Mapping[str, Any] | None) -> None:
        """Raise DataError if the split's folder holds other samples, or more."""
        folder, now = self.split.folder, self.record
        for path in sorted(folder.glob("*/")):
            check_foreign(path)
        if before is None or not self.split.modalities():
            return
        for key in ("source", "shard_size"):
            if problem := difference(before.get(key), now[key], key):
                raise DataError(f"{folder}: was made otherwise ({problem}); give another folder, or delete {folder}")
        if before["samples"] > self.split.samples:
            asked = "ask for more where a number was asked for, " if isinstance(self.samples, FileSamples) else (
                "ask for as many or more, ")  # fmt: skip
            raise DataError(
                f"{folder}: was made with {count_of(before['samples'], 'sample')}, now it would be "
                f"{self.split.samples}; {asked}give another folder, or delete {folder}"
            )
        for handle in self.handles:
            modality, name = folder / handle.name, handle.name
            first = next(iter(shards_of(modality)), None)
            manifest = None if first is None else read_manifest(modality, first)
            if manifest is not None and "derived_from" in manifest.record:
                raise DataError(
                    f"{modality}: was derived from other modalities; delete it to make {name} of the source"
                )

    def run(self, workers: Workers, dry_run: bool) -> list[Outcome]:
        """Make, or with `dry_run` count, the shards that are not there, or that depend on other inputs now."""
        split, samples = self.split, self.samples
        outcomes = {handle.name: Outcome(split=split.name, modality=handle.name) for handle in self.handles}
        names = {handle.name: name_at_source(handle, samples.offered) for handle in self.handles}
        pictures = tuple(sorted(handle.name for handle in self.handles if handle.is_picture))
        framed = {handle.name for handle in self.handles if self.crop and handle.implements("transform")}
        own = {key: value for key, value in {"crop": self.crop, "contents": samples.contents}.items() if value}
        made_with = {
            handle.name: {
                **self.record["source"],
                **own,
                **workers.zoo.limits.identity(),
                "distribution": self.source.distribution,
                "plugin": f"{handle.plugin_name} of {handle.distribution}",
                "value": value_identity(handle),
                "settings": reading_settings(handle),
            }
            for handle in self.handles
        }  # shared by all shards of a modality, and recorded in manifests
        digests = {name: inputs_digest(**made) for name, made in made_with.items()}

        def files_of(shard: int) -> tuple[tuple[str, Mapping[str, Member]], ...]:
            start = split.number(shard, 0)
            return tuple(samples.files(start, start + split.rows(shard))) if isinstance(samples, FileSamples) else ()

        todo: dict[int, dict[str, str]] = {}
        for shard in range(split.shards):
            files, keys = files_of(shard), split.sound_keys(shard)
            for name, outcome in outcomes.items():
                together = {name, *pictures} if name in framed else {name}  # pictures decide the crop, or are refused
                inputs = inputs_digest(
                    made={one: digests[one] for one in together}, split=split.name,
                    shard=shard, start=split.number(shard, 0), rows=split.rows(shard),
                    files=signature(files, {names[one] for one in together}) if files else "",
                )  # fmt: skip
                if keys and (manifest := up_to_date(split.folder / name, shard, inputs, keys)) is not None:
                    outcome.add(split, shard, manifest, kept=True)
                else:
                    todo.setdefault(shard, {})[name] = inputs
                    outcome.written += split.rows(shard) if dry_run else 0
        if dry_run:
            return list(outcomes.values())
        jobs = (
            MakeShard(
                split=split, shard=shard, source=self.source.name, seed=self.seed,
                options=json.dumps(self.options, sort_keys=True, default=str), inputs=inputs,
                made_with={name: made_with[name] for name in inputs}, pictures=pictures, names=names,
                crop=self.crop or "whole", files=files_of(shard),
            )
            for shard, inputs in todo.items()
        )  # fmt: skip
        with progress_bar(f"make {split.name}", sum(map(split.rows, todo))) as advance:
            for shard, found in workers.run(make_shard, jobs, advance):
                for name, manifest in found.items():
                    outcomes[name].add(split, shard, manifest)
        if todo and not dry_run and (doubled := split.with_doubled_keys(range(split.shards))):
            path = split.keys_path(min(doubled))
            raise DataError(f"{path}: {TWICE}: {self.source.name} gave it for two samples; give each its own key")
        return list(outcomes.values())
