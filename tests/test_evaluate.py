"""Evaluation of a backbone that learned a mapping between fake modalities, through real stores, handles and files."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from retrieval_world import train
from rich.console import Console
from small_modalities import EXAMPLE, LETTERS, LEVELS, installed, sample
from stores import of_source, writing_values
from token_stores import note_source, reversed_tokens, write_tokens
from toy_plugins import snapshot

from tokenizers_zoo import Zoo
from tokenizers_zoo.checkpoint import load_checkpoint, save_checkpoint
from tokenizers_zoo.data import shards
from tokenizers_zoo.data.samples import TrainingSamples
from tokenizers_zoo.data.token_shard import TokenMetadata
from tokenizers_zoo.errors import ConfigError, DataError
from tokenizers_zoo.handle import ModalityHandle
from tokenizers_zoo.run_folder import FolderError
from tokenizers_zoo.spec import (
    EmbeddingsLayout,
    GridLayout,
    ModalitySpec,
    PatchesLayout,
    SequenceLayout,
    TokenLayout,
    ValueSpec,
)
from tokenizers_zoo.train.batches import permuted
from zoo_backbone import evaluate as evaluation
from zoo_backbone.checkpoint import layout_for, load_model, save_model
from zoo_backbone.cli.main import backbone as command
from zoo_backbone.cli.main import skill_table
from zoo_backbone.config import Dataset, EvaluationConfig, MaskingConfig, Mixture, Preview, TrainConfig
from zoo_backbone.embedding_layout import EmbeddingLayout
from zoo_backbone.evaluate import evaluate as evaluate_run
from zoo_backbone.evaluate import skill_score
from zoo_backbone.evaluation_data import EvaluationData, pairs_of
from zoo_backbone.gallery import CELL, GAP, HEADER, TEXT, Previews, write_sheet
from zoo_backbone.generate import TargetPlan, generate, outputs
from zoo_backbone.generate.inputs import Request
from zoo_backbone.generate.plans import GenerationPlan
from zoo_backbone.model import FourM
from zoo_backbone.published import PublishedConfig
from zoo_backbone.run import Run

NAMES = ("light", "dark", "letters")
TRAIN, TEST = 96, 24
CONFIG = EvaluationConfig(
    samples=16,
    baseline_samples=20,
    loss_samples=24,
    batch_size=10,
    draws=4,
    gallery_pairs=2,
    gallery_samples=3,
    gallery_draws=2,
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Three installed modalities: two brightness maps, and letters."""
    sources = {"light": EXAMPLE, "dark": EXAMPLE, "letters": LETTERS}
    with installed(tmp_path_factory.mktemp("site"), "fake", sources):
        yield


def evaluate(run: Path, zoo: Zoo, tokens: Path, data: Path, config: EvaluationConfig, **options: Any) -> dict[str, Any]:
    """Evaluate with some of `inputs` and `targets`."""
    named = {key: tuple(options.pop(key)) for key in ("inputs", "targets") if key in options}
    return evaluate_run(run, zoo, tokens, data, config=dataclasses.replace(config, **named), **options)


@dataclasses.dataclass(frozen=True)
class World:
    zoo: Zoo
    run: Path
    tokens: Path
    data: Path

    def evaluate(self, run: Path | None = None, config: EvaluationConfig = CONFIG, **options: Any) -> dict[str, Any]:
        return evaluate(run or self.run, self.zoo, self.tokens, self.data, config=config, **options)

    def copy(self, folder: Path) -> Path:
        """Copy the run without its evaluation."""
        shutil.copytree(self.run, folder, ignore=shutil.ignore_patterns("evaluation"))
        return folder


@pytest.fixture(scope="module")
def world(site: None, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Values and tokens on disk, and a backbone that has learned to predict the other modalities from light."""
    root = tmp_path_factory.mktemp("world")
    maps = {"image_size": 8, "levels": LEVELS}
    tables = {"zoo": {"checkpoints": "tokenizers"}, "modalities": {"light": maps, "dark": maps}}
    zoo = Zoo.from_tables(tables, root / "registry.toml")
    generator = np.random.default_rng(0)
    for name in NAMES:
        zoo[name].train_tokenizer(TrainingSamples(train=[], test=[]), zoo[name].checkpoint, 0)
    for split, count in (("train", TRAIN), ("test", TEST)):
        samples = {f"{split}-{i:03}": sample(generator) for i in range(count)}
        for name in NAMES:
            with writing_values(root / "data", split, name) as shard:
                for key, values in samples.items():
                    shard.add(key, *zoo[name].write(values[name]))
            tokens = list(zoo[name].encode([values[name] for values in samples.values()]))
            rows = dict(zip(samples, tokens, strict=True))
            write_tokens(root / "tokens", split, TokenMetadata.of(zoo[name], {}), rows)
    mixtures = (Mixture(inputs=("light",), targets=("dark", "letters")),)
    train(zoo, root, NAMES, MaskingConfig(input_budget=4, target_budget=9, mixtures=mixtures), 120)
    return World(zoo=zoo, run=root / "run", tokens=root / "tokens", data=root / "data")


@pytest.fixture(scope="module")
def result(world: World) -> dict[str, Any]:
    return world.evaluate()


def evaluation_data(world: World, seed: int) -> EvaluationData:
    config = dataclasses.replace(CONFIG, seed=seed)
    return EvaluationData(load_model(world.run), world.zoo, world.tokens, world.data, config)


def entry(result: dict[str, Any], given: str, target: str) -> dict[str, Any]:
    (found,) = [pair for pair in result["pairs"] if (pair["inputs"], pair["target"]) == ([given], target)]
    return found


def timeless(result: dict[str, Any]) -> dict[str, Any]:
    return {**result, "seconds": 0}


# --- figures


def test_learned_mapping_closes_most_of_the_gap(result: dict[str, Any]) -> None:
    assert entry(result, "light", "dark")["skill"] > 0.8
    assert entry(result, "light", "letters")["skill"] > 0.8
    assert entry(result, "dark", "letters")["skill"] < 0.5  # never trained on
    found = result["cross_entropy"]
    assert found["samples"] == TEST and set(found["modalities"]) == {"dark", "letters"}
    assert found["modalities"]["dark"]["uniform"] == pytest.approx(math.log(LEVELS))
    assert all(loss["nats"] < 0.3 * loss["uniform"] for loss in found["modalities"].values())
    assert found["modalities"]["letters"]["targets"] == 5 * TEST  # 4 letters and the end


@pytest.mark.parametrize("draws", [5, 1])
def test_the_scored_answer_is_the_best_one_for_the_draws(world: World, tmp_path: Path, draws: int) -> None:
    """A single draw is the most likely one."""
    config = dataclasses.replace(CONFIG, samples=3, draws=draws, batch_size=2, gallery_pairs=0)
    found = world.evaluate(world.copy(tmp_path / "run"), config, inputs=[("dark",)], targets=["light"])["pairs"][0]
    model, data, light = load_model(world.run), evaluation_data(world, config.seed), world.zoo["light"]
    samples = data.samples(("dark", "light"), 3)
    plan = TargetPlan(name="light", temperature=0.7 if draws > 1 else 0, steps=1)
    answers = []
    for number, one in enumerate(samples):
        given, numbers = {"dark": data.tokens("dark", [one] * draws)}, range(draws * number, draws * number + draws)
        values = light.decode(generate(model, given, [plan], config.seed, numbers)["light"])
        answers.append(light.constant_baseline(values) if draws > 1 else values[0])
    assert found["score"] == pytest.approx(light.score(answers, data.truth("light", samples)))
    assert len({answer.tobytes() for answer in answers}) == 3


def test_floor_and_ceiling_use_the_same_samples(world: World, result: dict[str, Any]) -> None:
    found = entry(result, "light", "letters")
    assert found["samples"] == 16
    assert found["reconstruction"] == {"exact": 1.0}  # letters are lossless
    assert found["score"]["exact"] > found["constant_baseline"]["exact"]
    found = entry(result, "letters", "dark")
    light = entry(result, "light", "dark")
    assert (found["constant_baseline"], found["reconstruction"]) == (
        light["constant_baseline"],
        light["reconstruction"],
    )
    # By hand: 0.02 of noise, clipped at half of the levels' ends, around each level.
    assert 0.5 * 0.02 * math.sqrt(2 / math.pi) < found["reconstruction"]["mae"] < 0.02 * math.sqrt(2 / math.pi) * 1.05
    # No constant map can be nearer on average than a few tenths of uniform levels.
    assert 0.2 < found["constant_baseline"]["mae"] < 0.5
    expected = (found["score"]["mae"] - found["constant_baseline"]["mae"]) / (
        found["reconstruction"]["mae"] - found["constant_baseline"]["mae"]
    )
    assert found["skill"] == pytest.approx(expected)


def test_evaluation_file_is_complete_and_names_its_inputs(world: World, result: dict[str, Any]) -> None:
    written = json.loads((world.run / "evaluation" / "evaluation.json").read_text())
    assert written == result
    assert written["skipped"] == {}
    assert written["identity"]["settings"] == dataclasses.asdict(CONFIG)
    pairs = [(pair["inputs"], pair["target"]) for pair in written["pairs"]]
    assert len(pairs) == 6
    assert pairs[0] == (["dark"], "light")  # both are pictures, in the order of the alphabet


def test_galleries_show_given_draws_and_truth(world: World, result: dict[str, Any]) -> None:
    first, second = result["galleries"]
    assert first["columns"] == ["dark", "light 1", "light 2", "true light"]
    with Image.open(world.run / "evaluation" / first["picture"]) as picture:
        assert picture.size == (4 * (CELL + GAP) - GAP, HEADER + 3 * (CELL + GAP) - GAP)
    assert (second["inputs"], second["target"]) == (["dark"], "letters")
    model, data = load_model(world.run), evaluation_data(world, CONFIG.seed)
    keys, plan = data.samples(("dark", "letters"), 3), TargetPlan(name="letters", top_p=0.95)
    rows = []
    for number, (key, true) in enumerate(zip(keys, data.truth("letters", keys), strict=True)):
        given = {"dark": data.tokens("dark", [key] * 2)}
        tokens = generate(model, given, [plan], CONFIG.seed, range(2 * number, 2 * number + 2))["letters"]
        rows.append({"key": data.split.key(key), "cells": [None, *world.zoo["letters"].decode(tokens), true]})
    assert second["rows"] == rows
    assert len({text for row in rows for text in row["cells"][1:]}) > 6, "of 9"


def test_ids_that_values_have_once_are_drawn_once(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In evaluation and in generation."""
    run, drawn = world.copy(tmp_path / "run"), list[list[int]]()
    Run(tokens=world.tokens, data=world.data).save(run)
    config = dataclasses.replace(CONFIG, temperature=50.0, samples=4, gallery_pairs=0)
    plan = GenerationPlan(inputs=("light",), targets=(TargetPlan(name="letters", temperature=50.0),), samples="10")

    def noted(*arguments: Any, **options: Any) -> dict[str, Any]:
        found = generate(*arguments, **options)
        drawn.extend(row.tolist() for row in found["letters"])
        return found

    for place in (evaluation, outputs):
        monkeypatch.setattr(place, "generate", noted)
    for ids in (frozenset[int](), frozenset(range(9))):
        monkeypatch.setattr(ModalityHandle, "single_ids", lambda handle, ids=ids: ids)
        for number in range(2):
            drawn.clear()
            if number:
                outputs.generate_to_folder(run, world.zoo, plan, tmp_path / f"out{len(ids)}")
            else:
                world.evaluate(run, config, inputs=[("light",)], targets=["letters"], overwrite=bool(ids))
            assert drawn and all(len(set(tokens)) == len(tokens) for tokens in drawn) == bool(ids)


def test_tokenizers_run_on_the_device_of_the_evaluation(world: World, tmp_path: Path) -> None:
    zoo = Zoo.from_tables(world.zoo.tables, world.zoo.path)
    for name in NAMES:
        zoo[name].device = "meta"
    config = dataclasses.replace(CONFIG, samples=2, gallery_pairs=0)
    run = world.copy(tmp_path / "run")
    evaluate(run, zoo, world.tokens, world.data, inputs=[("light",)], targets=["dark"], config=config)
    assert {zoo[name].device for name in NAMES} == {"cpu"}


# --- resuming


class Killed(Exception):
    """Simulates the end of the process."""


def test_interrupted_evaluation_resumes(
    world: World, result: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = world.copy(tmp_path / "run")
    calls: list[str] = []
    real = evaluation.generate

    def counted(model: FourM, given: Any, plan: Any, *rest: Any, **options: Any) -> Any:
        calls.append(f"{'+'.join(given)} {plan[0].name} {plan[0].temperature}")
        if len(calls) == 6:
            raise Killed
        return real(model, given, plan, *rest, **options)

    monkeypatch.setattr(evaluation, "generate", counted)
    with pytest.raises(Killed):
        world.evaluate(run)
    before = json.loads((run / "evaluation" / "unfinished.json").read_text())
    assert not (run / "evaluation" / "evaluation.json").exists()
    assert len(before["pairs"]) == 2
    assert len(before["galleries"]) == 1
    assert timeless(world.evaluate(run)) == timeless(result)
    assert calls.count("dark light 0.7") == 2  # two batches, once each
    assert len(calls) == 1 + 6 * 2 + 2  # all scored and drawn once, in batches of 10; one call was cut off
    seen = len(calls)
    assert timeless(world.evaluate(run)) == timeless(result)
    assert len(calls) == seen


def test_new_pairs_are_added_and_other_settings_start_over(world: World, tmp_path: Path) -> None:
    run = world.copy(tmp_path / "run")
    config = dataclasses.replace(CONFIG, samples=4, gallery_pairs=0)
    first = world.evaluate(run, config, inputs=[("light",)], targets=["dark"])
    assert [(pair["inputs"], pair["target"]) for pair in first["pairs"]] == [(["light"], "dark")]
    more = world.evaluate(run, config, inputs=[("light", "dark")], targets=["letters", "dark"])
    assert [(pair["inputs"], pair["target"]) for pair in more["pairs"]] == [
        (["light", "dark"], "letters"), (["light"], "dark")
    ]  # fmt: skip
    assert more["pairs"][1] == first["pairs"][0]
    with pytest.raises(FolderError, match=r"settings.seed was 0, is 1"):
        world.evaluate(run, dataclasses.replace(config, seed=1), inputs=[("dark",)])
    other = world.evaluate(run, dataclasses.replace(config, seed=1), inputs=[("dark",)], overwrite=True)
    assert [pair["inputs"] for pair in other["pairs"]] == [["dark"], ["dark"]]


def test_scores_depend_on_values_and_tokens_not_on_their_paths(world: World, tmp_path: Path) -> None:
    run, config = world.copy(tmp_path / "run"), dataclasses.replace(CONFIG, samples=4, gallery_pairs=0)
    asked: dict[str, Any] = {"inputs": [("light",)], "targets": ["dark"], "config": config}
    first = evaluate(run, world.zoo, world.tokens, world.data, **asked)
    shutil.copytree(world.tokens, tmp_path / "tokens")
    shutil.copytree(world.data, tmp_path / "data")
    again = evaluate(run, world.zoo, tmp_path / "tokens", tmp_path / "data", **asked)
    assert timeless(again) == timeless(first)
    reversed_tokens(tmp_path / "tokens", "test", "light")
    with pytest.raises(FolderError, match="samples was"):
        evaluate(run, world.zoo, tmp_path / "tokens", world.data, **asked)
    changed = evaluate(run, world.zoo, tmp_path / "tokens", world.data, overwrite=True, **asked)
    assert changed["pairs"][0]["score"] != first["pairs"][0]["score"]


def test_figures_are_recomputed_for_other_values_and_another_decoder(world: World, tmp_path: Path) -> None:
    """A tokenizer may get another decoder for the same tokens."""
    run, data = world.copy(tmp_path / "run"), tmp_path / "data"
    shutil.copytree(world.data, data)
    shutil.copytree(world.zoo["dark"].checkpoint.parent, tmp_path / "tokenizers")
    config = dataclasses.replace(CONFIG, samples=4, gallery_pairs=0)

    def asked(overwrite: bool = False) -> dict[str, Any]:
        zoo = Zoo.from_tables(world.zoo.tables, tmp_path / "registry.toml")
        pair: dict[str, Any] = {"inputs": [("light",)], "targets": ["dark"]}
        found = evaluate(run, zoo, world.tokens, data, config=config, overwrite=overwrite, **pair)
        return dict(found["pairs"][0])

    first = asked()
    assert asked() == first
    store, handle = shards.ValueStore(data), world.zoo["dark"]
    values = {key: 0.5 * store.read_key(handle, "train", key) for key in store.keys("train", "dark")}
    with writing_values(data, "train", "dark") as writer:
        for key, value in values.items():
            writer.add(key, *handle.write(value))
    with pytest.raises(FolderError, match=r"values.train/dark was"):
        asked()
    second = asked(overwrite=True)
    assert second["constant_baseline"] != first["constant_baseline"]
    assert second["reconstruction"] == first["reconstruction"]
    decoder = tmp_path / "tokenizers" / "dark"
    weights, card = load_checkpoint(decoder)
    lineage = [{"fingerprint": handle.fingerprint, "length": 99}]
    save_checkpoint(decoder, {"codes": 0.5 * weights["codes"]}, {**card, "lineage": lineage}, "Another decoder.\n")
    with pytest.raises(FolderError, match=r"decoders.dark was"):
        asked()
    assert asked(overwrite=True)["reconstruction"] != second["reconstruction"]


def test_incomplete_tokens_are_not_scored(world: World, tmp_path: Path) -> None:
    run, tokens = world.copy(tmp_path / "run"), tmp_path / "tokens"
    shutil.copytree(world.tokens, tokens)
    min((tokens / "test/dark").glob("*.json")).unlink()
    config = dataclasses.replace(CONFIG, samples=2, gallery_pairs=0)
    with pytest.raises(DataError, match="test/dark: has"):
        evaluate(run, world.zoo, tokens, world.data, config=config, inputs=[("light",)], targets=["dark"])
    found = evaluate(run, world.zoo, tokens, world.data, config=config, inputs=[("light",)])
    assert [pair["target"] for pair in found["pairs"]] == ["letters"] and "did not finish" in found["skipped"]["dark"]


def test_values_of_other_samples_with_the_same_keys_are_refused(world: World, tmp_path: Path) -> None:
    run, config = world.copy(tmp_path / "run"), dataclasses.replace(CONFIG, samples=2, gallery_pairs=0)
    shutil.copytree(world.tokens, tmp_path / "tokens")
    for name, seed in (("data", 0), ("other", 1)):
        shutil.copytree(world.data, tmp_path / name)
        of_source(tmp_path / name, "test", seed)
    note_source(tmp_path / "tokens", tmp_path / "data", {"test": shards.ValueStore(tmp_path / "data").source("test")})
    asked: dict[str, Any] = {"inputs": [("light",)], "targets": ["dark"], "config": config}
    evaluate(run, world.zoo, tmp_path / "tokens", tmp_path / "data", **asked)
    with pytest.raises(DataError, match="split test"):
        evaluate(run, world.zoo, tmp_path / "tokens", tmp_path / "other", **asked)


def test_a_missing_gallery_is_drawn_again_and_scores_are_not_replaced_by_none(world: World, tmp_path: Path) -> None:
    run, config = world.copy(tmp_path / "run"), dataclasses.replace(CONFIG, samples=2, draws=1, gallery_pairs=1)
    shutil.copytree(world.tokens, tmp_path / "tokens")
    asked: dict[str, Any] = {"inputs": [("light",)], "targets": ["dark"]}
    first = world.evaluate(run, config, **asked)
    picture = run / "evaluation" / first["galleries"][0]["picture"]
    drawn = picture.read_bytes()
    picture.unlink()
    assert timeless(world.evaluate(run, config, **asked)) == timeless(first) and picture.read_bytes() == drawn
    for name in ("dark", "letters"):
        shutil.rmtree(tmp_path / "tokens" / "test" / name)
    before = snapshot(run)
    with pytest.raises(DataError, match="not evaluated: dark, letters"):
        evaluate(run, world.zoo, tmp_path / "tokens", world.data, config=config, overwrite=True)
    assert snapshot(run) == before


# --- missing data


def changed_values(world: World, data: Path, place: str, broken: Collection[str] = (), kept: str = "") -> None:
    """Copy `place` (such as train/dark) to `data`: values of `broken` are unreadable, keys end in one of `kept`."""
    split, name = place.split("/")
    store = shards.ValueStore(world.data)
    with writing_values(data, split, name) as shard:
        for key in store.keys(split, name):
            value, extension = store.read_bytes(split, name, *store.find(split, key))
            if key[-1] in (kept or key):
                shard.add(key, b"no value" if key in broken else value, extension)


def test_unreadable_values_are_skipped_and_counted(world: World, tmp_path: Path) -> None:
    run, data = world.copy(tmp_path / "run"), tmp_path / "data"
    shutil.copytree(world.data, data)
    whole = evaluation_data(world, CONFIG.seed)
    chosen = whole.samples(("light", "dark"), 3)
    first = list(map(whole.split.key, chosen))
    rows = whole.values.rows("train", ["dark"])
    learned = [rows.key(rows[number]) for number in permuted(np.arange(len(rows)), len(rows), CONFIG.seed).tolist()]
    changed_values(world, data, "test/dark", {first[0]})
    changed_values(world, data, "test/light", {first[1]})
    changed_values(world, data, "train/dark", learned[:2])
    config = dataclasses.replace(CONFIG, samples=1, baseline_samples=4)
    asked: dict[str, Any] = {"inputs": [("light",)], "targets": ["dark"], "config": config}
    found = evaluate(run, world.zoo, world.tokens, data, **asked)
    assert found["galleries"][0]["rows"][0]["key"] == first[2]
    places = {place: set(reasons) for place, reasons in found["unreadable"].items()}
    assert places == {"test/dark": {first[0]}, "test/light": {first[1]}, "train/dark": set(learned[:2])}
    assert "damaged .npy" in found["unreadable"]["test/dark"][first[0]]
    handle, values = world.zoo["dark"], whole.values
    constant = handle.constant_baseline([values.read_key(handle, "train", key) for key in learned[2:6]])
    assert found["pairs"][0]["constant_baseline"] == pytest.approx(
        handle.score([constant], whole.truth("dark", chosen[2:]))
    )
    changed_values(world, data, "train/dark", learned)
    (run / "evaluation" / "evaluation.json").unlink()
    with pytest.raises(DataError, match=f"data/train/dark: none of {TRAIN} values can be read"):
        evaluate(run, world.zoo, world.tokens, data, **asked)


def test_default_pairs_that_cannot_be_scored_are_skipped(world: World, tmp_path: Path) -> None:
    run, data = world.copy(tmp_path / "run"), tmp_path / "data"
    shutil.copytree(world.data, data)
    changed_values(world, data, "test/dark", kept="02468")
    changed_values(world, data, "test/light", kept="13579")
    shutil.rmtree(data / "train" / "letters")
    config = dataclasses.replace(CONFIG, samples=2, gallery_pairs=1)
    found = evaluate(run, world.zoo, world.tokens, data, config=config)
    assert [(pair["inputs"], pair["target"]) for pair in found["pairs"]] == [
        (["letters"], "dark"), (["letters"], "light")
    ]  # fmt: skip
    assert found["unreadable"] == {}, "a sample without a value is no unreadable one"
    assert [entry["target"] for entry in found["galleries"]] == ["dark"], "the first one that can be"
    assert set(found["skipped"]) == {"dark to light", "light to dark", "dark to letters", "light to letters"}
    assert "no sample has values and tokens of dark, light" in found["skipped"]["dark to light"]
    assert "unknown modality in " in found["skipped"]["light to letters"]
    with pytest.raises(DataError, match="no sample has values and tokens of light, dark"):
        evaluate(run, world.zoo, world.tokens, data, config=config, inputs=[("light",)], targets=["dark"])


def test_other_samples_are_scored_in_a_folder_of_their_own(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, other, out = world.copy(tmp_path / "run"), tmp_path / "other", tmp_path / "scores" / "other"
    shutil.copytree(world.tokens, other / "tokens")
    shutil.copytree(world.data, other / "data")
    changed_values(world, other / "data", "test/dark", kept="02468")
    monkeypatch.setattr(
        "zoo_backbone.cli.main.open_run", lambda _: (Run(tokens=world.tokens, data=world.data), world.zoo)
    )
    words = ["eval", str(run), "--input", "light", "--target", "dark", "--samples", "99"]
    words += ["--set", "draws=1", "--set", "gallery_pairs=1"]

    def told(*more: Any) -> Any:
        return CliRunner().invoke(command, [*words, *map(str, more)])

    own = told("--tokens", world.tokens)
    assert own.exit_code == 0 and str(run / "evaluation" / "evaluation.json") in own.output
    before = snapshot(run)
    elsewhere = ("--tokens", other / "tokens")
    assert "--out FOLDER" in str(told(*elsewhere).exception)
    assert "--data DATA" in str(told(*elsewhere, "--out", out).exception), "those tokens do not say of what they are"
    assert not out.exists() and snapshot(run) == before
    elsewhere = (*elsewhere, "--data", other / "data", "--out")
    found = told(*elsewhere, out)
    assert found.exit_code == 0 and str(out / "evaluation.json") in found.output
    record = json.loads((out / "evaluation.json").read_text())
    assert [pair["samples"] for pair in record["pairs"]] == [TEST // 2]
    assert (out / record["galleries"][0]["picture"]).is_file() and snapshot(run) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    refused = told(*elsewhere, tmp_path / "mine").exception
    assert isinstance(refused, FolderError) and "holds notes.txt" in str(refused)
    assert isinstance(told(*elsewhere, run / "evaluation").exception, FolderError), "the scores of other values"


def test_cross_entropy_uses_only_known_tokens(world: World, tmp_path: Path) -> None:
    """Tokens of another codec count as missing, both as targets and as inputs."""
    run, config = world.copy(tmp_path / "run"), dataclasses.replace(CONFIG, samples=2, gallery_pairs=0)
    asked: dict[str, Any] = {"inputs": [("light",)], "targets": ["dark"], "config": config}
    shutil.copytree(world.tokens, tmp_path / "tokens")
    shutil.rmtree(tmp_path / "tokens" / "test" / "letters")
    lacking = evaluate(run, world.zoo, tmp_path / "tokens", world.data, **asked)
    assert set(lacking["skipped"]) == {"letters"} and lacking["cross_entropy"]["tokens_of"] == ["light", "dark"]
    assert set(lacking["cross_entropy"]["modalities"]) == {"dark"}
    card = json.loads((run / "config.json").read_text())
    card["fingerprints"]["letters"] = "f" * 64
    (run / "config.json").write_text(json.dumps(card))
    assert evaluate(run, world.zoo, world.tokens, world.data, **asked)["cross_entropy"] == lacking["cross_entropy"]


def test_previews_use_the_store_that_has_the_modality(world: World, tmp_path: Path) -> None:
    for store, lacks in (("own", "dark"), ("other", "letters")):
        shutil.copytree(world.tokens, tmp_path / store)
        shutil.rmtree(tmp_path / store / "test" / lacks)
    handles = {name: world.zoo[name] for name in NAMES}
    several = TrainConfig(datasets=(Dataset(tokens=tmp_path / "other"),), preview_every=1)

    def drawn(config: TrainConfig, **options: Any) -> list[str]:
        previews = Previews(handles, tmp_path / "own", config, **options)
        return list(previews(load_model(world.run), tmp_path, 1))

    assert drawn(several) == ["dark to light", "light to dark"], "no store has dark and letters"
    assert (tmp_path / "previews" / "step-00000001" / "dark-to-light.png").is_file()
    assert drawn(TrainConfig()) == ["light to letters", "letters to light"]
    named = (Preview(inputs=("light",), target="dark"), Preview(inputs=("dark",), target="letters"))
    assert drawn(dataclasses.replace(several, previews=named[:1])) == ["light to dark"]
    with pytest.raises(DataError, match="no held-out sample has all of dark, letters; leave that preview out"):
        drawn(dataclasses.replace(several, previews=named))
    strange = Preview(inputs=("light",), target="absent")
    with pytest.raises(ConfigError, match="light to absent"):
        drawn(TrainConfig(previews=(strange,), preview_every=1))
    assert drawn(dataclasses.replace(several, previews=(*named, strange)), inherited=True) == ["light to dark"]
    shutil.rmtree(tmp_path / "own" / "test")
    with pytest.raises(DataError, match=r"own has two modalities of this run; leave preview_every out"):
        drawn(TrainConfig())


# --- errors


def test_tokens_of_another_codec_are_left_out_or_refused(world: World, tmp_path: Path) -> None:
    run = world.copy(tmp_path / "run")
    card = json.loads((run / "config.json").read_text())
    card["fingerprints"]["letters"] = "f" * 64
    (run / "config.json").write_text(json.dumps(card))
    config = dataclasses.replace(CONFIG, samples=2, gallery_pairs=0)
    found = world.evaluate(run, config)
    assert {pair["target"] for pair in found["pairs"]} == {"light", "dark"}
    assert "the tokenizer in the model is ffffffffffff" in found["skipped"]["letters"]
    with pytest.raises(DataError, match=r"evaluate letters: .* is ffff"):
        world.evaluate(run, config, targets=["letters"])


def test_a_vocabulary_that_grew_is_the_same_codec(world: World, tmp_path: Path) -> None:
    run = world.copy(tmp_path / "run")
    before = world.zoo["letters"].fingerprint
    shutil.copytree(world.zoo["letters"].checkpoint.parent, tmp_path / "tokenizers")
    zoo = Zoo.from_tables(world.zoo.tables, tmp_path / "registry.toml")
    grown = tmp_path / "tokenizers" / "letters" / "config.json"
    config = json.loads(grown.read_text())
    grown.write_text(json.dumps({**config, "lineage": [{"fingerprint": before, "length": 9}]}))
    assert zoo["letters"].fingerprint != before
    small = dataclasses.replace(CONFIG, samples=2, gallery_pairs=0)
    found = evaluate(run, zoo, world.tokens, world.data, inputs=[("light",)], targets=["letters"], config=small)
    assert found["skipped"] == {}
    for lineage in ([], [{"fingerprint": before, "length": 1}]):  # of another, or without ids that the tokens have
        grown.write_text(json.dumps({**config, "lineage": lineage}) + "\n")
        with pytest.raises(DataError, match="evaluate letters"):
            again = Zoo.from_tables(world.zoo.tables, tmp_path / "registry.toml")
            evaluate(run, again, world.tokens, world.data, targets=["letters"], config=small)


# --- parts


def test_skill_score_by_hand() -> None:
    assert skill_score(0.6, 0.2, 1.0, True) == pytest.approx(0.5)
    assert skill_score(6.0, 5.0, 1.0, False) == pytest.approx(-0.25)
    assert skill_score(0.5, 0.5, 0.5, True) is None
    assert skill_score(0.5, 0.6, 0.4, True) is None  # the ceiling is worse than the floor
    assert skill_score(None, 0.6, 0.9, True) is None


def spec(name: str, layout: TokenLayout, derived_from: tuple[str, ...] = ()) -> ModalitySpec:
    size = 0 if isinstance(layout, PatchesLayout | EmbeddingsLayout) else 10
    value = ValueSpec(kind="object")
    return ModalitySpec(
        name=name, summary="fake", value=value, layout=layout, vocab_size=size, derived_from=derived_from
    )


SPECS = [
    spec("a_text", SequenceLayout(max_length=4, end=0, sentinel_start=1, num_sentinels=2)),
    spec("b_edges", GridLayout(shape=(2, 2)), ("d_photo",)),
    spec("c_field", GridLayout(shape=(2, 2))),
    spec("d_photo", GridLayout(shape=(2, 2))),
    spec("e_pixels", PatchesLayout(shape=(2, 2), dim=3), ("d_photo",)),
    spec("f_vectors", EmbeddingsLayout(max_length=3, dim=3), ("a_text",)),
]


def test_default_pairs_are_single_inputs_with_informative_pairs_first() -> None:
    pairs = pairs_of(SPECS, EmbeddingLayout(SPECS))
    assert pairs[:3] == [(("d_photo",), "c_field"), (("d_photo",), "b_edges"), (("d_photo",), "a_text")]
    assert pairs[3:8] == [((name,), "d_photo") for name in ("c_field", "b_edges", "e_pixels", "a_text", "f_vectors")]
    assert len(pairs) == len(set(pairs)) == 4 * 3 + 2 * 4
    assert not {target for _, target in pairs} & {"e_pixels", "f_vectors"}


def test_default_pairs_respect_the_models_inputs_and_targets() -> None:
    everything = pairs_of(SPECS, EmbeddingLayout(SPECS))
    first, second = everything[0][0][0], everything[0][1]
    found = pairs_of(SPECS, layout_for(PublishedConfig(inputs_only=(second,), targets_only=(first,)), SPECS))
    assert set(found) == {pair for pair in everything if pair[0] != (first,) and pair[1] != second} and found


def test_the_table_fits_80_columns() -> None:
    names = [f"modality_number_{i}" for i in range(12)]
    pairs = [
        {"inputs": [a], "target": b, "skill": None if i == 3 else 0.01 * i, "score": {"mae": None}}
        for a in names for i, b in enumerate(names) if a != b
    ]  # fmt: skip
    result = {"pairs": pairs, "modalities": {name: {"metrics": [{"name": "mae"}]} for name in names}}
    console = Console(width=80, no_color=True)
    with console.capture() as capture:
        console.print(skill_table(result))
    text = capture.get()
    assert max(map(len, text.splitlines())) <= 80
    assert all(f"{name} " in text for name in names) and "…" not in text  # no name or number is cut
    rows = [line.split() for line in text.splitlines() if line.strip().startswith("modality_number_0 ")]
    assert [cell for row in rows for cell in row[1:]].count("0.07") == 1


def test_sheets_enlarge_small_pictures_by_whole_factors(tmp_path: Path) -> None:

    small = Image.new("RGB", (2, 2), "red")
    small.putpixel((1, 0), (0, 0, 255))
    assert write_sheet(tmp_path / "x.png", ["text", "picture"], [["hello", small]])
    with Image.open(tmp_path / "x.png") as sheet:
        assert sheet.size == (TEXT + GAP + CELL, HEADER + CELL)
        middle = TEXT + GAP + CELL // 2
        assert sheet.getpixel((middle - 1, HEADER + CELL // 2 - 1)) == (255, 0, 0)
        assert sheet.getpixel((middle, HEADER + CELL // 2 - 1)) == (0, 0, 255)
        assert sheet.crop((0, HEADER, TEXT, HEADER + CELL)).convert("L").getextrema()[0] < 128  # the text is drawn


# --- generation to a folder


def test_model_and_tokenizers_run_on_the_device(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is the CPU under another name."""
    asked: list[str] = []

    def loaded(folder: Path, device: str) -> FourM:
        asked.append(device)
        return load_model(folder, device=device)

    for module in (evaluation, outputs):
        monkeypatch.setattr(module, "load_model", loaded)
    run, config = world.copy(tmp_path / "run"), dataclasses.replace(CONFIG, samples=2, gallery_pairs=0)
    Run(tokens=world.tokens, data=world.data).save(run)
    zoo, other = (Zoo.from_tables(world.zoo.tables, world.zoo.path) for _ in range(2))
    pair: dict[str, Any] = {"inputs": [("light",)], "targets": ["dark"]}
    evaluate(run, zoo, world.tokens, world.data, config=config, device="cpu:0", **pair)
    recipe = GenerationPlan(inputs=("light",), targets=(TargetPlan(name="dark"),), samples="1")
    outputs.generate_to_folder(run, other, recipe, tmp_path / "out", device="cpu:0")
    assert asked == ["cpu:0", "cpu:0"]
    assert [zoo[name].device for name in NAMES] == ["cpu:0", "cpu:0", "cpu:0"]
    assert [other[name].device for name in NAMES] == ["cpu:0", "cpu:0", "cpu"]


def test_each_draw_is_written_to_its_own_sample(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "BATCH", 4)  # cuts between the draws of a sample
    run, plan = world.copy(tmp_path / "run"), [TargetPlan(name="dark", temperature=0)]
    Run(tokens=world.tokens, data=world.data).save(run)
    keys = [f"test-{number:03}" for number in (7, 2, 5)]

    def made(out: str, keys: list[str], draws: int) -> dict[str, str]:
        recipe = GenerationPlan(inputs=("light",), targets=tuple(plan), keys=tuple(keys), draws=draws)
        places = outputs.generate_to_folder(run, world.zoo, recipe, tmp_path / out)
        assert places == sorted(tmp_path / out / key / str(draw) for key in keys for draw in range(draws))
        tokens = [json.loads((place / "dark.tokens.json").read_text())["tokens"] for place in places]
        return {f"{place.parent.name}/{place.name}": str(grid) for place, grid in zip(places, tokens, strict=True)}

    alone = {key: made(key, [key], 1)[f"{key}/0"] for key in keys}
    assert len(set(alone.values())) == 3
    assert made("together", keys, 3) == {f"{key}/{draw}": alone[key] for key in keys for draw in range(3)}


def test_generation_does_not_write_outside_its_folder(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = world.copy(tmp_path / "run"), tmp_path / "out"
    Run(tokens=world.tokens, data=world.data).save(run)
    recipe = GenerationPlan(inputs=("light",), targets=(TargetPlan(name="dark"),), samples="2")

    def led_out(*arguments: Any) -> Any:
        request = Request(*arguments)
        request.names[1] = "../kept"
        return request

    monkeypatch.setattr(outputs, "Request", led_out)
    with pytest.raises(DataError, match=r"test: sample '../kept': a key has no .*no file can be written for it"):
        outputs.generate_to_folder(run, world.zoo, recipe, out)
    assert not out.exists()


@pytest.mark.parametrize("other", ["nothing", "damaged", "seed", "input", "weights"])
def test_a_killed_generation_resumes(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str) -> None:
    """The folder is refused instead if a dependency has changed."""
    monkeypatch.setattr(outputs, "BATCH", 4)
    run, out = world.copy(tmp_path / "run"), tmp_path / "out"
    Run(tokens=world.tokens, data=world.data).save(run)
    text = tmp_path / "a.txt"
    text.write_text("ab")
    plan = GenerationPlan(inputs=("light", f"letters={text}"), targets=(TargetPlan(name="dark"),), samples="10")
    asked: list[int] = []
    limit = [8]

    def counted(*arguments: Any, **more: Any) -> dict[str, Any]:
        asked.extend(arguments[4])
        if len(asked) > limit[0]:
            raise KeyboardInterrupt
        return generate(*arguments, **more)

    def made(out: Path, plan: GenerationPlan = plan, overwrite: bool = False) -> dict[str, bytes]:
        outputs.generate_to_folder(run, world.zoo, plan, out, overwrite=overwrite)
        files = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
        return {name: data for name, data in files.items() if not name.startswith("run.json")}

    monkeypatch.setattr(outputs, "generate", counted)
    with pytest.raises(KeyboardInterrupt):
        made(out)
    assert len(list(out.glob("test-*/0/dark.tokens.json"))) == 8 and not (out / "plan.toml").exists()
    if other == "seed":
        plan = dataclasses.replace(plan, seed=1)
    if other == "input":
        text.write_text("ba")
    if other == "weights":
        model = load_model(run)
        torch.nn.init.zeros_(model.output["letters"])
        save_model(model, run, {key: json.loads((run / "config.json").read_text())[key] for key in ("fingerprints",)})
    if other == "damaged":
        lines = (out / "done.txt").read_text().splitlines()
        (out / "done.txt").write_text("\n".join([*lines[:7], lines[7][:5]]))
    if other not in ("nothing", "damaged"):
        with pytest.raises(FolderError, match="out: holds another generation"):
            made(out, plan)
    asked.clear()
    limit[0] = 100
    ended = made(out, plan, overwrite=other not in ("nothing", "damaged"))
    assert asked == {"nothing": [8, 9], "damaged": [7, 8, 9]}.get(other, list(range(10)))
    assert ended == made(tmp_path / "whole", plan)
    asked.clear()
    assert made(out, plan) == ended and not asked
