"""Wheels of installed distributions, for bundles whose plugins are on no package index."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from email import message_from_string
from importlib.metadata import Distribution, distribution
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from tokenizers_zoo.errors import PluginError
from tokenizers_zoo.records.io import read_regular

PIP_WHEEL = ["-m", "pip", "wheel", "--quiet", "--no-input", "--disable-pip-version-check", "--no-deps", "--wheel-dir"]
BY_INSTALLER = ("INSTALLER", "REQUESTED", "direct_url.json")
"""Files that installers add to a .dist-info folder."""


def write_wheels(names: Iterable[str], folder: Path) -> list[str]:
    """Write the wheels of installed distributions into a new folder; return their file names.

    pip builds editable ones from their source folders. The others are packed from their installed files, without the
    network. Raises PluginError if a build fails, or if installed files have changed or cannot be packed.
    """
    folder.mkdir()
    distributions = [distribution(name) for name in names]
    origins = [json.loads(dist.read_text("direct_url.json") or "{}") for dist in distributions]
    sources = [origin["url"] for origin in origins if origin.get("dir_info", {}).get("editable")]
    for dist, origin in zip(distributions, origins, strict=True):
        if origin.get("url") not in sources:
            _pack(dist, folder)
    if sources:
        _build(sources, folder)
    return sorted(wheel.name for wheel in folder.iterdir())


def _build(sources: Sequence[str], folder: Path) -> None:
    """Build wheels with the installed build backends, or else with those that pip downloads."""
    env = {"SOURCE_DATE_EPOCH": "315532800", **os.environ}
    for isolation in (["--no-build-isolation"], []):
        command = [sys.executable, *PIP_WHEEL, str(folder), *isolation, *sources]
        result = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, env=env)
        if result.returncode == 0:
            return
    reason = (re.findall("(?:ERROR|[A-Z][A-Za-z]*Error): .*", result.stderr) or [result.stderr.strip()])[0][:300]
    raise PluginError(f"no wheels of {', '.join(sources)}: {reason}; pip wheel --no-deps FOLDER says more")


def _pack(dist: Distribution, folder: Path) -> None:
    """Write the wheel of a distribution from the files in its RECORD, except the BY_INSTALLER ones."""
    record, wheel_metadata = dist.read_text("RECORD"), dist.read_text("WHEEL")
    if not record or not wheel_metadata:
        raise PluginError(f"{dist.name}: its installation has no RECORD of a wheel; install it again with pip")
    scripts = {entry.name for entry in dist.entry_points if entry.group in ("console_scripts", "gui_scripts")}
    dist_info = re.findall(r"^([^/]+)\.dist-info/METADATA,", record, re.MULTILINE)[0]
    tags = zip(*(tag.split("-") for tag in message_from_string(wheel_metadata).get_all("Tag", [])), strict=True)
    tag, record_lines = "-".join(".".join(sorted(set(part))) for part in tags), list[str]()
    with ZipFile(folder / f"{dist_info}-{tag}.whl", "w") as wheel:
        for line in sorted(record.splitlines()):
            ((name, digest, _),) = csv.reader([line])
            path, outside = Path(str(dist.locate_file(name))), name.startswith("../")
            by_installer = name.startswith(dist_info) and path.name in BY_INSTALLER
            if not digest or by_installer or (outside and path.stem in scripts):
                continue  # compiled files and RECORD have no digest
            kind, data = digest.partition("=")[0], read_regular(path) or b""
            computed = base64.urlsafe_b64encode(hashlib.new(kind, data).digest()).decode().rstrip("=")
            if outside or digest != f"{kind}={computed}":
                reason = "is outside of site-packages" if outside else "has changed since it was installed"
                raise PluginError(f"{dist.name}: no wheel can be made of it: {path} {reason}")
            wheel.writestr(ZipInfo(name), data, ZIP_DEFLATED)
            record_lines.append(line)
        name = f"{dist_info}.dist-info/RECORD"
        wheel.writestr(ZipInfo(name), "\n".join([*record_lines, f"{name},,", ""]), ZIP_DEFLATED)
