"""The two networks of MediaPipe's pose solution, run by LiteRT: where people are, and 33 landmarks of each."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tokenizers_zoo.families.object_tokens import box_overlaps
from tokenizers_zoo.pretrained import PretrainedError, files_of, pretrained_errors

Array = NDArray[Any]
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
"""Least overlap (IoU) at which two face boxes belong to one person."""
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
