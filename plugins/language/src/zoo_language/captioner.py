"""Captions that a network writes for pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from numpy.typing import NDArray

from tokenizers_zoo.config import check_counts
from tokenizers_zoo.errors import DataError
from tokenizers_zoo.labellers import LabellerConfig


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
        """The likeliest words, one by one, for a picture float (3, height, width) in [0, 1].

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
