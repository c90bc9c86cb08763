"""Bodies as MediaPipe's pose networks would report them, and fake networks with fixed answers."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zoo_geometry import body, pose_labeller
from zoo_geometry.pose_labeller import Landmarks, Region, anchors

METRES = 100.0  # pixels of the landmark network's input per metre, in the fake answers
STILL = np.zeros((24, 3))
LINES = np.array([(11, 15), (12, 16), (11, 23), (12, 24), (23, 27), (24, 28), (27, 31), (28, 32), (0, 11)])
"""Pairs of landmarks; the picture shows the person between the two points."""


def standing(turns: np.ndarray = STILL, bones: np.ndarray = body.ADULT) -> np.ndarray:
    """Joints (24, 3) with the pelvis at the origin."""
    return body.joints_of(turns[None], bones[None], np.zeros((1, 3)))[0]


def landmarks_around(joints: np.ndarray, head: np.ndarray | None = None) -> np.ndarray:
    """Return landmarks (33, 3) for joints (24, 3), with ears, eyes and nose around a head rotated by `head` (3, 3)."""
    head = np.eye(3) if head is None else head
    positions = {name: joints[index] for index, name in enumerate(body.JOINTS)}
    points = np.zeros((33, 3))
    for name, landmark in pose_labeller.SAME.items():
        points[landmark] = positions[name]
    for side, (little, index, thumb, heel, toe) in {
        "left": (17, 19, 21, 29, 31),
        "right": (18, 20, 22, 30, 32),
    }.items():
        points[little], points[index] = (
            positions[f"{side}_hand"] - (0, 0, 0.03),
            positions[f"{side}_hand"] + (0, 0, 0.03),
        )
        points[thumb] = positions[f"{side}_wrist"] + (0, 0, 0.05)
        along = positions[f"{side}_foot"] - positions[f"{side}_ankle"]
        points[heel], points[toe] = positions[f"{side}_foot"] - 0.7 * along, positions[f"{side}_foot"] + 0.3 * along
    ears = positions["neck"] + (positions["head"] - positions["neck"]) / 0.55
    face = {7: (0.07, 0, 0), 8: (-0.07, 0, 0), 0: (0, -0.02, 0.1), 2: (0.03, 0.01, 0.08), 5: (-0.03, 0.01, 0.08)}
    for landmark, offset in face.items():
        points[landmark] = ears + head @ np.array(offset)
    for landmark in (1, 3, 4, 6, 9, 10):
        points[landmark] = points[0]
    return points


def seen(points: np.ndarray, region: Region, size: tuple[int, int], half: np.ndarray, view: np.ndarray) -> Landmarks:
    """Return the landmarks (33, 3), metres in camera axes, of a perfect network for a picture of (height, width).

    `half` is half the picture at depth 1; `view` (3, 3) turns the axes of a camera that looks at the region to these.
    """
    depth = -points[:, 2]
    scale = np.array([size[1], size[0]]) / (2 * half)
    image = np.stack([points[:, 0] / depth * scale[0] + size[1] / 2, points[:, 1] / depth * scale[1] - size[0] / 2], 1)
    hips = points[[23, 24]].mean(axis=0)
    level = (points[:, 2:] - hips[2]) * scale[0] / -hips[2]
    steps = np.linspace(0, 1, 50)[:, None, None]
    outline = image[LINES[:, 0]] * (1 - steps) + image[LINES[:, 1]] * steps
    return Landmarks(
        image=np.concatenate([image, level], axis=1),
        world=(points - hips) @ view,
        visible=np.ones(33),
        outline=outline.reshape(-1, 2) * (1, -1),
        region=region,
    )


# ---- fake networks


def answers_of_detector(pixels: np.ndarray) -> list[np.ndarray]:
    """Report one person where the input (224, 224, 3) is white: hips there, with a body of 40 pixels around."""
    numbers, logits = np.zeros((1, 2254, 12), np.float32), np.full((1, 2254, 1), -30, np.float32)
    rows, columns = np.nonzero(pixels[..., 0] > 0.9)
    if len(rows):
        hips = np.array([columns.mean() + 0.5, rows.mean() + 0.5])
        near = int(np.linalg.norm(anchors() * 224 - hips, axis=1).argmin())
        x, y = hips - anchors()[near] * 224
        numbers[0, near], logits[0, near] = [x, y - 30, 8, 8, x, y, x, y - 40, x, y - 20, x, y - 30], 3
    return [numbers, logits]


def answers_of_landmarks(pixels: np.ndarray) -> list[np.ndarray]:
    """Report a person in the rest pose who faces the camera, hips in the middle of the input (256, 256, 3)."""
    points = landmarks_around(standing())
    points = np.concatenate([points - points[[23, 24]].mean(axis=0), np.zeros((6, 3))]) * (1, -1, -1)
    raw = np.full((39, 5), 4.0)
    raw[:, :3] = points * METRES + (128, 128, 0)
    mask = np.full((1, 256, 256, 1), -5.0)
    mask[0, 64:192, 96:160] = 5
    outputs = (raw.reshape(1, -1), [[0.9]], mask, points.reshape(1, -1))
    return [np.asarray(output, np.float32) for output in outputs]


class Interpreter:
    """Replaces LiteRT's class. The file's bytes select one of two networks."""

    def __init__(self, *, model_content: bytes, num_threads: int) -> None:
        networks = {b"detector": (224, answers_of_detector), b"landmarks": (256, answers_of_landmarks)}
        if model_content not in networks:
            raise ValueError("Could not open\nmodel.")
        self.size, self.answer = networks[model_content]
        self.outputs = self.answer(np.zeros((self.size, self.size, 3)))

    def allocate_tensors(self) -> None:
        pass

    def get_input_details(self) -> list[dict[str, Any]]:
        return [{"shape": np.array([1, self.size, self.size, 3]), "index": 100}]

    def get_output_details(self) -> list[dict[str, Any]]:
        details = [{"shape": np.array(output.shape), "index": index} for index, output in enumerate(self.outputs)]
        return details[::-1]

    def set_tensor(self, index: int, value: np.ndarray) -> None:
        assert index == 100 and value.shape == (1, self.size, self.size, 3) and value.dtype == np.float32
        assert value.max() <= 1 and value.min() >= (-1 if self.size == 224 else 0)
        self.input = value[0]

    def invoke(self) -> None:
        self.outputs = self.answer(self.input)

    def get_tensor(self, index: int) -> np.ndarray:
        return self.outputs[index]


def answer_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace `ai_edge_litert` by the fake networks for the duration of the test."""
    module = types.ModuleType("ai_edge_litert.interpreter")
    module.Interpreter = Interpreter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ai_edge_litert", types.ModuleType("ai_edge_litert"))
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", module)


def network_files(folder: Path, detector: bytes = b"detector") -> Path:
    """Write the files of the two networks into a folder and return it."""
    folder.mkdir(exist_ok=True)
    for name, content in (("detection", detector), ("landmark_full", b"landmarks")):
        (folder / f"pose_{name}.tflite").write_bytes(content)
    return folder
