"""Zoo: the installed modalities and sources, enabled by registry.toml; plugins are imported at the first use."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers_zoo.contract.handle import ModalityHandle
from tokenizers_zoo.contract.hookspecs import REQUIRED, SOURCE_REQUIRED
from tokenizers_zoo.contract.plugins import MODALITIES, SOURCES, Plugins
from tokenizers_zoo.contract.source import ModalityNames
from tokenizers_zoo.contract.source_handle import SourceHandle
from tokenizers_zoo.contract.spec import ModalitySpec
from tokenizers_zoo.contract.tokenizer_files import CheckpointLocation, TokenizerFiles
from tokenizers_zoo.errors import MISSPELT, ConfigError, UnknownNameError, ZooError, close_names
from tokenizers_zoo.records.config import PIPELINE, Origin, Settings, from_mapping, load_toml, reject_unknown
from tokenizers_zoo.records.limits import Limits

__all__ = ["ModalityHandle", "SourceHandle", "Zoo"]

TABLES = ("zoo", "vocabularies", "modalities", "limits")
CHECKPOINTS = "runs/tokenizers"
HUB_ID = r"(?!.*(--|\.\.))[A-Za-z0-9]([\w.-]*\w)?/[A-Za-z0-9]([\w.-]*\w)?(?<!\.git)(@[\w./-]+)?"
"""Names that the hub accepts as `owner/name`, or with `@REVISION`; everything else is a folder."""
CLOSE = "did you mean"
TOKEN_NAMES = "tok_"
"""How ml-4m begins the names of folders that hold a modality's tokens, not its values."""
INSTALL = "install its plugin (pip install zoo-..., or all: pip install 'tokenizers-zoo[all]')"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class InstanceConfig:
    """The keys of `[modalities.NAME]` that the registry reads; the others are the plugin's settings."""

    plugin: str = ""
    """The installed plugin that this instance runs; default: the plugin of the instance's name."""
    enabled: bool = True
    """False: the instance is not listed, and a plugin without an enabled instance is never imported."""
    checkpoint: str = ""
    """The tokenizer's folder, relative to registry.toml, or a hub id: `owner/name`, or `owner/name@REVISION` with a
    branch, tag or commit. Empty means the default folder.

    `owner/name` means a local folder if that contains a checkpoint; `./owner/name` always means a folder. `~` is your
    home.
    """
    sha256: str = ""
    """The fingerprint that the tokenizer has to have; empty means any."""

    def __post_init__(self) -> None:
        if self.sha256 and not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise ValueError(f"sha256 {self.sha256!r}: expected 64 lower-case hexadecimal digits")


RESERVED = tuple(field.name for field in dataclasses.fields(InstanceConfig))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ZooConfig:
    """The keys of `[zoo]` that the registry reads; further keys are offered to the plugins."""

    image_size: int | tuple[int, int] | None = None
    """Size of the pictures in pixels: one number for squares, or [height, width]."""
    patch_size: int | None = None
    """Height and width of the patch of one token, in pixels."""
    checkpoints: str = CHECKPOINTS
    """The folder of the tokenizers, relative to registry.toml. `~` is your home."""
    modalities: tuple[str, ...] | None = None
    """Names of the enabled modalities; default: every modality that is installed or has a table."""


CORE_KEYS = tuple(field.name for field in dataclasses.fields(ZooConfig))


class Zoo:
    """The enabled modalities by name, and the installed sources.

    Names come from entry points and registry.toml; `zoo[name]` loads one plugin. A plugin that does not load, or breaks
    the contract, raises there and is listed by `problems()`; the others work.
    """

    def __init__(self, tables: Mapping[str, Any], path: Path | None = None) -> None:
        self.path = path
        self.tables = {key: dict(_table(tables, key, path)) for key in TABLES}
        reject_unknown(tables, tables if PIPELINE in tables else TABLES, Origin(path=path))
        core_settings = {key: value for key, value in self.tables["zoo"].items() if key in CORE_KEYS}
        self.config = from_mapping(ZooConfig, core_settings, self._origin("zoo"))
        self.limits = from_mapping(Limits, self.tables["limits"], self._origin("limits"))
        for name in self.tables["vocabularies"]:
            _table(self.tables["vocabularies"], name, path, "vocabularies")
        self._plugins = Plugins()
        self._instances = {name: InstanceConfig() for name in self._plugins.claims[MODALITIES]}
        for name in self.tables["modalities"]:
            table = _table(self.tables["modalities"], name, path, "modalities")
            reserved = {key: value for key, value in table.items() if key in RESERVED}
            self._instances[name] = from_mapping(InstanceConfig, reserved, self._origin(f"modalities.{name}"))
        for name in self.config.modalities or ():
            if name not in self._instances:
                reason = _not_installed_error(name, self._instances, "or remove the name")
                raise UnknownNameError(f"{self._origin('zoo').at('modalities')}: {reason}")
        self._handles: dict[str, ModalityHandle] = {}
        self._sources: dict[str, SourceHandle] = {}

    @classmethod
    def from_toml(cls, path: str | Path) -> Zoo:
        """Return the registry of a TOML file. Raises ConfigError with file, line and key."""
        return cls(load_toml(Path(path)), Path(path))

    @classmethod
    def installed(cls) -> Zoo:
        """Return the registry of all installed modalities with default settings."""
        return cls({})

    @classmethod
    def at(cls, location: Path) -> Zoo:
        """Return the registry that has this `location`."""
        return cls({"zoo": {"checkpoints": str(location)}}) if location.is_dir() else cls.from_toml(location)

    @property
    def location(self) -> Path:
        """The registry.toml, or without one the folder of the tokenizers; `Zoo.at` opens both."""
        return self.path or self.checkpoints

    def __deepcopy__(self, memo: Any) -> Zoo:
        """Return the same registry: copies of an encoder share its registry and tokenizers."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the tables and the path; the other process opens its own registry."""
        return Zoo, (self.tables, self.path and self.path.parent.resolve() / self.path.name)

    @classmethod
    def from_tables(cls, tables: Mapping[str, Any], path: str | Path | None = None) -> Zoo:
        """Return the registry of parsed tables; relative paths start at `path`'s folder."""
        return cls(tables, None if path is None else Path(path))

    def _origin(self, table: str) -> Origin:
        return Origin(path=self.path, table=table)

    @property
    def folder(self) -> Path:
        """The folder that relative paths of the registry start at."""
        return self.path.parent if self.path is not None else Path()

    @property
    def checkpoints(self) -> Path:
        """The folder of the tokenizers."""
        return self.folder / os.path.expanduser(self.config.checkpoints)

    # ------------------------------------------------------------------ modalities

    def names(self) -> list[str]:
        """Return the names of enabled modalities, sorted. Imports nothing, so a plugin may still fail to load."""
        return sorted(name for name in self._instances if name in self)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())

    def __contains__(self, name: object) -> bool:
        listed = self.config.modalities is None or name in self.config.modalities
        return listed and name in self._instances and self._instances[str(name)].enabled

    def __getitem__(self, name: str) -> ModalityHandle:
        """Return the handle of an enabled modality, with its plugin loaded and its spec checked.

        Raises UnknownNameError for a name that is not enabled, PluginError for a plugin that does not load or breaks
        the contract, ConfigError for invalid settings.
        """
        if name not in self._handles:
            if name not in self:
                raise self._disabled_error(name)
            self._handles[name] = self._load(name)
        return self._handles[name]

    def disabled(self) -> list[str]:
        """Return the installed but disabled modalities. Imports nothing."""
        installed = self._plugins.claims[MODALITIES]
        instances = sorted(self._instances.items())
        return [name for name, instance in instances if name not in self and (instance.plugin or name) in installed]

    def _disabled_error(self, name: str) -> UnknownNameError:
        if name in self._instances:
            unlisted = f"{self._origin('zoo').at('modalities')} lacks it"
            enabled = self._origin(f"modalities.{name}").at("enabled")
            reason = unlisted if self._instances[name].enabled else enabled
            return UnknownNameError(f"modality {name!r} is disabled: {reason}")
        return _not_installed_error(name, self.names(), "or see zoo list for what is installed")

    def _load(self, name: str) -> ModalityHandle:
        instance = self._instances[name]
        plugin_name = instance.plugin or name
        installed = self._plugins.claims[MODALITIES]
        if plugin_name not in installed:
            table, key = ("modalities." + name, "plugin") if instance.plugin else ("modalities", name)
            advice = "name the plugin that it is an instance of, or set enabled = false"
            reason = _not_installed_error(plugin_name, installed, advice, "plugin")
            raise UnknownNameError(f"{self._origin(table).at(key)}: {reason}")
        plugin = self._plugins.load(MODALITIES, plugin_name, REQUIRED)
        settings = Settings(
            name,
            {key: value for key, value in self.tables["modalities"].get(name, {}).items() if key not in RESERVED},
            shared=self.tables["zoo"],
            vocabularies=self.tables["vocabularies"],
            origin=dataclasses.replace(self._origin(f"modalities.{name}"), other_keys=frozenset(RESERVED)),
        )
        return ModalityHandle(
            plugin=plugin,
            settings=settings,
            files=lambda spec: self._files(spec, instance, settings.origin),
            on_trained=self.forget_tokenizers,
            specs_of=lambda names: {name: self[name].spec for name in names if name in self},
            limits=self.limits,
            reopen=(Zoo.__getitem__, self, name),
        )

    def _files(self, spec: ModalitySpec, instance: InstanceConfig, origin: Origin) -> TokenizerFiles:
        checkpoint = instance.checkpoint
        default_folder = self.checkpoints / (spec.name if spec.own_tokenizer else spec.vocabulary)
        # Not a hub id if its `owner` is our folder of tokenizers.
        is_local = Path(checkpoint).parts[:1] == Path(self.config.checkpoints).parts[:1]
        return TokenizerFiles(
            spec=spec,
            checkpoint=self.folder / os.path.expanduser(checkpoint) if checkpoint else default_folder,
            locate_vocabulary=self._locate_vocabulary,
            hub_id=checkpoint if re.fullmatch(HUB_ID, checkpoint) and not is_local else None,
            sha256=instance.sha256 or None,
            origin=origin,
        )

    def _locate_vocabulary(self, spec: ModalitySpec) -> CheckpointLocation:
        """Return the place of a shared vocabulary, for a modality with a tokenizer of its own.

        Loads only modalities whose tables set a checkpoint.
        """
        for name in self.names():
            if name != spec.name and self._instances[name].checkpoint:
                with contextlib.suppress(ZooError):  # reported by a lookup by name
                    handle = self[name]
                    shares = handle.spec.shared_vocabulary or handle.writes_text
                    if handle.spec.vocabulary == spec.vocabulary and shares and not handle.spec.own_tokenizer:
                        return CheckpointLocation(handle.checkpoint, handle.files.hub_id)
        return CheckpointLocation(self.checkpoints / spec.vocabulary)

    def forget_tokenizers(self, path: Path) -> None:
        """Make all modalities with their checkpoint or vocabulary in this folder load it again."""
        for handle in list(self._handles.values()):
            if path.resolve() in {handle.checkpoint.resolve(), handle.files.vocabulary.resolve()}:
                handle.forget_tokenizer()

    def handles(self) -> list[ModalityHandle]:
        """Return the handles of all usable enabled modalities, sorted by name. Loads all plugins."""
        return self._load_all()[0]

    def _load_all(self) -> tuple[list[ModalityHandle], dict[str, ZooError]]:
        """Return the handles that load, and the errors of the others by name."""
        loaded, errors = [], {}
        for name in self.names():
            try:
                loaded.append(self[name])
            except ZooError as error:
                errors[name] = error
        return loaded, errors

    def vocabularies(self) -> dict[str, list[str]]:
        """Return the vocabularies of the usable modalities, each with the names of its modalities, sorted."""
        names_by_vocabulary: dict[str, list[str]] = {}
        for handle in self.handles():
            if not handle.spec.continuous:
                names_by_vocabulary.setdefault(handle.spec.vocabulary, []).append(handle.name)
        return dict(sorted(names_by_vocabulary.items()))

    # ------------------------------------------------------------------ sources

    def source_names(self) -> list[str]:
        """Return the names of installed sources, sorted. Imports nothing."""
        return sorted(self._plugins.claims[SOURCES])

    def source(self, name: str) -> SourceHandle:
        """Return an installed source. Raises UnknownNameError; PluginError if it fails to load or is invalid."""
        if name not in self._sources:
            if name not in self._plugins.claims[SOURCES]:
                raise UnknownNameError.of(
                    "source", name, self.source_names(), hint="(zoo source list shows what is installed)"
                )
            plugin = self._plugins.load(SOURCES, name, SOURCE_REQUIRED)
            names = lambda: modality_names(self.handles())  # noqa: E731
            self._sources[name] = SourceHandle(plugin, self.tables["zoo"], names, self.limits)
        return self._sources[name]

    # ------------------------------------------------------------------ problems

    def problems(self) -> dict[str, str]:
        """Return all problems, one line each: by modality, `source NAME`, `wrapper NAME` or `[TABLE] KEY`. Loads
        everything.
        """
        errors = {name: str(error) for name, error in self._load_all()[1].items()}
        for name in self.source_names():
            try:
                self.source(name)
            except ZooError as error:
                errors[f"source {name}"] = str(error)
        errors.update(self._plugins.wrapper_errors)
        for vocabulary, names in self.vocabularies().items():
            for name, conflict in _disagreements(vocabulary, [self[name] for name in names]):
                errors.setdefault(name, conflict)
        return errors | self._unused_keys()

    def check_file(self) -> list[str]:
        """Raise ConfigError for an unknown key or a wrong value in registry.toml.

        A shared key that no enabled modality uses is an error if it resembles a known key, else a returned line.
        """
        for error in self._load_all()[1].values() if self.path is not None else ():
            if isinstance(error, ConfigError) and str(error).startswith(str(self.path)):
                raise error  # others are errors of the plugin, reported on use and by problems()
        messages = list(self._unused_keys().values())
        for message in messages:
            if CLOSE in message:
                raise ConfigError(message)
        return messages

    def _unused_keys(self) -> dict[str, str]:
        """Return unknown shared keys, each with its problem."""
        messages = {}
        shared = [key for key in self.tables["zoo"] if key not in CORE_KEYS]
        if not shared and not self.tables["vocabularies"]:
            return {}  # without loading a plugin
        known_keys = {
            "zoo": set(CORE_KEYS).union(*(handle.known_settings() for handle in self._load_all()[0])),
            "vocabularies": set(self.vocabularies()),
        }
        for table, keys in (("zoo", shared), ("vocabularies", list(self.tables["vocabularies"]))):
            for key in keys:
                if key not in known_keys[table]:
                    close = difflib.get_close_matches(key, sorted(known_keys[table]), n=2, cutoff=0.6)
                    offer = f"{CLOSE} {' or '.join(close)}?" if close else "remove it"
                    key_origin = self._origin(table).at(key)
                    messages[f"[{table}] {key}"] = f"{key_origin}: no enabled modality uses this key; {offer}"
        return messages


def modality_names(handles: Iterable[ModalityHandle]) -> ModalityNames:
    """Return the names of enabled modalities, for sources of a user's own files.

    A modality's own name is never another's alias. Instances of a plugin share its name, aliases and extensions; they
    belong to the instance of the plugin's own name, else to the first.
    """
    ordered = sorted(handles, key=lambda handle: handle.name != handle.plugin_name)
    by_name = {name: name for handle in ordered for name in (handle.name, handle.plugin_name)}
    by_extension: dict[str, str] = {}
    for handle in ordered:
        for alias in handle.spec.aliases:
            if not alias.startswith(TOKEN_NAMES):
                by_name.setdefault(alias, handle.name)
        for extension in handle.spec.extensions:
            by_extension.setdefault(extension, handle.name)
    texts = frozenset(handle.name for handle in ordered if handle.spec.value.kind == "text")
    return ModalityNames(by_name=by_name, by_extension=by_extension, texts=texts)


def _not_installed_error(name: str, installed: Iterable[str], advice: str, kind: str = "modality") -> UnknownNameError:
    """Return the error for a name that is not installed, with close names, or else how to install it."""
    if close_names(name, installed, MISSPELT):
        return UnknownNameError.of(kind, name, installed)
    return UnknownNameError(f"unknown {kind} {name!r:.80}: nothing installed has this name; {INSTALL}, {advice}")


def _table(tables: Mapping[str, Any], key: str, path: Path | None, parent: str = "") -> Mapping[str, Any]:
    """Return the table under `key`, empty if absent. Raises ConfigError if it is no table."""
    table = tables.get(key, {})
    if not isinstance(table, Mapping):
        key_origin = Origin(path=path, table=parent).at(key)
        raise ConfigError(f"{key_origin}: expected a table, got {type(table).__name__} {table!r}")
    return table


def _disagreements(vocabulary: str, handles: Iterable[ModalityHandle]) -> Iterator[tuple[str, str]]:
    """Yield modalities of one vocabulary that disagree on its size, special ids or checkpoint."""
    first_values: dict[str, tuple[str, Any]] = {}
    for handle in handles:
        layout = handle.spec.layout
        shared = {"vocab_size": handle.spec.vocab_size, "checkpoint": handle.files.vocabulary}
        if layout.special:
            shared["(end, first sentinel, sentinels)"] = tuple(layout.special.values())
        for key, value in shared.items():
            first_name, first_value = first_values.setdefault(key, (handle.name, value))
            if value != first_value:
                conflict = f"shares the vocabulary {vocabulary!r} with {first_name}, but has {key} {value}"
                yield handle.name, f"{handle.name}: {conflict} where {first_name} has {first_value}"
