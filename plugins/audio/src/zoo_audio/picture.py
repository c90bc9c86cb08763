"""A recording as a picture: its waveform above its mel spectrogram."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from zoo_audio.mel import FLOOR_DB, MelFrame, log_mel

if TYPE_CHECKING:
    import PIL.Image

SIZE = (192, 128)
"""Width and height of the spectrogram, pixels."""
WAVE_HEIGHT = 48
INK = (40, 90, 160)


def sound_picture(value: NDArray[np.float32], frame: MelFrame) -> PIL.Image.Image:
    """Low frequencies are at the bottom; black is silence, white is 0 dB."""
    import matplotlib
    from PIL import Image

    bands = log_mel(torch.from_numpy(value)[None], frame)[0].numpy()[::-1]
    colours = matplotlib.colormaps["magma"]((bands - FLOOR_DB) / -FLOOR_DB, bytes=True)[..., :3]
    spectrogram = Image.fromarray(colours).resize(SIZE, Image.Resampling.NEAREST)
    sheet = Image.new("RGB", (SIZE[0], WAVE_HEIGHT + SIZE[1]), "white")
    sheet.paste(_waveform(value), (0, 0))
    sheet.paste(spectrogram, (0, WAVE_HEIGHT))
    return sheet


def _waveform(value: NDArray[np.float32]) -> PIL.Image.Image:
    """From the lowest to the highest sample of each column, in [-1, 1]."""
    from PIL import Image

    image = np.full((WAVE_HEIGHT, SIZE[0], 3), 255, np.uint8)
    middle = (WAVE_HEIGHT - 1) / 2
    for column, part in enumerate(np.array_split(value, SIZE[0])):
        top, bottom = (round(middle * (1 - level)) for level in (part.max(initial=0), part.min(initial=0)))
        image[top : bottom + 1, column] = INK
    return Image.fromarray(image)
