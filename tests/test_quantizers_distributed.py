"""Quantizers trained in two processes: both codebooks stay equal and depend on the data of both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch.nn.parallel import DistributedDataParallel

from tokenizers_zoo.quantizers.config import KIND_DEFAULTS, QuantizerConfig
from tokenizers_zoo.quantizers.kinds import mean_with_gradient
from tokenizers_zoo.quantizers.quantizer import Quantizer

DIM, WORLD, STEPS = 24, 2, 4
CONFIGS = {
    **{kind: QuantizerConfig(kind=kind) for kind in ("fsq", "residual_fsq")},
    **{
        kind: QuantizerConfig(kind=kind, codebook_size=32)  # type: ignore[arg-type]
        for kind, fields in KIND_DEFAULTS.items()
        if "levels" not in fields
    },
    "vq_random_start": QuantizerConfig(kind="vq", codebook_size=32, kmeans_iterations=0, revive_below=0.9),
    "vq_plain": QuantizerConfig(kind="vq", codebook_size=8, codebook_dim=DIM, distance="euclidean", decay=0.5),
}


def latents_of(rank: int, step: int) -> torch.Tensor:
    """Return data that differ in location between processes, with one more sample in the first process."""
    draws = torch.Generator().manual_seed(10 * step + rank)
    return torch.randn(3 - rank, 20, DIM, generator=draws) + (2.0 if rank else -2.0)


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(rank)  # the processes start from different weights and draw different numbers
    quantizers = {name: Quantizer(config, DIM) for name, config in CONFIGS.items()}  # before the process group
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    for name, quantizer in quantizers.items():
        learns = any(parameter.requires_grad for parameter in quantizer.parameters())
        module = DistributedDataParallel(quantizer, broadcast_buffers=False) if learns else quantizer
        optimizer = torch.optim.SGD(quantizer.parameters(), 0.1) if learns else None
        for step in range(STEPS):
            codes, _, loss = module(latents_of(rank, step).requires_grad_())
            (codes.square().mean() + loss).backward()
            if optimizer is not None:
                optimizer.step()
                optimizer.zero_grad()
        save_file(quantizer.state_dict(), f"{folder}/{name}_{rank}.safetensors")
    number = torch.tensor([4.0 if rank else 1.0], requires_grad=True)
    mean = mean_with_gradient(number)
    mean.square().sum().backward()
    assert number.grad is not None
    save_file({"mean": mean.detach(), "gradient": number.grad}, f"{folder}/mean_{rank}.safetensors")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("distributed")
    mp.spawn(worker, (str(folder),), nprocs=WORLD)
    yield folder


@pytest.mark.parametrize("name", CONFIGS)
def test_both_processes_hold_the_same_state(states: Path, name: str) -> None:
    first, second = (load_file(states / f"{name}_{rank}.safetensors") for rank in range(WORLD))
    assert first.keys() == second.keys()
    for key in first:
        assert torch.equal(first[key], second[key]), key


def test_the_codebook_is_made_of_the_data_of_both(states: Path) -> None:
    book = load_file(states / "vq_plain_0.safetensors")["adapter.vq._codebook.embed"][0]
    assert book.mean(dim=1).max() > 1 and book.mean(dim=1).min() < -1


def test_a_mean_over_processes_has_the_gradient_of_both_losses(states: Path) -> None:
    """Both losses are the squared mean m of 1 and 4: 2.5; their sum has the gradient 2 x 2 m / 2 for each number."""
    for rank in range(WORLD):
        found = load_file(states / f"mean_{rank}.safetensors")
        assert (found["mean"].item(), found["gradient"].item()) == (2.5, 5.0)
