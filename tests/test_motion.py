"""Video, flow and inertial measurements: files, crops, mirrors, metrics by hand."""

from __future__ import annotations

import io
import struct
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tokenizers_zoo.contract.spec import Crop
from tokenizers_zoo.contract.validation import array_bytes as npy
from tokenizers_zoo.errors import InvalidValueError
from tokenizers_zoo.records.config import Settings
from tokenizers_zoo.records.limits import Limits, limited
from tokenizers_zoo.testing.media import save_picture
from zoo_motion import flow, imu, video


def settings(name: str, **table: Any) -> Settings:
    sizes = {"image_size": 16, "patch_size": 8}
    return Settings(name, table if name == "imu" else {**sizes, **table})


def animation_bytes(frames: list[Image.Image], kind: str, **options: Any) -> bytes:
    return save_picture(frames[0], kind.lower(), save_all=True, append_images=frames[1:], **options).data


def animation(greys: list[int], milliseconds: int | list[int], kind: str = "GIF") -> bytes:
    frames = [Image.new("L", (16, 16), grey).convert("RGB") for grey in greys]
    return animation_bytes(frames, kind, duration=milliseconds, lossless=True)


# ---------------------------------------------------------------- video


def read_video(data: bytes, extension: str, **table: Any) -> np.ndarray:
    return video.plugin.read_value(data, extension, settings("video", frames=4, **table))


FIFTHS = [0, 51, 102, 153]
AT_8 = [130, 120, 130, 120]
"""8 frames per second as ffmpeg rounds their durations, in ms."""


@pytest.mark.parametrize(
    ("kind", "rate", "greys", "durations", "expected"),
    [
        # 5 frames of 100 ms, shown at 0, 125, 250 and 375 ms; and a first frame until 300 ms
        *((kind, 8.0, [*FIFTHS, 204], 100, FIFTHS) for kind in ("GIF", "PNG", "WEBP")),
        *((kind, 8.0, FIFTHS[:3], [300, 60, 400], [0, 0, 0, 102]) for kind in ("GIF", "PNG", "WEBP")),
        # durations that a file rounds
        ("GIF", 8.0, FIFTHS, AT_8, FIFTHS), ("PNG", 8.0, FIFTHS, AT_8, FIFTHS),
        ("GIF", 24.0, FIFTHS, [40, 40, 50, 40], FIFTHS), ("WEBP", 30.0, FIFTHS, [33, 33, 34, 33], FIFTHS),
        ("WEBP", 30.0, FIFTHS, [34, 33, 33, 34], FIFTHS), ("WEBP", 240.0, FIFTHS, [5, 4, 4, 4], FIFTHS),
    ],
)  # fmt: skip
def test_frames_are_those_at_the_times_of_the_settings(
    kind: str, rate: float, greys: list[int], durations: int | list[int], expected: list[int]
) -> None:
    frames = read_video(animation(greys, durations, kind), kind.lower(), frame_rate=rate)
    assert frames.shape == (4, 3, 16, 16) and frames.dtype == np.float32
    np.testing.assert_allclose(frames[:, 0, 0, 0], np.array(expected) / 255, atol=0.01)


def test_a_still_for_other_programs_is_no_frame() -> None:
    frames = [Image.new("RGB", (16, 16), (grey,) * 3) for grey in (255, 0, 51, 102, 153)]
    clip = read_video(animation_bytes(frames, "PNG", duration=125, default_image=True), "png", frame_rate=8.0)
    np.testing.assert_allclose(clip[:, 0, 0, 0], [0, 0.2, 0.4, 0.6], atol=0.01)


@pytest.mark.parametrize(("kind", "options"), [("GIF", {"disposal": 2}), ("PNG", {}), ("WEBP", {"lossless": True})])
def test_transparent_pixels_of_frames_are_white(kind: str, options: dict[str, Any]) -> None:
    """A red square moves over a transparent background that is stored as black."""
    frames = [Image.new("RGBA", (16, 16), (0, 0, 0, 0)) for _ in range(5)]
    for number, frame in enumerate(frames):
        frame.paste((255, 0, 0, 255), (number, 4, number + 4, 8))
    clip = read_video(animation_bytes(frames, kind, duration=125, **options), kind.lower(), frame_rate=8.0)
    for number, frame_shown in enumerate(clip):
        np.testing.assert_allclose(frame_shown[:, 15, 15], 1, atol=0.01)
        np.testing.assert_allclose(frame_shown[:, 5, number + 1], [1, 0, 0], atol=0.01)


FORMATS = {"mp4": "mp4", "mov": "mov", "mkv": "matroska", "webm": "webm", "avi": "avi"}


def grey_video(kind: str, greys: list[int], rate: int, size: tuple[int, int] = (32, 32)) -> bytes:
    """Return a video file of grey frames whose upper left corner is white."""
    av = pytest.importorskip("av")
    file = io.BytesIO()
    with av.open(file, "w", format=FORMATS[kind]) as container:
        stream = container.add_stream("libvpx" if kind == "webm" else "mpeg4", rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
        for grey in greys:
            pixels = np.full((size[1], size[0], 3), grey, np.uint8)
            pixels[: size[1] // 2, : size[0] // 2] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    ("frame_rate", "rate", "expected"),
    [(8.0, 8, [0, 20, 40, 60]), (8.0, 16, [0, 40, 80, 120]), (16.0, 8, [0, 0, 20, 20])],
)
def test_video_files_are_sampled_at_the_frame_rate(
    kind: str, frame_rate: float, rate: int, expected: list[int]
) -> None:
    frames = read_video(grey_video(kind, list(range(0, 200, 20)), rate), kind, frame_rate=frame_rate)
    assert frames.shape == (4, 3, 32, 32) and frames.dtype == np.float32
    np.testing.assert_allclose(frames[:, :, 24:, 24:].mean(axis=(1, 2, 3)), np.array(expected) / 255, atol=0.03)
    assert (frames[:, :, 4:12, 4:12] > 0.9).all()


def test_large_frames_are_reduced_before_they_take_memory() -> None:
    frames = read_video(grey_video("mp4", [0, 50, 100, 150], 8, size=(320, 160)), "mp4")
    assert frames.shape == (4, 3, 32, 64)
    assert (frames[:, :, 2:14, 2:28] > 0.9).all()


@pytest.mark.parametrize(
    ("data", "extension", "words"),
    [
        (b"", "mp4", "cannot be read"), (b"#EXTM3U\nhttp://localhost/a.ts\n", "mp4", "cannot be read"),
        (b"nonsense" * 100, "webm", "cannot be read"), (b"nonsense", "wmv", "expected .npy, .mp4"),
    ],
)  # fmt: skip
def test_files_that_are_no_video_are_refused(data: bytes, extension: str, words: str) -> None:
    pytest.importorskip("av")
    with pytest.raises(InvalidValueError, match=words):
        read_video(data, extension)


def test_frames_after_the_last_needed_one_are_not_decoded() -> None:
    data = animation([*FIFTHS, 204, 255], 130)
    assert read_video(data[: data.rindex(b"!\xf9") + 3], "gif").shape == (4, 3, 16, 16)
    with limited(Limits(frames=4)):
        assert read_video(data, "gif").shape == (4, 3, 16, 16)


def test_a_short_or_cut_video_is_refused() -> None:
    with pytest.raises(InvalidValueError, match=r"0.25 s, .* 2 frames .* 4"):
        read_video(grey_video("mp4", [0, 50], 8), "mp4")
    data = grey_video("mkv", list(range(0, 200, 2)), 8)
    with pytest.raises(InvalidValueError, match=r"frames|cannot be read"):
        read_video(data[:700], "mkv")


def test_without_the_package_its_install_line_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InvalidValueError, match=r'pip install "zoo-motion\[av\]"'):
        read_video(b"...", "mp4")


def test_bytes_are_read_as_0_to_255() -> None:
    bytes_ = np.full((6, 3, 16, 16), 51, np.uint8)
    frames = read_video(npy(bytes_), "npy")
    assert frames.shape[0] == 4 and frames.dtype == np.float32
    np.testing.assert_allclose(frames, 0.2, atol=1e-6)
    data, extension = video.plugin.write_value(frames, settings("video", frames=4))
    np.testing.assert_array_equal(read_video(data, extension), frames)


def test_video_metrics_by_hand() -> None:
    truth = np.zeros((4, 3, 8, 8), np.float32)
    still, moving = truth + 0.1, truth + np.array([0, 0.1, 0, 0.1], np.float32)[:, None, None, None]
    options = settings("video", frames=4)
    assert video.plugin.score([still], [truth], options) == pytest.approx({"psnr": 20.0, "change_error": 0.0}, abs=1e-4)
    assert video.plugin.score([moving], [truth], options)["change_error"] == pytest.approx(0.1)


# ---------------------------------------------------------------- flow


def test_crops_scale_vectors_and_mirrors_turn_them_around() -> None:
    value = np.stack([np.full((32, 64), 2.0), np.full((32, 64), 3.0)]).astype(np.float32)
    resized = flow.plugin.transform(value, Crop(), settings("flow"))  # 64 columns to 16, 32 rows to 16
    np.testing.assert_allclose(resized[:, 0, 0], [0.5, 1.5], atol=1e-6)
    part = flow.plugin.transform(value, Crop(height=0.5, width=0.25, flip=True), settings("flow"))
    np.testing.assert_allclose(part[:, 0, 0], [-2.0, 3.0], atol=1e-6)


def test_flo_files_by_hand_and_back() -> None:
    data = struct.pack("<fii", 202021.25, 2, 1) + struct.pack("<4f", 1.0, 2.0, 3.0, 4.0)
    value = flow.plugin.read_value(data, "flo", settings("flow"))
    assert value.tolist() == [[[1, 3]], [[2, 4]]]
    assert flow.plugin.write_value(value, settings("flow")) == (data, "flo")


def test_end_point_error_by_hand() -> None:
    truth = np.zeros((2, 2, 2), np.float32)
    predicted = truth.copy()
    predicted[:, 0, 0] = 3, 4
    assert flow.plugin.score([predicted], [truth], settings("flow")) == {"epe": 1.25, "outliers": 0.25}


def test_derived_flow_goes_where_the_picture_goes() -> None:
    """A smooth picture that moves 1 pixel to the right and 2 down."""
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(np.random.default_rng(0).random((40, 40)), 2)
    noise = (noise - noise.min()) / np.ptp(noise)
    frames = [noise[4:36, 4:36], noise[2:34, 3:35]]
    clip = np.stack([np.repeat(frame[None], 3, axis=0) for frame in frames]).astype(np.float32)
    derived = flow.plugin.derive({"video": clip})
    assert derived.shape == (2, 32, 32) and derived.dtype == np.float32
    np.testing.assert_allclose(np.median(derived[:, 8:24, 8:24], axis=(1, 2)), [1, 2], atol=0.3)


def test_flow_to_the_right_is_red_and_rest_is_white() -> None:
    value = np.zeros((2, 1, 2), np.float32)
    value[0, 0, 1] = 6
    pixels = np.asarray(flow.plugin.render(value, settings("flow")))
    assert pixels.tolist() == [[[255, 255, 255], [255, 0, 0]]]


# ---------------------------------------------------------------- inertial measurements


def test_columns_are_ordered_by_their_names() -> None:
    for shift in range(6):
        names = [*imu.NAMES[shift:], *imu.NAMES[:shift]]
        numbers = ",".join(str(imu.NAMES.index(name) + 1) for name in names)
        text = ", ".join(names) + "\n" + f"{numbers}\n" * 3
        for table_text in (text, text.replace(names[0], f'"{names[0]}"'), text.title()):
            measured = imu.plugin.read_value(table_text.encode(), "csv", settings("imu"))
            assert measured[:, 0].tolist() == [1, 2, 3, 4, 5, 6]


def test_fast_rotation_is_not_mistaken_for_swapped_columns() -> None:
    """Rotation rates of nearly 9.81 with an acceleration of g are valid; they are not swapped columns."""
    measured = imu.plugin.read_value(b"0,9.8,0,0,9.8,0\n" * 4, "csv", settings("imu"))
    assert measured[:, 0].tolist() == pytest.approx([0, 9.8, 0, 0, 9.8, 0])


@pytest.mark.parametrize("form", ["%.6e", "%.6E", "%g"])
def test_a_first_line_of_numbers_is_no_header(form: str) -> None:
    rows = np.random.default_rng(0).normal(size=(6, 6))
    rows[:, 1] += 9.81
    text = "\n".join(",".join(form % number for number in row) for row in rows)
    for header in ("", "ax,ay,az,gx,gy,gz\n", "acceleration_x,y,z,rate_x,y,z\n"):
        measured = imu.plugin.read_value((header + text).encode(), "csv", settings("imu"))
        np.testing.assert_allclose(measured, rows.T, rtol=1e-4)


def test_mirrored_measurements_by_hand() -> None:
    """Sideways acceleration changes sign; pitch rate stays, yaw and roll rates change sign."""
    value = np.repeat(np.arange(1, 7, dtype=np.float32)[:, None], 128, axis=1)
    mirrored = imu.plugin.transform(value, Crop(flip=True), settings("imu"))
    assert mirrored[:, 0].tolist() == [-1, 2, 3, 4, -5, -6]


def test_measurement_metrics_by_hand() -> None:
    truth = np.zeros((6, 4), np.float32)
    predicted = truth + np.array([[3], [4], [0], [0], [0], [2]], np.float32)
    marks = imu.plugin.score([predicted], [truth], settings("imu"))
    assert marks == pytest.approx({"acceleration_rmse": 5.0, "rate_rmse": 2.0})
    assert imu.plugin.render(predicted, settings("imu")).size == (192, 129)
