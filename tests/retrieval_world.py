"""A small retrieval setup: five modalities with the same content, on disk, and a briefly trained backbone."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from small_modalities import EXAMPLE, LETTERS, LEVELS, VECTORS, sample, small_zoo, write

from tokenizers_zoo import Zoo
from zoo_backbone.learn.checkpoint import save_model
from zoo_backbone.learn.data import TokenData
from zoo_backbone.learn.masking import Masker
from zoo_backbone.model.config import MaskingConfig, Mixture, ModelConfig, TrainConfig
from zoo_backbone.model.fourm import FourM
from zoo_backbone.model.run import Run

NAMES = ("light", "dark", "letters", "gist", "raw")
TRAIN, TEST = 160, 30
SOURCES = {"light": EXAMPLE, "dark": EXAMPLE, "letters": LETTERS, "gist": VECTORS, "raw": VECTORS}


@dataclasses.dataclass(frozen=True)
class World:
    root: Path
    zoo: Zoo
    run: Path
    keys: list[str]
    """Keys of the test split."""


def make_world(root: Path) -> World:
    """Write values, tokens and a trained run; the test samples 3 and 7 lack letters."""
    zoo = small_zoo(root, NAMES)
    generator = np.random.default_rng(0)
    for split, count in (("train", TRAIN), ("test", TEST)):
        samples = {f"{split}-{i:03}": all_five(generator) for i in range(count)}
        for name in NAMES:
            values = {key: sample_values[name] for key, sample_values in samples.items()}
            if name == "letters":
                values = {key: value for key, value in values.items() if key not in ("test-003", "test-007")}
            write(root, zoo, split, name, values)
    mixtures = tuple(Mixture(inputs=(name,), targets=("gist",)) for name in ("light", "dark", "letters", "raw"))
    masking = MaskingConfig(input_budget=4, target_budget=4, min_input=0, mixtures=mixtures)
    train(zoo, root, NAMES, masking, 150)
    Run(tokens=root / "tokens", data=root / "data", registry=root / "registry.toml").save(root / "run")
    return World(root=root, zoo=zoo, run=root / "run", keys=[f"test-{i:03}" for i in range(TEST)])


def copied(world: World, root: Path) -> World:
    """Copy tokens, tokenizers and run (not the values) to another folder, where a test may change them."""
    for name in ("tokens", "tokenizers", "run"):
        shutil.copytree(world.root / name, root / name)
    shutil.copy(world.root / "registry.toml", root)
    Run(tokens=root / "tokens", registry=root / "registry.toml").save(root / "run")
    return World(root=root, zoo=Zoo.from_toml(root / "registry.toml"), run=root / "run", keys=world.keys)


def all_five(generator: np.random.Generator) -> dict[str, Any]:
    values = sample(generator)
    numbers = np.array([ord(letter) - ord("a") for letter in values["letters"]], np.float32) / (LEVELS - 1)
    return {**values, "gist": numbers, "raw": numbers}


def train(zoo: Zoo, root: Path, names: Sequence[str], masking: MaskingConfig, steps: int) -> None:
    """Train a small backbone on `root/tokens` into `root/run`."""
    torch.manual_seed(0)
    specs = [zoo[name].spec for name in names]
    model = FourM(ModelConfig(dim=48, encoder_depth=1, decoder_depth=1, heads=2), specs)
    with torch.no_grad():
        model.token_embedding.weight.normal_()  # as large as the positions: learns in seconds
    data = TokenData(root / "tokens", "train", specs)
    masker, order = Masker(model.layout, masking), np.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(steps):
        batch = masker(data.batch(order.choice(len(data), 48)), 0, step)
        optimizer.zero_grad()
        model(batch).loss.backward()
        optimizer.step()
    extra = {"train": dataclasses.asdict(TrainConfig(masking=masking)), "fingerprints": data.fingerprints}
    save_model(model, root / "run", extra)
