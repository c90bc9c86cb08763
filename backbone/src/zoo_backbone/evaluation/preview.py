"""Previews during training: inputs, predictions and truth of held-out samples, as pictures or text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tokenizers_zoo.data.samples import TEST
from tokenizers_zoo.data.tokens import TokenColumn, TokenStore, whole_samples
from tokenizers_zoo.errors import ConfigError, DataError, ReadError, ZooError, count_of
from tokenizers_zoo.registry import ModalityHandle
from zoo_backbone.checkpoint import architecture_for
from zoo_backbone.config import Dataset, ModelConfig, Preview, TrainConfig
from zoo_backbone.data import datasets_of
from zoo_backbone.evaluation.gallery import sheet_name, text_of, write_sheet
from zoo_backbone.evaluation.pairs import default_pairs
from zoo_backbone.generate import TargetPlan, generate
from zoo_backbone.model import FourM

FOLDER = "previews"
PAIRS = 2


class Previews:
    """Draws RUN/previews/step-N/<inputs>-to-<target>.png; what is true is what the tokenizer makes of the true tokens.

    The samples of a preview are those of the first store of the run that has all of it. Where the settings name no
    preview, the first pairs are drawn that a store has. Raises ConfigError for a preview of modalities that the run has
    not, and DataError where no held-out sample has all; a preview that is only `inherited` is left out then.
    """

    def __init__(
        self,
        handles: Mapping[str, ModalityHandle],
        tokens: Path,
        config: TrainConfig,
        *,
        model: ModelConfig | None = None,
        inherited: bool = False,
    ) -> None:
        self.handles, self.config, self.model = handles, config, model or ModelConfig()
        self.layout = architecture_for(self.model).layout_class(
            [handle.spec for handle in handles.values()], self.model
        )
        self.stores = datasets_of(tokens, config)
        self._columns: dict[tuple[Path, str], TokenColumn | None] = {}
        self.tokens: dict[Preview, dict[str, Any]] = {}
        for preview in config.previews:
            problem = self._problem(preview)
            if problem and not inherited:
                raise ConfigError(problem)
            if found := None if problem else self._held_out(preview):
                self.tokens[preview] = found
            elif not inherited:
                names = ", ".join((*preview.inputs, preview.target))
                raise DataError(f"previews: no held-out sample has all of {names}; leave that preview out")
        if not self.tokens:
            self._take_defaults(inherited)

    def _take_defaults(self, inherited: bool) -> None:
        """Take the first pairs that a store has."""
        pairs = default_pairs([handle.spec for handle in self.handles.values()], self.model)
        for inputs, target in pairs:
            preview = Preview(inputs=inputs, target=target)
            if len(self.tokens) < PAIRS and (found := self._held_out(preview)):
                self.tokens[preview] = found
        if pairs and not self.tokens and not inherited:
            raise DataError(
                f"previews: no held-out sample in {', '.join(str(store.tokens) for store in self.stores)} has two "
                "modalities of this run; leave preview_every out, or tokenize a split test"
            )

    def _problem(self, preview: Preview) -> str:
        """What is wrong with the names of a preview; empty where nothing is."""
        for name in (*preview.inputs, preview.target):
            if name not in self.handles:
                return f"previews: {name} is not of this run; its modalities are {', '.join(self.handles)}"
        if not preview.inputs:
            return f"previews: {preview.target}: expected at least one input"
        if preview.target in self.layout.inputs_only:
            return f"previews: {preview.target}: it is only an input of this model"
        if made := set(preview.inputs) & set(self.layout.targets_only):
            return f"previews: {min(made)}: it is only a target of this model"
        if self.handles[preview.target].spec.continuous or preview.target in preview.inputs:
            return f"previews: {preview.target}: expected a discrete modality that is not an input"
        return ""

    def _held_out(self, preview: Preview) -> dict[str, Any]:
        """The tokens of the first held-out samples of a store that have all of a preview; empty where none have."""
        names = (*preview.inputs, preview.target)
        for store in self.stores:
            columns = {name: column for name in names if (column := self._column(store, name)) is not None}
            if any(name not in columns for name in names):
                continue
            samples = islice(whole_samples(list(columns.values())), self.config.preview_samples)
            if rows := [row for _, row in samples]:
                return {name: column.take(rows) for name, column in columns.items()}
        return {}

    def _column(self, store: Dataset, name: str) -> TokenColumn | None:
        """Held-out tokens that the tokenizer can decode; None where a store has none, or is not read for them."""
        if store.modalities and name not in store.modalities:
            return None
        if (store.tokens, name) not in self._columns:
            try:
                column = TokenStore(store.tokens).open(TEST, name)
                column.check_tokenizer(self.handles[name])
                self._columns[store.tokens, name] = column
            except ReadError:
                raise
            except ZooError:
                self._columns[store.tokens, name] = None
        return self._columns[store.tokens, name]

    def __call__(self, model: FourM, folder: Path, step: int) -> dict[str, Path | str]:
        """Draw them all; by title a picture's file, or the text where nothing of it is a picture."""
        return {f"{' + '.join(p.inputs)} to {p.target}": self._draw(model, folder, step, p) for p in self.tokens}

    def _draw(self, model: FourM, folder: Path, step: int, preview: Preview) -> Path | str:
        tokens = self.tokens[preview]
        given = {name: tokens[name] for name in preview.inputs}
        predicted = generate(model, given, [TargetPlan(name=preview.target, temperature=0, steps=1)], self.config.seed)
        columns = [self._shown(name, tokens[name]) for name in preview.inputs]
        columns += [
            self._shown(preview.target, predicted[preview.target]),
            self._shown(preview.target, tokens[preview.target]),
        ]
        headers = [*preview.inputs, f"predicted {preview.target}", f"true {preview.target}"]
        rows = list(zip(*columns, strict=True))
        path = folder / FOLDER / f"step-{step:08}" / sheet_name(preview.inputs, preview.target)
        if write_sheet(path, headers, rows):
            return path
        lines = [" | ".join(headers), " | ".join("---" for _ in headers)]
        return "\n".join([*lines, *(" | ".join(text_of(cell) or "" for cell in row) for row in rows)])

    def _shown(self, name: str, tokens: Sequence[Any]) -> list[object]:
        """Tokens as something to look at; of an input only that has no decoder how many vectors they are."""
        values = self.handles[name].decode_if_able(tokens)
        if values is None:
            return [count_of(len(row), "vector") for row in tokens]
        return [self.handles[name].render(value) for value in values]
