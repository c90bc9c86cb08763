"""Depth that a network sees in one picture."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tokenizers_zoo.errors import DataError
from tokenizers_zoo.labellers import LabellerConfig
from tokenizers_zoo.pretrained import PretrainedError

Array = NDArray[Any]
IN_METRES = ("depth_pro", "glpn", "zoedepth")
"""The kinds of networks (model_type of config.json) all of which give metres."""


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
    scaled_to: tuple[float, float] | None = None
    """For relative inverse depth: the metres that the nearest and the farthest pixel of every picture are given; in
    between inverse depth is linear. Shapes are right then, but distances of two pictures cannot be compared."""

    def __post_init__(self) -> None:
        LabellerConfig.__post_init__(self)
        if self.scaled_to is not None and not 0 < self.scaled_to[0] < self.scaled_to[1] < float("inf"):
            raise ValueError(f"scaled_to: expected two rising distances in metres, got {list(self.scaled_to)}")
        if self.metric and self.scaled_to is not None:
            raise ValueError("scaled_to: is for networks of relative depth, and metric says that this one gives metres")

    def metres(self, picture: Array) -> Array:
        """Depth float32 (1, height, width) of a picture float (3, height, width) in [0, 1].

        Raises PretrainedError where the network gives no metres and no rule is declared, or the other way round.
        """
        metric = gives_metres(self.network.config) if self.metric is None else self.metric
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
        found = resize(self.outputs(picture), target_sizes=[size], **source)[0]["predicted_depth"]
        depth = found.double().cpu().numpy().reshape(1, *size)
        if not np.isfinite(depth).all():
            raise DataError(f"{self.model}: gives depth that is no number for this picture")
        return (depth if self.scaled_to is None else metres_of_relative(depth, *self.scaled_to)).astype(np.float32)


def gives_metres(config: Any) -> bool:
    """True where a transformers config says that the network gives metres."""
    return config.model_type in IN_METRES or getattr(config, "depth_estimation_type", None) == "metric"


def metres_of_relative(inverse: Array, near: float, far: float) -> Array:
    """Metres of inverse depth of any scale and shift: its largest is `near`, its smallest is `far`.

    Raises DataError where all are the same, up to what rounding leaves of a resized constant.
    """
    low, high = inverse.min(), inverse.max()
    if high - low <= 1e-6 * max(abs(low), abs(high)):
        raise DataError("the network sees the same depth everywhere, which cannot be scaled to metres")
    share = (inverse - low) / (high - low)
    return 1 / ((1 - share) / far + share / near)
