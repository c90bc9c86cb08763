"""Helpers for the tests of image-like modalities: plugins, small settings, and values that look like the modality."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokenizers_zoo.contract.pictures import crop_and_resize
from tokenizers_zoo.contract.samples import TrainingSamples
from tokenizers_zoo.contract.spec import Crop
from tokenizers_zoo.records.config import Settings
from tokenizers_zoo.train.loop import train
from zoo_geometry import depth, normal
from zoo_images import rgb
from zoo_images.edges import canny
from zoo_semantics import semseg

PLUGINS = {"canny": canny, "depth": depth.plugin, "normal": normal.plugin, "rgb": rgb.plugin, "semseg": semseg.plugin}
TINY = {"steps": 3, "eval_every": 2, "batch_size": 4, "width": 16, "depth": 1, "levels": [5, 3]}


def settings(name: str, **changes: Any) -> Settings:
    return Settings(name, {"image_size": 16, "patch_size": 8, "tokenizer": TINY, **changes})


def values(name: str, count: int, size: int = 16, seed: int = 0) -> list[np.ndarray]:
    """Return blobs that look like the modality."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((count, 3, 3, 3)).astype(np.float32)
    fields = [crop_and_resize(field, Crop(), (size, size)) for field in coarse]
    make_value = {
        "rgb": lambda f: f,
        "depth": lambda f: 0.5 + 5 * f[:1],
        "normal": lambda f: normal.normalise(2 * f - 1),
        "semseg": lambda f: (f[0] * 18.99).astype(np.int64),
        "canny": lambda f: (np.abs(f[:1] - 0.5) < 0.05).astype(np.float32),
    }[name]
    return [make_value(field) for field in fields]


class Killed(Exception):
    """Raised in place of a kill signal."""


def train_killed(plugin: Any, modality_settings: Settings, samples: TrainingSamples, folder: Path, last: int) -> None:
    """Train a tokenizer, and stop after step `last` as if killed."""

    def kill(step: int) -> None:
        if step == last:
            raise Killed

    with pytest.raises(Killed):
        train(
            plugin.task(modality_settings),
            samples,
            plugin.options(modality_settings).tokenizer,
            folder,
            0,
            on_step=kill,
        )
