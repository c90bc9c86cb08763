"""TIFF files with any number of bands, as arrays."""

from __future__ import annotations

import io
import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what is wrong with a file is said by the error


GDAL_NODATA = 42113
"""The tag by which GDAL says which number stands for pixels without data (GDAL, GeoTIFF driver)."""


def read_tiff(data: bytes) -> tuple[NDArray[Any], float | None]:
    """The array of a TIFF file, (height, width) or with the bands as the file has them, and its number for no data.

    Raises ValueError.
    """
    import tifffile

    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            pages = len(file.pages)
            array = np.asarray(file.asarray()) if pages else np.empty(0)
            tag = file.pages.first.tags.get(GDAL_NODATA) if pages else None
            nodata = float(str(tag.value).strip("\x00 ")) if tag is not None else None
    except Exception as error:
        raise ValueError(f"cannot be read as TIFF: {str(error).splitlines()[0]}") from None
    if not pages:
        raise ValueError("cannot be read as TIFF: there is no picture in it; the file may be cut off")
    return array, nodata


def tiff_bytes(array: NDArray[Any], nodata: float | None = None) -> bytes:
    """An array as a TIFF file, with a number for pixels without data."""
    import tifffile

    buffer = io.BytesIO()
    tags = [] if nodata is None else [(GDAL_NODATA, "s", 0, f"{nodata:g}", True)]
    # Without "minisblack" some shapes would be taken for colours.
    tifffile.imwrite(buffer, array, photometric="minisblack", extratags=tags)
    return buffer.getvalue()


def equal(value: NDArray[Any], number: float) -> NDArray[np.bool_]:
    """Where an array holds a number, as its own type has it: such as -9999.9 in single precision."""
    with np.errstate(over="ignore"):  # the least double, in single precision, is -infinity
        result: NDArray[np.bool_] = value == number
    return result


def bands_first(value: NDArray[Any], bands: int) -> NDArray[Any]:
    """(bands, height, width) of an array that has the bands first or last. Raises ValueError."""
    if value.ndim == 3 and value.shape[0] == bands:
        return value
    if value.ndim == 3 and value.shape[2] == bands:
        return np.ascontiguousarray(value.transpose(2, 0, 1))
    raise ValueError(f"expected {bands} bands (bands, height, width), got {value.shape}")
