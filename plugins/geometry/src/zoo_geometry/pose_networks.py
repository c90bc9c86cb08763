"""The two networks of MediaPipe's pose solution, run by LiteRT: where people are, and 33 landmarks of each."""

from __future__ import annotations

import functools
import importlib.metadata
import math
import os
import threading
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tokenizers_zoo.families.object_tokens import box_overlaps
from tokenizers_zoo.pretrained import PIP, PretrainedError, one_line

Array = NDArray[Any]
ADVICE = (
    "pip download mediapipe==0.10.21 --no-deps -d FOLDER, and set labeller.model to the wheel, or to a folder of its"
    " .tflite"
)
DETECTOR = "pose_detection.tflite"


def place_of(model: str) -> Path:
    """The folder or the wheel that `model` names: a path, or pip:DISTRIBUTION. Raises PretrainedError."""
    if model.startswith(PIP):
        name = model.removeprefix(PIP)
        try:
            return Path(str(importlib.metadata.distribution(name).locate_file(name.replace("-", "_"))))
        except importlib.metadata.PackageNotFoundError:
            raise PretrainedError(f"{model}: is not installed; {ADVICE}") from None
    place = Path(os.path.expanduser(model))  # as it is where there is no such home
    if not place.exists():
        raise PretrainedError(f"{model}: no such folder or wheel; {ADVICE}")
    if place.is_file() and not zipfile.is_zipfile(place):
        raise PretrainedError(f"{model}: is neither a folder nor a wheel; {ADVICE}")
    return place


def contents(place: Path, size: str) -> dict[str, bytes]:
    """The bytes of the detector and of the landmark network of this size, by name. Raises PretrainedError.

    They are in the folder itself, as in the package, or as in a wheel.
    """
    found: dict[str, bytes] = {}
    folders = {DETECTOR: "modules/pose_detection", f"pose_landmark_{size}.tflite": "modules/pose_landmark"}
    try:
        root = zipfile.Path(place) if place.is_file() else place
        for name, folder in folders.items():
            for way in (name, f"{folder}/{name}", f"mediapipe/{folder}/{name}"):
                if (file := root.joinpath(way)).is_file():
                    found[name] = file.read_bytes()
                    break
    except (OSError, zipfile.BadZipFile) as error:
        raise PretrainedError(f"{place}: cannot be read: {error}") from None
    if absent := [name for name in folders if name not in found]:
        raise PretrainedError(f"{place}: there is no {' and no '.join(absent)} in it; {ADVICE}")
    return found


def version_of(model: str, place: Path) -> str | None:
    """The version of an installed distribution or of a wheel; None for a folder."""
    if model.startswith(PIP):
        return importlib.metadata.version(model.removeprefix(PIP))
    known = importlib.metadata.distributions(path=[str(place)]) if place.is_file() else ()
    return next((wheel.version for wheel in known), None)


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

    @classmethod
    def whole(cls, picture: Array) -> Region:
        """The smallest upright square around a picture (channels, height, width), both with one centre."""
        height, width = picture.shape[-2:]
        return cls(x=width / 2, y=height / 2, side=float(max(width, height)))

    @property
    def turn(self) -> Array:
        """The rotation matrix (2, 2) from directions in the region to directions in the picture."""
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        return np.array([[cos, -sin], [sin, cos]])

    def to_picture(self, places: Array) -> Array:
        """Fractions of the region (..., 2), x and y from its top left corner, as pixels of the picture (..., 2)."""
        return (places - 0.5) * self.side @ self.turn.T + (self.x, self.y)

    def shown(self, picture: Array, size: int, beyond: Literal["black", "edge"]) -> Array:
        """Sample the region from a picture (channels, height, width): (size, size, channels), bilinear, antialiased.

        `beyond` sets the padding outside of the picture: 0, or the nearest pixel.
        """
        samples = min(max(math.ceil(self.side / size), 1), MOST_SAMPLES)
        steps = (np.arange(size * samples) + 0.5) / (size * samples)
        places = np.stack(np.meshgrid(steps, steps), axis=-1)
        found = sampled(picture, self.to_picture(places), beyond)
        return found.reshape(size, samples, size, samples, -1).mean(axis=(1, 3))


def sampled(picture: Array, pixels: Array, beyond: Literal["black", "edge"]) -> Array:
    """A picture (channels, height, width) between its pixels at `pixels` (..., 2): (..., channels), bilinear."""
    from scipy.ndimage import map_coordinates

    places, mode = np.moveaxis(pixels - 0.5, -1, 0)[::-1], "nearest" if beyond == "edge" else "grid-constant"
    return np.stack([map_coordinates(channel, places, np.float64, order=1, mode=mode) for channel in picture], axis=-1)


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


@dataclass(frozen=True, slots=True)
class Detection:
    """Somebody: how likely, in (0, 1), the face's box (4) as xmin, ymin, xmax, ymax, and four points (4, 2)."""

    score: float
    box: Array
    points: Array

    def region(self, whole: Region) -> Region:
        """The square of the picture around this body, upright for the body: hips in the middle, head up.

        Box and points are fractions of `whole`.
        """
        hips, rim = whole.to_picture(self.points[:2])
        right, down = (rim - hips).tolist()
        side = 2 * MARGIN * max(math.hypot(right, down), 1.0)
        return Region(x=float(hips[0]), y=float(hips[1]), side=side, angle=math.atan2(right, -down))


def anchors() -> Array:
    """The places of the anchors, fractions of the input (2254, 2): row by row of each grid of `GRIDS`."""
    places = []
    for stride, count in GRIDS:
        steps = (np.arange(DETECTOR_SIZE // stride) + 0.5) * stride / DETECTOR_SIZE
        places.append(np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2).repeat(count, axis=0))
    return np.concatenate(places)


def detections(numbers: Array, logits: Array, threshold: float) -> list[Detection]:
    """Decode the network's outputs (2254, 12) and logits (2254) into detections, most confident first.

    `threshold` is the least score, in (0, 1).
    """
    scores = sigmoid(logits.astype(np.float64))
    used = scores >= threshold
    places, found = anchors()[used], numbers[used].astype(np.float64) / DETECTOR_SIZE
    centre, half = places + found[:, :2], found[:, 2:4] / 2
    boxes = np.concatenate([centre - half, centre + half], axis=1)
    points = places[:, None] + found[:, 4:].reshape(-1, 4, 2)
    return merged(scores[used], boxes, points)


def merged(scores: Array, boxes: Array, points: Array) -> list[Detection]:
    """One detection of each group of boxes (n, 4) that overlap its best one: their mean, weighted by score.

    The weighted non-maximum suppression of BlazeFace (arXiv 1907.05047, post-processing); points (n, 4, 2) go with the
    boxes.
    """
    people = []
    left = np.argsort(-scores, kind="stable")
    table = box_overlaps(boxes, boxes)
    while len(left):
        same = (table[left[0], left] > SAME_PERSON) | (left == left[0])
        group = left[same]
        weights = scores[group] / scores[group].sum()
        box, four = (np.tensordot(weights, values[group], axes=1) for values in (boxes, points))
        people.append(Detection(float(scores[left[0]]), box, four))
        left = left[~same]
    return people


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Landmarks:
    """Landmarks of one person."""

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


def sigmoid(logits: Array) -> Array:
    """Likelihoods of logits."""
    return 1 / (1 + np.exp(-np.clip(logits, -100, 100)))


class TfliteNetwork:
    """A .tflite network with one input picture. Outputs are identified by their shapes.

    Raises PretrainedError if the library or an expected output is missing.
    """

    def __init__(self, name: str, content: bytes, size: int, *shapes: tuple[int, ...]) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError:
            raise PretrainedError('its networks need ai-edge-litert; pip install "zoo-geometry[poses]"') from None
        with one_line(f"{name}: cannot be read as a network of LiteRT"):
            self.interpreter = Interpreter(model_content=content, num_threads=1)
            self.interpreter.allocate_tensors()
        inputs, outputs = self.interpreter.get_input_details(), self.interpreter.get_output_details()
        places = {tuple(map(int, output["shape"])): int(output["index"]) for output in outputs}
        taken = [tuple(map(int, entry["shape"])) for entry in inputs]
        if taken != [(1, size, size, 3)] or any(shape not in places for shape in shapes):
            raise PretrainedError(
                f"{name}: expected a network of {(1, size, size, 3)} to {', '.join(map(str, shapes))}, got one of"
                f" {', '.join(map(str, taken))} to {', '.join(map(str, places))}; take the file of mediapipe 0.10.21"
            )
        self.input, self.outputs = int(inputs[0]["index"]), [places[shape] for shape in shapes]

    def answers(self, pixels: Array) -> list[Array]:
        """The outputs, in the order of their shapes, for pixels (size, size, 3)."""
        self.interpreter.set_tensor(self.input, pixels[None].astype(np.float32))
        self.interpreter.invoke()
        return [self.interpreter.get_tensor(index) for index in self.outputs]


class PoseNetworks:
    """Both networks; one picture at a time, on one thread, so that answers are the same anywhere."""

    def __init__(self, files: dict[str, bytes]) -> None:
        (detector, boxes), (landmarks, points) = files.items()
        self.detector = TfliteNetwork(detector, boxes, DETECTOR_SIZE, (1, 2254, NUMBERS), (1, 2254, 1))
        heat = (1, HEAT_MAP, HEAT_MAP, POINTS)
        self.landmarks = TfliteNetwork(
            landmarks, points, SIZE, (1, POINTS * 5), (1, 1), (1, SIZE, SIZE, 1), heat, (1, POINTS * 3)
        )
        self.lock = threading.Lock()

    def people(self, picture: Array, threshold: float, presence: float) -> list[Landmarks]:
        """Detect people with at least these scores in a picture, float (3, height, width), most confident first."""
        whole, found = Region.whole(picture), []
        with self.lock:
            numbers, logits = self.detector.answers(2 * whole.shown(picture, DETECTOR_SIZE, "black") - 1)
            for detection in detections(numbers[0], logits[0, :, 0], threshold):
                region = detection.region(whole)
                raw, sure, mask, heat, world = self.landmarks.answers(region.shown(picture, SIZE, "edge"))
                if sure[0, 0] >= presence:
                    found.append(landmarks_of(raw, world, float(sure[0, 0]), mask[0, :, :, 0], heat[0], region))
        return found


@functools.cache
def builder(size: str) -> Callable[[Path, str], PoseNetworks]:
    """The function that builds the networks with the landmark network of this size, always the same one."""
    return lambda place, device: PoseNetworks(contents(place, size))
