"""Evaluation of a backbone that learned a mapping between fake modalities, through real stores, handles and files."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backbone_samples import sequence, spec
from click.testing import CliRunner
from golden_formats import GOLDEN
from PIL import Image
from retrieval_world import train
from rich.console import Console
from small_modalities import EXAMPLE, LETTERS, LEVELS, installed, sample, small_zoo, write, write_values
from stores import of_source, writing_values
from token_stores import note_source, reversed_tokens, stored_tokens, write_tokens
from toy_plugins import snapshot

from tokenizers_zoo import Zoo
from tokenizers_zoo.contract.handle import ModalityHandle
from tokenizers_zoo.contract.layouts import EmbeddingsLayout, GridLayout, PatchesLayout
from tokenizers_zoo.contract.spec import Metric
from tokenizers_zoo.errors import ConfigError, DataError
from tokenizers_zoo.files.checkpoint import load_checkpoint, save_checkpoint
from tokenizers_zoo.files.run_folder import FolderError
from tokenizers_zoo.records.io import as_json, read_table, write_table
from tokenizers_zoo.stores import shards
from tokenizers_zoo.stores.tokens import SUMMARY, TokenStore
from tokenizers_zoo.train.batches import permuted
from zoo_backbone.cli.main import backbone as command
from zoo_backbone.cli.main import score_table
from zoo_backbone.generate import TargetPlan, generate
from zoo_backbone.generate.plans import GenerationPlan
from zoo_backbone.learn.checkpoint import layout_for, load_model
from zoo_backbone.measure import evaluate as evaluation
from zoo_backbone.measure.compare import compare_runs, write_comparison
from zoo_backbone.measure.evaluation import (
    PAIR_METRICS,
    EvaluatedModality,
    Figure,
    PairMetric,
    PairPredictions,
    PairScore,
    read_evaluation,
    skill_score,
)
from zoo_backbone.measure.evaluation_data import EvaluationData, pairs_of
from zoo_backbone.measure.gallery import CELL, GAP, LINE, Previews
from zoo_backbone.measure.growth import pair_changes
from zoo_backbone.measure.page import write_report
from zoo_backbone.model.config import EvaluationConfig, MaskingConfig, Mixture, Preview, TrainConfig, TrainingStore
from zoo_backbone.model.embedding_layout import EmbeddingLayout
from zoo_backbone.model.fourm import FourM
from zoo_backbone.model.published import PublishedConfig
from zoo_backbone.model.run import Run
from zoo_backbone.use import generate_to_folder as outputs
from zoo_backbone.use.any_to_any import AnyToAny
from zoo_backbone.use.bundle import card_of
from zoo_backbone.use.plan_request import PlanRequest

NAMES = ("light", "dark", "letters")
TRAIN, TEST = 96, 24
CONFIG = EvaluationConfig(
    samples=16, baseline_samples=20, loss_samples=24, batch_size=10, draws=4, gallery_pairs=2, gallery_samples=3,
    gallery_draws=2,
)  # fmt: skip
SMALL = dataclasses.replace(CONFIG, samples=4, gallery_pairs=0)
LIGHT_TO_DARK: dict[str, Any] = {"inputs": [("light",)], "targets": ["dark"]}


@dataclasses.dataclass(frozen=True)
class World:
    root: Path
    zoo: Zoo
    run: Path
    tokens: Path
    data: Path

    def evaluate(self, run: Path, config: EvaluationConfig = SMALL, **options: Any) -> dict[str, Any]:
        """Evaluate a run with some of `inputs` and `targets`, or another `zoo`, `tokens` or `data`; return the JSON."""
        named = {key: tuple(options.pop(key)) for key in ("inputs", "targets") if key in options}
        zoo, tokens, data = (options.pop(name, getattr(self, name)) for name in ("zoo", "tokens", "data"))
        config = dataclasses.replace(config, **named)
        return as_json(evaluation.evaluate(run, zoo, tokens, data, config=config, **options))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Values and tokens on disk, and a backbone that has learned to predict the other modalities from light."""
    root, generator = tmp_path_factory.mktemp("world"), np.random.default_rng(0)
    with installed(tmp_path_factory.mktemp("site"), "fake", {"light": EXAMPLE, "dark": EXAMPLE, "letters": LETTERS}):
        zoo = small_zoo(root, NAMES)
        for split, count in (("train", TRAIN), ("test", TEST)):
            samples = {f"{split}-{i:03}": sample(generator) for i in range(count)}
            for name in NAMES:
                write(root, zoo, split, name, {key: values[name] for key, values in samples.items()})
        mixtures = (Mixture(inputs=("light",), targets=("dark", "letters")),)
        train(zoo, root, NAMES, MaskingConfig(input_budget=4, target_budget=9, mixtures=mixtures), 120)
        Run(tokens=root / "tokens", data=root / "data").save(root / "run")
        yield World(root=root, zoo=zoo, run=root / "run", tokens=root / "tokens", data=root / "data")


@pytest.fixture(scope="module")
def result(world: World) -> dict[str, Any]:
    return world.evaluate(world.run, CONFIG)


@pytest.fixture
def run(world: World, tmp_path: Path) -> Path:
    """A copy of the run without its evaluation."""
    copy = shutil.copytree(world.run, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation"))
    Run.load(world.run).save(copy)
    return copy


@pytest.fixture
def tokens(world: World, tmp_path: Path) -> Path:
    """A copy of the tokens that a test may change."""
    return shutil.copytree(world.tokens, tmp_path / "tokens")


@pytest.fixture
def data(world: World, tmp_path: Path) -> Path:
    """A copy of the values that a test may change."""
    return shutil.copytree(world.data, tmp_path / "data")


def evaluation_data(world: World) -> EvaluationData:
    return EvaluationData(load_model(world.run), world.zoo, world.tokens, world.data, CONFIG)


def generated(world: World, run: Path, plan: GenerationPlan, out: Path) -> list[Path]:
    return outputs.generate_to_folder(AnyToAny.from_pretrained(run, zoo=world.zoo), plan, out, world.tokens)


def entry(result: dict[str, Any], input_name: str, target: str) -> dict[str, Any]:
    (pair_scores,) = [pair for pair in result["pairs"] if (pair["inputs"], pair["target"]) == ([input_name], target)]
    return pair_scores


def skill(result: dict[str, Any], input_name: str, target: str) -> float:
    value: float = entry(result, input_name, target)["figures"]["skill"]["value"]
    return value


def without_seconds(result: dict[str, Any]) -> dict[str, Any]:
    return {**result, "seconds": 0}


# --- figures


def test_a_learned_mapping_has_a_high_skill_score(world: World, result: dict[str, Any]) -> None:
    assert read_table(world.run / "evaluation" / "evaluation.json") == result
    assert result["skipped"] == {} and len(result["pairs"]) == 6
    assert result["identity"]["settings"] == dataclasses.asdict(CONFIG) | {"samples": None}
    assert skill(result, "light", "dark") > 0.8
    assert skill(result, "light", "letters") > 0.8
    assert skill(result, "dark", "letters") < 0.5  # never trained on
    cross_entropy = result["cross_entropy"]
    assert cross_entropy["samples"] == TEST and set(cross_entropy["modalities"]) == {"dark", "letters"}
    assert cross_entropy["modalities"]["dark"]["uniform"] == pytest.approx(math.log(LEVELS))
    assert all(loss["nats"] < 0.3 * loss["uniform"] for loss in cross_entropy["modalities"].values())
    assert cross_entropy["modalities"]["letters"]["targets"] == 5 * TEST  # 4 letters and the end


@pytest.mark.parametrize("draws", [5, 1])
def test_several_draws_are_scored_by_their_best_constant(world: World, run: Path, draws: int) -> None:
    """A single draw is the most likely one."""
    config = dataclasses.replace(SMALL, samples=3, draws=draws, batch_size=2)
    pair_scores = world.evaluate(run, config, inputs=[("dark",)], targets=["light"])["pairs"][0]
    model, data, light = load_model(world.run), evaluation_data(world), world.zoo["light"]
    samples = data.samples(("dark", "light"), 3)
    plan = TargetPlan(name="light", temperature=0.7 if draws > 1 else 0, steps=1)
    answers = []
    for number, sample_row in enumerate(samples):
        inputs = {"dark": data.tokens("dark", [sample_row] * draws)}
        numbers = range(draws * number, draws * number + draws)
        values = light.decode(generate(model, inputs, [plan], config.seed, numbers)["light"])
        answers.append(light.constant_baseline(values) if draws > 1 else values[0])
    assert pair_scores["score"] == pytest.approx(light.score(answers, data.truth("light", samples)))
    assert draws == 1 or len({answer.tobytes() for answer in answers}) == 3


def test_only_the_whole_view_of_cropped_samples_is_scored(
    world: World, run: Path, tokens: Path, tmp_path: Path
) -> None:
    cropped = shutil.copytree(tokens, tmp_path / "cropped")
    for name in NAMES:
        metadata, rows = TokenStore(tokens).open("test", name).metadata, stored_tokens(tokens, "test", name)
        keys = list(rows)
        second_views = dict(zip(keys, list(rows.values())[::-1], strict=True))
        remaining_rows = {key: rows[key] for key in keys[5 if name == "dark" else 0 :]}
        views = {key: [row, second_views[key]] for key, row in remaining_rows.items()}
        write_tokens(tokens, "test", metadata, remaining_rows)
        write_tokens(cropped, "test", metadata, views, keys=keys, crops=2)
    config = dataclasses.replace(SMALL, samples=TEST)
    uncropped_pairs = world.evaluate(run, config, tokens=tokens, out=tmp_path / "a", **LIGHT_TO_DARK)["pairs"]
    assert world.evaluate(run, config, tokens=cropped, out=tmp_path / "b", **LIGHT_TO_DARK)["pairs"] == uncropped_pairs
    assert uncropped_pairs[0]["samples"] == TEST - 5


def test_baseline_and_reconstruction_use_the_same_samples(result: dict[str, Any]) -> None:
    pair_scores = entry(result, "light", "letters")
    assert pair_scores["samples"] == 16
    assert pair_scores["reconstruction"] == {"exact": 1.0}  # letters are lossless
    assert pair_scores["score"]["exact"] > pair_scores["constant_baseline"]["exact"]
    pair_scores = entry(result, "letters", "dark")
    light = entry(result, "light", "dark")
    assert all(pair_scores[bound] == light[bound] for bound in ("constant_baseline", "reconstruction"))
    score, floor, ceiling = (pair_scores[name]["mae"] for name in ("score", "constant_baseline", "reconstruction"))
    # By hand: 0.02 of noise, clipped at half of the levels' ends, around each level.
    assert 0.5 < ceiling / (0.02 * math.sqrt(2 / math.pi)) < 1.05
    # No constant map can be nearer on average than a few tenths of uniform levels.
    assert 0.2 < floor < 0.5
    assert skill(result, "letters", "dark") == pytest.approx((score - floor) / (ceiling - floor))


def test_a_new_metric_of_pairs_is_measured_and_shown_everywhere(
    world: World, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The registration is all that a metric of the whole evaluation needs."""

    def coverage(predictions: PairPredictions) -> Figure:
        samples = zip(predictions.draws, predictions.truth, strict=True)
        covered = [np.mean((np.min(draws, 0) <= truth) & (truth <= np.max(draws, 0))) for draws, truth in samples]
        return Figure(value=float(np.mean(covered)), resampled=tuple(map(float, np.resize(covered, 100))))

    metric = PairMetric(name="coverage", meaning="share of truths between the draws", measure=coverage)
    monkeypatch.setitem(PAIR_METRICS, metric.name, metric)
    shutil.copytree(run, tmp_path / "second")
    for folder in (run, tmp_path / "second"):
        evaluated = world.evaluate(folder, CONFIG, **LIGHT_TO_DARK)
    value = evaluated["pairs"][0]["figures"]["coverage"]["value"]
    assert 0 < value < 1
    record = read_evaluation(run / "evaluation" / "evaluation.json")
    console = Console(width=80, no_color=True)
    with console.capture() as capture:
        console.print(score_table(record))
    assert "coverage" in capture.get() and f"{value:.2f}" in capture.get()
    page = write_report(world.zoo, run).read_text(encoding="utf-8")
    assert metric.meaning in page and f'<td class="n">{value:.2f}</td>' in page
    rows = compare_runs([run, tmp_path / "second"])["metrics"]["coverage"]
    assert [entry["value"] for entry in rows[0]["runs"]] == [value, value]
    write_comparison(compare_runs([run, tmp_path / "second"]), tmp_path / "compare.html")
    assert metric.meaning in (tmp_path / "compare.html").read_text(encoding="utf-8")
    assert {change.metric for change in pair_changes(run, tmp_path / "second")} == {"skill", "coverage"}
    card = card_of(load_model(run), run, "bundle", {}, with_plugins=False)
    assert "| light to dark | " in card and f" | {value:.2f} | " in card


def test_galleries_show_inputs_draws_and_truth(world: World, result: dict[str, Any]) -> None:
    first, second = result["galleries"]
    assert first["columns"] == ["dark", "light 1", "light 2", "true light"]
    with Image.open(world.run / "evaluation" / first["picture"]) as picture:
        assert picture.width == 4 * (CELL + GAP) - GAP and picture.height >= LINE + 3 * (CELL + GAP) - GAP
    assert (second["inputs"], second["target"]) == (["dark"], "letters")
    model, data = load_model(world.run), evaluation_data(world)
    keys, plan = data.samples(("dark", "letters"), 3), TargetPlan(name="letters", top_p=0.95)
    rows = []
    for number, (key, true) in enumerate(zip(keys, data.truth("letters", keys), strict=True)):
        inputs = {"dark": data.tokens("dark", [key] * 2)}
        tokens = generate(model, inputs, [plan], CONFIG.seed, range(2 * number, 2 * number + 2))["letters"]
        rows.append({"key": data.split.key(key), "cells": [None, *world.zoo["letters"].decode(tokens), true]})
    assert second["rows"] == rows
    assert len({text for row in rows for text in row["cells"][1:]}) > 6, "of 9"


def test_single_ids_are_drawn_once(world: World, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In evaluation and in generation."""
    config = dataclasses.replace(CONFIG, samples=1, draws=1, gallery_pairs=1, gallery_samples=12)
    plan = GenerationPlan(inputs=("dark",), targets=(TargetPlan(name="letters", temperature=50.0),), samples="10")
    for ids in (frozenset[int](), frozenset(range(9))):
        monkeypatch.setattr(ModalityHandle, "single_ids", lambda handle, ids=ids: ids)
        result = world.evaluate(run, config, inputs=[("dark",)], targets=["letters"], overwrite=bool(ids))
        paths = generated(world, run, plan, tmp_path / f"out{len(ids)}")
        gallery_texts = [text for row in result["galleries"][0]["rows"] for text in row["cells"][1:-1]]
        for texts in (gallery_texts, [(path / "letters.txt").read_text() for path in paths]):
            assert texts and all(len(set(text)) == len(text) for text in texts) == bool(ids)


# --- resuming


def test_interrupted_evaluation_resumes(
    world: World, run: Path, result: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pairs and galleries that were finished are not computed again."""
    calls: list[str] = []

    def cut_off(model: FourM, inputs: Any, plan: Any, *rest: Any, **options: Any) -> Any:
        calls.append(plan[0].name)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return generate(model, inputs, plan, *rest, **options)

    monkeypatch.setattr("zoo_backbone.generate.request.generate", cut_off)
    with pytest.raises(KeyboardInterrupt):
        world.evaluate(run, CONFIG)
    before = read_table(run / "evaluation" / "unfinished.json")
    assert not (run / "evaluation" / "evaluation.json").exists()
    assert (len(before["pairs"]), len(before["galleries"])) == (2, 1)
    assert without_seconds(world.evaluate(run, CONFIG)) == without_seconds(result)
    assert len(calls) == 1 + 6 * 2 + 2, "six pairs in batches of 10, and two galleries; one call was cut off"
    assert without_seconds(world.evaluate(run, CONFIG)) == without_seconds(result) and len(calls) == 15


def test_new_pairs_are_added_and_other_settings_start_over(world: World, run: Path) -> None:
    first = world.evaluate(run, **LIGHT_TO_DARK)
    assert [(pair["inputs"], pair["target"]) for pair in first["pairs"]] == [(["light"], "dark")]
    second = world.evaluate(run, inputs=[("light", "dark")], targets=["letters", "dark"])
    assert [(pair["inputs"], pair["target"]) for pair in second["pairs"]] == [
        (["light", "dark"], "letters"), (["light"], "dark")
    ]  # fmt: skip
    assert second["pairs"][1] == first["pairs"][0]
    with pytest.raises(FolderError, match=r"settings.seed was 0, is 1"):
        world.evaluate(run, dataclasses.replace(SMALL, seed=1), inputs=[("dark",)])
    reseeded = world.evaluate(run, dataclasses.replace(SMALL, seed=1), inputs=[("dark",)], overwrite=True)
    assert [pair["inputs"] for pair in reseeded["pairs"]] == [["dark"], ["dark"]]


def test_scores_depend_on_tokens_values_and_decoders_not_on_their_paths(
    world: World, run: Path, tokens: Path, data: Path, tmp_path: Path
) -> None:
    """A tokenizer may get another decoder for the same tokens."""
    first = world.evaluate(run, **LIGHT_TO_DARK)
    shutil.copytree(world.root / "tokenizers", tmp_path / "tokenizers")

    def evaluated(**options: Any) -> dict[str, Any]:
        zoo = Zoo.from_tables(world.zoo.tables, tmp_path / "registry.toml")
        return world.evaluate(run, zoo=zoo, tokens=tokens, data=data, **LIGHT_TO_DARK, **options)

    def replaced(changed_field: str) -> dict[str, Any]:
        with pytest.raises(FolderError, match=rf"{changed_field} was"):
            evaluated()
        return dict(evaluated(overwrite=True)["pairs"][0])

    assert without_seconds(evaluated()) == without_seconds(first)
    reversed_tokens(tokens, "test", "light")
    second = replaced("samples")
    assert second["score"] != first["pairs"][0]["score"]
    store, handle = shards.ValueStore(data), world.zoo["dark"]
    values = {key: 0.5 * store.read_key(handle, "train", key) for key in store.keys("train", "dark")}
    write_values(tmp_path, world.zoo, "train", "dark", values)
    third = replaced("values.train/dark")
    assert third["constant_baseline"] != second["constant_baseline"]
    assert third["reconstruction"] == second["reconstruction"]
    decoder = tmp_path / "tokenizers" / "dark"
    weights, card = load_checkpoint(decoder)
    lineage = [{"fingerprint": handle.fingerprint, "length": 99}]
    save_checkpoint(decoder, {"codes": 0.5 * weights["codes"]}, {**card, "lineage": lineage}, "Another decoder.\n")
    assert replaced("decoders.dark")["reconstruction"] != third["reconstruction"]


def test_incomplete_tokens_are_not_scored(world: World, run: Path, tokens: Path) -> None:
    for file in ("shard-00000.json", SUMMARY):
        (tokens / "test/dark" / file).unlink()
    with pytest.raises(DataError, match="test/dark: has"):
        world.evaluate(run, tokens=tokens, **LIGHT_TO_DARK)
    result = world.evaluate(run, tokens=tokens, inputs=[("light",)])
    assert [pair["target"] for pair in result["pairs"]] == ["letters"] and "did not finish" in result["skipped"]["dark"]


def test_values_of_other_samples_with_the_same_keys_are_refused(
    world: World, run: Path, tokens: Path, data: Path, tmp_path: Path
) -> None:
    other_data = shutil.copytree(data, tmp_path / "other")
    for seed, folder in enumerate((data, other_data)):
        of_source(folder, "test", seed)
    note_source(tokens, data, {"test": shards.ValueStore(data).source("test")})
    world.evaluate(run, tokens=tokens, data=data, **LIGHT_TO_DARK)
    with pytest.raises(DataError, match="split test"):
        world.evaluate(run, tokens=tokens, data=other_data, **LIGHT_TO_DARK)


def test_missing_galleries_are_redrawn_and_scores_survive_missing_tokens(world: World, run: Path, tokens: Path) -> None:
    config = dataclasses.replace(SMALL, draws=1, gallery_pairs=1)
    first = world.evaluate(run, config, **LIGHT_TO_DARK)
    picture = run / "evaluation" / first["galleries"][0]["picture"]
    picture_bytes = picture.read_bytes()
    picture.unlink()
    assert without_seconds(world.evaluate(run, config, **LIGHT_TO_DARK)) == without_seconds(first)
    assert picture.read_bytes() == picture_bytes
    for name in ("dark", "letters"):
        shutil.rmtree(tokens / "test" / name)
    before = snapshot(run)
    with pytest.raises(DataError, match="not evaluated: dark, letters"):
        world.evaluate(run, config, tokens=tokens, overwrite=True)
    assert snapshot(run) == before


# --- missing data


def changed_values(world: World, data: Path, folder: str, broken: Collection[str] = (), key_endings: str = "") -> None:
    """Copy `folder` (such as train/dark) to `data`: keys with these endings; values of `broken` are unreadable."""
    split, name = folder.split("/")
    store = shards.ValueStore(world.data)
    with writing_values(data, split, name) as shard:
        for key in store.keys(split, name):
            value, extension = store.read_bytes(split, name, *store.find(split, key))
            if key[-1] in (key_endings or key):
                shard.add(key, b"no value" if key in broken else value, extension)


def test_unreadable_values_are_skipped_and_counted(world: World, run: Path, data: Path) -> None:
    intact_data = evaluation_data(world)
    samples = intact_data.samples(("light", "dark"), 3)
    first = list(map(intact_data.split.key, samples))
    rows = intact_data.values.rows("train", ["dark"])
    learned = [rows.key(rows[number]) for number in permuted(np.arange(len(rows)), len(rows), CONFIG.seed).tolist()]
    changed_values(world, data, "test/dark", {first[0]})
    changed_values(world, data, "test/light", {first[1]})
    changed_values(world, data, "train/dark", learned[:2])
    config = dataclasses.replace(CONFIG, samples=1, baseline_samples=4)
    result = world.evaluate(run, config, data=data, **LIGHT_TO_DARK)
    assert result["galleries"][0]["rows"][0]["key"] == first[2]
    unreadable_keys = {folder: set(reasons) for folder, reasons in result["unreadable"].items()}
    assert unreadable_keys == {"test/dark": {first[0]}, "test/light": {first[1]}, "train/dark": set(learned[:2])}
    assert "damaged .npy" in result["unreadable"]["test/dark"][first[0]]
    handle, values = world.zoo["dark"], intact_data.values
    constant = handle.constant_baseline([values.read_key(handle, "train", key) for key in learned[2:6]])
    expected = handle.score([constant], intact_data.truth("dark", samples[2:]))
    assert result["pairs"][0]["constant_baseline"] == pytest.approx(expected)
    changed_values(world, data, "train/dark", learned)
    (run / "evaluation" / "evaluation.json").unlink()
    with pytest.raises(DataError, match=f"data/train/dark: .*{TRAIN} values"):
        world.evaluate(run, config, data=data, **LIGHT_TO_DARK)


def test_default_pairs_that_cannot_be_scored_are_skipped(world: World, run: Path, data: Path) -> None:
    changed_values(world, data, "test/dark", key_endings="02468")
    changed_values(world, data, "test/light", key_endings="13579")
    shutil.rmtree(data / "train" / "letters")
    config = dataclasses.replace(SMALL, gallery_pairs=1)
    result = world.evaluate(run, config, data=data)
    assert [(pair["inputs"], pair["target"]) for pair in result["pairs"]] == [
        (["letters"], "dark"), (["letters"], "light")
    ]  # fmt: skip
    assert result["unreadable"] == {}, "a sample without a value is no unreadable one"
    assert [entry["target"] for entry in result["galleries"]] == ["dark"]
    assert set(result["skipped"]) == {"dark to light", "light to dark", "dark to letters", "light to letters"}
    assert "dark, light" in result["skipped"]["dark to light"]
    with pytest.raises(DataError, match="light, dark"):
        world.evaluate(run, config, data=data, **LIGHT_TO_DARK)


def test_other_tokens_are_scored_in_a_separate_folder(
    world: World, run: Path, tokens: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "scores" / "other"
    changed_values(world, data, "test/dark", key_endings="02468")
    monkeypatch.setattr("zoo_backbone.cli.zoo_of", lambda _: world.zoo)
    words = ["eval", str(run), "--input", "light", "--target", "dark", "--samples", "99"]
    words += ["--set", "draws=1", "--set", "gallery_pairs=1"]

    def run_eval(*options: Any) -> Any:
        return CliRunner().invoke(command, [*words, *map(str, options)])

    default_run = run_eval("--tokens", world.tokens)
    assert default_run.exit_code == 0 and str(run / "evaluation" / "evaluation.json") in default_run.output
    before = snapshot(run)
    assert "--out FOLDER" in str(run_eval("--tokens", tokens).exception)
    assert "--data DATA" in str(run_eval("--tokens", tokens, "--out", out).exception)
    assert not out.exists() and snapshot(run) == before
    other_tokens = ("--tokens", tokens, "--data", data, "--out")
    scored = run_eval(*other_tokens, out)
    assert scored.exit_code == 0 and str(out / "evaluation.json") in scored.output
    record = read_table(out / "evaluation.json")
    assert [pair["samples"] for pair in record["pairs"]] == [TEST // 2]
    assert (out / record["galleries"][0]["picture"]).is_file() and snapshot(run) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    refused = run_eval(*other_tokens, tmp_path / "mine").exception
    assert isinstance(refused, FolderError) and "holds notes.txt" in str(refused)
    assert isinstance(run_eval(*other_tokens, run / "evaluation").exception, FolderError), "the scores of other values"


def test_tokens_of_another_tokenizer_are_left_out_or_refused(world: World, run: Path, tokens: Path) -> None:
    """They count as missing, both as targets and as inputs."""
    shutil.rmtree(tokens / "test" / "letters")
    without_letters = world.evaluate(run, tokens=tokens, **LIGHT_TO_DARK)
    assert set(without_letters["skipped"]) == {"letters"}
    assert without_letters["cross_entropy"]["tokens_of"] == ["light", "dark"]
    assert set(without_letters["cross_entropy"]["modalities"]) == {"dark"}
    card = read_table(run / "config.json")
    card["fingerprints"]["letters"] = "f" * 64
    write_table(run / "config.json", card)
    assert world.evaluate(run, **LIGHT_TO_DARK)["cross_entropy"] == without_letters["cross_entropy"]
    result = world.evaluate(run)
    assert {pair["target"] for pair in result["pairs"]} == {"light", "dark"}
    assert "ffffffffffff" in result["skipped"]["letters"]
    with pytest.raises(DataError, match=r"evaluate letters: .* is ffff"):
        world.evaluate(run, targets=["letters"])


def test_tokens_of_a_grown_vocabulary_are_scored(world: World, run: Path, tmp_path: Path) -> None:
    before = world.zoo["letters"].fingerprint
    grown = shutil.copytree(world.root / "tokenizers", tmp_path / "tokenizers") / "letters" / "config.json"
    config = read_table(grown)

    def evaluated(length: int) -> dict[str, Any]:
        lineage = [{"fingerprint": before, "length": length}] if length else []
        write_table(grown, {**config, "lineage": lineage})
        zoo = Zoo.from_tables(world.zoo.tables, tmp_path / "registry.toml")
        assert zoo["letters"].fingerprint != before
        return world.evaluate(run, zoo=zoo, inputs=[("light",)], targets=["letters"])

    assert evaluated(9)["skipped"] == {}
    for length in (0, 1):  # of another, or without ids that the tokens have
        with pytest.raises(DataError, match="evaluate letters"):
            evaluated(length)


def test_previews_use_the_store_that_has_the_modality(world: World, tmp_path: Path) -> None:
    for store, missing_name in (("own", "dark"), ("other", "letters")):
        shutil.copytree(world.tokens, tmp_path / store)
        shutil.rmtree(tmp_path / store / "test" / missing_name)
    handles = {name: world.zoo[name] for name in NAMES}
    several = TrainConfig(datasets=(TrainingStore(tokens=tmp_path / "other"),), preview_every=1)

    def preview_names(config: TrainConfig, **options: Any) -> list[str]:
        previews = Previews(handles, tmp_path / "own", config, **options)
        return list(previews(load_model(world.run), tmp_path, 1))

    assert preview_names(several) == ["dark to light", "light to dark"], "no store has dark and letters"
    assert (tmp_path / "previews" / "step-00000001" / "dark-to-light.png").is_file()
    assert preview_names(TrainConfig()) == ["light to letters", "letters to light"]
    named = (Preview(inputs=("light",), target="dark"), Preview(inputs=("dark",), target="letters"))
    assert preview_names(dataclasses.replace(several, previews=named[:1])) == ["light to dark"]
    with pytest.raises(DataError, match="dark, letters"):
        preview_names(dataclasses.replace(several, previews=named))
    strange = Preview(inputs=("light",), target="absent")
    with pytest.raises(ConfigError, match="light to absent"):
        preview_names(TrainConfig(previews=(strange,), preview_every=1))
    assert preview_names(dataclasses.replace(several, previews=(*named, strange)), inherited=True) == ["light to dark"]
    shutil.rmtree(tmp_path / "own" / "test")
    with pytest.raises(DataError, match=r"own .*preview_every"):
        preview_names(TrainConfig())


# --- parts


def test_skill_score_by_hand() -> None:
    assert skill_score(0.6, 0.2, 1.0, True) == pytest.approx(0.5)
    assert skill_score(6.0, 5.0, 1.0, False) == pytest.approx(-0.25)
    assert skill_score(0.5, 0.5, 0.5, True) is None
    assert skill_score(0.5, 0.6, 0.4, True) is None  # the ceiling is worse than the floor
    assert skill_score(None, 0.6, 0.9, True) is None


SPECS = [
    spec("a_text", sequence(4, 2)),
    dataclasses.replace(spec("b_edges", GridLayout(shape=(2, 2))), derived_from=("d_photo",)),
    spec("c_field", GridLayout(shape=(2, 2))),
    spec("d_photo", GridLayout(shape=(2, 2))),
    dataclasses.replace(spec("e_pixels", PatchesLayout(shape=(2, 2), dim=3)), derived_from=("d_photo",)),
    dataclasses.replace(spec("f_vectors", EmbeddingsLayout(max_length=3, dim=3)), derived_from=("a_text",)),
]


def test_default_pairs_are_single_inputs_with_informative_pairs_first() -> None:
    """Some modalities of a model may be only inputs, or only targets."""
    pairs = pairs_of(SPECS, EmbeddingLayout(SPECS))
    assert pairs[:3] == [(("d_photo",), "c_field"), (("d_photo",), "b_edges"), (("d_photo",), "a_text")]
    assert pairs[3:8] == [((name,), "d_photo") for name in ("c_field", "b_edges", "e_pixels", "a_text", "f_vectors")]
    assert len(pairs) == len(set(pairs)) == 4 * 3 + 2 * 4
    assert not {target for _, target in pairs} & {"e_pixels", "f_vectors"}
    first, second = pairs[0][0][0], pairs[0][1]
    one_way_pairs = pairs_of(SPECS, layout_for(PublishedConfig(inputs_only=(second,), targets_only=(first,)), SPECS))
    assert set(one_way_pairs) == {pair for pair in pairs if pair[0] != (first,) and pair[1] != second} and one_way_pairs


def test_the_table_fits_80_columns() -> None:
    names = [f"modality_number_{i}" for i in range(12)]
    mae: dict[str, None] = {"mae": None}
    pairs = tuple(
        PairScore(
            inputs=(a,), target=b, samples=1, score=mae, constant_baseline=mae, reconstruction=mae,
            figures={"skill": Figure(value=None if i == 3 else 0.01 * i)},
        )
        for a in names for i, b in enumerate(names) if a != b
    )  # fmt: skip
    metrics = (Metric(name="mae", higher_is_better=False, meaning="an error"),)
    result = dataclasses.replace(
        read_evaluation(GOLDEN / "run/evaluation/evaluation.json"),
        modalities=dict.fromkeys(names, EvaluatedModality(test_samples=1, metrics=metrics)), pairs=pairs,
    )  # fmt: skip
    console = Console(width=80, no_color=True)
    with console.capture() as capture:
        console.print(score_table(result))
    text = capture.get()
    assert max(map(len, text.splitlines())) <= 80
    assert all(f"{name} " in text for name in names) and "…" not in text  # no name or number is cut
    rows = [line.split() for line in text.splitlines() if line.strip().startswith("modality_number_0 ")]
    assert [cell for row in rows for cell in row[1:]].count("0.07") == 1


# --- generation to a folder


def test_model_and_tokenizers_run_on_the_device(
    world: World, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device is the CPU under another name."""
    devices: list[str] = []

    def loaded(folder: Path, device: str) -> FourM:
        devices.append(device)
        return load_model(folder, device=device)

    monkeypatch.setattr(evaluation, "load_model", loaded)
    zoo, second_zoo = (Zoo.from_tables(world.zoo.tables, world.zoo.path) for _ in range(2))
    world.evaluate(run, zoo=zoo, device="cpu:0", **LIGHT_TO_DARK)
    recipe = GenerationPlan(inputs=("light",), targets=(TargetPlan(name="dark"),), samples="1")
    pipeline = AnyToAny.from_pretrained(run, zoo=second_zoo, device="cpu:0")
    outputs.generate_to_folder(pipeline, recipe, tmp_path / "out", world.tokens)
    assert devices == ["cpu:0"]
    assert [zoo[name].device for name in NAMES] == ["cpu:0", "cpu:0", "cpu:0"]
    assert [second_zoo[name].device for name in NAMES] == [str(pipeline.device), str(pipeline.device), "cpu"]


def test_generation_does_not_write_outside_its_folder(
    world: World, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    recipe = GenerationPlan(inputs=("light",), targets=(TargetPlan(name="dark"),), samples="2")

    def escaping_request(*arguments: Any) -> Any:
        request = PlanRequest(*arguments)
        request.names[1] = "../kept"
        return request

    monkeypatch.setattr(outputs, "PlanRequest", escaping_request)
    with pytest.raises(DataError, match=r"sample '\.\./kept'"):
        generated(world, run, recipe, out)
    assert not out.exists()
