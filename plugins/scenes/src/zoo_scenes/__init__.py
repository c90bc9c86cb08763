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

import random
from types import MappingProxyType

from tokenizers_zoo.contract.source import Sample, SourceSpec
from tokenizers_zoo.families.sources import MadeSource
from zoo_scenes.scene import CLASSES, SceneSettings

MODALITIES = (
    "rgb",
    "depth",
    "normal",
    "semseg",
    "sam_instance",
    "boxes",
    "caption",
    "human_poses",
    "metadata",
    "scene_class",
    "boxes_3d",
)


def make_sample(settings: SceneSettings, split: str, seed: int, number: int) -> Sample:
    """All modalities of one sample. The scene does not depend on the picture's size."""
    from zoo_scenes import observe
    from zoo_scenes.captions import caption, layout
    from zoo_scenes.compose import compose
    from zoo_scenes.render import render
    from zoo_scenes.stage import build

    name = f"{split}/{seed}/{number}"
    scene = compose(random.Random(f"scene/{name}"), settings)
    stage = build(scene)
    view = render(stage, settings.image_size, settings.shadows)
    semseg, instances, visible, shares = observe.observe(stage, view, settings.min_visible)
    if settings.captions == "layout":
        text = layout(scene, visible[: settings.max_boxes], shares)
    else:
        text = caption(random.Random(f"caption/{name}"), scene, visible, shares)
    return f"{split}-{seed}-{number:06d}", {
        "rgb": view.rgb,
        "depth": view.depth[None],
        "normal": view.normals,
        "semseg": semseg,
        "sam_instance": instances,
        "boxes": observe.boxes(visible, settings.max_boxes),
        "caption": text,
        "human_poses": observe.human_poses(scene, visible),
        "metadata": observe.metadata(scene, view, instances, visible, shares),
        "scene_class": observe.scene_class(shares),
        "boxes_3d": observe.boxes_3d(stage, visible, settings.max_boxes),
    }


scenes = MadeSource(
    SourceSpec(
        name="scenes",
        summary="furnished rooms with people, settled by physics: exact depth, normals, classes, boxes and poses",
        modalities=MODALITIES,
        licence="Apache-2.0, made by this code; MuJoCo (Apache-2.0) casts the rays",
        classes=MappingProxyType({"semseg": CLASSES}),
        settings=SceneSettings,
    ),
    make_sample,
)
