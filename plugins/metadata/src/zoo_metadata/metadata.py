"""Metadata that come with the data: camera, room, and a source's description of its picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from zoo_metadata.base import MetadataModality, MetadataSettings
from zoo_metadata.fields import MetadataField

FIELDS = MappingProxyType(
    {
        "camera_height": MetadataField(low=0, high=3, unit="m", meaning="of the camera above the floor"),
        "camera_pitch": MetadataField(low=-60, high=30, unit="deg", meaning="of the camera, up is above 0"),
        "camera_fov": MetadataField(low=30, high=110, unit="deg", meaning="vertical angle that the picture spans"),
        "room_width": MetadataField(low=2, high=12, unit="m", meaning="of the room, across"),
        "room_depth": MetadataField(low=2, high=12, unit="m", meaning="of the room, along"),
        "room_height": MetadataField(low=2, high=5, unit="m", meaning="of the room"),
        "mean_depth": MetadataField(low=0, high=15, unit="m", meaning="mean over pixels"),
        "num_objects": MetadataField(kind="int", low=0, high=40, meaning="things seen"),
        "num_people": MetadataField(kind="int", low=0, high=8, meaning="people seen"),
        "num_classes": MetadataField(kind="int", low=0, high=40, meaning="semantic classes seen"),
        "brightness": MetadataField(low=0, high=1, meaning="mean luma"),
        "contrast": MetadataField(low=0, high=0.5, meaning="deviation of the luma"),
        "saturation": MetadataField(low=0, high=1, meaning="mean saturation"),
        "colourfulness": MetadataField(low=0, high=1.5, meaning="spread and strength of the colours"),
        "clutter": MetadataField(low=0, high=1, meaning="share of the picture that things cover"),
        "walkability": MetadataField(low=0, high=1, meaning="share of the picture that can be walked on"),
        "geometric_complexity": MetadataField(low=0, high=1, meaning="spherical variance of the normals"),
    }
)


def _published() -> dict[str, dict[str, Any]]:
    """The fields of the 4M-21 model (arXiv 2406.09406, appendix), by their numbers in its tokens.

    Sizes are in steps of 32 pixels. As there, numbers are rounded down to a level, those beyond the range are clipped,
    and scores may be numbers. A level is read as the middle of its interval; 4M's plots show another number of it.
    """
    whole = {"kind": "int", "low": 0, "high": 999, "clip": True}
    steps = {"bins": 50, "rounding": "down", "clip": True}
    share = {"low": 0, "high": 1, **steps}
    sides = {**steps, "low": 0, "high": 32 * 999, "bins": 1000, "unit": "px"}
    table: dict[str, dict[str, Any]] = {
        "original_width": sides,
        "original_height": sides,
        "caption_n_chars": whole,
        "caption_n_words": whole,
        "caption_n_sentences": whole,
        "n_humans": whole,
        "n_sam_instances": whole,
        "n_coco_instances": whole,
        "coco_instance_diversity": whole,
        "colorfulness": {"low": 0, "high": 150, **steps},
        "brightness": {"low": 0, "high": 255, **steps},
        "contrast": {"low": 0, "high": 127, **steps},
        "saturation": {"low": 0, "high": 255, **steps},
        "entropy": {"low": 0, "high": 10, "unit": "bit", **steps},
        "walkability": share,
        "objectness": share,
        "semantic_diversity": whole,
        "geometric_complexity": {"low": 0, "high": 0.75, **steps},
        "occlusion_score": {"low": 0, "high": 0.25, **steps},
        "watermark_score": {"kind": "choice", "choices": ["below 0.5", "0.5 and more"], "thresholds": [0.5]},
        "aesthetic_score": {
            "kind": "choice",
            "choices": ["below 4.5", "4.5 to 5.5", "5.5 and more"],
            "thresholds": [4.5, 5.5],
        },
    }
    return {name: {**declared, "number": number} for number, (name, declared) in enumerate(table.items())}


@dataclass(frozen=True, kw_only=True, slots=True)
class TableSettings(MetadataSettings):
    """Settings of `metadata`."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"4m": {"default_fields": False, "fields": _published()}}

    preset: Literal["4m"] | None = None
    """4m: the fields of the 4M-21 model, in its tokens. Numbers become the level at or below them, those outside the
    range its ends, and the two scores may be numbers; a level is read as the middle of the numbers that become it."""


class Metadata(MetadataModality[TableSettings]):
    """Metadata as a source or the user's files give them."""

    summary = "Numbers and words about the sample, from a declared table of fields"
    settings_class = TableSettings
    default_fields = FIELDS


plugin = Metadata()
