"""The options of backbone training: their effects, and equal results for killed and uninterrupted runs."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backbone_samples import (
    SMALL,
    TRAINING,
    all_layouts,
    killed_after,
    metrics,
    outcome,
    packed_batch,
    run,
    spec,
    write_splits,
    write_store,
)
from command_world import the_world
from PIL import Image

from tokenizers_zoo.contract.layouts import GridLayout
from tokenizers_zoo.errors import ConfigError, DataError, UnknownNameError
from tokenizers_zoo.records.io import read_table, write_table
from zoo_backbone.learn.checkpoint import load_model
from zoo_backbone.learn.data import Mix, Source, open_sources
from zoo_backbone.learn.losses import LossBalance
from zoo_backbone.learn.optim import learning_rate
from zoo_backbone.learn.train import Trainer, train
from zoo_backbone.measure.grow import Trained
from zoo_backbone.model.batch import PackedBatch
from zoo_backbone.model.config import Mixture, TrainConfig, TrainingStore
from zoo_backbone.model.embedding_layout import EmbeddingLayout
from zoo_backbone.model.fourm import FourM

SHORT = dataclasses.replace(TRAINING, steps=6, save_every=2, eval_every=3)
KINDS = ["modality", "token"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_splits(tmp_path_factory.mktemp("tokens"))


@pytest.mark.parametrize(
    "change",
    [
        {"balance": "uncertainty", "loss_weights": {"clip": 3.0}}, {"ema_decay": 0.9}, {"schedule": "wsd"},
        {"activation_checkpointing": True, "grad_accum_steps": 2}, {"optimizer": "muon"},
    ],
    ids=str,
)  # fmt: skip
def test_a_killed_run_resumes_to_the_same_weights(store: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    uninterrupted = run(tmp_path / "whole", store, **change)
    with killed_after(7):
        run(tmp_path / "killed", store, **change)
    resumed = run(tmp_path / "killed", store, **change)
    for name in ["model.safetensors", "metrics.jsonl", *(["last/model.safetensors"] if "ema_decay" in change else [])]:
        assert (uninterrupted / name).read_bytes() == (resumed / name).read_bytes(), name


def test_the_wsd_learning_rate_stays_constant_and_then_falls() -> None:
    config = TrainConfig(steps=100, warmup_steps=10, schedule="wsd", decay_fraction=0.2, min_learning_rate=0.5)
    assert learning_rate(config, 4, 2.0) == 1.0
    assert {learning_rate(config, step, 2.0) for step in range(10, 81)} == {2.0}
    assert learning_rate(config, 85, 2.0) == pytest.approx(0.5 + 1.5 * (1 - math.sqrt(5 / 20)))
    assert learning_rate(config, 99, 2.0) == pytest.approx(0.5 + 1.5 * (1 - math.sqrt(19 / 20)))
    constant = dataclasses.replace(config, decay_fraction=0.0)
    assert {learning_rate(constant, step, 2.0) for step in range(10, 100)} == {2.0}


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 50, 99, 100, 120, 199])
def test_a_run_shorter_than_its_warm_up_reaches_the_peak(steps: int, schedule: str, share: float) -> None:
    config = TrainConfig(steps=steps, schedule=schedule, decay_fraction=share, min_learning_rate=0.1)
    rates = [learning_rate(config, step, 2.0) for step in range(steps)]
    peak = max(0, steps // 2 - 1)
    assert rates[: peak + 1] == pytest.approx([2.0 * (step + 1) / (peak + 1) for step in range(peak + 1)])
    assert rates[peak : peak + 2] == [2.0] * min(2, steps), "the fall starts after it"
    assert all(0.1 <= after <= before for before, after in itertools.pairwise(rates[peak:]))
    assert rates[-1] < 0.5 or steps < 50 or (schedule, share) == ("wsd", 0.0)


def test_the_ema_weights_are_the_weights_of_the_run(store: Path, tmp_path: Path) -> None:
    constant = {"schedule": "wsd", "decay_fraction": 0.0}
    plain = [load_model(run(tmp_path / f"{steps}", store, steps=steps, **constant)) for steps in (1, 2, 3)]
    folder = run(tmp_path / "run", store, steps=3, ema_decay=0.9, **constant)
    name = "encoder.0.mlp.up.weight"
    expected = FourM.seeded(SMALL, all_layouts(), 0).state_dict()[name]
    for steps, model in enumerate(plain, 1):
        decay = (1 + steps) / (10 + steps)
        expected = decay * expected + (1 - decay) * model.state_dict()[name]
    torch.testing.assert_close(load_model(folder).state_dict()[name], expected)
    assert torch.equal(load_model(folder / "last").state_dict()[name], plain[2].state_dict()[name])
    assert (folder / "last/run.json").is_file()
    assert "held_out_average/loss" in metrics(folder)[-1] and "held_out/loss" in metrics(folder)[-2]


@pytest.mark.parametrize("loss", KINDS)
def test_weights_count_in_the_mean(loss: Any) -> None:
    layout = EmbeddingLayout(all_layouts())
    model, batch = FourM.seeded(SMALL, all_layouts(), 0).double(), packed_batch(all_layouts(), size=3, alpha=9.0)
    vectors = {name: (index, rows.double()) for name, (index, rows) in batch.inputs.vectors.items()}
    batch = dataclasses.replace(batch, inputs=dataclasses.replace(batch.inputs, vectors=vectors))
    config = TrainConfig(loss=loss, loss_weights={"clip": 3.0, "words": 0.5})
    plain = model(batch, loss)
    weighted = model(
        batch, loss, weights=LossBalance(layout, config, torch.device("cpu")).weights(plain.counts.float())
    )
    present = plain.counts > 0
    factors = torch.tensor([3.0 if name == "clip" else 0.5 if name == "words" else 1.0 for name in layout.names])
    share = plain.counts if loss == "token" else present.double()
    means = plain.sums / plain.counts.clamp(min=1)
    torch.testing.assert_close(weighted.loss.detach(), (factors * share * means).sum() / (factors * share).sum(),
                               rtol=1e-6, atol=0)  # fmt: skip
    assert torch.equal(weighted.sums, plain.sums) and not torch.equal(weighted.loss, plain.loss)


def test_learned_weights_come_to_half_of_one_over_the_loss() -> None:
    layout = EmbeddingLayout(all_layouts())
    balance = LossBalance(layout, TrainConfig(balance="uncertainty"), torch.device("cpu"))
    counts, losses = torch.ones(7) * 4, torch.tensor([1.0, 2.0, 4.0, 0.5, 0.0, 3.0, 0.0])
    counts[4] = counts[6] = 0
    for _ in range(4000):
        balance.update(losses * counts, counts, 3e-3)
    weights = balance.weights(counts)
    assert weights is not None
    torch.testing.assert_close(weights[counts > 0], 1 / (2 * losses[counts > 0]), rtol=0.02, atol=0)
    assert weights[4] == 1.0, "what has no targets learns nothing"


def saved_number_count(model: FourM, batch: PackedBatch) -> int:
    """Count the numbers that a forward pass saves for the backward pass."""
    sizes: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(batch)
    return sum(sizes)


@pytest.mark.parametrize("parts", [1, 2])
def test_activation_checkpointing_changes_no_bit_and_saves_memory(store: Path, tmp_path: Path, parts: int) -> None:
    plain, checkpointed = (
        run(tmp_path / str(on), store, steps=2, grad_accum_steps=parts, activation_checkpointing=on)
        for on in (False, True)
    )
    assert (plain / "model.safetensors").read_bytes() == (checkpointed / "model.safetensors").read_bytes()
    model, batch = FourM.seeded(SMALL, all_layouts(), 0), packed_batch(all_layouts())
    saved_counts = []
    for activation_checkpointing in (False, True):
        for block in (*model.encoder, *model.decoder):
            block.activation_checkpointing = activation_checkpointing
        saved_counts.append(saved_number_count(model, batch))
    assert saved_counts[1] < 0.6 * saved_counts[0]


def test_a_failing_compiler_is_reported_and_training_continues(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("no compiler here\nand more")

    plain = run(tmp_path / "plain", store, steps=2)
    monkeypatch.setattr(torch, "compile", lambda function: fails)
    fallback = run(tmp_path / "other", store, steps=2, compile=True)
    assert "torch.compile fails here (no compiler here)" in capsys.readouterr().err
    assert (plain / "model.safetensors").read_bytes() == (fallback / "model.safetensors").read_bytes()


def test_compiled_blocks_are_used(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(torch, "compile", lambda block: lambda *inputs: calls.append(1) or block(*inputs))
    run(tmp_path, store, steps=2, compile=True)
    assert len(calls) >= 3 * 4, "four blocks, in the attempt and in both steps"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_learns_the_same(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain, fast = (run(tmp_path / str(on), store, steps=6, eval_every=3, compile=on) for on in (False, True))
    assert "fails" not in capsys.readouterr().err
    for plain_metric, fast_metric in zip(metrics(plain), metrics(fast), strict=True):
        assert plain_metric == pytest.approx(fast_metric, rel=1e-3)


def test_a_run_started_from_another_draws_new_samples_and_masks(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, targets = Trainer.train_step, []

    def watched(self: Trainer, batch: PackedBatch, rate: float) -> tuple[float, float, dict[str, float]]:
        targets.append(batch.targets.ids)
        return step(self, batch, rate)

    monkeypatch.setattr(Trainer, "train_step", watched)
    first = run(tmp_path / "first", store, steps=1)
    second = run(tmp_path / "second", store, steps=1, start=first)
    run(tmp_path / "same", store, steps=1, start=first)
    run(tmp_path / "third", store, steps=1, start=second)
    before, after, same, last = targets
    assert torch.equal(after, same)
    assert not any(torch.equal(x, y) for x, y in itertools.combinations((before, after, last), 2))


MORE = [*all_layouts(), spec("more", GridLayout(shape=(2, 4)), 17)]


def other_store(root: Path) -> Path:
    """Write a store with other keys, one modality of `all_layouts` and one further modality."""
    for split, size in (("train", 12), ("test", 6)):
        write_store(root, [MORE[0], MORE[-1]], size, split, seed=size)
    return root


def rows_of(batch: PackedBatch) -> list[str]:
    """Return the samples of a batch, sorted, as texts of all their tokens and numbers."""
    slots = batch.inputs.ids.shape[1]
    numbers = {
        (name, int(index)): row for name, (indices, rows) in batch.inputs.vectors.items()
        for index, row in zip(indices, rows.tolist(), strict=True)
    }  # fmt: skip
    sides = [tensor.tolist() for side in (batch.inputs, batch.targets) for tensor in side.tensors().values()]
    return sorted(
        repr([*(side[sample] for side in sides),
              sorted((name, index % slots, row) for (name, index), row in numbers.items() if index // slots == sample)])
        for sample in range(len(batch.inputs.ids))
    )  # fmt: skip


def test_stores_take_turns_by_weight(store: Path, tmp_path: Path) -> None:
    datasets = (
        TrainingStore(tokens=other_store(tmp_path / "other"), weight=0.5, mixtures=(Mixture(inputs=("more",)),)),
    )
    config = dataclasses.replace(SHORT, datasets=datasets, batch_size=5)
    mix = Mix(open_sources(store, "train", MORE, config), EmbeddingLayout(MORE), config)
    batches = [mix.batch(step, 5) for step in range(6)]
    for step, batch in enumerate(batches):
        for ranks in (2, 3):
            joined = PackedBatch.join([mix.batch(step, 5, rank, ranks) for rank in range(ranks)])
            assert rows_of(joined) == rows_of(batch), "processes share a batch"
    assert any(batch.inputs.vectors for batch in batches)
    assert mix.sample_counts(30) == [20, 10]
    from_second_store = [(batch.inputs.modalities == 7).any(1).tolist() for batch in batches]
    assert all(row == sorted(row) for row in from_second_store) and sum(map(sum, from_second_store)) == 10
    uninterrupted = train(tmp_path / "whole", store, MORE, SMALL, config)
    with killed_after(3):
        train(tmp_path / "killed", store, MORE, SMALL, config)
    train(tmp_path / "killed", store, MORE, SMALL, config)
    assert outcome(tmp_path / "killed") == outcome(uninterrupted)
    assert metrics(uninterrupted, "held_out/more") and metrics(uninterrupted, "held_out/words")


def test_bad_datasets_are_refused(store: Path, tmp_path: Path) -> None:
    second_store = other_store(tmp_path / "other")

    def open_with(*datasets: TrainingStore) -> list[Source]:
        return open_sources(store, "train", MORE, dataclasses.replace(SHORT, datasets=datasets))

    with pytest.raises(UnknownNameError, match=r"mroe.*did you mean.*more"):
        open_with(TrainingStore(tokens=second_store, modalities=("mroe",)))
    with pytest.raises(DataError, match=r"other.train: .*words; it has more, picture"):
        open_with(TrainingStore(tokens=second_store, modalities=("picture", "words")))
    with pytest.raises(ConfigError, match=r"datasets: .*other has more"):
        open_with(TrainingStore(tokens=second_store, modalities=("more",)))
    no_target = r"datasets: .*other has picture, more, and none of them are targets in its mixtures"
    with pytest.raises(ConfigError, match=no_target):
        open_with(
            TrainingStore(
                tokens=second_store, mixtures=(Mixture(targets=("words",)), Mixture(targets=("words", "tags")))
            )
        )
    assert open_with(
        TrainingStore(tokens=second_store, mixtures=(Mixture(inputs=("words",)), Mixture(inputs=("picture",))))
    )
    for path in second_store.glob("*/picture/*.json"):
        write_table(path, json.loads(json.dumps(read_table(path)).replace("codec of picture", "codec of another")))
    codecs = (TrainingStore(tokens=second_store, modalities=("picture",)),)
    for error, message, changed in (
        (UnknownNameError, "clpi", {"loss_weights": {"clpi": 2.0}}),
        (ConfigError, "pixels: a patches modality is an input only", {"loss_weights": {"pixels": 2.0}}),
        (DataError, "picture by tokenizer codec of ano.* another store .* codec of pic", {"datasets": codecs}),
    ):
        with pytest.raises(error, match=message):
            run(tmp_path / "run", store, **changed)
    assert not (tmp_path / "run").exists()


def test_further_stores_are_found_from_any_folder(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second_store = other_store(tmp_path / "other")
    settings = {"specs": MORE, "steps": 1, "datasets": (TrainingStore(tokens=Path("other")),)}
    monkeypatch.chdir(tmp_path)
    folder = run(tmp_path / "run", store, **settings)
    before = (folder / "run.json").read_bytes()
    assert run(tmp_path / "run", store, **settings) == folder
    assert (folder / "run.json").read_bytes() == before
    monkeypatch.chdir(store)
    assert [dataset.tokens for dataset in Trained.load(folder).stores(store)] == [store, second_store]


def test_the_command_draws_previews_and_prints_losses() -> None:
    world = the_world().put_back()
    command = "backbone train --tokens tokens --out drawn --config backbone.toml --set preview_every=3"
    text = """
[[train.previews]]
inputs = ["rgb_patches"]
target = "depth"
[[train.previews]]
inputs = ["caption"]
target = "caption2"
"""
    (world.folder / "previews.toml").write_text((world.folder / "backbone.toml").read_text() + text)
    world(command.replace("backbone.toml", "previews.toml")).refused("caption2", "depth, rgb_patches")
    assert not (world.folder / "drawn").exists()
    text = text.replace('["caption"]\ntarget = "caption2"', '["depth"]\ntarget = "caption"')
    (world.folder / "previews.toml").write_text((world.folder / "backbone.toml").read_text() + text)
    result = world(command.replace("backbone.toml", "previews.toml"))
    assert result.code == 0, result.complaint
    cells = {}
    for step in (3, 6):
        with Image.open(world.folder / f"drawn/previews/step-{step:08}/rgb_patches-to-depth.png") as picture:
            boxes = json.loads(picture.info["cells"])
            cells[step] = [[picture.crop(box).tobytes() for box in row] for row in boxes]
        assert len(boxes) == 4 and all(len(row) == 3 for row in boxes)
        assert any(predicted != true for _, predicted, true in cells[step]), "an untrained model is not right"
        assert f"step {step}: rgb_patches to depth: drawn/previews/step-{step:08}" in result.complaint
    assert "step 3: held-out losses: caption " in result.complaint
    assert [(row[0], row[2]) for row in cells[3]] == [(row[0], row[2]) for row in cells[6]]
    board = b"".join(path.read_bytes() for path in (world.folder / "drawn/tensorboard").iterdir())
    assert board.count(b"rgb_patches to depth") == 2 and board.count(b"\x89PNG") == 4
    plain = world(command.replace("drawn", "plain").replace("preview_every=3", "preview_every=0"))
    assert plain.code == 0
    with_previews, without_previews = (world.folder / name / "model.safetensors" for name in ("drawn", "plain"))
    assert with_previews.read_bytes() == without_previews.read_bytes()
    world.put_back()


# ---------------------------------------------------------------- the loss


def first_batch(store: Path) -> PackedBatch:
    mix = Mix(open_sources(store, "train", all_layouts(), TRAINING), EmbeddingLayout(all_layouts()), TRAINING)
    return mix.batch(0, TRAINING.batch_size)


@pytest.mark.parametrize("weights", [{}, {"clip": 3.0}], ids=str)
@pytest.mark.parametrize("loss", KINDS)
def test_gradients_follow_kind_and_weights(store: Path, tmp_path: Path, loss: Any, weights: dict[str, float]) -> None:
    """The loss that is logged is without weights."""
    model, batch = FourM.seeded(SMALL, all_layouts(), TRAINING.seed), first_batch(store)
    counts = model.target_counts(batch.targets)

    def norm(kind: Any, weighted: bool) -> float:
        """Return the gradient norm."""
        balance = LossBalance(model.layout, TrainConfig(loss=kind, loss_weights={"clip": 3.0}), torch.device("cpu"))
        model.zero_grad()
        model(batch, kind, weights=balance.weights(counts) if weighted else None).loss.backward()
        return float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))

    norms = {(kind, weighted): norm(kind, weighted) for kind in KINDS for weighted in (False, True)}
    assert np.diff(sorted(norms.values())).min() > 1e-3
    folder = run(tmp_path, store, steps=1, loss=loss, loss_weights=weights)
    assert metrics(folder, "train/gradient_norm") == pytest.approx([norms[loss, bool(weights)]], rel=1e-5)
    assert metrics(folder, "train/loss") == pytest.approx([model(batch, loss).loss.item()], rel=1e-5)


@pytest.mark.parametrize("loss", KINDS)
def test_learned_loss_weights_are_not_in_the_logged_loss(store: Path, tmp_path: Path, loss: Any) -> None:
    """Adam's first step has the size of the learning rate; all losses are above 1/2, so all factors fall."""
    plain = run(tmp_path / "plain", store, steps=2, loss=loss)
    learned = run(tmp_path / "learned", store, steps=2, loss=loss, balance="uncertainty")
    assert metrics(learned, "train/loss") == pytest.approx(metrics(plain, "train/loss"), rel=1e-5)
    first_step = metrics(run(tmp_path / "once", store, steps=1, loss=loss, balance="uncertainty"))[0]
    model = FourM(SMALL, all_layouts())
    counts = model.target_counts(first_batch(store).targets).tolist()
    learned_factor = math.exp(-first_step["train/learning_rate"])
    expected = {name: learned_factor if count else 1.0 for name, count in zip(model.layout.names, counts, strict=True)}
    assert set(expected.values()) == {learned_factor, 1.0}
    assert {name: first_step[f"train/weight/{name}"] for name in expected} == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("loss", KINDS)
def test_without_targets_the_loss_is_0(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: Any) -> None:
    """This also holds with weights; the mean over no targets would be NaN and end the training."""
    joined = Mix.joined

    def without_targets(self: Mix, *arguments: Any) -> PackedBatch:
        original = joined(self, *arguments)
        unused = torch.zeros_like(original.targets.mask)
        return dataclasses.replace(original, targets=dataclasses.replace(original.targets, mask=unused))

    monkeypatch.setattr(Mix, "joined", without_targets)
    folder = run(tmp_path, store, steps=2, loss=loss, loss_weights={"clip": 9.0})
    assert metrics(folder, "train/loss") == [0.0, 0.0]
