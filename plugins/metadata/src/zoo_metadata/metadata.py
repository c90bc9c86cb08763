"""Metadata that come with the data: camera, room, and what a source says of its picture."""

from __future__ import annotations

from types import MappingProxyType

from zoo_metadata.base import MetadataModality, MetadataSettings
from zoo_metadata.fields import MetadataField

FIELDS = MappingProxyType(
    {
        "camera_height": MetadataField(low=0, high=3, unit="m", meaning="of the camera above the floor"),
        "camera_pitch": MetadataField(low=-60, high=30, unit="deg", meaning="of the camera, up is above 0"),
        "camera_fov": MetadataField(low=30, high=110, unit="deg", meaning="angle that the picture spans"),
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


class Metadata(MetadataModality[MetadataSettings]):
    """Metadata as a source or the user's files give them."""

    summary = "Numbers and words about the sample, from a declared table of fields"
    settings_type = MetadataSettings
    default_fields = FIELDS


plugin = Metadata()
