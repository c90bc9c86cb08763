"""Execute notebooks and keep their outputs, by default of all notebooks in examples/.

    python tools/notebooks.py [NOTEBOOK ...]

The kernel is the Python of this command. The first error in a cell ends the command.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent


def execute(path: Path) -> None:
    """Execute a notebook in its folder and write it with its outputs. Raises CellExecutionError."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        startup_timeout=600,  # a busy machine imports slowly
        resources={"metadata": {"path": str(path.parent)}},
        coalesce_streams=True,  # with record_timing: the same outputs give the same file
        record_timing=False,
    )
    client.execute()
    path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, metavar="NOTEBOOK", help="default: all of examples/")
    for path in parser.parse_args().notebooks or sorted((ROOT / "examples").glob("*.ipynb")):
        start = time.perf_counter()
        execute(path)
        print(f"{path}: {time.perf_counter() - start:.0f} s, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
