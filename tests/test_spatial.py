"""Image-like modalities: files, crops, metrics by hand, and tokenizers (training, loading, batch invariance)."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from spatial_samples import PLUGINS, canny, depth, normal, rgb, semseg, settings, values

from tokenizers_zoo import Zoo
from tokenizers_zoo.contract.pictures import FORMATS, IMAGE_EXTENSIONS, ORIENTATION, crop_and_resize, open_image
from tokenizers_zoo.contract.spec import Crop
from tokenizers_zoo.contract.validation import array_bytes as npy
from tokenizers_zoo.errors import InvalidValueError
from tokenizers_zoo.records.config import Settings


def png(array: np.ndarray, mode: str | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(buffer, **{"format": "PNG", **options})
    return buffer.getvalue()


# ---------------------------------------------------------------- crops


def test_crop_resize_and_flip_by_hand() -> None:
    ramp = np.arange(16, dtype=np.float32).reshape(1, 4, 4)
    np.testing.assert_allclose(
        crop_and_resize(ramp, Crop(top=0.5, left=0.5, height=0.5, width=0.5), (2, 2))[0], [[10, 11], [14, 15]]
    )
    np.testing.assert_allclose(crop_and_resize(ramp, Crop(flip=True), (4, 4))[0, 0], [3, 2, 1, 0])
    # the crop border lies inside pixels: it covers half of column 0 and half of column 1
    np.testing.assert_allclose(crop_and_resize(ramp, Crop(left=0.125, width=0.25, height=0.25), (1, 1)), [[[0.5]]])


def test_classes_are_never_blended() -> None:
    ids = values("semseg", 1, 32)[0]
    crop = Crop(top=0.13, left=0.21, height=0.5, width=0.6, flip=True)
    assert set(np.unique(semseg.plugin.transform(ids, crop, settings("semseg")))) <= set(np.unique(ids))


def test_mirrored_normals_point_the_other_way() -> None:
    value = values("normal", 1)[0]
    mirrored = normal.plugin.transform(value, Crop(flip=True), settings("normal"))
    np.testing.assert_allclose(mirrored[0], -value[0, :, ::-1], atol=1e-6)
    np.testing.assert_allclose(mirrored[1:], value[1:, :, ::-1], atol=1e-6)
    cropped = normal.plugin.transform(value, Crop(height=0.37, width=0.61), settings("normal"))
    np.testing.assert_allclose(np.linalg.norm(cropped, axis=0), 1, atol=1e-6)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("name", "tolerance"), [("canny", 0), ("depth", 0), ("normal", 1 / 255), ("rgb", 0.5 / 255), ("semseg", 0)]
)
def test_files_round_trip(name: str, tolerance: float) -> None:
    for value in values(name, 3, 32):
        data, extension = PLUGINS[name].write_value(value, settings(name))
        back = PLUGINS[name].read_value(data, extension, settings(name))
        assert back.dtype == value.dtype
        np.testing.assert_allclose(back, value, atol=tolerance + 1e-6)
        assert PLUGINS[name].write_value(back, settings(name)) == (data, extension)


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "MPO"])
@pytest.mark.parametrize("orientation", range(10))
def test_pictures_are_turned_as_pillow_turns_them(photograph: Image.Image, orientation: int, kind: str) -> None:
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[ORIENTATION] = orientation
    photograph.save(buffer, kind, exif=exif)
    plain = Image.open(io.BytesIO(buffer.getvalue()))
    expected = ImageOps.exif_transpose(plain)
    image = open_image(buffer.getvalue(), "jpg")
    assert (image.mode, image.size) == (expected.mode, expected.size) and image.tobytes() == expected.tobytes()
    assert image.size == ((4, 6) if 5 <= orientation <= 8 else (6, 4))
    assert ImageOps.exif_transpose(image).tobytes() == image.tobytes()  # not turned twice


def test_an_unreadable_orientation_counts_as_none(photograph: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    photograph.save(file := io.BytesIO(), "PNG", exif=b"Exif\0\0no table")
    assert open_image(file.getvalue(), "png").tobytes() == photograph.tobytes()
    monkeypatch.setattr(Image.Exif, "get", lambda *_: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MemoryError):
        open_image(png(np.zeros((2, 2), np.uint8)), "png")


def test_depth_needs_a_unit() -> None:
    read = lambda data, extension, **table: depth.plugin.read_value(data, extension, settings("depth", **table))  # noqa: E731
    millimetres = np.array([[1500, 2000]], np.uint16)
    np.testing.assert_allclose(read(png(millimetres), "png"), [[[1.5, 2.0]]])
    np.testing.assert_allclose(read(png(millimetres), "png", png_scale=0.0002), [[[0.3, 0.4]]])
    np.testing.assert_allclose(read(png(np.array([[65534]], np.uint16)), "png"), [[[65.534]]])
    np.testing.assert_allclose(read(npy(np.array([[65.535]])), "npy"), [[[65.535]]], rtol=1e-6)


def test_white_pixels_are_edges() -> None:
    numbers = np.eye(4, dtype=np.uint8)
    np.testing.assert_array_equal(canny.read_value(png(255 * numbers), "png", settings("canny"))[0], numbers)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("depth", png(np.array([[1500, 65535]], np.uint16)), "1 of 2 pixels that are 0, below, no number, or 65535 in"),
        ("depth", png(np.zeros((2, 2), np.uint8)), "expected one channel of 16 bits"),
        ("depth", npy(np.float32([[1, np.nan]])), "metres above 0, got 1 of 2"),
        ("depth", npy(np.float32([[1, 0]])), "metres above 0, got 1 of 2"),
        ("normal", npy(np.float32([[[0, 0], [0, 0]]] * 2 + [[[1, 0], [0, 0]]])), "expected unit vectors, got 3 of 4"),
        ("canny", npy(np.float32([[[0, 1, 0.3]]])), "expected 1 on an edge, else 0, got 0.3; compare"),
        ("canny", npy(np.float32([[[0, 1, np.nan]]])), "expected 1 on an edge, else 0, got nan; compare"),
        ("canny", png(np.eye(4, dtype=np.uint8)), "got numbers 0 and 1, all of them black; save 1 as 255"),
        ("semseg", png(np.uint8([[0, 7]])), "semseg: .png file: expected class ids 0 to 1, got 0 to 7"),
    ],
)
def test_files_of_other_numbers_are_refused(name: str, data: bytes, message: str) -> None:
    table = {"classes": ["a", "b"]} if name == "semseg" else {}
    with pytest.raises(InvalidValueError, match=message):
        PLUGINS[name].read_value(data, "png" if data.startswith(b"\x89PNG") else "npy", settings(name, **table))


def test_class_ids_of_16_bits_have_any_byte_order() -> None:
    ids, tiff = np.arange(6).reshape(2, 3), io.BytesIO()
    Image.fromarray(ids.astype(">u2")).save(tiff, format="TIFF")
    for data in (tiff.getvalue(), png(ids.astype(np.uint16))):
        read = semseg.plugin.read_value(data, "tif", settings("semseg"))
        assert read.dtype == np.int64 and read.tolist() == ids.tolist()


def grey_of_few_bits(ids: np.ndarray, bits: int) -> bytes:
    """Return a grey PNG file with 2 or 4 bits per pixel, which Pillow cannot write."""
    spread = (ids[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    rows = np.packbits(spread.reshape(len(ids), -1).astype(bool), axis=1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", ids.shape[1], ids.shape[0], bits, 0, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize("bits", [2, 4])
def test_class_ids_of_few_bits_are_not_rescaled(bits: int) -> None:
    ids = np.arange(32).reshape(4, 8) % 2**bits
    data = grey_of_few_bits(ids, bits)
    assert semseg.plugin.read_value(data, "png", settings("semseg")).tolist() == ids.tolist()
    white = rgb.plugin.read_value(data, "png", settings("rgb"))  # as a picture, the largest number is white
    np.testing.assert_allclose(white[0], ids / (2**bits - 1), atol=1e-6)


def test_greys_with_0_as_white_are_inverted() -> None:
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(data := io.BytesIO(), np.array([[0, 255, 0]], np.uint8), photometric="miniswhite")
    assert rgb.plugin.read_value(data.getvalue(), "tif", settings("rgb"))[0].tolist() == [[1, 0, 1]]


@pytest.mark.parametrize("extension", IMAGE_EXTENSIONS)
def test_pictures_are_not_handed_to_another_program(zoo: Zoo, monkeypatch: pytest.MonkeyPatch, extension: str) -> None:
    """Pillow decodes every file with a picture's extension itself, whatever format its content has."""
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("another program was started"))
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    with pytest.raises(InvalidValueError, match=f"rgb: .{extension} file"):
        zoo["rgb"].read(postscript, extension)
    for kind in (*FORMATS, "MPO"):
        value = zoo["rgb"].read(png(np.full((4, 6, 3), 51, np.uint8), format=kind), extension)
        np.testing.assert_allclose(value, np.full((3, 4, 6), 0.2), atol=0.02)


# ---------------------------------------------------------------- metrics


def scored(name: str, predicted: Any, target: Any, **table: Any) -> dict[str, float]:
    return PLUGINS[name].score([predicted], [target], settings(name, **table))


def test_depth_metrics_by_hand() -> None:
    scores = scored("depth", np.float32([[[1.0, 3.0]]]), np.float32([[[2.0, 2.5]]]))
    assert scores == pytest.approx({"abs_rel": (0.5 + 0.2) / 2, "delta1": 0.5, "rmse": np.sqrt((1 + 0.25) / 2)})


def test_normal_metrics_by_hand() -> None:
    up, towards = np.float32([0, 1, 0]), np.float32([0, 0, 1])
    tilted = np.float32([0, np.sin(np.radians(10)), np.cos(np.radians(10))])
    target = np.stack([towards, towards, towards], 1)[:, None]
    predicted = np.stack([towards, up, tilted], 1)[:, None]
    assert scored("normal", predicted, target) == pytest.approx(
        {"mean_angle": 100 / 3, "within_11_25": 2 / 3}, abs=1e-5
    )


def test_semseg_metrics_by_hand_without_void() -> None:
    target, predicted = np.array([[0, 1, 1, 2]]), np.array([[1, 1, 2, 2]])
    scores = scored("semseg", predicted, target, classes=["void", "a", "b", "c"])
    assert scores == pytest.approx({"miou": (1 / 2 + 1 / 2) / 2, "pixel_accuracy": 2 / 3})
    scores = scored("semseg", predicted, target, classes=["z", "a", "b"])
    assert scores == pytest.approx({"miou": (0 + 1 / 3 + 1 / 2) / 3, "pixel_accuracy": 1 / 2})


def test_canny_metrics_by_hand() -> None:
    target, predicted = np.zeros((1, 8, 8), np.float32), np.zeros((1, 8, 8), np.float32)
    target[0, 2, 2] = target[0, 6, 6] = predicted[0, 3, 3] = 1
    assert scored("canny", predicted, target) == pytest.approx({"f1": 2 * 1 * 0.5 / 1.5})
    assert scored("canny", target, target) == {"f1": 1}
    assert scored("canny", 0 * target, 0 * target)["f1"] == 1
    lines = np.zeros((1, 32, 32), np.float32)
    lines[..., ::4] = 1
    assert scored("canny", np.ones_like(lines), lines)["f1"] < 0.3  # every pixel is within two pixels of a line
    assert scored("canny", np.maximum(lines, np.roll(lines, 1, axis=-1)), lines)["f1"] > 0.9


def ssim_of(first: np.ndarray, second: np.ndarray) -> float:
    """SSIM pixel by pixel: Wang et al. 2004, equation 13, with a Gaussian window of 11 x 11."""
    bell = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(bell, bell) / bell.sum() ** 2
    similarities = []
    for channels in zip(first, second, strict=True):
        a, b = (np.pad(channel.astype(np.float64), 5, mode="reflect") for channel in channels)
        for top, left in np.ndindex(first.shape[1:]):
            x, y = (side[top : top + 11, left : left + 11] for side in (a, b))
            mean_x, mean_y, product = ((window * part).sum() for part in (x, y, x * y))
            variances = (window * (x**2 + y**2)).sum() - mean_x**2 - mean_y**2
            above = (2 * mean_x * mean_y + 0.01**2) * (2 * (product - mean_x * mean_y) + 0.03**2)
            similarities.append(above / ((mean_x**2 + mean_y**2 + 0.01**2) * (variances + 0.03**2)))
    return float(np.mean(similarities))


def test_rgb_metrics_by_hand() -> None:
    first, second = values("rgb", 2, 32)
    scores = scored("rgb", first, second)
    assert scores["psnr"] == pytest.approx(-10 * np.log10(np.mean((first - second) ** 2)), rel=1e-5)
    assert scores["ssim"] == pytest.approx(ssim_of(first, second), abs=1e-6)
    assert scored("rgb", first, first) == pytest.approx({"psnr": 100, "ssim": 1})


def test_constant_baselines_by_hand() -> None:
    metres = [np.full((1, 2, 2), number, np.float32) for number in (1, 2, 9)]
    # The relative errors of 1.4 are 0.4, 0.3 and 7.6 / 9; those for the median, 2, are 1, 0 and 7 / 9.
    np.testing.assert_allclose(depth.plugin.constant_baseline(metres, settings("depth")), 1.4, rtol=1e-6)
    ids = [np.array([[a, b]]) for a, b in ((1, 4), (3, 4), (3, 5))]
    np.testing.assert_array_equal(semseg.plugin.constant_baseline(ids, settings("semseg")), [[3, 4]])
    answer = normal.plugin.constant_baseline(values("normal", 5), settings("normal"))
    np.testing.assert_allclose(np.linalg.norm(answer, axis=0), 1, atol=1e-5)


def test_a_constant_baseline_is_never_void() -> None:
    """The last pixel is always void, so the baseline there is the commonest other class, 2."""
    options = settings("semseg", classes=["a", "void", "b"])
    ids = [np.array([row]) for row in ([1, 1, 1], [1, 2, 1], [0, 2, 1], [1, 1, 1])]
    answer = semseg.plugin.constant_baseline(ids, options)
    np.testing.assert_array_equal(answer, [[0, 2, 2]])
    assert answer.dtype == np.int64
    assert semseg.plugin.score([answer] * 4, ids, options) == {"miou": 1, "pixel_accuracy": 1}
    np.testing.assert_array_equal(semseg.plugin.constant_baseline([np.ones((1, 2), np.int64)], options), [[0, 0]])


def test_the_constant_baseline_of_edges_is_not_blank() -> None:
    lines = [np.zeros((1, 8, 8), np.float32) for _ in range(8)]
    for row, line in enumerate(lines):
        line[0, row] = 1  # each pixel is on in one value of eight
    answer = canny.constant_baseline(lines, settings("canny"))
    everywhere = np.ones((1, 8, 8), np.float32)
    floor, blank, full = (
        canny.score([constant] * 8, lines, settings("canny"))["f1"] for constant in (answer, 0 * everywhere, everywhere)
    )
    # The answer has lines three pixels apart; 22 of 64 lines are within one row of a true line.
    assert blank == 0 and full < floor == pytest.approx(2 * 22 / 64 / (1 + 22 / 64))


# ---------------------------------------------------------------- tokenizers


@pytest.mark.parametrize(("name", "expected"), [("semseg", [[1, 2], [0, 1]]), ("canny", [[0, 1], [1, 0]])])
def test_decoded_values_are_the_likeliest_by_hand(name: str, expected: list[list[int]]) -> None:
    outputs = [[[-1.0, 0.0], [3.0, -9.0]], [[2.0, 1.0], [0.0, -1.0]], [[-9.0, 7.0], [1.0, -8.0]]]
    decoded = PLUGINS[name].codec(settings(name)).from_network(torch.tensor(outputs)[None])
    assert decoded.squeeze().tolist() == expected


def test_canny_is_derived_from_rgb() -> None:
    picture = np.zeros((3, 32, 32), np.float32)
    picture[:, 8:24, 8:24] = 1
    edges = canny.derive({"rgb": picture}, settings("canny"))
    assert edges.shape == (1, 32, 32) and edges.dtype == np.float32 and set(np.unique(edges)) == {0, 1}
    rows, columns = np.nonzero(edges[0])
    assert {rows.min(), columns.min()} <= {7, 8} and {rows.max(), columns.max()} <= {23, 24}
    assert not edges[0, 12:20, 12:20].any()
    speck = np.zeros_like(picture)
    speck[:, 16, 16] = 1
    has_edges = [canny.derive({"rgb": speck}, settings("canny", sigma=sigma)).any() for sigma in (0.5, 1.0, 4.0)]
    assert has_edges == [True, True, False], "a broad blur removes fine detail"


def test_half_of_a_batch_is_mirrored() -> None:
    batch = values("depth", 64)
    mirrored = depth.plugin.codec(settings("depth")).augment(batch, np.random.default_rng(0))
    flipped = [np.array_equal(value, before[..., ::-1]) for value, before in zip(mirrored, batch, strict=True)]
    assert flipped == (np.random.default_rng(0).random(64) < 0.5).tolist()
    same = [np.array_equal(value, before) for value, before in zip(mirrored, batch, strict=True)]
    assert same == [not flip for flip in flipped]


PUBLISHED_CODES = {"canny": 8192, "depth": 8192, "normal": 8192, "rgb": 16384, "semseg": 4096}


def published(name: str, **table: Any) -> Settings:
    return Settings(name, {"preset": "4m", **table}, shared={"image_size": 64, "patch_size": 8})


@pytest.mark.parametrize("name", PLUGINS)
def test_a_preset_overrides_shared_settings_but_not_given_ones(name: str) -> None:
    plugin = PLUGINS[name]
    spec = plugin.modality_spec(published(name))
    assert spec.vocab_size == PUBLISHED_CODES[name] and spec.layout.shape == (14, 14)
    assert spec.value.shape[-2:] == (224, 224)
    config = plugin.codec(published(name)).model
    encoder = config.encoder
    assert (encoder.kind, encoder.width, encoder.depth, encoder.heads) == ("vit", 768, 12, 12)
    assert (config.quantizer.kind, config.quantizer.distance, config.quantizer.codebook_dim) == ("vq", "cosine", 32)
    larger = published(name, image_size=448, tokenizer={"codebook_size": 64, "steps": 5})
    spec, table = plugin.modality_spec(larger), plugin.options(larger).tokenizer
    assert spec.layout.shape == (28, 28) and spec.vocab_size == 64
    assert (table.steps, table.width, table.precision) == (5, 768, "bfloat16")
