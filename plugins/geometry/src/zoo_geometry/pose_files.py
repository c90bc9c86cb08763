"""The files of MediaPipe's pose networks: in a folder, in the wheel that carries them, or as pip installed it."""

from __future__ import annotations

import email
import importlib.metadata
import os
import zipfile
from pathlib import Path

from tokenizers_zoo.pretrained import PIP, PretrainedError

WHEEL = "mediapipe==0.10.21"
ADVICE = f"pip download {WHEEL} --no-deps -d FOLDER, and set labeller.model to the wheel, or to a folder of its .tflite"
DETECTOR = "pose_detection.tflite"
LANDMARK_NETWORK = "pose_landmark_{size}.tflite"
FOLDERS = {DETECTOR: "modules/pose_detection"}
"""Where a file is in the package; all others are in modules/pose_landmark."""


def place_of(model: str) -> Path:
    """The folder or the wheel that `model` names: a path, or pip:DISTRIBUTION. Raises PretrainedError."""
    if model.startswith(PIP):
        name = model.removeprefix(PIP)
        try:
            return Path(str(importlib.metadata.distribution(name).locate_file(name.replace("-", "_"))))
        except importlib.metadata.PackageNotFoundError:
            raise PretrainedError(f"{model}: is not installed; {ADVICE}") from None
    place = Path(os.path.expanduser(model))  # as it is where there is no such home
    if not place.exists():
        raise PretrainedError(f"{model}: no such folder or wheel; {ADVICE}")
    if place.is_file() and not zipfile.is_zipfile(place):
        raise PretrainedError(f"{model}: is neither a folder nor a wheel; {ADVICE}")
    return place


def contents(place: Path, size: str) -> dict[str, bytes]:
    """The bytes of the detector and of the landmark network of this size, by name. Raises PretrainedError."""
    names = (DETECTOR, LANDMARK_NETWORK.format(size=size))
    try:
        if place.is_dir():
            found = {name: path.read_bytes() for name in names for path in ways(place, name) if path.is_file()}
        else:
            with zipfile.ZipFile(place) as wheel:
                members = set(wheel.namelist())
                paths = {name: [str(way) for way in ways(Path(), name)] for name in names}
                found = {name: wheel.read(way) for name in names for way in paths[name] if way in members}
    except (OSError, zipfile.BadZipFile) as error:
        raise PretrainedError(f"{place}: cannot be read: {error}") from None
    if absent := [name for name in names if name not in found]:
        raise PretrainedError(f"{place}: there is no {' and no '.join(absent)} in it; {ADVICE}")
    return found


def ways(place: Path, name: str) -> list[Path]:
    """Where a file may be: in the folder itself, as in the package, as in an unpacked wheel."""
    inner = f"{FOLDERS.get(name, 'modules/pose_landmark')}/{name}"
    return [place / name, place / inner, place / "mediapipe" / inner]


def version_of(model: str, place: Path) -> str | None:
    """The version of an installed distribution or of a wheel; None for a folder."""
    if model.startswith(PIP):
        return importlib.metadata.version(model.removeprefix(PIP))
    if place.is_dir():
        return None
    with zipfile.ZipFile(place) as wheel:
        notes = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(wheel.read(notes[0])).get("Version") if notes else None
