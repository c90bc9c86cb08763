"""The 33 landmarks of MediaPipe's pose networks (BlazePose GHUM, arXiv 2206.11678), and the 24 joints of a body that
they make.

Points are in camera axes throughout: x right, y up, z towards the viewer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo_geometry import body
from zoo_geometry.picture_regions import Region
from zoo_geometry.rotations import direction

Array = NDArray[Any]
SIZE = 256
"""Pixels of the network's input along each side."""
LANDMARKS = 33
POINTS = 39
"""Landmarks, and six that only say where to look in the next picture of a film."""
HEAT_MAP = 64
"""Cells of each landmark's heat map along each side."""
WINDOW = 3
"""Cells of the heat map to each side of a landmark that are asked where it is."""
SURE = 0.5
"""Likelihood that a cell there must reach for its heat map to be believed."""

NOSE, LEFT_EYE, RIGHT_EYE, LEFT_EAR, RIGHT_EAR = 0, 2, 5, 7, 8
LEFT_SHOULDER, RIGHT_SHOULDER, LEFT_HIP, RIGHT_HIP = 11, 12, 23, 24
SAME = {
    "left_shoulder": 11, "right_shoulder": 12, "left_elbow": 13, "right_elbow": 14, "left_wrist": 15,
    "right_wrist": 16, "left_hip": 23, "right_hip": 24, "left_knee": 25, "right_knee": 26, "left_ankle": 27,
    "right_ankle": 28,
}  # fmt: skip
"""Joints that are landmarks."""
BETWEEN = {
    "left_hand": (17, 19, 0.5), "right_hand": (18, 20, 0.5), "left_foot": (29, 31, 0.7), "right_foot": (30, 32, 0.7),
}  # fmt: skip
"""Joints between two landmarks, and how far along: knuckles of little finger and index; heel and tip of the toe."""
HEAD = 0.55
"""How far the base of the skull is on the way from the base of the neck to the middle of the ears."""
TORSO = ("pelvis", "spine1", "spine2", "spine3", "neck", "left_collar", "right_collar")
"""Joints that are inside of the body: laid between hips and shoulders as in the rest pose."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Landmarks:
    """What is seen of one person."""

    presence: float
    """How likely there is somebody, in [0, 1]."""
    image: Array
    """(33, 3): x right and y up in pixels from the picture's top left corner, so that y is negative in the picture, and
    z by the same scale from the middle of the hips."""
    world: Array
    """(33, 3): metres from the middle of the hips, as if the camera looked straight at `region`."""
    visible: Array
    """(33,): how likely each is in the picture and not hidden, in [0, 1]."""
    outline: Array
    """(n, 2): the pixels of the picture, x right and y down, that show the person; it may be none."""
    region: Region
    """Where it was looked for."""


def landmarks_of(raw: Array, world: Array, presence: float, mask: Array, heat: Array, region: Region) -> Landmarks:
    """The network's answers in the picture.

    `raw` is 39 times x, y, z in pixels of the input and two logits, of being visible and of being in the picture;
    `world` 39 times x, y, z in metres, y down and z away; `mask` logits (256, 256) of showing the person; `heat` logits
    (64, 64, 39) of showing each point.
    """
    numbers = raw.reshape(POINTS, 5).astype(np.float64)[:LANDMARKS]
    places = refined(numbers[:, :2] / SIZE, heat.astype(np.float64)[:, :, :LANDMARKS])
    pixels = region.to_picture(places)
    image = np.stack([pixels[:, 0], -pixels[:, 1], -numbers[:, 2] / SIZE * region.side], axis=1)
    metres = world.reshape(POINTS, 3).astype(np.float64)[:LANDMARKS]
    turned = metres[:, :2] @ region.turn.T
    rows, columns = np.nonzero(mask > 0)
    cells = np.stack([columns + 0.5, rows + 0.5], axis=1) / SIZE
    return Landmarks(
        presence=presence,
        image=image,
        world=np.stack([turned[:, 0], -turned[:, 1], -metres[:, 2]], axis=1),
        visible=sigmoid(numbers[:, 3]),
        outline=region.to_picture(cells),
        region=region,
    )


def refined(places: Array, heat: Array) -> Array:
    """Landmarks (n, 2), fractions of the region, moved to the middle of the likelihood that their heat maps
    (cells, cells, n), logits, show around them, where that is `SURE` somewhere."""
    cells, moved = len(heat), places.copy()
    for point, place in enumerate(places):
        column, row = (int(number) for number in np.floor(place * cells))
        if not (0 <= column < cells and 0 <= row < cells):
            continue
        top, left = max(row - WINDOW, 0), max(column - WINDOW, 0)
        likely = sigmoid(heat[top : row + WINDOW + 1, left : column + WINDOW + 1, point])
        if likely.max() >= SURE:
            rows, columns = np.indices(likely.shape)
            moved[point] = (
                np.array([(left + columns) * likely, (top + rows) * likely]).sum((1, 2)) / likely.sum() / cells
            )
    return moved


def joints_of_landmarks(points: Array) -> Array:
    """The 24 joints (24, 3) of `zoo_geometry.body` that 33 landmarks (33, 3) make, in any unit.

    Shoulders, elbows, wrists, hips, knees and ankles are landmarks. A hand is midway between the knuckles of index and
    little finger, a foot 0.7 of the way from the heel to the tip of the toes, the head 0.55 of the way from neck to the
    middle of the ears. Pelvis, spine, neck and collars keep the place that they have in `body.ADULT` relative to
    hips and shoulders: their share of the way from the middle of the hips to that of the shoulders, and their distance
    from that line to the front and to the side, where "to the side" turns from the line of the hips to that of the
    shoulders. Whoever stands in the rest pose thus has the joints of the rest pose; how a spine is bent is not seen.
    """
    joints = np.zeros((len(body.JOINTS), 3))
    for name, landmark in SAME.items():
        joints[body.JOINTS.index(name)] = points[landmark]
    for name, (start, end, share) in BETWEEN.items():
        joints[body.JOINTS.index(name)] = (1 - share) * points[start] + share * points[end]
    inside = [body.JOINTS.index(name) for name in TORSO]
    joints[inside] = torso_of(points[[LEFT_SHOULDER, RIGHT_SHOULDER, LEFT_HIP, RIGHT_HIP]])
    neck = joints[body.JOINTS.index("neck")]
    joints[body.JOINTS.index("head")] = neck + HEAD * (points[[LEFT_EAR, RIGHT_EAR]].mean(axis=0) - neck)
    return joints


def torso_of(corners: Array) -> Array:
    """The joints `TORSO` (7, 3) of left and right shoulder, left and right hip (4, 3)."""
    rest = body.joints_of(np.zeros((1, len(body.JOINTS), 3)), body.ADULT[None], np.zeros((1, 3)))[0]
    names = ("left_shoulder", "right_shoulder", "left_hip", "right_hip")
    shoulders, hips = corners[:2].mean(axis=0), corners[2:].mean(axis=0)
    own = rest[[body.JOINTS.index(name) for name in names]]
    own_hips = own[2:].mean(axis=0)
    own_up, up = own[:2].mean(axis=0) - own_hips, shoulders - hips
    lines = direction(np.stack([corners[2] - corners[3], corners[0] - corners[1]]))
    scale = np.linalg.norm(up) / np.linalg.norm(own_up)
    wide = np.linalg.norm(corners[0] - corners[1]) / np.linalg.norm(own[0] - own[1])
    side = np.array([1.0, 0.0, 0.0])
    joints = []
    for name in TORSO:
        place = rest[body.JOINTS.index(name)] - own_hips
        share = float(place @ own_up / (own_up @ own_up))
        across = float(place @ side)
        front = float((place - share * own_up) @ direction(np.cross(side, own_up)))
        turned = float(np.clip(share, 0, 1))
        left = direction((1 - turned) * lines[0] + turned * lines[1])
        joints.append(hips + share * up + across * wide * left + front * scale * direction(np.cross(left, up)))
    return np.array(joints)


def head_of_landmarks(points: Array) -> Array:
    """How the head is turned: the rotation (3, 3) from the rest pose's axes, of the line between the ears and of the
    direction from their middle to that of eyes and nose, which is level in the rest pose."""
    left = direction(points[LEFT_EAR] - points[RIGHT_EAR])
    ahead = points[[NOSE, LEFT_EYE, RIGHT_EYE]].mean(axis=0) - points[[LEFT_EAR, RIGHT_EAR]].mean(axis=0)
    up = direction(np.cross(ahead, left))
    return np.stack([left, up, np.cross(left, up)], axis=1)


def sigmoid(logits: Array) -> Array:
    """Likelihoods of logits."""
    return 1 / (1 + np.exp(-np.clip(logits, -100, 100)))
