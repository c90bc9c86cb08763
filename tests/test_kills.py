"""A kill or a full disk at any moment of any stage: old files stay whole, and the same command finishes."""

from __future__ import annotations

import signal

import pytest
from command_world import ROAD, World, results, the_world

GROWING = ("run.json", "metrics.jsonl", "evaluation.json", "/training_state", "unfinished.json", "done.txt")
"""Files and folders that a stage writes in parts or repeatedly while it runs."""
KILLED = ("make", "derive", "train", "statistics", "vocabulary", "tokenize", "backbone", "eval", "report", "generate")


@pytest.fixture(scope="module")
def world() -> World:
    return the_world()


def check_kill(world: World, stage: str, when: str, number: int) -> None:
    """Kill a stage before or after its rename `number`; then run it again."""
    before, after = results(world.before[stage]), results(world.after[stage])
    world.put_back(world.before[stage])
    killed = world(ROAD[stage], **{f"kill_{when}": number})
    assert killed.code == -signal.SIGKILL, (number, killed.complaint)
    left = {name: data for name, data in world.files().items() if not name.endswith(".tmp")}
    assert before.keys() <= left.keys()
    for name, data in results(left).items():
        if not any(part in name for part in GROWING):
            assert data in (before.get(name), after.get(name)), f"{name} is half-written"
    again = world(ROAD[stage])
    assert again.code == 0, again.complaint
    ended = results(world.files())
    assert ended.keys() == after.keys(), ended.keys() ^ after.keys()
    for name, data in ended.items():
        assert data == after[name], f"{name} is another than without the kill"


@pytest.mark.parametrize("stage", KILLED)
def test_killed_stage_finishes_with_the_same_results(world: World, stage: str) -> None:
    last = len(world.renames[stage]) - 1
    check_kill(world, stage, "before", (last + 1) // 2)
    check_kill(world, stage, "after", last)


@pytest.mark.slow
@pytest.mark.parametrize("stage", KILLED)
def test_stage_killed_at_each_of_its_files_finishes_with_the_same_results(world: World, stage: str) -> None:
    for number in range(len(world.renames[stage])):
        for when in ("before", "after"):
            check_kill(world, stage, when, number)


def test_killed_backbone_is_distinguished_from_a_missing_one(world: World) -> None:
    world.put_back()
    words = ROAD["backbone"].replace("--out run", "--out half")
    assert world(words, kill_after=2).code < 0 and (world.folder / "half/run.json").exists()
    for command in ("backbone eval half", "backbone generate half --target depth --out new"):
        world(command).refused("half: its training has not come to its end; the command that began it goes on")


@pytest.mark.parametrize("stage", ["train", "statistics", "vocabulary"])
def test_a_tokenizer_is_never_lost_while_it_is_replaced(world: World, stage: str) -> None:
    words = f"{ROAD[stage]} --overwrite --seed 1"
    world.put_back(world.after[stage])
    folder = next(name for name in world.after[stage].keys() - world.before[stage] if name.endswith("/config.json"))
    old, place = world.after[stage][folder], folder.removesuffix("/config.json")
    replaced = world(words)
    assert replaced.code == 0, replaced.complaint
    after, count = results(world.files()), len(replaced.renames)
    assert not any(".replaced" in name for name in after)
    for number in sorted({0, 1, 2, count // 2, count - 1}):
        world.put_back(world.after[stage])
        assert world(words, kill_after=number).code == -signal.SIGKILL
        left = world.files()
        aside = (f"{place}/{name}/config.json" for name in (".moving", ".replaced"))
        assert old in (left.get(folder), *map(left.get, aside)), f"lost at {replaced.renames[number]}"
        again = world(words)
        assert again.code == 0, again.complaint
        assert results(world.files()) == after


@pytest.mark.parametrize("stage", ["train", "backbone"])
def test_repeatedly_killed_stage_finishes(world: World, stage: str) -> None:
    world.put_back(world.before[stage])
    kills = 0
    while world(ROAD[stage], kill_after=2 * kills).code == -signal.SIGKILL:
        kills += 1
    assert 3 <= kills < len(world.renames[stage])
    assert results(world.files()) == results(world.after[stage])


@pytest.mark.parametrize("stage", ROAD)
def test_finished_stage_is_unchanged(world: World, stage: str) -> None:
    world.put_back(world.after[stage])
    assert world(ROAD[stage]).code == 0
    assert results(world.files()) == results(world.after[stage])
    assert {"back.npy", "back.png"} <= world.after["decode"].keys()


# ---------------------------------------------------------------- a full disk


def check_full(world: World, stage: str, *words: str, **mishap: int) -> None:
    """Assert that the stage fails with `words`, keeps the old files, and finishes once there is space."""
    before, after = results(world.before[stage]), results(world.after[stage])
    world.put_back(world.before[stage])
    world(ROAD[stage], **mishap).refused(*words)
    left = results(world.files())
    assert before.keys() <= left.keys() and not any(name.endswith(".tmp") for name in left)
    for name, data in before.items():
        assert left[name] in (data, after[name]), f"{name} is half-written"
    again = world(ROAD[stage])
    assert again.code == 0, again.complaint
    assert results(world.files()) == after


@pytest.mark.parametrize("stage", ROAD)
def test_full_disk_is_one_line_and_loses_nothing(world: World, stage: str) -> None:
    """The disk is full when half of the stage's files have been written."""
    check_full(world, stage, "the disk is full", "same command", full_at=len(world.renames[stage]) // 2)


@pytest.mark.parametrize("stage", [stage for stage in ROAD if stage != "encode"])  # whose file is shorter than a line
def test_library_write_error_is_one_line(world: World, stage: str) -> None:
    """Libraries write weights, tables and pictures, so the system's error reaches them first."""
    before, after = world.before[stage], world.after[stage]
    made = [len(data) for name, data in after.items() if data != before.get(name) and "/tensorboard/" not in name]
    check_full(world, stage, "`ulimit -f`", "same command", largest=max(made) - 1)
