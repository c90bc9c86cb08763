"""Captions: what a picture shows, in words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers_zoo import hookimpl
from tokenizers_zoo.config import Settings
from tokenizers_zoo.labellers import labelled
from tokenizers_zoo.modality import Crop, ModalitySpec
from zoo_language.captioner import CaptionLabeller
from zoo_language.plain import PlainText, PlainTextSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionSettings(PlainTextSettings):
    """Settings of `caption`."""

    labeller: CaptionLabeller | None = None
    """A network that derives captions from rgb where no source gives them; absent, they are not derived."""


class Caption(PlainText[CaptionSettings]):
    """One text about a picture.

    A mirrored picture's caption says left for right ("to the left of", "on the far right", "the right side"); a crop
    leaves it as it is.
    """

    summary = "What the picture shows, in words"
    settings_class = CaptionSettings

    @hookimpl
    def modality_spec(self, settings: Settings) -> ModalitySpec:
        """The spec under these settings."""
        return labelled(super().modality_spec(settings), settings.take(CaptionSettings).labeller, "rgb")

    @hookimpl
    def derive(self, sample: Mapping[str, Any], settings: Settings) -> str:
        """What the labeller writes of the sample's rgb picture."""
        labeller = settings.take(CaptionSettings).labeller
        assert labeller is not None  # without one nothing is derived
        return labeller.caption(sample["rgb"])

    @hookimpl
    def transform(self, value: str, crop: Crop) -> str:
        """The text, with left and right exchanged where the picture is mirrored."""
        return mirrored(value) if crop.flip else value


_EDGE = r"(?:upper|lower|top|bottom|front|rear|back)"
_BEFORE = rf"(?:(?:far|extreme|near|{_EDGE}) )?"
_SIDES = rf"(?:[Ll]eft|[Rr]ight)(?:,? (?:and|or) (?:the )?(?:{_BEFORE}|{_EDGE}-)(?:left|right))*"
_CENTRE = r"(?:cent(?:re|er)|middle)"
_PLACE = (
    rf"(?:the\s+)?(?:(?:far|extreme|near|{_EDGE}|{_CENTRE})[ -])?"
    rf"(?:(?:left|right)(?:[ -](?:{_CENTRE}|side))?|{_CENTRE})\b"
)
_SIDES_OF_A_PICTURE = re.compile(
    rf"\b[Ff]rom\s+{_PLACE}\s+to\s+{_PLACE}"
    rf"|(?<=\b[Tt]he ){_BEFORE}{_SIDES}\b"
    rf"|\b(?i:{_EDGE})-{_SIDES}\b"
    rf"|\b{_SIDES}(?=(?: of|[ -]sides?|[ -]hand|-?most)\b)"
    r"|\b(?:[Ll]eft to right|[Rr]ight to left)\b"
)
_OTHER = {"left": "right", "right": "left", "Left": "Right", "Right": "Left"}


def mirrored(text: str) -> str:
    """The text with left and right exchanged where they are sides: after "the", "the far", "top-" and the like, in
    "from left to right", before "of", "side", "hand" and "most", and where "and" or "or" joins them to such a one."""

    def exchanged(match: re.Match[str]) -> str:
        return re.sub(r"\b(?:[Ll]eft|[Rr]ight)\b", lambda side: _OTHER[side.group()], match.group())

    return _SIDES_OF_A_PICTURE.sub(exchanged, text)


plugin = Caption()
