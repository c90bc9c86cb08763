"""Base class of plugins whose tokenizer is a trained autoencoder: the hooks, and the preprocessing of values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from tokenizers_zoo.contract.hookspecs import hookimpl
from tokenizers_zoo.contract.layouts import GridLayout, TokenLayout
from tokenizers_zoo.contract.spec import Metric, ModalitySpec, ValueSpec
from tokenizers_zoo.records.config import Settings
from tokenizers_zoo.tokenizers.autoencoder.codec import ValueCodec
from tokenizers_zoo.tokenizers.autoencoder.config import AutoencoderConfig, LossName, ValueKind

if TYPE_CHECKING:
    import torch

    from tokenizers_zoo.contract.samples import TrainingSamples
    from tokenizers_zoo.files.published import PublishedCheckpoint
    from tokenizers_zoo.tokenizers.autoencoder.task import AutoencoderTask
    from tokenizers_zoo.tokenizers.autoencoder.tokenizer import AutoencoderTokenizer
    from tokenizers_zoo.tokenizers.ml4m.architecture import Architecture


class PluginBase:
    """Base of all families: attributes and settings of a plugin."""

    family: ClassVar[str]
    summary: ClassVar[str]
    settings_class: ClassVar[Any]
    metrics: ClassVar[tuple[Metric, ...]] = ()
    derived_from: ClassVar[tuple[str, ...]] = ()
    labelled_from: ClassVar[tuple[str, ...]] = ()
    """Modalities that the modality is derived from if the setting `labeller` names a network."""
    licence: ClassVar[str] = "Apache-2.0"
    aliases: ClassVar[tuple[str, ...]] = ()
    extensions: ClassVar[tuple[str, ...]] = ()
    token_space: ClassVar[str] = ""
    """What is tokenized, in words, if it is not the value itself."""
    _checkpoint_kind = ""
    """The first part of `checkpoint_class`; default: the family."""

    def options(self, settings: Settings) -> Any:
        """Return the plugin's settings dataclass."""
        return settings.take(self.settings_class)

    @property
    def checkpoint_class(self) -> str:
        """The "class" of this plugin's checkpoints."""
        return f"{self._checkpoint_kind or self.family}/{type(self).__name__}"

    def spec_of(
        self, settings: Settings, value: ValueSpec, layout: TokenLayout, vocab_size: int, **overrides: Any
    ) -> ModalitySpec:
        """Return a spec with the plugin's attributes; `overrides` replaces them.

        If the settings have a `labeller` that names a network, the modality is derived from `labelled_from`.
        """
        names = ("summary", "family", "derived_from", "metrics", "licence", "aliases", "extensions", "token_space")
        options, attributes = self.options(settings), {name: getattr(self, name) for name in names} | overrides
        if hasattr(options, "labeller"):
            attributes["derive_setting"] = "labeller"
            if options.labeller is not None:
                labels = f"labels by {options.labeller.model}, under that network's licence"
                attributes |= {"derived_from": self.labelled_from, "licence": f"{attributes['licence']}; {labels}"}
        return ModalitySpec(name=settings.name, value=value, layout=layout, vocab_size=vocab_size, **attributes)


def token_grid(options: Any) -> tuple[int, ...]:
    """Return the shape of a sample's tokens: patches along each axis, and codes per patch if it has several.

    `options` has `patch`, and `sizes` or `size`. Raises ValueError for more than three axes.
    """
    sizes = getattr(options, "sizes", None) or options.size
    positions = tuple(size // side for size, side in zip(sizes, options.patch, strict=True))
    quantizer = options.tokenizer.quantizer_config()
    shape: tuple[int, ...] = quantizer.token_shape(positions)
    if len(shape) > 3:
        raise ValueError(
            f"tokenizer.quantizer: {quantizer.kind} gives {quantizer.codes_per_position} codes per place, which would"
            " be a fourth axis; choose a quantizer of one code, such as fsq"
        )
    return shape


class TrainedModality(PluginBase):
    """A modality whose tokenizer is a trained autoencoder.

    A family gives `family`, `value_spec` and `layout`, and settings with `patch` and `tokenizer`. A plugin sets
    attributes. It overrides `to_network` and `from_network` if the network's inputs differ from the values.
    """

    kind: ClassVar[ValueKind] = "continuous"
    channels: ClassVar[int] = 3
    loss: ClassVar[LossName]
    """Default reconstruction loss."""
    standardise: ClassVar[Literal["none", "channel", "common"]] = "channel"
    """Whether inputs are standardised: not at all, each channel by its own deviation, or all by one deviation."""
    class_balance: ClassVar[float] = 0.0
    """Default of `TokenizerConfig.class_balance`."""
    statistics_samples: ClassVar[int] = 256
    """Training values that mean, deviation and class frequencies are computed from."""
    published_scale: ClassVar[tuple[float, float]] = (0.0, 1.0)
    """Mean and deviation of the result of `to_published` for published tokenizers."""
    published_channels: ClassVar[tuple[int, ...]] = ()
    """Channel counts of published tokenizers of this modality; default: as the network inputs."""
    published_choices: ClassVar[tuple[str, ...]] = ()
    """Settings that an import does not change."""

    def value_spec(self, options: Any) -> ValueSpec:
        """Return the spec of values under these settings."""
        raise NotImplementedError

    def layout(self, options: Any) -> TokenLayout:
        """Return the layout of tokens under these settings."""
        return GridLayout(shape=token_grid(options))

    def network_channels(self, options: Any) -> int:
        """Return the channels of the network inputs, or the number of classes."""
        return self.channels

    def to_network(self, values: torch.Tensor, options: Any) -> torch.Tensor:
        """Return network inputs (batch, channels, *axes) for a float batch of values."""
        return values

    def from_network(self, outputs: torch.Tensor, options: Any) -> torch.Tensor:
        """Undo `to_network`; return values within their bounds for any outputs."""
        spec = self.value_spec(options)
        return outputs if spec.low is None and spec.high is None else outputs.clamp(spec.low, spec.high)

    def meaning(self, options: Any) -> dict[str, Any]:
        """Return further settings that decide what tokens mean, as JSON types; tokenizers with others are refused."""
        return {}

    def to_published(self, values: torch.Tensor, options: Any) -> torch.Tensor:
        """Return the inputs of published tokenizers, before `published_scale`."""
        return self.to_network(values, options)

    def from_published(self, outputs: torch.Tensor, options: Any) -> torch.Tensor:
        """Undo `to_published`; return values within their bounds for any outputs."""
        return self.from_network(outputs, options)

    def published_settings(self, architecture: Architecture, options: Any) -> dict[str, Any]:
        """Return the settings besides `tokenizer` that a published tokenizer needs."""
        return {}

    def published_fitted(self, options: Any) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
        """Return the statistics in `AutoencoderConfig.fitted` for published tokenizers, whose data are not at hand."""
        return {}

    def published_difference(self, architecture: Architecture, options: Any) -> str | None:
        """Return why a published tokenizer does not fit these settings, or None."""
        if any(side != architecture.patch_size for side in options.patch):
            return f"its patches are of {architecture.patch_size} cells, and those here of {options.patch[0]}"
        return None

    # ------------------------------------------------------------------ derived methods

    def model_config(self, options: Any) -> AutoencoderConfig:
        """Return the architecture of the autoencoder."""
        table = options.tokenizer
        return AutoencoderConfig(
            kind=self.kind,
            channels=self.network_channels(options),
            patch=options.patch,
            latent_dim=table.latent_dim,
            quantizer=table.quantizer_config(),
            encoder=table.block_config(),
        )

    def codec(self, settings: Settings, model: AutoencoderConfig | None = None) -> ValueCodec:
        """Return the view of values and settings that an autoencoder of `model` gets."""
        return ValueCodec(self, settings, model)

    def task(self, settings: Settings) -> AutoencoderTask:
        from tokenizers_zoo.tokenizers.autoencoder.task import AutoencoderTask, DiffusionTask

        codec = self.codec(settings)
        return AutoencoderTask(codec) if codec.diffusion is None else DiffusionTask(codec)

    @hookimpl
    def modality_spec(self, settings: Settings) -> ModalitySpec:
        options = self.options(settings)
        quantizer, value = options.tokenizer.quantizer_config(), self.value_spec(options)
        codes = quantizer.codes_per_position
        return self.spec_of(settings, value, self.layout(options), quantizer.codebook_size, num_codebooks=codes)

    @hookimpl
    def train_tokenizer(
        self, config: Settings, samples: TrainingSamples, out_dir: Path, seed: int, device: str
    ) -> Path:
        from tokenizers_zoo.train.loop import train

        return train(self.task(config), samples, self.options(config).tokenizer, out_dir, seed, device=device)

    @hookimpl
    def load_tokenizer(self, checkpoint: Path, device: str, settings: Settings) -> AutoencoderTokenizer:
        """Load the trained autoencoder, checked against the settings. Raises CheckpointError."""
        from tokenizers_zoo.tokenizers.autoencoder.tokenizer import AutoencoderTokenizer, load_autoencoder

        codec = self.codec(settings)
        module = load_autoencoder(checkpoint, codec, codec.diffusion)
        return AutoencoderTokenizer(self.codec(settings, module.config), module, device)

    @hookimpl
    def encode(self, tokenizer: Any, values: Any) -> Any:
        return tokenizer.encode(values)

    @hookimpl
    def decode(self, tokenizer: Any, tokens: Any) -> Any:
        return tokenizer.decode(tokens)

    def importing(self, settings: Settings) -> Settings:
        """Return the settings that a published tokenizer is imported under."""
        return settings

    @hookimpl
    def import_published(self, published: PublishedCheckpoint, out_dir: Path, settings: Settings) -> Mapping[str, Any]:
        """Write a published tokenizer as a checkpoint, and return the settings for it. Raises CheckpointError."""
        from tokenizers_zoo.tokenizers.autoencoder.importer import import_tokenizer

        return import_tokenizer(self, published, out_dir, settings)

    @hookimpl
    def export_published(self, checkpoint: Path) -> PublishedCheckpoint:
        """Return the published tokenizer that a checkpoint was imported from. Raises CheckpointError."""
        from tokenizers_zoo.tokenizers.autoencoder.importer import export_tokenizer

        return export_tokenizer(checkpoint, self.checkpoint_class)
