"""A plan applied to a model and a token store: its samples, with the tokens of their inputs."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tokenizers_zoo.errors import ConfigError, DataError, UnknownNameError
from tokenizers_zoo.files.tar import file_key
from tokenizers_zoo.stores.tokens import TokenColumn, TokenStore, read_tokens, whole_samples
from zoo_backbone.generate.inpainting import checked_partial, partial_of
from zoo_backbone.generate.plans import DEFAULT_SPLIT, MASK, GenerationPlan, is_count, resolved_plan
from zoo_backbone.generate.request import TOKENS, GenerationRequest, blocks, taken
from zoo_backbone.generate.sources import files_by_name, item_of_source, sources_of
from zoo_backbone.use.any_to_any import AnyToAny

SUGGESTED = 1000
"""Keys among which a misspelt key is looked for."""


class PlanRequest(GenerationRequest):
    """A plan applied to a pipeline and a token store: tokenizers, targets, and samples with their input tokens.

    `plan` has absolute paths. `titles` are the names of its inputs by the names that the model reads. `names` has an
    entry per sample. `values` are the tokens of one sample, inputs of all samples; tokens of stored samples (`columns`)
    and of the `files` of several samples are read when they are needed.
    """

    def __init__(self, plan: GenerationPlan, pipeline: AnyToAny, tokens: Path) -> None:
        """Check the plan, choose the samples, and open the inputs and the tokenizers. Raises ZooErrors."""
        self.pipeline, model = pipeline, pipeline.model
        stored_names = TokenStore(tokens).modalities(plan.split) if plan.reads_store and tokens.is_dir() else []
        sources = sources_of(plan.inputs, pipeline.zoo, Path.cwd())
        self.plan = plan = plan.with_absolute_paths(Path.cwd(), sources)
        self.titles: dict[str, str] = {}
        for name, source in sources.items():
            stored = stored_names if source.kind == "stored" else None
            form = model.layout.readable_as(name, stored, prefers_form=True)
            # Token files, inpainted inputs, and stored samples without such a form stay as they are.
            stays = name in plan.inpaint or source.kind == "tokens" or form in sources
            self.titles[name if stays else form] = name
        sources = {form: sources[name] for form, name in self.titles.items()}
        target_plans, numbers = plan.target_plans(), plan.numbers()
        for name in plan.inpaint:
            if name not in sources:
                raise ConfigError(f"inpaint {name}: is not among the inputs; add --input {name}")
        self.input_names = [name for name in sources if name not in plan.inpaint]
        resolved_plan(model.layout, target_plans, self.input_names, plan.inpaint)
        targets = [target.name for target in target_plans]
        ranking = [plan.rank] if plan.rank else []
        model.layout.check_targets(ranking, "rank")
        model.layout.check_inputs(targets if ranking else (), f"rank {plan.rank} of")
        handles = {name: pipeline.handle(name) for name in (*sources, *targets, *ranking)}
        self.values: dict[str, Any] = {}
        file_sources = {name: source.content for name, source in sources.items() if source.kind == "files"}
        extensions = {name: _extensions(pipeline, name) for name in file_sources}
        self.files = files_by_name(file_sources, extensions)
        single = [Path(source.content) for source in sources.values() if source.kind in ("file", "tokens")]
        masks = [Path(region.partition(MASK)[2]) for region in plan.inpaint.values() if MASK in region]
        read = (*single, *masks, *chain.from_iterable(files.values() for files in self.files.values()))
        self.read_files = {file.resolve() for file in read}
        items: dict[str, Any] = {}
        for name, source in sources.items():
            if source.kind in ("file", "text", "json"):
                items[name] = item_of_source(handles[name], source)
            elif source.kind == "tokens":
                self.values[name] = [read_tokens(handles[name], Path(source.content))]
        self.values |= pipeline.tokenize(items, crop=plan.crop, as_tokens=plan.inpaint)
        self.columns: dict[str, TokenColumn] = {}
        if self.files and (plan.reads_store or plan.keys):
            raise ConfigError(f"input {next(iter(self.files))}: files of several samples cannot go with stored samples")
        choices: list[RequestedSample]
        if plan.reads_store:
            store = TokenStore(tokens)
            self.columns = {name: store.open(plan.split, name) for name in sources if name not in self.values}
            for name, column in self.columns.items():
                column.check_tokenizer(handles[name])
            samples, folder = whole_samples(list(self.columns.values())), tokens / plan.split
            if plan.keys:
                choices = _samples_by_key(plan.keys, samples, folder)
            else:
                choices = _samples_by_number(numbers, plan.samples, samples, folder)
        elif plan.keys or plan.split != DEFAULT_SPLIT:
            setting = f"keys {', '.join(plan.keys)}" if plan.keys else f"split {plan.split}"
            raise ConfigError(f"{setting}: no modality of stored samples is an input; leave it out")
        elif self.files:
            name, files = next(iter(self.files.items()))
            keys = [(key, row) for row, key in enumerate(files)]
            numbers = numbers if plan.samples else list(range(len(keys)))
            choices = _samples_by_number(numbers, plan.samples, keys, Path(sources[name].content))
        elif self.values:
            if plan.samples not in ("", "1"):
                raise ConfigError(f"samples {plan.samples}: values make one sample; use --draws for several results")
            choices = [(0, file_key(Path(single[0].name.removesuffix(TOKENS))) if single else "sample", 0)]
        else:
            choices = [(number, f"sample-{number:03}", 0) for number in numbers]
        chosen_numbers, self.names, self._rows = map(list, zip(*choices, strict=True))
        super().__init__(
            model=model,
            handles=handles,
            targets=target_plans,
            numbers=chosen_numbers,
            tokens_of=self._read_tokens,
            seed=plan.seed,
            draws=plan.draws,
        )
        self.partial: dict[str, Any] = {}
        for name, region in plan.inpaint.items():
            inputs, _ = self._read_tokens(range(len(self.names)), [name])
            self.partial[name] = partial_of(model.layout.spec(name), inputs[name], region)
            checked_partial(model.layout, name, self.partial[name], len(self.names), name in targets)

    def _read_tokens(
        self, rows: Sequence[int], names: Collection[str] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return whole and partial tokens of the samples `rows`; `names` are the modalities, by default all inputs."""
        names = self.input_names if names is None else names
        store_rows = [self._rows[row] for row in rows]
        inputs = {name: column.take(store_rows) for name, column in self.columns.items() if name in names}
        file_batches = {
            name: [files[self.names[row]] for row in rows] for name, files in self.files.items() if name in names
        }
        inputs |= self.pipeline.tokenize(file_batches, crop=self.plan.crop, as_tokens=self.plan.inpaint)
        values = {name: tokens for name, tokens in self.values.items() if name in names}
        return inputs | taken(values, [0] * len(rows)), taken(self.partial, rows)

    def digest(self, at_once: int) -> str:
        """Return a sha256 prefix (hex) of tokenizers, samples and input tokens, reading `at_once` rows at a time."""
        digest = hashlib.sha256()
        for handle in self.handles.values():
            digest.update(repr((handle.name, handle.fingerprint, handle.known_settings())).encode())
        digest.update(repr((self.names, self.numbers)).encode())
        for rows in blocks(range(len(self.names)), at_once):
            for tokens in self.tokens_of(rows):
                for name, batch in tokens.items():
                    for item in [batch] if hasattr(batch, "shape") else batch:
                        array = item.numpy(force=True) if isinstance(item, torch.Tensor) else np.asarray(item)
                        digest.update(f"{name} {array.dtype} {array.shape}".encode())
                        digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]


RequestedSample = tuple[int, str, int]
"""Number among the samples with all inputs, key, and row in the store (0 without one)."""


def _extensions(pipeline: AnyToAny, name: str) -> set[str]:
    """Return the file extensions of a modality, and of the modality whose input form it is."""
    names = [name, pipeline.model.layout.spec(name).input_form_of or name]
    return {extension for name in names if name in pipeline.zoo for extension in pipeline.zoo[name].spec.extensions}


def _samples_by_key(keys: Sequence[str], samples: Iterable[tuple[str, int]], folder: Path) -> list[RequestedSample]:
    """Return the samples with these keys. Raises UnknownNameError."""
    remaining = iter(samples)
    first = list(islice(remaining, SUGGESTED))
    matches = {key: (number, key, row) for number, (key, row) in enumerate(chain(first, remaining)) if key in keys}
    for key in keys:
        if key not in matches:
            hint = f"(in {folder}; --split chooses another split)"
            raise UnknownNameError.of("sample", key, (sample_key for sample_key, _ in first), hint)
    return [matches[key] for key in keys]


def _samples_by_number(
    numbers: Sequence[int], setting: str, samples: Iterable[tuple[str, int]], folder: Path
) -> list[RequestedSample]:
    """Return the samples with these numbers, given by the plan as `setting`. Raises DataError or ConfigError."""
    listed = [(number, key, row) for number, (key, row) in enumerate(islice(samples, max(numbers) + 1))]
    if not listed:
        raise DataError(f"{folder}: no sample has tokens of all inputs")
    if not setting or is_count(setting):  # a number is an upper bound
        return listed
    if max(numbers) >= len(listed):
        available = f"{len(listed)} samples with all inputs, numbers 0 to {len(listed) - 1}"
        raise ConfigError(f"samples {setting}: {folder} has {available}")
    return [listed[number] for number in numbers]
