"""Input-only modalities, standardised and projected linearly by the backbone: pixels in patches, and vectors.

Their tokenizer is a mean and a standard deviation per number, computed from training values.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from tokenizers_zoo.contract.hookspecs import hookimpl
from tokenizers_zoo.contract.layouts import EmbeddingsLayout, PatchesLayout
from tokenizers_zoo.contract.pictures import Array
from tokenizers_zoo.contract.plugins import hook_calls
from tokenizers_zoo.contract.pretrained import PretrainedError
from tokenizers_zoo.contract.samples import spread
from tokenizers_zoo.contract.spec import Metric, ModalitySpec, ValueSpec
from tokenizers_zoo.contract.validation import array_bytes, is_batched
from tokenizers_zoo.errors import CheckpointError, DataError, InvalidValueError, count_of
from tokenizers_zoo.families.base import PluginBase
from tokenizers_zoo.families.images import ImageSettings, ImageValues
from tokenizers_zoo.files.checkpoint import fingerprint, load_checkpoint, save_checkpoint
from tokenizers_zoo.files.published import PublishedCheckpoint
from tokenizers_zoo.files.run_folder import TOKENIZER, RunFolder
from tokenizers_zoo.records.config import Checked, Settings
from tokenizers_zoo.records.typed import PositiveInt
from tokenizers_zoo.tokenizers.autoencoder.codec import stack_values

if TYPE_CHECKING:
    import torch

    from tokenizers_zoo.contract.samples import TrainingSamples
RENDERED_SAMPLES = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class StatisticsConfig(Checked):
    """The `tokenizer` table of tokenizers without training: mean and standard deviation are computed."""

    samples: PositiveInt = 2000
    """Training samples that they are computed from, evenly spread over all."""


@dataclass(frozen=True, slots=True)
class Standardiser:
    """Mean and standard deviation in a shape that fits values, and the settings."""

    mean: Any
    std: Any
    options: Any


@dataclass(frozen=True, slots=True)
class PatchesTokenizer(Standardiser):
    """Pixels to standardised patches and back."""

    modality: PatchesModality

    def networks(self) -> dict[str, Any]:
        """Return encoder and decoder as modules, for export."""
        from tokenizers_zoo.tokenizers.nn.layers import FunctionModule

        return {
            "encoder": FunctionModule(lambda values: self.modality.encode(self, values)),
            "decoder": FunctionModule(lambda tokens: self.modality.decode(self, tokens)),
        }


class StandardisedModality(PluginBase):
    """The hooks of an input-only modality, whose values are standardised per channel or per number of a vector.

    A family gives the other hooks and the methods below.
    """

    _checkpoint_kind = "statistics"
    published_statistics: ClassVar[tuple[Sequence[float], Sequence[float]] | None] = None
    """Mean and standard deviation in the published 4M backbones, if they use these values."""
    modality_spec: Any
    encode: Any
    decode: Any
    render: Any
    score: Any

    def count(self, options: Any) -> int:
        """Return how many means and deviations there are."""
        raise NotImplementedError

    def rows(self, value: Array) -> Array:
        """Return a value as rows of `count` numbers."""
        raise NotImplementedError

    def standardiser(self, mean: torch.Tensor, std: torch.Tensor, options: Any, device: str) -> Standardiser:
        """Return the tokenizer with these float32 statistics."""
        raise NotImplementedError

    def describe(self, settings: Settings) -> dict[str, Any]:
        """Return the checkpoint's config for these settings as JSON types."""
        count = self.count(self.options(settings))
        return {"class": self.checkpoint_class, "modality": settings.name, "numbers": count}

    @hookimpl
    def train_tokenizer(self, config: Settings, samples: TrainingSamples, out_dir: Path, seed: int) -> Path:
        """Compute mean and deviation over training values; `seed` is recorded, and changes nothing."""
        import torch

        from tokenizers_zoo.train.loop import FINAL_SAMPLES
        from tokenizers_zoo.train.report import Evaluation, finish_run

        call, options, train, test = hook_calls(self, config), self.options(config), samples.train, samples.test
        spec: ModalitySpec = call("modality_spec")
        if not len(train) or not len(test):
            raise DataError(f"{spec.name}: training and held-out samples are needed to compute its statistics")
        description, table = self.describe(config), {"samples": options.tokenizer.samples}
        identity = {"model": description, "training": table, "seed": seed, "data": samples.record()}
        with RunFolder(out_dir, TOKENIZER, identity).open() as run:
            if run.finished is not None:
                fingerprint(out_dir)  # raises CheckpointError for damaged weights
                return out_dir
            start = time.perf_counter()
            indices = np.linspace(0, len(train) - 1, min(options.tokenizer.samples, len(train))).astype(int)
            mean, std = map(torch.from_numpy, mean_and_deviation(self.rows(train[int(index)]) for index in indices))
            held_out = [test[index] for index in spread(len(test), FINAL_SAMPLES)]
            tokenizer = self.standardiser(mean, std, options, "cpu")
            batch = stack_values(held_out) if is_batched(spec.value) else held_out
            tokens = call("encode", tokenizer=tokenizer, values=batch)
            reconstructed = [np.asarray(value) for value in call("decode", tokenizer=tokenizer, tokens=tokens)]
            pairs = list(zip(held_out, reconstructed, strict=True))[:RENDERED_SAMPLES]
            evaluation = Evaluation(
                metrics=call("score", predicted=reconstructed, target=held_out, spec=spec),
                pairs=[(call("render", value=v, spec=spec), call("render", value=r, spec=spec)) for v, r in pairs],
                samples=len(held_out),
            )
            tensors = {"mean": mean, "std": std}
            finish_run(run, spec, tensors, description, evaluation, steps=0, seconds=time.perf_counter() - start)
        return out_dir

    @hookimpl
    def load_tokenizer(self, checkpoint: Path, device: str, settings: Settings) -> Standardiser:
        """Load mean and standard deviation. Raises CheckpointError if they have another size."""
        options = self.options(settings)
        tensors, _ = load_checkpoint(checkpoint, self.checkpoint_class)
        shapes, count = {name: tuple(tensor.shape) for name, tensor in tensors.items()}, self.count(options)
        if shapes != {"mean": (count,), "std": (count,)} or not bool((tensors["std"] > 0).all()):
            raise CheckpointError(f"{checkpoint}: expected mean and std of {count} numbers, got {shapes}")
        return self.standardiser(tensors["mean"], tensors["std"], options, device)

    @hookimpl
    def import_published(self, published: PublishedCheckpoint, out_dir: Path, settings: Settings) -> Mapping[str, Any]:
        """Write the statistics that a published backbone normalises its inputs with. Raises CheckpointError.

        Input-only modalities have no published tokenizer.
        """
        import torch

        name = settings.name
        if self.published_statistics is None:
            raise CheckpointError(f"{name}: no published 4M backbone takes these values")
        if not published.is_backbone:
            raise CheckpointError(f"{published.path}: is a tokenizer, and {name}, which is only an input, has none")
        count = self.count(self.options(settings))
        mean, std = (torch.tensor(numbers, dtype=torch.float32).expand(count) for numbers in self.published_statistics)
        card = f"# {name}\n\nMean and deviation at which 4M's published backbones take it (github.com/apple/ml-4m).\n"
        save_checkpoint(out_dir, {"mean": mean.clone(), "std": std.clone()}, self.describe(settings), card)
        return dict(settings.table)


def mean_and_deviation(values: Iterable[Array]) -> tuple[Array, Array]:
    """Return mean and standard deviation of each column over all rows of values `(rows, numbers)`, float32.

    Each standard deviation is at least LEAST_DEVIATION of their mean. Otherwise a column that hardly varies in training
    would dominate a value in which it does vary.
    """
    import torch

    from tokenizers_zoo.tokenizers.autoencoder.task import least_deviation, moments

    mean, deviations = moments(torch.from_numpy(np.array(value, np.float64, order="C")) for value in values)
    deviations = deviations.clamp_min(least_deviation(mean, deviations))
    return mean.numpy().astype(np.float32), deviations.numpy().astype(np.float32)


# ---------------------------------------------------------------- pixels


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchesSettings(ImageSettings):
    """Settings of an image-like modality in continuous patches."""

    tokenizer: StatisticsConfig = field(default_factory=StatisticsConfig)
    dtype: Literal["uint8", "float16", "float32"] = "uint8"
    """How patches are stored. "uint8" is exact for pictures of 8 bits that keep their size; values without bounds take
    float16 in its place."""


class PatchesModality(ImageValues, StandardisedModality):
    """Values (channels, height, width) of kind "continuous" as a grid of patches.

    Numbers of a patch go channel by channel, then row by row.
    """

    family = "continuous"
    token_space = "values at mean 0 and deviation 1 per channel"
    settings_class = PatchesSettings
    input_form_of: ClassVar[str | None] = None
    """The discrete modality that these patches are the input form of, see `ModalitySpec`."""

    def count(self, options: Any) -> int:
        return self.channels

    def rows(self, value: Array) -> Array:
        return value.reshape(len(value), -1).T

    def standardiser(self, mean: torch.Tensor, std: torch.Tensor, options: Any, device: str) -> Standardiser:
        return PatchesTokenizer(mean.to(device)[:, None, None], std.to(device)[:, None, None], options, self)

    @hookimpl
    def modality_spec(self, settings: Settings) -> ModalitySpec:
        options = self.options(settings)
        dtype = options.dtype
        if dtype == "uint8" and (self.low is None or self.high is None):
            dtype = "float16"
        layout = PatchesLayout(shape=options.grid, dim=self.channels * options.patch_size**2, dtype=dtype)
        value, form = self.value_spec(options), self.input_form_of
        return self.spec_of(settings, value, layout, 0, input_form_of=form)

    @hookimpl
    def encode(self, tokenizer: Standardiser, values: torch.Tensor) -> torch.Tensor:
        """Patches float32 (batch, h * w, channels * patch^2) of values (batch, channels, height, width)."""
        from einops import rearrange

        size = tokenizer.options.patch_size
        if values.shape[-2] % size or values.shape[-1] % size:
            raise InvalidValueError(f"{tuple(values.shape[-2:])} pixels are not a multiple of the patch size {size}")
        normalised = (values.float() - tokenizer.mean) / tokenizer.std
        return rearrange(normalised, "b c (h p) (w q) -> b (h w) (c p q)", p=size, q=size).contiguous()

    @hookimpl
    def decode(self, tokenizer: Standardiser, tokens: torch.Tensor) -> torch.Tensor:
        """Return the values of patches (batch, h * w, channels * patch^2) on the configured grid, clipped."""
        from einops import rearrange

        (height, width), size = tokenizer.options.grid, tokenizer.options.patch_size
        if tokens.shape[1] != height * width:
            raise InvalidValueError(f"expected {height * width} patches, got {tokens.shape[1]}")
        planes = rearrange(tokens, "b (h w) (c p q) -> b c (h p) (w q)", h=height, p=size, q=size)
        values = planes * tokenizer.std + tokenizer.mean
        return values if self.low is None and self.high is None else values.clamp(self.low, self.high)


# ---------------------------------------------------------------- vectors


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddingsSettings(Checked):
    """Settings of embeddings. Raises ValueError that names the field for a value out of range."""

    max_length: PositiveInt = 64
    """Maximum number of vectors per sample; the first ones are kept."""
    dim: PositiveInt = 512
    """Numbers per vector, the network's output size."""
    dtype: Literal["float16", "float32"] = "float16"
    """Storage type of values and tokens."""
    tokenizer: StatisticsConfig = field(default_factory=StatisticsConfig)


class EmbeddingsModality(StandardisedModality):
    """Up to `max_length` vectors per sample, from a network that the plugin defines.

    Values are float32 `(vectors, dim)`, at least one vector. A subclass defines `summary`, `settings_class`, `source`
    and `embed`. The shared crop does not change the vectors.
    """

    family = "embeddings"
    token_space = "vectors at mean 0 and deviation 1 per number"
    settings_class = EmbeddingsSettings
    source: ClassVar[str]
    """The modality that the vectors are derived from."""
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            name="cosine",
            higher_is_better=True,
            meaning="mean over the target's vectors of the cosine to the predicted one in its place; 0 without one",
        ),
    )
    published_statistics = ((0.0,), (1.0,))

    def embed(self, value: Any, options: Any) -> Array:
        """Return the vectors `(vectors, dim)` of one value of `source`."""
        raise NotImplementedError

    def count(self, options: Any) -> int:
        return int(options.dim)

    def rows(self, value: Array) -> Array:
        return value

    def standardiser(self, mean: torch.Tensor, std: torch.Tensor, options: Any, device: str) -> Standardiser:
        return Standardiser(mean.numpy(), std.numpy(), options)

    @hookimpl
    def modality_spec(self, settings: Settings) -> ModalitySpec:
        options = self.options(settings)
        value = ValueSpec(shape=("vectors", options.dim), description="one vector or more, in order")
        layout = EmbeddingsLayout(max_length=options.max_length, dim=options.dim, dtype=options.dtype)
        return self.spec_of(settings, value, layout, 0, derived_from=(self.source,))

    @hookimpl
    def derive(self, sample: Mapping[str, Any], settings: Settings) -> Array:
        """Return the first `max_length` vectors of the sample's source. Raises PretrainedError for another `dim`."""
        options = self.options(settings)
        vectors = np.asarray(self.embed(sample[self.source], options), dtype=np.float32)[: options.max_length]
        if vectors.shape[1] != options.dim:
            raise PretrainedError(
                f"{settings.origin.at('dim')}: the network gives vectors of {vectors.shape[1]} numbers, the settings "
                f"say {options.dim}; set dim = {vectors.shape[1]}"
            )
        return vectors

    @hookimpl
    def encode(self, tokenizer: Standardiser, values: Sequence[Array]) -> list[Array]:
        """Return the standardised vectors of each value, float32 `(up to max_length, dim)`."""
        return [(value[: tokenizer.options.max_length] - tokenizer.mean) / tokenizer.std for value in values]

    @hookimpl
    def decode(self, tokenizer: Standardiser, tokens: Sequence[Array]) -> list[Array]:
        return [(np.asarray(item) * tokenizer.std + tokenizer.mean).astype(np.float32) for item in tokens]

    @hookimpl
    def write_value(self, value: Array, settings: Settings) -> tuple[bytes, str]:
        """Write a `.npy` file in the configured dtype. Raises InvalidValueError for numbers out of its range."""
        dtype = self.options(settings).dtype
        with np.errstate(over="ignore"):
            array = value.astype(dtype)
        if not np.isfinite(array).all():
            raise InvalidValueError(f'some numbers are not finite as {dtype}; set dtype = "float32"')
        return array_bytes(array), "npy"

    @hookimpl
    def render(self, value: Array) -> str:
        """Return the number of vectors and their mean length as text."""
        length = np.linalg.norm(value, axis=1).mean()
        return f"{count_of(len(value), 'vector')} of {count_of(value.shape[1], 'number')}, of length {length:.3g}"

    @hookimpl
    def score(self, predicted: Sequence[Array], target: Sequence[Array]) -> dict[str, float]:
        """Return the metrics over all vectors of all targets together."""
        total, count = 0.0, sum(len(truth) for truth in target)
        for guess, truth in zip(predicted, target, strict=True):
            pairs = min(len(guess), len(truth))
            a, b = guess[:pairs].astype(np.float64), truth[:pairs].astype(np.float64)
            lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
            total += float((np.einsum("vd,vd->v", a, b) / np.maximum(lengths, np.finfo(np.float64).tiny)).sum())
        return {"cosine": total / count}
