"""zoo list, zoo info, zoo check: show and check the installed modalities."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Any

import click

from tokenizers_zoo.cli.options import PATH, open_zoo, plain_table, show_table
from tokenizers_zoo.cli.settings import settings_lines
from tokenizers_zoo.errors import ConfigError, UnknownNameError
from tokenizers_zoo.spec import TokenLayout, layout_to_json

if TYPE_CHECKING:
    from pathlib import Path

    from tokenizers_zoo.registry import ModalityHandle, Zoo

WHOLE_NAME = 32
"""Names up to this length are never wrapped."""


def describe_layout(layout: TokenLayout) -> str:
    """`grid 8x8`, `sequence <=64`, ..."""
    shape = getattr(layout, "shape", None)
    if shape is not None:
        return f"{layout.kind} {'x'.join(map(str, shape))}"
    return f"{layout.kind} {'<=' if hasattr(layout, 'max_length') else ''}{layout.length}"


def as_json(handle: ModalityHandle) -> dict[str, Any]:
    """Return a modality as JSON types."""
    spec = handle.spec
    return {
        "name": spec.name,
        "summary": spec.summary,
        "plugin": handle.plugin_name,
        "distribution": handle.distribution,
        "family": spec.family,
        "value": str(spec.value),
        "fields": dict(spec.value.fields),
        "layout": layout_to_json(spec.layout),
        "vocabulary": spec.vocabulary,
        "vocab_size": spec.vocab_size,
        "derived_from": list(spec.derived_from),
        "metrics": [dataclasses.asdict(metric) for metric in spec.metrics],
        "licence": spec.licence,
        "checkpoint": str(handle.checkpoint),
        "trained": handle.has_tokenizer,
    }


@click.command("list")
@click.option("--json", "as_json_text", is_flag=True, help="Print JSON.")
def list_modalities(as_json_text: bool) -> None:
    """List the modalities that are installed and enabled.

    \b
    Example:
      zoo list
    """
    zoo = open_zoo(strict=False)
    handles, problems = zoo.handles(), zoo.problems()
    if as_json_text:
        report = {"modalities": [as_json(h) for h in handles], "disabled": zoo.disabled(), "problems": problems}
        click.echo(json.dumps(report, indent=2))
        return
    table = plain_table("name", "tokens", ">ids", "derived from", "trained", "from")
    for handle in handles:
        spec = handle.spec
        table.add_row(
            spec.name,
            describe_layout(spec.layout),
            str(spec.vocab_size) if spec.vocab_size else "-",
            ", ".join(spec.derived_from) or "-",
            "yes" if handle.has_tokenizer else "no",
            handle.distribution.rpartition(" ")[0] or handle.distribution,
        )
    table.columns[0].no_wrap = max((len(handle.name) for handle in handles), default=0) <= WHOLE_NAME
    for column in table.columns[1:3]:
        column.no_wrap = True
    show_table(table)
    for problem in problems.values():
        click.echo(f"problem: {problem}", err=True)
    off = disabled_lines(zoo)
    for line in off:
        click.echo(click.style(line, dim=True))
    if not handles and not off:
        click.echo("no modality is installed; pip install one (zoo-images, zoo-geometry, ...)", err=True)


def disabled_lines(zoo: Zoo) -> list[str]:
    """Return a line for each registry key that disables installed modalities."""
    keys = {
        "modalities": ("installed but not enabled", "[zoo] modalities"),
        "enabled": ("switched off", "[modalities.NAME] enabled"),
    }
    lines = []
    for key, names in zoo.disabled().items():
        what, where = keys[key]
        if names:
            lines.append(f"{len(names)} more {'is' if len(names) == 1 else 'are'} {what} ({zoo.path}: {where})")
    return lines


@click.command()
@click.argument("name")
@click.option("--settings", "only_settings", is_flag=True, help="Only explain the settings.")
def info(name: str, only_settings: bool) -> None:
    """Show the spec and the settings of one modality.

    Each setting is shown with its value, and with its default where that differs.

    \b
    Examples:
      zoo info depth
      zoo info depth --settings
    """
    zoo = open_zoo()
    if name not in zoo and name in zoo.source_names():
        raise UnknownNameError(f"{name} is a source, no modality: zoo source info {name}")
    handle = zoo[name]
    configs = [(f"modalities.{name}", config) for config in handle.taken_settings()]
    configs += [(f"vocabularies.{shared}", config) for shared, config in handle.taken_vocabularies().items()]
    if not only_settings:
        show_facts(handle)
        if configs:
            click.echo(f"\nsettings, as tables of registry.toml; zoo info {name} --settings explains each")
    for line in settings_lines(configs, explained=only_settings):
        click.echo(line)


def show_facts(handle: ModalityHandle) -> None:
    """Print everything except the settings."""
    spec = handle.spec
    table = plain_table("", "")
    table.show_header = False
    rows = {
        spec.name: spec.summary,
        "value": str(spec.value)
        + (f": {spec.value.description}" if spec.value.description and spec.value.kind == "array" else ""),
        "classes": ", ".join(f"{i} {c}" for i, c in enumerate(spec.value.classes)),
        "not scored": ", ".join(spec.value.unscored),
        "tokens": describe_layout(spec.layout)
        + (f", {spec.vocab_size} ids" if spec.vocab_size else ", continuous input"),
        "vocabulary": spec.vocabulary,
        "tokenized as": handle.token_space,
        "derived from": ", ".join(spec.derived_from) or (f"nothing{handle.derive_hint}" if handle.derive_hint else ""),
        "family": spec.family,
        "plugin": f"{handle.plugin_name} of {handle.distribution}",
        "settings": json.dumps(dict(handle.settings)) if handle.settings and not handle.taken_settings() else "",
        "checkpoint": f"{handle.checkpoint} ({'trained' if handle.has_tokenizer else 'not trained yet'})",
        "licence": spec.licence,
        "other names": ", ".join(spec.aliases),
    }
    rows |= {f"field {name}": meaning for name, meaning in spec.value.fields}
    for metric in spec.metrics:
        better, least = ("higher", "least") if metric.higher_is_better else ("lower", "most")
        fit = f"; fit for use: at {least} {metric.bound:g}" if metric.bound is not None else ""
        rows[f"metric {metric.name}"] = f"{metric.meaning} ({metric.unit or 'no unit'}; {better} is better{fit})"
    for key, value in rows.items():
        if value:
            table.add_row(key, value)
    show_table(table)
    if handle.has_tokenizer:
        click.echo(f"fingerprint  {handle.fingerprint}")  # in one piece, to be copied


@click.command()
@click.argument("names", nargs=-1)
@click.option(
    "--data", "data_dir", type=PATH, help="With NAMES: take sample values from this folder, not from a source."
)
def check(names: tuple[str, ...], data_dir: Path | None) -> None:
    """Check that plugins keep the contract. The exit code is 1 if one does not.

    Without NAMES: every installed plugin is imported and its spec checked. With NAMES: the whole conformance kit,
    with a small temporary tokenizer if there is none.

    \b
    Examples:
      zoo check
      zoo check depth --data data/scenes
    """
    if data_dir is not None and not names:
        raise ConfigError(f"zoo check --data {data_dir}: nothing is read without NAMES; name what is to be checked")
    zoo = open_zoo(strict=False)
    if not names:
        problems = zoo.problems()
        for handle in zoo.handles():
            click.echo(f"ok       {handle.name}: {handle.spec.summary}")
        for problem in problems.values():
            click.echo(f"problem  {problem}")
        sys.exit(1 if problems else 0)
    from tokenizers_zoo.testing import conformance_results

    failed = False
    for name in names:
        for result in conformance_results(zoo, name, data_dir):
            failed |= not result.passed
            click.echo(
                f"{'ok      ' if result.passed else 'problem '} {name}: {result.name}"
                + (f": {result.message}" if result.message else "")
            )
    sys.exit(1 if failed else 0)
