"""A page per modality: spec, files, metrics, and settings with their docstrings."""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from settings_page import preset_sections, settings_tables, table

from tokenizers_zoo import Zoo
from tokenizers_zoo.contract.handle import ModalityHandle
from tokenizers_zoo.contract.validation import expected_value
from tokenizers_zoo.errors import ZooError
from tokenizers_zoo.testing.probe import Probe, outcome_of
from tokenizers_zoo.testing.probes import OTHER, probed_files
from tokenizers_zoo.tokenizers.text_vocab import VocabularyConfig

ALIKE = 0.6
"""Two refusals with at least this share of common words at their ends are shown as one."""
GAP = "..."
PAUSES = ",;"
"""Punctuation kept at the end of a gap."""


def files_section(handle: ModalityHandle) -> tuple[str, list[tuple[str, str, str]]]:
    """Return the section's text and table rows: kind of file, description, result."""
    try:
        files = probed_files(handle)
    except ZooError as error:
        sys.exit(str(error))
    refusal = shorten(handle, outcome_of(handle, OTHER).line)
    at_hand = "other values than declared above are refused."
    if handle.spec.value.kind == "array":
        at_hand = (
            "another shape, type or range than declared above is refused; the table's other checks apply to files only."
        )
    text = (
        f"Reads {', '.join(f'`.{end}`' for end in files.reads)}; writes `.{files.writes}`. Another kind of file is"
        f" refused: `{refusal}`. From Python, {at_hand}"
    )
    rows = []
    for kind in dict.fromkeys(kind for kind, _ in files.probes):
        probes = [probe for probe_kind, probe in files.probes if probe_kind == kind]
        rows += [(kind, description, happens) for description, happens in merge_probes(handle, probes)]
    return text, rows


def merge_probes(handle: ModalityHandle, probes: Sequence[Probe]) -> list[tuple[str, str]]:
    """Return rows of descriptions and results; files with the same result share a row, readable files first."""
    read: dict[str, list[str]] = {}
    refused: list[tuple[list[str], list[str]]] = []
    damaged: list[str] = []
    for probe in probes:
        outcome = outcome_of(handle, probe)
        if outcome.fault:
            sys.exit(f"{handle.name}: {probe.description}: {outcome.fault}")
        if outcome.read:
            read.setdefault(outcome.reading or in_words(outcome.value), []).append(probe.description)
        elif probe.damaged:
            damaged.append(probe.description)
        else:
            add(refused, probe.description, shorten(handle, outcome.line).split(" "))
    rows = [("; ".join(whats), f"read: {how}" if how else "read") for how, whats in read.items()]
    rows += [("; ".join(whats), f"refused: `{' '.join(words)}`") for whats, words in refused]
    return rows + ([("; ".join(damaged), "refused")] if damaged else [])


def in_words(value: Any) -> str:
    """Return the value itself if it is short and no array."""
    text = "" if isinstance(value, np.ndarray) else json.dumps(value, ensure_ascii=False)
    return f"as `{text}`" if text and len(text) <= 60 and "`" not in text else ""


def shorten(handle: ModalityHandle, line: str, longest: int = 200) -> str:
    """Return a refusal without the parts that the modality's page already has: name and general expectation.

    Longer lines than `longest` characters lose their middle.
    """
    line = line.removeprefix(f"{handle.name}: ")
    standard = f"expected {expected_value(handle.spec.value)}, got "
    if line.startswith(standard) and "; " in line:
        line = line.rpartition("; ")[2]
    head, _, rest = line.partition(" file: ")
    line = rest if rest and head.startswith(".") and " " not in head else line
    if len(line) <= longest:
        return line
    head, tail = line[: longest // 2].rpartition(" ")[0], line[-longest // 2 :].partition(" ")[2]
    return f"{head} ... {tail}"


def add(refused: list[tuple[list[str], list[str]]], description: str, words: list[str]) -> None:
    """Add a refusal; refusals that differ only in a few words in the middle are merged."""
    for index, (whats, common_words) in enumerate(refused):
        if (common := with_gap(common_words, words)) is not None:
            refused[index] = ([*whats, description], common)
            return
    refused.append(([description], words))


def with_gap(first: list[str], second: list[str]) -> list[str] | None:
    """Return the common words of two lines with a gap, or None if they have little in common."""
    if first == second:
        return first
    shorter = min(len(first), len(second))
    start = next((k for k in range(shorter) if first[k] != second[k]), shorter)
    end = next((k for k in range(shorter - start) if first[-1 - k] != second[-1 - k]), shorter - start)
    if start + end < ALIKE * max(len(first), len(second)):
        return None
    last, previous = (words[len(words) - end - 1][-1:] for words in (first, second))
    return [*first[:start], GAP + (last if last == previous and last in PAUSES else ""), *first[len(first) - end :]]


PLUGINS = Path(__file__).parent.parent / "plugins"
NOTE = "Generated from the plugin by `make docs`."


def modality_pages() -> dict[str, str]:
    """Return path and text of the pages of this repository's modalities, and of their index."""
    zoo = Zoo.installed()
    handles = [zoo[name] for name in declared(zoo)]
    pages = {f"modalities/{handle.name}.md": page(handle) for handle in handles}
    return {"modalities/README.md": index(handles), **pages}


def declared(zoo: Zoo) -> list[str]:
    """Return the modalities of plugins/*/pyproject.toml, sorted."""
    names = []
    for path in sorted(PLUGINS.glob("*/pyproject.toml")):
        points = tomllib.loads(path.read_text(encoding="utf-8"))["project"].get("entry-points", {})
        for name in points.get("tokenizers_zoo", {}):
            if name not in zoo:
                sys.exit(f"{path}: its modality {name!r} is not installed; pip install -e {path.parent}")
            names.append(name)
    return sorted(names)


def index(handles: list[ModalityHandle]) -> str:
    """Return a table of all modalities, and the settings of shared vocabularies."""
    rows = [
        (f"[{h.name}]({h.name}.md)", h.spec.summary, h.spec.family, str(h.spec.layout),
         str(h.spec.vocab_size or "-"), ", ".join(h.spec.derived_from))
        for h in handles
    ]  # fmt: skip
    lines = [f"# Modalities\n\n{NOTE} Sizes are for the default settings.\n"]
    lines += table(("name", "what", "family", "tokens", "ids", "derived from"), rows)
    lines.append("\n## Shared vocabularies\n\n`[vocabularies.NAME]` of registry.toml:\n")
    lines += settings_tables(VocabularyConfig, "vocabularies.NAME")
    return "\n".join(lines) + "\n"


def page(handle: ModalityHandle) -> str:
    """One modality."""
    spec = handle.spec
    tokens = str(spec.layout) + (f", {spec.vocab_size} ids" if spec.vocab_size else ", continuous input")
    shared = ", shared ([its settings](README.md#shared-vocabularies))"
    facts = {
        "value": f"{spec.value}"
        + (f": {spec.value.description}" if spec.value.kind == "array" else "").removesuffix(": "),
        "classes": ", ".join(f"{number} {name}" for number, name in enumerate(spec.value.classes)),
        "not scored": ", ".join(spec.value.unscored),
        "tokens": tokens + (f", {spec.num_codebooks} codebooks" if spec.num_codebooks > 1 else ""),
        "vocabulary": f"`{spec.vocabulary}`{shared}" if spec.shared_vocabulary else "",
        "tokenized as": spec.token_space,
        "derived from": ", ".join(f"`{name}`" for name in spec.derived_from),
        "family": spec.family,
        "plugin": f"`{handle.plugin_name}` of `{handle.distribution.split()[0]}`",
        "licence": spec.licence,
        "other names": ", ".join(f"`{name}`" for name in spec.aliases),
    }
    lines = [f"# {handle.name}\n\n{sentence(spec.summary)} {NOTE}\n"]
    lines += table(("", ""), [(key, fact) for key, fact in facts.items() if fact])
    if spec.value.fields:
        lines.append("\n## Fields\n")
        lines += table(("field", "what"), [(f"`{name}`", meaning) for name, meaning in spec.value.fields])
    text, rows = files_section(handle)
    lines += [f"\n## Files and values\n\n{text}\n", *table(("file", "what", "what happens"), rows)]
    fit = " A usable tokenizer with default settings meets the bound (`zoo doctor`)."
    bounded = any(m.bound is not None for m in spec.metrics)
    lines.append(f"\n## Metrics\n\nThe first one is the main metric.{fit if bounded else ''}\n")
    rows = [
        (m.name, m.unit or "-", "higher" if m.higher_is_better else "lower",
         "-" if m.bound is None else f"{m.bound:g}", m.meaning)
        for m in spec.metrics
    ]  # fmt: skip
    lines += table(("metric", "unit", "better", "bound", "meaning"), rows)
    lines.append(f"\n## Settings\n\nKeys of `[modalities.{handle.name}]` in registry.toml.")
    for config in handle.plugin_settings():
        lines += ["", *settings_tables(type(config), f"modalities.{handle.name}"), *preset_sections(type(config))]
    return "\n".join(lines) + "\n"


def sentence(text: str) -> str:
    """Return a summary as a sentence."""
    return f"{text[0].upper()}{text[1:].removesuffix('.')}."
