"""A small test folder in which `zoo` commands run as real processes. It can be reset to any stage of the pipeline."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

REGISTRY = """[zoo]
image_size = 16
patch_size = 8
checkpoints = "tokenizers"
[vocabularies.text]
size = 1600
sentinels = 16
coordinate_bins = 64
reserve = 32
[modalities.depth]
tokenizer = { steps = 6, batch_size = 4, eval_every = 2, width = 16, depth = 1, levels = [4, 4] }
"""
BACKBONE = """[model]
dim = 32
encoder_depth = 1
decoder_depth = 1
heads = 2
[train]
steps = 6
batch_size = 4
save_every = 2
eval_every = 3
masking = { input_budget = 16, target_budget = 16 }
[eval]
samples = 4
draws = 1
gallery_samples = 2
loss_samples = 8
"""
STAGES = {
    "make": "data make folder data --set path=files --workers 0",
    "derive": "data derive data --modalities rgb_patches --workers 0",
    "train": "tokenizer train depth --data data",
    "statistics": "tokenizer train rgb_patches --data data",
    "vocabulary": "tokenizer train caption --data data",
    "tokenize": "tokenize data --out tokens --modalities depth,rgb_patches,caption --workers 0",
    "backbone": "backbone train --tokens tokens --out run --config backbone.toml",
    "eval": "backbone eval run --config backbone.toml --input rgb_patches --target depth,caption",
    "report": "report run",
    "generate": "backbone generate run --input rgb_patches --target depth,caption --out made --samples 2",
    "encode": "encode depth files/test/depth/test00.npy --out one.json",
    "decode": "decode depth one.json --out back --picture back.png",
    "score": "tokenizer eval depth --data data",
}
"""The stages, each with its command."""

Files = dict[str, bytes]


@dataclass(frozen=True, kw_only=True)
class Ended:
    """The result of a command: exit code (negative signal number if killed), output, error output and renamed files."""

    code: int
    printed: str
    complaint: str
    renames: list[str]
    process: int
    """Number of the process, and of the session of all processes that it started."""
    seconds: float
    peak: float
    """Largest resident memory, MiB."""
    happened: bool
    """Whether the event of the mishap took place before the end."""
    late: bool
    """Whether it was stopped at its time limit."""

    def refused(self, *parts: str) -> str:
        """Assert an exit code of an error, no traceback and one line that contains all `parts`; return that line."""
        lines = [line for line in self.complaint.splitlines() if line.startswith("error: ")]
        assert self.code in (1, 2) and len(lines) == 1 and "Traceback" not in self.complaint, (
            self.code,
            self.complaint,
        )
        for part in parts:
            assert part in lines[0], lines[0]
        return lines[0]


@dataclass(kw_only=True)
class World:
    """A folder in which the whole pipeline ran, and its files before and after each stage."""

    folder: Path
    server: Any
    before: dict[str, Files] = field(default_factory=dict)
    after: dict[str, Files] = field(default_factory=dict)
    renames: dict[str, list[str]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def __call__(self, words: str, **mishap: Any) -> Ended:
        """Run `zoo WORDS`.

        `kill_before` and `kill_after` kill the command at the rename of this index. `full_at` is the index of the first
        file that finds the disk full. `largest` is the maximum file size in bytes. `path` holds folders for sys.path.
        Without locks if `no_locks`. `at`, `after`, `event`, `limit` and `forks`: see `watch` and `run` in
        command_server.py.
        """
        self.server.stdin.write(json.dumps({"words": words.split(), "folder": str(self.folder), **mishap}) + "\n")
        self.server.stdin.flush()
        return Ended(**json.loads(self.server.stdout.readline()))

    def go(self, stages: Mapping[str, str] = STAGES, **mishap: Any) -> World:
        """Run all stages of a pipeline."""
        for stage, words in stages.items():
            self.before[stage] = self.files()
            ended = self(words, **mishap)
            assert ended.code == 0, (stage, ended.complaint)
            self.after[stage], self.renames[stage], self.seconds[stage] = self.files(), ended.renames, ended.seconds
        return self

    def files(self) -> Files:
        """Return the contents of all files by their path in the folder."""
        contents = {}
        for path in sorted(self.folder.rglob("*")):
            with contextlib.suppress(FileNotFoundError):  # removed by the worker of a killed command
                if path.is_file():
                    contents[path.relative_to(self.folder).as_posix()] = path.read_bytes()
        return contents

    def put_back(self, files: Mapping[str, bytes] | None = None) -> World:
        """Restore the folder to exactly these files; by default the files after the last stage."""
        files = self.after["score"] if files is None else files
        for name, data in self.files().items():
            if name not in files:
                (self.folder / name).unlink()
            elif data != files[name]:
                (self.folder / name).write_bytes(files[name])
                os.utime(self.folder / name, (CHANGED, CHANGED))
        for path in sorted(self.folder.rglob("*"), reverse=True):
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        for name in files:
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                path.write_bytes(files[name])
                os.utime(path, (CHANGED, CHANGED))
        return self


CHANGED = 1_700_000_000
"""Modification time of restored files, s: shards of the user's own files depend on it."""


@functools.cache
def the_world() -> World:
    """Return the world that all tests of this process share, after the whole pipeline ran in it."""
    directory = tempfile.TemporaryDirectory(prefix="zoo-world-")
    atexit.register(directory.cleanup)
    folder = Path(directory.name).resolve()
    write_inputs(folder)
    return World(folder=folder, server=shared_server()).go()


def new_world(folder: Path) -> World:
    """Write the inputs of the pipeline into a folder, and start a server for its commands."""
    write_inputs(folder)
    return World(folder=folder, server=start_server())


@functools.cache
def shared_server() -> Any:
    """Return the server of this process; it runs commands in any folder."""
    return start_server()


def start_server() -> Any:
    """Start a process that runs commands, until this process ends."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "COLUMNS": "200"}
    program = Path(__file__).with_name("command_server.py")
    server = subprocess.Popen(
        [sys.executable, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )

    def close() -> None:
        assert server.stdin and server.stdout
        server.stdin.close()
        server.wait()
        server.stdout.close()

    atexit.register(close)
    return server


def write_inputs(folder: Path, samples: int = 24) -> None:
    """Write a registry, the backbone's configuration, and `files`: pictures, depth in metres, and captions, by key."""
    from PIL import Image

    (folder / "registry.toml").write_text(REGISTRY)
    (folder / "backbone.toml").write_text(BACKBONE)
    rng = np.random.default_rng(0)
    for split, count in (("train", samples), ("test", samples // 3)):
        split_folder = folder / "files" / split
        for name in ("rgb", "depth", "caption"):
            (split_folder / name).mkdir(parents=True)
        for number in range(count):
            key = f"{split}{number:02}"
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(split_folder / "rgb" / f"{key}.png")
            np.save(split_folder / "depth" / f"{key}.npy", rng.uniform(1, 9, (1, 16, 16)).astype(np.float32))
            (split_folder / "caption" / f"{key}.txt").write_text(f"a red ball and {number} blue boxes\n")
    for path in (path for path in (folder / "files").rglob("*") if path.is_file()):
        os.utime(path, (CHANGED, CHANGED))


CLOCK = ("seconds", "training_seconds", "encoding", "checksum")


def without_clock(name: str, data: bytes) -> Any:
    """Return a file's content without its times and durations."""
    if name.endswith(".json"):
        with contextlib.suppress(ValueError):  # damaged by a test
            return _dropped(json.loads(data))
    if "training_state" in name and name.endswith(".safetensors"):
        with contextlib.suppress(ValueError, AttributeError):  # damaged by a test
            size = int.from_bytes(data[:8], "little")
            header = json.loads(data[8 : 8 + size])
            offsets = {
                key: entry["data_offsets"] for key, entry in header.items() if key not in ("__metadata__", *CLOCK)
            }
            return _dropped(header["__metadata__"]), {
                key: data[8 + size :][slice(*pair)] for key, pair in offsets.items()
            }
    if name.endswith("README.md"):
        return re.sub(rb"steps in \d+ s", b"", data)
    if name.endswith(".html"):
        return re.sub(rf"({'|'.join(CLOCK)})&#34;: [^,}}]+|<b>[\d.]+</b><span class=.soft.>min of".encode(), b"", data)
    return data


def _dropped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _dropped(item) for key, item in value.items() if key not in CLOCK}
    return [_dropped(item) for item in value] if isinstance(value, list) else value


def results(files: Files) -> dict[str, Any]:
    """Return the files of a stage without times.

    TensorBoard's files are left out because their names contain the time, lock files because a kill may leave one, and
    checksums of training states because these hold the duration of the steps.
    """
    timeless = (name for name in files if not re.search(r"/tensorboard/|/\.lock$|/checksums-\d+\.json$", name))
    return {name: without_clock(name, files[name]) for name in timeless}
