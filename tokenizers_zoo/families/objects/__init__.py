"""Lists of objects as one sequence: per object, where it is as coordinate tokens, and what it looks like as codes."""

from __future__ import annotations

from tokenizers_zoo.families.objects.grammar import Axis, ObjectGrammar
from tokenizers_zoo.families.objects.modality import ObjectModality
from tokenizers_zoo.families.objects.settings import ObjectSettings, ObjectTokenizerConfig, SpelledSettings
from tokenizers_zoo.families.objects.spelling import Part, Spelling
from tokenizers_zoo.families.objects.visible import box_seen_through

__all__ = [
    "Axis",
    "ObjectGrammar",
    "ObjectModality",
    "ObjectSettings",
    "ObjectTokenizerConfig",
    "Part",
    "SpelledSettings",
    "Spelling",
    "box_seen_through",
]
