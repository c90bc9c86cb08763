"""The table [limits] of registry.toml: larger values are refused before they are decoded."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from tokenizers_zoo.errors import ConfigError, InvalidValueError
from tokenizers_zoo.limits import Limits, limited, limits
from tokenizers_zoo.registry import Zoo


def test_limits_come_from_the_registry(tmp_path: Path) -> None:
    (tmp_path / "registry.toml").write_text("[limits]\nimage_pixels = 7\n")
    zoo = Zoo.from_toml(tmp_path / "registry.toml")
    assert zoo.limits == dataclasses.replace(Limits(), image_pixels=7)
    with pytest.raises(InvalidValueError, match=re.escape("8 pixels, at most 7 (image_pixels in [limits] of registry")):
        zoo.limits.check("image_pixels", 8, "8 pixels")
    zoo.limits.check("image_pixels", 7, "7 pixels")


@pytest.mark.parametrize("line", ["image_pixels = 0", "audio_seconds = nan", "frames = 'many'", "pixels = 3"])
def test_odd_limits_are_refused_by_file_and_key(tmp_path: Path, line: str) -> None:
    (tmp_path / "registry.toml").write_text(f"[limits]\n{line}\n")
    with pytest.raises(ConfigError, match=rf"registry.toml.*{line.split()[0]}"):
        Zoo.from_toml(tmp_path / "registry.toml")


def test_limits_hold_inside_the_block_only() -> None:
    with limited(Limits(frames=3)):
        assert limits().frames == 3
    assert limits() == Limits()


def test_a_larger_file_is_not_read(tmp_path: Path) -> None:
    zoo = Zoo({"limits": {"file_bytes": 10}})
    path = tmp_path / "photo.png"
    path.write_bytes(bytes(11))
    for read in (lambda: zoo["rgb"].open(path), lambda: zoo["rgb"].read(bytes(11), "png")):
        with pytest.raises(InvalidValueError, match=r"rgb.*11 bytes, at most 10 \(file_bytes in \[limits\]"):
            read()
