"""zoo init: write a registry.toml for the data in a folder."""

from __future__ import annotations

import contextlib
import graphlib
import io
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tokenizers_zoo.cli.options import FOLLOW_LINKS, asked_registry, command_line, note, parse_assignments
from tokenizers_zoo.contract.samples import OWN_FILES, TEST, TRAIN, spread
from tokenizers_zoo.errors import ConfigError, DataError, close_names, count_of
from tokenizers_zoo.machine.terminal import echo, printable
from tokenizers_zoo.records.io import disk_errors, replacing_file

if TYPE_CHECKING:
    from tokenizers_zoo.contract.file_samples import FileSamples
    from tokenizers_zoo.contract.registry import Zoo

SIZES = {64: 8, 128: 8, 224: 16}
"""Sizes of pictures to choose from, in pixels, each with the size of its patches."""
MEASURED_SAMPLES = 64
"""Samples whose pictures are measured."""
MIN_SIMILARITY = 0.6


@dataclass(kw_only=True)
class Findings:
    """The data in a folder."""

    modalities: dict[str, str] = field(default_factory=dict)
    """A comment for each modality that has values."""
    samples: int = 0
    unknown: list[str] = field(default_factory=list)
    """Folders and files that belong to no installed modality."""
    picture_sizes: list[tuple[int, int]] = field(default_factory=list)
    """Width and height of some pictures."""
    image_size: int | None = None
    """The size of stored pictures; None if they are not stored yet."""
    settings: dict[str, str] = field(default_factory=dict)
    """Settings of the source of the files, with which both splits have samples; empty if the values are stored."""


@click.command("init")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path), default=".")
@click.option("--overwrite", is_flag=True, help="Replace the registry.toml that is there.")
@FOLLOW_LINKS
def init(folder: Path, overwrite: bool, follow_links: bool) -> None:
    """Write a registry.toml for the data in a folder.

    FOLDER is the current folder by default. The registry enables the modalities that
    FOLDER has and those that can be derived from them, with a size that fits the
    pictures. FOLDER is anything that the source "folder" reads (a folder per modality,
    pictures with texts, tar files), or the values that zoo data make wrote. Nothing in
    FOLDER is changed.

    \b
    Examples:
      zoo init my-pictures
      zoo --registry other.toml init my-pictures --overwrite
    """
    from tokenizers_zoo.contract.registry import Zoo

    path = asked_registry() or Path("registry.toml")
    if path.exists() and not overwrite:
        raise ConfigError(f"{path}: is there already; --overwrite replaces it")
    zoo = Zoo.installed()
    is_dataset = (folder / "dataset.json").is_file()
    if (folder / "store.json").is_file():
        raise DataError(
            f"{folder}: holds tokens; the registry of their tokenizers fits them, expected a folder of values"
        )
    findings = values_in(zoo, folder) if is_dataset else files_in(zoo, folder, follow_links)
    if not findings.modalities:
        reasons = "; ".join(_unused_reason(zoo, name) for name in findings.unknown)
        raise DataError(f"{folder}: no values of an installed modality: {reasons}")
    text = registry_text(zoo, folder, findings)
    with disk_errors(path), replacing_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    echo(
        one_line(
            f"{path}: {count_of(len(findings.modalities), 'modality', 'modalities')} of {folder}, "
            f"{count_of(findings.samples, 'sample')}: {', '.join(findings.modalities)}"
        )
    )
    for name in findings.unknown:
        echo(one_line(f"not used: {_unused_reason(zoo, name)}"), err=True)
    data = folder if is_dataset else Path("data")
    note("next:")
    for words in next_commands(data, findings.settings, follow_links):
        note(f"  {command_line(*words)}")


def one_line(text: str) -> str:
    """Return a text on one line, without control characters."""
    return printable(" ".join(text.split()))


def _unused_reason(zoo: Zoo, name: str) -> str:
    """Return why a folder is not used."""
    if name.startswith("tok_"):
        return f"{name}: tokens of ml-4m's tokenizers, not values"
    close = close_names(name, zoo.names(), MIN_SIMILARITY)
    advice = f"; rename it to {close[0]} if it holds that" if close else ""
    return f"{name}: no installed modality has this name{advice}"


def next_commands(data: Path, settings: Mapping[str, str], follow_links: bool) -> Iterator[list[object]]:
    """Yield the commands from the files, if they need to be stored, or else from the data, to the report."""
    if settings:
        words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        yield ["data", "make", OWN_FILES, data, *words, *["--follow-links"] * follow_links]
    yield ["data", "derive", data]
    yield ["tokenizer", "train", "--all", "--data", data]
    yield ["tokenize", data, "--out", "tokens"]
    yield ["backbone", "train", "--tokens", "tokens", "--out", "run"]
    yield ["backbone", "eval", "run"]
    yield ["report", "run"]


def values_in(zoo: Zoo, folder: Path) -> Findings:
    """Return the values that `zoo data make` wrote."""
    from tokenizers_zoo.build.stores import describe_data
    from tokenizers_zoo.stores.manifest import Dataset

    findings, rows = Findings(), describe_data(folder).rows
    for name in sorted({row.modality for row in rows}):
        values = [row for row in rows if row.modality == name]
        if name in zoo:
            findings.modalities[name] = f"{count_of(sum(row.samples for row in values), 'sample')}; {values[0].made_by}"
        else:
            findings.unknown.append(name)
    for split in {row.split for row in rows}:
        findings.samples += max(row.samples for row in rows if row.split == split)
    for record in Dataset.read(folder).splits.values():
        size = record.source and record.source.image_size
        findings.image_size = size if isinstance(size, int) else findings.image_size
    return findings


def files_in(zoo: Zoo, folder: Path, follow_links: bool) -> Findings:
    """Return the modalities of files, as the source `folder` names them. Raises DataError if there are none."""
    from tokenizers_zoo.build.make_shard import open_samples
    from tokenizers_zoo.contract.file_samples import FileSamples

    path = {"path": str(folder)}
    if str(folder).startswith("~") or parse_assignments([f"path={folder}"]) != path:
        path = {"path": f"./{folder}"}  # not a home, nor a number or a quoted text
    options = {**path, "test_fraction": 0.0, "follow_links": follow_links}
    splits: dict[str, FileSamples] = {}
    for split in (TRAIN, TEST):
        try:
            samples = open_samples(zoo, zoo.source(OWN_FILES), split, None, 0, options, folder / "data")
            assert isinstance(samples, FileSamples)
            splits[split] = samples
        except DataError:
            if not splits and (split == TEST or (folder / TRAIN).is_dir() or not (folder / TEST).is_dir()):
                raise
    findings, counts = Findings(settings=path), Counter[str]()
    for samples in splits.values():
        by_name = {handle.name_at_source(samples.offered): handle for handle in zoo.handles()}
        handles = {name: by_name[name] for name in samples.modalities if name in by_name}
        pictures = {name for name, handle in handles.items() if "image_size" in handle.known_settings()}
        findings.unknown += [name for name in samples.modalities if name not in {*handles, *findings.unknown}]
        members = dict(samples.execute("SELECT modality, COUNT(*) FROM members GROUP BY modality"))
        counts.update({handle.name: members.get(name, 0) for name, handle in handles.items()})
        findings.samples += len(samples)
        for number in spread(len(samples), MEASURED_SAMPLES // len(splits)):
            findings.picture_sizes += picture_sizes(samples, number, pictures)
    findings.modalities = {name: count_of(count, "file") for name, count in sorted(counts.items())}
    if TEST not in splits and not (folder / TRAIN).is_dir():
        parts = "SELECT DISTINCT modality, is_in_split(key, ?, ?) FROM members"
        candidates = range(1, 10 if findings.samples < 1000 else 2)
        best = max(candidates, key=lambda tenth: len(splits[TRAIN].execute(parts, TEST, tenth / 10)))
        findings.settings |= {"test_fraction": f"{best / 10}"} if best > 1 else {}
    return findings


def picture_sizes(samples: FileSamples, number: int, names: set[str]) -> list[tuple[int, int]]:
    """Return width and height of the first picture of a sample, in a list that is empty without one."""
    from PIL import Image

    _, files = samples.item(number)
    for name in sorted(names & files.keys()):
        with contextlib.suppress(Exception):  # no picture, or a damaged one: data make says so
            return [Image.open(io.BytesIO(getattr(files[name], "data", b""))).size]
    return []


def fitting_size(picture_sizes: list[tuple[int, int]]) -> int:
    """Return the largest of SIZES that no more than a tenth of the pictures are smaller than."""
    shortest = sorted(map(min, picture_sizes))
    size_limit = shortest[len(shortest) // 10] if shortest else min(SIZES)
    return max((size for size in SIZES if size <= size_limit), default=min(SIZES))


def derivable_from(zoo: Zoo, names: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the modalities that can be derived from others, and those that need a network; each with a comment."""
    from tokenizers_zoo.contract.pretrained import networks_of

    handles = {handle.name: handle for handle in zoo.handles() if handle.name not in names}
    graph = {name: set(handle.spec.derived_from) for name, handle in sorted(handles.items())}
    ready, later = dict[str, str](), dict[str, str]()
    for name in graphlib.TopologicalSorter(graph).static_order():
        if name not in handles or not graph[name] <= {*names, *ready}:
            continue
        if setting := handles[name].spec.derive_setting if not graph[name] else "":
            later[name] = f"derived with the setting {setting} of [modalities.{name}]"
        elif networks_of(handles[name].known_settings()):
            later[name] = f"derived by a network; then: zoo data derive data --modalities {name}"
        elif graph[name]:
            ready[name] = f"derived from {', '.join(handles[name].spec.derived_from)}"
    return ready, later


def registry_text(zoo: Zoo, folder: Path, findings: Findings) -> str:
    """Return a commented registry.toml."""
    size = findings.image_size or fitting_size(findings.picture_sizes)
    patch = SIZES.get(size, 8)
    if findings.image_size:
        size_reason = "as stored"
    elif findings.picture_sizes:
        extremes = dict.fromkeys((min(findings.picture_sizes, key=min), max(findings.picture_sizes, key=min)))
        size_reason = f"the files have {' to '.join(f'{width} x {height}' for width, height in extremes)}"
    else:
        size_reason = "no pictures were found"
    ready, later = derivable_from(zoo, findings.modalities)
    enabled = findings.modalities | ready
    setting_names = {key for name in enabled for key in zoo[name].known_settings()}
    cells, first = size // patch, next(iter(findings.modalities))
    lines = {
        "[zoo]": "",
        f"image_size = {size}": f"pixels, height and width of a stored picture; {size_reason}",
        f"patch_size = {patch}": f"pixels per token, height and width: {cells} x {cells} tokens a picture",
        'checkpoints = "tokenizers"': "folder of the tokenizers, relative to this file",
        "modalities = [": "",
        **{f'    "{name}",': comment for name, comment in enabled.items()},
        **{f'    # "{name}",': comment for name, comment in later.items()},
    }
    unused = {"image_size", "patch_size"} - setting_names
    return "\n".join(
        [
            one_line(f"# {count_of(findings.samples, 'sample')} of {folder}, as found by zoo init."),
            "",
            *(
                f"{line:<31} # {one_line(comment)}" if comment else line
                for line, comment in lines.items()
                if line.partition(" ")[0] not in unused
            ),
            "]",
            "",
            f"# Settings of one modality; zoo info {first} --settings explains them.",
            f"# [modalities.{first}]",
            "# tokenizer = { steps = 1000 }",
            "",
        ]
    )
