"""Small files that would take much time or memory, and the limit that refuses each."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import PIL
from PIL import Image

SIDE = 13_000
Entry = tuple[int, int, int, int]
"""Tag, type, count and value of a TIFF entry."""
Edit = tuple[str, float, bytes]
"""A kind of edit, its place as a fraction of the file, and bytes."""


class Hostile(NamedTuple):
    """A file of a modality, built on demand, and the limit that it exceeds; "" if it is refused as damaged."""

    modality: str
    extension: str
    build: Callable[[], bytes]
    limit: str


def png(side: int = SIDE, mode: str = "1") -> bytes:
    """A picture of one colour."""
    buffer = io.BytesIO()
    Image.new(mode, (side, side)).save(buffer, "PNG", compress_level=9)
    return buffer.getvalue()


def gif_canvas() -> bytes:
    """A frame of one pixel on a large canvas."""
    buffer = io.BytesIO()
    Image.new("L", (1, 1)).save(buffer, "GIF")
    return buffer.getvalue()[:6] + struct.pack("<HH", SIDE, SIDE) + buffer.getvalue()[10:]


def gif_frame() -> bytes:
    """A large frame, to be disposed of, on a canvas of one pixel."""
    extension = b"!\xf9\x04\x08\x00\x00\x00\x00"
    return (
        b"GIF89a"
        + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0)
        + bytes(6)
        + extension
        + (b"," + struct.pack("<HHHHB", 0, 0, SIDE, SIDE, 0) + b"\x02\x02\x44\x01\x00;")
    )


def png_of_chunks(count: int = 5_000_000) -> bytes:
    """A small picture with empty chunks."""
    data, chunk = png(8), struct.pack(">I4sI", 0, b"prIv", zlib.crc32(b"prIv"))
    return data[:33] + chunk * count + data[33:]


def png_of_profiles(count: int = 20_000) -> bytes:
    """A small picture with profiles of 1 MB each."""
    body = b"iCCPx\0\0" + zlib.compress(bytes(1_000_000), 9)
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    data = png(8)
    return data[:33] + chunk * count + data[33:]


def wav_of_chunks(count: int = 4_000_000) -> bytes:
    """A WAV file with empty chunks before its sound."""
    body = b"WAVE" + b"LIST\0\0\0\0" * count + wav(8, 8000)[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


def jpeg_of_comments(count: int = 5_000_000) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "JPEG")
    return buffer.getvalue()[:2] + b"\xff\xfe\0\3x" * count + buffer.getvalue()[2:]


def jpeg_with(extra: bytes) -> bytes:
    """A small picture of several scans, with bytes before its end marker."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, "JPEG", progressive=True)
    return buffer.getvalue()[:-2] + extra + buffer.getvalue()[-2:]


EMPTY_SCAN = b"\xff\xda\0\x08\x01\x01\0\0\x3f\0"
"""An empty scan of a JPEG."""


def gif_of_comments(count: int = 5_000_000) -> bytes:
    data = gif_frame()
    return data[:19] + b"!\1\1x\0" * count + data[19:]


def tiff(width: int, height: int, strip: bytes, *replacements: Entry, compression: int = 8) -> bytes:
    """A grey TIFF of one strip; `replacements` entries replace entries of the same tag."""
    entries = {
        256: (256, 4, 1, width), 257: (257, 4, 1, height), 258: (258, 3, 1, 8), 259: (259, 3, 1, compression),
        262: (262, 3, 1, 1), 273: (273, 4, 1, 8), 277: (277, 3, 1, 1), 278: (278, 4, 1, height),
        279: (279, 4, 1, len(strip)),
    }  # fmt: skip
    entries |= {entry[0]: entry for entry in replacements}
    table = b"".join(struct.pack("<HHII", *entries[tag]) for tag in sorted(entries))
    offset = 8 + len(strip) + len(strip) % 2
    directory = struct.pack("<H", len(entries)) + table + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", offset) + strip + bytes(len(strip) % 2) + directory


def tiff_of_tiles() -> bytes:
    """A small picture in one large tile."""
    strip = zlib.compress(bytes(1000))
    return tiff(16, 16, strip, (322, 4, 1, SIDE), (323, 4, 1, SIDE), (324, 4, 1, 8), (325, 4, 1, len(strip)))


def tiff_in_a_circle() -> bytes:
    """Directories without an end."""
    data = tiff(4, 4, bytes(16), compression=1)
    return data[:-4] + struct.pack("<I", struct.unpack("<I", data[4:8])[0])


def tiff_of_strips() -> bytes:
    """A table of strips that the file does not have."""
    return tiff(4, 4, bytes(16), (273, 4, 40_000_000, 8), (279, 4, 40_000_000, 8), compression=1)


def webp_canvas() -> bytes:
    """Two small frames on a canvas of the largest size, whose sides stand in bytes 24 to 29."""
    file, (first, second) = io.BytesIO(), (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    first.save(file, "WEBP", save_all=True, append_images=[second])
    data, side = file.getvalue(), (16_384 - 1).to_bytes(3, "little")
    assert data[12:16] == b"VP8X"
    return data[:24] + side + side + data[30:]


def bmp() -> bytes:
    """Run lengths of one colour."""
    header = struct.pack("<IiiHHIIiiII", 40, SIDE, SIDE, 1, 8, 1, 4, 0, 0, 2, 2)
    return b"BM" + struct.pack("<IHHI", 66 + 4, 0, 0, 62) + header + bytes(8) + b"\xff\x00\x00\x01"


def npy(shape: str, dtype: str = "|u1") -> bytes:
    """An array whose header names a shape, without its numbers."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def masks(size: list[int], *counts: object) -> bytes:
    """SAM's annotations."""
    return json.dumps([{"segmentation": {"size": size, "counts": count}} for count in counts]).encode()


def boxes(count: int) -> bytes:
    return json.dumps([{"label": "chair", "box": [0.1, 0.1, 0.5, 0.5]}] * count).encode()


def npy_of_masks() -> bytes:
    """More masks than a picture has."""
    buffer = io.BytesIO()
    np.save(buffer, np.ones((2000, 4, 4), bool))
    return buffer.getvalue()


OPENS_WEBP = int(PIL.__version__.partition(".")[0]) >= 13
"""Older releases ask for the memory of a WEBP canvas, which the test does not have, before they tell its size."""
HOSTILE = {
    "PNG of 13,000 x 13,000 pixels": Hostile("rgb", "png", png, "image_pixels"),
    "PNG of 13,000 x 13,000 pixels, as depth": Hostile("depth", "png", lambda: png(mode="I;16"), "image_pixels"),
    "GIF with a large canvas": Hostile("rgb", "png", gif_canvas, "image_pixels"),
    "GIF with a large frame": Hostile("rgb", "png", gif_frame, "image_pixels"),
    "GIF with a large canvas, as video": Hostile("video", "gif", gif_canvas, "image_pixels"),
    "TIFF of 13,000 x 13,000 pixels": Hostile("rgb", "tif", lambda: tiff(SIDE, SIDE, b"xx"), "image_pixels"),
    "TIFF of 30,000 x 20,000 pixels": Hostile("semseg", "tif", lambda: tiff(30_000, 20_000, b"x"), "image_pixels"),
    "TIFF of 30,000 x 20,000 heights": Hostile(
        "heightmap", "tif", lambda: tiff(30_000, 20_000, b"x"), "array_elements"
    ),
    "TIFF in one large tile": Hostile("rgb", "tif", tiff_of_tiles, "image_pixels"),
    "TIFF in one large tile, as heights": Hostile("heightmap", "tif", tiff_of_tiles, "array_elements"),
    "TIFF whose pages have no end": Hostile("heightmap", "tif", tiff_in_a_circle, ""),
    "TIFF of 40 million strips": Hostile("rgb", "tif", tiff_of_strips, ""),
    "TIFF whose strip decodes to 100 MB": Hostile(
        "heightmap", "tif", lambda: tiff(4, 4, zlib.compress(bytes(100_000_000))), ""
    ),
    "PNG of 5 million chunks": Hostile("rgb", "png", png_of_chunks, ""),
    "JPEG of 5 million comments": Hostile("rgb", "jpg", jpeg_of_comments, ""),
    "JPEG of 100,000 scans": Hostile("rgb", "jpg", lambda: jpeg_with(EMPTY_SCAN * 100_000), ""),
    "JPEG of 40 million comments between scans": Hostile(
        "rgb", "jpg", lambda: jpeg_with(b"\xff\xfe\0\2" * 40_000_000), ""
    ),
    "JPEG of 100 MB between scans": Hostile("rgb", "jpg", lambda: jpeg_with(b"\xff" * 100_000_000), ""),
    "GIF of 5 million texts": Hostile("rgb", "png", gif_of_comments, ""),
    "GIF of 5 million texts, as video": Hostile("video", "gif", gif_of_comments, ""),
    "WEBP with a large canvas": Hostile("rgb", "webp", webp_canvas, "image_pixels" if OPENS_WEBP else ""),
    "BMP of run lengths": Hostile("rgb", "bmp", bmp, "image_pixels"),
    "npy whose header says 10^12 numbers": Hostile("rgb", "npy", lambda: npy("(1000000, 1000000)"), "array_elements"),
    "npy of a negative size": Hostile("semseg", "npy", lambda: npy("(-1, 10000)") + bytes(10_000_000), ""),
    "npy of 2,000 masks": Hostile("sam_instance", "npy", npy_of_masks, "masks"),
    "63 bytes of run lengths": Hostile(
        "sam_instance", "json", lambda: masks([30_000, 20_000], [600_000_000]), "image_pixels"
    ),
    "run lengths whose sum overflows": Hostile(
        "sam_instance", "json", lambda: masks([2, 2], [2**62, 2**62, 2**62, 2**62 + 4]), ""
    ),
    "one number of 1 MB in run lengths": Hostile("sam_instance", "json", lambda: masks([2, 2], "o" * 1_000_000), ""),
    "2,000 masks": Hostile("sam_instance", "json", lambda: masks([4, 4], *[[0, 16]] * 2000), "masks"),
    "200 masks over 4 million pixels": Hostile(
        "sam_instance", "json", lambda: masks([2000, 2000], *[[0, 4_000_000]] * 200), "array_elements"
    ),
    "JSON of 200 MB": Hostile("boxes", "json", lambda: b"[" + b"0," * 100_000_000 + b"0]", "text_bytes"),
    "JSON of 4 million items": Hostile("boxes", "json", lambda: b"[" + b"0," * 4_000_000 + b"0]", "json_elements"),
    "JSON of 8 million levels": Hostile("metadata", "json", lambda: b"[" * 8_000_000, "json_elements"),
    "JSON of 900 levels": Hostile("human_poses", "json", lambda: b"[" * 900 + b"]" * 900, "json_depth"),
    "JSON of an endless string": Hostile("boxes", "json", lambda: b'"' + b'\\"' * 4_000_000, ""),
    "CSV of 50 MB": Hostile("imu", "csv", lambda: b"0,9.8,0,0,0,0\n" * 3_600_000, "text_bytes"),
    "a text of 50 MB": Hostile("caption", "txt", lambda: b"a cat " * 8_000_000, "text_bytes"),
    "PNG of 20,000 colour profiles": Hostile("rgb", "png", png_of_profiles, ""),
    "WAV of 4 million chunks": Hostile("audio", "wav", wav_of_chunks, ""),
    "WAV of 3 hours": Hostile("audio", "wav", lambda: wav(8000 * 10_800, 8000), "audio_seconds"),
}  # fmt: skip


def wav(samples: int, rate: int) -> bytes:
    """Silence of 8 bits."""
    header = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, rate, rate, 1, 8) + b"data" + struct.pack("<I", samples)
    return b"RIFF" + struct.pack("<I", len(header) + samples) + header + bytes([128]) * samples


def edited(data: bytes, changes: list[Edit]) -> bytes:
    """Return a file after some edits."""
    for kind, fraction, payload in changes:
        offset = int(fraction * len(data))
        length = len(payload) if kind == "replace" else 16 * len(payload) if kind == "drop" else 0
        between = {"cut": b"", "drop": b"", "repeat": data[offset : offset + 64] * len(payload)}.get(kind, payload)
        data = data[:offset] + between + (b"" if kind == "cut" else data[offset + length :])
    return data
