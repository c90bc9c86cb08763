"""The `scenes` source: one rendered room per sample, from (split, seed, index) alone."""

from __future__ import annotations

import random
from types import MappingProxyType

from tokenizers_zoo.families.sources import MadeSource
from tokenizers_zoo.source import Sample, SourceSpec
from zoo_scenes.scene import CLASSES, SceneSettings

MODALITIES = (
    "rgb", "depth", "normal", "semseg", "sam_instance", "boxes", "caption", "human_poses", "metadata", "scene_class",
    "boxes_3d",
)  # fmt: skip


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
