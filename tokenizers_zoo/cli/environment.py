"""zoo env: the versions, devices and settings that a bug report needs."""

from __future__ import annotations

import contextlib
import os
import platform
import re
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution, distributions
from typing import Any

import click

from tokenizers_zoo.cli.options import JSON, open_zoo, plain_table, registry_in_use, show_facts, show_json, show_table
from tokenizers_zoo.errors import ZooError
from tokenizers_zoo.machine.terminal import echo

GROUP = "tokenizers_zoo"
"""Entry-point groups with this name, or below it, are ours."""
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


@click.command("env")
@JSON
def env(as_json: bool) -> None:
    """Show versions, plugins and devices, for bug reports.

    No plugin is imported, so a broken one does no harm; zoo check tests them.

    \b
    Examples:
      zoo env
      zoo env --json
    """
    facts = {"python": platform.python_version(), "platform": platform.platform(), **_registry(), **_torch()}
    facts["distributions"] = plugins = _plugins()
    facts["libraries"] = libraries = _libraries(plugins)
    if as_json:
        show_json(facts)
        return
    show_facts({name: _line(value) for name, value in facts.items() if isinstance(value, str | int | list)})
    echo()
    table = plain_table("distribution", "version", "provides")
    for name, entry in plugins.items():
        table.add_row(
            name,
            entry["version"],
            "; ".join(f"{kind}: {', '.join(entry[kind])}" for kind in entry if kind != "version"),
        )
    show_table(table)
    echo()
    show_facts({"libraries": ", ".join(f"{name} {version}" for name, version in libraries.items())})


def _line(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _registry() -> dict[str, Any]:
    """Return the registry in use, and the names that it enables, or the reason why it cannot be opened."""
    path = registry_in_use()
    registry = str(path.resolve()) if path else "none: every installed modality"
    try:
        zoo = open_zoo(strict=False)
    except ZooError as error:
        return {"registry": registry, "problem": str(error)}
    return {"registry": registry, "modalities": zoo.names(), "tokenizers": str(zoo.checkpoints.resolve())}


def _torch() -> dict[str, Any]:
    """Return torch's devices and threads, or the reason why it cannot be imported."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    settings = [f"{name}={os.environ[name]}" for name in THREADS if name in os.environ]
    try:
        import torch

        names = [f"cuda:{number} {torch.cuda.get_device_name(number)}" for number in range(torch.cuda.device_count())]
        names += ["mps"] if torch.backends.mps.is_available() else []
        return {
            "devices": ["cpu", *names],
            "cuda": torch.version.cuda or "not in this build of torch",
            "threads": [f"{torch.get_num_threads()} of torch on {cores} cores", *settings],
        }
    except Exception as error:
        reason = " ".join(str(error).split())
        return {"devices": [f"torch does not work here: {type(error).__name__}: {reason}"], "threads": settings}


def _plugins() -> dict[str, dict[str, Any]]:
    """Return version and entry points by distribution, for all distributions of the zoo and its plugins."""
    entries: dict[str, dict[str, Any]] = {}
    for dist in distributions():
        points: dict[str, list[str]] = {}
        for point in dist.entry_points:
            if point.group == GROUP or point.group.startswith(f"{GROUP}."):
                kind = point.group.removeprefix(GROUP).removeprefix(".") or "modalities"
                points.setdefault(kind, []).append(point.name)
        if (points or dist.name == "tokenizers-zoo") and dist.name not in entries:
            entries[dist.name] = {"version": dist.version, **{kind: sorted(names) for kind, names in points.items()}}
    return dict(sorted(entries.items(), key=lambda item: (item[0] != "tokenizers-zoo", item[0])))


def _libraries(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of the installed libraries that these distributions require, extras included."""
    versions = {}
    for name in names:
        for requirement in distribution(name).requires or ():
            library = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
            if library not in names:
                with contextlib.suppress(PackageNotFoundError):
                    installed = distribution(library)
                    versions[installed.name] = installed.version
    return dict(sorted(versions.items(), key=lambda item: item[0].lower()))
