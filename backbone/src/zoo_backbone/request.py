"""The inputs of a generation: modalities of stored samples, files, or values in the plan itself.

NAME                  tokens of stored samples
NAME=FILE             the file of a value, or the tokens that `zoo encode` and `zoo backbone generate` write
NAME=FOLDER, GLOB     files of several samples, whose keys are the file names without extension: photos, 'a/*.jpg'
NAME=TEXT             a text, for modalities of texts; in quotes if a file has this name
NAME={...}, [...]     JSON, for values that are stored as JSON
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tokenizers_zoo.data.tokens import TokenColumn, TokenStore, is_token_file, read_tokens, whole_samples
from tokenizers_zoo.errors import ConfigError, DataError, InvalidValueError, UnknownNameError
from tokenizers_zoo.limits import read_file
from tokenizers_zoo.registry import ModalityHandle, Zoo
from zoo_backbone.generate.inpainting import checked_partial, partial_of
from zoo_backbone.generate.plans import (
    DEFAULT_SPLIT,
    GenerationPlan,
    inputs_of,
    is_written_out,
    resolved_plan,
    sources_of,
)
from zoo_backbone.generate.sampler import rows_of
from zoo_backbone.packing import accepted
from zoo_backbone.pipeline import AnyToAny, blocks

SUGGESTED = 1000
"""Keys among which a misspelt key is looked for."""


class Request:
    """A plan applied to a pipeline and a token store: tokenizers, targets, and samples with their input tokens.

    `plan` has input forms and absolute paths. `names` and `numbers` have an entry per sample. `values` are tokens of
    one sample, which are inputs of all samples; tokens of `stored` samples and of the `files` of several samples are
    read when `rows` asks for them.
    """

    def __init__(self, plan: GenerationPlan, pipeline: AnyToAny, tokens: Path) -> None:
        """Check the plan, choose the samples, and open the inputs and the tokenizers. Raises ZooErrors."""
        self.pipeline, model = pipeline, pipeline.model
        stored = TokenStore(tokens).modalities(plan.split) if plan.reads_store and tokens.is_dir() else []
        self.plan = plan = with_input_forms(plan, pipeline.input_forms, stored).placed(Path.cwd())
        sources, self.targets, numbers = sources_of(plan.inputs), plan.target_plans(), plan.numbers()
        for name in plan.inpaint:
            if name not in sources:
                raise ConfigError(f"inpaint {name}: is not among the inputs; add --input {name}")
        self.inputs = [name for name in sources if name not in plan.inpaint]
        resolved_plan(model.layout, self.targets, self.inputs, plan.inpaint)
        targets = [target.name for target in self.targets]
        ranking = [plan.rank] if plan.rank else []
        model.layout.check_made(ranking, "rank")
        model.layout.check_read(targets if ranking else (), f"rank {plan.rank} of")
        self.handles = handles = {name: pipeline.handle(name) for name in (*sources, *targets, *ranking)}
        self.values: dict[str, Any] = {}
        several = {name: source for name, source in sources.items() if source and is_several(source)}
        self.files = files_by_name(several, {name: extensions_of(pipeline, name) for name in several})
        items: dict[str, Any] = {}
        for name, source in sources.items():
            if source and name not in self.files:
                item, found = item_of_source(handles[name], source), tokens_of_file(handles[name], source)
                if found is None:
                    items[name] = item
                else:
                    self.values[name] = found
        self.values |= pipeline.tokenize(items, crop=plan.crop, as_tokens=plan.inpaint)
        self.stored: dict[str, TokenColumn] = {}
        self._rows: list[int] = []
        if self.files and (plan.reads_store or plan.keys):
            raise ConfigError(f"input {next(iter(self.files))}: files of several samples cannot go with stored samples")
        if plan.reads_store:
            store = TokenStore(tokens)
            self.stored = {name: store.open(plan.split, name) for name in sources if name not in self.values}
            for name, column in self.stored.items():
                column.check_tokenizer(self.handles[name])
            samples, place = whole_samples(list(self.stored.values())), tokens / plan.split
            if plan.keys:
                chosen = _of_keys(plan.keys, samples, place)
            else:
                chosen = _of_numbers(numbers, plan.samples, samples, place)
            self.numbers, self.names, self._rows = map(list, zip(*chosen, strict=True))
        elif plan.keys or plan.split != DEFAULT_SPLIT:
            wanted = f"keys {', '.join(plan.keys)}" if plan.keys else f"split {plan.split}"
            raise ConfigError(f"{wanted}: no modality of stored samples is an input; leave it out")
        elif self.files:
            keys = list(next(iter(self.files.values())))
            place = Path(sources[next(iter(self.files))])
            numbers = numbers if plan.samples else list(range(len(keys)))
            chosen = _of_numbers(numbers, plan.samples, [(key, row) for row, key in enumerate(keys)], place)
            self.numbers, self.names, self._rows = map(list, zip(*chosen, strict=True))
        elif self.values:
            if plan.samples not in ("", "1"):
                raise ConfigError(f"samples {plan.samples}: values make one sample; use --draws for several results")
            self.numbers, self.names = [0], ["files"]
        else:
            self.numbers, self.names = numbers, [f"sample-{number:03}" for number in numbers]
        self.partial: dict[str, Any] = {}
        for name, region in plan.inpaint.items():
            whole, _ = self.rows(range(len(self.names)), [name])
            self.partial[name] = partial_of(model.layout.spec(name), whole[name], region)
            checked_partial(model.layout, name, self.partial[name], len(self.names), name in targets)

    def rows(self, rows: Sequence[int], names: Collection[str] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return whole and partial tokens of the samples `rows`; `names` are the modalities, by default all inputs."""
        names = self.inputs if names is None else names
        places = [self._rows[row] for row in rows] if self._rows else []
        whole = {name: column.take(places) for name, column in self.stored.items() if name in names}
        several = {
            name: [files[self.names[row]] for row in rows] for name, files in self.files.items() if name in names
        }
        whole |= self.pipeline.tokenize(several, crop=self.plan.crop, as_tokens=self.plan.inpaint)
        whole |= {name: rows_of(found, [0] * len(rows)) for name, found in self.values.items() if name in names}
        return whole, {name: rows_of(found, rows) for name, found in self.partial.items()}

    def digest(self, at_once: int) -> str:
        """Return a sha256 prefix (hex) of tokenizers, samples and input tokens, reading `at_once` rows at a time."""
        digest = hashlib.sha256()
        for handle in self.handles.values():
            digest.update(repr((handle.name, handle.fingerprint, handle.known_settings())).encode())
        digest.update(repr((self.names, self.numbers)).encode())
        for rows in blocks(range(len(self.names)), at_once):
            for tokens in self.rows(rows):
                for name, whole in tokens.items():
                    for item in [whole] if hasattr(whole, "shape") else whole:
                        array = item.numpy(force=True) if isinstance(item, torch.Tensor) else np.asarray(item)
                        digest.update(f"{name} {array.dtype} {array.shape}".encode())
                        digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]


def with_input_forms(plan: GenerationPlan, forms: Mapping[str, str], stored: Collection[str]) -> GenerationPlan:
    """Replace inputs by their input forms, such as `rgb` by `rgb_patches`, if the model was trained on them.

    Token files, inpainted inputs, and samples in whose store such a form is not `stored` stay as they are.
    """
    sources = sources_of(plan.inputs)
    renamed = {
        name: forms[name]
        for name, source in sources.items()
        if name in forms and forms[name] not in sources and name not in plan.inpaint
        and (forms[name] in stored if not source else not source.endswith(".json") or is_written_out(source))
    }  # fmt: skip
    inputs = inputs_of({renamed.get(name, name): source for name, source in sources.items()})
    guiding = renamed | {target.name: target.name for target in plan.targets}
    targets = [replace(item, guidance=item.guidance and item.guidance.renamed(guiding)) for item in plan.targets]
    return replace(plan, inputs=tuple(inputs), guidance=plan.guidance.renamed(guiding), targets=tuple(targets))


Chosen = tuple[int, str, int]
"""Number among the samples with all inputs, key, and row in the store."""


def _of_keys(keys: Sequence[str], samples: Iterable[tuple[str, int]], place: Path) -> list[Chosen]:
    """Return the samples with these keys. Raises UnknownNameError."""
    remaining = iter(samples)
    first = list(islice(remaining, SUGGESTED))
    found = {key: (number, key, row) for number, (key, row) in enumerate(chain(first, remaining)) if key in keys}
    for key in keys:
        if key not in found:
            hint = f"(in {place}; --split chooses another split)"
            raise UnknownNameError.of("sample", key, (known for known, _ in first), hint)
    return [found[key] for key in keys]


def _of_numbers(numbers: Sequence[int], text: str, samples: Iterable[tuple[str, int]], place: Path) -> list[Chosen]:
    """Return the samples with these numbers, which `text` says. Raises DataError or ConfigError."""
    listed = [(number, key, row) for number, (key, row) in enumerate(islice(samples, max(numbers) + 1))]
    if not listed:
        raise DataError(f"{place}: no sample has tokens of all inputs")
    if not text or text.isdecimal():  # a number is an upper bound
        return listed
    if max(numbers) >= len(listed):
        there = f"{len(listed)} samples with all inputs, numbers 0 to {len(listed) - 1}"
        raise ConfigError(f"samples {text}: {place} has {there}")
    return [listed[number] for number in numbers]


def quoted_texts(sources: Mapping[str, str], zoo: Zoo) -> dict[str, str]:
    """Put quotes around the texts of text modalities, such as `caption=a red ball`.

    The name of an existing file, and a single word with an extension, such as `a.txt`, is a file.
    """
    quoted = dict(sources)
    for name, source in sources.items():
        is_text = name in zoo and zoo[name].spec.value.kind == "text"
        is_file = os.path.isfile(source) or re.fullmatch(r"\S+\.\w+", source)
        if is_text and source and not is_written_out(source) and not is_file:
            quoted[name] = f'"{source}"'
    return quoted


def is_several(source: str) -> bool:
    """Return True for the path of a folder, and for a pattern of files."""
    return not is_written_out(source) and (os.path.isdir(source) or re.search(r"[*?[]", source) is not None)


def extensions_of(pipeline: AnyToAny, name: str) -> set[str]:
    """Return the extensions that belong to a modality, or to the modality whose input form it is."""
    own = [name, *(plain for plain, form in pipeline.input_forms.items() if form == name)]
    return {extension for one in own if one in pipeline.zoo for extension in pipeline.zoo[one].spec.extensions}


def files_by_name(sources: Mapping[str, str], extensions: Mapping[str, Collection[str]]) -> dict[str, dict[str, Path]]:
    """Return the files of folders and patterns by modality and key. Raises ConfigError if the keys do not agree.

    If a folder has files with the modality's `extensions`, its other files are not used, such as texts next to
    pictures.
    """
    found: dict[str, dict[str, Path]] = {}
    for name, source in sources.items():
        pattern = os.path.join(glob.escape(source), "*") if os.path.isdir(source) else source
        paths = [Path(path) for path in sorted(glob.glob(pattern, recursive=True)) if os.path.isfile(path)]
        if os.path.isdir(source):
            paths = [path for path in paths if path.suffix[1:].lower() in extensions[name]] or paths
        found[name] = {path.stem: path for path in paths}
        if len(found[name]) < len(paths) or not paths:
            same = "two files have the same name; give a pattern, such as 'FOLDER/*.png'"
            problem = same if paths else "there are no such files"
            raise ConfigError(f"input {name}={source}: {problem}")
        first, keys = next(iter(found.items()))
        if differing := sorted(keys.keys() ^ found[name].keys()):
            raise ConfigError(f"input {name}={source}: expected the files that {first} has; {differing[0]} differs")
    return found


def item_of_source(handle: ModalityHandle, source: str) -> Any:
    """Return the value, text or path that `source` gives. Raises ConfigError, InvalidValueError."""
    if source[:1] in ('"', "'"):
        if len(source) < 2 or source[-1] != source[0]:
            raise ConfigError(f"input {handle.name}={source}: expected a closing quote")
        return source[1:-1] if handle.spec.value.kind == "text" else handle.read(source[1:-1].encode(), "txt")
    if is_written_out(source):
        return handle.read(source.encode(), "json")
    if not os.path.isfile(source):  # Path.is_file raises for names that are too long
        several = "; repeat --input for each" if re.search(r",\w+=", source) else ""
        raise ConfigError(f'input {handle.name}={source}: expected an existing file, or "TEXT" in quotes{several}')
    if not os.access(source, os.R_OK):
        raise ConfigError(f"input {handle.name}={source}: may not be read; allow it, or give another file")
    return Path(source)


def tokens_of_file(handle: ModalityHandle, source: str) -> Any:
    """Return the tokens in a file as a batch, or None if the file holds no tokens. Raises DataError."""
    if is_written_out(source) or not source.endswith(".json") or not is_token_file(read_file(Path(source))):
        return None
    tokens = [read_tokens(handle, Path(source))]
    try:
        accepted(handle.spec, tokens, None, "")
    except InvalidValueError as error:
        raise DataError(f"{source}: {error}") from None
    return tokens
