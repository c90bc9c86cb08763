"""Files of people that users will meet: one who stands with arms stretched out, and others of other conventions."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from zoo_geometry import body, rotations

DISTANCE = 3.0
"""Metres to the pelvis."""
FOCAL = 1.2
"""Focal length as a fraction of the picture's height and width."""
BENT = 0.3
"""Radians by which an arm is bent."""
MARGIN = 0.03
"""How far the box is beyond the joints, as a fraction of the picture."""
PIXELS = 640


def standing() -> dict[str, Any]:
    """An adult in the rest pose but for a bent arm, facing the camera, numbers rounded to millimetres."""
    turns = np.zeros((len(body.JOINTS), 3))
    turns[body.JOINTS.index("left_elbow"), 1] = -BENT
    joints = body.joints_of(turns[None], body.ADULT[None], np.array([[0.0, 0.0, -DISTANCE]]))[0]
    image = 0.5 + FOCAL * body.directions(joints) * np.array([1.0, -1.0])
    box = np.concatenate([image.min(axis=0) - MARGIN, image.max(axis=0) + MARGIN])
    return {
        "joint_rotations": turns.tolist(),
        "joints_camera": joints.round(3).tolist(),
        "joints_image": image.round(3).tolist(),
        "box": box.round(3).tolist(),
    }


def person_files() -> dict[str, tuple[bytes, str]]:
    """What each file is, its bytes and its extension; the first is sound."""
    person = standing()
    turns = np.array(person["joint_rotations"])
    matrices = rotations.matrices_of(turns).tolist()
    joints = np.array(person["joints_camera"])
    changed: dict[str, dict[str, Any]] = {
        "somebody who stands": {},
        "rotations as matrices": {"joint_rotations": matrices},
        "rotations in degrees": {"joint_rotations": np.degrees(turns).tolist()},
        "axes of a picture: y down, z forward": {"joints_camera": (joints * (1, -1, -1)).tolist()},
        "a box in pixels": {"box": [round(PIXELS * edge) for edge in person["box"]]},
        "with betas as `shape`": {"shape": [0.5, -1.0]},
    }
    return {what: (json.dumps([{**person, **change}]).encode(), "json") for what, change in changed.items()}
