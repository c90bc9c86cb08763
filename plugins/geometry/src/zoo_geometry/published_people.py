"""Convert people between our camera model and the weak-perspective crop camera of 4M-21.

The format is that of ml-4m (`fourm/data/modality_transforms.py`, HumanPoseTransform): people that HMR 2.0 estimated
(4D-Humans, arXiv 2305.20091). `global` is a rotation to axes x right, y down, z forward. `camera` is (s, tx, ty). A
point (x, y) of the body in metres is seen at s (x + tx) and s (y + ty) in the square crop around the person. The crop
reaches from -1 to 1 (`cam_crop_to_full` of that project). It shares the box's centre and has the height of a box of
proportions 3 to 4 around it.

The format leaves some things open. Assumptions:

- The picture is square, and the crop was made around the stored box. A person who is partly outside of the picture has
  a smaller box.
- The focal length is `FOCAL` times the side of the picture.
- Every person has the size of the skeleton. Place and size in the picture are restored exactly, and a child becomes an
  adult who is farther away. Betas are read and written, but do not change the bones.
"""

from __future__ import annotations

import numpy as np

from tokenizers_zoo.families.object_tokens import Axis, Part, Spelling
from zoo_geometry import body
from zoo_geometry.body import Array

SHAPE_SIZE = 10
MOST = 6
"""People of one value: 39 tokens each, in sequences of up to 256."""
FOCAL = 1.2
"""Focal length in sides of the picture: 45 degrees from edge to edge."""
NEAREST = 0.2  # metres
OUTSIDE = 1.0
"""Sides of the picture that the pelvis may be outside of it."""
PELVIS = np.array([0.0, -0.22])
"""Position of SMPL's pelvis in the body's own axes, metres. The orientation rotates the body around it."""
ASPECT = 4 / 3
"""Height to width ratio to which HMR 2.0 extends boxes before it takes a square around them."""
Y_AND_Z_TURNED = np.diag([1.0, -1.0, -1.0])
"""Between axes x right, y up, z towards the viewer, and x right, y down, z forward."""

AXES = (
    *(Axis(name=name) for name in ("xmin", "ymin", "xmax", "ymax")),
    *(Axis(name=f"orientation {row} {column}", low=-1, high=1) for row in range(3) for column in range(3)),
    *(Axis(name=f"crop camera {name}", low=-1, high=19) for name in ("scale", "x", "y")),
    *(Axis(name=f"shape {k}", low=-3, high=3) for k in range(SHAPE_SIZE)),
)
SPELLING = Spelling(
    head=Part(word="human", axes=(0, 1, 2, 3)),
    parts=(
        Part(word="pose", codes=True),
        Part(word="global", axes=(0,) * 9),
        Part(word="camera", axes=(0,) * 3),
        Part(word="shape", axes=(0,) * SHAPE_SIZE),
    ),
    empty=(" none",),
)


def numbers_of(boxes: Array, turns: Array, joints: Array, image: Array, shapes: Array, skeleton: Array) -> Array:
    """The numbers (people, 26) of AXES.

    Boxes are (people, 4), turns (people, 24, 3) axis-angle vectors, joints (people, 24, 3) metres, image
    (people, 24, 2), shapes (people, 10), and the skeleton (24, 3).
    """
    orientation = Y_AND_Z_TURNED @ body.matrices_of(turns[:, 0])
    centre, side = crops(boxes)
    sizes = np.maximum(body.total_length(body.bones_of(turns, joints)) / body.total_length(skeleton), 1e-3)
    focal = np.sqrt(np.maximum(body.focal_lengths(joints, image), 1e-3).prod(axis=1))
    scale = focal / np.maximum(-joints[:, 0, 2], body.NEAREST) * sizes  # sides of the picture per metre
    moved = (image[:, 0] - centre) / scale[:, None] - PELVIS
    parts = (boxes, orientation.reshape(-1, 9), (2 * scale / side)[:, None], moved, shapes)
    return np.concatenate(parts, axis=1)


def decode(boxes: Array, numbers: Array, below: Array, skeleton: Array) -> tuple[Array, Array, Array, Array]:
    """Rotations, joints in metres and in the picture, and shapes, as `numbers_of` takes them.

    `numbers` (people, 22) are those of AXES after the box, `below` (people, 23, 3) the rotations below the first.
    """
    orientation, camera, shapes = np.split(numbers, [9, 12], axis=1)
    first = body.vectors_of(Y_AND_Z_TURNED @ orientation.reshape(-1, 3, 3))
    turns = np.concatenate([first[:, None], below], axis=1)
    centre, side = crops(boxes)
    scale = np.maximum(camera[:, 0], 0.01) * side / 2
    pelvis_image = np.clip(centre + scale[:, None] * (camera[:, 1:] + PELVIS), -OUTSIDE, 1 + OUTSIDE)
    depth = np.clip(FOCAL / scale, NEAREST, body.FARTHEST)
    focal = (scale * depth)[:, None]
    ahead = np.concatenate([(pelvis_image - 0.5) * (1, -1) / focal, -np.ones_like(focal)], axis=1)
    joints = body.joints_of(turns, np.broadcast_to(skeleton, turns.shape), depth[:, None] * ahead)
    return turns, joints, body.image_of(joints, pelvis_image, np.broadcast_to(focal, pelvis_image.shape)), shapes


def crops(boxes: Array) -> tuple[Array, Array]:
    """The centres (people, 2) and sides (people,) of the squares that people in boxes were estimated from."""
    low, high = boxes[:, :2], boxes[:, 2:]
    width, height = (high - low).T
    return (low + high) / 2, np.maximum(height, ASPECT * width)
