"""A training step follows the settings for the loss, loss weights and weight decay."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backbone_samples import SMALL, TRAINING, all_layouts, write_splits

from tokenizers_zoo.data.samples import TRAIN
from zoo_backbone.batch import PackedBatch
from zoo_backbone.config import TrainConfig
from zoo_backbone.data import Mix, open_sources
from zoo_backbone.embedding_layout import EmbeddingLayout
from zoo_backbone.losses import LossBalance
from zoo_backbone.model import FourM
from zoo_backbone.optim import Optimizer, decays
from zoo_backbone.train import Trainer, train

ONE_STEP = dataclasses.replace(TRAINING, steps=1)
KINDS = ["modality", "token"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_splits(tmp_path_factory.mktemp("tokens"))


def logged(folder: Path, store: Path, config: TrainConfig) -> dict[str, float]:
    """Return all values logged by a run of one step."""
    train(folder, store, all_layouts(), SMALL, config)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return {name: value for line in lines for name, value in json.loads(line).items()}


def mix_of(store: Path, split: str, config: TrainConfig) -> Mix:
    return Mix(open_sources(store, split, all_layouts(), config), EmbeddingLayout(all_layouts()), config)


def first_batch(store: Path, config: TrainConfig) -> PackedBatch:
    return mix_of(store, TRAIN, config).batch(0, config.batch_size, 0, config.batch_size)


@pytest.mark.parametrize("weights", [{}, {"clip": 3.0}], ids=str)
@pytest.mark.parametrize("loss", KINDS)
def test_a_step_follows_the_loss_of_the_kind_and_weights_of_the_settings(
    store: Path, tmp_path: Path, loss: Any, weights: dict[str, float]
) -> None:
    config = dataclasses.replace(ONE_STEP, loss=loss, loss_weights=weights)
    model, batch = FourM.seeded(SMALL, all_layouts(), config.seed), first_batch(store, config)
    counts = model.target_counts(batch.targets)

    def norm(kind: Any, weighted: bool) -> float:
        """Return the gradient norm."""
        balance = LossBalance(model.layout, TrainConfig(loss=kind, loss_weights={"clip": 3.0}), torch.device("cpu"))
        model.zero_grad()
        model(batch, kind, weights=balance.weights(counts) if weighted else None).loss.backward()
        return float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))

    norms = {(kind, weighted): norm(kind, weighted) for kind in KINDS for weighted in (False, True)}
    assert np.diff(sorted(norms.values())).min() > 1e-3
    found = logged(tmp_path, store, config)["train/gradient_norm"]
    assert found == pytest.approx(norms[loss, bool(weights)], rel=1e-5)


def test_a_step_updates_learned_weights_of_modalities_with_targets(store: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(ONE_STEP, balance="uncertainty")
    found = logged(tmp_path, store, config)
    model = FourM.seeded(SMALL, all_layouts(), config.seed)
    counts = model.target_counts(first_batch(store, config).targets).tolist()
    # Adam's first step has the size of the learning rate; all losses are above 1/2, so all factors fall.
    moved = math.exp(-config.learning_rate)
    expected = {name: moved if count else 1.0 for name, count in zip(model.layout.names, counts, strict=True)}
    assert set(expected.values()) == {moved, 1.0}
    assert {name: found[f"train/weight/{name}"] for name in expected} == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_weight_decay_applies_only_to_decayed_parameters(optimizer: Any) -> None:
    model = FourM(dataclasses.replace(SMALL, bias=True), all_layouts())
    made = Optimizer(model, dataclasses.replace(TRAINING, optimizer=optimizer, weight_decay=0.5))
    before = {}
    for name, parameter in model.named_parameters():
        torch.nn.init.uniform_(parameter, 0.5, 1.5)
        before[name] = parameter.detach().clone()
        parameter.grad = torch.zeros_like(parameter)
    made.step(0.1)
    for name, parameter in model.named_parameters():
        if decays(name, parameter):
            torch.testing.assert_close(parameter.detach(), 0.95 * before[name], msg=name)
        else:
            assert torch.equal(parameter, before[name]), name


SHORT = dataclasses.replace(TRAINING, steps=2)


def losses_of(folder: Path, side: str = "train") -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line[f"{side}/loss"] for line in lines if f"{side}/loss" in line]


@pytest.mark.parametrize("loss", ["modality", "token"])
@pytest.mark.parametrize(
    "weights", [{"loss_weights": {"clip": 9.0, "words": 0.1}}, {"balance": "uncertainty"}], ids=str
)
def test_the_loss_that_is_logged_is_without_factors(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: Any, weights: dict[str, Any]
) -> None:
    """The logged loss has no modality weights, like the held-out loss."""
    plain = dataclasses.replace(SHORT, loss=loss)
    step, seen = Trainer.train_step, list[tuple[float, float]]()

    def watched(self: Trainer, batch: PackedBatch, rate: float) -> tuple[float, float, dict[str, float]]:
        with torch.no_grad():
            unweighted = float(self.forward(batch).loss)
        losses, _ = self.gradients(batch)
        self.model.zero_grad(set_to_none=True)
        self.balance.adam.table += 1.0 if self.balance.learned else 0.0  # as if a weight of exp(-1) had been learned
        seen.append((unweighted, float(losses.loss)))
        return step(self, batch, rate)

    monkeypatch.setattr(Trainer, "train_step", watched)
    folder = train(tmp_path / "run", store, all_layouts(), SMALL, dataclasses.replace(plain, **weights))
    unweighted, trained_on = zip(*seen, strict=True)
    assert losses_of(folder) == pytest.approx(unweighted, rel=1e-5)
    assert abs(trained_on[-1] - unweighted[-1]) > 1e-2
    assert len(losses_of(folder, "held_out")) == 1


@pytest.mark.parametrize("loss", ["modality", "token"])
def test_a_batch_without_targets_has_the_loss_0(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: Any
) -> None:
    """This also holds with weights; the mean over no targets would be NaN and end the training."""
    batch = Trainer.batch

    def without_targets(self: Trainer, step: int) -> PackedBatch:
        found = batch(self, step)
        unused = torch.zeros_like(found.targets.mask)
        return dataclasses.replace(found, targets=dataclasses.replace(found.targets, mask=unused))

    monkeypatch.setattr(Trainer, "batch", without_targets)
    config = dataclasses.replace(SHORT, loss=loss, loss_weights={"clip": 9.0})
    assert losses_of(train(tmp_path, store, all_layouts(), SMALL, config)) == [0.0, 0.0]
