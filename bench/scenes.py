"""Samples per second of the scenes source on one core, all modalities of a sample.

python bench/scenes.py [--count 300] [--size 64]
"""

from __future__ import annotations

import argparse
import json
import os
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

from tokenizers_zoo import Zoo


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--size", type=int, default=64)
    arguments = parser.parse_args()
    source = Zoo.installed().source("scenes")
    samples = source.samples("train", arguments.count + 10, 0, {"image_size": arguments.size})
    for index in range(10):
        samples[index]
    wall, cpu = time.perf_counter(), time.process_time()
    for index in range(10, arguments.count + 10):
        samples[index]
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    figures = {"per_wall_second": round(arguments.count / wall, 1), "per_cpu_second": round(arguments.count / cpu, 1)}
    size = f"{arguments.size} x {arguments.size}"
    print(f"{size}: {figures['per_wall_second']} samples/s, {figures['per_cpu_second']} per CPU second")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
