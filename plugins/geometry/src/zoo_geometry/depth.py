"""Metric depth as tokens."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tokenizers_zoo import hookimpl
from tokenizers_zoo.contract.pictures import Array, image_of, png_bytes, read_array, read_numbers
from tokenizers_zoo.contract.pretrained import LabellerConfig, PretrainedError
from tokenizers_zoo.contract.spec import Metric
from tokenizers_zoo.contract.validation import array_bytes
from tokenizers_zoo.errors import DataError
from tokenizers_zoo.families.spatial import SpatialModality, SpatialSettings
from tokenizers_zoo.records.config import SHOWN, Settings
from tokenizers_zoo.records.typed import PositiveFloat

if TYPE_CHECKING:
    import torch


IN_METRES = ("depth_pro", "glpn", "zoedepth")
"""Kinds of networks (`model_type` in config.json) whose output is always metres."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthLabeller(LabellerConfig):
    """A monocular depth network: DPT, Depth Anything, ZoeDepth, GLPN, Depth Pro.

    Most give relative inverse depth, known up to scale and shift (MiDaS, arXiv 1907.01341): that is no metres, and
    refused, unless `scaled_to` says which metres to make of it.
    """

    architectures: ClassVar[tuple[str, ...]] = ("ForDepthEstimation",)
    unused: ClassVar[tuple[str, ...]] = ("neck.fusion_stage.layers.0.residual_layer1.*",)

    metric: bool | None = None
    """Whether the network gives metres; absent asks its config.json, which says so for some kinds."""
    scaled_to: tuple[PositiveFloat, PositiveFloat] | None = None
    """For relative inverse depth: the metres that the nearest and the farthest pixel of every picture are given; in
    between inverse depth is linear. Shapes are right then, but distances of two pictures cannot be compared."""

    def __post_init__(self) -> None:
        LabellerConfig.__post_init__(self)
        if self.scaled_to is not None and not self.scaled_to[0] < self.scaled_to[1]:
            raise ValueError(f"scaled_to: expected two rising distances in metres, got {list(self.scaled_to)}")
        if self.metric and self.scaled_to is not None:
            raise ValueError("scaled_to: is for networks of relative depth, and metric says that this one gives metres")

    def metres(self, picture: Array) -> Array:
        """Depth float32 (1, height, width) of a picture float (3, height, width) in [0, 1].

        Raises PretrainedError where the network gives no metres and no rule is declared, or the other way round.
        """
        metric, config = self.metric, self.network.config
        if metric is None:
            metric = config.model_type in IN_METRES or getattr(config, "depth_estimation_type", None) == "metric"
        if metric and self.scaled_to is not None:
            raise PretrainedError(f"{self.model}: gives metres; remove labeller.scaled_to, which would replace them")
        if not metric and self.scaled_to is None:
            raise PretrainedError(
                f"{self.model}: gives relative depth, not metres; set labeller.scaled_to = [nearest, farthest], metres"
                " of every picture, or labeller.metric = true if it does give metres"
            )
        size = picture.shape[-2:]
        resize = self.processor.post_process_depth_estimation
        source = {"source_sizes": [size]} if "source_sizes" in inspect.signature(resize).parameters else {}
        prediction = resize(self.outputs(picture), target_sizes=[size], **source)[0]["predicted_depth"]
        depth = prediction.double().cpu().numpy().reshape(1, *size)
        if not np.isfinite(depth).all():
            raise DataError(f"{self.model}: gives depth that is no number for this picture")
        return (depth if self.scaled_to is None else metres_of_relative(depth, *self.scaled_to)).astype(np.float32)


def metres_of_relative(inverse: Array, near: float, far: float) -> Array:
    """Metres of inverse depth of any scale and shift: its largest is `near`, its smallest is `far`.

    Raises DataError where all are the same, up to what rounding leaves of a resized constant.
    """
    low, high = inverse.min(), inverse.max()
    if high - low <= 1e-6 * max(abs(low), abs(high)):
        raise DataError("the network sees the same depth everywhere, which cannot be scaled to metres")
    share = (inverse - low) / (high - low)
    return 1 / ((1 - share) / far + share / near)


CUT_OFF = 0.1
"""Share of nearest and of farthest pixels that published tokenizers exclude from a picture's statistics."""
FULL = 65535
"""Value in 16-bit pictures for pixels without a measurement, or out of range. It is not a distance."""
SUPPOSED = (4.0, 1.5)
"""Mean and standard deviation in metres given to the output of published tokenizers: typical for a room."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthSettings(SpatialSettings):
    """Settings of depth."""

    png_scale: PositiveFloat = 0.001
    """Metres per unit of pictures of whole numbers (.png, .tif); in 16 bits 0 and 65535 are no distances."""
    shown: tuple[PositiveFloat, PositiveFloat] = field(default=(0.5, 16.0), metadata=SHOWN)
    """Nearest and farthest metres of the colours in pictures; logarithmic in between."""
    labeller: DepthLabeller | None = None
    """A network that derives depth from rgb where no source gives it; absent, depth is not derived."""

    def __post_init__(self) -> None:
        SpatialSettings.__post_init__(self)
        if not self.shown[0] < self.shown[1]:
            raise ValueError(f"shown: expected two rising distances in metres, got {list(self.shown)}")


class Depth(SpatialModality):
    """Distance along the camera's axis: float32 (1, height, width), metres.

    Published tokenizers standardise each picture by the mean and deviation of its middle 80 % of pixels, so metres are
    lost. Decoded depth has the right order and proportions, with the mean and deviation `SUPPOSED`.
    """

    settings_class = DepthSettings
    summary = "metric depth as a grid of tokens"
    channels = 1
    unit = "metres"
    low, high = 0.001, 100.0
    description = "planar depth along the camera's axis"
    aliases = ("tok_depth@224", "tok_depth@448")
    labelled_from = ("rgb",)
    token_space = "log metres"
    loss = "smooth_l1"
    metrics = (
        Metric(
            name="abs_rel", higher_is_better=False, meaning="mean over pixels of |predicted - true| / true", bound=0.08
        ),
        Metric(
            name="delta1",
            higher_is_better=True,
            meaning="share of pixels whose ratio to the true depth, or its inverse, is below 1.25",
            bound=0.93,
        ),
        Metric(name="rmse", unit="m", higher_is_better=False, meaning="root of the mean squared error over pixels"),
    )

    @hookimpl
    def derive(self, sample: Mapping[str, Any], settings: Settings) -> np.ndarray:
        """Metres that the labeller sees in the sample's rgb picture, at its size, within the declared range."""
        return np.clip(self.options(settings).labeller.metres(sample["rgb"]), self.low, self.high)

    def to_network(self, values: torch.Tensor, options: Any) -> torch.Tensor:
        return values.clamp(self.low, self.high).log()

    def from_network(self, outputs: torch.Tensor, options: Any) -> torch.Tensor:
        return outputs.exp().clamp(self.low, self.high)

    def to_published(self, values: torch.Tensor, options: Any) -> torch.Tensor:
        """Each picture less its mean, over its deviation, both without the nearest and the farthest tenth of pixels."""
        ordered = values.flatten(1).sort(dim=1).values
        count = ordered.shape[1]
        middle = ordered[:, int(CUT_OFF * count) : int((1 - CUT_OFF) * count)]
        mean, variance = (number[:, None, None, None] for number in (middle.mean(dim=1), middle.var(dim=1)))
        return (values - mean) / (variance + 1e-6).sqrt()

    def from_published(self, outputs: torch.Tensor, options: Any) -> torch.Tensor:
        """Metres, as if each picture had the mean and deviation SUPPOSED."""
        mean, deviation = SUPPOSED
        return (outputs * deviation + mean).clamp(self.low, self.high)

    def read(self, data: bytes, extension: str, options: DepthSettings) -> np.ndarray:
        if extension == "npy":
            metres = read_array(data, extension)
            if metres.dtype.kind != "f":
                raise ValueError(f"expected floats in metres, got {metres.dtype}; save metres, or a 16-bit PNG")
        else:
            advice = "; save .npy in metres, or a 16-bit .png or .tif with png_scale (metres per unit) in registry.toml"
            pixels = read_numbers(data, extension, "16 bits", advice=advice)
            metres = pixels.astype(np.float64) * options.png_scale
            if pixels.dtype.itemsize == 2:
                metres[pixels == FULL] = np.inf
        bad = ~np.isfinite(metres) | (metres <= 0)
        if bad.any():
            raise ValueError(
                f"expected metres above 0, got {int(bad.sum())} of {bad.size} pixels that are 0, below, no number, or "
                f"{FULL} in 16 bits"
            )
        return metres[None] if metres.ndim == 2 else metres

    @hookimpl
    def example_files(self) -> dict[str, tuple[bytes, str]]:
        """A picture of a camera that sees no depth in places, and metres that are millimetres."""
        holed = np.full((8, 8), 2500, np.uint16)
        holed[0, 0] = 0
        return {
            "a pixel of 0, where nothing was measured": (png_bytes(image_of(holed)), "png"),
            "millimetres as floats": (array_bytes(np.full((1, 8, 8), 2500.0, np.float32)), "npy"),
        }

    def picture(self, value: np.ndarray, options: DepthSettings) -> Any:
        import matplotlib

        near, far = np.log(options.shown)
        position = (np.log(np.clip(value[0], *options.shown)) - near) / (far - near)
        return image_of(matplotlib.colormaps["turbo_r"](position, bytes=True)[..., :3])

    def measure(self, predicted: list[np.ndarray], target: list[np.ndarray], options: Any) -> Mapping[str, float]:
        sums, count = np.zeros(3), 0
        for guess, truth in zip(predicted, target, strict=True):
            near, far = np.minimum(guess, truth, dtype=np.float64), np.maximum(guess, truth, dtype=np.float64)
            error = far - near
            sums += (error / truth).sum(), (far / near < 1.25).sum(), (error**2).sum()
            count += truth.size
        abs_rel, delta1, square = (sums / count).tolist()
        return {"abs_rel": abs_rel, "delta1": delta1, "rmse": math.sqrt(square)}


plugin = Depth()
