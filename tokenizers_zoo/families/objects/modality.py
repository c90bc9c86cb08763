"""The base class of plugins whose value is a list of objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from tokenizers_zoo.config import Settings, recorded
from tokenizers_zoo.errors import CheckpointError, ConfigError, InvalidValueError
from tokenizers_zoo.families.objects.grammar import Axis, ObjectGrammar
from tokenizers_zoo.families.objects.settings import ObjectModelConfig, ObjectSettings
from tokenizers_zoo.families.objects.spelling import BINS, SpelledGrammar, Spelling
from tokenizers_zoo.families.published import PublishedTokenizers
from tokenizers_zoo.families.text import TextModality
from tokenizers_zoo.families.trained import TrainedModality
from tokenizers_zoo.hookspecs import hookimpl
from tokenizers_zoo.spec import Crop, Metric, ModalitySpec, SequenceLayout
from tokenizers_zoo.text_vocab import TextVocabulary, VocabularyConfig

if TYPE_CHECKING:
    import PIL.Image

    from tokenizers_zoo.families.objects.model import ObjectTask, ObjectTokenizer
    from tokenizers_zoo.ml4m import PublishedCheckpoint
    from tokenizers_zoo.ml4m.architecture import Architecture

Array = NDArray[Any]
Fitted = Mapping[str, Array]
VOCABULARY = TextModality.vocabulary_name


class ObjectModality(PublishedTokenizers, TrainedModality):
    """A modality whose value holds any number of objects, and becomes one sequence (see `ObjectGrammar`).

    Of each object some numbers are told by coordinate tokens, and an item of fixed shape by the codes of a VQ
    autoencoder, which is trained on the items alone. A plugin sets the attributes and says how a value is split into
    objects and joined again; `fit` may compute what both need to know of the training values.
    """

    settings_class: ClassVar[type[ObjectSettings]] = ObjectSettings
    codec_name = "ObjectTokenizer"
    loss: ClassVar[Literal["smooth_l1", "bce"]]
    """smooth_l1: items are any numbers; bce: items are 0 or 1, and `join` is given logits."""
    metrics: ClassVar[tuple[Metric, ...]] = ()
    derived_from: ClassVar[tuple[str, ...]] = ()
    aliases: ClassVar[tuple[str, ...]] = ()
    licence: ClassVar[str] = "Apache-2.0"

    def axes(self, options: Any) -> tuple[Axis, ...]:
        """What is told by coordinates; the first is the one that a reader of damaged tokens goes on from."""
        raise NotImplementedError

    def item_shape(self, options: Any) -> tuple[int, ...]:
        """Shape of an item: (numbers,), or (channels, height, width)."""
        raise NotImplementedError

    def max_objects(self, options: Any) -> int:
        """The most objects of one value that become tokens."""
        raise NotImplementedError

    def spelling(self, options: Any) -> Spelling | None:
        """How objects are spelled as text of a shared vocabulary; None where they are ids of a vocabulary of their own.

        The settings are `SpelledSettings` where it is not None.
        """
        return None

    def split(self, value: Any, options: Any) -> list[Any]:
        """The objects of a value, most important first. Raises InvalidValueError where it is not a value."""
        raise NotImplementedError

    def items(self, objects: Sequence[Any], options: Any) -> Array:
        """What is tokenized of objects: float32 (objects, *item_shape)."""
        raise NotImplementedError

    def coordinates(self, objects: Sequence[Any], fitted: Fitted, options: Any) -> Array:
        """The numbers that coordinates tell: (objects, axes); they are clipped to their axes."""
        raise NotImplementedError

    def join(self, coordinates: Array, items: Array, fitted: Fitted, options: Any) -> Any:
        """A value of any coordinates within their axes and any items: the inverse of split."""
        raise NotImplementedError

    def fitted_shapes(self, options: Any) -> dict[str, tuple[int, ...]]:
        """Names and shapes of what `fit` gives."""
        return {}

    def fit(self, objects: Sequence[Any], options: Any) -> dict[str, Array]:
        """What `coordinates` and `join` need to know of the training values, kept with the tokenizer."""
        return {}

    def published_settings(self, architecture: Architecture) -> dict[str, Any]:
        """The settings beside `tokenizer` that a published tokenizer needs."""
        return {}

    def published_fitted(self, options: Any) -> dict[str, Array]:
        """What stands for `fit` with a published tokenizer, whose training values are not at hand: float64."""
        return {}

    def seen(self, value: Any, crop: Crop, options: Any) -> Any:
        """The value seen through the shared crop and flip, at the size of the settings. Raises InvalidValueError."""
        raise NotImplementedError

    def read(self, data: bytes, extension: str, options: Any) -> Any:
        """One value from a file's bytes. Raises ValueError or InvalidValueError."""
        raise NotImplementedError

    def write(self, value: Any, options: Any) -> tuple[bytes, str]:
        """A file's bytes and extension."""
        raise NotImplementedError

    def picture(self, value: Any, options: Any) -> PIL.Image.Image:
        """The value as a picture."""
        raise NotImplementedError

    def measure(self, predicted: Sequence[Any], target: Sequence[Any], options: Any) -> Mapping[str, float]:
        """The numbers of `metrics` over aligned lists."""
        raise NotImplementedError

    # ------------------------------------------------------------------ what follows from it

    def model_config(self, settings: Settings) -> ObjectModelConfig:
        """The model that the settings ask for. Raises ConfigError where encoder and items do not fit."""
        options = self.options(settings)
        table, shape = options.tokenizer, self.item_shape(options)
        where = settings.origin.inner("tokenizer")
        picture = len(shape) == 3
        if picture == (table.blocks == "mlp"):
            fitting = "conv or vit" if picture else "mlp"
            raise ConfigError(
                f"{where.at('blocks')}: expected {fitting} for items of shape {shape}, got {table.blocks}"
            )
        if picture and (shape[1] % table.patch_size or shape[2] % table.patch_size):
            raise ConfigError(
                f"{where.at('patch_size')}: {table.patch_size} does not divide the {shape[1]} x {shape[2]} pixels that"
                " are tokenized of an object"
            )
        return ObjectModelConfig(
            item_shape=shape,
            fitted=self.fitted_shapes(options),
            latent_dim=table.latent_dim,
            quantizer=table.quantizer_config(),
            blocks=table.block_config(),
            patch_size=table.patch_size if picture else 1,
        )

    def grammar(self, settings: Settings) -> ObjectGrammar:
        """The ids and what they mean; of objects that are spelled as text, levels and codes of one object only."""
        options, model = self.options(settings), self.model_config(settings)
        spelled = self.spelling(options) is not None
        return ObjectGrammar(
            sentinels=0 if spelled else options.sentinels,
            axes=len(self.axes(options)),
            bins=BINS if spelled else options.bins,
            positions=model.positions,
            codebooks=model.quantizer.codes_per_position,
            codebook_size=model.quantizer.codebook_size,
        )

    def describe(self, settings: Settings) -> dict[str, Any]:
        """The checkpoint's config for these settings, JSON types."""
        options = self.options(settings)
        return {
            "class": self.checkpoint_class,
            "modality": settings.name,
            "loss": self.loss,
            "flip": options.tokenizer.flip,
            "axes": [asdict(axis) for axis in self.axes(options)],
            "grammar": asdict(self.grammar(settings)),
            "model": recorded(self.model_config(settings)),
        }

    @hookimpl
    def modality_spec(self, settings: Settings) -> ModalitySpec:
        """The spec under these settings."""
        options, grammar = self.options(settings), self.grammar(settings)
        if (spelling := self.spelling(options)) is not None:
            return self._spelled_spec(settings, spelling)
        layout = SequenceLayout(
            max_length=self.max_objects(options) * grammar.object_length,
            end=grammar.end,
            sentinel_start=grammar.sentinel_start,
            num_sentinels=grammar.sentinels,
        )
        token_space = f"per object {grammar.axes} coordinates and {grammar.codes} codes"
        spec = self.spec_of(
            settings, layout=layout, vocab_size=grammar.vocab_size, family="objects", token_space=token_space
        )
        return replace(spec, ordered_ids=grammar.ordered_ids)

    def _spelled_spec(self, settings: Settings, spelling: Spelling) -> ModalitySpec:
        """The spec where objects are spelled. Raises ConfigError where the vocabulary cannot spell them."""
        config, grammar = self.vocabulary_config(settings), self.grammar(settings)
        spelling.check(config, grammar.codebook_size, settings.name, VOCABULARY)
        layout = SequenceLayout(
            max_length=self.options(settings).max_length,
            end=config.end,
            sentinel_start=config.sentinel_start,
            num_sentinels=config.sentinels,
        )
        told = f"per object {grammar.axes} coordinates and {grammar.codes} codes, spelled as text"
        spec = self.spec_of(settings, layout=layout, vocab_size=config.size, family="objects", token_space=told)
        return replace(spec, vocabulary=VOCABULARY, own_tokenizer=True, ordered_ids=config.ordered_ids)

    def vocabulary_config(self, settings: Settings) -> VocabularyConfig:
        """The settings of the shared vocabulary that objects are spelled in."""
        return settings.vocabulary(VOCABULARY, VocabularyConfig)

    @hookimpl
    def load_tokenizer(  # type: ignore[override]  # hooks are called by name, with the arguments that they ask for
        self, checkpoint: Path, device: str, settings: Settings, vocabulary: Path
    ) -> ObjectTokenizer:
        """The trained autoencoder, checked against the settings, with the vocabulary that objects are spelled in.

        Raises CheckpointError.
        """
        from tokenizers_zoo.families.objects.model import ObjectTokenizer

        options = self.options(settings)
        tokenizer = ObjectTokenizer.load(self, settings, checkpoint, device)
        if (spelling := self.spelling(options)) is not None:
            words = TextVocabulary.load(vocabulary, self.vocabulary_config(settings))
            try:
                tokenizer.grammar = SpelledGrammar(
                    spelling=spelling, vocabulary=words, plain=self.grammar(settings), max_length=options.max_length
                )
            except CheckpointError as error:
                raise CheckpointError(f"{settings.name}: {vocabulary}: {error}") from None
        return tokenizer

    @hookimpl
    def vocabulary_texts(self, values: Sequence[Any], settings: Settings) -> Sequence[str]:
        """The words that objects are spelled with, once for each value."""
        spelling = self.spelling(self.options(settings))
        if spelling is None:
            return ()
        words = (*(part.word for part in (spelling.head, *spelling.parts)), *spelling.nothing)
        return [" ".join(word.strip() for word in words if isinstance(word, str))] * len(values)

    def task(self, settings: Settings) -> ObjectTask:
        """The autoencoder of the objects' items."""
        from tokenizers_zoo.families.objects.model import ObjectTask

        return ObjectTask(self, settings)

    def codec_class(self, options: Any) -> type[ObjectTokenizer]:
        """Codecs give ids of whole objects only, int64 (tokens,); the least important beyond the most are left out."""
        from tokenizers_zoo.families.objects.model import ObjectTokenizer

        return ObjectTokenizer

    def import_tokenizer(self, published: PublishedCheckpoint, out_dir: Path, settings: Settings) -> Mapping[str, Any]:
        """See `PublishedTokenizers`."""
        from tokenizers_zoo.families.objects.importing import import_tokenizer

        return import_tokenizer(self, published, out_dir, settings)

    @hookimpl
    def transform(self, value: Any, crop: Crop, settings: Settings) -> Any:
        """The shared crop, flip and resize."""
        return self.seen(value, crop, self.options(settings))

    @hookimpl
    def read_value(self, data: bytes, extension: str, settings: Settings) -> Any:
        """One value from a file's bytes."""
        try:
            return self.read(data, extension, self.options(settings))
        except (ValueError, OSError, SyntaxError) as error:
            raise InvalidValueError(f"{settings.name}: .{extension} file: {error}") from None

    @hookimpl
    def write_value(self, value: Any, settings: Settings) -> tuple[bytes, str]:
        """A file's bytes and extension."""
        return self.write(value, self.options(settings))

    @hookimpl
    def render(self, value: Any, settings: Settings) -> PIL.Image.Image:
        """The value as a picture."""
        return self.picture(value, self.options(settings))

    @hookimpl
    def score(self, predicted: Sequence[Any], target: Sequence[Any], settings: Settings) -> Mapping[str, float]:
        """The metrics over aligned lists."""
        return self.measure(predicted, target, self.options(settings))

    def split_all(self, values: Sequence[Any], options: Any, name: str) -> list[list[Any]]:
        """The objects of each value, at most `max_objects`. Raises InvalidValueError, naming the place in the batch."""
        found = []
        for index, value in enumerate(values):
            try:
                found.append(self.split(_as_given(value), options)[: self.max_objects(options)])
            except InvalidValueError as error:
                place = f" (value {index} of {len(values)})" if len(values) > 1 else ""
                raise InvalidValueError(f"{name}: {error}{place}") from None
        return found


def _as_given(value: Any) -> Any:
    """A row of a tensor as the array that it was made of."""
    return np.asarray(value.cpu()) if hasattr(value, "cpu") else value
