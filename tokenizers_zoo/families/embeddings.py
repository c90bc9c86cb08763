"""Input-only modalities: up to `max_length` vectors per sample, standardised and projected by the backbone.

A plugin defines the network and its source modality; this module implements the hooks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from tokenizers_zoo.config import Settings, check_counts
from tokenizers_zoo.errors import InvalidValueError, count_of
from tokenizers_zoo.families.statistics import (
    StatisticsConfig,
    fit_statistics,
    import_statistics,
    load_statistics,
    mean_and_deviation,
)
from tokenizers_zoo.hookspecs import hookimpl
from tokenizers_zoo.ml4m import PublishedCheckpoint
from tokenizers_zoo.pretrained import PretrainedError
from tokenizers_zoo.spec import EmbeddingsLayout, Metric, ModalitySpec, ValueSpec
from tokenizers_zoo.validation import array_bytes, array_of

if TYPE_CHECKING:
    from tokenizers_zoo.data.samples import TrainingSamples

Vectors = npt.NDArray[Any]
SHOWN = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddingsSettings:
    """Settings of embeddings. Raises ValueError that names the field for a value out of range."""

    max_length: int = 64
    """Maximum number of vectors per sample; the first ones are kept."""
    dim: int = 512
    """Numbers per vector, the network's output size."""
    dtype: Literal["float16", "float32"] = "float16"
    """Storage type of values and tokens."""
    tokenizer: StatisticsConfig = field(default_factory=StatisticsConfig)

    def __post_init__(self) -> None:
        check_counts(self, "max_length", "dim")


S = TypeVar("S", bound=EmbeddingsSettings)


@dataclass(frozen=True, slots=True)
class EmbeddingsTokenizer:
    """Mean and standard deviation of each number, float32 `(dim,)`, and the maximum number of vectors per sample."""

    mean: Vectors
    std: Vectors
    max_length: int


class EmbeddingsModality(Generic[S]):
    """The hooks of one modality of vectors; `S` is its settings, a frozen dataclass.

    Values are float32 `(vectors, dim)`, at least one vector. A subclass defines `summary`, `settings_class`, `source`
    and `embed`. The shared crop does not change the vectors.
    """

    summary: ClassVar[str]
    settings_class: type[S]
    source: ClassVar[str]
    """The modality that the vectors are derived from."""
    licence: ClassVar[str] = "Apache-2.0"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            name="cosine",
            higher_is_better=True,
            meaning="mean over the target's vectors of the cosine to the predicted one in its place; 0 without one",
        ),
    )

    def embed(self, value: Any, options: S) -> Vectors:
        """Return the vectors `(vectors, dim)` of one value of `source`."""
        raise NotImplementedError

    @property
    def checkpoint_class(self) -> str:
        """The "class" of this plugin's checkpoints."""
        return f"EmbeddingsTokenizer/{type(self).__name__}"

    def describe(self, settings: Settings) -> dict[str, Any]:
        """Return the checkpoint's config for these settings as JSON types."""
        return {
            "class": self.checkpoint_class,
            "modality": settings.name,
            "dim": settings.take(self.settings_class).dim,
        }

    @hookimpl
    def modality_spec(self, settings: Settings) -> ModalitySpec:
        """Return the spec under these settings."""
        options = settings.take(self.settings_class)
        return ModalitySpec(
            name=settings.name,
            summary=self.summary,
            value=ValueSpec(shape=("vectors", options.dim), description="one vector or more, in order"),
            layout=EmbeddingsLayout(max_length=options.max_length, dim=options.dim, dtype=options.dtype),
            vocab_size=0,
            family="embeddings",
            derived_from=(self.source,),
            metrics=self.metrics,
            licence=self.licence,
            token_space="vectors at mean 0 and deviation 1 per number",
        )

    @hookimpl
    def derive(self, sample: Mapping[str, Any], settings: Settings) -> Vectors:
        """Return the first `max_length` vectors of the sample's source. Raises PretrainedError for another `dim`."""
        options = settings.take(self.settings_class)
        vectors = np.asarray(self.embed(sample[self.source], options), dtype=np.float32)[: options.max_length]
        if vectors.shape[1] != options.dim:
            raise PretrainedError(
                f"{settings.origin.at('dim')}: the network gives vectors of {vectors.shape[1]} numbers, the settings "
                f"say {options.dim}; set dim = {vectors.shape[1]}"
            )
        return vectors

    @hookimpl
    def train_tokenizer(self, config: Settings, samples: TrainingSamples, out_dir: Path, seed: int) -> Path:
        """Compute mean and standard deviation over training vectors; `seed` is recorded but has no effect."""
        from tokenizers_zoo.train.report import Evaluation

        options = config.take(self.settings_class)

        def evaluate(mean: Vectors, std: Vectors, held_out: Sequence[Vectors]) -> Evaluation:
            tokenizer = EmbeddingsTokenizer(mean, std, options.max_length)
            back = self.decode(tokenizer, self.encode(tokenizer, held_out))
            shown = [(self.render(v), self.render(b)) for v, b in zip(held_out[:SHOWN], back[:SHOWN], strict=True)]
            return Evaluation(metrics=self.score(back, held_out), shown=shown, samples=len(held_out))

        spec, table = self.modality_spec(config), options.tokenizer
        return fit_statistics(spec, self.describe(config), table, samples, out_dir, seed, mean_and_deviation, evaluate)

    @hookimpl
    def load_tokenizer(self, checkpoint: Path, settings: Settings) -> EmbeddingsTokenizer:
        """Load mean and standard deviation. Raises CheckpointError if they have another size."""
        options = settings.take(self.settings_class)
        mean, std = load_statistics(checkpoint, self.checkpoint_class, options.dim, "numbers")
        return EmbeddingsTokenizer(mean.numpy(), std.numpy(), options.max_length)

    @hookimpl
    def import_published(self, published: PublishedCheckpoint, out_dir: Path, settings: Settings) -> Mapping[str, Any]:
        """Write mean 0 and deviation 1: published 4M backbones take unscaled vectors. Raises CheckpointError."""
        dim = settings.take(self.settings_class).dim
        mean, std = np.zeros(dim, np.float32), np.ones(dim, np.float32)
        import_statistics(published, self.describe(settings), mean, std, out_dir)
        return dict(settings.own)

    @hookimpl
    def encode(self, tokenizer: EmbeddingsTokenizer, values: Sequence[Vectors]) -> list[Vectors]:
        """Return the standardised vectors of each value, float32 `(up to max_length, dim)`."""
        return [(value[: tokenizer.max_length] - tokenizer.mean) / tokenizer.std for value in values]

    @hookimpl
    def decode(self, tokenizer: EmbeddingsTokenizer, tokens: Sequence[Vectors]) -> list[Vectors]:
        """Return the unstandardised vectors."""
        return [(np.asarray(item) * tokenizer.std + tokenizer.mean).astype(np.float32) for item in tokens]

    @hookimpl
    def read_value(self, data: bytes, extension: str, settings: Settings) -> Vectors:
        """Read a `.npy` file of floats `(vectors, dim)`. Raises InvalidValueError."""
        if extension != "npy":
            raise InvalidValueError(f"expected a .npy file, got .{extension}")
        dim = settings.take(self.settings_class).dim
        try:
            vectors = array_of(data)
        except (ValueError, OSError) as error:
            raise InvalidValueError(f"damaged .npy file: {error}") from error
        if vectors.dtype.kind != "f" or vectors.ndim != 2 or vectors.shape[1] != dim:
            got = f"{vectors.dtype} {vectors.shape}"
            raise InvalidValueError(f"expected floats (vectors, {dim}), got {got}")
        with np.errstate(over="ignore"):  # too large numbers become infinite, which is rejected
            return vectors.astype(np.float32)

    @hookimpl
    def write_value(self, value: Vectors, settings: Settings) -> tuple[bytes, str]:
        """Write a `.npy` file in the configured dtype. Raises InvalidValueError for numbers out of its range."""
        dtype = settings.take(self.settings_class).dtype
        with np.errstate(over="ignore"):
            stored = value.astype(dtype)
        if not np.isfinite(stored).all():
            raise InvalidValueError(f'some numbers are not finite as {dtype}; set dtype = "float32"')
        return array_bytes(stored), "npy"

    @hookimpl
    def render(self, value: Vectors) -> str:
        """Return the number of vectors and their mean length as text."""
        length = np.linalg.norm(value, axis=1).mean()
        return f"{count_of(len(value), 'vector')} of {count_of(value.shape[1], 'number')}, of length {length:.3g}"

    @hookimpl
    def score(self, predicted: Sequence[Vectors], target: Sequence[Vectors]) -> dict[str, float]:
        """Return the metrics over all vectors of all targets together."""
        total, count = 0.0, sum(len(truth) for truth in target)
        for guess, truth in zip(predicted, target, strict=True):
            pairs = min(len(guess), len(truth))
            a, b = guess[:pairs].astype(np.float64), truth[:pairs].astype(np.float64)
            lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
            total += float((np.einsum("vd,vd->v", a, b) / np.maximum(lengths, np.finfo(np.float64).tiny)).sum())
        return {"cosine": total / count}
