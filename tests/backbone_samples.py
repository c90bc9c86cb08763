"""Helpers for the tests of the backbone: specs of every layout, raw batches, and a small token store."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from token_stores import metadata_of, write_tokens

from tokenizers_zoo.contract.layouts import (
    EmbeddingsLayout,
    GridLayout,
    PatchesLayout,
    SequenceLayout,
    TokenLayout,
    VectorLayout,
)
from tokenizers_zoo.contract.spec import ModalitySpec, ValueSpec
from tokenizers_zoo.records.io import read_lines
from zoo_backbone.learn.masking import Masker
from zoo_backbone.learn.train import Trainer, train
from zoo_backbone.model.batch import PackedBatch, RawBatch
from zoo_backbone.model.config import MaskingConfig, Mixture, ModelConfig, TrainConfig
from zoo_backbone.model.embedding_layout import EmbeddingLayout

SMALL = ModelConfig(dim=32, encoder_depth=2, decoder_depth=2, heads=2)
TRAINING = TrainConfig(
    steps=12, batch_size=8, eval_every=5, eval_samples=10, save_every=4, warmup_steps=3,
    optimizer="adamw", learning_rate=3e-3, loss="modality",
    masking=MaskingConfig(input_budget=24, target_budget=24, min_input=0, mixtures=(Mixture(),)),
)  # fmt: skip
END, SENTINEL, FIRST_WORD = 0, 1, 70


def spec(name: str, layout: TokenLayout, vocab_size: int = 50, vocabulary: str = "") -> ModalitySpec:
    return ModalitySpec(
        name=name, summary="for tests", value=ValueSpec(shape=("n",)), layout=layout,
        vocab_size=0 if isinstance(layout, PatchesLayout | EmbeddingsLayout) else vocab_size, vocabulary=vocabulary,
    )  # fmt: skip


def sequence(max_length: int = 20, sentinels: int = 8) -> SequenceLayout:
    return SequenceLayout(max_length=max_length, end=END, sentinel_start=SENTINEL, num_sentinels=sentinels)


def all_layouts() -> list[ModalitySpec]:
    """Return specs for two grids, a vector, two sequences with a shared vocabulary, patches and embeddings."""
    return [
        spec("picture", GridLayout(shape=(6, 6))),
        spec("clip", GridLayout(shape=(2, 3, 4)), 40),
        spec("code", VectorLayout(length=5), 30),
        spec("words", sequence(20), 100, "text"),
        spec("pixels", PatchesLayout(shape=(6, 6), dim=12)),
        spec("tags", sequence(12), 100, "text"),
        spec("vectors", EmbeddingsLayout(max_length=7, dim=9)),
    ]


ADDED = spec("height", GridLayout(shape=(3, 3)), 21)
"""A modality that `all_layouts` does not contain."""


def raw_batch(specs: list[ModalitySpec], size: int, seed: int = 0, absent: float = 0.0) -> RawBatch:
    """Return random tokens. Tokens of a sequence increase, so that each token shows its position."""
    rng = np.random.default_rng(seed)
    present = rng.random((size, len(specs))) >= absent
    lengths = np.zeros((size, len(specs)), np.int64)
    tokens = {}
    for column, item in enumerate(specs):
        layout = item.layout
        lengths[:, column] = layout.length
        if isinstance(layout, SequenceLayout | EmbeddingsLayout):
            lengths[:, column] = rng.integers(0, layout.length + 1, size)
        if isinstance(layout, PatchesLayout | EmbeddingsLayout):
            tokens[item.name] = rng.standard_normal((size, layout.length, layout.dim)).astype(np.float32)
        elif isinstance(layout, SequenceLayout):
            tokens[item.name] = np.tile(FIRST_WORD + np.arange(layout.length), (size, 1))
        else:
            tokens[item.name] = rng.integers(0, item.vocab_size, (size, layout.length))
    lengths[~present] = 0
    return RawBatch(tokens=tokens, lengths=lengths, present=present)


def packed_batch(specs: list[ModalitySpec], size: int = 4, budget: int = 24, seed: int = 0, alpha: float = 1.0,
                 absent: float = 0.0, layout: EmbeddingLayout | None = None) -> PackedBatch:  # fmt: skip
    mixtures = (Mixture(input_alpha=alpha, target_alpha=alpha),)
    config = MaskingConfig(input_budget=budget, target_budget=budget, min_input=0, mixtures=mixtures)
    return Masker(layout or EmbeddingLayout(specs), config)(raw_batch(specs, size, seed, absent), seed=seed, step=0)


def write_store(
    root: Path, specs: list[ModalitySpec], size: int = 40, split: str = "train", seed: int = 0, prefix: str = ""
) -> None:
    """Write a token store in which each modality lacks some samples.

    Grids and vectors repeat their first two tokens.
    """
    raw = raw_batch(specs, size, seed, absent=0.1)
    keys = [f"{prefix}{split}-{seed}-{number:04d}" for number in range(size)]
    for column, item in enumerate(specs):
        rows = [(keys[i], raw.tokens[item.name][i, : raw.lengths[i, column]])
                for i in range(size) if raw.present[i, column]]  # fmt: skip
        if isinstance(item.layout, GridLayout | VectorLayout):
            rows = [(key, np.resize(row[:2], row.shape)) for key, row in rows]
        write_tokens(root, split, metadata_of(item), dict(rows), keys=keys)


def run(folder: Path, store: Path, specs: list[ModalitySpec] | None = None, **settings: Any) -> Path:
    """Train SMALL with changed settings; arguments of `train` are passed on."""
    names = {field.name for field in dataclasses.fields(TrainConfig)}
    config = dataclasses.replace(TRAINING, **{key: value for key, value in settings.items() if key in names})
    options = {key: value for key, value in settings.items() if key not in names}
    return train(folder, store, specs or all_layouts(), options.pop("model", SMALL), config, **options)


def metrics(folder: Path, key: str = "") -> list[Any]:
    """Return the lines of a run's metrics.jsonl, or the values of one key where a line has it."""
    lines = read_lines(folder / "metrics.jsonl")
    return [line[key] for line in lines if key in line] if key else lines


def outcome(folder: Path) -> dict[str, bytes]:
    """Return the files that a resumed run and an uninterrupted one have alike."""
    return {name: (folder / name).read_bytes() for name in ("model.safetensors", "metrics.jsonl")}


class Killed(BaseException):
    """Simulates SIGKILL: nothing catches it."""


@contextlib.contextmanager
def killed_after(steps: int) -> Iterator[None]:
    """Kill a training within the block after this many of its steps."""
    step, rates = Trainer.train_step, []

    def dying(self: Trainer, batch: PackedBatch, rate: float) -> tuple[float, float, dict[str, float]]:
        if len(rates) == steps:
            raise Killed
        rates.append(rate)
        return step(self, batch, rate)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Trainer, "train_step", dying)
        yield


def write_splits(root: Path, prefix: str = "") -> Path:
    """Write a store of all layouts with training and held-out samples."""
    write_store(root, all_layouts(), 40, prefix=prefix)
    write_store(root, all_layouts(), 10, "test", seed=1, prefix=prefix)
    return root
