"""Sharing the processor's cores with other processes."""

from __future__ import annotations

import os
import time
from pathlib import Path

LOAD = Path("/proc/loadavg")
SPINS = "1000"
APART = 0.005
"""Seconds between two looks, to ignore short jobs."""


def give_way() -> None:
    """Let waiting threads sleep instead of spin if other work keeps the cores busy.

    At the end of each parallel operation threads wait for the last one, by default spinning for milliseconds. With more
    threads than cores they then block the thread that they wait for. Two trainings on two cores then take many times as
    long as one after the other (bench/side_by_side.py). Alone, spinning is faster. The OpenMP library that torch brings
    on Linux reads the variable when torch is imported, so this comes before. OMP_WAIT_POLICY or GOMP_SPINCOUNT, if set,
    take precedence.
    """
    if {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ) or not others_run():
        return
    time.sleep(APART)
    if others_run():
        os.environ["GOMP_SPINCOUNT"] = SPINS


def others_run() -> bool:
    """True if another thread is running or waits for a core right now; False if unknown."""
    try:
        running = LOAD.read_text().split()[3].partition("/")[0]
        return int(running) > 1
    except (OSError, IndexError, ValueError):
        return False
