"""Build and check the wheels of all distributions; nothing is published.

    python tools/release.py                                  # wheels in dist/
    python tools/release.py --url https://host/owner/repo    # with project URLs, and absolute links in descriptions

The descriptions on a package index are the README files, whose relative links lead nowhere there. With --url they lead
to the repository at the tag v<version>; without it only their text is kept.

Checks: one version everywhere, with a section in CHANGELOG.md; `twine check --strict`; the licence and no tests in each
wheel. Then tokenizers-zoo and zoo-geometry alone are installed into an empty environment outside the repository, where
a tokenizer is trained for a few steps.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
ALONE = ("tokenizers-zoo", "zoo-geometry")
"""Distributions of the trial in an empty environment."""
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)\s]+)\)")
TRIAL = """
import numpy as np
from pathlib import Path
for split, count in (("train", 16), ("test", 4)):
    place = Path("files", split, "depth")
    place.mkdir(parents=True)
    for number in range(count):
        np.save(place / f"{number}.npy", np.random.default_rng(number).uniform(1, 9, (1, 64, 64)).astype(np.float32))
"""
COMMANDS = (
    "list",
    "data make folder data --set path=files",
    "tokenizer train depth --data data --steps 5",
    "tokenize data --out tokens --modalities depth",
)


def projects() -> list[Path]:
    """Return the folders of all distributions."""
    return [ROOT, ROOT / "backbone", *sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="address of the repository, such as https://host/owner/repo")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder of the wheels; default: dist")
    parser.add_argument("--no-trial", action="store_true", help="leave out the trial in an empty environment")
    arguments = parser.parse_args()
    version = check_version()
    shutil.rmtree(arguments.out, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="zoo-release-") as temporary:
        for folder in projects():
            build(folder, Path(temporary) / "source", arguments.out.absolute(), arguments.url, version)
        wheels = sorted(arguments.out.glob("*.whl"))
        check_wheels(wheels)
        if not arguments.no_trial:
            try_alone(arguments.out.absolute(), Path(temporary) / "trial")
    print(f"{len(wheels)} wheels of version {version} in {arguments.out}; nothing is published")
    print(f"publish them by: twine upload {arguments.out}/*.whl")


def check_version() -> str:
    """Return the version of all distributions. Exits if they differ, or if CHANGELOG.md lacks it."""
    versions = {}
    for folder in projects():
        project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        versions[project["name"]] = project["version"]
    if len(set(versions.values())) != 1:
        sys.exit(f"the distributions have different versions: {versions}")
    version = versions["tokenizers-zoo"]
    if f"\n## {version}" not in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"):
        sys.exit(f"CHANGELOG.md has no section for {version}")
    return version


def build(folder: Path, source: Path, out: Path, url: str | None, version: str) -> None:
    """Build the wheel of a distribution from a copy of its tracked files."""
    shutil.rmtree(source, ignore_errors=True)
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=folder, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(folder / name, source / name)
    shutil.copy2(ROOT / "LICENSE", source / "LICENSE")
    readme, settings = source / "README.md", source / "pyproject.toml"
    base = folder.relative_to(ROOT).as_posix()
    readme.write_text(with_absolute_links(readme.read_text(encoding="utf-8"), base, url, version), encoding="utf-8")
    if url:
        text = settings.read_text(encoding="utf-8")
        urls = f'[project.urls]\nRepository = "{url}"\nChangelog = "{url}/blob/v{version}/CHANGELOG.md"\n'
        settings.write_text(text.replace("[project.urls]\n", urls) if "[project.urls]" in text else f"{text}\n{urls}")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", out], cwd=source, check=True)


def with_absolute_links(text: str, folder: str, url: str | None, version: str) -> str:
    """Return a README whose relative links start at the repository's address, or are text without one."""

    def changed(link: re.Match[str]) -> str:
        picture, title, target = link.groups()
        path = os.path.normpath(f"{folder}/{target}").replace(os.sep, "/")
        kind = "raw" if picture else "blob"
        return f"{picture}[{title}]({url}/{kind}/v{version}/{path})" if url else "" if picture else title

    return LINK.sub(changed, text)


def check_wheels(wheels: list[Path]) -> None:
    """Run twine's checks, and look for the licence and for tests."""
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *wheels], check=True)
    for wheel in wheels:
        names = zipfile.ZipFile(wheel).namelist()
        if not any(name.endswith("/LICENSE") for name in names):
            sys.exit(f"{wheel.name}: has no LICENSE")
        if wrong := [name for name in names if name.startswith(("tests/", "docs/", "studies/"))]:
            sys.exit(f"{wheel.name}: has {wrong[0]}")


def try_alone(wheels: Path, folder: Path) -> None:
    """Install ALONE from the wheels into an empty environment, and train a tokenizer there."""
    venv.create(folder / "environment", with_pip=True)
    programs = folder / "environment" / ("Scripts" if os.name == "nt" else "bin")
    python = str(programs / "python")
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    install = [python, "-m", "pip", "install", "--quiet", "--find-links", str(wheels), *ALONE]
    subprocess.run(install, cwd=folder, env=environment, check=True)
    subprocess.run([python, "-c", TRIAL], cwd=folder, env=environment, check=True)
    for words in COMMANDS:
        print(f"$ zoo {words}", flush=True)
        subprocess.run([str(programs / "zoo"), *words.split()], cwd=folder, env=environment, check=True)


if __name__ == "__main__":
    main()
