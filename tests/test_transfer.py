"""Transfer from the run to what is predicted: tuning, labels, probes on disk, resuming, comparison."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from small_modalities import installed, write_values
from token_stores import note_source, reversed_tokens
from transfer_world import SOURCES, STEPS, TEST, TRAIN, World, make_world, read, train

from tokenizers_zoo import Zoo
from tokenizers_zoo.data.provenance import record_entry, samples_identity
from tokenizers_zoo.data.shards import ValueStore
from tokenizers_zoo.data.tar import writing_shard
from tokenizers_zoo.data.tokens import TokenStore
from tokenizers_zoo.errors import CheckpointError, ConfigError, DataError
from tokenizers_zoo.io import file_digest
from tokenizers_zoo.pipeline.tokenize import tokenize
from tokenizers_zoo.run_folder import TOKENIZER, FolderError
from zoo_backbone.checkpoint import load_model, save_model
from zoo_backbone.encoder import FourMEncoder
from zoo_backbone.evaluation.data import EvaluationData
from zoo_backbone.generate.plan import TargetPlan
from zoo_backbone.generate.recipe import Recipe
from zoo_backbone.generate.request import handles_of
from zoo_backbone.model import FourM
from zoo_backbone.retrieval.config import EmbeddingConfig
from zoo_backbone.retrieval.embedding import Embedder
from zoo_backbone.run import Run
from zoo_backbone.transfer import load
from zoo_backbone.transfer.cli import transfer as command
from zoo_backbone.transfer.compare import compared
from zoo_backbone.transfer.config import transfer_config
from zoo_backbone.transfer.metrics import left_out_text
from zoo_backbone.transfer.probe import encoder_of
from zoo_backbone.transfer.samples import chosen
from zoo_backbone.transfer.saving import places_of
from zoo_backbone.transfer.scores import scored
from zoo_backbone.transfer.training import transfer


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with installed(tmp_path_factory.mktemp("site"), "task", SOURCES):
        yield make_world(tmp_path_factory.mktemp("world"))


def gap(metrics: dict[str, Any]) -> tuple[float, float]:
    """The main score, and the constant baseline's."""
    main = metrics["metrics"][0]
    return main["score"], main["floor"]


def state_of(run: Path) -> dict[str, torch.Tensor]:
    return FourMEncoder(load_model(run)).model.state_dict()


def other_zoo(world: World, name: str = "", size: int = 8) -> Zoo:
    """The world's, with the maps `name` of another size; its registry is a link, beside the tokenizers."""
    kept, linked = world.root / "registries", world.root / f"{name}-{size}.toml"
    kept.mkdir(exist_ok=True)
    text = (world.root / "registry.toml").read_text()
    (kept / linked.name).write_text(
        text.replace(f"[modalities.{name}]\nimage_size = 8", f"[modalities.{name}]\nimage_size = {size}")
    )
    linked.unlink(missing_ok=True)
    linked.symlink_to(kept / linked.name)
    return Zoo.from_toml(linked)


# ---------------------------------------------------------------- tuning


@pytest.fixture(scope="module")
def frozen(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("probes") / "frozen"
    train(world, out, "facts.total")
    return out


def test_a_frozen_encoder_stays_as_it_is_and_its_head_learns(world: World, frozen: Path) -> None:
    metrics = json.loads((frozen / "metrics.json").read_text())
    score, floor = gap(metrics)
    assert score < 0.75 * floor
    assert all(name.startswith("head.") for name in load_file(frozen / "model.safetensors"))
    encoder = load(frozen).network.encoder
    assert all(torch.equal(tensor, state_of(world.run)[name]) for name, tensor in encoder.model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    trained = sum(parameter.numel() for parameter in load(frozen).network.head.parameters())
    assert metrics["parameters"]["trained"] == trained
    assert metrics["left_out"] == {"train": {"no_input": 0, "no_label": 0}, "test": {"no_input": 0, "no_label": 2},
                                   "unknown_keys": 0}  # fmt: skip
    assert metrics["labels"] == {"asked": 1.0, "train": TRAIN - 19, "validation": 19, "test": TEST - 2}


def test_a_probe_predicts_what_it_was_scored_on(world: World, frozen: Path) -> None:
    probe = load(frozen)
    keys, tokens = world.tokens("light")
    predicted = dict(zip(keys, probe.predict({"light": tokens}), strict=True))
    truth = {}
    for key in keys:
        if key not in ("test-005", "test-006"):
            truth[key] = json.loads(world.zoo["facts"].write(read(world, "facts", key))[0])["total"]
    mae = np.mean([abs(predicted[key] - total) for key, total in truth.items()])
    assert mae == pytest.approx(gap(json.loads((frozen / "metrics.json").read_text()))[0], abs=1e-5)
    values = [read(world, "light", key) for key in keys[:5]]
    assert probe.predict_values({"light": values}) == pytest.approx([predicted[key] for key in keys[:5]], abs=1e-4)
    with pytest.raises(ConfigError, match="predicted from light; light is missing"):
        probe.predict({"dark": tokens})


def test_full_tuning_moves_the_encoder_early_layers_least(world: World, tmp_path: Path) -> None:
    before = file_digest(world.run / "model.safetensors")
    train(world, tmp_path / "full", "facts.total", tuning="full", layer_decay=0.1, weight_decay=0.0)
    assert file_digest(world.run / "model.safetensors") == before
    old, new = state_of(world.run), load(tmp_path / "full").network.encoder.model.state_dict()
    moved = [
        float((new[name] - old[name]).abs().mean()) for name in (f"encoder.{i}.attention.out.weight" for i in (0, 1))
    ]
    assert 0 < 5 * moved[0] < moved[1]


def test_a_tuned_probe_needs_no_run_and_a_frozen_one_names_it(world: World, frozen: Path, tmp_path: Path) -> None:
    full = tmp_path / "full"
    counts = train(world, full, "facts.total", tuning="full", steps=3)["parameters"]
    assert counts["trained"] == counts["all"], "the encoder's, too"
    assert f"{counts['all']:,} of {counts['all']:,} parameters were trained" in (full / "README.md").read_text()
    for folder in (full, frozen):
        copy = tmp_path / "copies" / folder.name
        shutil.copytree(folder, copy)
        config = json.loads((copy / "config.json").read_text())
        config["backbone"]["run"] = str(tmp_path / "gone")
        (copy / "config.json").write_text(json.dumps(config))
    _, tokens = world.tokens("light")
    assert load(tmp_path / "copies" / "full").predict({"light": tokens}) == load(full).predict({"light": tokens})
    with pytest.raises(CheckpointError, match=r"the backbone that it needs was in .*gone, which is gone; give --run"):
        load(tmp_path / "copies" / "frozen")
    moved = load(tmp_path / "copies" / "frozen", run=world.run)
    assert moved.predict({"light": tokens}) == load(frozen).predict({"light": tokens})


def test_lora_leaves_the_base_and_keeps_additions_alone(world: World, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    metrics = train(world, tmp_path / "lora", "facts.total", tuning="lora", lora_rank=2, lora_alpha=16)
    score, floor = gap(metrics)
    assert score < 0.6 * floor
    drawn = torch.random.get_rng_state()
    probe, base = load(tmp_path / "lora"), state_of(world.run)
    assert torch.equal(torch.random.get_rng_state(), drawn), "whoever loads it draws the same numbers after"
    for name, tensor in probe.network.encoder.model.state_dict().items():
        if "lora_" not in name:
            assert torch.equal(tensor, base[name.replace(".base_layer", "")]), name
    stored = load_file(tmp_path / "lora" / "model.safetensors")
    additions = [name for name in stored if name.startswith("encoder.")]
    # Two matrices for each of four layers of each of two blocks.
    assert len(additions) == 2 * 4 * 2 and all("lora_" in name for name in additions)
    assert metrics["parameters"]["trained"] == sum(tensor.numel() for tensor in stored.values())
    assert all(stored[name].abs().sum() > 0 for name in additions)
    layer, x = probe.network.encoder.model.encoder[1].mlp.up, torch.randn(3, 32)
    down, up = (stored[f"encoder.encoder.1.mlp.up.lora_{part}.default.weight"] for part in "AB")
    assert down.shape == (2, 32), "the rank"
    assert torch.allclose(layer(x), layer.base_layer(x) + 16 / 2 * x @ down.T @ up.T, atol=1e-5)
    with_additions, tokens = probe.predict({"light": world.tokens("light")[1]}), world.tokens("light")[1]
    for name, parameter in probe.network.encoder.named_parameters():
        if "lora_B" in name:
            parameter.data.zero_()
    assert probe.predict({"light": tokens}) != with_additions


def test_scratch_begins_from_other_weights_and_each_seed_from_its_own(world: World, tmp_path: Path) -> None:
    found = []
    for seed in (0, 1):
        out = tmp_path / f"scratch{seed}"
        train(world, out, "facts.total", tuning="scratch", seed=seed, steps=1, learning_rate=1e-9)
        found.append(load(out).network.encoder.model.state_dict()["encoder.0.mlp.up.weight"])
    own = state_of(world.run)["encoder.0.mlp.up.weight"]
    for first, second in ((found[0], found[1]), (found[0], own), (found[1], own)):
        assert not torch.allclose(first, second, atol=1e-3)
        assert float(first.std()) == pytest.approx(float(second.std()), rel=0.05)


def test_scratch_has_the_positions_that_a_published_model_stored(world: World, tmp_path: Path) -> None:
    trained = load_model(world.run)
    names = trained.layout.names
    config = dataclasses.replace(trained.config, rotary=False, stored_positions=dict.fromkeys(names, 64))
    model = FourM.seeded(config, trained.layout.specs, 0)
    torch.nn.init.normal_(model.fixed_positions)
    save_model(model, tmp_path, {"fingerprints": {}})
    scratch = encoder_of(tmp_path, transfer_config({"tuning": "scratch"}), 3).model
    assert torch.equal(scratch.fixed_positions, model.fixed_positions) and model.fixed_positions.any()
    assert not torch.equal(scratch.encoder[0].mlp.up.weight, model.encoder[0].mlp.up.weight)


# ---------------------------------------------------------------- the loop


@pytest.mark.parametrize("tuning", ["frozen", "full"])
def test_a_killed_training_goes_on_to_the_same_weights(world: World, tmp_path: Path, tuning: str) -> None:
    def die(step: int) -> None:
        if step == 25:
            raise KeyboardInterrupt

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    first = train(world, whole, "zones", tuning=tuning, head="linear")
    with pytest.raises(KeyboardInterrupt):
        train(world, killed, "zones", tuning=tuning, head="linear", on_step=die)
    assert (killed / TOKENIZER.state).is_file() and not (killed / "metrics.json").exists()
    second = train(world, killed, "zones", tuning=tuning, head="linear")
    assert not (killed / TOKENIZER.state).exists()
    for name in ("model.safetensors", "metrics.jsonl", "config.json"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name
    assert {**first, "seconds": 0} == {**second, "seconds": 0}
    stamp = (killed / "metrics.json").stat().st_mtime_ns
    train(world, killed, "zones", tuning=tuning, head="linear")
    assert (killed / "metrics.json").stat().st_mtime_ns == stamp


def die_at_once(step: int) -> None:
    """As a kill before any state is saved."""
    raise KeyboardInterrupt


def test_another_setting_is_refused_unless_it_is_to_replace(world: World, tmp_path: Path) -> None:
    out = tmp_path / "probe"
    train(world, out, "facts.total", steps=2)
    with pytest.raises(FolderError, match=r"holds another probe \(model.settings.steps was 2, is 3"):
        train(world, out, "facts.total", steps=3)
    before = (out / "model.safetensors").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        train(world, out, "facts.total", steps=3, overwrite=True, on_step=die_at_once)
    assert (out / "model.safetensors").read_bytes() == before and (out / "metrics.json").is_file()
    assert train(world, out, "facts.total", steps=3, overwrite=True)["steps"] == 3
    for overwrite in (True, False):
        with pytest.raises(FolderError, match="run: holds"):
            train(world, world.run, "facts.total", steps=3, overwrite=overwrite)
    assert (world.run / "model.safetensors").is_file()


# ---------------------------------------------------------------- tasks


def test_a_class_map_that_the_backbone_never_saw(world: World, tmp_path: Path) -> None:
    """From a grid of its own and from two; judged by its own metric; its tokenizer is not trained."""
    assert not world.zoo["zones"].checkpoint.exists()
    metrics = train(world, tmp_path / "zones", "zones", given="letters,light,dark", head="linear", steps=80)
    assert metrics["metrics"][0]["name"] == "right" and metrics["task"] == {"name": "zones", "kind": "class map"}
    score, floor = gap(metrics)
    assert score > 0.9 > 0.6 > floor
    assert metrics["left_out"]["test"] == {"no_input": 2, "no_label": 0}
    probe = load(tmp_path / "zones")
    assert probe.network.grid is not None and probe.network.grid.names == ("light", "dark")


def test_a_map_of_numbers_in_its_own_unit(world: World, tmp_path: Path) -> None:
    metrics = train(world, tmp_path / "dark", "dark", head_blocks=1, steps=80)
    assert metrics["task"]["kind"] == "number map" and metrics["head"] == "convnext"
    score, floor = gap(metrics)
    assert score < 0.4 * floor
    answer = load(tmp_path / "dark").predict({"light": world.tokens("light")[1][:1]})[0]
    world.zoo["dark"].check(answer)


def change_kind(folder: Path, **changes: Any) -> None:
    """Let a probe's config.json say that its kind of answer was another."""
    config = json.loads((folder / "config.json").read_text())
    config["kind"] |= changes
    (folder / "config.json").write_text(json.dumps(config))


def test_classes_that_have_other_numbers_by_now_are_refused(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(world, tmp_path, "zones", head="linear", steps=1)
    spec = world.zoo["zones"].spec
    value = dataclasses.replace(spec.value, classes=(*spec.value.classes, "highest"))
    monkeypatch.setattr(world.zoo["zones"], "spec", dataclasses.replace(spec, value=value))
    load(tmp_path, world.zoo)  # what came after those of the training is none of its business
    monkeypatch.undo()
    for names, told in {
        ("low", "rather low", "middle", "high"): "class 1 is 'rather low', and the registry has 'middle' there",
        ("high", "middle", "low"): "class 0 is 'high', and the registry has 'low' there",
        ("low", "middle", "high", "top"): "class 3 is 'top', and the registry has none there",
    }.items():
        change_kind(tmp_path, names=names)
        with pytest.raises(CheckpointError) as error:
            load(tmp_path)
        again = "use the registry of its training, or train it again"
        assert str(error.value) == f"{tmp_path}: was trained on labels of zones whose {told}; {again}"


def test_labels_of_another_size_are_refused(world: World, tmp_path: Path) -> None:
    """Of maps, of arrays of numbers, of tokens; the registry that a probe notes is the one that was given."""
    told = "use the registry of its training, or train it again"
    for wanted, what, sizes in ((None, "values", "8 x 8, and the registry has 16 x 16"),
                                ("tokens", "tokens", "2 x 2, and the registry has 4 x 4")):  # fmt: skip
        out = tmp_path / what
        same = other_zoo(world, "dark")
        transfer(world.run, same, "dark", ["light"], out, transfer_config({**STEPS, "steps": 1}), wanted=wanted)
        assert json.loads((out / "config.json").read_text())["registry"] == str(same.path)
        load(out)
        with pytest.raises(CheckpointError, match=f"was trained on labels of dark with {what} of {sizes}; {told}"):
            load(out, other_zoo(world, "dark", 16))
    train(world, tmp_path / "gist", "gist", head="linear", steps=1)
    change_kind(tmp_path / "gist", shape=(2, 2))
    with pytest.raises(CheckpointError, match=f"labels of gist with values of 2 x 2, and the registry has 4; {told}"):
        load(tmp_path / "gist")


def test_maps_of_another_size_are_told_before_any_work(world: World, frozen: Path) -> None:
    zoo = other_zoo(world, "light", 16)
    model, fingerprints = load_model(world.run), {"light": zoo["light"].fingerprint}
    line = "^light: the model was trained on a grid of 2 x 2, the registry has a grid of 4 x 4; use the registry of its"
    with pytest.raises(DataError, match=line):
        load(frozen, zoo).predict_values({"light": [np.zeros((1, 16, 16), np.float32)]})
    with pytest.raises(DataError, match=line):
        Embedder(world.run, zoo, EmbeddingConfig(space="plain")).encode("light", "none.png")
    recipes = Recipe(inputs=("dark",), targets=(TargetPlan(name="light"),)), Recipe(inputs=("light",), targets=())
    for recipe in recipes:
        with pytest.raises(DataError, match=line):
            handles_of(zoo, model, recipe, fingerprints)
    data = EvaluationData(
        zoo, ["light", "dark"], fingerprints, world.root / "tokens", world.root / "data", 0, model.layout.specs
    )  # fmt: skip
    assert list(data.handles) == ["dark"] and data.problems["light"].startswith(line[1:])
    stored = "tokens of light are .*; use the registry of that time, or tokenize again"
    with pytest.raises(DataError, match=stored):
        TokenStore(world.root / "tokens").open("test", "light").check_tokenizer(zoo["light"])


def test_a_vector_of_numbers(world: World, tmp_path: Path) -> None:
    """Without a metric of its own it is judged as numbers are."""
    metrics = train(world, tmp_path / "gist", "gist", head="linear", steps=120, learning_rate=1e-2)
    score, floor = gap(metrics)
    assert [entry["name"] for entry in metrics["metrics"]] == ["mae", "r2"] and score < 0.75 * floor
    world.zoo["gist"].check(load(tmp_path / "gist").predict({"light": world.tokens("light")[1][:1]})[0])


def test_tokens_are_written_and_decoded(world: World, tmp_path: Path) -> None:
    metrics = train(world, tmp_path / "letters", "letters", steps=150, learning_rate=5e-3)
    assert metrics["task"]["kind"] == "tokens" and metrics["head"] == "tokens"
    score, floor = gap(metrics)
    assert score > floor + 0.3
    predicted = load(tmp_path / "letters").predict({"light": world.tokens("light")[1]})
    assert {len(text) for text in predicted} == {4} and set("".join(predicted)) <= set("abcdef")
    config = json.loads((tmp_path / "letters" / "config.json").read_text())
    config["kind"]["codec"] = "0" * 64
    (tmp_path / "letters" / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="letters: the model was trained on codec 000000000000"):
        load(tmp_path / "letters")


def test_a_table_of_the_users_own(world: World, tmp_path: Path) -> None:
    metrics = train(world, tmp_path / "mine", str(world.table), given="gist,letters", steps=80)
    assert metrics["task"] == {"name": "mine", "kind": "classes"}
    assert metrics["left_out"] == {"train": {"no_input": 0, "no_label": 0}, "test": {"no_input": 0, "no_label": 0},
                                   "unknown_keys": 3}  # fmt: skip
    assert metrics["labels"]["test"] == TEST - 2  # two lack letters
    score, floor = gap(metrics)
    assert score > floor + 0.15
    assert set(load(tmp_path / "mine").predict({name: world.tokens(name)[1][:4] for name in ("gist", "letters")})) <= {
        "up", "down"
    }  # fmt: skip


def test_knn_votes_with_the_training_labels(world: World, tmp_path: Path) -> None:
    """Against a brute force over the pooled features, for classes and for numbers."""
    metrics = train(world, tmp_path / "votes", str(world.table), head="knn", neighbours=5)
    train(world, tmp_path / "means", "facts.total", head="knn", neighbours=5)
    encoder = FourMEncoder.from_run(world.run)
    features = {}
    for split in ("train", "test"):
        keys, tokens = world.tokens("light", split)
        features[split] = dict(zip(keys, encoder(*encoder.prepare({"light": tokens})).numpy(), strict=True))
    with open(world.table, encoding="utf-8") as file:
        labels = {row["key"]: row["label"] for row in csv.DictReader(file)}
    center = np.mean(list(features["train"].values()), 0)
    right, votes, means = [], [], []
    for key, asked in features["test"].items():
        given = (asked - center) / np.linalg.norm(asked - center)
        cosines = {
            other: float(np.dot(found - center, given) / np.linalg.norm(found - center))
            for other, found in features["train"].items()
        }
        nearest = sorted(cosines, key=cosines.__getitem__)[-5:]
        weights = {name: np.exp(cosines[name] / 0.07) for name in nearest}
        votes.append(max(("up", "down"), key=lambda a: sum(w for n, w in weights.items() if labels[n] == a)))
        totals = {name: read(world, "facts", name, "train")["total"] for name in nearest}
        means.append(sum(weights[n] * totals[n] for n in nearest) / sum(weights.values()))
        right.append(votes[-1] == labels[key])
    assert metrics["metrics"][0]["score"] == pytest.approx(np.mean(right))
    tokens = {"light": world.tokens("light")[1]}
    assert load(tmp_path / "votes").predict(tokens) == votes
    assert load(tmp_path / "means").predict(tokens) == pytest.approx(means, abs=1e-3)
    tensors = load_file(tmp_path / "votes" / "model.safetensors")
    assert tensors["head.answers"].shape == (TRAIN,), "not samples times classes"
    stamp = (tmp_path / "votes" / "metrics.json").stat().st_mtime_ns
    train(world, tmp_path / "votes", str(world.table), head="knn", neighbours=5)
    assert (tmp_path / "votes" / "metrics.json").stat().st_mtime_ns == stamp


def with_broken(world: World, data: Path, name: str, broken: dict[str, str]) -> None:
    """Copy a modality's values to `data`; that of one key a split is none any more."""
    store = ValueStore.of(world.root / "data", world.zoo)
    for split, key in broken.items():
        with writing_shard(data / split / name / "shard-00000.tar") as shard:
            for other in store.keys(split, name):
                value, extension = store.read_bytes(split, name, other)
                shard.add(other, b"\xff\xfe no value" if other == key else value, extension)


@pytest.mark.parametrize(("task", "name"), [("zones", "zones"), ("facts.total", "facts"), ("letters", "letters")])
def test_labels_that_cannot_be_read_are_none_and_are_counted(
    world: World, tmp_path: Path, task: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with_broken(world, tmp_path / "data", name, {"train": "train-004", "test": "test-000"})
    metrics = train(world, tmp_path / "probe", task, data=tmp_path / "data", steps=1)
    left_out = metrics["left_out"]["train"]
    assert (left_out["no_label"], left_out["unreadable"]) == (1, 1)
    assert metrics["labels"]["train"] + metrics["labels"]["validation"] == TRAIN - 1
    assert f"{name}: 1 train value left out, first: train-004: " in capsys.readouterr().err
    assert "1 of train without a label, 1 of train with a label that cannot be read" in left_out_text(
        metrics["left_out"]
    )


def test_of_crops_the_whole_sample_has_the_label(world: World, tmp_path: Path) -> None:
    """What is learned from is the same as without crops; keys of a table are those of samples."""
    tokenize(world.zoo, world.root / "data", tmp_path / "tokens", modalities=["light"], crops=2)
    assert TokenStore(tmp_path / "tokens").split("train").crops == 2
    run = tmp_path / "run"
    shutil.copytree(world.run, run, ignore=shutil.ignore_patterns("transfer"))
    Run(tokens=tmp_path / "tokens", data=world.root / "data", registry=world.root / "registry.toml").save(run)
    for number, task in enumerate(("zones", "facts.total", str(world.table))):
        table = {"steps": 2} if task == "zones" else {"head": "knn"}
        plain = train(world, tmp_path / f"plain{number}", task, **table)
        found = train(dataclasses.replace(world, run=run), tmp_path / f"cropped{number}", task, **table)
        assert all(found[key] == plain[key] for key in ("metrics", "labels", "left_out"))


@pytest.mark.parametrize("tuning", ["frozen", "scratch"])
def test_a_probe_is_trained_in_float32_whatever_the_caller_has(world: World, tmp_path: Path, tuning: str) -> None:
    train(world, tmp_path / "single", "zones", steps=2, tuning=tuning)
    torch.set_default_dtype(torch.float64)
    try:
        train(world, tmp_path / "double", "zones", steps=2, tuning=tuning)
    finally:
        torch.set_default_dtype(torch.float32)
    single, double = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("single", "double"))
    assert single == double


def test_a_probe_is_of_the_labels_and_tokens_that_it_was_trained_on(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.root / "data", tmp_path / "data")
    shutil.copytree(world.root / "tokens", tmp_path / "tokens")
    shutil.copytree(world.run, tmp_path / "run", ignore=shutil.ignore_patterns("transfer"))
    Run(tokens=tmp_path / "tokens", data=tmp_path / "data", registry=world.root / "registry.toml").save(
        tmp_path / "run"
    )
    mine = dataclasses.replace(world, run=tmp_path / "run")
    asked: dict[str, dict[str, Any]] = {"zones": {"steps": 1, "labels": 40}, "facts.first": {"head": "knn"}}

    def again(task: str) -> bytes:
        train(mine, tmp_path / task, task, **asked[task])
        return (tmp_path / task / "metrics.json").read_bytes()

    first = {task: again(task) for task in asked}
    store = ValueStore.of(tmp_path / "data", world.zoo)
    facts = {key: store.read(world.zoo["facts"], "train", key) for key in store.keys("train", "facts")}
    write_values(tmp_path, world.zoo, "train", "facts", {key: {**value, "rare": "no"} for key, value in facts.items()})
    assert {task: again(task) for task in asked} == first, "that field is not asked for"
    write_values(tmp_path, world.zoo, "train", "facts", dict(zip(facts, list(facts.values())[::-1], strict=True)))
    zones = {key: 2 - store.read(world.zoo["zones"], "test", key) for key in store.keys("test", "zones")}
    write_values(tmp_path, world.zoo, "test", "zones", zones)
    for task, what in (("facts.first", "train labels"), ("zones", "test labels")):
        with pytest.raises(FolderError, match=rf'{what} was "[0-9a-f]{{16}}", is '):
            again(task)
    train(mine, tmp_path / "zones", "zones", **asked["zones"], overwrite=True)
    reversed_tokens(tmp_path / "tokens", "train", "light")
    with pytest.raises(FolderError, match="train inputs was"):
        again("zones")


def test_what_was_moved_is_not_trained_again(world: World, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    shutil.copytree(world.root, here, ignore=shutil.ignore_patterns("transfer", "tokenizers"))
    tables: dict[str, dict[str, Any]] = {"facts.first": {"steps": 2}, "mine.csv": {"head": "knn"}, "zones": {}}

    def again(root: Path, name: str, table: str = "mine.csv", **more: Any) -> bytes:
        Run(tokens=root / "tokens", data=root / "data", registry=world.root / "registry.toml").save(root / "run")
        out, task = root / "run" / "transfer" / name, str(root / table) if name == "mine.csv" else name
        train(dataclasses.replace(world, run=root / "run"), out, task, **tables[name], **more)
        return (out / "metrics.json").read_bytes()

    def die(step: int) -> None:
        if step == 25:
            raise KeyboardInterrupt

    first = {name: again(here, name) for name in ("facts.first", "mine.csv")}
    with pytest.raises(KeyboardInterrupt):
        again(here, "zones", on_step=die)
    shutil.move(here, there)
    assert {name: again(there, name) for name in first} == first, "with the seconds that it took"
    probes = {name: there / "run/transfer" / name for name in first}
    drawn = torch.random.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode():
            weights = list(load(there / "run/transfer/facts.first", run=there / "run").parameters())
    finally:
        torch.set_default_dtype(torch.float32)
    assert {weight.dtype for weight in weights} == {torch.float32} and not any(w.is_inference() for w in weights)
    assert torch.equal(torch.random.get_rng_state(), drawn)
    for name, probe in probes.items():
        for file in ("config.json", "README.md"):
            assert str(here) not in (probe / file).read_text(), "it is found where it is"
        assert str(there / "run") in (probe / "README.md").read_text()
        finished = load(probe)
        metrics = scored(finished, places_of(probe, finished).part(finished.task, "test"))
        assert metrics == json.loads((probe / "metrics.json").read_text())["metrics"], name
    moved = dataclasses.replace(world, run=there / "run")
    train(moved, tmp_path / "other", str(there / "mine.csv"), seed=1, head="knn")
    (column,) = compared([probes["mine.csv"], tmp_path / "other"])["columns"]
    assert column["task"] == "mine", "two seeds of one question"
    steps = list[int]()
    again(there, "zones", on_step=steps.append)
    assert steps == list(range(21, 41)), "a killed one goes on"
    assert json.loads((there / "run/transfer/zones/config.json").read_text())["tokens"] == str(there / "tokens")

    shutil.copy(there / "mine.csv", there / "yours.csv")
    with pytest.raises(FolderError, match=r"model\.task\.text was .*mine\.csv\", is .*yours\.csv"):
        again(there, "mine.csv", "yours.csv")
    (there / "mine.csv").write_text((there / "mine.csv").read_text().replace("test-000,up", "test-000,down"))
    (there / "mine.csv").write_text((there / "mine.csv").read_text() + "something,up\n")
    with pytest.raises(FolderError, match=r"data\.provenance\.sha256 was"):
        again(there, "mine.csv")


def test_labels_of_other_samples_with_the_same_keys_are_refused(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.root / "tokens", tmp_path / "tokens")
    for name, seed in (("data", 0), ("other", 1)):
        shutil.copytree(world.root / "data", tmp_path / name)
        record_entry(tmp_path / name, "train", "facts", {"source": "made", "seed": seed})
    identity = {"train": samples_identity(tmp_path / "data", "train")}
    note_source(tmp_path / "tokens", tmp_path / "data", identity)

    shutil.copytree(world.run, tmp_path / "run", ignore=shutil.ignore_patterns("transfer"))
    Run(tokens=tmp_path / "tokens", registry=world.root / "registry.toml").save(tmp_path / "run")
    mine = dataclasses.replace(world, run=tmp_path / "run")

    def asked(name: str) -> Any:
        return train(mine, tmp_path / f"of_{name}", "facts.first", head="knn", data=tmp_path / name)

    asked("data")
    with pytest.raises(DataError, match="other: its samples of the split train are others than those that the tokens"):
        asked("other")
    assert not (tmp_path / "of_other").exists()


def test_only_the_chosen_labels_are_learned_from(world: World, tmp_path: Path) -> None:
    """knn holds what it was given: one sample a class at least, and the same ones for the same seed."""
    few = train(world, tmp_path / "few", "facts.first", head="knn", labels=8, seed=1)
    keys, _ = world.tokens("light", "train")
    first = [read(world, "facts", key, "train")["first"] for key in keys]
    picked = chosen(keys, 8, 1, first)
    assert few["labels"] == {"asked": 8, "train": 8, "validation": 0, "test": TEST - 2}
    assert few["task"]["kind"] == "classes" and "kept_step" not in few
    answers = load(tmp_path / "few").network.head.state_dict()["answers"]
    names = sorted(set(first))
    assert sorted(names[i] for i in answers) == sorted(first[keys.index(key)] for key in picked)
    assert len(set(answers.tolist())) == len(names) == 6


def test_a_field_may_be_taken_as_classes(world: World, tmp_path: Path) -> None:
    metrics = train(world, tmp_path / "total", "facts.total", wanted="classes", head="knn")
    assert metrics["task"]["kind"] == "classes"
    assert all(answer.isdigit() for answer in load(tmp_path / "total").predict({"light": world.tokens("light")[1]}))


@pytest.mark.parametrize("tuning", ["frozen", "full"])
def test_an_answer_does_not_depend_on_longer_samples_beside_it(world: World, tmp_path: Path, tuning: str) -> None:
    train(world, tmp_path, "facts.total", "letters", tuning=tuning, steps=4)
    probe = load(tmp_path)
    _, rows = world.tokens("letters")
    short, whole = rows[0][:2], rows[1]
    together = probe.predict({"letters": [short, whole]})
    alone = [probe.predict({"letters": [row]})[0] for row in (short, whole)]
    assert together == pytest.approx(alone, rel=1e-4)
    assert together[0] != pytest.approx(probe.predict({"letters": [rows[0]]})[0], rel=1e-4)


# ---------------------------------------------------------------- comparison


def test_compared_figures_by_hand(tmp_path: Path) -> None:
    def finished(name: str, **changes: Any) -> Path:
        from dataclasses import asdict

        table = {"tuning": changes.pop("tuning", "frozen"), **changes.pop("settings", {})}
        metrics = {
            "task": {"name": "thing", "kind": "numbers"}, "given": ["a"], "tuning": table["tuning"],
            "head": "attentive", "labels": {"asked": 0.1, "train": 9, "test": 4}, "seed": 0,
            "settings": asdict(transfer_config(table)),
            "backbone": {"weights_sha256": "f" * 64},
            "metrics": [{"name": "mae", "unit": "m", "higher_is_better": False, "score": 1.0, "floor": 4.0}],
        } | changes  # fmt: skip
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text(json.dumps(metrics))
        return tmp_path / name

    def main(score: float) -> list[dict[str, Any]]:
        return [{"name": "mae", "unit": "m", "higher_is_better": False, "score": score, "floor": 4.0}]

    folders = [finished(f"seed{seed}", seed=seed, metrics=main(score)) for seed, score in enumerate((1.0, 2.0, 3.0))]
    folders += [finished("other", tuning="full", metrics=main(0.5)), finished("short", settings={"steps": 7})]
    folders += [finished("map", task={"name": "map", "kind": "class map"}, head="convnext")]
    result = compared(folders)
    assert [column["task"] for column in result["columns"]] == ["thing", "map"]
    rows = {(row["tuning"], row["settings"]): row for row in result["rows"]}
    assert set(rows) == {("frozen", ""), ("full", ""), ("frozen", "steps=7")}
    cell, of_map = rows["frozen", ""]["cells"]
    assert cell["mean"] == 2.0 and cell["half"] == pytest.approx(4.303 / 3**0.5, rel=1e-3) and cell["floor"] == 4.0
    assert cell["seeds"] == {"0": 1.0, "1": 2.0, "2": 3.0}
    assert of_map["half"] is None and rows["full", ""]["cells"][1] is None
    shown = CliRunner().invoke(command, ["compare", *map(str, folders)]).output.splitlines()
    assert "2.000 ± 2.484" in shown[1] + shown[2] and any(
        "constant baseline" in line and "4.000" in line for line in shown
    )
    assert max(map(len, shown)) <= 80
    assert [line for line in shown if "95 %" in line] == ["mean over seeds ± 95 %"]
    more = [
        finished(f"{name}{seed}", task={"name": name, "kind": "classes"}, given=["rgb_patches"], seed=seed)
        for name in ("kinds", "metadata.num_objects", "semseg") for seed in (0, 1)
    ]  # fmt: skip
    shown = CliRunner().invoke(command, ["compare", *map(str, more)]).output.splitlines()
    assert any(line.startswith("rgb_patches ") for line in shown) and max(map(len, shown)) <= 80
    for number, names in enumerate((5 * ["depth"], 8 * ["rgb_patches"])):
        wide = [
            finished(f"{name}{number}", given=names, tuning="scratch", task={"name": name, "kind": "numbers"},
                     settings={"steps": 7}, metrics=main(0.5125))
            for name in ("things", "others")
        ]  # fmt: skip
        shown = CliRunner().invoke(command, ["compare", *map(str, [*more, *wide])]).output.splitlines()
        assert max(map(len, shown)) <= 80 and sum(line.count("0.512") for line in shown) == 2
        assert sum(line.count("1.000 ± 0.000") for line in shown) == 3
        assert all(names[0] in line.split(",")[0] for line in shown if line.startswith(names[0][:3]))
    assert json.loads(CliRunner().invoke(command, ["compare", *map(str, folders), "--json"]).output) == result
    last = {"validation": 0.0, "steps": 9}
    same = [finished(f"same{seed}", seed=seed, settings={**last, "eval_every": 3 + seed}) for seed in (0, 1)]
    shown = CliRunner().invoke(command, ["compare", *map(str, same)]).output.splitlines()
    assert len(compared(same)["rows"]) == 1 and "settings" not in shown[1]
    assert shown[-1] == "all with steps=9, validation=0.0"
    chose = [finished(f"chose{every}", settings={"steps": 9, "eval_every": every}) for every in (3, 4)]
    assert [row["settings"] for row in compared(chose)["rows"]] == [f"steps=9, eval_every={every}" for every in (3, 4)]
    votes = [finished(f"votes{every}", seed=every, head="knn", settings={"eval_every": every}) for every in (3, 4)]
    assert len(compared(votes)["rows"]) == 1
    counts = {"train": 9, "test": 4}
    labels = [
        finished("one", labels={"asked": 1, "train": 1, "test": 4}),
        finished("all", labels={"asked": 1.0, **counts}),
    ]
    assert [row["labels"] for row in compared(labels)["rows"]] == [1, 1.0]
    shown = CliRunner().invoke(command, ["compare", *map(str, labels)]).output.splitlines()
    assert [line.split()[2:4] for line in shown[2:4]] == [["1", "1.000"], ["100", "%"]]
    more = [finished(f"asked{seed}", labels={"asked": 3, **counts}, seed=seed) for seed in (0, 1)]
    shown = CliRunner().invoke(command, ["compare", *map(str, more)]).output.splitlines()
    assert shown[2].split()[2:4] == ["3", "9"], "nine, as each class has one"
    with pytest.raises(ConfigError, match="has the same settings and seed as"):
        compared([folders[0], finished("again", metrics=main(9.0))])
    with pytest.raises(CheckpointError, match="no finished probe here"):
        compared([tmp_path])
    with pytest.raises(CheckpointError, match="no probe here; train one with zoo transfer train"):
        load(tmp_path)
