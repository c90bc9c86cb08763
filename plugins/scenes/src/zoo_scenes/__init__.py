"""The `scenes` source of samples: furnished rooms, settled by physics and ray-cast with MuJoCo.

Axes and signs. The room's axes are metric with z up. Camera axes, in which normals and joints are given, are x right,
y up, z towards the viewer: a surface that faces the camera has normal z = 1, what is visible has z < 0. Depth is
planar, along the optical axis, in metres. `camera_pitch` is the axis' angle above the horizon in degrees: negative
looks down; there is no roll. `camera_fov` is vertical, in degrees, and pictures are square. A pixel whose centre lies
`v` half pictures above the middle, at depth d, is `camera_height + d * (sin(pitch) + v * tan(fov / 2) * cos(pitch))`
metres above the floor.

The kind of place (`scene_class`) follows from the picture: the furniture that covers most of it decides, all tables and
chairs for a dining room, sofas for a living room, shelves and books for a library, boxes, balls and cylinders for a
playroom. Where none of them covers 4 % it is an empty room.

The boxes of `boxes_3d` are those of the things in `boxes`, in the same order. Their axes are the camera's with the
pitch removed; see `zoo_scenes.upright` for where fronts look.
"""

from __future__ import annotations

from zoo_scenes.source import scenes

__all__ = ["scenes"]
