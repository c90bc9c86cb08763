"""make audit: vulnerabilities, and an index that has no advisories."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

SOUND = {"name": "a", "version": "1", "vulns": []}
VULNERABLE = {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"]}]}
SKIPPED = {"name": "c", "skip_reason": "not found on PyPI"}


@pytest.mark.parametrize(
    ("packages", "complaint", "parts", "well"),
    [
        ([SOUND], "", ["1 packages", "0 vulnerabilities"], True),
        ([SOUND, VULNERABLE, SKIPPED], "", ["b 2: PYSEC-1", "3", "2 packages"], False),
        ([SKIPPED], "", ["pypi.org", "not found"], False),
        ([], "ERROR: no route\nto host", ["pypi.org", "host"], False),
    ],
    ids=["sound", "vulnerable", "unknown", "unreachable"],
)
def test_vulnerabilities_and_missing_advisories_are_reported(
    packages: list[object], complaint: str, parts: list[str], well: bool
) -> None:
    spec = importlib.util.spec_from_file_location("audit", Path(__file__).parent.parent / "tools/audit.py")
    assert spec and spec.loader
    spec.loader.exec_module(audit := importlib.util.module_from_spec(spec))
    lines, sound = audit.report(json.dumps({"dependencies": packages}) if packages else "", complaint)
    assert all(part in "\n".join(lines) for part in parts) and sound == well
