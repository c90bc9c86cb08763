"""Tokenizers of input-only modalities: mean and standard deviation, stored as a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tokenizers_zoo.checkpoint import check_weights, load_checkpoint, load_config, save_checkpoint
from tokenizers_zoo.config import check_counts
from tokenizers_zoo.data.samples import spread
from tokenizers_zoo.errors import CheckpointError, DataError
from tokenizers_zoo.ml4m import PublishedCheckpoint
from tokenizers_zoo.spec import ModalitySpec

if TYPE_CHECKING:
    import torch

    from tokenizers_zoo.data.samples import TrainingSamples
    from tokenizers_zoo.train.report import Evaluation

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class StatisticsConfig:
    """The `tokenizer` table of tokenizers without training: mean and standard deviation are computed."""

    samples: int = 2000
    """Training samples that they are computed from, evenly spread over all."""

    def __post_init__(self) -> None:
        check_counts(self, "samples")


def fit_statistics(
    spec: ModalitySpec,
    description: Mapping[str, Any],
    config: StatisticsConfig,
    samples: TrainingSamples,
    out_dir: Path,
    seed: int,
    compute: Callable[[Iterator[Any]], tuple[Array, Array]],
    evaluate: Callable[[Array, Array, Sequence[Any]], Evaluation],
) -> Path:
    """Write the checkpoint of `compute(training values)`, mean and deviation, into `out_dir`, which is returned.

    `description` says which model this is; `evaluate(mean, deviation, held-out values)` scores it, on FINAL_SAMPLES at
    most, evenly spread. `seed` is recorded, and changes nothing. Raises FolderError if `out_dir` holds another
    run, DataError without samples.
    """
    import torch

    from tokenizers_zoo.run_folder import TOKENIZER, RunFolder
    from tokenizers_zoo.train.loop import FINAL_SAMPLES
    from tokenizers_zoo.train.report import finish_run

    train, test = samples.train, samples.test
    if not len(train) or not len(test):
        raise DataError(f"{spec.name}: training and held-out samples are needed to compute its statistics")
    table = {"samples": config.samples}
    identity = {"model": dict(description), "training": table, "seed": seed, "data": samples.record()}
    with RunFolder(out_dir, TOKENIZER, identity).open() as run:
        if run.finished is not None:
            check_weights(out_dir, load_config(out_dir))
            return out_dir
        start = time.perf_counter()
        chosen = np.linspace(0, len(train) - 1, min(config.samples, len(train))).astype(int)
        mean, std = compute(train[int(index)] for index in chosen)
        evaluation = evaluate(mean, std, [test[index] for index in spread(len(test), FINAL_SAMPLES)])
        tensors = {"mean": torch.from_numpy(mean), "std": torch.from_numpy(std)}
        finish_run(run, spec, tensors, description, evaluation, steps=0, seconds=time.perf_counter() - start)
    return out_dir


def import_statistics(
    published: PublishedCheckpoint, description: Mapping[str, Any], mean: Array, std: Array, out_dir: Path
) -> None:
    """Write a checkpoint with the mean and standard deviation that a published backbone normalises its inputs with.

    Raises CheckpointError if `published` is not a backbone: input-only modalities have no published tokenizer.
    """
    import torch

    name = description["modality"]
    if not published.is_backbone:
        raise CheckpointError(f"{published.place}: is a tokenizer, and {name}, which is only an input, has none")
    tensors = {"mean": torch.from_numpy(mean), "std": torch.from_numpy(std)}
    card = f"# {name}\n\nMean and deviation at which 4M's published backbones take it (github.com/apple/ml-4m).\n"
    save_checkpoint(out_dir, tensors, description, card)


def load_statistics(checkpoint: Path, expected_class: str, count: int, what: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Load mean and deviation. Raises CheckpointError unless they have `count` entries (`what` in messages)."""
    tensors, _ = load_checkpoint(checkpoint, expected_class)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if shapes != {"mean": (count,), "std": (count,)} or not bool((tensors["std"] > 0).all()):
        raise CheckpointError(f"{checkpoint}: expected mean and std of {count} {what}, got {shapes}")
    return tensors["mean"], tensors["std"]


def mean_and_deviation(values: Iterable[Array]) -> tuple[Array, Array]:
    """Return mean and standard deviation of each column over all rows of values `(rows, numbers)`, float32.

    Each standard deviation is at least LEAST_DEVIATION of their mean. Otherwise a column that hardly varies in training
    would dominate a value in which it does vary.
    """
    import torch

    from tokenizers_zoo.autoencoder.statistics import least_deviation, moments

    batches = (torch.from_numpy(np.array(value, np.float64, order="C")) for value in values)
    mean, deviations = moments(batches)
    deviations = deviations.clamp_min(least_deviation(mean, deviations))
    return mean.numpy().astype(np.float32), deviations.numpy().astype(np.float32)
