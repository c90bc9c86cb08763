"""Run several `zoo` commands one after the other, as a user would, in one new process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def go(folder: Path, *lines: str) -> None:
    """Run `zoo LINE` for each line in the folder and assert that each succeeds."""
    program = (
        "import sys; from tokenizers_zoo.cli.main import main\n"
        f"for words in {[line.split() for line in lines]!r}:\n"
        "    sys.argv = ['zoo', *words]\n"
        "    try:\n        main()\n    except SystemExit as end:\n        assert not end.code, words\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
