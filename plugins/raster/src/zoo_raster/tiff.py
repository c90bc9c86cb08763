"""TIFF files with any number of bands, as arrays."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import math
import zlib
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from tokenizers_zoo.contract.pictures import check_directories
from tokenizers_zoo.errors import InvalidValueError, first_line, size_text
from tokenizers_zoo.records.limits import limits

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # the error describes the problem

GDAL_METADATA, GDAL_NODATA = 42112, 42113
"""GDAL's tags for scale and offset, and for the number of pixels without data (GTiff driver)."""
DEFLATE = (8, 32946, 50013)
"""TIFF compressions that Python's zlib decodes."""
MASK = 4  # the kind of a page that says where another has data (TIFF 6.0, NewSubfileType)


@dataclass(frozen=True, kw_only=True, slots=True)
class Raster:
    """Contents of a TIFF file."""

    numbers: NDArray[Any]
    """(height, width), or with the bands as the file has them."""
    nodata: float | None = None
    """Number of pixels without data; None if the file declares none."""
    scale: float = 1.0
    """A value is `scale` times its number, plus `offset`."""
    offset: float = 0.0
    masked: NDArray[np.bool_] | None = None
    """Which pixels (height, width) have no data, where a mask in the file says that some have not."""

    def missing(self, *numbers: float) -> NDArray[np.bool_]:
        """Where there is no data, in the shape of `numbers`: at these numbers, at the file's own, and where masked."""
        mask = np.zeros(self.numbers.shape, bool)
        for number in numbers if self.nodata is None else (*numbers, self.nodata):
            with np.errstate(over="ignore"):  # a double beyond single precision; the array's own type compares
                mask |= self.numbers == number
        if self.masked is not None:
            bands_last = mask.ndim == 3 and mask.shape[:2] == self.masked.shape
            mask |= self.masked[..., None] if bands_last else self.masked
        return mask

    def why(self, *numbers: float) -> str:
        """Describe the markers of missing data: "-9999 or 0", and the mask if there is one."""
        named = sorted({*numbers} if self.nodata is None else {*numbers, self.nodata})
        return " or ".join([*(f"{number:g}" for number in named), *([] if self.masked is None else ["the mask in it"])])


def read_tiff(data: bytes) -> Raster:
    """A TIFF file. Raises ValueError, and InvalidValueError above the limits."""
    import tifffile

    check_directories(data)
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            pages = len(file.pages)
            check_sizes(file, data)
            numbers = np.asarray(file.asarray()) if pages else np.empty(0)
            tags: Any = file.pages.first.tags if pages else {}
            nodata = float(str(tags[GDAL_NODATA].value).strip("\x00 ")) if GDAL_NODATA in tags else None
            scale, offset = _units(str(tags[GDAL_METADATA].value)) if GDAL_METADATA in tags else ({1.0}, {0.0})
            masks = [np.asarray(page.asarray()) == 0 for page in file.pages[1:] if page.aspage().subfiletype == MASK]
    except InvalidValueError:
        raise
    except Exception as error:
        raise ValueError(f"cannot be read as TIFF: {first_line(error)}") from None
    if not pages:
        raise ValueError("cannot be read as TIFF: there is no picture in it; the file may be cut off")
    if len(scale) > 1 or len(offset) > 1:
        raise ValueError("its bands have scales or offsets of their own; save all of them in one unit")
    masked = np.logical_or.reduce(masks) if any(mask.any() for mask in masks) else None
    return Raster(numbers=numbers, nodata=nodata, scale=scale.pop(), offset=offset.pop(), masked=masked)


def check_sizes(file: Any, data: bytes) -> None:
    """Raise InvalidValueError above the limit `array_elements`, ValueError for a file that decodes to more.

    Nothing is decoded, except by bounded trials: tifffile's own decompression has no bound.
    """
    pages = [page.aspage() for page in file.pages]
    shapes = [page.shape for page in pages] + [page.chunks for page in pages]
    for shape in [*shapes, *(series.shape for series in file.series[:1])]:
        limits().check("array_elements", math.prod(shape), f"{size_text(shape)} numbers")
    total = sum(math.prod(page.shape) for page in pages)
    limits().check("array_elements", total, f"{total:,} numbers in {len(pages)} pages")
    for page in pages:
        chunks = list(zip(page.dataoffsets, page.databytecounts, strict=False))
        if sum(size for _, size in chunks) > len(data):
            raise ValueError("its parts overlap")
        if page.compression == 1 or importlib.util.find_spec("imagecodecs"):
            continue
        if page.compression not in DEFLATE:
            raise ValueError(f"its compression needs the package imagecodecs: {page.compression!r}; save it as deflate")
        max_bytes = math.prod(page.chunks) * page.dtype.itemsize
        for offset, size in chunks:
            unpacker = zlib.decompressobj()
            unpacker.decompress(data[offset : offset + size], max_bytes + 1)
            if len(unpacker.unconsumed_tail):
                raise ValueError(f"a part of it decodes to more than {max_bytes:,} bytes")


def _units(metadata: str) -> tuple[set[float], set[float]]:
    """The scales and offsets of the bands, as GDAL writes them: an item of that role for each band; else 1 and 0."""
    values_by_role: dict[str, set[float]] = {"scale": set(), "offset": set()}
    with contextlib.suppress(ElementTree.ParseError):  # what another program wrote there says nothing
        for item in ElementTree.fromstring(metadata.strip("\x00 \n")).iter("Item"):
            if (role := item.get("role", "")) in values_by_role:
                values_by_role[role].add(float(item.text or "nan"))
    return values_by_role["scale"] or {1.0}, values_by_role["offset"] or {0.0}


def tiff_bytes(array: NDArray[Any], nodata: float | None = None, scale: float | None = None) -> bytes:
    """Write an array as a TIFF file, with a number for pixels without data, and scale and offset."""
    import tifffile

    buffer = io.BytesIO()
    tags = [] if nodata is None else [(GDAL_NODATA, "s", 0, f"{nodata:g}", True)]
    if scale is not None:
        item = f'<Item name="SCALE" sample="0" role="scale">{scale:g}</Item>'
        tags.append((GDAL_METADATA, "s", 0, f"<GDALMetadata>{item}</GDALMetadata>", True))
    # Without "minisblack" some shapes would be taken for colours.
    tifffile.imwrite(buffer, array, photometric="minisblack", extratags=tags)
    return buffer.getvalue()


def bands_first(value: NDArray[Any], bands: int) -> NDArray[Any]:
    """(bands, height, width) of an array that has the bands first or last. Raises ValueError."""
    if value.ndim == 3 and value.shape[0] == bands:
        return value
    if value.ndim == 3 and value.shape[2] == bands:
        return np.ascontiguousarray(value.transpose(2, 0, 1))
    raise ValueError(f"expected {bands} bands (bands, height, width), got {value.shape}")
