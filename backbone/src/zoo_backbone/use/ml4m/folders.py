"""Import folders of published checkpoints, with a registry.toml to run them, and export them again."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tomli_w

from tokenizers_zoo.contract.registry import CHECKPOINTS, Zoo
from tokenizers_zoo.errors import CheckpointError, ConfigError, ReadError, UnknownNameError, ZooError, count_of
from tokenizers_zoo.files.checkpoint import (
    CONFIG,
    ORIGIN,
    WEIGHTS,
    CheckpointRecord,
    PublishedOrigin,
    checkpoint_errors,
    config_record,
    fingerprint,
    load_config,
)
from tokenizers_zoo.files.published import (
    KNOWN_AS,
    SUFFIX,
    PublishedCheckpoint,
    known_fingerprint,
    published_config,
    read_published,
    weights_digest,
    write_published,
)
from tokenizers_zoo.files.run_folder import RUN, locked, replacing_folder
from tokenizers_zoo.records.config import Settings, load_toml
from tokenizers_zoo.records.io import as_record, difference, read_regular, read_table, replacing_file, write_table
from tokenizers_zoo.tokenizers.text_vocab import TextVocabulary, VocabularyConfig
from zoo_backbone.learn.checkpoint import CLASS, PUBLISHED, backbone_config
from zoo_backbone.model.run import Run
from zoo_backbone.use.ml4m.adapter import export_backbone, import_backbone
from zoo_backbone.use.ml4m.modalities import (
    NO_TOKENIZER,
    PRESET,
    SIZES,
    TEXT,
    TOKENIZERS,
    by_published_name,
    published_modalities,
    size_for,
    size_text,
    specs_of,
)

BACKBONE, REGISTRY, TOKENS = "backbone", "registry.toml", "tokens"
SOURCE = "source.json"
"""File in an imported folder with the digest of the published weights, which identifies them."""
SIZE_FILE = "size.json"
"""File of a tokenizer with the size that its import selected, which a backbone may change."""
ALREADY_IMPORTED = "is there already"
TableRow = tuple[str, str, str]
"""A row of the import's table: the published name of a checkpoint or modality, our name, and a note."""
HEADER = """\
# Written by zoo import-ml4m: the modalities of the published checkpoints beside this file. Use it by
#   zoo --registry {path} ...
# A later import into this folder reads it and writes it anew: what is set here stays, comments do not.

"""


def sources(source: Path) -> tuple[list[Path], list[Path]]:
    """Return the checkpoints and text tokenizer files at `source`, or inside it. Raises CheckpointError.

    A checkpoint is a folder with a config.json, or a .safetensors file without one.
    """
    if source.is_file() and source.suffix == ".json":
        if _is_text_tokenizer(source):
            return [], [source]
        raise CheckpointError(f"{source}: not a file of the tokenizers library; give 4M's text tokenizer")
    if source.is_file() and source.suffix == SUFFIX:
        return [source.parent if (source.parent / CONFIG).is_file() else source], []
    if (source / CONFIG).is_file():
        return [source], []
    if not source.is_dir():
        raise CheckpointError(f"{source}: expected a folder with a {CONFIG}, a {SUFFIX} or a .json file")
    weights = [*source.glob(f"[!.]*{SUFFIX}"), *source.glob(f"*/[!.]*{SUFFIX}")]
    checkpoints = [path.parent for path in source.glob(f"*/{CONFIG}")]
    checkpoints += [path for path in weights if not (path.parent / CONFIG).is_file()]
    files = sorted(path for path in source.glob("[!.]*.json") if _is_text_tokenizer(path))
    if not checkpoints and not files:
        raise CheckpointError(f"{source}: no published checkpoint here: neither {CONFIG} nor a {SUFFIX} file")
    return sorted(checkpoints), files


def _is_text_tokenizer(path: Path) -> bool:
    """Return whether a JSON file was written by the tokenizers library."""
    try:
        table = json.loads(read_regular(path) or b"")
    except (ReadError, RecursionError, ValueError):
        return False
    return isinstance(table, dict) and {"added_tokens", "model"} <= set(table)


def _title(path: Path) -> str:
    """Return the name of a checkpoint: its folder's name, or its file's name if that is not generic."""
    if path.is_dir():
        return Path(os.path.abspath(path)).name  # of a link its own name
    return path.absolute().parent.name if path.name == WEIGHTS else path.stem


def import_folders(source: Path, out: Path, name: str | None, title: str | None = None) -> tuple[Path, list[TableRow]]:
    """Import the checkpoints at `source` into `out`; return the path of their registry.toml, and a table row for each.

    `name` is the modality of a single tokenizer, by our name or its published name. `title` replaces the name of the
    source folder, as in a hub cache. Existing files in `out` are kept, so a killed import resumes. Raises
    CheckpointError, ConfigError, UnknownNameError, and FolderError while another import writes into `out`.
    """
    folders, files = sources(source)
    titles = {folder: title if title and folder == source else _title(folder) for folder in folders}
    registry, installed = out / REGISTRY, Zoo.installed()
    if name is not None:
        if (ours := by_published_name(installed).get(name)) is None:
            raise UnknownNameError.of("modality", name, installed.names(), hint="(zoo list shows what is installed)")
        name = ours
    configs = {folder: published_config(folder) for folder in folders}
    backbones = [folder for folder, config in configs.items() if "domains_in" in config]
    if len(backbones) > 1:
        names = ", ".join(titles[folder] for folder in backbones)
        raise ConfigError(f"{source}: holds {len(backbones)} backbones ({names}); import each into a folder of its own")
    if name is not None and (files or backbones or len(folders) > 1):
        raise ConfigError(f"--as {name}: is for one tokenizer, and {source} holds more; give the tokenizer's folder")
    owners = {
        folder: name or modality_of(titles[folder], config, installed)
        for folder, config in configs.items()
        if folder not in backbones
    }
    with locked(out):
        tables: dict[str, Any] = load_toml(registry) if registry.is_file() else {"zoo": {"checkpoints": TOKENIZERS}}
        Zoo.from_tables(tables, registry)  # check it before anything is added
        tables.setdefault("zoo", {}).setdefault("checkpoints", CHECKPOINTS)
        tables.setdefault("modalities", {})
        rows = []
        for path in files:
            rows.append(import_text(path, out, tables))
            write_registry(registry, tables)
        for folder, owner in owners.items():
            rows.append(import_tokenizer(folder, titles[folder], owner, out, tables))
            share_tokenizers(tables, registry)
            write_registry(registry, tables)
        for folder in backbones:
            rows += import_model(folder, titles[folder], out, tables, installed)
        backbone = out / BACKBONE
        if all((backbone / file).is_file() for file in (RUN, CONFIG)) and backbone_config(backbone).ml4m:
            run = Run.load(backbone)
            if run.registry is None or run.registry.resolve() != registry.resolve():  # a moved or copied folder
                dataclasses.replace(run, tokens=out / TOKENS, registry=registry).save(backbone)
            note_fingerprints(backbone, registry)
    return registry, rows


def note_fingerprints(backbone: Path, registry: Path) -> None:
    """Add the fingerprints of imported tokenizers to a backbone, so that it refuses tokens of other tokenizers.

    Its fingerprint stays, as its weights and their meaning are unchanged.
    """
    record, zoo = backbone_config(backbone), Zoo.from_toml(registry)
    fingerprints = record.fingerprints
    discrete = [spec for spec in record.specs if spec.name in zoo and not spec.continuous]
    handles = {spec.name: zoo[spec.name] for spec in discrete if spec.name not in fingerprints}
    if new_fingerprints := {name: handle.fingerprint for name, handle in handles.items() if handle.has_tokenizer}:
        table = load_config(backbone) | {"fingerprints": {**fingerprints, **new_fingerprints}}
        write_table(backbone / CONFIG, {**table, KNOWN_AS: known_fingerprint(backbone)})


def import_text(path: Path, out: Path, tables: dict[str, Any]) -> TableRow:
    """Convert the published text tokenizer to the shared text vocabulary, at the registry's path."""
    folder = Zoo.from_tables({"zoo": tables["zoo"]}, out / REGISTRY).checkpoints / TEXT
    tables.setdefault("vocabularies", {}).setdefault(TEXT, {"preset": PRESET})
    config = Settings(TEXT, vocabularies=tables["vocabularies"]).vocabulary(TEXT, VocabularyConfig)
    try:
        vocabulary = TextVocabulary(config, published=(read_regular(path) or b"").decode())
    except (CheckpointError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    if (folder / CONFIG).is_file():
        if TextVocabulary.load(folder).published != vocabulary.published:
            raise CheckpointError(f"{folder}: holds another vocabulary than {path}; give another OUT")
        return path.name, f"vocabulary {TEXT}", ALREADY_IMPORTED
    vocabulary.save(folder)
    return path.name, f"vocabulary {TEXT}", f"{vocabulary.used} ids"


def modality_of(folder: str, config: Mapping[str, Any], installed: Zoo) -> str:
    """Return the installed modality of a published tokenizer: by its configuration, else by its folder's name.

    Raises ConfigError if neither determines it.
    """
    if config.get("class") == CLASS:
        raise ConfigError(f"{folder}: a run of this program, no published checkpoint; it is used as it is")
    names_by_alias = by_published_name(installed)
    aliases = [str(config.get("domain", ""))]
    if aliases[0] not in names_by_alias:
        aliases = [alias for alias in names_by_alias if re.search(rf"(?:^|[_.-]){re.escape(alias)}(?:[_.-]|$)", folder)]
    if not aliases:
        raise ConfigError(f"{folder}: its name does not say which modality it is a tokenizer of; add --as NAME")
    return names_by_alias[max(aliases, key=len)]


def import_tokenizer(folder: Path, title: str, name: str, out: Path, tables: dict[str, Any]) -> TableRow:
    """Import a published tokenizer as the checkpoint of a modality, and register it.

    The modality's settings in the registry are kept, unless the tokenizer determines them. A size that the registry
    does not state is recorded with the tokenizer, so that a backbone may change it.
    """
    target, old_entry = out / TOKENIZERS / name, tables["modalities"].get(name, {})

    def zoo_of(table: Mapping[str, Any], **sections: Any) -> Zoo:
        enabled = {**tables["zoo"], "modalities": [name]}
        return Zoo.from_tables({"zoo": enabled, "modalities": {name: table}, **sections}, out / REGISTRY)

    zoo, checkpoint = zoo_of(old_entry), target
    with contextlib.suppress(ZooError):
        checkpoint = zoo[name].checkpoint if zoo[name].has_tokenizer else target
    if (checkpoint / CONFIG).is_file():
        check_same(folder, checkpoint, ORIGIN)
        if "sha256" in old_entry:
            return title, name, ALREADY_IMPORTED
    settings = {key: value for key, value in old_entry.items() if key not in ("preset", "checkpoint", "sha256")}
    published = read_published(folder)
    table = zoo_of(settings)[name].import_published(published, target)
    entry = {**settings, **table, "checkpoint": f"{TOKENIZERS}/{name}", "sha256": fingerprint(target)}
    entry |= {key: settings[key] for key in ("colours",) if key in settings}  # of the registry, not of the tokenizer
    built = {key: entry[key] for key in SIZES if key in table}
    size, is_stated, note = size_for(zoo, name, entry, built, title, published.config.get("image_size"))
    entry |= size
    (target / SIZE_FILE).unlink(missing_ok=True)
    if size and not is_stated:
        write_table(target / SIZE_FILE, size)
    write_table(target / SOURCE, {"sha256": weights_digest(folder)})
    tables["modalities"][name] = entry
    enable(tables, [name])
    if zoo_of(entry, vocabularies={TEXT: {"preset": PRESET}})[name].spec.vocabulary == TEXT:
        tables.setdefault("vocabularies", {}).setdefault(TEXT, {"preset": PRESET})
    return title, name, note


def share_tokenizers(tables: dict[str, Any], registry: Path) -> None:
    """Share the published tokenizer of a plugin with its other instances, such as a second resolution.

    Published tokenizers work at any size. An instance with a tokenizer, or with other tokens, is not changed.
    """
    modalities: dict[str, dict[str, Any]] = tables["modalities"]
    for name, table in list(modalities.items()):
        of_plugin = modalities.get(table.get("plugin", name), {})
        if "checkpoint" in table or "checkpoint" not in of_plugin:
            continue
        shared = {key: value for key, value in of_plugin.items() if key not in ("preset", *SIZES)} | table
        changed = {**tables, "modalities": {**modalities, name: shared}}
        try:
            before, after = (Zoo.from_tables(settings, registry)[name] for settings in (tables, changed))
        except ZooError:
            continue  # impossible settings, or not enabled
        same_tokens = (before.spec.layout, before.spec.vocab_size) == (after.spec.layout, after.spec.vocab_size)
        if same_tokens and not before.has_tokenizer and after.files.published:
            modalities[name] = shared


def import_model(folder: Path, title: str, out: Path, tables: dict[str, Any], installed: Zoo) -> list[TableRow]:
    """Import a published backbone as a run, and add its modalities to the registry; run.json is written last.

    An existing run is not changed; its modalities without a table in the registry get their tables again.
    """
    target, entries = out / BACKBONE, tables["modalities"]
    missing: set[str] = set()
    if imported := (target / RUN).is_file():
        check_same(folder, target, PUBLISHED)
        record = backbone_config(target)
        assert record.ml4m is not None  # check_same
        names = record.ml4m.names.values()
        run_specs = [spec for spec in record.specs if spec.name in names]
        missing = {spec.name for spec in run_specs if spec.value.description != NO_TOKENIZER} - entries.keys()
        if not missing:
            return [(title, BACKBONE, ALREADY_IMPORTED)]
    checkpoint = read_published(folder)
    modalities = published_modalities(checkpoint)
    resizable = set()  # modalities whose size is the choice of their tokenizer's import
    for name, entry in entries.items():
        size_file = out / TOKENIZERS / name / SIZE_FILE
        if size_file.is_file() and all(entry.get(key) == side for key, side in read_table(size_file).items()):
            resizable.add(name)
    specs, published_tables, notes = specs_of(checkpoint, modalities, installed, out / REGISTRY, entries, resizable)
    new_entries = {
        name: entry for name, entry in published_tables["modalities"].items() if name in missing or not imported
    }
    resized = {name: new_entries[name] for name in resizable & new_entries.keys()}
    size_notes = {
        name: f"{size_text(entry)}, as this backbone has it; it was {size_text(entries[name])}"
        for name, entry in resized.items()
        if entry != entries[name]
    }
    enable(tables, new_entries)
    tables["zoo"] = published_tables["zoo"] | tables["zoo"]
    tables["vocabularies"] = published_tables["vocabularies"] | tables.get("vocabularies", {})
    tables["modalities"] = new_entries | entries | resized
    share_tokenizers(tables, out / REGISTRY)
    zoo = Zoo.from_tables(tables, out / REGISTRY)
    if not imported:
        import_backbone(checkpoint, specs, target)
        write_table(target / SOURCE, {"sha256": weights_digest(folder)})
    for item in modalities:
        name = specs[item.published].name
        if item.kind != "tokens" and name in new_entries:
            tokenizer = out / TOKENIZERS / name
            if not (tokenizer / CONFIG).is_file():
                zoo[name].import_published(checkpoint, tokenizer)
            tables["modalities"][name] |= {"checkpoint": f"{TOKENIZERS}/{name}", "sha256": fingerprint(tokenizer)}
    write_registry(out / REGISTRY, tables)
    if not imported:
        Run(tokens=out / TOKENS, registry=out / REGISTRY).save(target)
    note = ALREADY_IMPORTED if imported else count_of(len(modalities), "modality", "modalities")
    rows = [(title, BACKBONE, note)]
    for item in modalities:
        name = specs[item.published].name
        if name in new_entries or not imported:
            side = "an input only" if not item.made else "made only, no input" if not item.read else ""
            note = notes.get(item.published, size_notes.get(name, ""))
            rows.append((item.published, name, "; ".join(filter(None, (side, note)))))
    return rows


def check_same(folder: Path, imported: Path, origin: str) -> None:
    """Raise CheckpointError unless `imported` was imported from the files of `folder`.

    `origin` is the key of its config.json that holds the published configuration.
    """
    config = load_config(imported)
    if origin not in config:
        raise CheckpointError(f"{imported}: holds a {config['class']} that was not imported; give another OUT")
    published = as_record(config[origin], PublishedOrigin, imported / CONFIG)
    mismatch = difference(published.config, published_config(folder), CONFIG)
    if not mismatch and (imported / SOURCE).is_file():
        digest = read_table(imported / SOURCE).get("sha256")
        mismatch = "" if digest == weights_digest(folder) else "the weights differ"
    if mismatch:
        raise CheckpointError(
            f"{imported}: holds another published checkpoint than {folder} ({mismatch}); give another OUT"
        )


def enable(tables: dict[str, Any], names: Iterable[str]) -> None:
    """Enable these modalities in a registry, in addition to those enabled or, by default, those with a table."""
    tables["zoo"]["modalities"] = sorted({*tables["zoo"].get("modalities", tables["modalities"]), *names})


def write_registry(path: Path, tables: dict[str, Any]) -> None:
    """Write a registry.toml, atomically."""
    with replacing_file(path) as temporary:
        temporary.write_text(HEADER.format(path=path) + tomli_w.dumps(tables), encoding="utf-8")


def export_folder(source: Path, out: Path) -> PublishedCheckpoint:
    """Write a checkpoint, backbone or tokenizer, in its published format into a new or empty folder.

    Raises CheckpointError, and FolderError if `out` is not empty.
    """
    with replacing_folder(out) as folder, checkpoint_errors(source):
        config = load_config(source)
        if config["class"] == CLASS:
            published = export_backbone(source)
        elif name := config_record(source, None, CheckpointRecord).modality:
            installed = Zoo.installed()
            if name not in installed:
                hint = f"(the modality of {source}; install its plugin)"
                raise UnknownNameError.of("modality", name, installed.names(), hint=hint)
            published = installed[name].export_published(source)
        else:
            raise CheckpointError(f"{source}: holds a {config['class']}, which was not published by 4M")
        write_published(published, folder)
    return published
