"""Losses in the backbone's log are unweighted, so runs with different weights are comparable."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from backbone_samples import SMALL, TRAINING, all_layouts, write_splits

from zoo_backbone.batch import PackedBatch
from zoo_backbone.train import Trainer, train

SHORT = dataclasses.replace(TRAINING, steps=2)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_splits(tmp_path_factory.mktemp("tokens"))


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
