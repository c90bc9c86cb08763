"""Captions: a description of the picture in words, and as the vectors of a T5 encoder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from tokenizers_zoo import hookimpl
from tokenizers_zoo.contract.pretrained import LabellerConfig, PretrainedConfig
from tokenizers_zoo.contract.spec import Crop
from tokenizers_zoo.errors import DataError
from tokenizers_zoo.families.continuous import EmbeddingsModality, EmbeddingsSettings
from tokenizers_zoo.records.config import Settings
from tokenizers_zoo.records.typed import PositiveInt
from zoo_language.plain import PlainText, PlainTextSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionLabeller(LabellerConfig):
    """A captioner: BLIP (arXiv 2201.12086) or GIT (arXiv 2205.14100)."""

    files: ClassVar[tuple[str, ...]] = (*LabellerConfig.files, "tokenizer_config.json")
    architectures: ClassVar[tuple[str, ...]] = ("BlipForConditionalGeneration", "GitForCausalLM")

    max_words: PositiveInt = 30
    """Most word pieces of a caption."""

    def caption(self, picture: NDArray[Any]) -> str:
        """Generate a caption greedily for a picture float (3, height, width) in [0, 1].

        Raises DataError where there are none.
        """
        network, pixels = self.network, self.inputs(picture)["pixel_values"]
        ids = network.generate(pixel_values=pixels, max_new_tokens=self.max_words, do_sample=False, num_beams=1)
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
    aliases = ("captions", "text", "texts")
    labelled_from = ("rgb",)
    extensions = ("txt",)
    settings_class = CaptionSettings

    @hookimpl
    def derive(self, sample: Mapping[str, Any], settings: Settings) -> str:
        """Generate a caption of the sample's rgb picture."""
        return self.options(settings).labeller.caption(sample["rgb"])

    @hookimpl
    def transform(self, value: str, crop: Crop) -> str:
        """The text, with left and right exchanged where the picture is mirrored."""
        return swap_sides(value) if crop.flip else value


_AREA = r"(?:(?:far|extreme|near|upper|lower|top|bottom|front|rear|back|cent(?:re|er)|middle)[ -])?"
_PLACE = rf"(?:the\s+)?{_AREA}(?:left|right|cent(?:re|er)|middle)\b"
_TO = r"(?:\s+to\s+|-to-)"
_THINGS = r"(?:the|this|that|an?|his|her|its|their) "
_END = r"\s*(?:[.,:;)]|$)"
_IDIOM = rf"(?! (?:to (?!{_THINGS}|left|right)|(?:of )?way|time|choice|track|cue|angles?|now|away|after|before)\b)"
_SIDES = (
    (rf"\b(?:the {_AREA}|(?:upper|lower|top|bottom|front|rear|back)-|at |on )", _IDIOM),
    ("", rf"{_IDIOM}(?: of|[ -]sides?|[ -]hand|-?most)\b|{_TO}(?:left|right)\b(?! {_THINGS})"),
    (rf"\bfrom\s+{_AREA}", rf"(?:[ -](?:cent(?:re|er)|side))?(?:{_TO}{_PLACE}|{_END})"),
    (rf"\bfrom\s+{_PLACE}(?:{_TO}{_PLACE})*{_TO}{_AREA}", ""),
    (r"\(", r"\)"),
    (r"(?:^|[.;,] )", ":"),
    (", ", ","),
)
"""What stands before and after "left" or "right" where it is a side."""
_WORD = re.compile(r"\b(?:left|right)(?=most\b|\b)", re.IGNORECASE)
_ASIDE = (", ", rf"{_END}| (?:and|or|with) (?:{_THINGS}|left|right|(?-i:[A-Z]))")
_JOINED = rf"(?:[ -](?:cent(?:re|er)|side))?(?:,? (?:and|or) |{_TO})(?:the )?{_AREA}"


def swap_sides(text: str) -> str:
    """The text with left and right exchanged where they are sides, by the words before and after them.

    "And", "or" and "to" make sides of both words that they join. Where a text has a ", left,", so is a word behind
    another comma that ends a part of the sentence: ", right."
    """
    words = list(_WORD.finditer(text))
    contexts = (*_SIDES, _ASIDE) if re.search(", (?:left|right),", text) else _SIDES
    sides = [
        any(
            re.search(f"{before}$", text[: word.start()], re.IGNORECASE)
            and re.match(after, text[word.end() :], re.IGNORECASE)
            for before, after in contexts
        )
        for word in words
    ]
    gaps = [text[first.end() : second.start()] for first, second in pairwise(words)]
    for k, gap in enumerate(gaps):
        sides[k + 1] |= sides[k] and re.fullmatch(_JOINED, gap, re.IGNORECASE) is not None
    for k, gap in reversed(list(enumerate(gaps))):
        sides[k] |= sides[k + 1] and re.fullmatch(",? (?:and|or) (?:the )?", gap, re.IGNORECASE) is not None
    remaining = iter(sides)

    def exchanged(word: re.Match[str]) -> str:
        old, side = word.group(), "right" if word.group().lower() == "left" else "left"
        new = side.upper() if old.isupper() else side if old.islower() else side.capitalize()
        return new if next(remaining) else old

    return _WORD.sub(exchanged, text)


@dataclass(frozen=True, kw_only=True, slots=True)
class T5CaptionSettings(EmbeddingsSettings):
    """Settings of `t5_caption`."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "4m": {"network": {"model": "google/t5-v1_1-xxl"}, "dim": 4096, "max_length": 77}
    }

    preset: Literal["4m"] | None = None
    """4m: T5-XXL, as the 4M papers have it."""
    network: PretrainedConfig = field(default=PretrainedConfig(model="google-t5/t5-small"))
    """A T5 encoder with its tokenizer: a hub id or a local folder."""


class T5Caption(EmbeddingsModality):
    """The vectors of a T5 encoder (Raffel et al. 2020, arXiv 1910.10683), one per token of the caption and its end.

    The caption is not mirrored with the picture, so left and right would be swapped.
    """

    summary = "The caption as vectors of a T5 encoder"
    settings_class = T5CaptionSettings
    source = "caption"
    licence = "Apache-2.0; weights of google-t5/t5-small: Apache-2.0"

    def embed(self, value: str, options: T5CaptionSettings) -> npt.NDArray[Any]:
        tokenizer = options.network.transformers("AutoTokenizer")
        encoder = options.network.transformers("T5EncoderModel")
        words = tokenizer(value, truncation=True, max_length=options.max_length, return_tensors="pt")
        vectors = encoder(**words.to(options.network.torch_device)).last_hidden_state[0]
        return vectors.cpu().numpy().astype(np.float32)


plugin = Caption()
t5_caption = T5Caption()
