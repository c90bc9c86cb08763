"""Some faults of faults.py, which `make test-faults` draws in large numbers, and kills at chosen files."""

from __future__ import annotations

import random
import signal
from itertools import islice
from typing import Any

import pytest
from command_world import STAGES, World, results, the_world
from faults import Fault, Faults, damages, kills, others

DRAWN = {kills: 20, damages: 40, others: 5}
"""How many faults to draw; every fifth is tried."""
SEED = 42


@pytest.fixture(scope="module")
def world() -> World:
    return the_world()


@pytest.mark.parametrize("draw", DRAWN, ids=lambda draw: draw.__name__)
def test_faults_lose_nothing_and_nothing_false_is_used(world: World, draw: Any) -> None:
    faults, failures = Faults(world=world), []
    for case in islice(draw(faults, DRAWN[draw], random.Random(SEED)), 0, None, 5):
        try:
            faults.case(case)
        except Fault as fault:
            failures.append(f"{case}: {fault}")
    assert not failures, "\n".join(failures)


def test_killed_backbone_is_distinguished_from_a_missing_one(world: World) -> None:
    world.put_back()
    words = STAGES["backbone"].replace("--out run", "--out half")
    assert world(words, kill_after=2).code < 0 and (world.folder / "half/run.json").exists()
    for command in ("backbone eval half", "backbone generate half --target depth --out new"):
        world(command).refused("half: its training has not come to its end")


@pytest.mark.parametrize("stage", ["train", pytest.param("statistics", marks=pytest.mark.slow), "vocabulary"])
def test_a_tokenizer_is_never_lost_while_it_is_replaced(world: World, stage: str) -> None:
    words = f"{STAGES[stage]} --overwrite --seed 1"
    world.put_back(world.after[stage])
    config_file = next(
        name for name in world.after[stage].keys() - world.before[stage] if name.endswith("/config.json")
    )
    old, folder = world.after[stage][config_file], config_file.removesuffix("/config.json")
    replaced = world(words)
    assert replaced.code == 0, replaced.complaint
    after, count = results(world.files()), len(replaced.renames)
    assert not any(".replaced" in name for name in after)
    for number in sorted({1, count // 2, count - 1}):
        world.put_back(world.after[stage])
        assert world(words, kill_after=number).code == -signal.SIGKILL
        remaining = world.files()
        aside = (f"{folder}/{name}/config.json" for name in (".moving", ".replaced"))
        assert old in (remaining.get(config_file), *map(remaining.get, aside)), f"lost at {replaced.renames[number]}"
        rerun = world(words)
        assert rerun.code == 0, rerun.complaint
        assert results(world.files()) == after


@pytest.mark.parametrize("stage", ["backbone"])
def test_repeatedly_killed_stage_finishes(world: World, stage: str) -> None:
    world.put_back(world.before[stage])
    kills = 0
    while world(STAGES[stage], kill_after=2 * kills).code == -signal.SIGKILL:
        kills += 1
    assert 3 <= kills < len(world.renames[stage])
    assert results(world.files()) == results(world.after[stage])


@pytest.mark.parametrize("stage", STAGES)
def test_finished_stage_is_unchanged(world: World, stage: str) -> None:
    world.put_back(world.after[stage])
    assert world(STAGES[stage]).code == 0
    assert results(world.files()) == results(world.after[stage])
    assert {"back.npy", "back.png"} <= world.after["decode"].keys()
