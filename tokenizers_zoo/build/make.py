"""`zoo data make`: a source's samples to aligned value shards, over all cores."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers_zoo.build.make_shard import MakeShard, Samples, cached_samples, make_shard, open_samples
from tokenizers_zoo.build.outcomes import Outcome, RunResult
from tokenizers_zoo.build.workers import Workers
from tokenizers_zoo.contract.file_samples import FileSamples, files_digest
from tokenizers_zoo.contract.samples import TEST, TRAIN
from tokenizers_zoo.contract.source import OwnData
from tokenizers_zoo.errors import ConfigError, DataError, close_names, count_of, size_text
from tokenizers_zoo.files.run_folder import locked
from tokenizers_zoo.files.tar import Member, shown_key
from tokenizers_zoo.machine.progress import progress_bar
from tokenizers_zoo.records.io import as_json, difference, disk_errors
from tokenizers_zoo.records.typed import convert
from tokenizers_zoo.stores.manifest import (
    REPEATED_KEY,
    Dataset,
    SourceRecord,
    Split,
    SplitRecord,
    ValueManifest,
    inputs_digest,
    read_manifest,
    shards_of,
    up_to_date,
)
from tokenizers_zoo.stores.shards import check_foreign, reading_settings, value_identity

if TYPE_CHECKING:
    from tokenizers_zoo.contract.registry import ModalityHandle, SourceHandle, Zoo

MIN_SIMILARITY = 0.85
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
    cached_samples.cache_clear()  # a source may read files that have changed since the last call in this process
    counts = {split: count for split, count in ((TRAIN, train), (TEST, test)) if count != 0}
    samples_by_split = {
        split: open_samples(zoo, source, split, count, seed, options, out) for split, count in counts.items()
    }
    handles_by_split = {
        split: _source_modalities(zoo, source, samples, options, result) for split, samples in samples_by_split.items()
    }
    config = source.settings_with(options)
    crop = config.crop if isinstance(config, OwnData) else None
    result.notes += [*_size_notes(handles_by_split, crop), *_file_notes(samples_by_split, handles_by_split)]
    with disk_errors(out), locked(out):
        recorded_splits = Dataset.read(out).splits
        plans = []
        for split, samples in samples_by_split.items():
            recorded, count = recorded_splits.get(split), len(samples)
            new_size = max(size for least, size in SHARD_SIZES.items() if least <= count)
            default_size = recorded.shard_size if recorded else new_size
            plan = _Plan(
                source=source,
                samples=samples,
                handles=handles_by_split[split],
                seed=seed,
                options=options,
                crop=crop,
                split=Split(out, split, count, shard_size or default_size),
            )
            plan.check(recorded)
            plans.append(plan)
        if not dry_run:
            Dataset(splits={**recorded_splits, **{plan.split.name: plan.record for plan in plans}}).write(out)
        with Workers(zoo, workers, max(plan.split.shards for plan in plans)) as pool:
            for plan in plans:
                result.outcomes += plan.run(pool, dry_run)
    return result.check()


def _source_modalities(
    zoo: Zoo, source: SourceHandle, samples: Samples, options: Mapping[str, Any], result: RunResult
) -> list[ModalityHandle]:
    """Return the enabled modalities of the source; instances under other names get their plugin's values.

    Raises ConfigError if a modality's classes or settings disagree with the source.
    """
    names = samples.modalities
    source_names = {handle.name: handle.name_at_source(samples.offered) for handle in zoo.handles()}
    handles = [handle for handle in zoo.handles() if source_names[handle.name] in names]
    served = {source_names[handle.name] for handle in handles}
    plugin_errors = zoo.problems()
    for name in names:
        if name not in served:
            hint = "".join(f"; did you mean {close}?" for close in close_names(name, zoo.names(), MIN_SIMILARITY)[:1])
            reason = f"no enabled modality of this name: install its plugin, or enable it{hint}"
            result.skipped[name] = plugin_errors.get(name, reason)
    for handle in handles:
        settings, source_modality = handle.known_settings(), source_names[handle.name]
        source_classes, classes = source.spec.classes.get(source_modality), handle.spec.value.classes
        if source_classes is not None and classes and tuple(source_classes) != tuple(classes):
            raise ConfigError(
                f"{handle.name}: has {len(classes)} classes: {', '.join(classes):.60}, and {source.name} gives "
                f"{len(source_classes)}: {', '.join(source_classes):.60}; set [modalities.{handle.name}] classes to "
                "the source's"
            )
        for key, source_key in source.spec.agrees.get(source_modality, {}).items():
            if key in settings and settings[key] != (value := getattr(source.settings_with(options), source_key)):
                raise ConfigError(
                    f"{handle.name}: {key} is {settings[key]}, and {source.name} gives values of {source_key}={value}; "
                    f"set [modalities.{handle.name}] {key} = {value}, or make data with --set "
                    f"{source_key}={settings[key]}"
                )
    if not handles:
        raise ConfigError(
            f"{source.name} gives {', '.join(sorted(names)) or 'nothing'}, none of which is enabled; "
            f"enabled: {', '.join(zoo.names()) or 'none'}"
        )
    return handles


def _size_notes(handles_by_split: Mapping[str, Sequence[ModalityHandle]], crop: str | None) -> Iterator[str]:
    """Yield a line about the stored size of a user's pictures, and how they are cropped to it."""
    handles = {handle.name: handle for handles in handles_by_split.values() for handle in handles if handle.is_picture}
    sizes: dict[tuple[Any, ...], list[str]] = {}
    for name, handle in sorted(handles.items()) if crop else ():
        if "image_size" in handle.known_settings():
            sizes.setdefault(handle.spec.value.shape[-2:], []).append(name)
    for size, names in sizes.items():
        effect = "cropped to the largest middle part" if crop == "middle" else "the whole picture, squeezed"
        alternative = "whole squeezes the whole picture" if crop == "middle" else "middle crops it"
        settings = handles[names[0]].settings
        is_set = "image_size" in {**settings, **settings.shared}
        origin = settings.origin.at("image_size") if is_set else f"the default of image_size in {settings.origin.file}"
        yield f"{', '.join(names)}: stored at {size_text(size)} pixels ({origin}), {effect} (--set crop={alternative})"


def _file_notes(
    samples_by_split: Mapping[str, Samples], handles_by_split: Mapping[str, Sequence[ModalityHandle]]
) -> Iterator[str]:
    """Yield lines about a user's files: unusable members of tar files, and modalities that share no sample."""
    keys_by_split = {}
    for split, samples in samples_by_split.items():
        yield from (f"{split}: {note}" for note in samples.notes)
        if isinstance(samples, FileSamples):
            for name, (count, first) in samples.dropped.items():
                yield f"{split}/{name}: not used of what its folder holds: {count} (first: {first})"
            names = [handle.name_at_source(samples.offered) for handle in handles_by_split[split]]
            if len(names) > 1:
                keys_by_split[split] = samples.first_lone_keys(names)
    lone_names = set[str]().union(*keys_by_split.values()).intersection(*keys_by_split.values())
    lone_keys = {name: key for keys in keys_by_split.values() for name, key in keys.items() if name in lone_names}
    for name in sorted(lone_keys) if len(lone_keys) > 1 else ():
        second = min(lone_keys.keys() - {name})
        yield (
            f"{name}: no sample has it beside another modality (keys such as {shown_key(lone_keys[name])}, and "
            f"{shown_key(lone_keys[second])} of {second}): the files of a sample have the same name"
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
    def record(self) -> SplitRecord:
        """The split's entry in dataset.json. Its `source` is the identity of the samples."""
        shared = {key: item for key, item in self.source.shared_settings().items() if key != "image_size"}
        # follow_links only permits reading; it selects no samples.
        options = {key: item for key, item in self.options.items() if key != "follow_links"}
        source = {
            "source": self.source.name,
            "seed": self.seed,
            "options": {**shared, **options},
            "image_size": self.handles[0].settings.shared.get("image_size"),
        }
        return SplitRecord(
            samples=self.split.samples, shard_size=self.split.shard_size, source=convert(as_json(source), SourceRecord)
        )

    def check(self, recorded: SplitRecord | None) -> None:
        """Raise DataError if the split's folder holds other samples, or more."""
        folder, planned = self.split.folder, self.record
        for path in sorted(folder.glob("*/")):
            check_foreign(path)
        if recorded is None or not self.split.modalities():
            return
        for key in ("source", "shard_size"):
            if mismatch := difference(as_json(recorded).get(key), as_json(planned)[key], key):
                raise DataError(f"{folder}: was made otherwise ({mismatch}); give another folder, or delete {folder}")
        if recorded.samples > self.split.samples:
            is_folder = isinstance(self.samples, FileSamples)
            advice = "ask for more where a number was asked for" if is_folder else "ask for as many or more"
            raise DataError(
                f"{folder}: was made with {count_of(recorded.samples, 'sample')}, now it would be "
                f"{self.split.samples}; {advice}, give another folder, or delete {folder}"
            )
        for handle in self.handles:
            path = folder / handle.name
            shards = shards_of(path)
            manifest = read_manifest(path, shards[0], ValueManifest) if shards else None
            if manifest is not None and manifest.writer.derived_from:
                raise DataError(
                    f"{path}: was derived from other modalities; delete it to make {handle.name} of the source"
                )

    def run(self, workers: Workers, dry_run: bool) -> list[Outcome]:
        """Make, or with `dry_run` count, the shards that are not there, or that depend on other inputs now."""
        split, samples = self.split, self.samples
        outcomes = {handle.name: Outcome(split=split.name, modality=handle.name) for handle in self.handles}
        names = {handle.name: handle.name_at_source(samples.offered) for handle in self.handles}
        pictures = tuple(sorted(handle.name for handle in self.handles if handle.is_picture))
        cropped = {handle.name for handle in self.handles if self.crop and handle.implements("transform")}
        source = as_json(self.record)["source"]
        optional = {key: value for key, value in {"crop": self.crop, "contents": samples.contents}.items() if value}
        records = {
            handle.name: {
                **source,
                **optional,
                **workers.zoo.limits.identity(),
                "distribution": self.source.distribution,
                "plugin": f"{handle.plugin_name} of {handle.distribution}",
                "value": value_identity(handle),
                "settings": reading_settings(handle),
            }
            for handle in self.handles
        }  # shared by all shards of a modality, and recorded in manifests
        digests = {name: inputs_digest(**record) for name, record in records.items()}

        def shard_files(shard: int) -> tuple[tuple[str, Mapping[str, Member]], ...]:
            start = split.number(shard, 0)
            return tuple(samples.files(start, start + split.rows(shard))) if isinstance(samples, FileSamples) else ()

        todo: dict[int, dict[str, str]] = {}
        for shard in range(split.shards):
            files, keys = shard_files(shard), split.sound_keys_digest(shard)
            for name, outcome in outcomes.items():
                sources = {name, *pictures} if name in cropped else {name}  # pictures decide the crop, or are refused
                inputs = inputs_digest(
                    made={modality: digests[modality] for modality in sources},
                    split=split.name,
                    shard=shard,
                    start=split.number(shard, 0),
                    rows=split.rows(shard),
                    files=files_digest(files, {names[modality] for modality in sources}) if files else "",
                )
                if keys and (finished := up_to_date(split.folder / name, shard, inputs, keys)) is not None:
                    outcome.add(split, shard, finished, unchanged=True)
                else:
                    todo.setdefault(shard, {})[name] = inputs
                    outcome.written += split.rows(shard) if dry_run else 0
        if dry_run:
            return list(outcomes.values())
        jobs = (
            MakeShard(
                split=split,
                shard=shard,
                source=self.source.name,
                seed=self.seed,
                options=json.dumps(self.options, sort_keys=True, default=str),
                inputs=inputs,
                made_with={name: records[name] for name in inputs},
                pictures=pictures,
                names=names,
                crop=self.crop or "whole",
                files=shard_files(shard),
            )
            for shard, inputs in todo.items()
        )
        with progress_bar(f"make {split.name}", sum(map(split.rows, todo))) as advance:
            for shard, manifests in workers.run(make_shard, jobs, advance):
                for name, manifest in manifests.items():
                    outcomes[name].add(split, shard, manifest)
        if todo and (repeated := split.shards_with_repeated_keys(range(split.shards))):
            advice = f"{self.source.name} gave it for two samples; give each its own key"
            raise DataError(f"{split.keys_path(min(repeated))}: {REPEATED_KEY}: {advice}")
        return list(outcomes.values())
