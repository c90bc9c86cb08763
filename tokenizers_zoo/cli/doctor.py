"""zoo doctor: gates with figures and advice."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from tokenizers_zoo.cli.options import DEVICE, PATH, open_zoo, show_problems

if TYPE_CHECKING:
    from pathlib import Path

    from tokenizers_zoo.doctor import Finding

WIDTH = 80


@click.command("doctor")
@click.argument("names", nargs=-1)
@click.option("--data", "data_dir", type=PATH, required=True, help="A folder of value shards.")
@click.option("--tokens", type=PATH, help="A token store that has to fit the tokenizers.")
@click.option("--split", default="test", show_default=True, help="Of the values and tokens that are examined.")
@click.option("--samples", type=click.IntRange(min=2), default=64, show_default=True, help="Values at most.")
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    help="Steps of a temporary tokenizer. Default: use the existing tokenizer, else 100.",
)
@DEVICE
@click.option("--json", "as_json_text", is_flag=True, help="Print JSON.")
def doctor_command(
    names: tuple[str, ...], data_dir: Path, tokens: Path | None, split: str, samples: int, steps: int | None,
    device: str, as_json_text: bool,
) -> None:  # fmt: skip
    """Check whether modalities can be learnt. The exit code is 1 if one fails.

    Runs gates over held-out values, the tokenizer and the tokens, each with figures and advice. Without NAMES: every
    enabled modality in DATA.

    \b
    values    fit the spec: unit, range, type
    trained   a tokenizer exists or can be trained
    floor     better than the constant baseline
    bound     meets the metrics' bounds
    codebook  codes are in use
    varied    tokens differ between samples
    entropy   enough bits per token
    crops     modalities are aligned
    store     the token store fits

    \b
    Examples:
      zoo doctor depth --data data/scenes
      zoo doctor --data data/scenes --tokens runs/tokens --json
    """
    from tokenizers_zoo.doctor import GATES, examinable, examine, unloadable

    zoo = open_zoo()
    chosen = [zoo[name].name for name in dict.fromkeys(names)] or examinable(zoo, data_dir, split)
    lost: list[str] = []
    if not names:
        show_problems(zoo)
        lost = unloadable(zoo, data_dir, split)
    found: dict[str, list[Finding]] = {}
    for name in chosen:
        zoo[name].device = device
        found[name] = list(examine(zoo, name, data_dir, split=split, samples=samples, steps=steps, tokens=tokens))
    failed = sum(not finding.passed for findings in found.values() for finding in findings)
    if as_json_text:
        report = {name: [asdict(finding) for finding in findings] for name, findings in found.items()}
        click.echo(json.dumps({"sound": not failed and not lost, "modalities": report}, indent=2, ensure_ascii=False))
    else:
        if len(found) > 1:
            click.echo("\n".join(overview(found, list(GATES))) + "\n")
        for name, findings in found.items():
            shown = findings if len(found) == 1 else [finding for finding in findings if not finding.passed]
            if shown:
                click.echo("\n".join(details(f"{name}: {zoo[name].spec.summary}", shown)))
        verdict = [f"{failed} of {sum(map(len, found.values()))} gates failed"] if failed else []
        verdict += [f"not examined, as the plugin does not load: {', '.join(lost)}"] if lost else []
        click.echo(textwrap.fill("; ".join(verdict) or "sound", WIDTH))
    sys.exit(1 if failed or lost else 0)


def state_of(finding: Finding) -> str:
    """Return the result of a gate in a word."""
    return "-" if finding.skipped else "ok" if finding.passed else "FAIL"


def overview(found: Mapping[str, Sequence[Finding]], gates: Sequence[str]) -> list[str]:
    """Return a row per modality, a column per gate."""
    room = WIDTH - sum(len(gate) + 1 for gate in gates)
    lines = [" ".join(["".ljust(room), *gates])]
    for name, findings in found.items():
        cells = [state_of(finding).ljust(len(gate)) for finding, gate in zip(findings, gates, strict=True)]
        short = name if len(name) <= room else f"{name[: room - 1]}~"
        lines.append(" ".join([short.ljust(room), *cells]).rstrip())
    return lines


def details(title: str, findings: Sequence[Finding]) -> list[str]:
    """Return a paragraph per gate: result, figures, advice."""
    lines = textwrap.wrap(title, WIDTH)
    for finding in findings:
        head = f"  {state_of(finding):5}{finding.gate:9} "
        indent = " " * len(head)
        lines += textwrap.wrap(finding.figure, WIDTH, initial_indent=head, subsequent_indent=indent)
        if finding.advice:
            lines += textwrap.wrap(finding.advice, WIDTH, initial_indent=f"{indent}> ", subsequent_indent=f"{indent}  ")
    return lines
