"""zoo new-plugin: write a distribution that installs, passes its tests and runs the whole pipeline."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import shlex
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

from tokenizers_zoo import __version__
from tokenizers_zoo.cli.options import PATH, note, registry_in_use
from tokenizers_zoo.contract.plugins import MODALITIES, SOURCES, installed_claims
from tokenizers_zoo.errors import ConfigError
from tokenizers_zoo.files.run_folder import replacing_folder
from tokenizers_zoo.machine.terminal import echo
from tokenizers_zoo.records.config import Origin, load_toml
from tokenizers_zoo.records.io import disk_errors

FAMILIES = {
    "spatial": "{} as a grid of tokens",
    "features": "a map of {} features as a grid of tokens",
    "vector": "one vector of {} as product codes",
    "series": "{} over time as a row of tokens",
    "classes": "{} as one of declared classes",
    "text": "{} as text",
    "free": "{} as a token per number",
}
"""Summary of a new plugin of each family."""
NAME = r"[a-z][a-z0-9]*(_[a-z0-9]+)*"
LONGEST = 30
"""Maximal length of a name; the templates stay within 120 columns."""


@click.command("new-plugin")
@click.argument("name")
@click.option(
    "--family", type=click.Choice(list(FAMILIES)), default="spatial", show_default=True, help="Kind of modality."
)
@click.option("--out", type=PATH, help="Folder of the distribution, not there yet. Default: ./zoo-NAME.")
def new_plugin(name: str, family: str, out: Path | None) -> None:
    """Write a distribution with the plugin of a new modality NAME.

    It has generated samples and tests and runs the whole pipeline; its README.md explains the next steps.

    \b
    spatial   like a picture: a value per pixel
    features  a map of feature vectors
    vector    one vector for the whole sample
    series    channels over a fixed number of time steps
    classes   one of declared classes
    text      words over the shared vocabulary
    free      anything: the hooks by hand

    \b
    Example:
      zoo new-plugin thermal --family spatial
    """
    folder = out or Path(f"zoo-{name.replace('_', '-')}")
    check_name(name)
    registry = registry_without(name)
    if folder.exists():
        raise ConfigError(f"{folder}: is there already, and is not overwritten; remove it, or give another --out")
    with disk_errors(folder):
        write_distribution(name, family, folder)
    echo(f"{name}: {family} plugin in {folder}")
    install = f'pip install -e "{folder}[test]"'
    enable = f'add "{name}" to the list modalities of {registry}; ' if registry else ""
    readme = f"{enable}{folder / 'README.md'} goes on from there"
    note(f"next: {install} && pytest {shlex.quote(str(folder))}; {readme}")


def check_name(name: str) -> None:
    """Raise ConfigError if the name is invalid or taken."""
    from tokenizers_zoo.contract.registry import Zoo

    if not re.fullmatch(NAME, name) or len(name) > LONGEST:
        expected = f"up to {LONGEST} lower-case letters and digits, words joined by single underscores, a letter first"
        raise ConfigError(f"zoo new-plugin: the name {name!r}: expected {expected}")
    reserved: dict[str, str] = {}
    for handle in Zoo.installed().handles():
        names = (handle.spec.vocabulary, *handle.spec.aliases)
        reserved |= dict.fromkeys(names, f"the vocabulary or another name of {handle.name} ({handle.distribution})")
    for kind, group in (("modality", MODALITIES), ("source", SOURCES)):
        reserved |= {key: f"a {kind} of {claims[0].distribution}" for key, claims in installed_claims()[group].items()}
    distribution, package = f"zoo-{name.replace('_', '-')}", f"zoo_{name}"
    with contextlib.suppress(PackageNotFoundError):
        reserved.setdefault(name, f"installed already: {distribution} {version(distribution)}")
    if name not in reserved and importlib.util.find_spec(package):
        reserved[name] = f"installed already: {package}"
    if name in reserved:
        raise ConfigError(f"zoo new-plugin: {name!r} is {reserved[name]}; take another name")


def registry_without(name: str) -> Path | None:
    """Return the registry in use if its list of modalities lacks this name.

    Raises ConfigError if the name is an instance of another plugin.
    """
    path = registry_in_use()
    if path is None:
        return None
    tables = load_toml(path)
    instance = tables.get("modalities", {}).get(name, {})
    if instance.get("plugin", name) != name:
        location = Origin(path=path, table=f"modalities.{name}").at("plugin")
        message = f"{location}: {name!r} is an instance of {instance['plugin']} already"
        raise ConfigError(f"zoo new-plugin: {message}; take another name")
    return None if name in tables.get("zoo", {}).get("modalities", [name]) else path


def write_distribution(name: str, family: str, folder: Path) -> None:
    """Write pyproject.toml, README.md, package and test to `folder`, atomically."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("tokenizers_zoo", "templates")
    environment = Environment(
        loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    words = name.replace("_", " ")
    facts: dict[str, Any] = {
        "name": name,
        "words": words,
        "camel": "".join(word.capitalize() for word in name.split("_")),
        "package": f"zoo_{name}",
        "distribution": f"zoo-{name.replace('_', '-')}",
        "summary": FAMILIES[family].format(words),
        "folder": folder.name,
        "version": ".".join(__version__.split(".")[:2]),
    }
    written = environment.get_template(f"plugin/{family}.j2").render(facts)
    _, *parts = re.split(r"^=== (.+)\n", written, flags=re.MULTILINE)
    with replacing_folder(folder) as temporary:
        for path, text in zip(parts[::2], parts[1::2], strict=True):
            target = temporary / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
