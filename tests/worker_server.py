"""Worker processes for tests: forked from a process that has imported torch, which takes a new process seconds."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from types import SimpleNamespace
from typing import Any

FORKING = multiprocessing.get_context("forkserver")
FORKING.set_forkserver_preload(
    [
        "PIL.Image", "pyarrow.ipc", "torch", "tokenizers_zoo.build.derive", "tokenizers_zoo.build.make",
        "tokenizers_zoo.build.tokenize", "tokenizers_zoo.build.tokenizers",
    ]
)  # fmt: skip


def forked_process(target: Callable[..., None], args: tuple[Any, ...]) -> BaseProcess:
    """Return a process that runs `target` with the environment variables of the caller, like a spawned one."""
    return FORKING.Process(target=run_in, args=(dict(os.environ), target, *args))


def run_in(environment: dict[str, str], target: Callable[..., None], *args: Any) -> None:
    os.environ.clear()
    os.environ.update(environment)
    target(*args)


CONTEXT = SimpleNamespace(
    RawArray=FORKING.RawArray, RawValue=FORKING.RawValue, Pipe=FORKING.Pipe, Process=forked_process
)
"""Takes the place of the context that `workers.py` starts its processes in."""
