"""Picture files of maps: numbers of pixels that stand for a class or an instance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenizers_zoo.families.spatial.values import BITS, EXACT_EXTENSIONS, WHOLE_NUMBERS, open_image

LOSSY = ("jpg", "jpeg")


def read_map(data: bytes, extension: str, what: str, small: Sequence[str]) -> NDArray[Any]:
    """The numbers (height, width) of a picture file of ids: of a mode of `small`, or of WHOLE_NUMBERS.

    Raises ValueError, which says `what` the ids are of, where it is none, and for a kind of file that changes numbers.
    Greys of 2 and 4 bits, which Pillow spreads over 0 to 255, are the numbers that the file has.
    """
    if extension in LOSSY:
        raise ValueError("JPEG changes numbers at every border, which here are ids; save the map as .png")
    image = open_image(data, extension, EXACT_EXTENSIONS)
    if image.mode not in (*small, *WHOLE_NUMBERS):
        raise ValueError(f"expected one channel of {what} (mode {', '.join(small)}, I or I;16), got mode {image.mode}")
    numbers: NDArray[Any] = np.asarray(image)
    return numbers // (255 // (2 ** image.info[BITS] - 1)) if image.mode == "L" else numbers
