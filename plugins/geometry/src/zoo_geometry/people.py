"""Predicted people against true ones, and stick figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenizers_zoo.contract.pictures import canvas
from tokenizers_zoo.families.object_tokens import best_pairs, box_overlaps
from zoo_geometry import body
from zoo_geometry.body import JOINTS, PARENTS

if TYPE_CHECKING:
    import PIL.Image


Person = dict[str, Any]

MISSED = 500.0
"""Millimetres that a person who is not found counts as: about the error of a body turned around."""
ENOUGH = 0.5  # least overlap (IoU) at which a person counts as found
RENDER_SIZE = 256  # pixels, height and width
SIDES = {"left": (255, 150, 60), "right": (90, 170, 255)}
MIDDLE = (235, 235, 235)


def joint_errors(predicted: Sequence[Person], target: Sequence[Person]) -> list[float]:
    """Joint errors in mm of the pairs that overlap enough, the best overlap first, each person in one pair at most."""
    boxes = (np.array([person["box"] for person in people]).reshape(-1, 4) for people in (predicted, target))
    pairs = best_pairs(box_overlaps(*boxes), ENOUGH)
    return [joint_error(predicted[row], target[column]) for row, column, _ in pairs]


def joint_error(predicted: Person, target: Person) -> float:
    """Mean distance of joints in mm, pelvis laid on pelvis."""
    guess, truth = (np.asarray(person["joints_camera"], dtype=np.float64) for person in (predicted, target))
    return 1000 * float(np.linalg.norm((guess - guess[0]) - (truth - truth[0]), axis=1).mean())


def draw_people(people: Sequence[Person]) -> PIL.Image.Image:
    """The people's bones in the picture, the farthest first, each with its box."""
    picture, pen = canvas((RENDER_SIZE, RENDER_SIZE), (28, 30, 36))
    for person in sorted(people, key=lambda person: person["joints_camera"][0][2]):
        pen.rectangle(tuple(round(edge * (RENDER_SIZE - 1)) for edge in person["box"]), outline=(95, 100, 110))
        far = 4.0 * RENDER_SIZE  # joints level with the camera project arbitrarily far away; PIL cannot draw there
        pixels = np.clip(np.asarray(person["joints_image"]) * RENDER_SIZE, -far, far)
        dots = [tuple(pixel) for pixel in pixels.tolist()]
        for joint, parent in enumerate(PARENTS[1:], 1):
            pen.line((*dots[parent], *dots[joint]), fill=SIDES.get(JOINTS[joint].partition("_")[0], MIDDLE), width=4)
        x, y = dots[JOINTS.index("head")]
        radius = 0.5 * float(np.hypot(*(pixels[JOINTS.index("head")] - pixels[JOINTS.index("spine3")])))
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline=MIDDLE, width=2)
    return picture


def example_person() -> Person:
    """An adult in the rest pose but for the left arm who faces the camera at 3 m, rounded to millimetres."""
    turns = np.zeros((len(JOINTS), 3))
    turns[JOINTS.index("left_elbow"), 1] = -0.3
    joints = body.joints_of(turns[None], body.ADULT[None], np.array([[0.0, 0.0, -3.0]]))[0]
    image = 0.5 + 1.2 * body.directions(joints) * np.array([1.0, -1.0])
    entries = {"joint_rotations": turns, "joints_camera": joints, "joints_image": image}
    return {name: rows.round(3).tolist() for name, rows in entries.items()} | {"box": [0.1, 0.1, 0.9, 0.9]}
