"""A batch computed in parts has the gradient of the whole batch, for any number of threads."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from backbone_samples import SMALL, TRAINING, all_layouts, packed_batch, raw_batch, write_splits
from torch import Tensor

from tokenizers_zoo.contract.samples import TEST
from zoo_backbone.learn.data import Mix, open_sources
from zoo_backbone.learn.losses import GradAccumulation, held_out_losses
from zoo_backbone.learn.masking import Masker
from zoo_backbone.model.batch import PackedBatch
from zoo_backbone.model.config import MaskingConfig
from zoo_backbone.model.fourm import FourM, Losses


@pytest.fixture(scope="module")
def model() -> FourM:
    return FourM.seeded(SMALL, all_layouts(), 0).double()


@pytest.fixture(scope="module")
def batch() -> PackedBatch:
    batch = packed_batch(all_layouts(), size=5, absent=0.2)
    vectors = {name: (index, rows.double()) for name, (index, rows) in batch.inputs.vectors.items()}
    return dataclasses.replace(batch, inputs=dataclasses.replace(batch.inputs, vectors=vectors))


def gradients(
    model: FourM, batch: PackedBatch, count: int, loss: str = "token", parallel: bool = False, scale: int = 1
) -> tuple[Losses, dict[str, Tensor | None]]:
    model.zero_grad(set_to_none=True)
    batch_counts = model.target_counts(batch.targets)
    with GradAccumulation(model, count, parallel=parallel) as parts:
        losses = parts.backward(batch, lambda part: model(part, loss, batch_counts), scale=scale)
    gradients_by_name = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    return losses, gradients_by_name


@pytest.mark.parametrize("absent", [0.0, 0.6])
def test_slots_that_no_sample_uses_are_left_out(model: FourM, absent: float) -> None:
    specs = all_layouts()
    masking = MaskingConfig(input_budget=200, min_input=0, target_budget=200)  # of a sample's 140 tokens
    batch = Masker(model.layout, masking)(raw_batch(specs, size=4, absent=absent), seed=1, step=0)
    batch = dataclasses.replace(batch, inputs=dataclasses.replace(
        batch.inputs, vectors={name: (at, rows.double()) for name, (at, rows) in batch.inputs.vectors.items()}
    ))  # fmt: skip
    trimmed = batch.trimmed()
    for before, after in ((batch.inputs, trimmed.inputs), (batch.targets, trimmed.targets)):
        longest = int(before.mask.sum(dim=1).max())
        assert longest <= after.mask.shape[1] < longest + 8 and after.mask.shape[1] % 8 == 0
        assert after.mask.shape[1] < before.mask.shape[1]
        assert torch.equal(after.ids[after.mask], before.ids[before.mask])
    for name, (at, rows) in trimmed.inputs.vectors.items():
        kinds = trimmed.inputs.modalities.flatten()[at]
        assert bool((kinds == model.layout.names.index(name)).all()) and len(rows) == len(at)
    plain, losses = model(batch), model(trimmed)
    torch.testing.assert_close(losses.sums, plain.sums)
    gradients = [torch.autograd.grad(loss.loss, list(model.encoder.parameters())) for loss in (plain, losses)]
    for plain_gradient, trimmed_gradient in zip(*gradients, strict=True):
        torch.testing.assert_close(trimmed_gradient, plain_gradient)
    assert trimmed.trimmed().inputs.ids.shape == trimmed.inputs.ids.shape, "nothing more to leave out"
    full = packed_batch(specs, size=4)
    assert full.trimmed().targets.ids.shape == full.targets.ids.shape, "what is full stays"


@pytest.mark.parametrize("loss", ["token", "modality"])
@pytest.mark.parametrize("count", [2, 5])
def test_parts_add_up_to_the_whole(model: FourM, batch: PackedBatch, count: int, loss: str) -> None:
    assert [len(part.targets.ids) for part in batch.split(3)] == [1, 2, 2] and len(batch.split(9)) == 5
    plain = model(batch, loss)
    model.zero_grad(set_to_none=True)
    plain.loss.backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    losses, summed = gradients(model, batch, count, loss)
    torch.testing.assert_close(losses.loss, plain.loss.detach())
    torch.testing.assert_close(losses.sums, plain.sums)
    assert torch.equal(losses.counts, plain.counts)
    for name, gradient in expected.items():
        torch.testing.assert_close(summed[name], gradient, msg=name)


def test_threads_change_no_bit(model: FourM, batch: PackedBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    sequential = gradients(model, batch, 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    parallel = gradients(model, batch, 2, parallel=True)
    assert torch.equal(sequential[0].loss, parallel[0].loss)
    for name, gradient in sequential[1].items():
        torch.testing.assert_close(parallel[1][name], gradient, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("parallel", [False, True])
def test_the_loss_may_be_scaled(model: FourM, batch: PackedBatch, parallel: bool) -> None:
    _, plain = gradients(model, batch, 2)
    losses, scaled = gradients(model, batch, 2, parallel=parallel, scale=3)
    torch.testing.assert_close(losses.loss, model(batch, "token").loss.detach())
    for name, gradient in plain.items():
        torch.testing.assert_close(scaled[name], None if gradient is None else 3 * gradient, msg=name)


def test_an_error_in_a_thread_is_raised(model: FourM, batch: PackedBatch) -> None:
    def fail(part: PackedBatch) -> Losses:
        raise ValueError("from a part")

    with GradAccumulation(model, 2, parallel=True) as parts, pytest.raises(ValueError, match="from a part"):
        parts.backward(batch, fail)


def test_held_out_samples_go_through_the_model_in_parts_too(tmp_path: Path) -> None:
    """Otherwise a batch that fits into memory in training might not fit in evaluation."""
    root = write_splits(tmp_path)
    config = dataclasses.replace(TRAINING, batch_size=8, eval_samples=10)
    model = FourM.seeded(SMALL, all_layouts(), 0)
    mix = Mix(open_sources(root, TEST, all_layouts(), config), model.layout, config)
    sizes: list[int] = []

    @torch.no_grad()
    def forward(packed: PackedBatch) -> Losses:
        sizes.append(len(packed.targets.ids))
        losses: Losses = model(packed)
        return losses

    full_batches = held_out_losses(forward, mix, config)
    halves = held_out_losses(forward, mix, dataclasses.replace(config, grad_accum_steps=2))
    assert sizes == [8, 2, 4, 4, 1, 1]
    assert torch.equal(halves.counts, full_batches.counts)
    torch.testing.assert_close(halves.sums, full_batches.sums)
    data, rows_read = mix.sources[0].data, list[int]()
    read_batch = data.batch
    data.batch = lambda samples: (rows_read.extend(samples), read_batch(samples))[1]  # type: ignore[method-assign]
    held_out_losses(forward, mix, dataclasses.replace(config, eval_samples=3))
    assert rows_read == [0, 3, 6], "of ten: the first may all be of one kind"
