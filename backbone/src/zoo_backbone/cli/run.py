"""What the commands on a trained run share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers_zoo.cli.options import asked_registry, open_zoo

if TYPE_CHECKING:
    from tokenizers_zoo.registry import Zoo
    from zoo_backbone.run import Run


def open_run(folder: Path) -> tuple[Run, Zoo]:
    """A run, and its zoo; see `zoo_of`. Raises CheckpointError where its training has not come to its end."""
    from zoo_backbone.run import Run, stored_config

    run = Run.load(folder)
    stored_config(folder)
    return run, zoo_of(folder, run.registry)


def zoo_of(folder: Path, registry: Path | None) -> Zoo:
    """The zoo of --registry, of the `registry` of the training of a run, or of ./registry.toml, in this order.

    Raises CheckpointError where that of the training is gone, and no other was given.
    """
    from zoo_backbone.run import found_registry

    return open_zoo(asked_registry() or found_registry(folder, registry))
