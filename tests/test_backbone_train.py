"""Data, optimizer, saving and the training loop of the backbone: a killed run ends to the bit as one that was not."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backbone_samples import FIRST_WORD, SMALL, TRAINING, all_layouts, packed_batch, sequence, spec, write_store

from backbone import distributed
from backbone.batch import PackedBatch, PackedInputs, PackedTargets
from backbone.config import MaskingConfig, TrainConfig
from backbone.data import Loader, Order, TokenData
from backbone.model import FourM
from backbone.optim import TOKEN_TABLE, Optimizer, RowAdam, decays, learning_rate
from backbone.run import Run
from backbone.saving import load_model, save_model, spec_from_json, spec_to_json
from backbone.tables import Tables
from backbone.train import DivergedError, Training, keep_freed_memory, train
from tokenizers_zoo.checkpoint import load_config
from tokenizers_zoo.errors import CheckpointError, ConfigError, DataError
from tokenizers_zoo.modality import GridLayout, VectorLayout

GOLDEN = Path(__file__).parent / "golden" / "backbone_losses.json"
HERE = Path(__file__).parent


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads are slower for models this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tokens")
    write_store(root, all_layouts(), 40)
    write_store(root, all_layouts(), 10, "test", seed=1)
    return root


# Data


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


def test_tokens_of_another_codec_are_an_error(store: Path) -> None:
    data = TokenData(store, "train", all_layouts())
    data.check_fingerprints({"picture": data.fingerprints["picture"], "unknown": "x"}, "the backbone")
    with pytest.raises(
        DataError, match=r"written by codec codec of cli.*runs/a was trained on tokens of clip by abcdef"
    ):
        data.check_fingerprints({"clip": "abcdef"}, "runs/a")


def test_the_order_is_a_permutation_an_epoch_and_starts_anywhere() -> None:
    order = Order(10, seed=3)
    steps = [order.samples(step, 4) for step in range(10)]
    flat = np.concatenate(steps)
    epochs = flat.reshape(4, 10)
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 4
    for step in (7, 2, 9):
        np.testing.assert_array_equal(Order(10, seed=3).samples(step, 4), steps[step])
    assert sorted(Order(3, seed=0).samples(0, 9).tolist()) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


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


# Optimizer


def test_learning_rate_by_hand() -> None:
    config = TrainConfig(steps=12, warmup_steps=4, learning_rate=1.0, min_learning_rate=0.2)
    rates = [learning_rate(config, step) for step in range(12)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates[4] == pytest.approx(1.0) and rates[8] == pytest.approx(0.6)
    assert rates[11] == pytest.approx(0.2 + 0.4 * (1 + math.cos(math.pi * 7 / 8)))
    assert learning_rate(TrainConfig(steps=5, warmup_steps=0), 0) == pytest.approx(1e-3)


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


def trained(sparse: bool, steps: int = 4, dtype: torch.dtype = torch.float32) -> tuple[FourM, Optimizer]:
    specs = all_layouts()
    model = FourM.seeded(SMALL, specs, 0).to(dtype)
    optimizer = Optimizer(model, TRAINING, sparse=sparse)
    for step in range(steps):
        model(packed_batch(specs, seed=step)).loss.backward()
        optimizer.step(1e-2)
    return model, optimizer


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


# Saving


def remapped(batch: PackedBatch, old: Tables, new: Tables) -> PackedBatch:
    """The same tokens with the ids of other tables."""
    rows, places = torch.zeros(old.num_tokens, dtype=torch.int64), torch.zeros(old.num_positions, dtype=torch.int64)
    for name, span in old.vocabularies.items():
        rows[span.slice] = new.vocabularies[name].start + torch.arange(span.count)
    for name, span in old.positions.items():
        places[span.slice] = new.positions[name].start + torch.arange(span.count)
    kinds = torch.tensor([new.index(name) for name in old.names])
    inputs, targets = batch.inputs, batch.targets
    return PackedBatch(
        inputs=PackedInputs(
            ids=rows[inputs.ids], positions=places[inputs.positions], modalities=kinds[inputs.modalities],
            mask=inputs.mask, vectors=inputs.vectors,
        ),
        targets=PackedTargets(
            ids=rows[targets.ids], read=torch.where(targets.read < 0, -1, rows[targets.read]),
            positions=places[targets.positions], modalities=kinds[targets.modalities], mask=targets.mask,
        ),
    )  # fmt: skip


@pytest.fixture
def saved(tmp_path: Path) -> tuple[FourM, Path]:
    model, _ = trained(True, steps=2)
    save_model(model, tmp_path / "model", {"fingerprints": {"picture": "abc"}})
    return model.eval(), tmp_path / "model"


def test_a_saved_model_comes_back(saved: tuple[FourM, Path]) -> None:
    model, folder = saved
    loaded = load_model(folder)
    assert loaded.config == model.config and loaded.tables.specs == model.tables.specs
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    assert load_config(folder)["fingerprints"] == {"picture": "abc"}
    assert "| words | sequence of 20 | text | 100 |" in (folder / "README.md").read_text()
    for item in all_layouts():
        assert spec_from_json(json.loads(json.dumps(spec_to_json(item)))) == item


def test_new_modalities_leave_the_outputs_of_old_ones_as_they_were(saved: tuple[FourM, Path]) -> None:
    model, folder = saved
    text = 130
    grown = [
        spec("new_grid", GridLayout(shape=(3, 3)), 21), spec("new_code", VectorLayout(length=4), 9),
        *(dataclasses.replace(item, vocab_size=text) if item.vocabulary == "text" else item for item in all_layouts()),
        spec("new_words", sequence(33), text, "text"),
    ]  # fmt: skip
    larger = load_model(folder, grown[2:3] + grown[:2] + grown[3:], seed=7).eval()
    batch = packed_batch(all_layouts(), size=4, seed=9)
    same = remapped(batch, model.tables, larger.tables)
    before, after = model.decode_targets(batch), larger.decode_targets(same)
    assert torch.equal(before, after)
    for vocabulary in model.tables.vocabularies:
        count = model.tables.vocabularies[vocabulary].count
        assert torch.equal(model.logits(before, vocabulary), larger.logits(after, vocabulary)[..., :count])
    again = load_model(folder, grown[2:3] + grown[:2] + grown[3:], seed=7)
    assert all(torch.equal(a, b) for a, b in zip(larger.parameters(), again.parameters(), strict=True))
    new_rows = larger.output["text"][100:]
    assert new_rows.std().item() == pytest.approx(0.02, rel=0.2)


def test_fewer_modalities_load_too(saved: tuple[FourM, Path]) -> None:
    model, folder = saved
    few = [all_layouts()[3], all_layouts()[0]]
    smaller = load_model(folder, few)
    assert smaller.tables.names == ("words", "picture")
    assert torch.equal(smaller.output["text"], model.output["text"])
    rows, old = smaller.tables.token_rows("picture"), model.tables.token_rows("picture")
    assert torch.equal(smaller.token_embedding.weight[rows.slice], model.token_embedding.weight[old.slice])


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("picture", {"layout": VectorLayout(length=36)}, "its layout was grid and is vector"),
        ("code", {"layout": VectorLayout(length=6)}, "it had 5 tokens and has 6"),
        ("picture", {"vocab_size": 49}, "a vocabulary only grows"),
        ("picture", {"vocabulary": "clip", "vocab_size": 40}, "its vocabulary was 'picture' and is 'clip'"),
        ("words", {"layout": dataclasses.replace(sequence(20), end=9)}, r"were \(0, 1\) and are \(9, 1\)"),
        ("pixels", {"layout": dataclasses.replace(all_layouts()[4].layout, dim=13)}, "had 12 numbers and have 13"),
    ],
)
def test_a_modality_that_means_something_else_is_an_error(
    saved: tuple[FourM, Path], name: str, change: dict[str, Any], message: str
) -> None:
    specs = [dataclasses.replace(item, **change) if item.name == name else item for item in all_layouts()]
    with pytest.raises(CheckpointError, match=message):
        load_model(saved[1], specs)


# Training


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("model.safetensors", "metrics.jsonl")}


@pytest.fixture(scope="module")
def finished(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("run") / "whole", store, all_layouts(), SMALL, TRAINING)


def test_a_run_leaves_model_metrics_and_no_state(finished: Path, store: Path) -> None:
    config = load_config(finished, "FourM")
    assert [item["name"] for item in config["specs"]] == [item.name for item in all_layouts()]
    assert config["fingerprints"]["words"] == "codec of text" and config["train"]["steps"] == 12
    assert Run.load(finished).tokens == store.resolve()
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, 13))
    held_out = [line for line in lines if "held_out/loss" in line]
    assert [line["step"] for line in held_out] == [5, 10, 12]
    names = {item.name for item in all_layouts() if not item.continuous}
    assert {key.removeprefix("held_out/") for key in held_out[0]} == names | {"loss", "step"}
    assert held_out[0]["held_out/loss"] > held_out[-1]["held_out/loss"]
    by_modality = [held_out[0][f"held_out/{name}"] for name in names]
    assert held_out[0]["held_out/loss"] == pytest.approx(np.mean(by_modality))
    assert any((finished / "tensorboard").iterdir())
    assert not (finished / distributed.STATE).exists()


def test_golden_losses(finished: Path) -> None:
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    found = {"train": [line["train/loss"] for line in lines if "train/loss" in line],
             "held_out": [line["held_out/loss"] for line in lines if "held_out/loss" in line]}  # fmt: skip
    expected = json.loads(GOLDEN.read_text())
    assert found["train"] == pytest.approx(expected["train"], rel=1e-4)
    assert found["held_out"] == pytest.approx(expected["held_out"], rel=1e-4)


@pytest.mark.parametrize(
    "killed_after",
    [step if step in (0, 3, 4, 6, 11) else pytest.param(step, marks=pytest.mark.slow) for step in range(12)],
)
def test_a_killed_run_ends_as_if_it_had_not_been(
    finished: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_after: int
) -> None:
    step, taken = Training.step, []

    def dying(self: Training, batch: PackedBatch, rate: float) -> tuple[float, float, dict[str, float]]:
        if len(taken) == killed_after:
            raise Killed
        taken.append(rate)
        return step(self, batch, rate)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Training, "step", dying)
        train(tmp_path, store, all_layouts(), SMALL, TRAINING)
    train(tmp_path, store, all_layouts(), SMALL, TRAINING)
    assert files(tmp_path) == files(finished)


def test_a_kill_while_the_state_is_written_does_no_harm(
    finished: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(path: Path, data: Any) -> None:
        if data["step"] == 8:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(
            distributed, "write_json", lambda path, data: dying(path, data) or path.write_text(json.dumps(data))
        )
        train(tmp_path, store, all_layouts(), SMALL, TRAINING)
    assert len(list((tmp_path / distributed.STATE).iterdir())) == 2
    train(tmp_path, store, all_layouts(), SMALL, TRAINING)
    assert files(tmp_path) == files(finished)


def test_a_damaged_state_is_named(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed.TrainingState, "forget", lambda self: None)
    config = dataclasses.replace(TRAINING, steps=4)
    train(tmp_path, store, all_layouts(), SMALL, config)
    (tmp_path / "config.json").unlink()
    tensors = next(tmp_path.glob("training_state/step-*/*.safetensors"))
    tensors.write_bytes(tensors.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"step-00000004: damaged: .*; remove it to start anew"):
        train(tmp_path, store, all_layouts(), SMALL, config)


def test_a_finished_run_is_left_alone_and_another_is_refused(
    finished: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Training, "run", lambda self: pytest.fail("trained again"))
    before = files(finished)
    assert train(finished, store, all_layouts(), SMALL, TRAINING) == finished
    with pytest.raises(ConfigError, match=r"train\.masking\.input_budget was 24, is 30"):
        masking = MaskingConfig(input_budget=30, target_budget=24)
        train(finished, store, all_layouts(), SMALL, dataclasses.replace(TRAINING, masking=masking))
    with pytest.raises(ConfigError, match=r"model\.heads was 2, is 4"):
        train(finished, store, all_layouts(), dataclasses.replace(SMALL, heads=4), TRAINING)
    with pytest.raises(ConfigError, match=r"modalities\.vectors was .*, is null"):
        train(finished, store, all_layouts()[:-1], SMALL, TRAINING)
    assert files(finished) == before
    save_model(FourM(SMALL, all_layouts()), tmp_path)
    with pytest.raises(ConfigError, match="not trained here"):
        train(tmp_path, store, all_layouts(), SMALL, TRAINING)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_state(store: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(TRAINING, learning_rate=1e18, warmup_steps=0, save_every=1, gradient_clip=0.0)
    with pytest.raises(DivergedError, match=r"not finite at step 2, with learning rate .*after step 1 is kept in"):
        train(tmp_path, store, all_layouts(), SMALL, config)
    assert [path.name for path in (tmp_path / distributed.STATE).iterdir()] == ["step-00000001"]


def test_bfloat16_trains(store: Path, tmp_path: Path, finished: Path) -> None:
    config = dataclasses.replace(TRAINING, steps=2, precision="bfloat16", loss="token")
    train(tmp_path, store, all_layouts(), SMALL, config)
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["held_out/loss"] == pytest.approx(math.log(60), rel=0.2)


def test_a_store_without_held_out_samples_trains_too(tmp_path: Path) -> None:
    specs = [spec("picture", GridLayout(shape=(4, 4)), 30), spec("words", sequence(12), 100)]
    write_store(tmp_path / "tokens", specs, 12)
    config = dataclasses.replace(TRAINING, steps=40, batch_size=6, learning_rate=1e-2)
    train(tmp_path / "run", tmp_path / "tokens", specs, SMALL, config)
    losses = [json.loads(line)["train/loss"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 40
    # Words rise one by one, and a picture repeats two tokens: both can be learnt.
    assert np.mean(losses[-5:]) < 0.6 * losses[0]
    assert FIRST_WORD < 100


def test_freed_memory_is_kept_where_the_library_can() -> None:
    assert keep_freed_memory() == (os.confstr("CS_GNU_LIBC_VERSION") is not None if hasattr(os, "confstr") else False)


@pytest.mark.slow
def test_two_processes_train_as_one_and_one_goes_on_where_two_stopped(
    finished: Path, store: Path, tmp_path: Path
) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

    def work(launcher: list[str], folder: str, stop_after: int) -> None:
        command = [*launcher, str(HERE / "backbone_worker.py"), str(tmp_path / folder), str(store), str(stop_after)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-3000:]

    work(torchrun, "two", 8)
    work(torchrun, "one", 4)
    assert len(list(tmp_path.glob("two/training_state/step-00000008/*.safetensors"))) == 2
    work(torchrun, "two", 0)
    work([sys.executable], "one", 0)
    expected = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    for folder in ("two", "one"):
        lines = [json.loads(line) for line in (tmp_path / folder / "metrics.jsonl").read_text().splitlines()]
        assert len(lines) == len(expected)
        for line, wanted in zip(lines, expected, strict=True):
            assert line == pytest.approx(wanted, rel=1e-4)
        loaded, whole = load_model(tmp_path / folder), load_model(finished)
        for name, tensor in whole.state_dict().items():
            torch.testing.assert_close(loaded.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)
