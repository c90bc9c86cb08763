"""A zoo with only the example plugin, its values, and a tokenizer for it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tokenizers_zoo import Zoo
from tokenizers_zoo.contract.samples import TrainingSamples

PLUGINS = {
    path.parent: tomllib.loads(path.read_text())["project"]
    for path in sorted(Path(__file__).parent.parent.glob("plugins/*/pyproject.toml"))
}
"""The projects of this repository's plugins by folder."""
OURS = {
    name: project["name"] for project in PLUGINS.values() for name in project["entry-points"].get("tokenizers_zoo", {})
}
"""Their modalities, each with its distribution."""
EVERYTHING_ELSE = tuple(Zoo.installed().names())


def only(modalities: Mapping[str, Any] | None = None, **tables: Any) -> Zoo:
    """Return a zoo in which all really installed modalities are disabled."""
    off = {name: {"enabled": False} for name in EVERYTHING_ELSE}
    return Zoo.from_tables({"modalities": {**off, **(modalities or {})}, **tables})


def values(count: int = 3, side: int = 16) -> list[np.ndarray]:
    return [np.random.default_rng(i).random((1, side, side), dtype=np.float32) for i in range(count)]


def trained(zoo: Zoo, name: str, folder: Path, **overrides: Any) -> Path:
    samples = TrainingSamples(train=values(), test=values())
    return zoo[name].train_tokenizer(samples, folder, seed=0, **overrides)


def write_registry(path: Path, text: str) -> Path:
    """Write a registry.toml of `text` in which all really installed modalities are disabled."""
    path.write_text(text + "".join(f"\n[modalities.{name}]\nenabled = false\n" for name in EVERYTHING_ELSE))
    return path
