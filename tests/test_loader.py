"""Loader processes: the same batches as from one thread, and a dead one is named."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path

import pytest
import torch
from backbone_samples import TRAINING, all_layouts, write_splits

from tokenizers_zoo.errors import DataError, MachineError
from zoo_backbone.learn.data import Mix, open_sources
from zoo_backbone.learn.distributed import Ranks
from zoo_backbone.learn.loader import training_batches
from zoo_backbone.model.batch import PackedBatch
from zoo_backbone.model.config import TrainConfig
from zoo_backbone.model.embedding_layout import EmbeddingLayout

CONFIG = dataclasses.replace(TRAINING, steps=5)


@pytest.fixture(scope="module")
def mix(tmp_path_factory: pytest.TempPathFactory) -> Mix:
    root, specs = write_splits(tmp_path_factory.mktemp("tokens")), all_layouts()
    return Mix(open_sources(root, "train", specs, CONFIG), EmbeddingLayout(specs), CONFIG)


def tensors_of(batch: PackedBatch) -> list[torch.Tensor]:
    vectors = [tensor for name in sorted(batch.inputs.vectors) for tensor in batch.inputs.vectors[name]]
    return [*batch.inputs.tensors().values(), *batch.targets.tensors().values(), *vectors]


def batches_of(mix: Mix, config: TrainConfig) -> list[list[torch.Tensor]]:
    with training_batches(mix, config, Ranks("cpu"), 2) as batches:
        return list(map(tensors_of, batches))


def test_loader_processes_make_the_same_batches(mix: Mix) -> None:
    expected = batches_of(mix, CONFIG)
    actual = batches_of(mix, dataclasses.replace(CONFIG, loader_workers=2))
    assert len(actual) == len(expected) == 3
    for expected_batch, actual_batch in zip(expected, actual, strict=True):
        assert all(map(torch.equal, actual_batch, expected_batch))


def test_a_dead_loader_process_is_an_error(mix: Mix) -> None:
    config = dataclasses.replace(CONFIG, steps=10_000, loader_workers=1)
    with training_batches(mix, config, Ranks("cpu"), 0) as batches:
        next(batches)
        (child,) = loader_processes()
        os.kill(child, signal.SIGKILL)
        with pytest.raises(MachineError, match=r"^loader_workers 1: .*run the same command again"):
            for _ in batches:
                pass


def test_a_damaged_block_is_named_by_a_loader_process(tmp_path: Path) -> None:
    root, specs = write_splits(tmp_path), all_layouts()
    mix = Mix(open_sources(root, "train", specs, CONFIG), EmbeddingLayout(specs), CONFIG)
    for path in (root / "train/picture").glob("*.tokens"):
        path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(DataError, match=r"^[^\n]*picture/shard-00000.tokens: block 0 [^\n]*$"):
        batches_of(mix, dataclasses.replace(CONFIG, loader_workers=1))


def loader_processes() -> list[int]:
    """Return the spawned processes of this process."""
    children = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if parent == os.getpid() and b"spawn_main" in command:
            children.append(int(folder.name))
    return children
