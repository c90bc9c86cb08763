"""The `scenes` source of samples: furnished rooms, settled by physics and ray-cast with MuJoCo.

Axes and signs. The room's axes are metric with z up. Normals and joints are in camera axes: x right, y up, z towards
the viewer. A surface that faces the camera has normal z = 1, and visible points have z < 0. Depth is planar, along the
optical axis, in metres. `camera_pitch` is the axis' angle above the horizon in degrees: negative looks down; there is
no roll. `camera_fov` is vertical, in degrees, and pictures are square. A pixel whose centre lies `v` half pictures
above the middle, at depth d, is `camera_height + d * (sin(pitch) + v * tan(fov / 2) * cos(pitch))` metres above the
floor.

The kind of place (`scene_class`) is decided by the furniture that covers most of the picture: tables and chairs for a
dining room, sofas for a living room, shelves and books for a library, boxes, balls and cylinders for a playroom. If no
kind of furniture covers 4 %, it is an empty room.

`boxes_3d` and `boxes` list the same things in the same order. Their axes are the camera's with the pitch removed; see
`zoo_scenes.observe` for where fronts look.
"""

from __future__ import annotations

from zoo_scenes.source import scenes

__all__ = ["scenes"]
