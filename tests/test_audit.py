"""make audit: vulnerabilities, and an index that has no advisories."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def report():  # type: ignore[no-untyped-def]
    spec = importlib.util.spec_from_file_location("audit", ROOT / "tools/audit.py")
    assert spec and spec.loader
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module.report


def test_vulnerabilities_are_named(report) -> None:  # type: ignore[no-untyped-def]
    sound = {"name": "a", "version": "1", "vulns": []}
    vulnerable = {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"]}]}
    skipped = {"name": "c", "skip_reason": "not found"}
    assert report(json.dumps({"dependencies": [sound]}), "") == (["1 packages compared, 0 vulnerabilities"], True)
    lines, well = report(json.dumps({"dependencies": [sound, vulnerable, skipped]}), "")
    assert lines[0] == "b 2: PYSEC-1, fixed in 3" and "2 packages compared" in lines[1] and not well


@pytest.mark.parametrize(
    ("output", "complaint"),
    [("", "ERROR: no route\nto host"), ('{"dependencies": [{"name": "a", "skip_reason": "not found on PyPI"}]}', "")],
)
def test_without_advisories_nothing_was_compared(report, output: str, complaint: str) -> None:  # type: ignore[no-untyped-def]
    (line,), well = report(output, complaint)
    assert "needs a connection to pypi.org" in line and not well and ("host" in line or "not found" in line)
