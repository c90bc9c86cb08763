"""Transfer: tuning, kinds of tasks, labels, validation, the feature cache, resuming."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_modalities import installed, write_values
from stores import of_source, writing_values
from token_stores import note_source, reversed_tokens
from torch import nn
from transfer_world import SOURCES, TEST, TRAIN, World, make_world, read, set_paths, train, with_run

from tokenizers_zoo import Zoo
from tokenizers_zoo.build.tokenize import tokenize
from tokenizers_zoo.errors import CheckpointError, ConfigError, DataError
from tokenizers_zoo.files.run_folder import TOKENIZER, FolderError
from tokenizers_zoo.records.io import as_json, file_digest, read_table, write_table
from tokenizers_zoo.stores.shards import ValueStore
from tokenizers_zoo.stores.tokens import TokenStore
from zoo_backbone.learn.checkpoint import load_model, save_model
from zoo_backbone.learn.encoder import FourMEncoder
from zoo_backbone.model.published import PublishedConfig, PublishedFourM
from zoo_backbone.model.run import Run
from zoo_backbone.use.transfer import load, probe
from zoo_backbone.use.transfer import train as probes
from zoo_backbone.use.transfer.config import transfer_config
from zoo_backbone.use.transfer.head import Attentive
from zoo_backbone.use.transfer.task import LabelSplit, Stores, Task, split_labels
from zoo_backbone.use.transfer.train import ProbeTask


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with installed(tmp_path_factory.mktemp("site"), "task", SOURCES):
        yield make_world(tmp_path_factory.mktemp("world"))


def main_score(metrics: dict[str, Any]) -> tuple[float, float]:
    """Return the main score and its constant baseline."""
    return metrics["metrics"][0]["score"], metrics["metrics"][0]["baseline"]


def task_and_stores(world: World, text: str, inputs: tuple[str, ...], data: Path | None = None) -> tuple[Task, Stores]:
    values = ValueStore(data or world.root / "data")
    specs = [world.zoo[name].spec for name in inputs]
    stores = Stores(tokens=world.root / "tokens", values=values, zoo=world.zoo, owner="", specs=specs, trained_on={})
    return Task.parse(text, world.zoo), stores


def state_of(run: Path) -> dict[str, torch.Tensor]:
    return FourMEncoder(load_model(run)).model.state_dict()


# ---------------------------------------------------------------- tuning


@pytest.fixture(scope="module")
def frozen(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("probes") / "frozen"
    train(world, out, "facts.total")
    return out


def test_a_frozen_encoder_keeps_its_weights_while_the_head_learns(world: World, frozen: Path) -> None:
    metrics = read_table(frozen / "metrics.json")
    score, baseline = main_score(metrics)
    assert score < 0.75 * baseline
    assert all(name.startswith("head.") for name in load_file(frozen / "model.safetensors"))
    encoder = load(frozen).network.encoder
    assert all(torch.equal(tensor, state_of(world.run)[name]) for name, tensor in encoder.model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    trained = sum(parameter.numel() for parameter in load(frozen).network.head.parameters())
    assert metrics["trained_parameters"] == trained
    assert metrics["dropped"]["train"] == {"no_input": 0, "no_label": 0}
    assert metrics["dropped"]["test"] == {"no_input": 0, "no_label": 2}
    assert metrics["labels"] == {"requested": 1.0, "train": TRAIN - 19, "validation": 19, "test": TEST - 2}


def test_values_of_another_size_are_refused(world: World, frozen: Path, tmp_path: Path) -> None:
    text, maps = (world.root / "registry.toml").read_text(), "[modalities.light]\nimage_size = "
    (tmp_path / "registry.toml").write_text(text.replace(f"{maps}8", f"{maps}16"))
    shutil.copytree(world.root / "tokenizers", tmp_path / "tokenizers")
    probe = load(frozen, Zoo.from_toml(tmp_path / "registry.toml"))
    with pytest.raises(DataError, match="light"):
        probe.predict_values({"light": [np.zeros((1, 16, 16), np.float32)]})


def test_a_probe_predicts_what_it_was_scored_on(world: World, frozen: Path) -> None:
    probe = load(frozen)
    keys, tokens = world.tokens("light")
    predicted = dict(zip(keys, probe.predict({"light": tokens}), strict=True))
    truth = {}
    for key in keys:
        if key not in ("test/005", "test/006"):
            truth[key] = json.loads(world.zoo["facts"].write(read(world, "facts", key))[0])["total"]
    mae = np.mean([abs(predicted[key] - total) for key, total in truth.items()])
    assert mae == pytest.approx(main_score(read_table(frozen / "metrics.json"))[0], abs=1e-5)
    values = [read(world, "light", key) for key in keys[:5]]
    assert probe.predict_values({"light": values}) == pytest.approx([predicted[key] for key in keys[:5]], abs=1e-4)
    with pytest.raises(ConfigError, match="light"):
        probe.predict({"dark": tokens})


def test_full_tuning_moves_the_encoder_early_layers_least(world: World, tmp_path: Path) -> None:
    before = file_digest(world.run / "model.safetensors")
    train(world, tmp_path / "full", "facts.total", tuning="full", layer_decay=0.1, weight_decay=0.0)
    assert file_digest(world.run / "model.safetensors") == before
    old, new = state_of(world.run), load(tmp_path / "full").network.encoder.model.state_dict()
    weight_changes = [
        float((new[name] - old[name]).abs().mean()) for name in (f"encoder.{i}.attention.out.weight" for i in (0, 1))
    ]
    assert 0 < 5 * weight_changes[0] < weight_changes[1]


def test_only_a_frozen_probe_needs_the_run(world: World, frozen: Path, tmp_path: Path) -> None:
    full = tmp_path / "full"
    metrics = train(world, full, "facts.total", tuning="full", steps=3)
    count = metrics["parameters"]
    assert metrics["trained_parameters"] == count, "the encoder's, too"
    assert f"{count:,} of {count:,} parameters were trained" in (full / "README.md").read_text()
    for folder in (full, frozen):
        copy = tmp_path / "copies" / folder.name
        shutil.copytree(folder, copy)
        set_paths(copy, run=str(tmp_path / "gone"), registry=str(world.root / "registry.toml"))
    _, tokens = world.tokens("light")
    assert load(tmp_path / "copies" / "full").predict({"light": tokens}) == load(full).predict({"light": tokens})
    with pytest.raises(CheckpointError, match="--run"):
        load(tmp_path / "copies" / "frozen")
    moved = load(tmp_path / "copies" / "frozen", run=world.run)
    assert moved.predict({"light": tokens}) == load(frozen).predict({"light": tokens})


def test_lora_keeps_the_base_and_stores_only_additions(world: World, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    metrics = train(world, tmp_path / "lora", "facts.total", tuning="lora", lora_rank=2, lora_alpha=16)
    score, baseline = main_score(metrics)
    assert score < 0.6 * baseline
    probe, base = load(tmp_path / "lora"), state_of(world.run)
    for name, tensor in probe.network.encoder.model.state_dict().items():
        if "lora_" not in name:
            assert torch.equal(tensor, base[name.replace(".base_layer", "")]), name
    tensors = load_file(tmp_path / "lora" / "model.safetensors")
    additions = [name for name in tensors if name.startswith("encoder.")]
    # Two matrices for each of four layers of each of two blocks.
    assert len(additions) == 2 * 4 * 2 and all("lora_" in name for name in additions)
    assert metrics["trained_parameters"] == sum(tensor.numel() for tensor in tensors.values())
    assert all(tensors[name].abs().sum() > 0 for name in additions)
    layer, x = probe.network.encoder.model.encoder[1].mlp.up, torch.randn(3, 32)
    down, up = (tensors[f"encoder.encoder.1.mlp.up.lora_{part}.default.weight"] for part in "AB")
    assert down.shape == (2, 32), "the rank"
    assert torch.allclose(layer(x), layer.base_layer(x) + 16 / 2 * x @ down.T @ up.T, atol=1e-5)


def test_scratch_starts_from_random_weights_of_its_seed(world: World, tmp_path: Path) -> None:
    scratch = []
    for seed in (0, 1):
        out = tmp_path / f"scratch{seed}"
        train(world, out, "facts.total", tuning="scratch", seed=seed, steps=1, learning_rate=1e-9)
        scratch.append(load(out).network.encoder.model.state_dict()["encoder.0.mlp.up.weight"])
    base = state_of(world.run)["encoder.0.mlp.up.weight"]
    for first, second in ((scratch[0], scratch[1]), (scratch[0], base), (scratch[1], base)):
        assert not torch.allclose(first, second, atol=1e-3)
        assert float(first.std()) == pytest.approx(float(second.std()), rel=0.05)


def test_scratch_keeps_the_positions_that_a_published_model_stored(world: World, tmp_path: Path) -> None:
    trained = load_model(world.run)
    shape = {**dataclasses.asdict(trained.config), "stored_positions": dict.fromkeys(trained.layout.names, 64)}
    model = PublishedFourM.seeded(PublishedConfig(**shape), trained.layout.specs, 0)
    torch.nn.init.normal_(model.fixed_positions)
    save_model(model, tmp_path, {"fingerprints": {}})
    scratch = probe.initial_model(tmp_path, transfer_config({"tuning": "scratch"}), 3)
    assert torch.equal(scratch.fixed_positions, model.fixed_positions)
    assert not torch.equal(scratch.encoder[0].mlp.up.weight, model.encoder[0].mlp.up.weight)


def test_global_random_state_and_dtype_have_no_effect(world: World, frozen: Path, tmp_path: Path) -> None:
    train(world, tmp_path / "single", "zones", steps=2)
    rng_state = torch.random.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        train(world, tmp_path / "double", "zones", steps=2)
        with torch.inference_mode():
            weights = list(load(frozen).parameters())
    finally:
        torch.set_default_dtype(torch.float32)
    single, double = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("single", "double"))
    assert single == double and torch.equal(torch.random.get_rng_state(), rng_state)
    assert {weight.dtype for weight in weights} == {torch.float32} and not any(w.is_inference() for w in weights)


# ---------------------------------------------------------------- the loop


def killed_at(last: int) -> Any:
    """Return a callback that stops a training like a kill signal."""

    def die(step: int) -> None:
        if step == last:
            raise KeyboardInterrupt

    return die


# ---------------------------------------------------------------- tasks


def test_a_class_map_new_to_the_backbone_is_learned(world: World, tmp_path: Path) -> None:
    """Predicted from two input grids and judged by its own metric; no tokenizer is trained for it."""
    assert not world.zoo["zones"].checkpoint.exists()
    metrics = train(world, tmp_path / "zones", "zones", inputs="letters,light,dark", head="linear", steps=80)
    assert metrics["metrics"][0]["name"] == "right" and metrics["task"]["kind"] == "class map"
    score, baseline = main_score(metrics)
    assert score > 0.9 > 0.6 > baseline
    assert metrics["dropped"]["test"]["no_input"] == 2
    probe = load(tmp_path / "zones")
    assert probe.network.grid is not None and probe.network.grid.names == ("light", "dark")


@pytest.mark.parametrize(
    ("name", "kind", "max_ratio", "settings"),
    [
        ("dark", "number map", 0.4, {"head_blocks": 1, "steps": 80}),
        ("gist", "numbers", 0.75, {"head": "linear", "steps": 120, "learning_rate": 1e-2}),
    ],
)
def test_maps_and_vectors_of_numbers_are_predicted_in_their_unit(
    world: World, tmp_path: Path, name: str, kind: str, max_ratio: float, settings: dict[str, Any]
) -> None:
    """Without its own metric, a modality is judged by the metrics of numbers."""
    metrics = train(world, tmp_path, name, **settings)
    score, baseline = main_score(metrics)
    assert metrics["task"]["kind"] == kind and score < max_ratio * baseline
    assert name == "dark" or [entry["name"] for entry in metrics["metrics"]] == ["mae", "r2"]
    world.zoo[name].check(load(tmp_path).predict({"light": world.tokens("light")[1][:1]})[0])


def test_classes_whose_numbers_have_changed_are_refused(world: World, tmp_path: Path) -> None:
    train(world, tmp_path, "zones", head="linear", steps=1)
    config = read_table(tmp_path / "config.json")
    config["value"]["classes"] = ("high", "middle", "low")
    write_table(tmp_path / "config.json", config)
    with pytest.raises(CheckpointError, match="zones"):
        load(tmp_path)


def test_a_users_table_of_labels_is_learned(world: World, tmp_path: Path) -> None:
    metrics = train(world, tmp_path / "mine", str(world.table), inputs="gist,letters", steps=80)
    assert (metrics["task"]["name"], metrics["task"]["kind"]) == ("mine", "classes")
    assert metrics["unknown_keys"] == 3 and metrics["dropped"]["test"]["no_input"] == 0
    assert metrics["labels"]["test"] == TEST - 2  # two lack letters
    score, baseline = main_score(metrics)
    assert score > baseline + 0.15
    assert set(load(tmp_path / "mine").predict({name: world.tokens(name)[1][:4] for name in ("gist", "letters")})) <= {
        "up", "down"
    }  # fmt: skip


def test_labels_belong_to_whole_samples_not_crops(world: World, tmp_path: Path) -> None:
    """Results equal those without crops; tables use the keys of samples."""
    tokenize(world.zoo, world.root / "data", tmp_path / "tokens", modalities=["light"], crops=2)
    assert TokenStore(tmp_path / "tokens").split("train").crops == 2
    cropped = with_run(world, tmp_path, tokens=tmp_path / "tokens")
    for number, task in enumerate(("facts.total", str(world.table))):
        plain_metrics = train(world, tmp_path / f"plain{number}", task, steps=2)
        cropped_metrics = train(cropped, tmp_path / f"cropped{number}", task, steps=2)
        assert all(cropped_metrics[key] == plain_metrics[key] for key in ("metrics", "labels", "dropped"))


def test_changed_labels_or_tokens_of_a_probe_are_refused(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.root / "data", tmp_path / "data")
    shutil.copytree(world.root / "tokens", tmp_path / "tokens")
    world_copy = with_run(world, tmp_path, tokens=tmp_path / "tokens", data=tmp_path / "data")
    settings: dict[str, dict[str, Any]] = {"zones": {"steps": 1, "labels": 40}, "facts.first": {"steps": 2}}

    def train_again(task: str) -> bytes:
        train(world_copy, tmp_path / task, task, **settings[task])
        return (tmp_path / task / "metrics.json").read_bytes()

    first = {task: train_again(task) for task in settings}
    store = ValueStore(tmp_path / "data")
    facts = {key: store.read_key(world.zoo["facts"], "train", key) for key in store.keys("train", "facts")}
    write_values(tmp_path, world.zoo, "train", "facts", {key: {**value, "rare": "no"} for key, value in facts.items()})
    assert {task: train_again(task) for task in settings} == first, "that field is not asked for"
    write_values(tmp_path, world.zoo, "train", "facts", dict(zip(facts, list(facts.values())[::-1], strict=True)))
    zones = {key: 2 - store.read_key(world.zoo["zones"], "test", key) for key in store.keys("test", "zones")}
    write_values(tmp_path, world.zoo, "test", "zones", zones)
    for task, changed in (("facts.first", "train labels"), ("zones", "test labels")):
        with pytest.raises(FolderError, match=changed):
            train_again(task)
    train(world_copy, tmp_path / "zones", "zones", **settings["zones"], overwrite=True)
    reversed_tokens(tmp_path / "tokens", "train", "light")
    with pytest.raises(FolderError, match="train inputs"):
        train_again("zones")


def test_a_moved_probe_is_not_trained_again(world: World, tmp_path: Path) -> None:
    original, moved = tmp_path / "here", tmp_path / "there"
    shutil.copytree(world.root, original, ignore=shutil.ignore_patterns("transfer", "tokenizers"))
    tables: dict[str, dict[str, Any]] = {"facts.first": {"steps": 2}, "mine.csv": {"steps": 2}, "zones": {}}

    def train_again(root: Path, name: str, **options: Any) -> dict[str, Any]:
        Run(tokens=root / "tokens", data=root / "data", registry=world.root / "registry.toml").save(root / "run")
        task = str(root / name) if name == "mine.csv" else name
        world_of_root = dataclasses.replace(world, run=root / "run")
        metrics = train(world_of_root, root / "run" / "transfer" / name, task, **tables[name], **options)
        return metrics

    first = {name: train_again(original, name) for name in ("facts.first", "mine.csv")}
    with pytest.raises(KeyboardInterrupt):
        train_again(original, "zones", on_step=killed_at(25))
    shutil.move(original, moved)
    assert {name: train_again(moved, name) for name in first} == first, "including the seconds that it took"
    for name in first:
        folder = moved / "run/transfer" / name
        assert not any(str(original) in path.read_text() for path in folder.glob("*.json"))
        finished = load(folder)
        scores = finished.score(finished.stores("test").samples(finished.task, "test"))
        assert [as_json(score) for score in scores] == first[name]["metrics"]
    steps = list[int]()
    train_again(moved, "zones", on_step=steps.append)
    assert steps == list(range(21, 41)), "a killed training resumes"


def test_labels_of_other_samples_with_the_same_keys_are_refused(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.root / "tokens", tmp_path / "tokens")
    for name, seed in (("data", 0), ("other", 1)):
        shutil.copytree(world.root / "data", tmp_path / name)
        of_source(tmp_path / name, "train", seed)
    identity = {"train": ValueStore(tmp_path / "data").source("train")}
    note_source(tmp_path / "tokens", tmp_path / "data", identity)
    world_copy = with_run(world, tmp_path, tokens=tmp_path / "tokens", data=None)

    def train_with(name: str) -> Any:
        return train(world_copy, tmp_path / f"of_{name}", "facts.first", steps=1, data=tmp_path / name)

    train_with("data")
    with pytest.raises(DataError, match="train"):
        train_with("other")
    assert not (tmp_path / "of_other").exists()


def test_only_the_requested_number_of_labels_is_used(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chosen samples have at least one per class, and are always the same for a seed."""
    recorder = TrainingRecorder(monkeypatch)
    metrics = train(world, tmp_path / "few", "facts.first", labels=8, seed=1)
    chosen_samples = label_split(world, "facts.first", labels=8).samples
    assert metrics["labels"] == {"requested": 8, "train": 8, "validation": 0, "test": TEST - 2}
    assert metrics["task"]["kind"] == "classes" and "best_step" not in metrics
    assert recorder.training_keys == set(map(chosen_samples.key, range(8)))
    assert set(chosen_samples.labels) == set("abcdef")


def test_an_answer_does_not_depend_on_longer_samples_beside_it(world: World, tmp_path: Path) -> None:
    train(world, tmp_path, "facts.total", "letters", steps=4)
    probe = load(tmp_path)
    _, rows = world.tokens("letters")
    short, full = rows[0][:2], rows[1]
    batched = probe.predict({"letters": [short, full]})
    single = [probe.predict({"letters": [row]})[0] for row in (short, full)]
    assert batched == pytest.approx(single, rel=1e-4)
    assert batched[0] != pytest.approx(probe.predict({"letters": [rows[0]]})[0], rel=1e-4)


# ---------------------------------------------------------------- the feature cache


def test_weights_do_not_depend_on_the_cache(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare a cache of all, some and no features."""

    def weights(name: str) -> bytes:
        train(world, tmp_path / name, "facts.total", "letters,light")
        return (tmp_path / name / "model.safetensors").read_bytes()

    get = probes.FeatureCache.get

    def bounded_get(cache: probes.FeatureCache, rows: Sequence[int]) -> Any:
        features = get(cache, rows)
        assert sum(row.untyped_storage().nbytes() for row in cache.cached.values()) <= probes.CACHE_BYTES
        return features

    monkeypatch.setattr(probes.FeatureCache, "get", bounded_get)
    expected = weights("all")
    for name, cache_bytes in (("some", 9_000), ("none", 0)):
        monkeypatch.setattr(probes, "CACHE_BYTES", cache_bytes)
        assert weights(name) == expected, name


def test_labels_follow_their_keys_whatever_the_order_of_values(world: World, tmp_path: Path) -> None:
    """The first shard has the same keys in both stores; a key is missing, and the rest is in another order."""
    keys = world.tokens("light", "train")[0]
    values = {key: read(world, "facts", key, "train") for key in (*keys[:16], *reversed(keys[17:]))}
    with writing_values(tmp_path / "data", "train", "facts", shard_size=16) as shard:
        for key, value in values.items():
            shard.add(key, *world.zoo["facts"].write(value))
    task, stores = task_and_stores(world, "facts.total", ("light",), tmp_path / "data")
    samples = stores.samples(task, "train")
    labels = {samples.key(row): label for row, label in enumerate(samples.labels)}
    assert labels == {key: value["total"] for key, value in values.items()}


# ---------------------------------------------------------------- validation


def label_split(world: World, text: str, seed: int = 1, **table: Any) -> LabelSplit:
    """Return a task's labels, split into training and validation."""
    task, stores = task_and_stores(world, text, ("light",))
    return split_labels(task, stores.samples(task, "train"), transfer_config(table), seed)


class TrainingRecorder:
    """Records the training and evaluation keys of a run, and the weights at each evaluation.

    `scores` replace the evaluation metrics, in order.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, scores: Sequence[float] = ()) -> None:
        self.training_keys: set[str] = set()
        self.evaluated_keys: list[set[str]] = []
        self.weights: list[dict[str, torch.Tensor]] = []
        self.scores = list(scores)
        batch, reconstruct, score = ProbeTask.batch, ProbeTask.reconstruct, ProbeTask.score

        def recording_batch(task: ProbeTask, values: list[Any], rng: Any) -> Any:
            self.training_keys |= {task.split.samples.key(row) for row in values}
            return batch(task, values, rng)

        def recording_reconstruct(task: ProbeTask, module: nn.Module, values: list[Any]) -> Any:
            self.evaluated_keys.append({task.held_out.key(row) for row in values})
            self.weights.append({name: tensor.clone() for name, tensor in module.state_dict().items()})
            return reconstruct(task, module, values)

        def given_score(task: ProbeTask, predicted: list[Any], target: list[Any]) -> Any:
            return {"mae": self.scores[len(self.weights) - 1], "r2": 0.0} if scores else score(task, predicted, target)

        monkeypatch.setattr(ProbeTask, "batch", recording_batch)
        monkeypatch.setattr(ProbeTask, "reconstruct", recording_reconstruct)
        monkeypatch.setattr(ProbeTask, "score", given_score)


def test_no_sample_both_trains_and_validates(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = TrainingRecorder(monkeypatch)
    metrics = train(world, tmp_path, "facts.total", labels=80, seed=2)
    samples = label_split(world, "facts.total", 2, labels=80).samples
    labels = set(map(samples.key, range(80)))
    assert recorder.evaluated_keys[0] == recorder.evaluated_keys[-1] and len(recorder.evaluated_keys[0]) == 16
    assert recorder.training_keys | recorder.evaluated_keys[0] == labels
    assert not recorder.training_keys & recorder.evaluated_keys[0]
    assert not labels & set(world.tokens("light")[0]), "and none is a test sample"
    assert metrics["labels"] == {"requested": 80, "train": 64, "validation": 16, "test": 22}
    totals = [read(world, "facts", key, "train")["total"] for key in labels]
    baseline = metrics["metrics"][0]["baseline"]
    labelled_keys = [key for key in world.tokens("light")[0] if key not in ("test/005", "test/006")]
    errors = [abs(np.median(totals) - read(world, "facts", key)["total"]) for key in labelled_keys]
    assert baseline == pytest.approx(np.mean(errors)), "that of all labels"


def test_validation_labels_keep_the_shares_of_the_classes(world: World) -> None:
    """Another seed chooses other labels."""
    split, other_split = (label_split(world, "facts.first", seed, labels=60) for seed in (1, 2))
    labels = list(split.samples.labels)
    assert sorted([*split.training, *split.validation]) == list(range(len(labels)))
    for name in set(labels):
        count = sum(labels[index] == name for index in split.validation)
        assert abs(count - 0.2 * labels.count(name)) < 1
    first, second = (set(map(each.samples.key, range(60))) for each in (split, other_split))
    assert first != second


@pytest.mark.parametrize("tuning", ["frozen", "full"])
def test_the_weights_of_the_best_evaluation_are_kept(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tuning: str
) -> None:
    """Of the evaluations after steps 2, 4, ..., the third is best; equal scores and NaN are not better."""
    recorder = TrainingRecorder(monkeypatch, [math.nan, 5.0, 3.0, 4.0, 3.0])
    metrics = train(world, tmp_path, "facts.total", tuning=tuning, steps=10, eval_every=2)
    assert metrics["steps"] == 10 and metrics["best_step"] == 6
    assert metrics["best_score"] == 3.0
    assert len(recorder.weights) == 5 and "best_step" in (tmp_path / "metrics.json").read_text()
    for number, weights in enumerate(recorder.weights):
        saved = load_file(tmp_path / "model.safetensors")
        prefix = "head." if tuning == "frozen" else ""
        heads = [name for name in weights if tuning == "frozen" or name.startswith("head.")]
        same = all(torch.equal(saved[prefix + name], weights[name]) for name in heads)
        assert same == (number == 2), number


def test_dropout_applies_in_training_only(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, dropped = Attentive.forward, {True: list[float](), False: list[float]()}

    def recording_forward(head: Attentive, features: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        dropped[head.training].append(float((features == 0).float().mean()))
        return forward(head, features, mask)

    monkeypatch.setattr(Attentive, "forward", recording_forward)
    train(world, tmp_path, "facts.total", steps=2, dropout=0.25)
    assert all(0.2 < share < 0.3 for share in dropped[True]) and not any(dropped[False]) and all(dropped.values())


@pytest.mark.parametrize(("tuning", "step"), [("frozen", 7), ("full", 10)])
def test_a_killed_training_resumes_to_the_same_weights(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tuning: str, step: int
) -> None:
    """Killed between two evaluations after the best one, and after the last."""
    scores = [5.0, 4.0, 4.5, 4.1, 4.2, 0.0]
    settings = {"tuning": tuning, "steps": 12, "eval_every": 2, "patience": 3, "dropout": 0.2}
    uninterrupted, killed = tmp_path / "whole", tmp_path / "killed"
    with monkeypatch.context() as patch:
        TrainingRecorder(patch, scores)
        first = train(world, uninterrupted, "facts.total", **settings)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        TrainingRecorder(patch, scores)
        train(world, killed, "facts.total", on_step=killed_at(step), **settings)
    assert (killed / TOKENIZER.state).is_file() and not (killed / "metrics.json").exists()
    with monkeypatch.context() as patch:
        TrainingRecorder(patch, scores[step // 2 :])
        second = train(world, killed, "facts.total", **settings)
    assert (first["steps"], first["best_step"]) == (10, 4)
    assert {**first, "seconds": 0, "training_seconds": 0} == {**second, "seconds": 0, "training_seconds": 0}
    for name in ("model.safetensors", "metrics.jsonl", "config.json"):
        assert (uninterrupted / name).read_bytes() == (killed / name).read_bytes(), name
    stamp = (killed / "metrics.json").stat().st_mtime_ns
    train(world, killed, "facts.total", **settings)
    assert (killed / "metrics.json").stat().st_mtime_ns == stamp, "a finished probe is kept"


@pytest.mark.parametrize(("settings", "labels"), [({"labels": 20}, 20), ({"validation": 0.0}, TRAIN)])
def test_without_validation_the_last_step_is_kept(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    settings: dict[str, Any], labels: int,
) -> None:  # fmt: skip
    """With too few labels, a line says so."""
    recorder = TrainingRecorder(monkeypatch, [1.0, 9.0])
    metrics = train(world, tmp_path, "facts.total", **settings)
    message = " ".join(capsys.readouterr().err.split())
    assert ("of 20 labels are too few" in message) == (labels == 20) and "best_step" not in metrics
    assert metrics["labels"]["train"] == len(recorder.training_keys) == labels and metrics["labels"]["validation"] == 0
    assert recorder.evaluated_keys[0] <= set(world.tokens("light")[0]), (
        "on the way it looks at test samples and chooses nothing"
    )
    assert '"held_out/mae"' in (tmp_path / "metrics.jsonl").read_text()
    assert torch.equal(load_file(tmp_path / "model.safetensors")["head.query"], recorder.weights[1]["query"])
