"""The `scenes` source: one rendered room per sample, from (split, seed, index) alone."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, overload

from tokenizers_zoo import hookimpl
from tokenizers_zoo.config import Settings
from tokenizers_zoo.errors import ConfigError
from tokenizers_zoo.source import SourceSpec
from zoo_scenes.palette import CLASSES
from zoo_scenes.settings import SceneSettings

Sample = tuple[str, Mapping[str, Any]]

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


def make_sample(split: str, seed: int, index: int, settings: SceneSettings) -> dict[str, Any]:
    """All modalities of one sample. The scene does not depend on the picture's size."""
    from zoo_scenes import captions, observe
    from zoo_scenes.compose import compose
    from zoo_scenes.places import scene_class
    from zoo_scenes.render import render
    from zoo_scenes.stage import build
    from zoo_scenes.upright import boxes_3d

    name = f"{split}/{seed}/{index}"
    scene = compose(random.Random(f"scene/{name}"), settings)
    stage = build(scene)
    view = render(stage, settings.image_size, settings.shadows)
    observation = observe.observe(stage, view, settings)
    words = random.Random(f"caption/{name}")
    return {
        "rgb": view.rgb,
        "depth": view.depth[None],
        "normal": view.normals,
        "semseg": observation.semseg,
        "sam_instance": observation.instances,
        "boxes": observe.boxes(observation.seen, settings.max_boxes),
        "caption": captions.caption(words, scene, observation.seen, observation.shares),
        "human_poses": observe.human_poses(scene, observation.seen),
        "metadata": observe.metadata(scene, view, observation),
        "scene_class": scene_class(observation.shares),
        "boxes_3d": boxes_3d(stage, observation.seen, settings.max_boxes),
    }


class SceneSamples(Sequence[Sample]):
    """Lazy samples: each is made when it is asked for, in any order, in any process."""

    def __init__(self, split: str, seed: int, indices: range, settings: SceneSettings) -> None:
        self.split = split
        self.seed = seed
        self.indices = indices
        self.settings = settings

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> SceneSamples: ...
    def __getitem__(self, index: int | slice) -> Sample | SceneSamples:
        if isinstance(index, slice):
            return SceneSamples(self.split, self.seed, self.indices[index], self.settings)
        number = self.indices[index]
        return f"{self.split}-{self.seed}-{number:06d}", make_sample(self.split, self.seed, number, self.settings)


class ScenesSource:
    """The plugin object of the entry point `scenes`."""

    @hookimpl
    def source_spec(self) -> SourceSpec:
        return SourceSpec(
            name="scenes",
            summary="furnished rooms with people, settled by physics: exact depth, normals, classes, boxes and poses",
            modalities=MODALITIES,
            licence="Apache-2.0, made by this code; MuJoCo (Apache-2.0) casts the rays",
            classes=MappingProxyType({"semseg": CLASSES}),
            settings=SceneSettings,
        )

    @hookimpl
    def samples(self, split: str, count: int | None, seed: int, settings: Settings) -> SceneSamples:
        if count is None:
            few = f"--{split} {4000 if split == 'train' else 400}"
            raise ConfigError(f"scenes: has no end; say how many samples to make for {split!r}, such as {few}")
        if count < 0:
            raise ConfigError(f"scenes: count: expected 0 or more, got {count}")
        return SceneSamples(split, seed, range(count), settings.take(SceneSettings))


scenes = ScenesSource()
