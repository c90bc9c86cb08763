"""How a command shares the processor's cores with what else runs."""

from __future__ import annotations

import os
import time
from pathlib import Path

LOAD = Path("/proc/loadavg")
SPINS = "1000"
APART = 0.005
"""Seconds between two looks, so that what runs for a moment does not count."""


def give_way() -> None:
    """Where other work keeps cores busy, let threads that wait for one another sleep instead of spin.

    Each parallel operation ends with threads that wait for the last one, by default spinning for milliseconds; with
    more threads than cores they keep from running just what they wait for. Two trainings side by side on two cores
    then take many times as long as one after the other (bench/side_by_side.py). Alone, spinning is faster. The OpenMP
    library that torch brings on Linux reads the variable when torch is imported, so this comes before. What
    OMP_WAIT_POLICY or GOMP_SPINCOUNT say already holds.
    """
    if {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ) or not others_run():
        return
    time.sleep(APART)
    if others_run():
        os.environ["GOMP_SPINCOUNT"] = SPINS


def others_run() -> bool:
    """Whether anything but this thread is running, or waits for a core, right now; False where nothing tells."""
    try:
        running = LOAD.read_text().split()[3].partition("/")[0]
        return int(running) > 1
    except (OSError, IndexError, ValueError):
        return False
