"""Picture files of maps: numbers of pixels that stand for a class or an instance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenizers_zoo.families.spatial.values import EXACT_EXTENSIONS, open_image

if TYPE_CHECKING:
    import PIL.Image

LOSSY = ("jpg", "jpeg")


def open_map(data: bytes, extension: str) -> PIL.Image.Image:
    """A picture file of ids. Raises ValueError where it is none, and for a kind of file that changes numbers."""
    if extension in LOSSY:
        raise ValueError("JPEG changes numbers at every border, which here are ids; save the map as .png")
    return open_image(data, extension, EXACT_EXTENSIONS)
