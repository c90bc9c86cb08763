"""What a data source declares about itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from tokenizers_zoo.errors import PluginError


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """A source's name, what it gives, under which licence, and its settings (a frozen dataclass with defaults).

    `classes` names the class ids per modality where the source's values are class ids, so that a modality declared
    with other classes is noticed before data are made. `settings` None means that the source takes none.
    """

    name: str
    summary: str
    modalities: tuple[str, ...]
    licence: str
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    settings: type | None = None

    def __post_init__(self) -> None:
        if not self.summary or "\n" in self.summary:
            raise PluginError(f"{self.name}: SourceSpec summary: expected one line")
