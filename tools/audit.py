"""Compare the installed packages with PyPI's advisories (pip-audit). A line per vulnerability, and exit code 1 for any.

    python tools/audit.py

An index without advisories, such as a mirror, or no connection is an error, too: nothing was compared then.
"""

from __future__ import annotations

import json
import subprocess
import sys

COMMAND = ["-m", "pip_audit", "--local", "--skip-editable", "--progress-spinner", "off", "--format", "json"]


def report(output: str, complaint: str) -> tuple[list[str], bool]:
    """Return lines about pip-audit's outputs, and whether all is well."""
    try:
        packages = json.loads(output)["dependencies"]
    except (ValueError, LookupError):
        packages, reason = [], next(iter(complaint.strip().splitlines()[-1:]), "pip-audit printed nothing")
    else:
        reasons = [package.get("skip_reason", "") for package in packages]
        reason = next((reason for reason in reasons if reason and "editable" not in reason), "no package is installed")
    compared = [package for package in packages if "skip_reason" not in package]
    if not compared:
        return [
            f"make audit: got no advisories; it needs a connection to pypi.org, and no mirror ({reason:.200})"
        ], False
    vulnerabilities = [
        f"{package['name']} {package['version']}: {gap['id']}, fixed in"
        f" {', '.join(gap['fix_versions']) or 'no release'}"
        for package in compared
        for gap in package["vulns"]
    ]
    left = f"; {len(packages) - len(compared)} others have no advisories" if len(packages) > len(compared) else ""
    return [
        *vulnerabilities,
        f"{len(compared)} packages compared, {len(vulnerabilities)} vulnerabilities{left}",
    ], not vulnerabilities


if __name__ == "__main__":
    run = subprocess.run([sys.executable, *COMMAND], capture_output=True, text=True, check=False)
    lines, well = report(run.stdout, run.stderr)
    print("\n".join(lines))
    sys.exit(not well)
