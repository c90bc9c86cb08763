"""Run `zoo` commands for command_world.py.

Each runs in a process forked from this one, which has imported the slow modules and all modalities.

Reads and writes one line of JSON per command. A command can be killed, or run out of disk space, at a chosen moment.
Each runs in a session of its own, so that processes that outlive it can be found.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import importlib
import importlib.metadata
import json
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

HEAVY = (
    "jinja2",
    "matplotlib.figure",
    "msgspec.yaml",
    "pandas",
    "PIL.ImageDraw",
    "rich.columns",
    "rich.markdown",
    "rich.progress",
    "rich.table",
    "scipy.ndimage",
    "skimage.metrics",
    "tokenizers",
    "tokenizers_zoo.tokenizers.autoencoder.losses",
    "tokenizers_zoo.tokenizers.autoencoder.model",
    "tokenizers_zoo.tokenizers.autoencoder.task",
    "tokenizers_zoo.tokenizers.autoencoder.tokenizer",
    "tokenizers_zoo.cli.data",
    "tokenizers_zoo.cli.inspect",
    "tokenizers_zoo.cli.tokenizer",
    "tokenizers_zoo.cli.tokens",
    "tokenizers_zoo.tokenizers.evaluate",
    "tokenizers_zoo.build.stores",
    "tokenizers_zoo.build.tokenize",
    "tokenizers_zoo.build.tokenizers",
    "tokenizers_zoo.tokenizers.quantizers.quantizer",
    "tokenizers_zoo.report.pages",
    "tokenizers_zoo.train.loop",
    "torch._dynamo",
    "torch.utils.tensorboard",
    "vector_quantize_pytorch",
    "zoo_backbone.cli.main",
    "zoo_backbone.measure.evaluate",
    "zoo_backbone.use.generate_to_folder",
    "zoo_backbone.measure.grow",
    "zoo_backbone.cli.retrieve",
    "zoo_backbone.use.retrieval.query",
    "zoo_backbone.learn.train",
    "zoo_backbone.cli.transfer",
    "zoo_backbone.use.transfer.results",
    "zoo_backbone.use.transfer.train",
    "zoo_photos",
)


def arm(mishap: dict[str, Any], renames: list[str]) -> None:
    """Make this process die or find its disk full at the point that `mishap` gives; append its renames to `renames`."""
    replace, files = os.replace, iter(range(1 << 20))

    def counted_replace(source: Any, target: Any) -> None:
        number = len(renames)
        if mishap.get("kill_before") == number:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
        renames.append(Path(target).name)
        if mishap.get("kill_after") == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted_fsync(file: int) -> None:
        if next(files) >= mishap.get("full_at", 1 << 20):
            raise OSError(errno.ENOSPC, "No space left on device")

    def no_lock(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    os.replace, os.fsync = counted_replace, counted_fsync
    if "shard_size" in mishap:
        importlib.import_module("tokenizers_zoo.build.make").SHARD_SIZES = {0: mishap["shard_size"]}
    if mishap.get("no_locks"):
        fcntl.flock = no_lock
    if "largest" in mishap:
        resource.setrlimit(resource.RLIMIT_FSIZE, (mishap["largest"], resource.RLIM_INFINITY))


def fork_processes() -> None:
    """Fork the processes that a command starts, too: the commands of `zoo run`, and workers."""
    fork, command_ends = multiprocessing.get_context("fork"), list[Any]()

    def pipe() -> tuple[Any, Any]:
        command_end, worker_end = fork.Pipe()
        command_ends.append(command_end)
        return command_end, worker_end

    def process(target: Callable[..., None], args: tuple[Any, ...]) -> Any:
        def work() -> None:
            for connection in command_ends:  # a worker ends when nothing holds these
                connection.close()
            target(*args)

        return fork.Process(target=work)

    importlib.import_module("tokenizers_zoo.build.workers").CONTEXT = SimpleNamespace(
        RawArray=fork.RawArray, RawValue=fork.RawValue, Pipe=pipe, Process=process
    )
    importlib.import_module("tokenizers_zoo.cli.pipeline").subprocess = SimpleNamespace(Popen=ForkedProgram)


class ForkedProgram:
    """Runs `python -c PROGRAM WORDS` in a process forked from this one."""

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        _, _, program, *words = command
        sys.stdout.flush()
        self.process = os.fork()
        if self.process == 0:
            os.environ.update(env)
            sys.argv = ["-c", *words]
            code = exit_code(lambda: exec(program))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])


def exit_code(program: Callable[[], None]) -> int:
    """Run a program; return its exit code, 99 after an exception, which is printed."""
    try:
        program()
    except SystemExit as ended:
        return int(ended.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
        return 99
    return 0


def run(words: list[str], folder: str, mishap: dict[str, Any], outputs: list[Any]) -> None:
    """Run one command in this process, then end the process.

    Without a mishap, or if `forks`, the processes that the command starts are forked, too.
    """
    from tokenizers_zoo.cli.main import main

    os.setsid()
    renames = list[str]()
    for descriptor, output in enumerate(outputs[:2], 1):
        os.dup2(output.fileno(), descriptor)
    os.chdir(folder)
    sys.path[:0] = mishap.get("path", [])
    sys.argv = ["zoo", *words]
    arm(mishap, renames)
    if mishap.get("forks", not mishap):
        fork_processes()
    code = exit_code(main)
    sys.stdout.flush()
    sys.stderr.flush()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    os.write(outputs[2].fileno(), json.dumps(renames).encode())
    os._exit(code)


def processes_of(session: int) -> list[int]:
    """Return the processes of a session that run a program of their own.

    Left out are the helper of multiprocessing that ends on its own, and processes that have just been forked.
    """
    processes, forked = [], Path("/proc/self/cmdline").read_bytes()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, owner = (path / "stat").read_text().rpartition(")")[2].split()[:4]
            words = (path / "cmdline").read_bytes()
            if int(owner) == session and state != "Z" and words != forked and b"resource_tracker" not in words:
                processes.append(int(path.name))
        except OSError:
            pass  # it has ended
    return sorted(processes)


def due(mishap: dict[str, Any], seconds: float, folder: Path) -> bool:
    """Return whether a command has run `at` seconds, or there is a file of the pattern `after`."""
    if "after" in mishap:
        return any(folder.glob(mishap["after"]))
    return seconds >= mishap.get("at", 1e9)


def watch(child: int, mishap: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Wait for a command; do what `mishap` wants once it is `due` and possible, and stop the command at its limit.

    `event` is "kill", "kill worker" (any process that it started) or "move" (the file or folder `place`).
    """
    start, happened, late = time.monotonic(), False, False
    while True:
        ended, status, usage = os.wait4(child, os.WNOHANG)
        seconds = time.monotonic() - start
        if ended:
            break
        if seconds > mishap.get("limit", 300) and not late:
            late = True
            os.kill(child, signal.SIGKILL)
        if not happened and due(mishap, seconds, folder):
            if mishap["event"] == "kill":
                victims = [child]
            elif mishap["event"] == "kill worker":
                workers = processes_of(child)
                victims = workers[mishap["which"] % len(workers) :][:1] if workers else []
            else:
                victims = []
                if (folder / mishap["place"]).exists():
                    (folder / mishap["place"]).rename(folder / "gone")
                    happened = True
            for process in victims:
                with contextlib.suppress(ProcessLookupError):  # a worker that ended since it was listed
                    os.kill(process, signal.SIGKILL)
                    happened = True
        time.sleep(0.002)
    facts = {"process": child, "seconds": seconds, "peak": usage.ru_maxrss / 1024, "happened": happened, "late": late}
    return {"code": os.waitstatus_to_exitcode(status), **facts}


def serve() -> None:
    """Answer each line of JSON with another until stdin ends."""
    for module in HEAVY:
        importlib.import_module(module)
    for modality in importlib.metadata.entry_points(group="tokenizers_zoo"):
        modality.load()
    gc.freeze()  # a collection in a forked process would copy the memory of all modules
    for line in sys.stdin:
        request = json.loads(line)
        words, folder = request.pop("words"), request.pop("folder")
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.TemporaryFile() as events:
            if (child := os.fork()) == 0:
                run(words, folder, request, [out, err, events])
            facts = watch(child, request, Path(folder))
            texts = []
            for file in (out, err, events):
                file.seek(0)
                texts.append(file.read().decode(errors="replace"))
        answer = {**facts, "printed": texts[0], "complaint": texts[1], "renames": json.loads(texts[2] or "[]")}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
