"""A run folder: the record of the trained backbone, where its tokens, values and registry are, and its tokenizers."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import Distribution, entry_points
from pathlib import Path
from typing import Any, Literal

from tokenizers_zoo.contract.registry import HUB_ID, ModalityHandle, Zoo
from tokenizers_zoo.contract.spec import ModalitySpec
from tokenizers_zoo.errors import CheckpointError, OtherTokenizerError
from tokenizers_zoo.files.checkpoint import (
    CARD,
    CONFIG,
    WEIGHTS,
    CheckpointRecord,
    config_record,
    fingerprint,
    hub_folder,
)
from tokenizers_zoo.files.run_folder import RUN, RunKind, RunRecord, read_run, write_run
from tokenizers_zoo.records.config import load_toml
from tokenizers_zoo.records.io import as_record, file_digest, read_record
from tokenizers_zoo.stores.tokens import TokenColumn

TOKENIZERS = "tokenizers"
"""Folder of the tokenizers in a bundle."""
WHEELS = "wheels"
"""Folder of the wheels in a bundle; they are never installed or imported by loading it."""
REGISTRY = "registry.toml"
"""Registry of a bundle."""
BUNDLE = "bundle.json"
"""Record of a bundle, see bundle.py."""
BUNDLES = "tokenizers_zoo.bundles"
"""Entry-point group of installed bundles; each is a str or Path, the folder."""
BACKBONE = RunKind(
    name="backbone",
    files=(
        WEIGHTS,
        CONFIG,
        CARD,
        "metrics.jsonl",
        "tensorboard",
        "logs",
        "last",
        "previews",
        "growth.json",
        "evaluation",
        "report",
    ),
    state="training_state",
    results=(WEIGHTS, CONFIG),
    keeps_state=True,
)


@dataclass(frozen=True, kw_only=True)
class Start:
    """The trained backbone that a training started from."""

    folder: str
    weights_sha256: str = ""
    knows: tuple[str, ...] = ()
    added: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PublishedBackbone:
    """The published checkpoint that a backbone was imported from."""

    config: Mapping[str, Any]
    modalities: tuple[Mapping[str, Any], ...]
    names: Mapping[str, str]
    """Our modalities by published name."""
    absent: tuple[str, ...] = ()
    """Biases of zeros that the published file does not have."""
    same_as: Mapping[str, str] = field(default_factory=dict)
    """Tensors that share their numbers with another one."""
    dtypes: Mapping[str, str] = field(default_factory=dict)
    """Types of tensors that are not float32."""
    file_metadata: Mapping[str, str] | None = None
    """Metadata of the published safetensors file, unless they are the usual ones."""


@dataclass(frozen=True, kw_only=True)
class BackboneRecord(CheckpointRecord):
    """config.json of a backbone."""

    architecture: Literal["FourM", "PublishedFourM"]
    model: Mapping[str, Any]
    specs: tuple[ModalitySpec, ...]
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    """Fingerprints of the tokenizers at its training, by modality; empty if they are unknown."""
    train: Mapping[str, Any] = field(default_factory=dict)
    training_seconds: float | None = None
    start: Start | None = None
    ml4m: PublishedBackbone | None = None
    asked: tuple[Mapping[str, Any], ...] = ()
    """The mixtures that a grown backbone uses when it grows again. Its own training mostly had new modalities as
    targets."""


@dataclass(frozen=True, kw_only=True)
class Golden:
    """A held-out sample with its tokens, and the tokens predicted from one value."""

    files: Mapping[str, str]
    """File of each value, by modality."""
    input: str
    """The modality that the others are predicted from."""
    tokens: Mapping[str, list[Any]]
    predicted: Mapping[str, list[Any]]


@dataclass(frozen=True, kw_only=True)
class BundleRecord:
    """The content of bundle.json."""

    requires: Mapping[str, str]
    """Versions of the distributions, by name."""
    files: Mapping[str, str]
    """sha256 of each file, by path."""
    golden: Golden


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where a run's inputs are: the places of its run.json. Paths are absolute."""

    folder: Path = field(default=Path(), compare=False)
    """The run itself; not part of run.json."""
    tokens: Path
    """The token store that it trains on."""
    data: Path | None = None
    """The store of values that were encoded to these tokens."""
    registry: Path | None = None
    """`Zoo.place`: the registry.toml in use, or without one the folder of the tokenizers; None: unknown."""
    start: Path | None = None
    """The backbone that it started from; None for a new one."""

    def paths(self) -> dict[str, str | None]:
        """Return the paths as JSON types."""
        paths = {"tokens": self.tokens, "data": self.data, "start": self.start}
        resolved = {key: None if path is None else str(Path(path).resolve()) for key, path in paths.items()}
        return resolved | {"registry": registry_path(self.registry)}

    def save(self, folder: Path) -> None:
        """Write the places into run.json; without one, for a finished backbone."""
        record = read_run(folder) or RunRecord(kind=BACKBONE.name, identity={}, places={}, finished={})
        write_run(folder, replace(record, places=self.paths()))

    @classmethod
    def load(cls, folder: Path) -> Run:
        """Read run.json. Raises CheckpointError where `folder` is not a run."""
        if (record := read_run(folder)) is None:
            raise CheckpointError(f"{folder}: no run here ({RUN} was expected); train one with zoo backbone train")
        if record.kind != BACKBONE.name:
            raise CheckpointError(f"{folder}: holds a {record.kind}, expected a {BACKBONE.name}")
        return replace(as_record(record.places, cls, folder / RUN, keys=("places",)), folder=Path(folder))

    @classmethod
    def open(cls, source: str | Path, revision: str | None = None, sha256: str | None = None) -> Run:
        """Find and verify a trained model: a folder, an installed bundle, or a hub id, `owner/name[@REVISION]`.

        `revision` is a branch, tag or commit of a hub id. `sha256` is the fingerprint that the model must have. Raises
        CheckpointError if there is no such model, its training is not finished, or a distribution that a bundle needs
        is not installed. A copy of model.safetensors and config.json alone is opened, too.
        """
        folder = _locate(source, revision)
        if sha256 is not None and (model_fingerprint := fingerprint(folder)) != sha256:
            raise CheckpointError(f"{source}: the model has the fingerprint {model_fingerprint}, expected {sha256}")
        if is_bundle := (folder / BUNDLE).is_file():
            _check_bundle(source, folder)
        is_copy = not (folder / RUN).is_file()  # of the model alone: its tokens and registry are unknown
        run, inside = cls(folder=folder, tokens=folder / "tokens") if is_copy else cls.load(folder), folder.resolve()
        for name, path in run.paths().items() if is_bundle else ():
            if path and not Path(path).is_relative_to(inside / REGISTRY if name == "registry" else inside):
                raise CheckpointError(f"{folder / RUN}: names {path}, which is not of the bundle; export it again")
        check_finished(folder)
        return run

    def zoo(self) -> Zoo:
        """Return the zoo of the training, see `training_zoo`."""
        return training_zoo(self.registry, self.folder)

    def values(self) -> Path:
        """Return the folder of values. Raises CheckpointError if the run has none, or if it is missing."""
        if self.data is None or not self.data.is_dir():
            location = self.data or "an unknown folder"
            raise CheckpointError(f"the run's values were in {location}, which is not there; give --data DATA")
        return self.data


def _locate(source: str | Path, revision: str | None) -> Path:
    """Return the folder of a run or bundle."""
    folder, bundles = Path(source).expanduser(), entry_points(group=BUNDLES)
    if folder.is_dir():
        return folder
    if str(source) in bundles.names:
        return Path(bundles[str(source)].load())
    if re.fullmatch(HUB_ID, str(source)) and not folder.parent.is_dir():
        return hub_folder(str(source), revision)
    installed = f"; installed bundles: {', '.join(sorted(bundles.names))}" if bundles else ""
    raise CheckpointError(f"{source}: no such folder, and not a hub id (owner/name){installed}")


def _check_bundle(source: str | Path, folder: Path) -> None:
    """Raise CheckpointError for changed files, missing distributions, and settings that name other folders."""
    record = read_record(folder / BUNDLE, BundleRecord)
    wheels = [f"{WHEELS}/{wheel.name}" for wheel in (folder / WHEELS).glob("*.whl")]
    for name, digest in {**dict.fromkeys(wheels), **record.files}.items():
        if Path(name).is_absolute() or os.pardir in Path(name).parts:
            raise CheckpointError(f"{folder / BUNDLE}: names a file of another folder, {name}; export it again")
        if not (folder / name).exists() or file_digest(folder / name) != digest:
            raise CheckpointError(f"{folder / name}: is not the file of the export; copy the bundle again")
    if missing := [name for name in record.requires if not any(Distribution.discover(name=name))]:
        install = f"{shlex.quote(str(folder / WHEELS))}/*.whl" if wheels else " ".join(missing)
        raise CheckpointError(f"{source}: needs {', '.join(missing)}; install it: pip install {install}")
    registry = folder / REGISTRY
    tables = load_toml(registry) if registry.is_file() else None
    if tables is not None and (setting := _foreign_setting(tables)):
        raise CheckpointError(f"{registry}: a bundle cannot set {setting}; ask its author to export it again")


def _foreign_setting(tables: Mapping[str, Any]) -> str:
    """Return a setting in a bundle's registry.toml that raises limits or names files or models elsewhere, or ""."""
    if "limits" in tables:
        return "[limits]"
    zoo, modalities = (tables[key] if isinstance(tables.get(key), dict) else {} for key in ("zoo", "modalities"))
    if zoo.get("checkpoints") != TOKENIZERS:
        return f"[zoo] checkpoints to another folder than {TOKENIZERS}"
    named = (name for name, table in modalities.items() if isinstance(table, dict) and "checkpoint" in table)
    return next((f"[modalities.{name}] checkpoint" for name in named), "")


def registry_path(registry: Path | None) -> str | None:
    """Return the absolute path of a registry.toml. Links are not resolved: relative paths in the file start at the
    link's folder."""
    return None if registry is None else str(registry.parent.resolve() / registry.name)


def training_zoo(registry: Path | None, folder: Path) -> Zoo:
    """Return the zoo of the run or probe in `folder`; if its registry is unknown, all installed modalities.

    Raises CheckpointError if the registry is gone.
    """
    check_registry(registry, folder)
    return Zoo.installed() if registry is None else Zoo.at(registry)


def check_registry(registry: Path | None, folder: Path) -> None:
    """Raise CheckpointError if the registry of the run or probe in `folder` is gone."""
    if registry is not None and not registry.exists():
        advice = (
            "give --registry FILE (in Python zoo=Zoo.from_toml(FILE)), or move the run with its whole project, or "
            "as a bundle (zoo backbone export)"
        )
        raise CheckpointError(f"{folder}: expects its registry at {registry}, which is not there; {advice}")


def check_finished(folder: Path) -> None:
    """Raise CheckpointError if a folder has no trained model."""
    if not (folder / CONFIG).is_file():
        if (folder / RUN).is_file():
            raise CheckpointError(f"{folder}: its training has not come to its end; the command that began it goes on")
        raise CheckpointError(f"{folder}: no trained backbone here yet; train one with zoo backbone train")


def stored_config(folder: Path) -> BackboneRecord:
    """Return the config.json of a trained model. Raises CheckpointError if training is not finished."""
    check_finished(folder)
    return config_record(folder, None, BackboneRecord)


# --- tokenizers


@dataclass(frozen=True, kw_only=True)
class ModalityIdentity:
    """A modality in the identity of a training."""

    fingerprint: str
    """The tokenizer's."""


@dataclass(frozen=True, kw_only=True)
class TrainingIdentity:
    """The part of run.json's identity that names the tokenizers of a training."""

    modalities: Mapping[str, ModalityIdentity] = field(default_factory=dict)


def check_stored(column: TokenColumn, fingerprint: str | None, zoo: Zoo, owner: str) -> None:
    """Raise DataError unless the tokenizer `fingerprint`, with which `owner` was trained, wrote these tokens.

    Either of the two may have a vocabulary that grew from the other. None: the tokenizer is unknown.
    """
    name = column.modality
    if fingerprint in (None, column.fingerprint):
        return
    if name in zoo:
        handle, fingerprints = zoo[name], {str(fingerprint), column.fingerprint}
        if all(
            handle.files.grew_from(digest) or (handle.has_tokenizer and handle.fingerprint == digest)
            for digest in fingerprints
        ):
            return
    remedy = "use tokens of the tokenizer of the training, or train again"
    raise OtherTokenizerError.of(column.folder, name, column.fingerprint, str(fingerprint), owner, remedy)


def training_fingerprints(folder: Path, handles: Iterable[ModalityHandle]) -> dict[str, str]:
    """Return the fingerprints of the handles' tokenizers by name, to train with in `folder`.

    If the training started with a tokenizer whose vocabulary has grown since, return that fingerprint, so that it
    resumes. Raises CheckpointError where a tokenizer is missing.
    """
    record, begun = read_run(folder), dict[str, str]()
    if record is not None and record.kind == BACKBONE.name:
        identity = as_record(record.identity, TrainingIdentity, folder / RUN, keys=("identity",))
        begun = {name: modality.fingerprint for name, modality in identity.modalities.items()}
    return {
        handle.name: begun[handle.name] if handle.files.grew_from(begun.get(handle.name, "")) else handle.fingerprint
        for handle in handles
    }
