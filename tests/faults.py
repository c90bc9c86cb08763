"""Faults at random moments: kills, damaged files, full and read-only disks, vanishing folders, locks, second writers.

    python tests/faults.py

runs all faults, from seed 0, and prints failures and a table. `--case "kill tokenize 0.372"` runs one case again.
`--json FILE` also writes the counts.

A case is a line of words. It passes if nothing is lost and nothing false is used: after a fault the same command ends
with byte-equal results, and a damaged file is refused in one line, found by `zoo data verify`, or makes no difference.
Faults of the disk need a tmpfs that this process may mount; without one they are left out.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from command_server import processes_of
from command_world import REGISTRY, STAGES, Ended, Files, World, new_world, results

STEPS = "--set steps=4 --set batch_size=4"
TRAIN = "backbone train --tokens tokens --config backbone.toml --out"
INPUTS = "--input rgb_patches --target depth,caption"
PIPELINE = """
[pipeline]
folder = "all"
[data]
source = "folder"
set = { path = "files" }
workers = 2
[derive]
modalities = ["rgb_patches"]
[tokenizers]
[tokenize]
modalities = ["depth", "rgb_patches"]
[backbone]
set = { steps = 2, batch_size = 4 }
[eval]
inputs = [["rgb_patches"]]
samples = 2
draws = 1
gallery_samples = 1
loss_samples = 4
[report]
"""
RGB = "[modalities.rgb]\ntokenizer = { steps = 1, batch_size = 4, width = 16, depth = 1, levels = [4, 4] }\n"
COMMANDS = {name: words.replace("--workers 0", "--workers 2") for name, words in STAGES.items()} | {
    "small": f"{TRAIN} small --modalities depth,rgb_patches {STEPS}",
    "grow": f"backbone grow small --add caption --tokens tokens --out grown {STEPS}",
    "export": "backbone export run bundle --samples 2",
    "transfer": f"transfer train run --task depth --input rgb_patches --out probe {STEPS}",
    "predict": "transfer predict probe --samples 2 --out predicted",
    "retrieve": "retrieve build run --out index",
    "query": "retrieve query index --keys test00,test01 --out found",
    "import": "import-ml4m published imported",
    "export-ml4m": "export-ml4m imported/backbone exported",
    "onnx": "export-onnx depth --out onnx",
    "plugin": "new-plugin thermal --out thermal",
    "pipeline": "run pipeline.toml",
    "init": "init files --overwrite",
}
"""All commands that write, in an order in which each finds its inputs."""
OUTPUTS = {
    "make": "data", "derive": "data", "train": "tokenizers/depth", "statistics": "tokenizers/rgb_patches",
    "vocabulary": "tokenizers/text", "tokenize": "tokens", "backbone": "run", "eval": "run/evaluation",
    "generate": "made", "grow": "grown", "export": "bundle", "transfer": "probe", "retrieve": "index",
    "import": "imported", "export-ml4m": "exported", "small": "small", "query": "found",
}  # fmt: skip
"""The folder that a command locks."""
OTHERS = {
    "tokenize": "--crops 2", "train": "--seed 1", "statistics": "--seed 1", "generate": "--seed 7", "grow": "--seed 5",
    "backbone": "--seed 5", "transfer": "--seed 5", "retrieve": "--space centred", "eval": "--seed 3",
    "make": "--train 16",
}  # fmt: skip
"""Options that make it another result."""
WITH_WORKERS = ("make", "derive", "pipeline", "tokenize")
GROWING = ("run.json", "metrics.jsonl", "evaluation.json", "/training_state", "unfinished.json", "done.jsonl",
           "space.json", "registry.toml", "all/", "imported/backbone/config.json")  # fmt: skip
"""Files that a stage writes in parts or repeatedly while it runs."""
SHARD = 8
"""Samples per shard."""


class Fault(AssertionError):
    """Something was lost, half-written or false."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """Files of one format and the commands that read them."""

    name: str
    files: str
    """Patterns, separated by spaces."""
    readers: str
    """Names in READERS or COMMANDS, separated by commas."""
    begun: str = ""
    """The stage that is killed in its middle before."""
    foreign: bool = False
    """Written by a user or another program: without a checksum, other contents may be taken."""


NEW = "--out new"
CHEAP = "--set steps=2 --set batch_size=4"
READERS = COMMANDS | {
    "data info": "data info data", "data verify": "data verify data",
    "tokenize new": f"tokenize data {NEW} --modalities depth,rgb_patches,caption",
    "derive new": "data derive data --modalities canny --workers 1",
    "score depth": "tokenizer eval depth --data data",
    "train new": "tokenizer train depth --data data --overwrite --seed 1 --set steps=2",
    "vocabulary new": "tokenizer train caption --data data --overwrite",
    "tokens info": "data info tokens", "tokens verify": "data verify tokens",
    "backbone new": f"{TRAIN} new {CHEAP}",
    "eval new": f"backbone eval run --config backbone.toml {INPUTS} {NEW}",
    "generate new": f"backbone generate run {INPUTS} {NEW} --samples 1",
    "index new": f"retrieve build run {NEW}",
    "transfer new": f"transfer train run --task depth --input rgb_patches {NEW} {CHEAP}",
    "export new": "backbone export run new",
    "grow new": f"backbone grow small --add caption --tokens tokens {NEW} {CHEAP}",
    "from new": f"{TRAIN} new --from run {CHEAP}",
    "encode new": f"encode depth files/test/depth/test00.npy {NEW}.json",
    "encode text": "encode caption files/test/caption/test00.txt",
    "decode new": f"decode depth one.json {NEW}",
    "score caption": "tokenizer eval caption --data data",
    "info depth": "info depth", "list": "list", "compare": "compare run small",
    "report new": f"report run {NEW}", "report all": f"report {NEW}",
    "bundle verify": "backbone verify bundle",
    "bundle generate": f"backbone generate bundle --input rgb_patches=files/test/rgb/test00.png --target depth {NEW}",
    "bundle encode": "--registry bundle/registry.toml encode depth files/test/depth/test00.npy",
    "query keys": "retrieve query index --keys test00,test03 --json",
    "query depth": "retrieve query index --keys test01 --input rgb_patches --find depth --json",
    "probe eval": "transfer eval probe --json", "predict new": f"transfer predict probe --samples 2 {NEW}",
    "import new": "import-ml4m published new", "export-ml4m new": "export-ml4m imported/backbone new",
    "imported encode": "--registry imported/registry.toml encode caption files/test/caption/test00.txt",
    "repair": "data repair data --workers 1",
}  # fmt: skip
VALUES = "tokenize new,train new,derive new,data verify,repair"
TOKENS = "backbone new,eval new,index new,transfer new,generate new,tokens verify"
RUN = "eval new,generate new,index new,export new,report new,transfer new,from new"
FORMATS = (
    Format(name="value shards", files="data/*.tar", readers=VALUES),
    Format(name="value manifests", files="data/*/*/shard-*.json", readers=f"{VALUES},data info,make"),
    Format(name="member offsets", files="data/*.index", readers=VALUES),
    Format(name="keys of values", files="data/*/keys/*.txt", readers=f"{VALUES},data info,make"),
    Format(name="dataset.json", files="data/dataset.json", readers=f"{VALUES},data info,make,derive"),
    Format(name="token shards", files="tokens/*.tokens", readers=TOKENS),
    Format(name="token manifests", files="tokens/*/*/shard-*.json", readers=f"{TOKENS},tokens info,tokenize"),
    Format(name="keys of tokens", files="tokens/*/keys/*.txt", readers=f"{TOKENS},tokens info,tokenize"),
    Format(name="store.json", files="tokens/store.json", readers=f"{TOKENS},tokens info,tokenize"),
    Format(name="tokenizer weights", files="tokenizers/depth/model.safetensors tokenizers/rgb_patches/*.safetensors",
           readers="tokenize new,score depth,encode new,decode new,generate new"),
    Format(name="tokenizer config.json", files="tokenizers/depth/config.json tokenizers/rgb_patches/config.json",
           readers="tokenize new,score depth,encode new,decode new,generate new,info depth,list"),
    Format(name="text vocabulary", files="tokenizers/text/*.json tokenizers/text/*.safetensors",
           readers="encode text,tokenize new,score caption,generate new,vocabulary new"),
    Format(name="records of tokenizers", files="tokenizers/*/run.json tokenizers/*/evaluation.json",
           readers="train,statistics,report new,report all,info depth"),
    Format(name="backbone weights", files="run/model.safetensors", readers=RUN),
    Format(name="backbone config.json", files="run/config.json", readers=f"{RUN},compare,backbone"),
    Format(name="run.json", files="run/run.json", readers=f"{RUN},compare,backbone"),
    Format(name="metrics.jsonl", files="run/metrics.jsonl tokenizers/depth/metrics.jsonl probe/metrics.jsonl",
           readers="report new,compare,report all"),
    Format(name="evaluations", files="run/evaluation/*.json", readers="report new,compare,eval,export new"),
    Format(name="pictures of a report", files="run/evaluation/gallery/*.png tokenizers/depth/samples/*.png",
           readers="report new", foreign=True),
    Format(name="state of a tokenizer", files="tokenizers/depth/training_state.safetensors tokenizers/depth/run.json",
           readers="train", begun="train"),
    Format(name="state of a backbone", files="run/training_state* run/run.json run/config.json",
           readers="backbone", begun="backbone"),
    Format(name="state of growing", files="grown/training_state* grown/run.json", readers="grow", begun="grow"),
    Format(name="state of a probe", files="probe/*state* probe/run.json", readers="transfer", begun="transfer"),
    Format(name="begun index", files="index/*", readers="retrieve", begun="retrieve"),
    Format(name="begun evaluation", files="run/evaluation/*.json", readers="eval", begun="eval"),
    Format(name="begun generation", files="made/*", readers="generate", begun="generate"),
    Format(name="index vectors", files="index/[ot]*.safetensors", readers="query keys,query depth,retrieve"),
    Format(name="index records", files="index/*.json index/model.safetensors",
           readers="query keys,query depth,retrieve"),
    Format(name="bundle", files="bundle/[!R]*",
           readers="bundle verify,bundle generate,bundle encode"),
    Format(name="probe", files="probe/*.json probe/*.safetensors", readers="probe eval,predict new,transfer"),
    Format(name="encoded tokens", files="one.json", readers="decode new"),
    Format(name="generated files", files="made/run.json made/plan.toml", readers="generate"),
    Format(name="imported checkpoints", files="imported/*.json imported/*.safetensors",
           readers="imported encode,export-ml4m new,import"),
    Format(name="checkpoints to import", files="published/*", readers="import new", foreign=True),
    Format(name="registry.toml", files="registry.toml imported/registry.toml",
           readers="encode new,tokenize,imported encode,list,train", foreign=True),
    Format(name="backbone.toml", files="backbone.toml", readers="backbone new,eval", foreign=True),
)  # fmt: skip
UNREAD = {
    "*/README.md": "cards for people", "README.md": "", "*/.lock": "empty", "*/tensorboard/*": "TensorBoard's own",
    "*/report/*": "a page for people", "files/*": "a user's files", "thermal/*": "source code", "*.png": "for people",
    "made/*": "values for other programs", "predicted/*": "", "found/*": "for other programs", "back.*": "",
    "onnx/*": "read by ONNX Runtime", "exported/*": "read by 4M's code", "all/*": "the same formats",
    "tokenizers/rgb/*": "as of depth", "small/*": "a second run", "grown/*": "a third run",
    "pipeline.toml": "as registry.toml", "*.md": "",
    "files/registry.toml": "",
}  # fmt: skip
"""Files of the world that no case damages."""
VERIFY = {"data/": "data verify", "tokens/": "tokens verify", "bundle/": "bundle verify"}
MORE_MEMORY = 1024
"""MiB that a command may take beyond its usual peak."""
LIMIT = 600
"""Seconds for one command, on a machine that may be busy."""


@dataclass(kw_only=True)
class Faults:
    """A world with all stages, and how each reader ends without a fault."""

    world: World
    shard: int | None = None
    """Samples per shard; None for the usual number."""
    mounted: bool = False
    """Whether the world has a disk of its own, which can be full or read-only."""
    usual: dict[tuple[str, str], tuple[Ended, dict[str, Any]]] = field(default_factory=dict)
    begun: dict[str, Files] = field(default_factory=dict)
    second: World | None = None

    @property
    def folder(self) -> Path:
        return self.world.folder

    @property
    def sharded(self) -> dict[str, int]:
        return {} if self.shard is None else {"shard_size": self.shard}

    @property
    def all_files(self) -> Files:
        """The files after all stages but `init`, which replaces registry.toml."""
        last = list(self.world.after)[-1]
        return self.world.before[last] if last == "init" else self.world.after[last]

    # ------------------------------------------------------------ helpers

    def run(self, words: str, **mishap: Any) -> Ended:
        """Run a command that must end in time, without a traceback, and with its usual memory."""
        ended = self.world(words, limit=LIMIT, **self.sharded, **mishap)
        if ended.late:
            raise Fault(f"did not end within {LIMIT} s")
        killed = ended.code == -signal.SIGKILL and (
            mishap.get("event") == "kill" or any("kill_" in key for key in mishap)
        )
        if not killed and ended.code not in (0, 1, 2):
            raise Fault(f"exit code {ended.code}: {_last(ended.complaint)}")
        if "Traceback" in ended.complaint:
            raise Fault(f"a traceback: {_last(ended.complaint)}")
        lines = _errors(ended)
        if not killed and ended.code and len(lines) != 1:
            raise Fault(f"exit code {ended.code}, and not one line: {ended.complaint[-300:]!r}")
        if any("unexpected " in line and "--debug" in line for line in lines):
            raise Fault(lines[0])
        return ended

    def meanwhile(self, stage: str, share: str, **event: Any) -> Ended:
        """Run a stage with an event after a share of its time; again if it is faster than it was before."""
        for _ in range(4):
            self.world.put_back(self.world.before[stage])
            ended = self.run(COMMANDS[stage], at=float(share) * self.world.seconds[stage], **event)
            if ended.happened:
                break
            self.world.seconds[stage] = min(self.world.seconds[stage], ended.seconds)
        return ended

    def check_again(self, stage: str) -> None:
        """The same command ends, with the results of a run without a fault."""
        rerun = self.run(COMMANDS[stage])
        if rerun.code and not re.search("is there already|is not empty", rerun.complaint):  # or it was finished
            raise Fault(f"the same command: {_last(rerun.complaint)}")
        self.check_results(stage)

    def check_results(self, stage: str) -> None:
        ended, expected = results(self.world.files()), results(self.world.after[stage])
        differing = {name for name in ended.keys() | expected.keys() if ended.get(name) != expected.get(name)}
        if differing:
            name = min(differing)
            how = "is missing" if name not in ended else "is left" if name not in expected else "differs"
            raise Fault(
                f"{name} {how} after the same command ({len(differing)} files){_differs(ended, expected, name)}"
            )

    def check_whole(self, stage: str) -> None:
        """After a fault each file is the old one or the finished one."""
        before, after = results(self.world.before[stage]), results(self.world.after[stage])
        remaining = results({name: data for name, data in self.world.files().items() if not name.endswith(".tmp")})
        for name, data in remaining.items():
            is_part = "tmp" in name or any(part in f"/{name}" for part in GROWING)
            if not is_part and data not in (before.get(name), after.get(name)):
                raise Fault(f"{name} is half-written")
        if lost := before.keys() - remaining.keys():
            raise Fault(f"{min(lost)} is lost")

    def refused_or_done(self, ended: Ended, *words: str) -> str:
        """Return "done", or "refused" for an error with one of these words."""
        if ended.code == 0:
            return "done"
        line = _errors(ended)[0]
        if words and not any(word in line for word in words):
            raise Fault(f"the error names no cause ({' / '.join(words)}): {line}")
        return "refused"

    # ------------------------------------------------------------ kills

    def kill(self, stage: str, share: str, worker: str = "") -> str:
        """SIGKILL after a share of the usual time: the command itself, or its worker number `worker`."""
        event = {"event": "kill worker", "which": int(worker)} if worker else {"event": "kill"}
        ended = self.meanwhile(stage, share, **event)
        if not ended.happened:
            self.check_results(stage)
            return "ended before"
        self.check_whole(stage)
        if worker and ended.code == 0:
            self.check_results(stage)
        self.check_again(stage)
        deadline = time.monotonic() + 20
        while left := processes_of(ended.process):
            if time.monotonic() > deadline:
                for process in left:
                    os.kill(process, signal.SIGKILL)
                raise Fault(f"{len(left)} processes are left")
            time.sleep(0.2)
        return "finished by itself" if worker and ended.code == 0 else "finished by the same command"

    def rename(self, stage: str, when: str, number: str) -> str:
        """SIGKILL `before` or `after` the command gives its file of this number its name."""
        self.world.put_back(self.world.before[stage])
        if self.run(COMMANDS[stage], **{f"kill_{when}": int(number)}).code == 0:
            self.check_results(stage)
            return "ended before"
        self.check_whole(stage)
        self.check_again(stage)
        return "finished by the same command"

    # ------------------------------------------------------------ damaged files

    def base(self, stage: str) -> Files:
        """Return the files of the whole pipeline, or of a stage that was killed in its middle."""
        if not stage:
            return self.all_files
        if stage not in self.begun:
            count = len(self.world.renames[stage])
            for number in sorted(range(count), key=lambda number: abs(number - 2 * count // 3)):
                self.world.put_back(self.world.before[stage])
                self.world(COMMANDS[stage], kill_after=number)
                self.begun[stage] = self.world.files()
                pattern = next(kind.files.split()[0] for kind in FORMATS if kind.begun == stage)
                if any(fnmatchcase(name, pattern) for name in self.begun[stage]):
                    break
        return self.begun[stage]

    def without_fault(self, begun: str, reader: str) -> tuple[Ended, dict[str, Any]]:
        """Return how a reader ends on whole files, and all files afterwards."""
        if (begun, reader) not in self.usual:
            self.world.put_back(self.base(begun))
            ended = self.run(READERS[reader])
            if ended.code:
                raise Fault(f"{reader} fails on whole files: {_last(ended.complaint)}")
            self.usual[begun, reader] = ended, results(self.world.files())
        return self.usual[begun, reader]

    def damage(self, begun: str, file: str, change: str, reader: str) -> str:
        """Change a file without changing its times, and run a command that reads it.

        `change` is empty, cut:BYTES, flip:BYTE:BIT, zeros:BYTE (512 of them), longer:BYTES or swap:FILE (the content of
        another file of the format).
        """
        begun = begun.removeprefix("whole")
        usual, files = self.without_fault(begun, reader)
        base = self.base(begun)
        self.world.put_back(base)
        target = self.folder / file
        old = target.stat()
        target.write_bytes(changed(base[file], change, base))
        os.utime(target, ns=(old.st_atime_ns, old.st_mtime_ns))
        ended = self.run(READERS[reader])
        if ended.peak > usual.peak + MORE_MEMORY:
            raise Fault(f"took {ended.peak:.0f} MiB, usually {usual.peak:.0f}")
        if ended.code:
            return "refused"
        remaining = results(self.world.files())
        differs = [
            name for name in remaining.keys() | files.keys() if name != file and remaining.get(name) != files.get(name)
        ]
        if not differs and remaining.get(file) == files.get(file) and base[file] == self.world.files().get(file):
            return "made again"
        if not differs and without_times(ended.printed) == without_times(usual.printed):
            return "no difference"
        pages = [
            self.folder / name for name in differs if remaining.get(name) and b"<html" in self.world.files()[name][:99]
        ]
        for text in (ended.complaint, ended.printed, *(path.read_text() for path in pages)):
            if re.search(rf"(problem|damaged).*{re.escape(file)}|{re.escape(file)}.*(problem|damaged)", text):
                return "told, and left out"
        kind = next(kind for kind in FORMATS if kind.begun == begun and _has(kind, file))
        if kind.foreign:
            return "taken as another input"
        verify = next((name for start, name in VERIFY.items() if file.startswith(start)), None)
        if verify and self.run(READERS[verify]).code:
            return "found by verify"
        raise Fault(f"silently used: {f'{min(differs)} differs' if differs else 'prints something else'}")

    # ------------------------------------------------------------ the disk

    def full(self, stage: str, share: str) -> str:
        """A disk with space for a share of what the stage writes."""
        self.world.put_back(self.world.before[stage])
        old, new = (sum(_pages(data) for data in files.values())
                    for files in (self.world.before[stage], self.world.after[stage]))  # fmt: skip
        state = os.statvfs(self.folder)
        used = (state.f_blocks - state.f_bfree) * state.f_frsize
        with self.mounted_as(f"size={used + int(float(share) * max(new - old, 8192)) // 4096 * 4096 + 4096}"):
            ended = self.run(COMMANDS[stage])
        outcome = self.refused_or_done(ended, "the disk is full")
        return self.after_full(stage, outcome)

    def after_full(self, stage: str, outcome: str) -> str:
        if outcome == "done":
            self.check_results(stage)
            return "enough space"
        self.check_whole(stage)
        if left := [name for name in self.world.files() if name.endswith(".tmp")]:
            raise Fault(f"{left[0]} is left")
        self.check_again(stage)
        return "refused, then finished"

    def nospace(self, stage: str, number: str) -> str:
        """The disk is full when the file of this number is flushed."""
        self.world.put_back(self.world.before[stage])
        ended = self.run(COMMANDS[stage], full_at=int(number))
        return self.after_full(stage, self.refused_or_done(ended, "the disk is full"))

    def toolarge(self, stage: str) -> str:
        """The system refuses the largest file (RLIMIT_FSIZE); libraries get this error first."""
        before, after = self.world.before[stage], self.world.after[stage]
        sizes = [len(data) for name, data in after.items() if data != before.get(name) and "/tensorboard/" not in name]
        self.world.put_back(before)
        ended = self.run(COMMANDS[stage], largest=max(sizes) - 1)
        return self.after_full(stage, self.refused_or_done(ended, "`ulimit -f`"))

    def readonly(self, stage: str, when: str) -> str:
        """A read-only disk, `before` or `after` the stage."""
        files = getattr(self.world, when)[stage]
        self.world.put_back(files)
        with self.mounted_as("ro"):
            ended = self.run(COMMANDS[stage])
        words = ("read-only", "cannot be locked", "permission", *(["is there already"] if when == "after" else []))
        outcome = self.refused_or_done(ended, *words)
        if results(self.world.files()) != results(files):
            raise Fault("files differ")
        if when == "before":
            if outcome == "done":
                raise Fault("done, with nothing written")
            self.check_again(stage)
        return outcome

    @contextmanager
    def mounted_as(self, options: str) -> Iterator[None]:
        subprocess.run(["mount", "-o", f"remount,{options}", self.folder], check=True)
        try:
            yield
        finally:
            subprocess.run(["mount", "-o", f"remount,rw,size={SPACE}", self.folder], check=True)

    def vanish(self, stage: str, share: str, folder: str) -> str:
        """A folder is moved away while the command runs, and comes back."""
        ended = self.meanwhile(stage, share, event="move", place=folder)
        if ended.happened:
            _merge(self.folder / "gone", self.folder / folder)
        outcome = self.refused_or_done(ended)
        if not ended.happened:
            return "not there"
        if "golden sample of the bundle is generated" in ended.complaint:  # an export needs no data, and says so
            shutil.rmtree(self.folder / OUTPUTS[stage], ignore_errors=True)
        self.check_again(stage)
        return "finished" if outcome == "done" else "refused, then finished"

    def nolocks(self, stage: str) -> str:
        """A file system without locks."""
        self.world.put_back(self.world.before[stage])
        outcome = self.refused_or_done(self.run(COMMANDS[stage], no_locks=True), "cannot be locked")
        if outcome == "refused":
            self.check_whole(stage)
        self.check_again(stage)
        return outcome

    def locked(self, stage: str) -> str:
        """Another process holds the lock."""
        self.world.put_back(self.world.before[stage])
        output = self.folder / OUTPUTS[stage]
        lock = (output.with_name(f".{output.name}.tmp") if "export" in stage else output) / ".lock"
        is_new = not lock.parent.exists()
        lock.parent.mkdir(parents=True, exist_ok=True)
        with open(lock, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            before = results(self.world.files())
            ended = self.run(COMMANDS[stage])
            if ended.code == 0:
                raise Fault("wrote while another process held the lock")
            self.refused_or_done(ended, "right now")
            if results(self.world.files()) != before:
                raise Fault("wrote while another process held the lock")
        lock.unlink()
        if is_new:
            lock.parent.rmdir()
        self.check_again(stage)
        return "refused"

    def race(self, stage: str, delay: str) -> str:
        """The command twice, with other options: one result is there, not a mixture."""
        self.second = self.second or World(folder=self.folder, server=new_server())
        words = [COMMANDS[stage], f"{COMMANDS[stage]} {OTHERS[stage]}"]
        expected = []
        for command in words:
            self.world.put_back(self.world.before[stage])
            self.run(command)
            expected.append(results(self.world.files()))
        self.world.put_back(self.world.before[stage])
        ended: list[Ended | None] = [None, None]

        def late() -> None:
            assert self.second
            time.sleep(float(delay) * self.world.seconds[stage])
            ended[1] = self.second(words[1], limit=LIMIT, **self.sharded)

        thread = threading.Thread(target=late)
        thread.start()
        ended[0] = self.run(words[0])
        thread.join()
        first, second = ended
        assert first and second
        if first.code and second.code:
            raise Fault(f"both are refused: {_last(first.complaint)} / {_last(second.complaint)}")
        outcome = results(self.world.files())
        if outcome not in expected and not (first.code == 0 and second.code == 0):
            raise Fault("neither result is there")
        if first.code == 0 and second.code == 0:  # one after the other
            sequential_results = []
            for order in (words, words[::-1]):
                self.world.put_back(self.world.before[stage])
                codes = [self.run(command).code for command in order]
                sequential_results.append((codes, results(self.world.files())))
            if ([0, 0], outcome) not in sequential_results:
                raise Fault("both end well, and the result is neither's")
            return "one after the other"
        return "one is refused"

    def case(self, text: str) -> str:
        """Run a case and return its outcome. Raises Fault."""
        kind, *words = text.split(" | ") if " | " in text else text.split()
        outcome: str = getattr(self, kind)(*words)
        return outcome


def without_times(text: str) -> str:
    """Return the output of a command without durations and speeds."""
    return re.sub(r" *[\d.,e+]+ +(s|ms|min|\w+/s)\b", "", text)


def changed(data: bytes, change: str, files: Files) -> bytes:
    """Return the damaged content."""
    kind, *numbers = change.split(":")
    if kind == "swap":
        return files[numbers[0]]
    offset = int(numbers[0]) if numbers else 0
    if kind == "empty":
        return b""
    if kind == "cut":
        return data[:offset]
    if kind == "longer":
        return data + random.Random(offset).randbytes(offset)
    if kind == "zeros":
        return data[:offset] + bytes(min(512, len(data) - offset)) + data[offset + 512 :]
    return data[:offset] + bytes([data[offset] ^ 1 << int(numbers[1])]) + data[offset + 1 :]


def draw_change(rng: random.Random, data: bytes, swap_files: list[str]) -> str:
    """Draw a change; many are a flipped bit. `swap_files` are files whose content may be in its place."""
    kind = rng.choice(("flip", "flip", "flip", "cut", "empty", "zeros", "longer", "swap")) if data else "longer"
    if kind == "swap" and swap_files:
        return f"swap:{rng.choice(swap_files)}"
    if kind == "empty":
        return kind
    if kind == "longer":
        return f"longer:{rng.randint(1, 2000)}"
    offset = rng.randrange(len(data))
    kind = "flip" if kind == "swap" else kind
    return f"{kind}:{offset}:{rng.randrange(8)}" if kind == "flip" else f"{kind}:{offset}"


def new_server() -> Any:
    """Start a second server, for a second command at the same time."""
    with tempfile.TemporaryDirectory() as folder:
        return new_world(Path(folder)).server


def _differs(actual: Mapping[str, Any], expected: Mapping[str, Any], name: str) -> str:
    """Return the first different part of a file."""
    first, second = (str(files.get(name, "")) for files in (actual, expected))
    pairs = enumerate(zip(first, second, strict=False))
    position = next((position for position, (a, b) in pairs if a != b), 0)
    start, end = max(0, position - 20), position + 30
    return f": ...{first[start:end]!r} for ...{second[start:end]!r}"


def _errors(ended: Ended) -> list[str]:
    """Return the lines of errors; the last one of `zoo run` says which of its commands failed."""
    lines = [line for line in ended.complaint.splitlines() if line.startswith(("error: ", "stopped: "))]
    return lines[-1:] if lines and lines[-1].startswith("stopped: ") else lines


def _last(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1][:300]


def _pages(data: bytes) -> int:
    return -(-len(data) // 4096) * 4096


def _has(kind: Format, file: str) -> bool:
    return any(fnmatchcase(file, pattern) for pattern in kind.files.split())


def _merge(source: Path, target: Path) -> None:
    """Move a file or folder back; files that were written in its place meanwhile are replaced."""
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)
    source.rename(target)


# ---------------------------------------------------------------- all cases


SPACE = "600m"


@contextmanager
def new_faults(stages: Mapping[str, str] = COMMANDS) -> Iterator[Faults]:
    """Make the world, on a tmpfs if this process may mount one."""
    with tempfile.TemporaryDirectory(prefix="zoo-faults-") as directory:
        folder = Path(directory).resolve()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={SPACE}", "tmpfs", folder]
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
        try:
            world = new_world(folder)
            enabled = '[zoo]\nmodalities = ["rgb", "rgb_patches", "depth"]\n'
            (folder / "pipeline.toml").write_text(PIPELINE + REGISTRY.replace("[zoo]\n", enabled) + RGB)
            write_published(folder / "published")
            yield Faults(world=world.go(stages, shard_size=SHARD), shard=SHARD, mounted=mounted)
        finally:
            if mounted:
                subprocess.run(["umount", "--lazy", folder], check=True)


def write_published(folder: Path) -> None:
    """Write a small checkpoint in the published form, with its vocabulary."""
    from test_ml4m_backbone import VARIANTS, published
    from test_ml4m_folders import text_file

    from tokenizers_zoo.files.published import write_published as write

    write(published(VARIANTS["gated"]), folder / "4M_B")
    text_file(folder / "words.json")


def kills(faults: Faults, count: int, rng: random.Random) -> Iterator[str]:
    """Yield kills over all stages in turn; a third of those of stages with workers hit a worker."""
    stages = [stage for stage in faults.world.seconds if stage != "pipeline"]
    for number in range(count):
        stage = stages[number % len(stages)]
        if number % 40 == 39 and "pipeline" in faults.world.seconds:
            stage = "pipeline"
        if number % 5 == 4:
            stage = rng.choice([name for name in WITH_WORKERS if name in faults.world.seconds])
        worker = f" {rng.randrange(4)}" if stage in WITH_WORKERS and rng.random() < 0.5 else ""
        yield f"kill {stage} {rng.uniform(0.05, 0.95):.3f}{worker}"
        if number % 3 == 0 and (files := len(faults.world.renames[stage])):
            yield f"rename {stage} {rng.choice(('before', 'after'))} {rng.randrange(files)}"


def damages(faults: Faults, count: int, rng: random.Random) -> Iterator[str]:
    """Yield changes of files of all formats in turn."""
    folders = {name.split("/")[0] for name in faults.all_files}
    absent = {OUTPUTS.get(stage, "found") for stage in COMMANDS.keys() - faults.world.seconds.keys()} - folders
    formats = [
        kind for kind in FORMATS
        if kind.begun in faults.world.seconds or (not kind.begun and any(_has(kind, name) for name in faults.all_files))
    ]  # fmt: skip
    readers = {kind.name: 0 for kind in FORMATS}
    for number in range(count):
        kind = formats[number % len(formats)]
        files = faults.base(kind.begun)
        file = rng.choice([name for name in files if _has(kind, name) and not name.endswith("/.lock")])
        same = [name for name in files if _has(kind, name) and files[name] != files[file]
                and Path(name).suffix == Path(file).suffix]  # fmt: skip
        names = [name for name in kind.readers.split(",") if not absent & {*re.split(r"[ /]", READERS[name])}]
        reader, readers[kind.name] = names[readers[kind.name] % len(names)], readers[kind.name] + 1
        yield f"damage | whole{kind.begun} | {file} | {draw_change(rng, files[file], same)} | {reader}"


def others(faults: Faults, count: int, rng: random.Random) -> Iterator[str]:
    """Yield the other faults for all stages in turn."""
    stages = [stage for stage in faults.world.seconds if stage != "pipeline"]
    writers = [stage for stage in stages if faults.world.before[stage] != faults.world.after[stage]]
    folders = ("data", "tokens", "tokenizers", "run", "files", "index", "small")
    for number in range(count):
        stage = writers[number % len(writers)]
        if faults.mounted:
            yield f"full {stage} {rng.uniform(0, 0.9):.3f}"
        inputs = [name for name in folders if any(path.startswith(f"{name}/") for path in faults.world.before[stage])]
        yield f"vanish {stage} {rng.uniform(0, 0.9):.3f} {rng.choice(inputs)}"
        if number < len(writers):
            yield f"nolocks {stage}"
            yield f"toolarge {stage}"
            yield f"nospace {stage} {rng.randrange(len(faults.world.renames[stage]) or 1)}"
            if faults.mounted:
                yield f"readonly {stage} before"
                yield f"readonly {stage} after"
            if stage in OUTPUTS:
                yield f"locked {stage}"
        if stage in OTHERS:
            yield f"race {stage} {rng.uniform(0, 0.6):.3f}"


def check_complete(files: Files) -> None:
    """Every file of the world is damaged by some case, or named in UNREAD."""
    patterns = (*UNREAD, *(pattern for kind in FORMATS for pattern in kind.files.split()))
    unknown = [name for name in files if not any(fnmatchcase(name, pattern) for pattern in patterns)]
    assert not unknown, f"no case damages {unknown}; add them to FORMATS or UNREAD of {Path(__file__).name}"


def run_cases(faults: Faults, cases: Iterator[str], tell: Callable[[str], None], done: list[dict[str, Any]]) -> None:
    """Run cases and append their outcomes to `done`; print failures at once, each with its case."""
    for case in cases:
        try:
            outcome, message = faults.case(case), ""
        except Fault as fault:
            outcome, message = "FAILED", str(fault)
            tell(f'FAILED --case "{case}": {message}')
        except Exception as error:  # a mistake of this program: the other cases go on
            outcome, message = "FAILED", f"{type(error).__name__}: {error}"
            tell(f'FAILED --case "{case}": {traceback.format_exc()}')
        done.append({"case": case, "outcome": outcome, "problem": message})
        if len(done) % 50 == 0:
            tell(f"{len(done)} cases, {sum(bool(result['problem']) for result in done)} failed")


FAULTS = {
    "kill": "SIGKILL of the command", "killworker": "SIGKILL of a worker", "damage": "damaged file",
    "rename": "SIGKILL at a file's rename", "full": "full disk (tmpfs)", "nospace": "full disk (one write fails)",
    "toolarge": "file larger than allowed", "readonly": "read-only disk", "vanish": "folder moved away and back",
    "nolocks": "file system without locks", "locked": "lock held by another process", "race": "two commands at once",
}  # fmt: skip


def row_of(case: str) -> str:
    """Return the row of the summary that a case belongs to."""
    if case.startswith("damage"):
        _, begun, file, *_ = case.split(" | ")
        kind = next(kind for kind in FORMATS if kind.begun == begun.removeprefix("whole") and _has(kind, file))
        return f"damaged file: {kind.name}"
    words = case.split()
    return FAULTS["killworker" if words[0] == "kill" and len(words) == 4 else words[0]]


def summary(done: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Count tries and outcomes by fault."""
    rows: dict[str, Counter[str]] = {}
    for result in done:
        rows.setdefault(row_of(result["case"]), Counter())[result["outcome"]] += 1
    return [{"fault": name, "tries": sum(outcomes.values()), "outcomes": dict(sorted(outcomes.items()))}
            for name, outcomes in rows.items()]  # fmt: skip


def corrected(rows: list[dict[str, Any]], rerun_rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the counts of all cases after the failed ones were run again."""
    new = {row["fault"]: Counter(row["outcomes"]) for row in rerun_rows}
    for row in rows:
        row["outcomes"].pop("FAILED", None)
        row["outcomes"] = dict(sorted((Counter(row["outcomes"]) + new.get(row["fault"], Counter())).items()))
    return rows


def main() -> None:
    """Run the faults of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=240)
    parser.add_argument("--damages", type=int, default=1100)
    parser.add_argument("--others", type=int, default=60)
    parser.add_argument("--case", action="append", default=[], help="run this case only; repeatable")
    parser.add_argument("--only", default="", help="a regular expression of cases")
    parser.add_argument("--json", type=Path, help="write the counts")
    parser.add_argument("--again", action="store_true", help="run the failed cases of --json, and correct its counts")
    arguments = parser.parse_args()

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # removes the world

    def tell(line: str) -> None:
        print(line, flush=True)

    unread = (
        ()
        if arguments.kills or arguments.others or arguments.case or arguments.again
        else ("plugin", "pipeline", "init")
    )
    done = list[dict[str, Any]]()
    try:
        with new_faults({stage: words for stage, words in COMMANDS.items() if stage not in unread}) as faults:
            check_complete(faults.all_files)
            tell(f"the world is made: {sum(faults.world.seconds.values()):.0f} s")
            draws = ((kills, arguments.kills), (damages, arguments.damages), (others, arguments.others))
            if arguments.again:
                arguments.case = json.loads(arguments.json.read_text())["failed"]
            cases = iter(arguments.case) if arguments.case else (
                case for draw, count in draws
                for case in draw(faults, count, random.Random(f"{arguments.seed}/{draw.__name__}"))
            )  # fmt: skip
            run_cases(faults, (case for case in cases if re.search(arguments.only, case)), tell, done)
    finally:  # also of a run that was stopped
        missing = set(arguments.case if arguments.again else ()) - {result["case"] for result in done}
        done += [{"case": case, "outcome": "FAILED", "problem": "was not run again"} for case in sorted(missing)]
        rows, failed = summary(done), [result["case"] for result in done if result["problem"]]
        for row in rows:
            tell(f"{row['fault']}: {row['tries']}: {', '.join(f'{name} {n}' for name, n in row['outcomes'].items())}")
        for result in done if arguments.case else ():
            tell(f"{result['case']}: {result['outcome']} {result['problem']}")
        if arguments.json:
            if arguments.again:
                rows = corrected(json.loads(arguments.json.read_text())["rows"], rows)
            arguments.json.write_text(
                json.dumps({"seed": arguments.seed, "rows": rows, "failed": failed}, indent=2) + "\n"
            )
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
