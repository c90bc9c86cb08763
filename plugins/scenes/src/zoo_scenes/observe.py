"""What can be said about a picture of a scene: classes, instances, boxes, poses and numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo_scenes.palette import CLASS_IDS, CLASSES, COLOURS
from zoo_scenes.people import TO_THING, axis_angle
from zoo_scenes.render import View
from zoo_scenes.settings import SceneSettings
from zoo_scenes.stage import CEILING, FLOOR, WALL, Stage
from zoo_scenes.things import Scene, Thing

_ROOM_CLASSES = {FLOOR: "floor", WALL: "wall", CEILING: "ceiling"}


@dataclass(frozen=True, slots=True)
class Seen:
    """A thing in the picture: its index in the scene, pixels, box (xmin, ymin, xmax, ymax in fractions), mean depth.

    `clear` is whether what its name says can be seen too: a person's shirt, not just a hand.
    """

    index: int
    thing: Thing
    pixels: int
    box: tuple[float, float, float, float]
    depth: float
    clear: bool


@dataclass(slots=True, kw_only=True)
class Observation:
    """Class ids (h, w), instance ids (h, w), what covers enough pixels (largest first), and the classes' shares.

    Instance k + 1 is the k-th largest thing of all that have a pixel, so that `seen[k]` is instance k + 1.
    """

    semseg: NDArray[np.int64]
    instances: NDArray[np.int32]
    seen: list[Seen]
    shares: dict[str, float]


def observe(stage: Stage, view: View, settings: SceneSettings) -> Observation:
    """Class and instance maps, and what is seen of each thing."""
    things = stage.scene.things
    labels = [_ROOM_CLASSES[owner] if owner < 0 else things[owner].label for owner in stage.owners]
    classes = np.array([CLASS_IDS[label] for label in labels])
    owners = np.maximum(np.array(stage.owners, np.int16), -1)[view.geoms]
    width = owners.shape[1]
    flat = owners.reshape(-1)
    order = np.argsort(flat, kind="stable")  # a radix sort for 16-bit integers
    ordered = flat[order]
    starts = np.append(0, np.flatnonzero(ordered[1:] != ordered[:-1]) + 1)
    present = ordered[starts].tolist()
    counts = np.diff(np.append(starts, flat.size)).tolist()
    rows = (order // width).astype(np.int32)
    columns = order.astype(np.int32) - rows * width
    edges = [
        np.minimum.reduceat(columns, starts),
        np.minimum.reduceat(rows, starts),
        np.maximum.reduceat(columns, starts) + 1,
        np.maximum.reduceat(rows, starts) + 1,
    ]
    boxes = (np.stack(edges, 1) / width).tolist()
    depths = np.add.reduceat(view.depth.reshape(-1)[order], starts).tolist()
    ranks = sorted((k for k in range(len(present)) if present[k] >= 0), key=lambda k: (-counts[k], present[k]))
    ids = np.zeros(len(things) + 1, np.int32)
    for rank, k in enumerate(ranks, 1):
        ids[present[k]] = rank
    ids[-1] = 0  # owner -1: the room
    least = settings.min_visible * flat.size
    seen = []
    for k in ranks:
        if counts[k] >= least:
            index = present[k]
            clear = _is_clear(stage, view, index, least)
            seen.append(Seen(index, things[index], counts[k], tuple(boxes[k]), depths[k] / counts[k], clear))
    semseg = classes[view.geoms]
    pixels = np.bincount(semseg.reshape(-1), minlength=len(CLASSES)) / semseg.size
    shares = dict(zip(CLASSES, pixels.tolist(), strict=True))
    return Observation(semseg=semseg, instances=ids[owners], seen=seen, shares=shares)


def _is_clear(stage: Stage, view: View, index: int, least: float) -> bool:
    thing = stage.scene.things[index]
    if thing.label != "person":
        return True
    first = stage.owners.index(index)
    shirt = [k for k, part in enumerate(thing.parts, first) if part.surface.colours[0] == COLOURS[thing.colour]]
    return int(np.isin(view.geoms, shirt).sum()) >= max(least, 1)


def boxes(seen: list[Seen], most: int) -> list[dict[str, Any]]:
    """Label and box of the largest things seen."""
    return [{"label": item.thing.label, "box": list(item.box)} for item in seen[:most]]


def human_poses(scene: Scene, seen: list[Seen]) -> list[dict[str, Any]]:
    """Joints and rotations of the people seen, in camera axes (x right, y up, z towards the viewer).

    The first rotation turns the rest pose's axes (x to the person's left, y up, z forward) to the camera's; the others
    are relative to the parent joint.
    """
    poses = []
    for item in seen:
        pose = item.thing.pose
        if pose is None:
            continue
        yaw = 2 * math.atan2(item.thing.turn[3], item.thing.turn[0])
        cos, sin = math.cos(yaw), math.sin(yaw)
        turn = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
        joints = scene.camera.to_camera(pose.joints @ turn.T + np.array(item.thing.at))
        rotations = pose.rotations.copy()
        rotations[0] = axis_angle(scene.camera.axes @ turn @ TO_THING)
        poses.append(
            {
                "joints_camera": joints.tolist(),
                "joints_image": scene.camera.project(joints).tolist(),
                "joint_rotations": rotations.tolist(),
                "box": list(item.box),
            }
        )
    return poses


def metadata(scene: Scene, view: View, observation: Observation) -> dict[str, float | int]:
    """Numbers about camera (m, degrees), room (m) and picture (shares and means of sRGB in [0, 1]).

    `num_objects` counts furniture, lamps, plants and loose things that are seen; `clutter` is the share of the picture
    that things cover, `walkability` that of floor and rugs; `geometric_complexity` is 1 minus the length of the mean
    normal.
    """
    camera, shares = scene.camera, observation.shares
    red, green, blue = colours = view.rgb.reshape(3, -1)
    luminance = np.array((0.2126, 0.7152, 0.0722), np.float32) @ colours
    brightest = np.maximum(np.maximum(red, green), blue)
    darkest = np.minimum(np.minimum(red, green), blue)
    red_green, yellow_blue = red - green, 0.5 * (red + green) - blue
    labels = [item.thing.label for item in observation.seen]
    loose = [label for label in labels if label not in ("person", "window", "door", "picture", "rug", "books")]
    normal = view.normals.reshape(3, -1).mean(1)
    # Hasler and Suesstrunk, Measuring colorfulness in natural images (2003), eq. 10, of sRGB in [0, 1]
    colourfulness = math.hypot(red_green.std(), yellow_blue.std())
    colourfulness += 0.3 * math.hypot(red_green.mean(), yellow_blue.mean())
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
        "brightness": float(luminance.mean()),
        "contrast": float(luminance.std()),
        "saturation": float(((brightest - darkest) / np.maximum(brightest, 1e-3)).mean()),
        "colourfulness": colourfulness,
        "clutter": float((observation.instances > 0).mean()),
        "walkability": shares["floor"] + shares["rug"],
        "geometric_complexity": float(1 - np.linalg.norm(normal)),
    }
