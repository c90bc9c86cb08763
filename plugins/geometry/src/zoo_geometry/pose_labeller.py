"""People in a photograph, as values of human_poses, by the two networks of MediaPipe's pose solution.

LiteRT runs them: one says where people are, the other gives 33 landmarks of each.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np

from tokenizers_zoo.contract.pretrained import PretrainedConfig, PretrainedError, files_of, pretrained_errors
from tokenizers_zoo.families.object_tokens import box_overlaps
from tokenizers_zoo.records.typed import Interval
from zoo_geometry import body
from zoo_geometry.body import Array, direction, half_sizes, look_at_rotation, offset_of, rotations_of

Person = dict[str, Any]
FILES = ("pose_detection.tflite", "pose_landmark_*.tflite")
"""The detector and the landmark network; of several the first is taken."""
MOST_SAMPLES = 4
"""Samples along each side of a pixel that a larger region is averaged from, at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Region:
    """A square of a picture, in pixels from its top left corner; the centre of the first pixel is (0.5, 0.5)."""

    x: float
    """Horizontal position of the centre."""
    y: float
    """Vertical position of the centre."""
    side: float
    """Above 0."""
    angle: float = 0.0
    """Radians, clockwise as it is seen."""

    @property
    def turn(self) -> Array:
        """The rotation matrix (2, 2) from directions in the region to directions in the picture."""
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        return np.array([[cos, -sin], [sin, cos]])

    def to_picture(self, points: Array) -> Array:
        """Fractions of the region (..., 2), x and y from its top left corner, as pixels of the picture (..., 2)."""
        return (points - 0.5) * self.side @ self.turn.T + (self.x, self.y)

    def sample(self, picture: Array, size: int, beyond: Literal["black", "edge"]) -> Array:
        """Sample the region from a picture (channels, height, width): (size, size, channels), bilinear, antialiased.

        `beyond` sets the padding outside of the picture: 0, or the nearest pixel.
        """
        samples = min(max(math.ceil(self.side / size), 1), MOST_SAMPLES)
        steps = (np.arange(size * samples) + 0.5) / (size * samples)
        values = sample_pixels(picture, self.to_picture(np.stack(np.meshgrid(steps, steps), axis=-1)), beyond)
        return values.reshape(size, samples, size, samples, -1).mean(axis=(1, 3))


def sample_pixels(picture: Array, pixels: Array, beyond: Literal["black", "edge"]) -> Array:
    """A picture (channels, height, width) between its pixels at `pixels` (..., 2): (..., channels), bilinear."""
    from scipy.ndimage import map_coordinates

    rows_and_columns, mode = np.moveaxis(pixels - 0.5, -1, 0)[::-1], "nearest" if beyond == "edge" else "grid-constant"
    channels = [map_coordinates(channel, rows_and_columns, np.float64, order=1, mode=mode) for channel in picture]
    return np.stack(channels, axis=-1)


DETECTOR_SIZE = 224
"""Pixels of the network's input along each side."""
GRIDS = ((8, 2), (16, 2), (32, 6))
"""Pixels between anchors, and how many anchors share a place, in the order of the network's answers."""
NUMBERS = 12
"""Numbers per anchor: x, y of the box's centre, its width and height, and x, y of four points, all in pixels."""
SAME_PERSON = 0.3
"""Least overlap (IoU) of two face boxes that belong to one person."""
MARGIN = 1.25
"""Side of the region that the landmark network is shown, over the diameter of the circle around the body."""


def region_of(points: Array) -> Region:
    """The square around a body, upright for the body: hips in the middle, head up. The points are hips and rim."""
    right, down = (points[1] - points[0]).tolist()
    side = 2 * MARGIN * max(math.hypot(right, down), 1.0)
    return Region(x=float(points[0, 0]), y=float(points[0, 1]), side=side, angle=math.atan2(right, -down))


def anchors() -> Array:
    """The places of the anchors, fractions of the input (2254, 2): row by row of each grid of `GRIDS`."""
    grids = []
    for stride, count in GRIDS:
        steps = (np.arange(DETECTOR_SIZE // stride) + 0.5) * stride / DETECTOR_SIZE
        grids.append(np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2).repeat(count, axis=0))
    return np.concatenate(grids)


def detections(numbers: Array, logits: Array, threshold: float) -> list[Array]:
    """Four points (4, 2), fractions of the input, of each person in the network's outputs (2254, 12) and (2254).

    The most confident person comes first; `threshold` is the least score, in (0, 1). Boxes of one person are averaged,
    weighted by score (BlazeFace, arXiv 1907.05047, post-processing).
    """
    scores = sigmoid(logits.astype(np.float64))
    remaining = np.argsort(-scores, kind="stable")[: int((scores >= threshold).sum())]
    scores, anchor_points = scores[remaining], anchors()[remaining]
    offsets = numbers[remaining].astype(np.float64) / DETECTOR_SIZE
    centre, half = anchor_points + offsets[:, :2], offsets[:, 2:4] / 2
    boxes = np.concatenate([centre - half, centre + half], axis=1)
    points = anchor_points[:, None] + offsets[:, 4:].reshape(-1, 4, 2)
    people, overlaps, remaining = list[Array](), box_overlaps(boxes, boxes), np.arange(len(scores))
    while len(remaining):
        same = (overlaps[remaining[0], remaining] > SAME_PERSON) | (remaining == remaining[0])
        people.append(np.average(points[remaining[same]], axis=0, weights=scores[remaining[same]]))
        remaining = remaining[~same]
    return people


SIZE = 256
"""Pixels of the network's input along each side."""
LANDMARKS = 33
POINTS = 39
"""Landmarks, and six that only say where to look in the next picture of a film."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Landmarks:
    """Landmarks of one person."""

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


def landmarks_of(raw: Array, world: Array, mask: Array, region: Region) -> Landmarks:
    """The network's answers in the picture.

    `raw` is 39 times x, y, z in pixels of the input and two logits, of being visible and of being in the picture;
    `world` 39 times x, y, z in metres, y down and z away; `mask` logits (256, 256) of showing the person.
    """
    numbers = raw.reshape(POINTS, 5).astype(np.float64)[:LANDMARKS]
    pixels = region.to_picture(numbers[:, :2] / SIZE)
    image = np.stack([pixels[:, 0], -pixels[:, 1], -numbers[:, 2] / SIZE * region.side], axis=1)
    metres = world.reshape(POINTS, 3).astype(np.float64)[:LANDMARKS]
    turned = metres[:, :2] @ region.turn.T
    rows, columns = np.nonzero(mask > 0)
    cells = np.stack([columns + 0.5, rows + 0.5], axis=1) / SIZE
    return Landmarks(
        image=image,
        world=np.stack([turned[:, 0], -turned[:, 1], -metres[:, 2]], axis=1),
        visible=sigmoid(numbers[:, 3]),
        outline=region.to_picture(cells),
        region=region,
    )


def sigmoid(logits: Array) -> Array:
    return 1 / (1 + np.exp(-np.clip(logits, -100, 100)))


class TfliteNetwork:
    """A .tflite network with one input picture. Outputs are identified by their shapes.

    Raises PretrainedError if the library or an expected output is missing.
    """

    def __init__(self, file: Path, size: int, *shapes: tuple[int, ...]) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError:
            raise PretrainedError('its networks need ai-edge-litert; pip install "zoo-geometry[poses]"') from None
        with pretrained_errors(f"{file}: cannot be read as a network of LiteRT"):
            self.interpreter = Interpreter(model_content=file.read_bytes(), num_threads=1)
            self.interpreter.allocate_tensors()
        (picture_input, *_), outputs = self.interpreter.get_input_details(), self.interpreter.get_output_details()
        index_by_shape = {tuple(map(int, output["shape"])): int(output["index"]) for output in outputs}
        if tuple(picture_input["shape"]) != (1, size, size, 3) or any(shape not in index_by_shape for shape in shapes):
            raise PretrainedError(
                f"{file}: expected a network of {(1, size, size, 3)} to {', '.join(map(str, shapes))}, got one of"
                f" {tuple(map(int, picture_input['shape']))} to {', '.join(map(str, index_by_shape))}; take mediapipe"
                " 0.10.21's file"
            )
        self.input, self.outputs = int(picture_input["index"]), [index_by_shape[shape] for shape in shapes]

    def run(self, pixels: Array) -> list[Array]:
        """The outputs, in the order of their shapes, for pixels (size, size, 3)."""
        self.interpreter.set_tensor(self.input, pixels[None].astype(np.float32))
        self.interpreter.invoke()
        return [self.interpreter.get_tensor(index) for index in self.outputs]


class PoseNetworks:
    """Both networks; one picture at a time, on one thread, so that answers are the same anywhere."""

    def __init__(self, folder: Path, device: str) -> None:
        detector, landmarks = (files_of(folder, pattern)[0] for pattern in FILES)
        self.detector = TfliteNetwork(detector, DETECTOR_SIZE, (1, 2254, NUMBERS), (1, 2254, 1))
        shapes = (1, POINTS * 5), (1, 1), (1, SIZE, SIZE, 1), (1, POINTS * 3)
        self.landmarks = TfliteNetwork(landmarks, SIZE, *shapes)
        self.lock = threading.Lock()

    def people(self, picture: Array, threshold: float) -> list[Landmarks]:
        """Detect people in a picture, float (3, height, width), most confident first, by the least score of both."""
        height, width = picture.shape[-2:]
        full_region, people = Region(x=width / 2, y=height / 2, side=float(max(width, height))), []
        with self.lock:
            numbers, logits = self.detector.run(2 * full_region.sample(picture, DETECTOR_SIZE, "black") - 1)
            for points in detections(numbers[0], logits[0, :, 0], threshold):
                region = region_of(full_region.to_picture(points))
                raw, sure, mask, world = self.landmarks.run(region.sample(picture, SIZE, "edge"))
                if sure[0, 0] >= threshold:
                    people.append(landmarks_of(raw, world, mask[0, :, :, 0], region))
        return people


NOSE, LEFT_EYE, RIGHT_EYE, LEFT_EAR, RIGHT_EAR = 0, 2, 5, 7, 8
SAME = {
    "left_shoulder": 11,
    "right_shoulder": 12,
    "left_elbow": 13,
    "right_elbow": 14,
    "left_wrist": 15,
    "right_wrist": 16,
    "left_hip": 23,
    "right_hip": 24,
    "left_knee": 25,
    "right_knee": 26,
    "left_ankle": 27,
    "right_ankle": 28,
}
"""Joints that are landmarks."""
BETWEEN = {
    "left_hand": (17, 19, 0.5),
    "right_hand": (18, 20, 0.5),
    "left_foot": (29, 31, 0.7),
    "right_foot": (30, 32, 0.7),
}
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

    camera_fov: body.FieldOfView = None
    """The camera's field of view, degrees: the vertical one, of pixels that are square at the size of the settings of
    rgb, or [vertical, horizontal]. Absent supposes a focal length of the picture's diagonal."""
    threshold: Annotated[float, Interval("(0, 1)")] = 0.5
    """Least score of the detector and of the landmark network, in (0, 1)."""

    def people(self, picture: Array) -> list[Person]:
        """The people of a picture, float (3, height, width) in [0, 1]; an empty list where there are none."""
        all_landmarks = self.load(PoseNetworks).people(picture, self.threshold)
        people = (person_of(landmarks, picture.shape[-2:], self.camera_fov) for landmarks in all_landmarks)
        return [person for person in people if person is not None]


def person_of(landmarks: Landmarks, size: tuple[int, int], fov: body.FieldOfView = None) -> Person | None:
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
