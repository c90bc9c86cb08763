"""Multi-spectral rasters and height maps: files, units, metrics by hand."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from tokenizers_zoo.contract.validation import array_bytes as npy
from tokenizers_zoo.errors import InvalidValueError
from tokenizers_zoo.families.images import angle_degrees
from tokenizers_zoo.records.config import Settings
from tokenizers_zoo.testing.media import save_picture
from zoo_raster import heightmap, multispectral

read_tiff, tiff_bytes = multispectral.read_tiff, multispectral.tiff_bytes


def settings(name: str, **table: Any) -> Settings:
    return Settings(name, {"image_size": 16, "patch_size": 8, **table})


# ---------------------------------------------------------------- bands


@pytest.mark.parametrize("write", [npy, tiff_bytes])
def test_integers_become_reflectance(write: Any) -> None:
    numbers = np.arange(12, dtype=np.uint16)[:, None, None] * 1000 + np.zeros((12, 4, 5), np.uint16)
    extension = {npy: "npy", tiff_bytes: "tif"}[write]
    reflectance = read_bands(write(numbers), extension, offset=-0.1)
    np.testing.assert_allclose(reflectance[:, 0, 0], np.clip(np.arange(12) * 0.1 - 0.1, 0, 2), atol=1e-6)
    last = read_bands(write(np.ascontiguousarray(numbers.transpose(1, 2, 0))), extension, offset=-0.1)
    np.testing.assert_array_equal(last, reflectance)


def read_bands(data: bytes, extension: str = "npy", **table: Any) -> np.ndarray:
    return multispectral.plugin.read_value(data, extension, settings("multispectral", **table))


def test_noise_below_0_is_cut_off() -> None:
    """Newer Sentinel-2 products have an offset; dark water is negative after its removal."""
    floats = np.full((12, 10, 10), 0.05, np.float32)
    floats[:, 0, 0] = -0.004
    bands = read_bands(npy(floats), offset=-0.1)
    np.testing.assert_allclose(bands, np.maximum(floats, 0), atol=1e-6)
    assert bands.min() == 0 and bands.dtype == np.float32


def test_integer_pixels_of_all_zeros_are_missing_by_default() -> None:
    numbers = np.zeros((12, 4, 4), np.uint16)
    assert (read_bands(npy(numbers), nodata=float("nan")) == 0).all()
    assert (read_bands(npy(numbers.astype(np.float32))) == 0).all()
    value = np.full((12, 4, 4), 0.5)
    value[3, 1, 1] = 0  # in one band only
    assert read_bands(tiff_bytes(value, nodata=0), "tif")[3, 1, 1] == 0


def test_bands_are_not_taken_for_colours() -> None:
    bands = np.arange(64, dtype=np.float32).reshape(2, 8, 4)
    raster = read_tiff(tiff_bytes(bands))  # a warning of tifffile would be an error
    np.testing.assert_array_equal(raster.numbers, bands)
    assert (raster.nodata, raster.scale, raster.offset) == (None, 1, 0)
    assert read_tiff(tiff_bytes(bands, nodata=-9999)).nodata == -9999


def of_two_pages(mask: np.ndarray, metadata: str = "") -> bytes:
    """Return a TIFF of heights with a mask page and metadata as GDAL writes them."""
    buffer = io.BytesIO()
    tags = [(42112, "s", 0, metadata, True)] if metadata else []
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(np.full((4, 4), 1200, np.int16), photometric="minisblack", metadata=None, extratags=tags)
        writer.write(mask, photometric="mask", subfiletype=4, metadata=None)
    return buffer.getvalue()


def test_a_mask_in_a_file_says_which_pixels_have_data() -> None:
    mask = np.full((4, 4), True)
    heights = heightmap.plugin.read_value(of_two_pages(mask), "tif", settings("heightmap"))
    assert heights.shape == (1, 4, 4) and (heights == 1200).all()
    mask[0] = False
    with pytest.raises(InvalidValueError, match="4 of 16 pixels have no height"):
        heightmap.plugin.read_value(of_two_pages(mask), "tif", settings("heightmap"))


@pytest.mark.parametrize("last", [False, True])
def test_a_masked_pixel_has_no_data_in_any_band(last: bool) -> None:
    masked = np.zeros((4, 5), bool)
    masked[1, 2] = True
    numbers = np.ones((4, 5, 3) if last else (3, 4, 5))
    missing = multispectral.Raster(numbers=numbers, masked=masked).missing()
    assert missing.sum() == 3 and (missing[1, 2] if last else missing[:, 1, 2]).all()


def test_numbers_have_the_scale_and_offset_that_a_file_names() -> None:
    def described(*items: str) -> bytes:
        words = "".join(f'<Item name="X" sample="{n}" role="{item}' for n, item in enumerate(items))
        return of_two_pages(np.full((4, 4), True), f"<GDALMetadata>{words}</GDALMetadata>")

    def read(data: bytes, **table: Any) -> Any:
        return heightmap.plugin.read_value(data, "tif", settings("heightmap", **table))

    scaled = described('scale">0.1</Item>', 'offset">-20</Item>')
    np.testing.assert_allclose(read(scaled), 100)
    with pytest.raises(InvalidValueError, match=r"16 of 16 .* 1200"):
        read(scaled, nodata=1200.0)  # compared before scaling
    np.testing.assert_allclose(read(described('description">ground</Item>')), 1200)
    with pytest.raises(InvalidValueError, match="scales or offsets"):
        read(described('scale">0.1</Item>', 'scale">0.2</Item>'))
    described_tiff = of_two_pages(np.full((4, 4), True), "height & slope")
    np.testing.assert_allclose(read(described_tiff), 1200)
    for scale in (0.0001, float(np.float32(0.0001))):
        numbers = np.full((12, 4, 4), 3000, np.uint16)
        item = f'<GDALMetadata><Item name="SCALE" sample="0" role="scale">{scale!r}</Item></GDALMetadata>'
        tifffile.imwrite(
            data := io.BytesIO(), numbers, photometric="minisblack", extratags=[(42112, "s", 0, item, True)]
        )
        np.testing.assert_allclose(read_bands(data.getvalue(), "tif"), 0.3, rtol=1e-6)
    described_tiff = tiff_bytes(numbers, scale=0.00010002)
    with pytest.raises(InvalidValueError, match=r"scale 0.00010002 .*0.0001"):
        read_bands(described_tiff, "tif")


@pytest.mark.parametrize("plugin", [multispectral.plugin, heightmap.plugin])
def test_a_nodata_number_outside_single_precision_matches_nothing(plugin: Any) -> None:
    bands = plugin.channels
    data = tiff_bytes(np.full((bands, 4, 4) if bands > 1 else (4, 4), 0.5, np.float32), nodata=-1.797e308)
    numbers = plugin.read_value(data, "tif", settings("multispectral" if bands > 1 else "heightmap"))
    assert numbers.shape == (bands, 4, 4) and (numbers == 0.5).all()


def test_spectral_angle_by_hand() -> None:
    truth = np.zeros((12, 1, 4))
    truth[0] = 1
    predicted = np.zeros_like(truth)
    predicted[0, 0] = 0.5, 1, 0, 0  # half as bright; at 45 degrees; at a right angle; nothing
    predicted[1, 0] = 0, 1, 1, 0
    np.testing.assert_allclose(angle_degrees(predicted, truth)[0], [0, 45, 90, 90], atol=1e-6)


def test_raster_metrics_by_hand() -> None:
    truth = np.full((12, 4, 4), 0.4, np.float32)
    marks = multispectral.plugin.score([truth * 0.75], [truth], settings("multispectral"))
    assert marks == pytest.approx({"psnr": 20.0, "spectral_angle": 0.0}, abs=1e-3)


def test_true_colour_takes_the_visible_bands() -> None:
    value = np.zeros((12, 1, 1), np.float32)
    value[list(multispectral.BANDS).index("B04")] = 1
    assert np.asarray(multispectral.plugin.render(value, settings("multispectral"))).tolist() == [[[255, 0, 0]]]
    assert len(multispectral.BANDS) == 12 and list(multispectral.BANDS.values()) == sorted(multispectral.BANDS.values())


# ---------------------------------------------------------------- heights


def test_the_scaling_of_heights_can_be_inverted() -> None:
    metres = torch.tensor([-11000.0, -50.0, 0.0, 30.0, 8848.0])
    scaled = heightmap.plugin.to_network(metres, None)
    assert scaled[3].item() == pytest.approx(np.arcsinh(0.3)) and scaled[2] == 0
    torch.testing.assert_close(heightmap.plugin.from_network(scaled, None), metres, rtol=1e-4, atol=1e-3)
    assert heightmap.plugin.from_network(torch.tensor([1e9]), None).item() == 9000


def test_height_metrics_by_hand() -> None:
    """A slope of 45 degrees (60 m up per 60 m) against a plain."""
    plain = np.zeros((1, 8, 8), np.float32)
    slope = plain + np.arange(8, dtype=np.float32) * 60
    marks = heightmap.plugin.score([slope], [plain], settings("heightmap"))
    assert marks == pytest.approx({"mae": 210.0, "slope_error": 45.0}, abs=1e-4)


def test_heights_are_read_from_tif_npy_and_png() -> None:
    heightmap_settings = settings("heightmap", png_scale=0.1, png_offset=-100.0)
    metres = np.array([[12.5, -3.0]], np.float32)
    for data, extension in ((tiff_bytes(metres), "tif"), (npy(metres), "npy")):
        np.testing.assert_array_equal(heightmap.plugin.read_value(data, extension, heightmap_settings), metres[None])
    picture = save_picture(Image.fromarray(np.array([[1125, 970]], np.uint16)))
    np.testing.assert_allclose(heightmap.plugin.read_value(*picture, heightmap_settings), [[[12.5, -3.0]]], atol=1e-4)


def test_slopes_that_face_the_sun_are_bright() -> None:
    ramp = np.arange(8, dtype=np.float32) * 30 + np.zeros((1, 8, 8), np.float32)
    west, east = (
        np.asarray(heightmap.plugin.render(value, settings("heightmap"))).astype(int)[:, 3:5].sum()
        for value in (ramp, np.ascontiguousarray(ramp[..., ::-1]))
    )
    assert west > 1.3 * east  # the sun is in the north-west; a slope that rises to the east faces west


def test_the_number_for_missing_heights_is_a_setting() -> None:
    trench = npy(np.array([[-9999.0, 5.0]]))
    heights = heightmap.plugin.read_value(trench, "npy", settings("heightmap", nodata=float("nan")))
    np.testing.assert_array_equal(heights, [[[-9999, 5]]])
    picture = save_picture(Image.fromarray(np.array([[0, 970]], np.uint16)))
    heightmap_settings = settings("heightmap", nodata=0.0, png_scale=0.1, png_offset=-100.0)
    with pytest.raises(InvalidValueError, match=r"1 of 2 pixels .* 0 "):
        heightmap.plugin.read_value(*picture, heightmap_settings)
