"""Helpers for tests of text-like modalities: settings, samples, and one trained vocabulary."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tokenizers_zoo.contract.samples import TrainingSamples
from tokenizers_zoo.families.text import TextModality, TextTokenizer
from tokenizers_zoo.records.config import Settings
from zoo_images.palette import plugin as palette
from zoo_language.caption import plugin as caption
from zoo_language.plain import web_text
from zoo_metadata.derived import geometric as geometric_metadata
from zoo_metadata.derived import image as image_metadata
from zoo_metadata.derived import semantic as semantic_metadata
from zoo_metadata.metadata import plugin as metadata
from zoo_semantics.boxes import plugin as boxes
from zoo_semantics.boxes_3d import plugin as boxes_3d

PLUGINS: dict[str, TextModality[Any]] = {
    "caption": caption, "web_text": web_text, "boxes": boxes, "boxes_3d": boxes_3d, "metadata": metadata,
    "palette": palette,
    "semantic_metadata": semantic_metadata, "geometric_metadata": geometric_metadata, "image_metadata": image_metadata,
}  # fmt: skip
BINS = 64
TABLES = {"text": {"size": 2048, "sentinels": 16, "coordinate_bins": BINS, "reserve": 64}}
CAPTIONS = ["a red chair and two people in a room", "a potted plant", "a blue chair in a small room"] * 3


def settings_of(name: str, **table: Any) -> Settings:
    """Return settings with the small vocabulary."""
    return Settings(name, table, vocabularies=TABLES)


def samples(texts: list[str] = CAPTIONS, tokens: tuple[str, ...] = ()) -> TrainingSamples:
    """Return texts to train a vocabulary on."""
    provenance = {"source": "test", "contents": {"train": "of these texts"}}
    return TrainingSamples(train=[], test=[], texts=lambda: texts, special_tokens=tokens, provenance=provenance)


@functools.cache
def checkpoint() -> Path:
    """Return a vocabulary that one modality trained and the others grew."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name, plugin in PLUGINS.items():
        assert plugin.train_tokenizer(settings_of(name), samples(), folder / "text") == folder / "text"
    return folder / "text"


def load(name: str, **table: Any) -> TextTokenizer[Any]:
    """Return a tokenizer with the shared vocabulary (cached)."""
    return _load(name, json.dumps(table))


@functools.cache
def _load(name: str, table: str) -> TextTokenizer[Any]:
    return PLUGINS[name].load_tokenizer(checkpoint(), settings_of(name, **json.loads(table)))


def round_trip(tokenizer: TextTokenizer[Any], value: Any) -> Any:
    """Encode a value and decode its tokens."""
    plugin = PLUGINS[tokenizer.name]
    tokens = plugin.encode(tokenizer, [value])
    assert tokens[0].dtype == np.int64 and tokens[0].ndim == 1
    return plugin.decode(tokenizer, tokens)[0]
