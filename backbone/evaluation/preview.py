"""What a model makes of held-out samples while it is trained: given, made and true, as pictures or text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from backbone.config import Preview, TrainConfig
from backbone.evaluation.evaluate import default_pairs
from backbone.evaluation.gallery import text_of, write_sheet
from backbone.generation import TargetPlan, generate
from backbone.model import FourM
from backbone.training.mixing import HELD_OUT
from tokenizers_zoo.data.tokens import TokenColumn, TokenStore
from tokenizers_zoo.errors import ConfigError, DataError
from tokenizers_zoo.registry import ModalityHandle

FOLDER = "previews"
PAIRS = 2


class Previews:
    """Draws RUN/previews/step-N/<given>-to-<make>.png; what is true is what the tokenizer makes of the true tokens.

    Raises ConfigError for a preview of modalities that the run has not, and DataError where no held-out sample has all.
    """

    def __init__(self, handles: Mapping[str, ModalityHandle], tokens: Path, config: TrainConfig) -> None:
        self.handles, self.config = handles, config
        pairs = [Preview(given=given, make=make) for given, make in default_pairs([h.spec for h in handles.values()])]
        self.previews = config.previews or tuple(pairs[:PAIRS])
        for preview in self.previews:
            for name in (*preview.given, preview.make):
                if name not in handles:
                    raise ConfigError(f"previews: {name} is not of this run; its modalities are {', '.join(handles)}")
            if handles[preview.make].spec.continuous or preview.make in preview.given:
                raise ConfigError(f"previews: {preview.make}: expected a modality that has tokens and is not given")
        store = TokenStore(tokens)
        names = {name for preview in self.previews for name in (*preview.given, preview.make)}
        self.columns: dict[str, TokenColumn] = {name: store.open(HELD_OUT, name) for name in sorted(names)}
        self.keys = {preview: self._keys(preview) for preview in self.previews}

    def _keys(self, preview: Preview) -> list[str]:
        """The first held-out samples that have all of a preview."""
        rows = [self.columns[name].rows for name in (*preview.given, preview.make)]
        found = sorted(key for key in rows[0] if all(key in others for others in rows))
        if not found:
            names = ", ".join((*preview.given, preview.make))
            raise DataError(f"previews: no held-out sample has all of {names}; leave that preview out")
        return found[: self.config.preview_samples]

    def __call__(self, model: FourM, folder: Path, step: int) -> dict[str, Path | str]:
        """Draw them all; by title a picture's file, or the text where nothing of it is a picture."""
        return {f"{' + '.join(p.given)} to {p.make}": self._draw(model, folder, step, p) for p in self.previews}

    def _draw(self, model: FourM, folder: Path, step: int, preview: Preview) -> Path | str:
        keys = self.keys[preview]
        tokens = {name: self.columns[name].take([self.columns[name].rows[key] for key in keys])
                  for name in (*preview.given, preview.make)}  # fmt: skip
        given = {name: tokens[name] for name in preview.given}
        made = generate(model, given, [TargetPlan(name=preview.make, temperature=0, steps=1)], self.config.seed)
        columns = [self._shown(name, tokens[name]) for name in preview.given]
        columns += [self._shown(preview.make, made[preview.make]), self._shown(preview.make, tokens[preview.make])]
        headers = [*preview.given, f"{preview.make} made", f"true {preview.make}"]
        rows = list(zip(*columns, strict=True))
        path = folder / FOLDER / f"step-{step:08}" / f"{'-and-'.join(preview.given)}-to-{preview.make}.png"
        if write_sheet(path, headers, rows):
            return path
        lines = [" | ".join(headers), " | ".join("---" for _ in headers)]
        return "\n".join([*lines, *(" | ".join(text_of(cell) or "" for cell in row) for row in rows)])

    def _shown(self, name: str, tokens: Sequence[object]) -> list[object]:
        """Tokens as something to look at."""
        handle = self.handles[name]
        return [handle.render(value) for value in handle.decode(tokens)]
