"""Time of `zoo list` as a whole process, compared with an empty Python process.

python bench/zoo_list.py [--repeats 10]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time


def seconds(command: list[str], repeats: int) -> dict[str, float]:
    """Minimum and median wall time of a command, in seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return {"min_s": round(min(times), 3), "median_s": round(statistics.median(times), 3)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=10)
    repeats = parser.parse_args().repeats
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "zoo list": [sys.executable, "-m", "tokenizers_zoo.cli.main", "list"],
        "zoo --help": [sys.executable, "-m", "tokenizers_zoo.cli.main", "--help"],
    }
    figures = {name: seconds(command, repeats) for name, command in commands.items()}
    for name, figure in figures.items():
        print(f"{name:16} min {figure['min_s']:.3f} s   median {figure['median_s']:.3f} s")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
