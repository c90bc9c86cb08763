"""Picture files of maps: numbers of pixels that stand for a class or an instance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenizers_zoo.families.spatial.values import EXACT_EXTENSIONS, WHOLE_NUMBERS, open_image

LOSSY = ("jpg", "jpeg")


def read_map(data: bytes, extension: str, what: str, small: Sequence[str]) -> NDArray[Any]:
    """The numbers (height, width) of a picture file of ids: of a mode of `small`, or of WHOLE_NUMBERS.

    Raises ValueError, which says `what` the ids are of, where it is none, and for a kind of file that changes numbers.
    """
    if extension in LOSSY:
        raise ValueError("JPEG changes numbers at every border, which here are ids; save the map as .png")
    image = open_image(data, extension, EXACT_EXTENSIONS)
    if image.mode not in (*small, *WHOLE_NUMBERS):
        raise ValueError(f"expected one channel of {what} (mode {', '.join(small)}, I or I;16), got mode {image.mode}")
    return np.asarray(image)
