"""Upright boxes around things, in the camera's axes levelled by gravity: x right, y up, z towards the viewer.

`yaw` turns counter-clockwise seen from above: at 0 a front looks right, at pi / 2 away from the viewer. What has no
front shows the viewer one: of a rectangular table, a rug, a box or a cylinder that lies, it is the side that looks most
towards the viewer, of what is round from above the point nearest to the viewer. So a mirror image keeps to it, too.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import chain
from operator import add
from typing import Any

import numpy as np

from zoo_scenes.observe import Seen
from zoo_scenes.solids import Array, matrices
from zoo_scenes.stage import Stage
from zoo_scenes.things import Thing

FRONTS = {"chair": 0, "sofa": 0, "shelf": 0, "books": 0, "person": 0, "window": 2, "door": 2, "picture": 2}
"""The own axis along which the front of a thing looks, by label; others have no front."""
ROUND = ("ball", "floor lamp", "ceiling lamp", "potted plant", "round table", "round rug")
"""What is round from above, by noun."""
THINNEST = 0.05  # metres; a rug of 8 mm would overlap with no other box
TOWARDS_VIEWER = -math.pi / 2
LYING = 0.5  # length of a cylinder's unit axis seen from above, from which on it lies


def boxes_3d(stage: Stage, seen: list[Seen], most: int) -> list[dict[str, Any]]:
    """Label, centre, size (along the front, up, across) in metres and yaw in radians of the largest things seen.

    A box holds all of the thing, hidden parts, too, and touches it on every side; sides below THINNEST are widened.
    """
    things = [item.thing for item in seen[:most]]
    if not things:
        return []
    camera = replace(stage.scene.camera, pitch=0.0)
    own = camera.axes @ matrices(np.array([thing.turn for thing in things])).reshape(-1, 3, 3)
    yaws = [heading(thing, axes) for thing, axes in zip(things, own, strict=True)]
    sides = np.array([_sides(yaw) for yaw in yaws])
    counts = [len(thing.parts) for thing in things]
    starts = [stage.owners.index(item.index) for item in seen[:most]]
    rows = np.array([*chain.from_iterable(map(range, starts, map(add, starts, counts)))])
    directions = np.repeat(sides @ camera.axes, counts, axis=0)
    at = np.einsum("gdk,gk->gd", directions, stage.solids.places.take(rows, axis=0) - camera.position)
    reach = stage.solids.reach(rows, directions)
    firsts = np.cumsum([0, *counts[:-1]])
    low, high = np.minimum.reduceat(at - reach, firsts), np.maximum.reduceat(at + reach, firsts)
    centres = np.einsum("ndk,nd->nk", sides, (low + high) / 2).tolist()
    sizes = np.maximum(high - low, THINNEST).tolist()
    return [
        {"label": thing.label, "center": centre, "size": size, "yaw": yaw}
        for thing, centre, size, yaw in zip(things, centres, sizes, yaws, strict=True)
    ]


def heading(thing: Thing, own: Array) -> float:
    """The yaw of a thing's front; the columns of `own` (3, 3) are its axes in levelled camera axes."""
    if thing.label in FRONTS:
        return _yaw(own[:, FRONTS[thing.label]])
    from_above = np.hypot(own[0], own[2]).tolist()
    if thing.noun in ROUND or (thing.label == "cylinder" and from_above[2] < LYING):
        return TOWARDS_VIEWER
    longest = 2 if thing.label == "cylinder" else from_above.index(max(from_above))
    # a quarter turn leads to the next side
    return TOWARDS_VIEWER + math.remainder(_yaw(own[:, longest]) - TOWARDS_VIEWER, math.pi / 2)


def _sides(yaw: float) -> list[list[float]]:
    """Unit vectors along the front, up and across."""
    cos, sin = math.cos(yaw), math.sin(yaw)
    return [[cos, 0.0, -sin], [0.0, 1.0, 0.0], [sin, 0.0, cos]]


def _yaw(direction: Array) -> float:
    return math.atan2(-direction[2], direction[0])
