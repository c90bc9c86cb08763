"""zoo compare: settings that differ, losses, and skills with bootstrap intervals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_world import World, the_world

from tokenizers_zoo.contract.intervals import RESAMPLES, bootstrap, percentiles
from tokenizers_zoo.records.io import read_table, write_table
from zoo_backbone.cli.report import sparkline
from zoo_backbone.measure.compare import short_names

TRAIN = "backbone train --tokens tokens --out two/backbone --config backbone.toml --set steps=9"
EVAL = "backbone eval {} --config backbone.toml --target caption --samples 8 --set gallery_pairs=0"


@pytest.fixture(scope="module")
def world_with_two_runs() -> World:
    """The test folder with a second run, both evaluated on eight samples."""
    world = the_world().put_back()
    for words in (TRAIN, EVAL.format("two/backbone"), f"{EVAL.format('run')} --input rgb_patches --overwrite"):
        assert (done := world(words)).code == 0, done.complaint
    return world


def test_compare_shows_settings_losses_and_skills(world_with_two_runs: World) -> None:
    comparison = json.loads(world_with_two_runs("compare run two/backbone --json").printed)
    assert [run["name"] for run in comparison["runs"]] == ["run", "two/backbone"]
    assert comparison["settings"] == {"train.steps": ["6", "9"]}
    assert comparison["losses"].keys() == {"loss", "caption", "depth"}
    assert [[step for step, _ in curve] for curve in comparison["losses"]["loss"]] == [[3, 6], [3, 6, 9]]
    skills = {(*row["inputs"], row["target"]): row["runs"] for row in comparison["metrics"]["skill"]}
    assert skills.keys() == {("rgb_patches", "caption"), ("depth", "caption")}
    assert skills["depth", "caption"][0] is None
    first, second = skills["rgb_patches", "caption"]
    for scores in (first, second):
        low, high = scores["interval"]
        assert low < scores["value"] < high and scores["samples"] == 8
    assert first["difference"] is None and second["difference"] == pytest.approx(second["value"] - first["value"])
    low, high = second["difference_interval"]
    assert low <= second["difference"] <= high
    printed = world_with_two_runs("compare run two/backbone").printed
    for part in ("train.steps", "two/backbone", "rgb_patches", f"{first['value']:.2f} ("):
        assert part in printed


def test_compare_writes_a_page(world_with_two_runs: World) -> None:
    done = world_with_two_runs("compare run two/backbone --out page/index.html")
    assert done.code == 0 and "page: file://" in done.printed
    text = (world_with_two_runs.folder / "page" / "index.html").read_text()
    for part in ("train.steps", "two/backbone", "rgb_patches", "data:image/png"):
        assert part in text
    assert (world_with_two_runs.folder / "page" / "pictures" / "compare-loss.png").is_file()


def test_scores_of_other_weights_and_missing_scores_are_named(world_with_two_runs: World) -> None:
    world, record = world_with_two_runs, world_with_two_runs.folder / "two/backbone/evaluation/evaluation.json"
    before = record.read_text()
    try:
        table = read_table(record)
        table["identity"]["weights"] = "0" * 64
        write_table(record, table)
        done = world("compare run two/backbone")
        assert done.code == 0 and "two/backbone was evaluated with other weights" in done.complaint
        record.unlink()
        done = world("compare run two/backbone")
        assert done.code == 0 and "zoo backbone eval two/backbone" in done.complaint
    finally:
        record.write_text(before)


def test_compare_needs_different_finished_runs(world_with_two_runs: World) -> None:
    world_with_two_runs("compare run two/../run").refused("the same run twice")
    world_with_two_runs("compare run tokens").refused("tokens: no trained backbone here")
    assert world_with_two_runs("compare run").code != 0
    assert world_with_two_runs("compare run nothing").code != 0


def test_short_names_are_the_parts_that_differ() -> None:
    assert short_names([Path("runs/demo/backbone"), Path("runs/long/backbone")]) == ["demo", "long"]
    assert short_names([Path("runs/a"), Path("runs/b"), Path("runs/c")]) == ["a", "b", "c"]
    assert short_names([Path("runs/a/x"), Path("b/x")]) == ["runs/a", "b"]
    assert short_names([Path("runs"), Path("runs/runs")]) == ["runs", "runs/runs"]


def test_bootstrap_of_a_mean_needs_one_score_per_sample() -> None:
    values, calls = np.random.default_rng(0).normal(3, 2, 400), []

    def mean(indices: object) -> float:
        calls.append(indices)
        return float(values[list(indices)].mean())  # type: ignore[call-overload]

    resampled = bootstrap(mean, len(values), 0)
    assert len(resampled) == RESAMPLES and len(calls) == len(values) + 1
    assert np.std(resampled) == pytest.approx(values.std() / 20, rel=0.3)
    assert resampled == pytest.approx(bootstrap(lambda indices: float(np.mean([values[p] for p in indices])), 400, 0))
    low, high = percentiles(resampled) or (0, 0)
    assert low < values.mean() < high and high - low == pytest.approx(2 * 1.96 * np.std(resampled), rel=0.15)


def test_bootstrap_of_another_score_calls_it_for_each_resample() -> None:
    values = np.random.default_rng(1).normal(size=50)
    resampled = bootstrap(lambda indices: float(np.exp(values[list(indices)].mean())), 50, 0)
    mean = bootstrap(lambda indices: float(values[list(indices)].mean()), 50, 0)
    assert resampled == pytest.approx(np.exp(mean)), "of the same resamples"


def test_percentiles_leave_missing_scores_out() -> None:
    assert percentiles([None] * 60 + [1.0] * 40) is None
    assert percentiles([None, float("nan"), *[2.0] * 98]) == (2.0, 2.0)


def test_sparklines_by_hand() -> None:
    assert sparkline([1, 2, 3], 1, 3, 8) == "▁▄█" or sparkline([1, 2, 3], 1, 3, 8) == "▁▅█"
    assert len(sparkline(list(range(100)), 0, 99, 12)) == 12
    assert sparkline([2, 2], 2, 2, 8) == "▁▁" and sparkline([], 0, 1, 8) == ""
