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
from collections.abc import Iterable
from email import message_from_string
from importlib.metadata import Distribution, distribution
from pathlib import Path, PurePosixPath
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from tokenizers_zoo.errors import PluginError
from tokenizers_zoo.io import read_regular

PIP_WHEEL = ["-m", "pip", "wheel", "--quiet", "--no-input", "--disable-pip-version-check", "--no-deps", "--wheel-dir"]
BY_INSTALLER = ("INSTALLER", "REQUESTED", "direct_url.json")
"""Files that installers add to a .dist-info folder."""


def write_wheels(names: Iterable[str], folder: Path) -> None:
    """Write the wheels of installed distributions into a new folder.

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
    if not sources:
        return
    for isolation in (["--no-build-isolation"], []):  # installed build backends, or else downloaded ones
        command = [sys.executable, *PIP_WHEEL, str(folder), *isolation, *sources]
        env = {"SOURCE_DATE_EPOCH": "315532800", **os.environ}
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, env=env)
        if done.returncode == 0:
            return
    lines = re.findall(".*(?:ERROR|Error): .*", done.stderr) or [done.stderr]
    reason = " ".join(lines[0].split())[:300]
    raise PluginError(f"no wheels of {', '.join(sources)}: {reason}; pip wheel --no-deps FOLDER says more")


def _pack(dist: Distribution, folder: Path) -> None:
    """Write the wheel of a distribution from the files in its RECORD, except the BY_INSTALLER ones."""
    record, about = dist.read_text("RECORD"), dist.read_text("WHEEL")
    if not record or not about:
        raise PluginError(f"{dist.name}: its installation has no RECORD of a wheel; install it again with pip")
    scripts = {entry.name for entry in dist.entry_points if entry.group in ("console_scripts", "gui_scripts")}
    files, lines, info = dict[str, bytes](), list[str](), ""
    for line in sorted(record.splitlines()):
        (name, digest, _), *_ = csv.reader([line])
        path = PurePosixPath(name)
        outside, top = ".." in path.parts, str(path.parent)
        if (
            not digest
            or (outside and path.stem in scripts)
            or (top.endswith(".dist-info") and path.name in BY_INSTALLER)
        ):
            continue  # compiled files and RECORD have no digest
        data = read_regular(Path(str(dist.locate_file(name)))) or b""
        kind, _, value = digest.partition("=")
        computed = base64.urlsafe_b64encode(hashlib.new(kind, data).digest()).decode().rstrip("=")
        if outside or computed != value:
            reason = "is outside of site-packages" if outside else "has changed since it was installed"
            raise PluginError(f"{dist.name}: no wheel can be made of it: {dist.locate_file(name)} {reason}")
        info = top if path.match("*.dist-info/METADATA") and "/" not in top else info
        files[name] = data
        lines.append(line)
    files[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,", ""]).encode()
    tags = zip(*(tag.split("-") for tag in message_from_string(about).get_all("Tag", [])), strict=True)
    tag = "-".join(".".join(sorted(set(part))) for part in tags)
    with ZipFile(folder / f"{info.removesuffix('.dist-info')}-{tag}.whl", "w") as wheel:
        for name, data in files.items():
            wheel.writestr(ZipInfo(name), data, ZIP_DEFLATED)
