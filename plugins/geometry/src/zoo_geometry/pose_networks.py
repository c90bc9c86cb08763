"""The two networks of MediaPipe's pose solution, run by LiteRT: where people are, and 33 landmarks of each."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenizers_zoo.pretrained import PretrainedError, one_line
from zoo_geometry import person_detection
from zoo_geometry.person_detection import Detection
from zoo_geometry.picture_regions import Region
from zoo_geometry.pose_files import DETECTOR, LANDMARK_NETWORK, contents
from zoo_geometry.pose_landmarks import HEAT_MAP, POINTS, SIZE, Landmarks, landmarks_of

Array = NDArray[Any]
INSTALL = 'pip install "zoo-geometry[poses]"'


@dataclass(frozen=True, slots=True)
class TfliteNetwork:
    """A network of one input picture in a .tflite file; its outputs are told apart by their shapes."""

    interpreter: Any
    input_index: int
    outputs: dict[tuple[int, ...], int]

    @classmethod
    def of(cls, name: str, content: bytes, size: int, *shapes: tuple[int, ...]) -> TfliteNetwork:
        """The network of a file's bytes. Raises PretrainedError where the library or what is expected is missing."""
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError:
            raise PretrainedError(f"its networks need ai-edge-litert; {INSTALL}") from None
        with one_line(f"{name}: cannot be read as a network of LiteRT"):
            interpreter = Interpreter(model_content=content, num_threads=1)
            interpreter.allocate_tensors()
        inputs = interpreter.get_input_details()
        found = {tuple(map(int, output["shape"])): int(output["index"]) for output in interpreter.get_output_details()}
        taken = [tuple(map(int, entry["shape"])) for entry in inputs]
        if taken != [(1, size, size, 3)] or any(shape not in found for shape in shapes):
            raise PretrainedError(
                f"{name}: expected a network of {(1, size, size, 3)} to {', '.join(map(str, shapes))}, got one of"
                f" {', '.join(map(str, taken))} to {', '.join(map(str, found))}; take the file of mediapipe 0.10.21"
            )
        return cls(interpreter, int(inputs[0]["index"]), found)

    def answers(self, pixels: Array, *shapes: tuple[int, ...]) -> list[Array]:
        """The outputs of these shapes for pixels (size, size, 3)."""
        self.interpreter.set_tensor(self.input_index, pixels[None].astype(np.float32))
        self.interpreter.invoke()
        return [self.interpreter.get_tensor(self.outputs[shape]) for shape in shapes]


class PoseNetworks:
    """Both networks; one picture at a time, on one thread, so that answers are the same anywhere."""

    detector_outputs = ((1, 2254, person_detection.NUMBERS), (1, 2254, 1))
    landmark_outputs = (
        (1, POINTS * 5), (1, 1), (1, SIZE, SIZE, 1), (1, HEAT_MAP, HEAT_MAP, POINTS), (1, POINTS * 3),
    )  # fmt: skip

    def __init__(self, detector: bytes, landmarks: bytes, name: str) -> None:
        self.detector = TfliteNetwork.of(DETECTOR, detector, person_detection.SIZE, *self.detector_outputs)
        self.landmarks = TfliteNetwork.of(name, landmarks, SIZE, *self.landmark_outputs)
        self.lock = threading.Lock()

    def detections(self, picture: Array, threshold: float) -> list[Detection]:
        """Who may be in a picture, float (3, height, width) in [0, 1]; places are fractions of `Region.whole`."""
        pixels = 2 * Region.whole(picture).shown(picture, person_detection.SIZE, "black") - 1
        with self.lock:
            numbers, logits = self.detector.answers(pixels, *self.detector_outputs)
        return person_detection.detections(numbers[0], logits[0, :, 0], threshold)

    def landmarks_in(self, picture: Array, region: Region) -> Landmarks:
        """The landmarks of whoever is in a region of the picture."""
        pixels = region.shown(picture, SIZE, "edge")
        with self.lock:
            raw, presence, mask, heat, world = self.landmarks.answers(pixels, *self.landmark_outputs)
        return landmarks_of(raw, world, float(presence[0, 0]), mask[0, :, :, 0], heat[0], region)

    def people(self, picture: Array, threshold: float, presence: float) -> list[Landmarks]:
        """Everybody who is found with at least these scores, the likeliest detection first."""
        whole = Region.whole(picture)
        regions = [detection.region(whole) for detection in self.detections(picture, threshold)]
        found = (self.landmarks_in(picture, region) for region in regions)
        return [person for person in found if person.presence >= presence]


@functools.cache
def builder(size: str) -> Callable[[Path, str], PoseNetworks]:
    """The function that builds the networks with the landmark network of this size, always the same one."""

    def build(place: Path, device: str) -> PoseNetworks:
        name = LANDMARK_NETWORK.format(size=size)
        files = contents(place, size)
        return PoseNetworks(files[DETECTOR], files[name], name)

    return build
