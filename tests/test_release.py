"""Releases: versions, extras, wheels and their descriptions."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from examples import PLUGINS

ROOT = Path(__file__).parent.parent
CORE = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def release() -> Any:
    spec = importlib.util.spec_from_file_location("release", ROOT / "tools" / "release.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_extra_all_has_every_distribution() -> None:
    names = {re.split(r"[\[>=]", requirement)[0] for requirement in CORE["optional-dependencies"]["all"]}
    assert names == {"zoo-backbone", *(project["name"] for project in PLUGINS.values())}


def test_the_version_is_the_same_everywhere(release: Any) -> None:
    import tokenizers_zoo

    version = release.check_version()
    assert version == tokenizers_zoo.__version__
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


@pytest.mark.slow
def test_wheels_have_metadata_and_no_relative_links(tmp_path: Path) -> None:
    pytest.importorskip("twine")
    words = [sys.executable, ROOT / "tools" / "release.py", "--out", tmp_path, "--url", "https://h/o/r", "--no-trial"]
    subprocess.run(words, check=True)
    wheels = list(tmp_path.glob("*.whl"))
    assert len(wheels) == 2 + len(PLUGINS)
    (core,) = tmp_path.glob("tokenizers_zoo-*.whl")
    with zipfile.ZipFile(core) as file:
        (name,) = (name for name in file.namelist() if name.endswith("/METADATA"))
        metadata = file.read(name).decode()
    assert "Project-URL: Repository, https://h/o/r" in metadata and "](docs/" not in metadata
