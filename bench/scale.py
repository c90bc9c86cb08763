"""Memory and time of each command before it does any work, at 10,000 to 1,000,000 samples of four modalities.

    python bench/scale.py --samples 10000 100000 1000000 [--json FILE] [--folder FOLDER]

The samples are vectors of four numbers: `a`, `b` and `c` are written by the public writer, `d` is derived from `a`.
Each command is a process of its own; its peak memory is reported by the system. "Again" is the second run of a finished
command. The first run of derive and tokenize, which does work for each sample, is listed, too.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from tokenizers_zoo.stores.manifest import Dataset, Split, SplitRecord
from tokenizers_zoo.stores.shards import writing_shard

NAMES = ("a", "b", "c")
TEST = 1000
SHARD_SIZE = 2000
TARGETS = {"bytes per sample": 8, "MiB at 1,000,000": 500, "seconds again at 1,000,000": 5}
PLUGIN = """
from tokenizers_zoo import hookimpl
from tokenizers_zoo.families.vectors import NUMBER_METRICS, VectorModality


class Vector(VectorModality):
    summary, dim, unit, loss, metrics = "four numbers", 4, "none", "smooth_l1", NUMBER_METRICS


class Derived(Vector):
    derived_from = ("a",)

    @hookimpl
    def derive(self, sample):
        return 1 - sample["a"]


a, b, c, d = Vector(), Vector(), Vector(), Derived()
"""
TRAIN = "--set steps=1 --set batch_size=64"
COMMANDS = (
    ("data info", "data info data"),
    ("derive", "data derive data --modalities d --workers 1"),
    ("derive again", "data derive data --modalities d --workers 1"),
    ("tokenizer to the first step", f"tokenizer train a --data data {TRAIN}"),
    ("", f"tokenizer train b --data data {TRAIN}"),
    ("", f"tokenizer train c --data data {TRAIN}"),
    ("", f"tokenizer train d --data data {TRAIN}"),
    ("tokenize", "tokenize data --out tokens --modalities a,b,c,d --batch-size 512"),
    ("tokenize again", "tokenize data --out tokens --modalities a,b,c,d --batch-size 512"),
    ("backbone to the first step", "backbone train --tokens tokens --out run --preset nano --set steps=1"),
)


def write_data(folder: Path, count: int) -> None:
    """Write the values of `a`, `b` and `c` as value shards."""
    header = io.BytesIO()
    np.save(header, np.zeros(4, np.float32))
    start = header.getvalue()[:-16]
    sizes = {"train": count, "test": TEST}
    splits = {name: SplitRecord(samples=size, shard_size=SHARD_SIZE) for name, size in sizes.items()}
    folder.mkdir()
    Dataset(splits=splits).write(folder)
    for number, (name, size) in enumerate(sizes.items()):
        split = Split(folder, name, size, SHARD_SIZE)
        for shard in range(split.shards):
            rows = split.rows(shard)
            keys = [f"{name}-{split.number(shard, row):08}" for row in range(rows)]
            digest = split.write_keys(shard, keys)
            for modality, modality_name in enumerate(NAMES):
                numbers = np.random.default_rng([number, shard, modality]).random((rows, 4), np.float32)
                with writing_shard(folder / name / modality_name, shard) as writer:
                    for key, value in zip(keys, numbers, strict=True):
                        writer.add(key, start + value.tobytes(), "npy")
                    writer.finish(keys=digest, inputs="bench", record={})


def install(folder: Path) -> None:
    """Install the bench's plugins in a folder, as a wheel would."""
    metadata = folder / "zoo_scale-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: zoo-scale\nVersion: 1.0\n")
    points = "".join(f"{name} = zoo_scale:{name}\n" for name in "abcd")
    (metadata / "entry_points.txt").write_text(f"[tokenizers_zoo]\n{points}")
    (folder / "zoo_scale.py").write_text(PLUGIN)


def run(words: str, folder: Path) -> dict[str, float]:
    """Run a `zoo` command in a folder; returns seconds, processor seconds and peak MiB."""
    program = "import sys; from tokenizers_zoo.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", program, *words.split()]
    environment = {**os.environ, "PYTHONPATH": str(folder / "site"), "OMP_NUM_THREADS": "1", "TERM": "dumb"}
    start = time.perf_counter()
    process = os.fork()
    if process == 0:
        os.chdir(folder)
        output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.execve(sys.executable, command, environment)
    _, status, usage = os.wait4(process, 0)
    if status:
        raise SystemExit(f"zoo {words}: {(folder / 'output.txt').read_text()[-2000:]}")
    seconds = {"seconds": time.perf_counter() - start, "processor seconds": usage.ru_utime + usage.ru_stime}
    return {**{name: round(number, 1) for name, number in seconds.items()}, "MiB": round(usage.ru_maxrss / 1024)}


def measure(count: int, parent: Path) -> dict[str, dict[str, float]]:
    """Return the figures of each command at so many samples."""
    folder = parent / str(count)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    install(folder / "site")
    start = time.perf_counter()
    write_data(folder / "data", count)
    print(f"{count}: written in {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    figures_by_command = {}
    for name, words in COMMANDS:
        figures = run(words, folder)
        if name:
            figures_by_command[name] = figures
            print(f"{count}: {name}: {figures_by_command[name]}", file=sys.stderr, flush=True)
    return figures_by_command


def bytes_per_sample(figures_by_count: dict[int, dict[str, dict[str, float]]], name: str) -> float:
    """Return the growth of a command's peak memory from the fewest to the most samples."""
    smallest, largest = min(figures_by_count), max(figures_by_count)
    growth = figures_by_count[largest][name]["MiB"] - figures_by_count[smallest][name]["MiB"]
    return growth * 2**20 / (largest - smallest) if largest > smallest else 0.0


def main() -> None:
    """Print a table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--folder", type=Path, help="where the data go; by default a folder that is deleted")
    parser.add_argument("--json", type=Path, help="file for the JSON")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="scale-"))
    try:
        figures_by_count = {count: measure(count, folder) for count in arguments.samples}
    finally:
        if not arguments.folder:
            shutil.rmtree(folder)
    result: dict[str, Any] = {}
    print(f"{'':28}" + "".join(f"{count:>20,}" for count in figures_by_count) + f"{'bytes per sample':>20}")
    for name in next(iter(figures_by_count.values())):
        cells = [
            f"{figures[name]['processor seconds']:.1f} s {figures[name]['MiB']:.0f} MiB"
            for figures in figures_by_count.values()
        ]
        growth = bytes_per_sample(figures_by_count, name)
        print(f"{name:28}" + "".join(f"{cell:>20}" for cell in cells) + f"{growth:>20.1f}")
        result[name] = {
            "at": {str(count): figures[name] for count, figures in figures_by_count.items()},
            "bytes per sample": growth,
        }
    text = json.dumps({"commands": result, "targets": TARGETS}, indent=1)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
