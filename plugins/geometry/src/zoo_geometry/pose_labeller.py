"""People that networks see in a photograph, as values of human_poses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tokenizers_zoo.config import check_interval
from tokenizers_zoo.pretrained import PretrainedConfig
from zoo_geometry import body
from zoo_geometry.body import direction, half_sizes, look_at_rotation, offset_of, rotations_of
from zoo_geometry.pose_networks import FILES, Landmarks, PoseNetworks

Array = NDArray[Any]
Person = dict[str, Any]
NOSE, LEFT_EYE, RIGHT_EYE, LEFT_EAR, RIGHT_EAR = 0, 2, 5, 7, 8
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
"""Joints inside the body, placed between hips and shoulders as in the rest pose."""
CORNERS = ("left_shoulder", "right_shoulder", "left_hip", "right_hip")


WEIGHED = (0, 7, 8, *range(11, 17), *range(23, 29))
"""Landmarks that say where a person is: nose, ears, shoulders, elbows, wrists, hips, knees, ankles."""
SEEN = 0.5
"""Least visibility of a landmark that counts for the person's box."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PoseLabeller(PretrainedConfig):
    """The pose networks of MediaPipe (Apache-2.0): a folder of the .tflite files of its wheel, run on the CPU.

    Sizes and distances in metres are estimates: the landmark network supposes people of usual size, and the distance
    follows from how large they are seen and from `camera_fov`.
    """

    files: ClassVar[tuple[str, ...]] = FILES
    advice: ClassVar[str] = (
        "pip download mediapipe==0.10.21 --no-deps; unzip -j mediapipe-*.whl '*/pose_*.tflite' -d FOLDER; set"
        " labeller.model to FOLDER"
    )

    camera_fov: float | tuple[float, float] | None = None
    """The camera's field of view, degrees: the vertical one, of pixels that are square at the size of the settings of
    rgb, or [vertical, horizontal]. Absent supposes a focal length of the picture's diagonal."""
    threshold: float = 0.5
    """Least score of the detector and of the landmark network, in (0, 1)."""

    def __post_init__(self) -> None:
        PretrainedConfig.__post_init__(self)
        check_interval(self, "(0, 180)", "camera_fov", unit="degrees")
        check_interval(self, "(0, 1)", "threshold", unit="a score")

    def people(self, picture: Array) -> list[Person]:
        """The people of a picture, float (3, height, width) in [0, 1]; an empty list where there are none."""
        detections = self.load(PoseNetworks).people(picture, self.threshold)
        people = (person_of(landmarks, picture.shape[-2:], self.camera_fov) for landmarks in detections)
        return [person for person in people if person is not None]


def person_of(
    landmarks: Landmarks, size: tuple[int, int], fov: float | tuple[float, float] | None = None
) -> Person | None:
    """The entries of one person in a picture of `size` (height, width); None where nothing of them is in the picture,
    or where they cannot be put before the camera."""
    height, width = size
    scale = np.array([1 / width, -1 / height])
    half = half_sizes(fov, height, width)
    # The network sees a person as a camera would that looks at their region; this one looks ahead (CLIFF).
    centre = np.array([landmarks.region.x / width, landmarks.region.y / height])
    world = landmarks.world @ look_at_rotation(centre, half).T
    indices = list(WEIGHED)
    offset = offset_of(world[indices], (landmarks.image[:, :2] * scale)[indices], landmarks.visible[indices], half)
    joints = joints_of_landmarks(world) + offset
    box = box_of(landmarks, size)
    if box is None or not body.NEAREST < -joints[0, 2] <= body.FARTHEST:
        return None
    turns = rotations_of(joints, body.ADULT, head_of_landmarks(world))
    image = joints_of_landmarks(landmarks.image)[:, :2] * scale
    rows = {"joint_rotations": turns, "joints_camera": joints, "joints_image": image}
    return {name: array.tolist() for name, array in rows.items()} | {"box": box}


def box_of(landmarks: Landmarks, size: tuple[int, int]) -> list[float] | None:
    """The box, fractions in [0, 1], of the pixels that show the person, with the landmarks in sight; None if none is in
    the picture."""
    pixels = landmarks.image[landmarks.visible >= SEEN][:, :2] * np.array([1.0, -1.0])
    shares = np.concatenate([landmarks.outline, pixels]) / np.array([size[1], size[0]])
    inside = shares[((shares >= 0) & (shares <= 1)).all(axis=1)]
    if len(inside) == 0:
        return None
    box = [*inside.min(axis=0).tolist(), *inside.max(axis=0).tolist()]
    return box if box[0] < box[2] and box[1] < box[3] else None


def joints_of_landmarks(points: Array) -> Array:
    """Compute the 24 joints (24, 3) of `zoo_geometry.body` from 33 landmarks (33, 3), in any unit.

    Shoulders, elbows, wrists, hips, knees and ankles are landmarks themselves. A hand is midway between the knuckles of
    index and little finger. A foot is 0.7 of the way from the heel to the tip of the toes, and the head 0.55 of the way
    from the neck to the middle of the ears. Pelvis, spine, neck and collars keep their position in `body.ADULT`
    relative to hips and shoulders (see `torso_of`). The rest pose is therefore reproduced exactly. A bent spine is not
    seen.
    """
    joints = np.zeros((len(body.JOINTS), 3))
    direct = {name: (landmark, landmark, 0.0) for name, landmark in SAME.items()}
    for name, (start, end, share) in (direct | BETWEEN).items():
        joints[body.JOINTS.index(name)] = (1 - share) * points[start] + share * points[end]
    inside = [body.JOINTS.index(name) for name in TORSO]
    joints[inside] = torso_of(points[[SAME[name] for name in CORNERS]])
    neck = joints[body.JOINTS.index("neck")]
    joints[body.JOINTS.index("head")] = neck + HEAD * (points[[LEFT_EAR, RIGHT_EAR]].mean(axis=0) - neck)
    return joints


def torso_of(corners: Array) -> Array:
    """Compute the joints `TORSO` (7, 3) from left and right shoulder and left and right hip (4, 3).

    Each joint keeps its fraction of the way from the middle of the hips to the middle of the shoulders, and its
    distance from that line to the front and to the side. "Side" rotates from the line of the hips to the line of the
    shoulders.
    """
    rest = body.joints_of(np.zeros((1, len(body.JOINTS), 3)), body.ADULT[None], np.zeros((1, 3)))[0]
    rest_corners, rest_torso = (rest[[body.JOINTS.index(name) for name in names]] for names in (CORNERS, TORSO))
    (hips, up, across), (rest_hips, rest_up, rest_across) = map(axes_of, (corners, rest_corners))
    rest_torso = rest_torso - rest_hips
    share = rest_torso @ rest_up / (rest_up @ rest_up)
    ahead = direction(np.cross((1.0, 0.0, 0.0), rest_up))
    front = (rest_torso - share[:, None] * rest_up) @ ahead * np.linalg.norm(up) / np.linalg.norm(rest_up)
    aside = rest_torso[:, 0] * np.linalg.norm(across) / np.linalg.norm(rest_across)
    turned = np.clip(share, 0, 1)[:, None]
    left = direction((1 - turned) * direction(corners[2] - corners[3]) + turned * direction(across))
    return hips + share[:, None] * up + aside[:, None] * left + front[:, None] * direction(np.cross(left, up))


def axes_of(corners: Array) -> tuple[Array, Array, Array]:
    """The middle of the hips, and the ways from there to the middle of the shoulders and from shoulder to shoulder."""
    hips = corners[2:].mean(axis=0)
    return hips, corners[:2].mean(axis=0) - hips, corners[0] - corners[1]


def head_of_landmarks(points: Array) -> Array:
    """Compute the head's rotation (3, 3) from the rest pose.

    It follows from the line between the ears and the direction from the ears to eyes and nose, which is horizontal in
    the rest pose.
    """
    left = direction(points[LEFT_EAR] - points[RIGHT_EAR])
    ahead = points[[NOSE, LEFT_EYE, RIGHT_EYE]].mean(axis=0) - points[[LEFT_EAR, RIGHT_EAR]].mean(axis=0)
    up = direction(np.cross(ahead, left))
    return np.stack([left, up, np.cross(left, up)], axis=1)
