"""Captions: a description of the picture in words, and as the vectors of a T5 encoder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from tokenizers_zoo import hookimpl
from tokenizers_zoo.config import Settings, check_counts
from tokenizers_zoo.errors import DataError
from tokenizers_zoo.families.continuous import EmbeddingsModality, EmbeddingsSettings
from tokenizers_zoo.pretrained import LabellerConfig, PretrainedConfig
from tokenizers_zoo.spec import Crop
from zoo_language.plain import PlainText, PlainTextSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionLabeller(LabellerConfig):
    """A captioner: BLIP (arXiv 2201.12086) or GIT (arXiv 2205.14100)."""

    files: ClassVar[tuple[str, ...]] = (*LabellerConfig.files, "tokenizer_config.json")
    architectures: ClassVar[tuple[str, ...]] = ("BlipForConditionalGeneration", "GitForCausalLM")

    max_words: int = 30
    """Most word pieces of a caption."""

    def __post_init__(self) -> None:
        LabellerConfig.__post_init__(self)
        check_counts(self, "max_words")

    def caption(self, picture: NDArray[Any]) -> str:
        """Generate a caption greedily for a picture float (3, height, width) in [0, 1].

        Raises DataError where there are none.
        """
        import torch

        network, inputs = self.network, self.inputs(picture)
        with torch.inference_mode():
            ids = network.generate(
                pixel_values=inputs["pixel_values"], max_new_tokens=self.max_words, do_sample=False, num_beams=1
            )
        text = self.transformers("AutoTokenizer").decode(ids[0], skip_special_tokens=True)
        if not text.strip():
            raise DataError(f"{self.model}: has no words for this picture")
        return " ".join(text.split())


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
    def derive(self, sample: Mapping[str, Any], settings: Settings) -> str:
        """Generate a caption of the sample's rgb picture."""
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
_SIDE = rf"(?:(?:far|extreme|near|{_EDGE}|{_CENTRE})[ -])?(?:left|right)(?:[ -](?:{_CENTRE}|side))?"
_PLACE = rf"(?:the\s+)?(?:{_SIDE}|{_CENTRE})\b"
_TO = r"(?:\s+to\s+|-to-)"
_THINGS = r"(?:the|this|that|an?|his|her|its|their) "
_NOT_A_SIDE = rf"(?! (?:to (?!{_THINGS}|left|right)|of way|way|time|choice|track|thing))"
_BARE = r"(?:left|right)(?:,? (?:and|or) (?:left|right))*"
_NO_IDIOM = r"(?! (?:angles?|now|away|after|before|time|track|cue|to)\b)"
_SIDES_OF_A_PICTURE = (
    rf"\b(?i:from\s+{_PLACE}(?:{_TO}{_PLACE})+)"
    rf"|\b(?i:left{_TO}right|right{_TO}left)\b(?! {_THINGS})"
    rf"|(?<=\b[Ff]rom ){_BEFORE}(?:left|right)(?=\s*(?:[.,:;)]|$))"
    rf"|(?<=\b[Tt]he ){_BEFORE}{_SIDES}\b{_NOT_A_SIDE}"
    rf"|\b(?i:{_EDGE})-{_SIDES}\b"
    rf"|\b{_SIDES}(?=(?: of|[ -]sides?|[ -]hand|-?most)\b){_NOT_A_SIDE}"
    rf"|(?<=\b(?:[Aa]t|[Oo]n) ){_BARE}\b{_NO_IDIOM}"
    r"|(?<=\()(?i:left|right)(?=\))"
    r"|(?<=, )(?:left|right)(?=,)"
    r"|(?:^|(?<=[.;,] ))(?i:left|right)(?=:)"
)
_ASIDE = r", (?:left|right),"
_ASIDES = rf"{_SIDES_OF_A_PICTURE}|(?<=, ){_BARE}(?=\s*(?:[.,:;)]|$)| (?:and|or|with) (?:{_THINGS}|[A-Z]))"
_OTHER = {"left": "right", "right": "left"}


def mirrored(text: str) -> str:
    """The text with left and right exchanged where they are sides.

    That is after "the", "the far", "top-" and the like, in "from left to right", "(left)", ", left," and "Left: ",
    before "of", "side", "hand" and "most", after "at" and "on", and where "and" or "or" joins them to such a one. Where
    a text has a ", left,", so is what stands behind another comma and ends a part of the sentence: ", right."
    """

    def other(match: re.Match[str]) -> str:
        word = match.group()
        side = _OTHER[word.lower()]
        return side if word.islower() else side.upper() if word.isupper() else side.capitalize()

    def exchanged(match: re.Match[str]) -> str:
        return re.sub(r"\b(?:left|right)\b", other, match.group(), flags=re.IGNORECASE)

    return re.sub(_ASIDES if re.search(_ASIDE, text) else _SIDES_OF_A_PICTURE, exchanged, text)


@dataclass(frozen=True, kw_only=True, slots=True)
class T5Network(PretrainedConfig):
    """A T5 encoder with its tokenizer."""

    model: str = "google-t5/t5-small"


@dataclass(frozen=True, kw_only=True, slots=True)
class T5CaptionSettings(EmbeddingsSettings):
    """Settings of `t5_caption`."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "4m": {"network": {"model": "google/t5-v1_1-xxl"}, "dim": 4096, "max_length": 77}
    }

    preset: Literal["4m"] | None = None
    """4m: T5-XXL, as the 4M papers have it."""
    network: T5Network = T5Network()
    """The encoder: a hub id or a local folder."""


class T5Caption(EmbeddingsModality):
    """The vectors of a T5 encoder (Raffel et al. 2020, arXiv 1910.10683), one per token of the caption and its end.

    The caption is not mirrored with the picture, so left and right would be swapped.
    """

    summary = "The caption as vectors of a T5 encoder"
    settings_class = T5CaptionSettings
    source = "caption"
    licence = "Apache-2.0; weights of google-t5/t5-small: Apache-2.0"

    def embed(self, value: str, options: T5CaptionSettings) -> npt.NDArray[Any]:
        import torch

        tokenizer = options.network.transformers("AutoTokenizer")
        encoder = options.network.transformers("T5EncoderModel")
        words = tokenizer(value, truncation=True, max_length=options.max_length, return_tensors="pt")
        with torch.inference_mode():
            vectors = encoder(**words.to(options.network.torch_device)).last_hidden_state[0]
        return vectors.cpu().numpy().astype(np.float32)


plugin = Caption()
t5_caption = T5Caption()
