"""Hooks of the documentation site: README as the first page, links to files outside docs/ as plain text, file names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
FILE = re.compile(r"^(```\w+) file=(\S+)$", re.MULTILINE)
OUTSIDE = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+[^)]*)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add README.md as index.md."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"\]\((?!docs/|https?:|#)([^)]*)\)", r"](../\1)", text).replace("](docs/", "](")
    files.append(File.generated(config, "index.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replace links that leave docs/ by their text; links to README lead to the first page.

    Code blocks of a file get its name as their title.
    """
    folder = Path(page.file.src_uri).parent

    def link(match: re.Match[str]) -> str:
        text, target = match.groups()
        path, _, anchor = target.partition("#")
        inside = Path(*[part for part in (folder / path).parts])
        resolved = Path("docs", inside)
        parts: list[str] = []
        for part in resolved.parts:
            parts = parts[:-1] if part == ".." else [*parts, part]
        if parts and parts[0] == "docs":
            return match.group(0)
        if parts == ["README.md"]:
            up = "../" * len(folder.parts)
            return f"[{text}]({up}index.md{'#' + anchor if anchor else ''})"
        return text

    return OUTSIDE.sub(link, FILE.sub(r'\1 title="\2"', markdown))
