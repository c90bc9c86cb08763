"""The inputs of a generation: modalities of stored samples, files, or values in the plan itself.

NAME                  tokens of stored samples
NAME=FILE             the file of a value, or the tokens that `zoo encode` and `zoo backbone generate` write
NAME="TEXT"           a text, in either kind of quotes
NAME={...}, [...]     JSON, for values that are stored as JSON
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from tokenizers_zoo.data.tokens import TokenColumn, TokenStore, is_token_file, read_tokens, whole_samples
from tokenizers_zoo.errors import ConfigError, DataError, InvalidValueError, UnknownNameError
from tokenizers_zoo.registry import ModalityHandle, Zoo
from tokenizers_zoo.spec import Crop
from zoo_backbone.generate.inpainting import checked_partial, partial_of
from zoo_backbone.generate.plans import DEFAULT_SPLIT, GenerationPlan, inputs_of, is_written_out, sources_of
from zoo_backbone.generate.sampler import rows_of
from zoo_backbone.generate.sampling import Guidance
from zoo_backbone.model import FourM
from zoo_backbone.packing import accepted
from zoo_backbone.run import Run

DRAW = 1 << 32
"""Draw d of sample n has the number n + d * DRAW."""
MOST = 1_000_000
"""Samples without any input at once; their names are in memory."""
SUGGESTED = 1000
"""Keys among which a misspelt key is looked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """The samples of a generation with their names, numbers and input tokens.

    Tokens of stored samples are read when `rows` asks for them.
    """

    names: tuple[str, ...]
    numbers: tuple[int, ...]
    stored: Mapping[str, TokenColumn]
    stored_rows: tuple[int, ...]
    """Rows of the stored samples."""
    values: Mapping[str, Any]
    """Tokens of one sample, which are inputs of all samples."""
    partial: Mapping[str, Any]

    @property
    def inputs(self) -> tuple[str, ...]:
        """The modalities that are inputs as a whole."""
        return (*self.stored, *self.values)

    def rows(self, rows: Sequence[int]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return whole and partial tokens of the samples `rows`."""
        stored = [self.stored_rows[row] for row in rows] if self.stored else []
        whole = {name: column.take(stored) for name, column in self.stored.items()}
        whole |= {name: rows_of(tokens, [0] * len(rows)) for name, tokens in self.values.items()}
        return whole, {name: rows_of(tokens, rows) for name, tokens in self.partial.items()}


def with_input_forms(plan: GenerationPlan, model: FourM, zoo: Zoo, tokens: Path) -> GenerationPlan:
    """Replace inputs by their input forms, such as `rgb` by `rgb_patches`, if the model was trained on them.

    Token files, inpainted inputs, and stored samples that have no such form stay as they are.
    """
    sources = sources_of(plan.inputs)
    forms = {zoo[name].spec.input_form_of: name for name in model.layout.readable if name in zoo}
    stored: list[str] = []
    if any(not source and forms.get(name) for name, source in sources.items()) and tokens.is_dir():
        store = TokenStore(tokens)
        stored = store.modalities(plan.split) if plan.split in store.splits() else []
    renamed = {
        name: forms[name]
        for name, source in sources.items()
        if name in forms and forms[name] not in sources and name not in plan.inpaint
        and (forms[name] in stored if not source else not source.endswith(".json") or is_written_out(source))
    }  # fmt: skip
    names = {name: form for name, form in renamed.items() if name not in {target.name for target in plan.targets}}

    def of_inputs(guidance: Guidance) -> Guidance:
        weights = {names.get(name, name): weight for name, weight in guidance.weights.items()}
        return replace(guidance, weights=weights, always=tuple(names.get(name, name) for name in guidance.always))

    inputs = inputs_of({renamed.get(name, name): source for name, source in sources.items()})
    targets = [replace(target, guidance=target.guidance and of_inputs(target.guidance)) for target in plan.targets]
    return replace(plan, inputs=tuple(inputs), guidance=of_inputs(plan.guidance), targets=tuple(targets))


def handles_of(
    zoo: Zoo, model: FourM, plan: GenerationPlan, trained_on: Mapping[str, str]
) -> dict[str, ModalityHandle]:
    """Return the handles of all modalities in a plan.

    Raises UnknownNameError, DataError for another tokenizer or shape, and ConfigError if the model cannot rank draws.
    """
    names = [*sources_of(plan.inputs), *plan.inpaint, *(target.name for target in plan.targets)]
    if plan.rank:
        names.append(plan.rank)
        model.layout.check_made(plan.rank, "rank")
        for target in plan.targets:
            model.layout.check_read(target.name, f"rank {plan.rank} of")
    handles = {name: zoo[name] for name in names if model.layout.spec(name)}
    for handle in handles.values():
        model.check_tokenizer(handle)
    return handles


def read_inputs(run: Run, model: FourM, handles: Mapping[str, ModalityHandle], plan: GenerationPlan) -> Request:
    """Choose the samples and open their inputs. Raises ZooErrors."""
    sources = sources_of(plan.inputs)
    for name in plan.inpaint:
        if name not in sources:
            raise ConfigError(f"inpaint {name}: is not among the inputs; add --input {name}")
    values = {name: tokens_of_source(handles[name], source) for name, source in sources.items() if source}
    columns: dict[str, TokenColumn] = {}
    rows: list[int] = []
    if any(not source for source in sources.values()):
        store = TokenStore(run.tokens)
        for name in (name for name, source in sources.items() if not source):
            columns[name] = store.open(plan.split, name)
            columns[name].check_tokenizer(handles[name])
        numbers, names, rows = _stored_samples(plan, columns, run.tokens / plan.split)
    else:
        numbers, names = _samples_without_store(plan, bool(values))
    partial = {}
    targets = {target.name for target in plan.targets}
    for name, region in plan.inpaint.items():
        tokens = columns.pop(name).take(rows) if name in columns else rows_of(values.pop(name), [0] * len(names))
        partial[name] = partial_of(model.layout.spec(name), tokens, region)
        checked_partial(model.layout, name, partial[name], len(names), name in targets)
    return Request(
        names=tuple(names), numbers=tuple(numbers), stored=columns, stored_rows=tuple(rows), values=values,
        partial=partial,
    )  # fmt: skip


def _stored_samples(
    plan: GenerationPlan, columns: Mapping[str, TokenColumn], place: Path
) -> tuple[Sequence[int], list[str], list[int]]:
    """Return numbers, keys and rows of the chosen samples; the numbers count samples with all inputs."""
    samples = whole_samples(list(columns.values()))
    if plan.keys:
        wanted, seen = set(plan.keys), list[str]()
        found: dict[str, tuple[int, int]] = {}
        for number, (key, row) in enumerate(samples):
            if key in wanted:
                found[key] = number, row
            if len(seen) < SUGGESTED:
                seen.append(key)
            if len(found) == len(wanted):
                break
        for key in plan.keys:
            if key not in found:
                raise UnknownNameError.of("sample", key, seen, f"(in {place}; --split chooses another split)")
        return [found[key][0] for key in plan.keys], list(plan.keys), [found[key][1] for key in plan.keys]
    last = max(last for _, last in plan.ranges())
    listed = list(islice(samples, last + 1))
    if not listed:
        raise DataError(f"{place}: no sample has tokens of {', '.join(columns)}")
    if not plan.samples or plan.samples.isdecimal():  # a number is an upper bound
        numbers: Sequence[int] = range(len(listed))
    elif last >= len(listed):
        there = f"{len(listed)} samples with all inputs, numbers 0 to {len(listed) - 1}"
        raise ConfigError(f"samples {plan.samples}: {place} has {there}")
    else:
        numbers = plan.numbers()
    return numbers, [listed[number][0] for number in numbers], [listed[number][1] for number in numbers]


def _samples_without_store(plan: GenerationPlan, has_values: bool) -> tuple[Sequence[int], list[str]]:
    """Return numbers and names of samples without stored inputs. Raises ConfigError."""
    split = plan.split if plan.split != DEFAULT_SPLIT else ""
    for key, wanted in (("keys", ", ".join(plan.keys)), ("split", split)):
        if wanted:
            raise ConfigError(f"{key} {wanted}: no modality of stored samples is an input; leave it out")
    if has_values:
        if plan.samples not in ("", "1"):
            raise ConfigError(f"samples {plan.samples}: values make one sample; use --draws for several results")
        return [0], ["files"]
    if sum(last - first + 1 for first, last in plan.ranges()) > MOST:
        advice = f"generate others by further calls, such as {MOST}-{2 * MOST - 1}"
        raise ConfigError(f"samples {plan.samples}: expected at most {MOST:,} at once without stored inputs; {advice}")
    if max(last for _, last in plan.ranges()) >= DRAW:
        raise ConfigError(f"samples {plan.samples}: expected numbers below {DRAW}")
    numbers = plan.numbers()
    return numbers, [f"sample-{number:03}" for number in numbers]


def data_of_source(name: str, source: str) -> tuple[bytes, str]:
    """Return the bytes of a value and their file extension. Raises ConfigError."""
    if source[:1] in ('"', "'"):
        if len(source) < 2 or source[-1] != source[0]:
            raise ConfigError(f"input {name}={source}: expected a closing quote")
        return source[1:-1].encode(), "txt"
    if is_written_out(source):
        return source.encode(), "json"
    path = Path(source)
    if not os.path.isfile(path):  # Path.is_file raises for names that are too long
        several = "; repeat --input for each" if re.search(r",\w+=", source) else ""
        raise ConfigError(f'input {name}={source}: expected an existing file, or "TEXT" in quotes{several}')
    try:
        data = path.read_bytes()
    except PermissionError:
        raise ConfigError(f"input {name}={source}: may not be read; allow it, or give another file") from None
    return data, path.suffix.removeprefix(".").lower()


def value_of_source(handle: ModalityHandle, source: str) -> Any:
    """Return a value in the size of its modality. Raises ConfigError, InvalidValueError."""
    return handle.transform(handle.read(*data_of_source(handle.name, source)), Crop())


def tokens_of_source(handle: ModalityHandle, source: str) -> Any:
    """Return the tokens of one sample as a batch. Raises ConfigError, DataError, InvalidValueError."""
    data, extension = data_of_source(handle.name, source)
    if extension == "json" and not is_written_out(source) and is_token_file(data):
        tokens = [read_tokens(handle, Path(source))]
        try:
            accepted(handle.spec, tokens, None, "")
        except InvalidValueError as error:
            raise DataError(f"{source}: {error}") from None
        return tokens
    return handle.encode([value_of_source(handle, source)])
