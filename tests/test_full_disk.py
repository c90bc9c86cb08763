"""A full disk in any stage that writes: one clear line, no partial files, and a later run finishes."""

from __future__ import annotations

import pytest
from command_world import ROAD, World, results, the_world


@pytest.fixture(scope="module")
def world() -> World:
    return the_world()


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
