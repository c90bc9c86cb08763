"""zoo list, info, check, doctor, report: show and check modalities, data and runs."""

from __future__ import annotations

import dataclasses
import json
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tokenizers_zoo.cli.completion import MODALITY
from tokenizers_zoo.cli.options import (
    DEVICE,
    JSON,
    PATH,
    WIDTH,
    note,
    open_zoo,
    plain_table,
    settings_lines,
    show_facts,
    show_json,
    show_table,
)
from tokenizers_zoo.errors import CheckpointError, count_of
from tokenizers_zoo.machine.terminal import echo
from tokenizers_zoo.records.io import disk_errors
from tokenizers_zoo.records.typed import as_dicts

if TYPE_CHECKING:
    from tokenizers_zoo.contract.registry import ModalityHandle
    from tokenizers_zoo.testing import CheckResult

Facts = TypeVar("Facts")


def is_trained(handle: ModalityHandle) -> bool:
    """Return whether a modality has a tokenizer whose vocabulary has the modality's own special tokens."""
    if not handle.has_tokenizer or not handle.vocabulary_tokens():
        return handle.has_tokenizer
    from tokenizers_zoo.tokenizers.vocabulary import missing_special_tokens

    return not missing_special_tokens(handle)


def learned_on_others(handle: ModalityHandle) -> tuple[str, ...] | None:
    """Return the modalities that a trained vocabulary was learned on, if the modality's own text was not among them."""
    if not handle.spec.shared_vocabulary:
        return None
    from tokenizers_zoo.tokenizers import vocabulary

    return vocabulary.learned_on_others(handle)


def training_state(handle: ModalityHandle) -> str:
    """Return "yes" or "no", or "on caption" for a vocabulary that was learned on the text of other modalities only."""
    if not is_trained(handle):
        return "no"
    learned_names = learned_on_others(handle)
    return "yes" if learned_names is None else f"on {first_and_count(learned_names) or 'no text'}"


def first_and_count(names: Sequence[str]) -> str:
    """Return the first name and the number of the others: `rgb +2`; nothing without names."""
    return " +".join([*names[:1], *([str(len(names) - 1)] if names[1:] else [])])


def facts_as_json(handle: ModalityHandle) -> dict[str, Any]:
    """Return a modality as JSON types."""
    spec = handle.spec
    return {
        "name": spec.name,
        "summary": spec.summary,
        "plugin": handle.plugin_name,
        "distribution": handle.distribution,
        "family": spec.family,
        "value": str(spec.value),
        "layout": as_dicts(spec.layout),
        "vocabulary": spec.vocabulary,
        "vocab_size": spec.vocab_size,
        "derived_from": list(spec.derived_from),
        "metrics": [dataclasses.asdict(metric) for metric in spec.metrics],
        "checkpoint": str(handle.checkpoint),
        "trained": is_trained(handle),
        "learned_on_others": learned_on_others(handle),
    }


@click.command("list", context_settings={"allow_extra_args": True})
@JSON
@click.pass_context
def list_modalities(context: click.Context, as_json: bool) -> None:
    """List the modalities that are installed and enabled.

    Trained "on caption" means: the shared vocabulary was learned from captions. Other words are exact, in more tokens.

    \b
    Example:
      zoo list
    """
    if context.args:
        raise click.UsageError(f"takes no name; did you mean zoo info {context.args[0]}?")
    zoo = open_zoo(strict=False)
    handles, errors = zoo.handles(), dict(zoo.problems())

    def unless_damaged(show: Callable[[ModalityHandle], Facts], handle: ModalityHandle) -> Facts | None:
        try:
            return show(handle)
        except CheckpointError as error:
            errors[handle.name] = str(error)
            return None

    if as_json:
        modalities = [facts for handle in handles if (facts := unless_damaged(facts_as_json, handle))]
        show_json({"modalities": modalities, "disabled": zoo.disabled(), "problems": errors})
        return
    table = plain_table("name", "tokens", ">ids", "derived from", "trained", "from")
    for handle in handles:
        spec = handle.spec
        table.add_row(
            spec.name,
            str(spec.layout).partition(" of ")[0],  # without the length of vectors
            str(spec.vocab_size) if spec.vocab_size else "-",
            first_and_count(spec.derived_from) or "-",
            unless_damaged(training_state, handle) or "damaged",
            handle.distribution.rpartition(" ")[0] or handle.distribution,
        )
    for column in table.columns:
        column.no_wrap, column.overflow = True, "ellipsis"
    show_table(table)
    for message in dict.fromkeys(errors.values()):
        echo(f"problem: {message}", err=True)
    if disabled := zoo.disabled():
        settings = f"{zoo.path}: [zoo] modalities, [modalities.NAME] enabled"
        note(f"{count_of(len(disabled), 'modality is', 'modalities are')} disabled ({settings})")
    elif not handles:
        echo("no modality is installed; pip install one (zoo-images, zoo-geometry, ...)", err=True)


@click.command()
@click.argument("name", type=MODALITY)
@click.option("--settings", "only_settings", is_flag=True, help="Explain the settings.")
@JSON
def info(name: str, only_settings: bool, as_json: bool) -> None:
    """Show the spec or the settings of one modality.

    Each setting is shown with its default, and with its value where that differs.

    \b
    Examples:
      zoo info depth
      zoo info depth --settings
    """
    handle = open_zoo()[name]
    configs = [(f"modalities.{name}", config) for config in handle.plugin_settings()]
    configs += [(f"vocabularies.{shared}", config) for shared, config in handle.plugin_vocabularies().items()]
    if as_json:
        settings = {table: as_dicts(config) for table, config in configs}
        show_json(({} if only_settings else facts_as_json(handle)) | {"settings": settings})
        return
    if not only_settings:
        show_facts(facts_of(handle))
        if handle.has_tokenizer:
            echo(f"fingerprint  {handle.fingerprint}")  # in one piece, to be copied
        if configs:
            note(f"\nzoo info {name} --settings explains the settings")
    for line in settings_lines(configs) if only_settings else ():
        echo(line)


def facts_of(handle: ModalityHandle) -> dict[str, str]:
    """Return everything about a modality except its settings."""
    spec = handle.spec
    state = "trained" if handle.has_tokenizer else "not trained yet"
    if state == "trained" and (learned_names := learned_on_others(handle)) is not None:
        state += f" on {', '.join(learned_names) or 'no text'}; other words are exact, in more tokens"
    rows = {
        spec.name: spec.summary,
        "value": str(spec.value)
        + (f": {spec.value.description}" if spec.value.description and spec.value.kind == "array" else ""),
        "classes": ", ".join(f"{i} {c}" for i, c in enumerate(spec.value.classes)),
        "not scored": ", ".join(spec.value.unscored),
        "tokens": str(spec.layout) + (f", {spec.vocab_size} ids" if spec.vocab_size else ", continuous input"),
        "vocabulary": spec.vocabulary,
        "tokenized as": spec.token_space,
        "derived from": ", ".join(spec.derived_from) or (f"nothing{handle.derive_hint}" if handle.derive_hint else ""),
        "family": spec.family,
        "plugin": f"{handle.plugin_name} of {handle.distribution}",
        "settings": json.dumps(dict(handle.settings)) if handle.settings and not handle.plugin_settings() else "",
        "checkpoint": f"{handle.checkpoint} ({state})",
        "licence": spec.licence,
        "other names": ", ".join(spec.aliases),
    }
    rows |= {f"field {name}": meaning for name, meaning in spec.value.fields}
    for metric in spec.metrics:
        better, least = ("higher", "least") if metric.higher_is_better else ("lower", "most")
        fit = f"; fit for use: at {least} {metric.bound:g}" if metric.bound is not None else ""
        rows[f"metric {metric.name}"] = f"{metric.meaning} ({metric.unit or 'no unit'}; {better} is better{fit})"
    return rows


@click.command()
@click.argument("names", nargs=-1, type=MODALITY)
@click.option(
    "--data", "data_dir", type=PATH, help="With NAMES: take sample values from this folder, not from a source."
)
@DEVICE
@JSON
def check(names: tuple[str, ...], data_dir: Path | None, device: str, as_json: bool) -> None:
    """Check that plugins keep the contract. The exit code is 1 if one does not.

    Without NAMES: every installed plugin is imported and its spec checked. With NAMES: the whole conformance kit,
    with a small temporary tokenizer if there is none. It compares the tokenizer on --device with the CPU.

    \b
    Examples:
      zoo check
      zoo check depth --data data/scenes
    """
    if data_dir is not None and not names:
        raise click.UsageError(f"--data {data_dir}: nothing is read without NAMES; name what is to be checked")
    from tokenizers_zoo.testing import CheckResult, conformance_results

    zoo = open_zoo(strict=False)
    results: dict[str, list[CheckResult]] = {}
    for name in names:
        results[name] = show_results(name, conformance_results(zoo, name, data_dir, device), as_json)
    if not names:
        specs = [(handle.name, True, handle.spec.summary) for handle in zoo.handles()]
        specs += [(name, False, error) for name, error in zoo.problems().items()]
        rows = [CheckResult(name=name, passed=passed, message=message) for name, passed, message in specs]
        results = {row.name: [dataclasses.replace(row, name="spec")] for row in show_results("", rows, as_json)}
    conclude(results, as_json)


def show_results(title: str, results: Iterable[CheckResult], as_json: bool) -> list[CheckResult]:
    """Print each result as it comes, under a title, unless all are printed as JSON later; return them."""
    results_so_far: list[CheckResult] = []
    for result in results:
        head = f"  {state_of(result):5}{result.name:18} "
        indent = " " * len(head)
        lines = textwrap.wrap(result.message, WIDTH, initial_indent=head, subsequent_indent=indent) or [head.rstrip()]
        first, following = f"{indent}> ", f"{indent}  "
        lines += textwrap.wrap(result.advice, WIDTH, initial_indent=first, subsequent_indent=following)
        for line in () if as_json else [*([] if results_so_far else textwrap.wrap(title, WIDTH)), *lines]:
            echo(line)
        results_so_far.append(result)
    return results_so_far


def state_of(result: CheckResult) -> str:
    return "-" if result.skipped else "ok" if result.passed else "FAIL"


def conclude(results: Mapping[str, Sequence[CheckResult]], as_json: bool) -> None:
    """Print all results as JSON, or the verdict; the exit code is 1 unless all checks passed."""
    passed = [result.passed for modality_results in results.values() for result in modality_results]
    if as_json:
        modalities = {name: [as_dicts(result) for result in gate_results] for name, gate_results in results.items()}
        show_json({"sound": all(passed), "modalities": modalities})
    else:
        echo("sound" if all(passed) else f"{passed.count(False)} of {len(passed)} checks failed")
    sys.exit(0 if all(passed) else 1)


@click.command("doctor")
@click.argument("names", nargs=-1, type=MODALITY)
@click.option("--data", "data_dir", type=PATH, required=True, help="A folder of value shards.")
@click.option("--split", default="test", show_default=True, help="Split to examine.")
@click.option("--samples", type=click.IntRange(min=2), default=64, show_default=True, help="Values at most.")
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    help="Steps of a temporary tokenizer. Default: use the existing tokenizer, else 100.",
)
@DEVICE
@JSON
def doctor_command(
    names: tuple[str, ...], data_dir: Path, split: str, samples: int, steps: int | None, device: str, as_json: bool
) -> None:
    """Check whether modalities can be learnt. The exit code is 1 if one fails.

    Runs gates over held-out values, the tokenizer and the tokens, each with figures and advice. Without NAMES: every
    enabled modality in DATA.

    \b
    values    fit the spec: unit, range, type
    trained   a tokenizer exists or can be trained
    floor     better than the constant baseline
    bound     meets the metrics' bounds
    codebook  codes are in use
    varied    tokens differ, with enough bits
    crops     modalities are aligned

    \b
    Examples:
      zoo doctor depth --data data/scenes
      zoo doctor --data data/scenes --json
    """
    from tokenizers_zoo.testing.doctor import GATES, examinable, examine

    zoo = open_zoo()
    modalities = [zoo[name].name for name in dict.fromkeys(names)] or examinable(zoo, data_dir, split)
    summaries = {handle.name: f"{handle.name}: {handle.spec.summary}" for handle in zoo.handles()}
    results: dict[str, list[CheckResult]] = {}
    for name in modalities:
        if name in summaries:
            zoo[name].device = device
        results[name] = list(examine(zoo, name, data_dir, split=split, samples=samples, steps=steps))
    if len(results) > 1 and not as_json:  # a row per modality, a column per gate
        name_width = WIDTH - sum(len(gate) + 1 for gate in GATES)
        echo(" ".join(["".ljust(name_width), *GATES]))
        for name, gate_results in results.items():
            cells = [state_of(result).ljust(len(result.name)) for result in gate_results]
            short = name if len(name) <= name_width else f"{name[: name_width - 1]}~"
            echo(" ".join([short.ljust(name_width), *cells]).rstrip())
        echo()
    for name, gate_results in results.items():
        listed = [result for result in gate_results if len(results) == 1 or not result.passed]
        show_results(summaries.get(name, name), listed, as_json)
    conclude(results, as_json)


@click.command("report")
@click.option(
    "--out",
    type=PATH,
    help="Where to write the page and its pictures. Default: report/index.html beside the tokenizers.",
)
def report_command(out: Path | None) -> None:
    """Write an HTML page about the whole zoo.

    The page is self-contained. It shows all modalities, and links to a page per tokenizer. This page compares
    the modality's checkpoints in neighbouring folders: samples, metrics, training curves and settings.

    \b
    Example:
      zoo report
    """
    write_modalities_page(out)


def write_modalities_page(out: Path | None) -> None:
    """Write the page of all modalities of the zoo in use."""
    from tokenizers_zoo.report.pages import write_zoo_report

    zoo = open_zoo(strict=False)
    with disk_errors(out or zoo.folder):
        page = write_zoo_report(zoo, out)
    echo(f"report: {page.resolve().as_uri()}")
