"""Inertial measurements as tokens: a row over time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tokenizers_zoo import hookimpl
from tokenizers_zoo.contract.pictures import canvas
from tokenizers_zoo.contract.spec import Metric
from tokenizers_zoo.families.temporal import SeriesModality, SeriesSettings, TemporalTokenizer
from tokenizers_zoo.records.config import Settings
from tokenizers_zoo.records.typed import PositiveFloat

NAMES = ("acceleration_x", "acceleration_y", "acceleration_z", "rate_x", "rate_y", "rate_z")
MIRRORED_SIGNS = np.array([[-1], [1], [1], [1], [-1], [-1]], np.float32)
"""Left and right exchanged: a vector turns its x around, an axis of rotation its y and z."""
GRAVITY = 9.81
"""m/s2."""
COLOURS = ((200, 60, 50), (50, 140, 60), (50, 90, 200))
PANEL = (192, 64)
"""Width and height of the plot of three channels, pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImuTokenizer(TemporalTokenizer):
    """The tokenizer of inertial measurements: six channels need more codes than a picture's patch."""

    default_levels: ClassVar[tuple[int, ...]] = (8, 5, 5, 5)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImuSettings(SeriesSettings):
    """Settings of inertial measurements."""

    patch_length: int = 4
    sample_rate: PositiveFloat = 128.0
    """Measurements per second; files do not say theirs, and are not resampled."""
    tokenizer: ImuTokenizer = ImuTokenizer()


class Imu(SeriesModality):
    """float32 (6, time): measurements of an accelerometer (m/s2, gravity included) and a gyroscope (rad/s).

    Axes are the camera's or carrier's: x right, y up, z towards the viewer. At rest and upright it reads +9.81 on y.
    """

    settings_class = ImuSettings
    columns = NAMES
    summary = "acceleration and rotation rates over time as a row of tokens"
    channels = 6
    unit = "m/s2 and rad/s"
    low, high = -200.0, 200.0
    description = f"{', '.join(NAMES)}; x right, y up, z towards the viewer"
    loss = "smooth_l1"
    metrics = (
        Metric(
            name="acceleration_rmse",
            unit="m/s2",
            higher_is_better=False,
            meaning="root mean square length of the error of the acceleration",
        ),
        Metric(
            name="rate_rmse",
            unit="rad/s",
            higher_is_better=False,
            meaning="root mean square length of the error of the rotation rate",
        ),
    )

    def meaning(self, options: ImuSettings) -> dict[str, Any]:
        return {"sample_rate": options.sample_rate}

    def mirrored(self, value: NDArray[Any]) -> NDArray[Any]:
        return value * MIRRORED_SIGNS

    def read(self, data: bytes, extension: str, options: ImuSettings) -> NDArray[Any]:
        """An .npy (6, time), or a .csv with a measurement per line.

        The columns are in the order of NAMES, or a header has these names in any order, perhaps with others. Raises
        ValueError, also for what looks like g, or like the rates before the acceleration.
        """
        value = super().read(data, extension, options)
        if value.dtype.kind != "f":
            raise ValueError(f"expected floats in {self.unit}, got {value.dtype}, which are a sensor's counts")
        if value.ndim != 2 or len(value) != self.channels:
            raise ValueError(f"expected ({self.channels}, time): {', '.join(NAMES)}; got {value.shape}")
        with np.errstate(over="ignore"):  # numbers too large for float32 are refused below
            felt, turned = (float(np.median(np.linalg.norm(part, axis=0))) for part in (value[:3], value[3:]))
        if 0.9 < felt < 1.1:
            raise ValueError(f"the acceleration is {felt:.2f} mostly, which looks like g; multiply by {GRAVITY}")
        if abs(turned - GRAVITY) < 1 < abs(felt - GRAVITY):
            raise ValueError(
                f"the rotation rate is {turned:.2f} mostly, which looks like the acceleration at rest; expected the"
                f" columns in the order {', '.join(NAMES)}, or a .csv whose first line has these names"
            )
        return value

    @hookimpl
    def example_files(self, settings: Settings) -> dict[str, tuple[bytes, str]]:
        """Tables of somebody who stands still."""
        options = self.options(settings)
        length = options.length
        line, names = b"0,9.81,0,0,0,0\n", ",".join(NAMES).encode() + b"\n"
        rates_first = b"0,0,0,0,9.81,0\n" * length
        tables = {
            "six columns": line * length,
            "a line of names before them": names + line * length,
            "the same names in another order": ",".join(NAMES[3:] + NAMES[:3]).encode() + b"\n" + rates_first,
            "the rates first, without names": rates_first,
            "acceleration in g": b"0,1,0,0,0,0\n" * length,
            "names, with a column of times": b"time," + names + (b"0.1," + line) * length,
            "a column of times, without names": (b"0.1," + line) * length,
            "semicolons instead of commas": line.replace(b",", b";") * length,
            "half as many lines": line * (length // 2),
        }
        return {name: (data, "csv") for name, data in tables.items()}

    def picture(self, value: NDArray[np.float32], options: ImuSettings) -> Any:
        """Acceleration above, in [-20, 20] m/s2, and rates below, in [-1, 1] rad/s; x red, y green, z blue."""
        width, height = PANEL
        sheet, draw = canvas((width, 2 * height + 1), "white")
        draw.line([(0, height), (width, height)], fill=(200, 200, 200))
        positions = np.linspace(0, width - 1, value.shape[1])
        for number, channel in enumerate(value):
            top, scale = (0, 20.0) if number < 3 else (height + 1, 1.0)
            levels = top + (1 - np.clip(channel / scale, -1, 1)) * (height - 1) / 2
            draw.line(list(zip(positions.tolist(), levels.tolist(), strict=True)), fill=COLOURS[number % 3])
        return sheet

    def measure(self, predicted: list[Any], target: list[Any], options: Any) -> Mapping[str, float]:
        squares = np.stack([(a - b).astype(np.float64) ** 2 for a, b in zip(predicted, target, strict=True)])
        return {
            "acceleration_rmse": float(np.sqrt(squares[:, :3].sum(axis=1).mean())),
            "rate_rmse": float(np.sqrt(squares[:, 3:].sum(axis=1).mean())),
        }


plugin = Imu()
