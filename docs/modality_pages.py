"""A page per modality: its spec, what becomes of files, its metrics, its settings with their docstrings."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

from files_and_values import files_section
from markdown_tables import preset_sections, settings_tables, table

from tokenizers_zoo import Zoo
from tokenizers_zoo.cli.inspect import describe_layout
from tokenizers_zoo.handle import ModalityHandle
from tokenizers_zoo.text_vocab import VocabularyConfig

PLUGINS = Path(__file__).parent.parent / "plugins"
NOTE = "Generated from the plugin by `make docs`."


def modality_pages() -> dict[str, str]:
    """Path and text of the page of every modality that this repository's plugins declare, and of their index."""
    zoo = Zoo.installed()
    handles = [zoo[name] for name in declared(zoo)]
    pages = {f"modalities/{handle.name}.md": page(handle) for handle in handles}
    return {"modalities/README.md": index(handles), **pages}


def declared(zoo: Zoo) -> list[str]:
    """The modalities of plugins/*/pyproject.toml, sorted; whatever else is installed has its own documents."""
    names = []
    for path in sorted(PLUGINS.glob("*/pyproject.toml")):
        points = tomllib.loads(path.read_text(encoding="utf-8"))["project"].get("entry-points", {})
        for name in points.get("tokenizers_zoo", {}):
            if name not in zoo:
                sys.exit(f"{path}: its modality {name!r} is not installed; pip install -e {path.parent}")
            names.append(name)
    return sorted(names)


def index(handles: list[ModalityHandle]) -> str:
    """All modalities in a table, and the settings of the vocabulary that some share."""
    rows = [
        (f"[{h.name}]({h.name}.md)", h.spec.summary, h.spec.family, describe_layout(h.spec.layout),
         str(h.spec.vocab_size or "-"), ", ".join(h.spec.derived_from))
        for h in handles
    ]  # fmt: skip
    lines = [f"# Modalities\n\n{NOTE} Sizes are those of the default settings.\n"]
    lines += table(("name", "what", "family", "tokens", "ids", "derived from"), rows)
    lines.append("\n## Shared vocabularies\n\n`[vocabularies.NAME]` of registry.toml, for all that name it:\n")
    lines += settings_tables(VocabularyConfig, "vocabularies.NAME")
    return "\n".join(lines) + "\n"


def page(handle: ModalityHandle) -> str:
    """One modality."""
    spec = handle.spec
    tokens = describe_layout(spec.layout) + (f", {spec.vocab_size} ids" if spec.vocab_size else ", continuous input")
    shared = ", shared with all that name it ([its settings](README.md#shared-vocabularies))"
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
        lines += table(("field", "what"), [(f"`{name}`", what) for name, what in spec.value.fields])
    text, rows = files_section(handle)
    lines += [f"\n## Files and values\n\n{text}\n", *table(("file", "what", "what happens"), rows)]
    fit = " A tokenizer of the default settings that is fit for use is no worse than the bound (`zoo doctor`)."
    bounded = any(m.bound is not None for m in spec.metrics)
    lines.append(f"\n## Metrics\n\nThe first one is the main metric.{fit if bounded else ''}\n")
    rows = [
        (m.name, m.unit or "-", "higher" if m.higher_is_better else "lower",
         "-" if m.bound is None else f"{m.bound:g}", m.meaning)
        for m in spec.metrics
    ]  # fmt: skip
    lines += table(("metric", "unit", "better", "bound", "meaning"), rows)
    lines.append(f"\n## Settings\n\nKeys of `[modalities.{handle.name}]` in registry.toml.")
    for config in handle.taken_settings():
        lines += ["", *settings_tables(type(config), f"modalities.{handle.name}"), *preset_sections(type(config))]
    return "\n".join(lines) + "\n"


def sentence(text: str) -> str:
    """A summary as a sentence."""
    return f"{text[0].upper()}{text[1:].removesuffix('.')}."
