"""Lists of objects as one sequence: coordinates give an object's place, codes of an autoencoder its appearance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np

from tokenizers_zoo.contract.hookspecs import hookimpl
from tokenizers_zoo.contract.pictures import Array
from tokenizers_zoo.contract.spec import Crop, ModalitySpec
from tokenizers_zoo.errors import CheckpointError, ConfigError, DataError
from tokenizers_zoo.families.base import TrainedModality
from tokenizers_zoo.families.images import ValueHooks
from tokenizers_zoo.families.object_tokens import (
    BINS,
    Axis,
    ObjectGrammar,
    SpelledGrammar,
    Spelling,
    levels_of,
    numbers_of,
)
from tokenizers_zoo.families.text import TextModality, map_values, sequence_layout
from tokenizers_zoo.records.config import Checked, Settings
from tokenizers_zoo.records.typed import Interval, PositiveInt
from tokenizers_zoo.tokenizers.autoencoder.codec import ValueCodec
from tokenizers_zoo.tokenizers.autoencoder.config import AutoencoderConfig, QuantizedTrainConfig
from tokenizers_zoo.tokenizers.nn.config import BlockConfig, MlpConfig
from tokenizers_zoo.tokenizers.text_vocab import TextVocabulary, VocabularyConfig

if TYPE_CHECKING:
    import torch

    from tokenizers_zoo.tokenizers.autoencoder.tokenizer import AutoencoderTokenizer
    from tokenizers_zoo.tokenizers.ml4m.architecture import Architecture
Fitted = Mapping[str, Array]
VOCABULARY = TextModality.vocabulary_name


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectTokenizerConfig(QuantizedTrainConfig):
    """The `tokenizer` table of registry.toml: quantizer, encoder, decoder and training, in one flat table.

    `batch_size` counts values; a step trains on all their objects. Plugins derive from it to change defaults.
    """

    kind_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Per kind of quantizer, defaults of its fields."""

    blocks: Literal["mlp", "conv", "vit"] = "mlp"
    """Kind of encoder and decoder: mlp for vectors, conv and vit for pictures."""
    width: PositiveInt | None = None
    """Channels of encoder and decoder. Absent: the default of the kind (256 for mlp)."""
    depth: PositiveInt | None = None
    """Residual blocks. Absent: the default of the kind (2 for mlp)."""
    expansion: PositiveInt = 2
    """mlp: hidden width of a block as a multiple of `width`."""
    heads: PositiveInt | None = None
    """vit: attention heads."""
    patch_size: PositiveInt = 16
    """conv and vit: pixels per code along each side of an object's picture."""
    flip: bool = True
    """Mirror half of the training values left to right."""

    def __post_init__(self) -> None:
        QuantizedTrainConfig.__post_init__(self)
        if self.blocks == "mlp" and self.heads is not None:
            raise ValueError("heads: used by vit only, and blocks is mlp; remove it")
        if self.blocks != "mlp" and self.expansion != 2:
            raise ValueError(f"expansion: used by mlp only, and blocks is {self.blocks}; remove it")
        self.block_config()

    def quantizer_defaults(self) -> Mapping[str, Any]:
        defaults = dict(self.kind_defaults.get(self.quantizer, {}))
        if self.levels:
            defaults.pop("codebook_size", None)
        return defaults

    def block_config(self) -> MlpConfig | BlockConfig:
        if self.blocks == "mlp":
            return MlpConfig(width=self.width or 256, depth=self.depth or 2, expansion=self.expansion)
        return BlockConfig(kind=self.blocks, width=self.width or 0, depth=self.depth or 0, heads=self.heads)

    def augmentation(self) -> dict[str, Any]:
        return {"flip": self.flip}


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectSettings(Checked):
    """Settings that all lists of objects have. Raises ValueError, naming the field, for a value out of range."""

    sentinels: PositiveInt = 64
    """Ids that mark masked spans; the maximum number of spans in one sequence."""
    bins: Annotated[int, Interval("[2, inf)")] = 256
    """Levels of each coordinate."""
    tokenizer: ObjectTokenizerConfig = ObjectTokenizerConfig()


@dataclass(frozen=True, kw_only=True, slots=True)
class SpelledSettings(ObjectSettings):
    """Settings of lists of objects that can also be spelled as text."""

    layout: Literal["codes", "4m"] = "codes"
    """codes: one id per code and level, in a vocabulary of its own. 4m: words and coordinates of the shared vocabulary
    `text`, as in 4M-21 (its `[vocabularies.text]` has to be large enough); `bins` is then 1000, and `sentinels` are
    the vocabulary's."""
    max_length: PositiveInt = 256
    """Layout 4m: maximum number of tokens; the least important objects are dropped."""


class ObjectModality(ValueHooks, TrainedModality):
    """A modality whose values hold any number of objects, as one sequence (see `ObjectGrammar`).

    Coordinate tokens hold some numbers of each object. An autoencoder, trained on the objects' items alone, encodes an
    item of fixed shape. A plugin says how to split a value into objects and join them; `fit` may compute statistics of
    the training values for both.
    """

    family = "objects"
    settings_class: ClassVar[type[Any]] = ObjectSettings
    loss: ClassVar[Literal["smooth_l1", "bce"]]
    """smooth_l1: items are any numbers. bce: items are 0 or 1, and `join` gets logits."""
    standardise = "common"
    statistics_samples = 1024
    published_choices = ("layout",)

    def axes(self, options: Any) -> tuple[Axis, ...]:
        """Return the coordinates of an object. Damaged tokens are read again from the next first coordinate."""
        raise NotImplementedError

    def item_shape(self, options: Any) -> tuple[int, ...]:
        """Return the shape of an item: (numbers,), or (channels, height, width)."""
        raise NotImplementedError

    def max_objects(self, options: Any) -> int:
        """Return the maximum number of objects of one value."""
        raise NotImplementedError

    def spelling(self, options: Any) -> Spelling | None:
        """Return how objects are spelled as text, which needs `SpelledSettings`; None for ids of their own."""
        return None

    def split(self, value: Any, options: Any) -> list[Any]:
        """Return the objects of a value, most important first. Raises InvalidValueError."""
        raise NotImplementedError

    def items(self, objects: Sequence[Any], options: Any) -> Array:
        """Return the items of objects: float32 (objects, *item_shape)."""
        raise NotImplementedError

    def coordinates(self, objects: Sequence[Any], fitted: Fitted, options: Any) -> Array:
        """Return the coordinates (objects, axes) of objects; they are clipped to their axes."""
        raise NotImplementedError

    def join(self, coordinates: Array, items: Array, fitted: Fitted, options: Any) -> Any:
        """Return a value for any coordinates within their axes and any items: the inverse of split."""
        raise NotImplementedError

    def fitted_shapes(self, options: Any) -> dict[str, tuple[int, ...]]:
        """Return names and shapes of the results of `fit`."""
        return {}

    def fit(self, objects: Sequence[Any], options: Any) -> dict[str, Array]:
        """Return statistics of the training values for `coordinates` and `join`; saved with the tokenizer."""
        return {}

    def crop_value(self, value: Any, crop: Crop, options: Any) -> Any:
        """Return the value under the shared crop and flip, at the size of the settings. Raises InvalidValueError."""
        raise NotImplementedError

    # ------------------------------------------------------------------ derived methods

    def model_config(self, options: Any) -> AutoencoderConfig:
        table, shape = options.tokenizer, self.item_shape(options)
        return AutoencoderConfig(
            kind="binary" if self.loss == "bce" else "continuous",
            channels=shape[0],
            patch=(table.patch_size,) * (len(shape) - 1),
            latent_dim=table.latent_dim,
            quantizer=table.quantizer_config(),
            encoder=table.block_config(),
            fitted=self.fitted_shapes(options),
        )

    def grammar(self, options: Any) -> ObjectGrammar:
        """Return the grammar of ids; for spelled objects, of levels and codes only."""
        quantizer = options.tokenizer.quantizer_config()
        spelled = self.spelling(options) is not None
        return ObjectGrammar(
            sentinels=0 if spelled else options.sentinels,
            axes=len(self.axes(options)),
            bins=BINS if spelled else options.bins,
            positions=int(np.prod(self.item_grid(options))),
            codebooks=quantizer.codes_per_position,
            codebook_size=quantizer.codebook_size,
        )

    def item_grid(self, options: Any) -> tuple[int, ...]:
        """Return the grid of an item's latents; empty for vectors."""
        return tuple(side // options.tokenizer.patch_size for side in self.item_shape(options)[1:])

    def meaning(self, options: Any) -> dict[str, Any]:
        axes = [asdict(axis) for axis in self.axes(options)]
        return {**asdict(self.grammar(options)), "axes": axes, "item_shape": list(self.item_shape(options))}

    def published_difference(self, architecture: Architecture, options: Any) -> str | None:
        shape = self.item_shape(options)
        published_shape = (architecture.channels, *(architecture.size if len(shape) > 1 else ()))
        if published_shape != shape:
            return f"it is of {' x '.join(map(str, published_shape))} numbers, expected {' x '.join(map(str, shape))}"
        return None

    def importing(self, settings: Settings) -> Settings:
        """Return the settings with the published text vocabulary, which may be imported after the tokenizer."""
        vocabularies = settings.vocabularies | {VOCABULARY: {"preset": "4m"}}
        return Settings(
            settings.name, settings.table, shared=settings.shared, vocabularies=vocabularies, origin=settings.origin
        )

    def codec(self, settings: Settings, model: AutoencoderConfig | None = None) -> ObjectCodec:
        return ObjectCodec(self, settings, model)

    @hookimpl
    def modality_spec(self, settings: Settings) -> ModalitySpec:
        """Return the spec under these settings. Raises ConfigError for settings that do not fit items or vocabulary."""
        self._check_items(settings)
        options = self.options(settings)
        grammar, spelling, value = self.grammar(options), self.spelling(options), self.value_spec(options)
        contents = f"{grammar.axes} coordinates and {grammar.codes} codes per object"
        if spelling is None:
            layout = sequence_layout(grammar, self.max_objects(options) * grammar.object_length)
            attributes = {"ordered_ids": grammar.ordered_ids, "token_space": contents}
            return self.spec_of(settings, value, layout, grammar.vocab_size, **attributes)
        config = settings.vocabulary(VOCABULARY, VocabularyConfig)
        spelling.check(config, grammar.codebook_size, settings.name, VOCABULARY)
        shared = {"vocabulary": VOCABULARY, "own_tokenizer": True, "ordered_ids": config.ordered_ids}
        layout = sequence_layout(config, options.max_length)
        contents += ", spelled as text"
        return self.spec_of(settings, value, layout, config.size, **shared, token_space=contents)

    def _check_items(self, settings: Settings) -> None:
        """Raise ConfigError if blocks or patch size do not fit the items."""
        options = self.options(settings)
        table, shape, origin = options.tokenizer, self.item_shape(options), settings.origin.inner("tokenizer")
        if (len(shape) == 3) == (table.blocks == "mlp"):
            fitting = "conv or vit" if len(shape) == 3 else "mlp"
            raise ConfigError(
                f"{origin.at('blocks')}: expected {fitting} for items of shape {shape}, got {table.blocks}"
            )
        if any(side % table.patch_size for side in shape[1:]):
            raise ConfigError(
                f"{origin.at('patch_size')}: {table.patch_size} does not divide the {shape[1]} x {shape[2]} items"
            )

    @hookimpl
    def load_tokenizer(  # type: ignore[override]  # hooks are called by name, with the arguments that they take
        self, checkpoint: Path, device: str, settings: Settings, vocabulary: Path
    ) -> ObjectTokenizer:
        """Load the trained autoencoder, and the vocabulary of spelled objects. Raises CheckpointError."""
        options = self.options(settings)
        items = super().load_tokenizer(checkpoint, device, settings)
        tokenizer = ObjectTokenizer(self, settings.name, options, items)
        if (spelling := self.spelling(options)) is not None:
            words = TextVocabulary.load(vocabulary, settings.vocabulary(VOCABULARY, VocabularyConfig))
            try:
                tokenizer.grammar = SpelledGrammar(
                    spelling=spelling, vocabulary=words, plain=tokenizer.plain, max_length=options.max_length
                )
            except CheckpointError as error:
                raise CheckpointError(f"{settings.name}: {vocabulary}: {error}") from None
        return tokenizer

    @hookimpl
    def vocabulary_texts(self, values: Sequence[Any], settings: Settings) -> Sequence[str]:
        """Return the words of spelled objects, once for each value."""
        spelling = self.spelling(self.options(settings))
        if spelling is None:
            return ()
        words = (*(part.word for part in (spelling.head, *spelling.parts)), *spelling.empty)
        return [" ".join(word.strip() for word in words if isinstance(word, str))] * len(values)

    @hookimpl
    def transform(self, value: Any, crop: Crop, settings: Settings) -> Any:
        return self.crop_value(value, crop, self.options(settings))

    def split_values(self, values: Sequence[Any], options: Any, name: str) -> list[list[Any]]:
        """Return the objects of each value, at most `max_objects`. Raises InvalidValueError with the place."""
        arrays = [np.asarray(value.cpu()) if hasattr(value, "cpu") else value for value in values]
        return map_values(arrays, lambda array: self.split(array, options)[: self.max_objects(options)], name)


class ObjectCodec(ValueCodec):
    """The items of objects, as an autoencoder sees them."""

    spare: Array | None = None
    """Training item for batches without an object."""

    def to_network(self, items: torch.Tensor) -> torch.Tensor:
        return items

    def from_network(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs

    def objects_of(self, values: Sequence[Any]) -> list[Any]:
        groups = self.modality.split_values(values, self.options, self.settings.name)
        return [item for group in groups for item in group]

    def fit(
        self, train: Sequence[Any], count: int, rng: np.random.Generator
    ) -> tuple[Iterator[torch.Tensor], dict[str, torch.Tensor]]:
        """Return the items of `count` values, of more if these have no object. Raises DataError if none has."""
        import torch

        objects: list[Any] = []
        for number, index in enumerate(rng.permutation(len(train))):
            if number >= count and objects:
                break
            objects += self.objects_of([train[int(index)]])
        if not objects:
            name = self.settings.name
            raise DataError(f"{name}: there is no object in any of the {len(train)} training values")
        self.spare = self.modality.items(objects[:1], self.options)
        fitted = {
            name: torch.from_numpy(np.asarray(array))
            for name, array in self.modality.fit(objects, self.options).items()
        }
        return iter([torch.from_numpy(self.modality.items(objects, self.options))]), fitted

    def batch(self, values: list[Any], rng: np.random.Generator) -> torch.Tensor:
        """Return the items of all objects of the values; at least one item."""
        import torch

        objects = self.objects_of(self.augment(values, rng))
        items = self.modality.items(objects, self.options) if objects else self.spare
        assert items is not None
        return torch.from_numpy(items)

    def reconstruct(self, tokenizer: AutoencoderTokenizer, values: list[Any]) -> tuple[list[Any], torch.Tensor | None]:
        """Return the values after encode and decode, and all codes, each codebook's at an offset."""
        import torch

        object_tokenizer = ObjectTokenizer(self.modality, self.settings.name, self.options, tokenizer)
        tokens = self.call("encode", tokenizer=object_tokenizer, values=values)
        start = self.modality.grammar(self.options).code_start
        ids = np.concatenate(tokens)
        codes = torch.from_numpy(ids[ids >= start] - start)
        decoded = self.call("decode", tokenizer=object_tokenizer, tokens=tokens)
        return decoded, codes if len(codes) else None


class ObjectTokenizer:
    """Encode values to ids of whole objects, int64 (tokens,), and decode them; `items` encodes the objects' items."""

    def __init__(self, modality: ObjectModality, name: str, options: Any, items: AutoencoderTokenizer) -> None:
        self.modality, self.name, self.options, self.items = modality, name, options, items
        self.module = items.module
        self.axes = modality.axes(options)
        self.plain = modality.grammar(options)
        self.grammar: ObjectGrammar | SpelledGrammar = self.plain
        shapes = self.module.config.fitted
        self.fitted = {name: self.module.get_buffer(f"fitted_{name}").cpu().numpy() for name in shapes}

    def encode(self, values: Sequence[Any]) -> list[Array]:
        import torch

        groups = self.modality.split_values([*values], self.options, self.name)
        objects = [item for group in groups for item in group]
        if not objects:
            empty = np.zeros((0, len(self.axes)), np.int64), np.zeros((0, self.plain.codes), np.int64)
            return [self.grammar.write(*empty) for _ in groups]
        items = torch.from_numpy(self.modality.items(objects, self.options))
        codes = self.items.encode(items).flatten(1).numpy()
        numbers = self.modality.coordinates(objects, self.fitted, self.options)
        levels = levels_of(self.axes, numbers, self.plain.bins)
        cuts = np.cumsum([len(group) for group in groups])[:-1]
        return [self.grammar.write(*part) for part in zip(np.split(levels, cuts), np.split(codes, cuts), strict=True)]

    def decode(self, tokens: Sequence[Any]) -> list[Any]:
        import torch

        read = [self.grammar.read(ids) for ids in tokens]
        codes = np.concatenate([codes for _, codes in read])
        items = np.zeros((0, *self.modality.item_shape(self.options)))
        if len(codes):
            count = self.module.quantizer.codes_per_position
            grid = self.modality.item_grid(self.options)
            shape = (len(codes), *grid, *(() if grid and count == 1 else (count,)))
            items = self.items.decode(torch.from_numpy(codes).reshape(shape)).numpy().astype(np.float64)
        cuts = np.cumsum([len(levels) for levels, _ in read])[:-1]
        return [
            self.modality.join(numbers_of(self.axes, levels, self.plain.bins), part, self.fitted, self.options)
            for (levels, _), part in zip(read, np.split(items, cuts), strict=True)
        ]
