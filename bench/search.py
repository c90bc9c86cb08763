"""Milliseconds of a query of a retrieval index, which compares it with all vectors in blocks.

    python bench/search.py --dims 256 --json out.json

The vectors are random and lie in a file mapped into memory, as those of an index do.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from zoo_backbone.use.retrieval.embed import unit
from zoo_backbone.use.retrieval.index import nearest, read_vectors, write_vectors


def measure(count: int, dims: int, queries: int, repeats: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vectors.safetensors"
        vectors = read_vectors(path, count, write_vectors(path, unit(rng.standard_normal((count, dims), np.float32))))
        query = torch.from_numpy(unit(rng.standard_normal((queries, dims), np.float32)))
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            nearest(vectors, query, 10)
            times.append(time.perf_counter() - start)
    return {"vectors": count, "queries": queries, "ms_per_query": 1000 * float(np.median(times)) / queries}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = [
        measure(count, arguments.dims, queries, arguments.repeats)
        for count in (100_000, 1_000_000)
        for queries in (1, 64)
    ]
    table = Table("vectors", "queries at once", "ms per query")
    for row in rows:
        table.add_row(f"{row['vectors']:,}", str(row["queries"]), f"{row['ms_per_query']:.2f}")
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
