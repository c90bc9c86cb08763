"""The notebooks of examples/, executed."""

from __future__ import annotations

import json
import re
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from page_shell import Shell

from zoo_backbone.model.run import BUNDLES

ROOT = Path(__file__).parent.parent
EXAMPLES, TOOL = ROOT / "examples", ROOT / "tools" / "notebooks.py"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
LONG, SHORT = re.compile(r"TRAIN, STEPS = \d+, \d+"), "TRAIN, STEPS = 32, 4"


def cells(path: Path, kind: str) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == kind]


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook: Path, tmp_path: Path) -> None:
    """With fewer samples and steps, in an environment of its own."""
    text = notebook.read_text("utf-8")
    if "from_pretrained" in text and "showcase" not in entry_points(group=BUNDLES).names:
        pytest.skip("zoo-showcase is not installed")
    shell = Shell(tmp_path)
    folders = {name: str(tmp_path / "home") for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR")}
    shell.environment |= {**folders, "PIP_NO_BUILD_ISOLATION": "0", "PIP_NO_INDEX": "1", "TMPDIR": str(tmp_path)}
    copy = tmp_path / "examples" / notebook.name
    copy.parent.mkdir()
    copy.write_text(LONG.sub(SHORT, text), "utf-8")
    shell.run(f"python {TOOL} examples/{notebook.name}")
    executed = cells(copy, "code")
    assert all(cell["execution_count"] for cell in executed)
    assert any("image/jpeg" in output.get("data", {}) for cell in executed for output in cell["outputs"])


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_are_valid(notebook: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", json.dumps(cells(notebook, "markdown"))):
        assert target.startswith("http") or (EXAMPLES / target).exists(), target
