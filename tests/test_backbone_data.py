"""Tokens to batches: samples, checks, order, the loader; and the optimizers."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backbone_samples import SMALL, TRAINING, all_layouts, packed_batch, sequence, spec, write_splits
from token_stores import metadata_of, write_tokens
from torch import nn

from tokenizers_zoo import Zoo
from tokenizers_zoo.contract.layouts import GridLayout, PatchesLayout, VectorLayout
from tokenizers_zoo.errors import DataError
from tokenizers_zoo.stores.tokens import whole_samples
from tokenizers_zoo.train.batches import prefetched, sample_order
from zoo_backbone.learn.data import TokenData
from zoo_backbone.learn.optim import (
    MOMENTUM,
    TOKEN_TABLE,
    Muon,
    Optimizer,
    RowAdam,
    block_matrices,
    learning_rate,
    orthogonal,
    peak_rate,
)
from zoo_backbone.model.batch import PackedBatch
from zoo_backbone.model.config import TrainConfig
from zoo_backbone.model.fourm import FourM
from zoo_backbone.model.run import check_stored
from zoo_backbone.model.transformer import FusedLinear


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_splits(tmp_path_factory.mktemp("tokens"))


def test_data_has_every_sample_and_reports_missing_modalities(store: Path) -> None:
    specs = all_layouts()
    data = TokenData(store, "train", specs)
    rows_by_modality = {name: dict(whole_samples([column])) for name, column in data.columns.items()}
    assert data.sample_keys() == sorted({key for rows in rows_by_modality.values() for key in rows})
    raw = data.batch(np.arange(len(data)))
    for number, key in enumerate(data.sample_keys()):
        for column, item in enumerate(specs):
            assert raw.present[number, column] == (key in rows_by_modality[item.name])
            if key in rows_by_modality[item.name]:
                row = np.asarray(data.columns[item.name].take([rows_by_modality[item.name][key]])[0])
                row = row if item.continuous else row.ravel()
                assert raw.lengths[number, column] == len(row)
                np.testing.assert_array_equal(raw.tokens[item.name][number, : len(row)], row)
    samples = np.array([len(data) - 1, 0, 5, 5])
    for name, tokens in data.batch(samples).tokens.items():
        for row, sample in enumerate(samples):
            length = raw.lengths[sample, list(raw.tokens).index(name)]
            np.testing.assert_array_equal(tokens[row, :length], raw.tokens[name][sample, :length])


@pytest.mark.parametrize("aligned", [False, True])
def test_views_are_samples_unless_samples_are_read_whole(tmp_path: Path, aligned: bool) -> None:
    specs = [spec("a", VectorLayout(length=1)), spec("b", VectorLayout(length=1))]
    keys = [f"k{number}" for number in range(7)]
    missing = {"a": {0, 3, 6}, "b": {3, 4}}
    for item in specs:
        rows = {key: [np.array([3 * number + view]) for view in range(3)]
                for number, key in enumerate(keys) if number not in missing[item.name]}  # fmt: skip
        write_tokens(tmp_path, "train", metadata_of(item), rows, keys=keys, shard_size=3, crops=3, seed=5)
    remaining = [n for n in range(7) if (n not in missing["a"] | missing["b"] if aligned else n != 3)]
    for read_whole in (False, True):
        data = TokenData(tmp_path, "train", specs, aligned=aligned, uncropped=read_whole)
        views = [0] if read_whole else [0, 1, 2]
        assert data.sample_keys() == [f"k{number}" for number in remaining for _ in views]
        raw = data.batch(np.arange(len(data)))
        expected = np.array([3 * number + view for number in remaining for view in views])
        for column, name in enumerate("ab"):
            present = np.array([number not in missing[name] for number in remaining for _ in views])
            np.testing.assert_array_equal(raw.present[:, column], present)
            np.testing.assert_array_equal(raw.tokens[name][present, 0], expected[present])


def test_shards_of_other_samples_are_refused(tmp_path: Path) -> None:
    items = [spec("a", VectorLayout(length=1)), spec("b", VectorLayout(length=1))]
    for item, key in zip(items, "xy", strict=True):
        write_tokens(tmp_path, "train", metadata_of(item), {key: np.zeros(1, int)}, keys=[key])
    with pytest.raises(DataError, match=r"train/b: .*sample keys"):
        TokenData(tmp_path, "train", items)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("picture", {"layout": GridLayout(shape=(6, 7))}, "grid 6x7"),
        ("picture", {"layout": VectorLayout(length=36)}, "vector 36"),
        ("picture", {"vocabulary": "other"}, "vocabulary 'picture'"),
        ("picture", {"vocab_size": 9}, "ids"),
        ("words", {"layout": sequence(5)}, "words"),
    ],
    ids=["shape", "kind", "vocabulary", "ids", "length"],
)
def test_tokens_that_do_not_fit_are_errors(store: Path, name: str, change: dict[str, Any], message: str) -> None:
    (expected,) = (item for item in all_layouts() if item.name == name)
    with pytest.raises(DataError, match=message):
        TokenData(store, "train", [dataclasses.replace(expected, **change)])


def test_sequences_may_have_a_longer_limit(store: Path) -> None:
    longer = spec("words", dataclasses.replace(sequence(64), num_sentinels=9), 200, "text")
    assert TokenData(store, "train", [longer]).batch(np.arange(3)).tokens["words"].shape == (3, 64)


def test_tokens_of_another_tokenizer_are_an_error(store: Path) -> None:
    columns, empty_zoo = TokenData(store, "train", all_layouts()).columns, Zoo.from_tables({"zoo": {"modalities": []}})
    check_stored(columns["picture"], columns["picture"].fingerprint, empty_zoo, "the backbone")
    check_stored(columns["clip"], None, empty_zoo, "one that does not say")
    with pytest.raises(DataError, match=r"clip .*codec of cli.*runs/a is abcdef"):
        check_stored(columns["clip"], "abcdef", empty_zoo, "runs/a")


def test_order_is_a_permutation_per_epoch_and_can_start_anywhere() -> None:
    steps = [sample_order(4 * step, 4 * step + 4, 10, 3) for step in range(10)]
    epochs = np.concatenate(steps).reshape(4, 10)
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 4
    for step in (7, 2, 9):
        np.testing.assert_array_equal(sample_order(4 * step, 4 * step + 4, 10, 3), steps[step])
    assert sorted(sample_order(0, 9, 3, 0).tolist()) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    orders = [sample_order(50 * epoch, 50 * epoch + 50, 50, 3, number) for number in range(3) for epoch in range(3)]
    assert len({order.tobytes() for order in orders}) == 9, "stores have unrelated orders"


def test_the_loader_keeps_order_and_passes_errors_on() -> None:
    batch = packed_batch(all_layouts(), size=1)
    steps: list[int] = []

    def make(step: int) -> PackedBatch:
        steps.append(step)
        if step == 7:
            raise DataError("step 7 is damaged")
        return dataclasses.replace(batch, inputs=dataclasses.replace(batch.inputs, ids=torch.tensor(step)))

    with prefetched(make, 3, 20) as loader:
        batches = iter(loader)
        assert [int(next(batches).inputs.ids) for _ in range(4)] == [3, 4, 5, 6]
        with pytest.raises(DataError, match="step 7"):
            next(batches)
    assert steps[:5] == [3, 4, 5, 6, 7] and len(steps) <= 8
    with prefetched(make, 8, 10_000, depth=2) as loader:
        next(iter(loader))
    assert len(steps) < 20


def test_learning_rate_by_hand() -> None:
    config = TrainConfig(steps=12, warmup_steps=4, min_learning_rate=0.2)
    rates = [learning_rate(config, step, 1.0) for step in range(12)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates[4] == pytest.approx(1.0) and rates[8] == pytest.approx(0.6)
    assert rates[11] == pytest.approx(0.2 + 0.4 * (1 + math.cos(math.pi * 7 / 8)))
    assert learning_rate(TrainConfig(steps=5, warmup_steps=0), 0, 1e-3) == pytest.approx(1e-3)


def test_default_learning_rate_depends_on_optimizer_and_width() -> None:
    assert peak_rate(TrainConfig(learning_rate=0.5), 512) == 0.5
    assert peak_rate(TrainConfig(optimizer="adamw"), 128) == peak_rate(TrainConfig(optimizer="adamw"), 512) == 1e-3
    assert (peak_rate(TrainConfig(), 128), peak_rate(TrainConfig(), 512)) == (5e-3, 2.5e-3)


@pytest.mark.parametrize("sparse", [True, False])
def test_rows_with_gradients_at_every_step_follow_adam(sparse: bool) -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 4)
    plain, table = weight.clone().requires_grad_(), weight.clone().requires_grad_()
    reference = torch.optim.AdamW([plain], betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    rows = RowAdam(table, (0.9, 0.95))
    for step in range(5):
        gradient = torch.randn(6, 4)
        plain.grad = gradient
        reference.param_groups[0]["lr"] = rate = 0.1 / (step + 1)
        reference.step()
        rows.step(gradient.to_sparse(1).coalesce() if sparse else gradient, rate)
    torch.testing.assert_close(table, plain)


def test_rows_without_gradients_stay_and_late_rows_start_fresh() -> None:
    table = torch.ones(3, 2, requires_grad=True)
    rows = RowAdam(table, (0.9, 0.95))
    early = torch.tensor([[1.0, -2.0], [0.0, 0.0], [0.0, 0.0]])
    for _ in range(3):
        rows.step(early, 0.1)
    before = table.detach().clone()
    rows.step(torch.tensor([[0.0, 0.0], [5.0, 0.5], [0.0, 0.0]]), 0.1)
    assert rows.ticks.flatten().tolist() == [3, 1, 0]
    assert torch.equal(table[[0, 2]], before[[0, 2]]) and torch.equal(table[2], torch.ones(2))
    # Adam's first step has the size of the learning rate, whatever the gradient's.
    torch.testing.assert_close(table[1], torch.tensor([0.9, 0.9]))


def test_vocabularies_without_targets_are_not_updated() -> None:
    specs = all_layouts()
    model = FourM.seeded(SMALL, specs, 0)
    optimizer = Optimizer(model, TRAINING)
    batch = packed_batch(specs, size=4)
    mask = batch.targets.mask & (batch.targets.modalities == 0)
    before = {name: table.detach().clone() for name, table in model.output.items()}
    model(PackedBatch(inputs=batch.inputs, targets=dataclasses.replace(batch.targets, mask=mask))).loss.backward()
    optimizer.step(1e-2)
    assert {name for name, table in model.output.items() if not torch.equal(table, before[name])} == {"picture"}
    assert not optimizer.state()["output.clip.ticks"]


def test_gradient_norm_covers_all_gradients_and_is_clipped() -> None:
    specs = all_layouts()
    norms, updates = [], []
    for clip in (0.0, 1e-3):
        model = FourM.seeded(SMALL, specs, 0)
        optimizer = Optimizer(model, dataclasses.replace(TRAINING, gradient_clip=clip))
        model(packed_batch(specs)).loss.backward()
        gradients = [p.grad.to_dense() for p in model.parameters() if p.grad is not None]
        expected = math.sqrt(sum(float(gradient.double().pow(2).sum()) for gradient in gradients))
        norms.append(optimizer.step(1e-2))
        assert norms[-1] == pytest.approx(expected, rel=1e-5)
        updates.append(optimizer.state()[f"{TOKEN_TABLE}.first"].norm())
    assert updates[1] / updates[0] == pytest.approx(1e-3 / norms[0], rel=1e-4)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_only_matrices_of_layers_decay(kind: Any) -> None:
    """Also if a modality is called like an embedding."""
    called = [spec("word_embedding", GridLayout(shape=(2, 2))), spec("embeddings", PatchesLayout(shape=(2, 2), dim=3))]
    model = FourM(dataclasses.replace(SMALL, bias=True), [*all_layouts(), *called])
    optimizer = Optimizer(model, dataclasses.replace(TRAINING, optimizer=kind, weight_decay=0.5))
    before = {}
    for name, parameter in model.named_parameters():
        torch.nn.init.uniform_(parameter, 0.5, 1.5)
        before[name] = parameter.detach().clone()
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(0.1)
    unchanged = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])}
    for name, parameter in model.named_parameters():
        if name not in unchanged:
            torch.testing.assert_close(parameter.detach(), 0.95 * before[name], msg=name)
    assert unchanged >= {
        "encoder.0.mlp.up.bias", "encoder_norm.weight", TOKEN_TABLE, "mask_embedding.weight",
        "modality_embedding.weight", "learned_positions.code",
    }  # fmt: skip
    assert not unchanged & {
        "encoder.0.mlp.up.weight", "output.text", "projections.pixels.weight", "output.word_embedding",
        "projections.embeddings.weight",
    }  # fmt: skip


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 8, 40), (2, 40, 8), (1, 5, 1)])
def test_singular_values_of_the_orthogonal_factor_are_near_one(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e3
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    factor = orthogonal(matrices)
    assert factor.dtype == torch.float32
    sizes = torch.linalg.svdvals(factor)
    assert sizes.min() > 0.6 and sizes.max() < 1.25
    # The singular vectors are unchanged, so U' X V is diagonal.
    inner = u.mT @ factor @ v.mT
    torch.testing.assert_close(inner, torch.diag_embed(inner.diagonal(dim1=-2, dim2=-1)), rtol=0, atol=1e-3)
    assert torch.equal(orthogonal(torch.zeros(1, 3, 4)), torch.zeros(1, 3, 4))


def test_a_muon_step_by_hand() -> None:
    weight = nn.Parameter(torch.full((2, 3), 5.0))
    muon = Muon({weight: 1}, weight_decay=0.1)
    gradients = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(1))
    momentum, expected = torch.zeros(2, 3), weight.detach().clone()
    for gradient in gradients:
        weight.grad = gradient.clone()
        muon.step(0.5)
        momentum = MOMENTUM * momentum + (1 - MOMENTUM) * gradient
        ahead = MOMENTUM * momentum + (1 - MOMENTUM) * gradient
        expected = expected * (1 - 0.5 * 0.1) - 0.5 * 0.2 * 3**0.5 * orthogonal(ahead[None])[0]
        torch.testing.assert_close(weight.detach(), expected)
    weight.grad = None
    muon.step(0.5)
    torch.testing.assert_close(weight.detach(), expected)


def test_projections_side_by_side_move_as_if_they_were_separate() -> None:
    torch.manual_seed(0)
    fused, apart = FusedLinear(6, 4, 2, bias=True), [nn.Linear(6, 4), nn.Linear(6, 4)]
    with torch.no_grad():
        fused.weight.copy_(torch.cat([layer.weight for layer in apart]))
    gradients = torch.randn(2, 4, 6) * torch.tensor([1.0, 100.0])[:, None, None]
    fused.weight.grad = gradients.flatten(0, 1)
    for layer, gradient in zip(apart, gradients, strict=True):
        layer.weight.grad = gradient
    assert block_matrices([fused]) == {fused.weight: 2}
    for module in (fused, *apart):
        Muon(block_matrices([module]), 0.0).step(0.1)
    torch.testing.assert_close(fused.weight, torch.cat([layer.weight for layer in apart]))


def test_muon_takes_the_matrices_of_the_blocks_and_nothing_else() -> None:
    model = FourM.seeded(SMALL, all_layouts(), 0)
    optimizer = Optimizer(model, dataclasses.replace(TRAINING, optimizer="muon"))
    mine = {name for name, p in model.named_parameters() if p in optimizer.muon.matrices}
    blocks = {n for n, p in model.named_parameters() if n.startswith(("encoder.", "decoder.")) and p.dim() == 2}
    assert mine == blocks and len(mine) > 8
    assert not {p for group in optimizer.dense.param_groups for p in group["params"]} & set(optimizer.muon.matrices)
    assert not Optimizer(model, TRAINING).muon.matrices
