"""Sampling of token ids: number per step, temperature, filters, noise, and guidance by several forward passes."""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from tokenizers_zoo.errors import ConfigError
from tokenizers_zoo.records.config import Checked
from tokenizers_zoo.records.typed import Interval
from zoo_backbone.model.config import expect

Schedule = Literal["cosine", "linear", "s-curve"]
TemperatureSchedule = Literal["constant", "linear", "inverse"]

INVERSE_RANGE = 100
"""The "inverse" curve runs from 1 to this number."""
IDS, CONFIDENCE, ORDER = range(3)
"""Purposes of noise: sampling ids, perturbing confidences, ordering cells."""
COLDEST = 1e-6
"""At lower temperatures the most likely id is taken: the divided logits would overflow."""


def tokens_per_step(count: int, steps: int, schedule: Schedule) -> list[int]:
    """Return how many of `count` tokens each step decides: at least 1, so at most `count` steps.

    After step t of T, cosine leaves cos(pi/2 * t/T) of the tokens masked (MaskGIT, arXiv 2202.04200, section 3.3),
    linear 1 - t/T, and s-curve (1 + cos(pi * t/T)) / 2, which 4M's code calls cosine.
    """
    steps = min(steps, count)
    masked = [count]
    for step in range(1, steps + 1):
        done = step / steps
        if schedule == "cosine":
            share = math.cos(math.pi / 2 * done)
        else:
            share = 1 - done if schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
        # At least one token for this step, and one for each step to come.
        masked.append(min(max(math.floor(count * share + 1e-9), steps - step), masked[-1] - 1))
    return [before - after for before, after in itertools.pairwise(masked)]


def temperatures(counts: Sequence[int], start: float, end: float, schedule: TemperatureSchedule) -> list[float]:
    """Return the temperature of each step, where step t decides `counts[t]` tokens.

    "linear" goes from `start` at the first step to `end` at the last. "inverse" is the published schedule of 4M (there
    "onex" with power 0.5): `end + (start - end) * left * curve`, where `left` is the share of tokens that is masked
    after the step and `curve` is 1/sqrt(x), scaled to [0, 1]; x takes even steps from 1 to 100, one per token.
    """
    if schedule == "constant":
        return [start] * len(counts)
    if schedule == "linear":
        last = max(len(counts) - 1, 1)
        return [start + (end - start) * step / last for step in range(len(counts))]
    total, least = sum(counts), INVERSE_RANGE**-0.5
    result = []
    for step, decided in enumerate(itertools.accumulate(counts)):
        x = 1 + (INVERSE_RANGE - 1) * step / max(total - 1, 1)
        curve = (x**-0.5 - least) / (1 - least)
        result.append(end + (start - end) * (1 - decided / total) * curve)
    return result


class Noise:
    """Uniform numbers for one target of a batch: a function of seed, sample, target, purpose and step (Philox).

    A sample gets the same numbers in any batch.
    """

    def __init__(self, seed: int, samples: Sequence[int], target: str) -> None:
        self.seed = seed
        self.samples = list(samples)
        self.target = zlib.crc32(target.encode())

    def uniform(self, purpose: int, step: int, count: int) -> Tensor:
        """Return float32 `samples count` in [0, 1)."""
        seeds = (np.random.SeedSequence([self.seed, row, self.target, purpose, step]) for row in self.samples)
        rows = [np.random.Generator(np.random.Philox(seed)).random(count, dtype=np.float32) for seed in seeds]
        return torch.from_numpy(np.stack(rows))

    def gumbel(self, purpose: int, step: int, count: int) -> Tensor:
        """Return float32 `samples count` of the standard Gumbel distribution."""
        epsilon = torch.finfo(torch.float32).eps / 2
        return -torch.log(-torch.log(self.uniform(purpose, step, count).clamp(epsilon, 1 - epsilon)))


def filtered(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Return logits `... ids` with -inf outside the `top_k` most likely ids (0: all) and outside the nucleus.

    The nucleus is the smallest set of ids whose probabilities, measured after top-k, sum to at least `top_p` (arXiv
    1904.09751, section 3.1). Ties with the last id are kept.
    """
    if 0 < top_k < logits.shape[-1]:
        last = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < last, -torch.inf)
    if top_p < 1:
        ordered = logits.sort(dim=-1, descending=True).values
        shares = ordered.softmax(dim=-1)
        inside = shares.cumsum(dim=-1) - shares < top_p
        last = ordered.masked_fill(~inside, torch.inf).amin(dim=-1, keepdim=True)
        logits = logits.masked_fill(logits < last, -torch.inf)
    return logits


def tempered(logits: Tensor, temperature: float, top_k: int, top_p: float, filter_first: bool = False) -> Tensor:
    """Return logits `... ids` divided by a temperature above 0 and filtered, in this order unless `filter_first`."""
    if filter_first:
        return filtered(logits, top_k, top_p) / temperature
    return filtered(logits / temperature, top_k, top_p)


def rising(sums: Tensor, shares: Tensor) -> Tensor:
    """Return cumulative sums `... ids` that never fall, and rise only where `shares` is above 0.

    Parallel sums on a GPU violate both by rounding errors.
    """
    return sums.masked_fill(shares == 0, 0).cummax(dim=-1).values


def draw(
    logits: Tensor, uniform: Tensor, temperature: float, top_k: int, top_p: float, filter_first: bool = False
) -> Tensor:
    """Return ids `... draws` for logits `... ids` and uniform numbers `... draws`, by inverting the distribution.

    Temperature 0 takes the most likely id.
    """
    if temperature < COLDEST:
        return logits.argmax(dim=-1, keepdim=True).expand_as(uniform)
    shares = tempered(logits, temperature, top_k, top_p, filter_first).softmax(dim=-1)
    cumulative = shares.cumsum(dim=-1)
    if cumulative.device.type != "cpu":
        cumulative = rising(cumulative, shares)
    total = cumulative[..., -1:]
    # Below the total even after rounding, so that the id has a share.
    level = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, level.contiguous(), right=True)


# --- classifier-free guidance


STRONGEST = 1e6
"""Largest weight of a condition; float32 logits lose their digits beyond it."""
Condition = Annotated[float, Interval(f"[-{STRONGEST:g}, {STRONGEST:g}]")]


@dataclass(frozen=True, kw_only=True, slots=True)
class Guidance(Checked):
    """How strongly the inputs steer a target: one scale for all, or a weight for each condition."""

    scale: Condition = 1.0
    """For all inputs together (arXiv 2207.12598): 1 is no guidance, 0 ignores them, above 1 follows them more closely,
    below 0 moves away."""
    always: tuple[str, ...] = ()
    """With `scale`: modalities that the unconditional pass sees, too."""
    weights: Mapping[str, Condition] = field(default_factory=dict)
    """Weights of single modalities, each a condition of its own (arXiv 2206.01714; 4M's multimodal guidance). Every
    pass sees the other inputs. Excludes `scale`."""

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        expect(self, "weights", not self.weights or self.scale == 1, "either scale or weights")
        expect(self, "always", not (self.weights and self.always), "weights or always; every pass sees the others")

    def renamed(self, rename: Callable[[str], str]) -> Guidance:
        """Return the guidance with other names of the modalities."""
        weights = {rename(name): weight for name, weight in self.weights.items()}
        return replace(self, weights=weights, always=tuple(map(rename, self.always)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Passes:
    """The forward passes of a step: the modalities hidden from each, and the weights of their logits (sum 1)."""

    hidden: tuple[frozenset[str], ...] = (frozenset(),)
    weights: tuple[float, ...] = (1.0,)
    marked: bool = False
    """Whether a hidden modality is represented by its `EmbeddingLayout.placeholder`."""

    def __len__(self) -> int:
        return len(self.hidden)

    def combined(self, logits: Tensor) -> Tensor:
        """Add up logits `(passes batch) ... ids`, pass by pass, to `batch ... ids`."""
        if len(self) == 1:
            return logits
        weights = torch.tensor(self.weights, dtype=logits.dtype, device=logits.device)
        return torch.einsum("p,p...->...", weights, logits.unflatten(0, (len(self), -1)))

    @classmethod
    def of(cls, guidance: Guidance, target: str, available: Sequence[str]) -> Passes:
        """Return the passes for `target` with the modalities `available` so far. Raises ConfigError for unknown names.

        Known tokens of the target are never hidden. With u the logits without any condition and c_i the logits with
        condition i alone, the result is u + sum_i w_i (c_i - u) = (1 - sum_i w_i) u + sum_i w_i c_i. Passes of weight 0
        are skipped. With `scale`, all of `available` is one condition. 4M marks hidden sequences as open in the
        unconditional pass of `scale`, but not with `weights`.
        """
        other_names = [name for name in available if name != target]
        for key, names in (("weights", guidance.weights), ("always", guidance.always)):
            for name in names:
                if name not in other_names:
                    expected = f"neither an input nor an earlier target; expected {', '.join(other_names) or 'nothing'}"
                    raise ConfigError(f"generate {target}: guidance {key}: {name} is {expected}")
        if guidance.weights:
            conditions = [frozenset([name]) for name in guidance.weights]
            weights = list(guidance.weights.values())
        else:
            conditions = [frozenset(other_names) - frozenset(guidance.always)]
            weights = [guidance.scale]
            if not conditions[0]:
                return cls()
        everything = frozenset[str]().union(*conditions)
        passes = [(everything, 1 - sum(weights))]
        passes += [(everything - condition, weight) for condition, weight in zip(conditions, weights, strict=True)]
        used = [(hidden, weight) for hidden, weight in passes if weight]
        hidden, pass_weights = tuple(name for name, _ in used), tuple(weight for _, weight in used)
        return cls(hidden=hidden, weights=pass_weights, marked=not guidance.weights)
