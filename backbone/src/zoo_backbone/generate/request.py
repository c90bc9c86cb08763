"""GenerationRequest: one class for the command line, plans, the page, evaluations and AnyToAny; and its results."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from tokenizers_zoo.contract.registry import ModalityHandle
from tokenizers_zoo.contract.validation import describe
from tokenizers_zoo.errors import InvalidValueError, UnknownNameError
from tokenizers_zoo.machine.process import kept_memory
from tokenizers_zoo.records.io import replacing_file
from tokenizers_zoo.stores.tokens import token_text
from zoo_backbone.generate.plans import DRAW, TargetPlan
from zoo_backbone.generate.sampler import OnStep, generate, rows_of
from zoo_backbone.model.fourm import FourM

TOKENS = ".tokens.json"
"""Ending of the files of token ids."""
BATCH = 32
"""Draws, or samples, at a time; results do not depend on it."""


@dataclass(frozen=True)
class Sample:
    """One generated value of a modality."""

    handle: ModalityHandle
    tokens: Any
    """Token ids, int64."""
    value: Any
    """The decoded value: an array, a text, or JSON types."""

    def __repr__(self) -> str:
        return f"Sample({self.handle.name}: {describe(self.value)})"

    @property
    def array(self) -> np.ndarray[Any, Any]:
        """The value of a modality of arrays. Raises InvalidValueError for another modality."""
        if not isinstance(self.value, np.ndarray):
            raise InvalidValueError(f"{self.handle.name}: its values are no arrays; use .value")
        return self.value

    @property
    def text(self) -> str:
        """The value as text: the text itself, or JSON. Raises InvalidValueError for arrays."""
        if isinstance(self.value, np.ndarray):
            raise InvalidValueError(f"{self.handle.name}: its values are arrays; use .array or .image")
        return self.value if isinstance(self.value, str) else json.dumps(self.value, ensure_ascii=False)

    @property
    def image(self) -> PIL.Image.Image:
        """A picture of the value. Raises InvalidValueError for a modality that is shown as text."""
        if isinstance(picture := self.handle.render(self.value), str):
            raise InvalidValueError(f"{self.handle.name}: is shown as text; use .text")
        return picture

    def save(self, folder: str | Path) -> None:
        """Write folder/<modality>.<extension>, .tokens.json, and .png for values that are shown as pictures."""
        directory, name = Path(folder), self.handle.name
        with replacing_file(directory / f"{name}{TOKENS}") as temporary:
            temporary.write_text(token_text(self.handle, self.tokens), encoding="utf-8")
        data, extension = self.handle.write(self.value)
        with replacing_file(directory / f"{name}.{extension}") as temporary:
            temporary.write_bytes(data)
        picture = self.handle.render(self.value)
        if not isinstance(picture, str) and extension != "png":
            with replacing_file(directory / f"{name}.png") as temporary:
                picture.save(temporary, format="PNG")


class Generated(Mapping[str, Sequence[Sample]]):
    """Generated samples by modality, as attributes and as items.

    `out.depth` is a list: all draws of the first sample of the inputs, then all draws of the second, and so on.
    """

    def __init__(self, samples: Mapping[str, Sequence[Sample]], draws: int) -> None:
        self._samples, self.draws = dict(samples), draws

    def __getitem__(self, name: str) -> Sequence[Sample]:
        if name not in self._samples:
            raise UnknownNameError.of("target", name, self._samples)
        return self._samples[name]

    def __getattr__(self, name: str) -> Sequence[Sample]:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self[name]
        except UnknownNameError as error:
            raise AttributeError(str(error)) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._samples)

    def __len__(self) -> int:
        return len(self._samples)

    def __repr__(self) -> str:
        return f"Generated({', '.join(f'{name}: {len(samples)}' for name, samples in self.items())})"

    def save(self, folder: str | Path) -> None:
        """Write values, pictures and tokens to folder/<sample>/<draw>/<modality>.<extension>."""
        for samples in self._samples.values():
            for number, sample in enumerate(samples):
                row, draw = divmod(number, self.draws)
                sample.save(Path(folder) / f"{row:03}" / str(draw))


@dataclass(kw_only=True)
class GenerationRequest:
    """Targets to generate for some samples, whose settings are checked."""

    model: FourM
    handles: Mapping[str, ModalityHandle]
    """At least the targets, by name."""
    targets: Sequence[TargetPlan]
    """Generated in this order."""
    numbers: Sequence[int]
    """A number per sample; draw d of a sample has the noise of its number + d * `stride`."""
    tokens_of: Callable[[Sequence[int]], tuple[Mapping[str, Any], Mapping[str, Any]]]
    """Returns the whole and the partial tokens, with -1 for the tokens to generate, of samples at these positions."""
    seed: int
    draws: int
    """Draws per sample."""
    stride: int = DRAW
    batch: int = BATCH
    """Draws at a time."""

    def generate(self, on_step: OnStep | None = None) -> Generated:
        """Generate all samples. `on_step` is called after each decoding step, see `generate.sampler.generate`."""
        results: dict[str, list[Sample]] = {target.name: [] for target in self.targets}
        for _, block in self.draw(range(len(self.numbers)), on_step):
            for name, samples in block.items():
                results[name] += samples
        return Generated(results, self.draws)

    def draw(
        self, rows: Sequence[int], on_step: OnStep | None = None, advance: Callable[[int], None] = lambda count: None
    ) -> Iterator[tuple[Sequence[int], dict[str, list[Sample]]]]:
        """Yield blocks of `rows` with their generated samples by target; the draws of a row are consecutive."""
        for block in blocks(rows, max(1, self.batch // self.draws)):
            yield block, self._draw_block(block, on_step, advance)

    @kept_memory()
    def _draw_block(
        self, rows: Sequence[int], on_step: OnStep | None, advance: Callable[[int], None]
    ) -> dict[str, list[Sample]]:
        """More than `batch` draws are only possible for a single row."""
        inputs, partial = self.tokens_of(rows)
        single_ids = {target.name: self.handles[target.name].single_ids() for target in self.targets}
        samples: dict[str, list[Sample]] = {target.name: [] for target in self.targets}
        for part in blocks(range(self.draws), self.batch):
            numbers = [self.numbers[row] + draw * self.stride for row in rows for draw in part]
            generated = generate(
                self.model,
                inputs,
                self.targets,
                self.seed,
                numbers,
                partial=partial,
                draws=len(part),
                once=single_ids,
                on_step=on_step,
            )
            for name, ids in generated.items():
                handle = self.handles[name]
                values = chain.from_iterable(handle.decode(batch, trusted=True) for batch in blocks(ids, BATCH))
                samples[name] += [Sample(handle, *pair) for pair in zip(ids, values, strict=True)]
            advance(len(numbers))
        return samples


def taken(batches: Mapping[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    """Return the tokens of the samples `rows`, which may repeat, by modality."""
    return {name: rows_of(batch, rows) for name, batch in batches.items()}


def blocks(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """Split items into runs of at most `size`."""
    return [items[first : first + size] for first in range(0, len(items), size)]
