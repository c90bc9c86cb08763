"""Modalities that run over time: series (channels, time) and clips of pictures, as grids of tokens with 1 to 3 axes."""

from __future__ import annotations

from tokenizers_zoo.families.temporal.clips import ClipModality
from tokenizers_zoo.families.temporal.modality import TemporalModality
from tokenizers_zoo.families.temporal.series import SeriesModality
from tokenizers_zoo.families.temporal.settings import (
    ClipSettings,
    ClipTokenizer,
    SeriesSettings,
    TemporalTokenizer,
)

__all__ = [
    "ClipModality",
    "ClipSettings",
    "ClipTokenizer",
    "SeriesModality",
    "SeriesSettings",
    "TemporalModality",
    "TemporalTokenizer",
]
