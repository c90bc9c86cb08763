"""For source plugins: SourceSpec, values as files, and the names of enabled modalities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Annotated, Any, Literal

from tokenizers_zoo.errors import PluginError, UnknownNameError
from tokenizers_zoo.records.config import Checked
from tokenizers_zoo.records.typed import Interval

Sample = tuple[str, Mapping[str, Any]]
"""A key, and the sample's values by modality."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileBytes:
    """A value that is not decoded yet: a file's bytes and its extension, for `ModalityHandle.read`.

    A source may return it in place of a value.
    """

    data: bytes
    extension: str


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnData(Checked):
    """Settings of a source of a user's data: pictures may have any proportions, and a test split may be missing.

    `zoo data make` crops the pictures.
    """

    test_fraction: Annotated[float, Interval("[0, 1)")] = 0.1
    """Share of the samples for testing if the data have no test split, in [0, 1)."""
    crop: Literal["middle", "whole"] = "middle"
    """"middle": the largest middle part of each picture with the modality's proportions, the same part for all
    modalities of the sample. "whole": the whole picture, squeezed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModalityNames:
    """The enabled modality that a user's folder, column or file belongs to."""

    by_name: Mapping[str, str] = field(default_factory=dict)
    """Modalities' names, their plugins' names and other names -> modality."""
    by_extension: Mapping[str, str] = field(default_factory=dict)
    """File extensions -> modality, for files that nothing else assigns to a modality."""
    texts: frozenset[str] = frozenset()
    """Modalities whose values are texts."""

    def resolve(self, names_by_key: Mapping[str, str], setting: str) -> dict[str, str]:
        """Return the modality of each key of a user's setting; an empty name, which leaves the key out, stays empty.

        Raises UnknownNameError for a modality that is not enabled.
        """
        for name in names_by_key.values():
            if name and name not in self.by_name:
                raise UnknownNameError.of(f"modality in {setting}:", name, self.by_name)
        return {key: self.by_name.get(name, "") for key, name in names_by_key.items()}


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """A source's name, modalities, licence, and settings (a frozen dataclass with defaults, or None).

    `classes` names the class ids of modalities whose values are class ids. `agrees` maps a modality's settings to
    settings of the source that have to be equal, such as `{"imu": {"sample_rate": "imu_rate"}}`: they are compared
    before data are made, because the values do not show the rate.
    """

    name: str
    summary: str
    modalities: tuple[str, ...]
    licence: str
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    agrees: Mapping[str, Mapping[str, str]] = field(default_factory=lambda: MappingProxyType({}))
    settings: type | None = None

    def __post_init__(self) -> None:
        if not self.summary or "\n" in self.summary:
            raise PluginError(f"{self.name}: SourceSpec summary: expected one line")
        settings = {setting.name for setting in fields(self.settings)} if self.settings is not None else set[str]()
        if unknown := sorted({setting for keys in self.agrees.values() for setting in keys.values()} - settings):
            raise PluginError(f"{self.name}: SourceSpec agrees: {', '.join(unknown)}: expected settings of the source")
