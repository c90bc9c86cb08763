"""Open a trained run: shared by the commands that use one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers_zoo.cli.options import asked_registry, open_zoo

if TYPE_CHECKING:
    from tokenizers_zoo.registry import Zoo
    from zoo_backbone.run import Run


def open_run(folder: Path) -> tuple[Run, Zoo]:
    """Return a run and its zoo (see `zoo_of`). Raises CheckpointError if its training is unfinished."""
    from zoo_backbone.run import Run, stored_config

    run = Run.load(folder)
    stored_config(folder)
    return run, zoo_of(folder, run.registry)


def zoo_of(folder: Path, registry: Path | None) -> Zoo:
    """Return the zoo of --registry, of the run's `registry`, or of ./registry.toml, in this order.

    Raises CheckpointError if the run's registry is missing and --registry is not set.
    """
    from zoo_backbone.run import found_registry

    return open_zoo(asked_registry() or found_registry(folder, registry))
