"""Tokens to batches: alignment, checks, order, the loader; and the optimizer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backbone_samples import (
    SMALL,
    TRAINING,
    all_layouts,
    packed_batch,
    sequence,
    spec,
    trained,
    write_splits,
)

from tokenizers_zoo import Zoo
from tokenizers_zoo.data.store_record import StoreRecord
from tokenizers_zoo.data.token_part import TokenMetadata, write_part
from tokenizers_zoo.data.tokens import TokenColumn
from tokenizers_zoo.errors import CheckpointError, DataError
from tokenizers_zoo.spec import GridLayout, PatchesLayout, VectorLayout
from zoo_backbone.batch import PackedBatch
from zoo_backbone.codecs import check_stored
from zoo_backbone.config import TrainConfig
from zoo_backbone.model import FourM
from zoo_backbone.training.data import Loader, Order, TokenData
from zoo_backbone.training.optim import TOKEN_TABLE, Optimizer, RowAdam, decays, learning_rate, peak_rate


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_splits(tmp_path_factory.mktemp("tokens"))


def test_data_has_every_key_and_says_what_a_sample_lacks(store: Path) -> None:
    specs = all_layouts()
    data = TokenData(store, "train", specs)
    assert data.keys == sorted({key for column in data.columns.values() for key in column.keys})
    raw = data.batch(np.arange(len(data)))
    for number, key in enumerate(data.keys):
        for column, item in enumerate(specs):
            stored = data.columns[item.name]
            assert raw.present[number, column] == (key in stored.rows)
            if key in stored.rows:
                row = np.asarray(stored.take([stored.rows[key]])[0])
                row = row if item.continuous else row.ravel()
                assert raw.lengths[number, column] == len(row)
                np.testing.assert_array_equal(raw.tokens[item.name][number, : len(row)], row)
    aligned = TokenData(store, "train", specs, aligned=True)
    assert 0 < len(aligned) < len(data)
    assert aligned.batch(np.arange(len(aligned))).present.all()


def test_each_part_is_mapped_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many mappings a process may have is limited."""
    root, mapped = write_splits(tmp_path), list[Path]()
    names = [item.name for item in all_layouts()]
    StoreRecord.note(root, root, {}, [("train", name, 1) for name in names])
    begin = TokenColumn.__init__
    monkeypatch.setattr(TokenColumn, "__init__", lambda column, paths: (mapped.extend(paths), begin(column, paths))[1])
    TokenData(root, "train", all_layouts())
    assert sorted(mapped) == sorted(path for name in names for path in (root / "train" / name).glob("*.arrow"))


def test_a_store_without_samples_is_an_error(tmp_path: Path) -> None:
    item = all_layouts()[0]
    metadata = TokenMetadata(
        modality=item.name, vocabulary=item.vocabulary, vocab_size=item.vocab_size, layout=item.layout,
        fingerprint="codec", distribution="tests 0", run={},
    )  # fmt: skip
    write_part(tmp_path / "test" / item.name / "part-00000.arrow", metadata, [], [], {})
    with pytest.raises(DataError, match="test: there are no samples of picture"):
        TokenData(tmp_path, "test", [item])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layout": GridLayout(shape=(6, 7))}, "layout"),
        ({"layout": VectorLayout(length=36)}, "layout"),
        ({"vocabulary": "other"}, "vocabulary 'picture'"),
        ({"vocab_size": 9}, "holds ids up to"),
    ],
)
def test_tokens_that_do_not_fit_are_errors(store: Path, change: dict[str, Any], message: str) -> None:
    wrong = dataclasses.replace(all_layouts()[0], **change)
    with pytest.raises(DataError, match=message):
        TokenData(store, "train", [wrong])


def test_a_longer_limit_fits_and_a_shorter_one_does_not(store: Path) -> None:
    longer = spec("words", dataclasses.replace(sequence(64), num_sentinels=9), 200, "text")
    assert TokenData(store, "train", [longer]).batch(np.arange(3)).tokens["words"].shape == (3, 64)
    with pytest.raises(DataError, match="words"):
        TokenData(store, "train", [spec("words", sequence(5), 100, "text")])


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        (({"crops": 3, "seed": 0}, {"crops": 1, "seed": 0}), "--crops and --seed 0, b with --crops 1"),
        (({"crops": 3, "seed": 0}, {"crops": 3, "seed": 5}), "--crops and --seed 0, b with --crops and --seed 5"),
        (({"crops": 3, "seed": 5}, {"crops": 2, "seed": 5}), ""),
        (({"crops": 1, "seed": 0}, {}), ""),
    ],
)
def test_modalities_of_other_crops_are_refused(tmp_path: Path, runs: Sequence[dict[str, int]], message: str) -> None:
    specs = [spec("a", VectorLayout(length=2)), spec("b", VectorLayout(length=2))]
    for item, run in zip(specs, runs, strict=True):
        metadata = TokenMetadata(
            modality=item.name, vocabulary=item.vocabulary, vocab_size=item.vocab_size, layout=item.layout,
            fingerprint="f", distribution="tests 0", run=run,
        )  # fmt: skip
        count = run.get("crops", 1)
        keys = ["one"] if count == 1 else [f"one#{number}" for number in range(count)]
        rows = [np.zeros(2, np.int64)] * len(keys)
        write_part(tmp_path / "train" / item.name / "part-00000.arrow", metadata, keys, rows, {})
    if message:
        with pytest.raises(DataError, match=rf"train: tokenized are a with {message}: .* with the same --crops"):
            TokenData(tmp_path, "train", specs)
        assert len(TokenData(tmp_path, "train", specs, names=["a"])) == 3
    else:
        assert TokenData(tmp_path, "train", specs).batch(np.arange(1)).present.all()


def test_tokens_of_another_codec_are_an_error(store: Path) -> None:
    columns, nothing = TokenData(store, "train", all_layouts()).columns, Zoo.from_tables({"zoo": {"modalities": []}})
    check_stored(columns["picture"], columns["picture"].fingerprint, nothing, "the backbone")
    check_stored(columns["clip"], None, nothing, "one that does not say")
    with pytest.raises(
        DataError, match=r"written by codec codec of cli.*runs/a was trained on tokens of clip by abcdef"
    ):
        check_stored(columns["clip"], "abcdef", nothing, "runs/a")


def test_the_order_is_a_permutation_an_epoch_and_starts_anywhere() -> None:
    order = Order(10, 3)
    steps = [order.between(4 * step, 4 * step + 4) for step in range(10)]
    flat = np.concatenate(steps)
    epochs = flat.reshape(4, 10)
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 4
    for step in (7, 2, 9):
        np.testing.assert_array_equal(Order(10, 3).between(4 * step, 4 * step + 4), steps[step])
    assert sorted(Order(3, 0).between(0, 9).tolist()) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_no_epoch_of_one_store_has_the_order_of_an_epoch_of_another() -> None:
    for epoch in range(3):  # what runs of one store have always had
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence((3, epoch))))
        found = Order(50, 3).between(50 * epoch, 50 * epoch + 50)
        np.testing.assert_array_equal(found, generator.permutation(50))
    orders = [Order(50, 3, number).between(50 * epoch, 50 * epoch + 50) for number in range(3) for epoch in range(3)]
    assert len({order.tobytes() for order in orders}) == 9


def test_the_loader_keeps_order_and_passes_errors_on() -> None:
    batch = packed_batch(all_layouts(), size=1)
    made: list[int] = []

    def make(step: int) -> PackedBatch:
        made.append(step)
        if step == 7:
            raise DataError("step 7 is damaged")
        return dataclasses.replace(batch, inputs=dataclasses.replace(batch.inputs, ids=torch.tensor(step)))

    with Loader(make, 3, 20) as loader:
        seen = iter(loader)
        assert [int(next(seen).inputs.ids) for _ in range(4)] == [3, 4, 5, 6]
        with pytest.raises(DataError, match="step 7"):
            next(seen)
    assert made == [3, 4, 5, 6, 7]
    with Loader(make, 8, 10_000, ahead=2) as loader:
        next(iter(loader))
    assert len(made) < 20


def test_learning_rate_by_hand() -> None:
    config = TrainConfig(steps=12, warmup_steps=4, min_learning_rate=0.2)
    rates = [learning_rate(config, step, 1.0) for step in range(12)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates[4] == pytest.approx(1.0) and rates[8] == pytest.approx(0.6)
    assert rates[11] == pytest.approx(0.2 + 0.4 * (1 + math.cos(math.pi * 7 / 8)))
    assert learning_rate(TrainConfig(steps=5, warmup_steps=0), 0, 1e-3) == pytest.approx(1e-3)


def test_a_rate_that_is_not_given_is_the_optimizers_and_muons_falls_with_the_width() -> None:
    assert peak_rate(TrainConfig(learning_rate=0.5), 512) == 0.5
    assert peak_rate(TrainConfig(optimizer="adamw"), 128) == peak_rate(TrainConfig(optimizer="adamw"), 512) == 1e-3
    assert (peak_rate(TrainConfig(), 128), peak_rate(TrainConfig(), 512)) == (5e-3, 2.5e-3)


@pytest.mark.parametrize("sparse", [True, False])
def test_rows_that_are_always_touched_get_adam(sparse: bool) -> None:
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


def test_rows_that_are_not_touched_stay_and_late_ones_start_anew() -> None:
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


def test_sparse_and_dense_gradients_update_alike() -> None:
    first, second = (trained(sparse, dtype=torch.float64)[0].state_dict() for sparse in (True, False))
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-6, atol=1e-8)
    start = FourM.seeded(SMALL, all_layouts(), 0).token_embedding.weight
    moved = (first[TOKEN_TABLE] != start).any(dim=1)
    assert 0 < moved.sum() < len(moved)


def test_vocabularies_without_targets_are_left_alone() -> None:
    specs = all_layouts()
    model = FourM.seeded(SMALL, specs, 0)
    optimizer = Optimizer(model, TRAINING)
    batch = packed_batch(specs, size=4)
    mask = batch.targets.mask & (batch.targets.modalities == 0)
    before = {name: table.detach().clone() for name, table in model.output.items()}
    model(PackedBatch(inputs=batch.inputs, targets=dataclasses.replace(batch.targets, mask=mask))).loss.backward()
    optimizer.step(1e-2)
    assert {name for name, table in model.output.items() if not torch.equal(table, before[name])} == {"picture"}
    assert "output.clip.first" not in optimizer.state()


def test_the_norm_is_of_all_gradients_and_clipped() -> None:
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


def test_only_matrices_of_layers_decay() -> None:
    model = FourM(dataclasses.replace(SMALL, bias=True), all_layouts())
    decaying = {name for name, parameter in model.named_parameters() if decays(name, parameter)}
    assert (
        "encoder.0.mlp.up.weight" in decaying and "output.text" in decaying and "projections.pixels.weight" in decaying
    )
    for name in ("encoder.0.mlp.up.bias", "encoder_norm.weight", TOKEN_TABLE, "mask_embedding.weight",
                 "modality_embedding.weight", "learned_positions.code"):  # fmt: skip
        assert name in dict(model.named_parameters()) and name not in decaying
    called = [spec("word_embedding", GridLayout(shape=(2, 2))), spec("embeddings", PatchesLayout(shape=(2, 2), dim=3))]
    parameters = dict(FourM(SMALL, called).named_parameters())
    for name in ("output.word_embedding", "projections.embeddings.weight"):
        assert decays(name, parameters[name]), "what is only called so is no embedding"


def test_an_optimizer_goes_on_from_its_state() -> None:
    specs = all_layouts()
    whole, _ = trained(True, steps=6)
    model, optimizer = trained(True, steps=3)
    copy = FourM(SMALL, specs)
    copy.load_state_dict(model.state_dict())
    other = Optimizer(copy, TRAINING)
    other.load_state({name: tensor.clone() for name, tensor in optimizer.state().items()})
    for step in range(3, 6):
        copy(packed_batch(specs, seed=step)).loss.backward()
        other.step(1e-2)
    assert all(torch.equal(a, b) for a, b in zip(copy.parameters(), whole.parameters(), strict=True))
    with pytest.raises(CheckpointError, match=r"output\.other"):
        other.empty_state(["output.other.first"])


def test_state_is_read_to_where_the_parameters_are() -> None:
    """AdamW's steps, too: its fused kernel reads them on the device of the parameters."""
    _, optimizer = trained(True, steps=1)
    names = list(optimizer.state())
    assert "encoder_norm.weight.ticks" in names
    optimizer.parameters = {name: parameter.to("meta") for name, parameter in optimizer.parameters.items()}
    assert {tensor.device.type for tensor in optimizer.empty_state(names).values()} == {"meta"}
