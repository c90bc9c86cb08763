"""What families whose tokenizer the common loop trains do alike: hooks that hand on to a task and a tokenizer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from tokenizers_zoo.config import Settings
from tokenizers_zoo.errors import CheckpointError, ConfigError, is_of_the_machine
from tokenizers_zoo.hookspecs import hookimpl
from tokenizers_zoo.spec import Crop, Metric, ModalitySpec, TokenLayout, ValueSpec

if TYPE_CHECKING:
    import numpy as np

    from tokenizers_zoo.data.samples import TrainingSamples
    from tokenizers_zoo.train.task import TokenizerTask


class Codec(Protocol):
    """What `encode` and `decode` are given."""

    def encode(self, values: Any) -> Any:
        """Tokens of a batch of values."""

    def decode(self, tokens: Any) -> Any:
        """Values of a batch of tokens."""


class LoadedCodec(Protocol):
    """A class of codecs that are read from checkpoint folders."""

    def load(self, modality: Any, settings: Settings, folder: Path, device: str) -> Codec:
        """The codec in a folder. Raises CheckpointError where it is damaged, or not what the settings ask for."""


class TrainedModality:
    """A family says what is trained (`task`) and what runs (`codec_class`); hooks about values are its own."""

    settings_class: ClassVar[type[Any]]
    summary: ClassVar[str]
    metrics: ClassVar[tuple[Metric, ...]]
    derived_from: ClassVar[tuple[str, ...]]
    licence: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]]
    codec_name: ClassVar[str]
    """What checkpoints of the family are called."""

    def options(self, settings: Settings) -> Any:
        """The plugin's settings dataclass."""
        return settings.take(self.settings_class)

    def value_spec(self, options: Any) -> ValueSpec:
        """What one value looks like under these settings."""
        raise NotImplementedError

    def task(self, settings: Settings) -> TokenizerTask:
        """What the training loop trains. Imported with torch, so not before it is asked for."""
        raise NotImplementedError

    def codec_class(self, options: Any) -> LoadedCodec:
        """What loads a checkpoint. Imported with torch, so not before it is asked for."""
        raise NotImplementedError

    @property
    def checkpoint_class(self) -> str:
        """The "class" of this plugin's checkpoints."""
        return f"{self.codec_name}/{type(self).__name__}"

    def spec_of(
        self, settings: Settings, *, layout: TokenLayout, vocab_size: int, num_codebooks: int = 1, family: str,
        token_space: str,
    ) -> ModalitySpec:  # fmt: skip
        """The spec with these tokens; all else is the plugin's attributes."""
        return ModalitySpec(
            name=settings.name,
            summary=self.summary,
            value=self.value_spec(self.options(settings)),
            layout=layout,
            vocab_size=vocab_size,
            num_codebooks=num_codebooks,
            family=family,
            derived_from=self.derived_from,
            metrics=self.metrics,
            licence=self.licence,
            aliases=self.aliases,
            token_space=token_space,
        )

    @hookimpl
    def train_tokenizer(self, config: Settings, samples: TrainingSamples, out_dir: Path, seed: int) -> Path:
        """Train the autoencoder in the common loop."""
        from tokenizers_zoo.train.loop import train

        return train(self.task(config), samples, self.options(config).tokenizer, out_dir, seed)

    @hookimpl
    def load_tokenizer(self, checkpoint: Path, device: str, settings: Settings) -> Codec:
        """The trained autoencoder, in eval mode, checked against the settings. Raises CheckpointError."""
        return self.codec_class(self.options(settings)).load(self, settings, checkpoint, device)

    @hookimpl
    def encode(self, tokenizer: Codec, values: Any) -> Any:
        """Tokens of a batch of values: as the layout of the spec says."""
        return tokenizer.encode(values)

    @hookimpl
    def decode(self, tokenizer: Codec, tokens: Any) -> Any:
        """Values of a batch of tokens, whatever they are."""
        return tokenizer.decode(tokens)


@contextlib.contextmanager
def fitting(folder: Path) -> Iterator[None]:
    """Around what builds a model from the checkpoint in `folder`: raises CheckpointError where its parts do not fit."""
    try:
        yield
    except (ConfigError, KeyError, TypeError, RuntimeError) as error:
        if is_of_the_machine(error):
            raise
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{folder}: the weights do not fit the configuration: {reason}") from None


def check_meaning(settings: Settings, folder: Path, meanings: Mapping[str, tuple[Any, Any]]) -> None:
    """Raise CheckpointError where tokens of the checkpoint in `folder` do not mean what the settings ask for.

    `meanings` are, by the setting's name, what the checkpoint has and what is asked for.
    """
    for what, (here, there) in meanings.items():
        if here != there:
            raise CheckpointError(
                f"{settings.name}: the tokenizer at {folder} has {what} {here}, but {settings.origin.at(what)} asks for"
                f" {there}; change the settings, or train another"
            )


def half_mirrored(modality: Any, values: list[Any], settings: Settings, rng: np.random.Generator) -> list[Any]:
    """Values of a batch, each mirrored left to right by the modality's `transform` with a chance of one half.

    As they are where the modality leaves that hook out: it is no view of a picture.
    """
    if modality.transform is None:
        return values
    mirrored = rng.random(len(values)) < 0.5
    return [
        modality.transform(value, crop=Crop(flip=True), settings=settings) if flip else value
        for value, flip in zip(values, mirrored, strict=True)
    ]
