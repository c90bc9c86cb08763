"""What can be said about a picture of a scene: classes, instances, boxes, poses and numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain
from operator import add
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo_scenes.people import TO_BODY, axis_angle
from zoo_scenes.render import View
from zoo_scenes.scene import CLASS_IDS, CLASSES, COLOURS, Array, Body, Scene, yaw_of
from zoo_scenes.stage import CEILING, FLOOR, WALL, Stage, matrices

_ROOM_CLASSES = {FLOOR: "floor", WALL: "wall", CEILING: "ceiling"}


@dataclass(frozen=True, slots=True)
class VisibleBody:
    """A thing in the picture: its index in the scene, pixels, box (xmin, ymin, xmax, ymax in fractions), mean depth.

    `clear` is true if the named part is visible: a person's shirt, not just a hand.
    """

    index: int
    body: Body
    pixels: int
    box: tuple[float, float, float, float]
    depth: float
    clear: bool


def observe(
    stage: Stage, view: View, min_visible: float
) -> tuple[NDArray[np.int64], NDArray[np.int32], list[VisibleBody], dict[str, float]]:
    """Class ids (h, w), instance ids (h, w), what covers enough pixels (largest first), and the classes' shares.

    Instance k + 1 is the k-th largest visible thing, `visible[k]`.
    """
    bodies = stage.scene.bodies
    owners = [max(owner, -1) for owner in stage.owners]  # -1: the room
    classes = [CLASS_IDS[_ROOM_CLASSES[owner] if owner < 0 else bodies[owner].label] for owner in stage.owners]
    pixels = np.bincount(view.geoms.reshape(-1), minlength=len(classes)).tolist()
    sizes, of_class = [0] * (len(bodies) + 1), [0] * len(CLASSES)
    for owner, label, count in zip(owners, classes, pixels, strict=True):
        sizes[owner] += count
        of_class[label] += count
    total = view.geoms.size
    shares = {name: count / total for name, count in zip(CLASSES, of_class, strict=True)}
    ranks = sorted((k for k in range(len(bodies)) if sizes[k]), key=lambda k: -sizes[k])
    ids = np.zeros(len(bodies) + 1, np.int32)
    ids[ranks] = np.arange(1, len(ranks) + 1)
    instances = ids.take(owners).take(view.geoms)
    least = min_visible * total
    visible = []
    for rank, (box, depth) in enumerate(zip(*_extents(instances, view.depth, len(ranks)), strict=True)):
        index = ranks[rank]
        if sizes[index] >= least:
            clear = _is_clear(stage, pixels, index, least)
            visible.append(VisibleBody(index, bodies[index], sizes[index], box, depth / sizes[index], clear))
    return np.array(classes).take(view.geoms), instances, visible, shares


def _extents(
    instances: NDArray[np.int32], depth: NDArray[np.float32], count: int
) -> tuple[list[tuple[float, float, float, float]], list[float]]:
    """Boxes (xmin, ymin, xmax, ymax in fractions) of the instances 1 to `count`, and the sums of their depths."""
    edge = instances.shape[0]
    starts, positions = instances.astype(np.intp) * edge, np.arange(edge)
    ends = []
    for index in (positions, positions[:, None]):
        used = np.bincount((starts + index).reshape(-1), minlength=edge * (count + 1)).reshape(-1, edge)[1:] > 0
        ends.append((used.argmax(1) / edge, (edge - used[:, ::-1].argmax(1)) / edge))
    (left, right), (top, bottom) = ends
    depths = np.bincount(instances.reshape(-1), depth.reshape(-1), count + 1)[1:]
    boxes = zip(left.tolist(), top.tolist(), right.tolist(), bottom.tolist(), strict=True)
    return list(boxes), depths.tolist()


def _is_clear(stage: Stage, pixels: list[int], index: int, least: float) -> bool:
    """Return whether the named part of a thing is visible, given the pixels of each geom."""
    body = stage.scene.bodies[index]
    if body.label != "person":
        return True
    first = stage.owners.index(index)
    shirt = COLOURS[body.colour]
    shirt_pixels = sum(pixels[k] for k, part in enumerate(body.parts, first) if part.surface.colours[0] == shirt)
    return shirt_pixels >= max(least, 1)


def boxes(visible: list[VisibleBody], max_boxes: int) -> list[dict[str, Any]]:
    """Label and box of the largest things seen."""
    return [{"label": item.body.label, "box": list(item.box)} for item in visible[:max_boxes]]


def human_poses(scene: Scene, visible: list[VisibleBody]) -> list[dict[str, Any]]:
    """Joints and rotations of the people seen, in camera axes (x right, y up, z towards the viewer).

    The first rotation turns the rest pose's axes (x to the person's left, y up, z forward) to the camera's; the others
    are relative to the parent joint.
    """
    poses = []
    for item in visible:
        pose = item.body.pose
        if pose is None:
            continue
        yaw = yaw_of(item.body.turn)
        cos, sin = math.cos(yaw), math.sin(yaw)
        turn = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
        joints = scene.camera.to_camera(pose.joints @ turn.T + np.array(item.body.at))
        rotations = pose.rotations.copy()
        rotations[0] = axis_angle(scene.camera.axes @ turn @ TO_BODY)
        poses.append(
            {
                "joints_camera": joints.tolist(),
                "joints_image": scene.camera.project(joints).tolist(),
                "joint_rotations": rotations.tolist(),
                "box": list(item.box),
            }
        )
    return poses


def metadata(
    scene: Scene, view: View, instances: NDArray[np.int32], visible: list[VisibleBody], shares: Mapping[str, float]
) -> dict[str, float | int]:
    """Numbers about camera (m, degrees), room (m) and picture (shares and means of sRGB in [0, 1]).

    `num_objects` counts furniture, lamps, plants and loose things that are seen; `clutter` is the share of the picture
    that things cover, `walkability` that of floor and rugs; `geometric_complexity` is 1 minus the length of the mean
    normal.
    """
    camera = scene.camera
    red, green, blue = colours = view.rgb.reshape(3, -1)
    luminance = np.array((0.2126, 0.7152, 0.0722), np.float32) @ colours
    brightest = np.maximum(np.maximum(red, green), blue)
    darkest = np.minimum(np.minimum(red, green), blue)
    channels = np.stack([luminance, red - green, 0.5 * (red + green) - blue])
    (brightness, *means), (contrast, *deviations) = channels.mean(1).tolist(), channels.std(1).tolist()
    labels = [item.body.label for item in visible]
    loose = [label for label in labels if label not in ("person", "window", "door", "picture", "rug", "books")]
    normal = view.normals.reshape(3, -1).mean(1)
    # Hasler and Suesstrunk, Measuring colorfulness in natural images (2003), eq. 10, of sRGB in [0, 1]
    return {
        "camera_height": camera.position[2],
        "camera_pitch": math.degrees(camera.pitch),
        "camera_fov": math.degrees(camera.fov),
        "room_width": scene.width,
        "room_depth": scene.depth,
        "room_height": scene.height,
        "mean_depth": float(view.depth.mean()),
        "num_objects": len(loose),
        "num_people": labels.count("person"),
        "num_classes": sum(share > 0 for share in shares.values()),
        "brightness": brightness,
        "contrast": contrast,
        "saturation": float(((brightest - darkest) / np.maximum(brightest, 1e-3)).mean()),
        "colourfulness": math.hypot(*deviations) + 0.3 * math.hypot(*means),
        "clutter": int(np.count_nonzero(instances)) / instances.size,
        "walkability": shares["floor"] + shares["rug"],
        "geometric_complexity": float(1 - np.linalg.norm(normal)),
    }


FURNITURE: Mapping[str, tuple[str, ...]] = {
    "dining room": ("table", "chair"),
    "living room": ("sofa",),
    "library": ("shelf", "books"),
    "playroom": ("box", "ball", "cylinder"),
}
"""The classes of things that make a place."""
EMPTY = "empty room"
LEAST = 0.04
"""Share of the picture that the furniture of a place covers at least."""


def scene_class(shares: Mapping[str, float]) -> str:
    """The place whose furniture covers most of the picture, the first of equals; an empty room below LEAST.

    `shares` says how much of the picture each class covers.
    """
    covered = {name: sum(shares[label] for label in labels) for name, labels in FURNITURE.items()}
    largest = max(covered, key=covered.__getitem__)
    return largest if covered[largest] >= LEAST else EMPTY


FRONTS = {"chair": 0, "sofa": 0, "shelf": 0, "books": 0, "person": 0, "window": 2, "door": 2, "picture": 2}
"""The own axis along which the front of a thing looks, by label; others have no front."""
ROUND = ("ball", "floor lamp", "ceiling lamp", "potted plant", "round table", "round rug")
"""Nouns of things that are round from above."""
THINNEST = 0.05  # metres; a rug of 8 mm would overlap with no other box
TOWARDS_VIEWER = -math.pi / 2
LYING = 0.5  # a cylinder lies if its unit axis, seen from above, is longer


def boxes_3d(stage: Stage, visible: list[VisibleBody], max_boxes: int) -> list[dict[str, Any]]:
    """Label, centre, size (along the front, up, across) in metres and yaw in radians of the largest things seen.

    A box contains the whole thing, hidden parts included, and touches it on every side. Sides below THINNEST are
    widened.
    """
    bodies = [item.body for item in visible[:max_boxes]]
    if not bodies:
        return []
    camera = replace(stage.scene.camera, pitch=0.0)
    thing_axes = camera.axes @ matrices(np.array([body.turn for body in bodies])).reshape(-1, 3, 3)
    yaws = [heading(body, axes) for body, axes in zip(bodies, thing_axes, strict=True)]
    cos, sin, zeros = np.cos(yaws), np.sin(yaws), np.zeros(len(yaws))
    # unit vectors along the front, up and across
    sides = np.stack([cos, zeros, -sin, zeros, zeros + 1, zeros, sin, zeros, cos], axis=1).reshape(-1, 3, 3)
    counts = [len(body.parts) for body in bodies]
    starts = [stage.owners.index(item.index) for item in visible[:max_boxes]]
    rows = np.array([*chain.from_iterable(map(range, starts, map(add, starts, counts)))])
    directions = np.repeat(sides @ camera.axes, counts, axis=0)
    at = np.einsum("gdk,gk->gd", directions, stage.solids.centres.take(rows, axis=0) - camera.position)
    reach = stage.solids.reach(rows, directions)
    firsts = np.cumsum([0, *counts[:-1]])
    low, high = np.minimum.reduceat(at - reach, firsts), np.maximum.reduceat(at + reach, firsts)
    centres = np.einsum("ndk,nd->nk", sides, (low + high) / 2).tolist()
    sizes = np.maximum(high - low, THINNEST).tolist()
    return [
        {"label": body.label, "center": centre, "size": size, "yaw": yaw}
        for body, centre, size, yaw in zip(bodies, centres, sizes, yaws, strict=True)
    ]


def heading(body: Body, axes: Array) -> float:
    """The yaw of a thing's front; the columns of `axes` (3, 3) are its axes in levelled camera axes."""
    if body.label in FRONTS:
        front = axes[:, FRONTS[body.label]]
        return math.atan2(-front[2], front[0])
    from_above = np.hypot(axes[0], axes[2]).tolist()
    if body.noun in ROUND or (body.label == "cylinder" and from_above[2] < LYING):
        return TOWARDS_VIEWER
    longest = 2 if body.label == "cylinder" else from_above.index(max(from_above))
    # a quarter turn leads to the next side
    yaw = math.atan2(-axes[2, longest], axes[0, longest])
    return TOWARDS_VIEWER + math.remainder(yaw - TOWARDS_VIEWER, math.pi / 2)
