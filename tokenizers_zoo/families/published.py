"""What all families do with a tokenizer that 4M published: it becomes a checkpoint of ours, which remembers its origin.

The checkpoint's config.json keeps the published configuration whole, under ORIGIN, with what our model has no use for.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers_zoo.checkpoint import ORIGIN, load_checkpoint, save_checkpoint
from tokenizers_zoo.config import Origin, Settings
from tokenizers_zoo.errors import CheckpointError, ConfigError
from tokenizers_zoo.hookspecs import hookimpl
from tokenizers_zoo.ml4m import PublishedCheckpoint
from tokenizers_zoo.ml4m.architecture import DIFFUSION, PLAIN, Architecture, read_architecture
from tokenizers_zoo.ml4m.source import PLAIN_METADATA, SAID

if TYPE_CHECKING:
    from torch import Tensor, nn


class PublishedTokenizers:
    """The hooks of a family that takes tokenizers which 4M published."""

    checkpoint_class: str

    def import_tokenizer(self, published: PublishedCheckpoint, out_dir: Path, settings: Settings) -> Mapping[str, Any]:
        """Write a checkpoint of the modality with the published weights, and give the settings that take it.

        Raises CheckpointError where it is no tokenizer of this kind; nothing is written then.
        """
        raise NotImplementedError

    @hookimpl
    def import_published(self, published: PublishedCheckpoint, out_dir: Path, settings: Settings) -> Mapping[str, Any]:
        """Write a published tokenizer as a checkpoint of this modality. Raises CheckpointError."""
        return self.import_tokenizer(published, out_dir, settings)

    @hookimpl
    def export_published(self, checkpoint: Path) -> PublishedCheckpoint:
        """The published tokenizer that a checkpoint came from. Raises CheckpointError."""
        return exported(checkpoint, self.checkpoint_class)


class NotThisKind(CheckpointError):
    """A published tokenizer of another kind of values than the modality has."""

    @classmethod
    def because(cls, published: PublishedCheckpoint, settings: Settings, reason: str) -> NotThisKind:
        """The message: `reason` says what differs."""
        return cls(f"{published.place}: is no tokenizer of {settings.name}: {reason}; import it as another modality")


def settings_of(published: PublishedCheckpoint, settings: Settings, settings_class: type, table: Any) -> Settings:
    """The instance's settings with `table` in place. Raises CheckpointError where its plugin does not take them."""
    fresh = settings.replaced(**table)
    fresh.origin = Origin(table=settings.origin.table)
    try:
        fresh.take(settings_class)
    except ConfigError as error:
        raise NotThisKind.because(published, settings, f"it would need {error}") from None
    return fresh


def write_imported(
    published: PublishedCheckpoint,
    architecture: Architecture,
    module: nn.Module,
    given: Mapping[str, Tensor],
    description: Mapping[str, Any],
    out_dir: Path,
) -> None:
    """Write our checkpoint of a published one, or nothing where they do not fit (CheckpointError).

    `module` may be on the meta device; `given` are the tensors that have no published counterpart.
    """
    from tokenizers_zoo.ml4m.names import places
    from tokenizers_zoo.ml4m.transfer import to_own

    state = module.state_dict()
    book = "quantizer.adapter.vq._codebook"
    filled = {name: tensor for name, tensor in state.items() if name.endswith("_extra_state")}
    if architecture.quantizer.distance == "cosine":  # our sums start at what they would have come to
        rows = architecture.quantizer.codebook_size, architecture.latent_dim
        filled[f"{book}.embed_avg"] = published.tensor("quantize._codebook.embed", *rows)[None].clone()
    tensors = to_own(published, places(architecture), state, {**filled, **given})
    cls = DIFFUSION if architecture.unet is not None else PLAIN
    origin = {"class": cls, "config": dict(published.config), "same_as": dict(published.same_as), **published.said()}
    card = f"# {description['modality']}\n\nImported from a published {cls} of 4M (github.com/apple/ml-4m).\n"
    save_checkpoint(out_dir, tensors, {**description, ORIGIN: origin}, card)


def exported(checkpoint: Path, checkpoint_class: str) -> PublishedCheckpoint:
    """The published tokenizer that `write_imported` was given. Raises CheckpointError for a checkpoint of ours."""
    from tokenizers_zoo.ml4m.names import places
    from tokenizers_zoo.ml4m.transfer import to_published

    tensors, config = load_checkpoint(checkpoint, checkpoint_class)
    if ORIGIN not in config:
        raise CheckpointError(
            f"{checkpoint}: was trained here, and has no published counterpart; only what was imported can be exported"
        )
    origin = config[ORIGIN]
    named = {**origin["config"], "class": origin["class"]}
    architecture = read_architecture(PublishedCheckpoint(config=named, tensors={}, place=str(checkpoint)))
    return PublishedCheckpoint(
        config=origin["config"],
        tensors=to_published(tensors, places(architecture)),
        same_as=origin["same_as"],
        metadata=origin.get(SAID, PLAIN_METADATA),
        place=str(checkpoint),
    )
