"""Two trainings at once on all cores over the same training alone: 2 is fair, more is lost in waiting.

python bench/side_by_side.py [--steps 100]

Three ways for threads to wait for one another: as the OpenMP library does by itself, as `zoo` has it where other work
runs already (see tokenizers_zoo/cli/main.py), and asleep at once.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tokenizers_zoo.cli.main import SPINS

WAYS = {
    "spinning": {"GOMP_SPINCOUNT": "300000"},
    "giving way": {"GOMP_SPINCOUNT": SPINS},
    "asleep": {"OMP_WAIT_POLICY": "passive"},
}


def run(arguments: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """A `zoo` command as a process."""
    command = [sys.executable, "-m", "tokenizers_zoo.cli.main", *arguments]
    silent = subprocess.DEVNULL
    return subprocess.Popen(command, env={**os.environ, **environment}, stdout=silent, stderr=silent)


def seconds(folder: Path, steps: int, count: int, environment: dict[str, str]) -> float:
    """Wall time of `count` trainings of a depth tokenizer side by side."""
    start = time.perf_counter()
    running = [
        run(
            ["tokenizer", "train", "depth", "--data", str(folder / "data"), "--set", f"steps={steps}",
             "--out", tempfile.mkdtemp(dir=folder)],
            environment,
        )
        for _ in range(count)
    ]  # fmt: skip
    if any([process.wait() for process in running]):
        raise SystemExit("bench: a training failed")
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    steps = parser.parse_args().steps
    figures = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        process = run(["data", "make", "scenes", str(folder / "data"), "--train", "200", "--test", "20"], {})
        if process.wait():
            raise SystemExit("bench: making data failed")
        for variant, environment in WAYS.items():
            alone, paired = (seconds(folder, steps, count, environment) for count in (1, 2))
            figures[variant] = {
                "alone_s": round(alone, 1),
                "both_s": round(paired, 1),
                "ratio": round(paired / alone, 2),
            }
            print(
                f"{variant:12} alone {alone:6.1f} s   two at once {paired:6.1f} s   ratio {paired / alone:5.2f}",
                flush=True,
            )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
