"""Quantizer configuration: one frozen dataclass for all kinds, saved with the weights."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from tokenizers_zoo.records.config import Checked
from tokenizers_zoo.records.typed import Interval, NonNegativeFloat, NonNegativeInt, PositiveInt

QuantizerKind = Literal[
    "fsq",
    "vq",
    "lfq",
    "bsq",
    "simvq",
    "product_vq",
    "memcodes",
    "residual_vq",
    "grouped_residual_vq",
    "residual_fsq",
    "residual_simvq",
]

FSQ_LEVELS: dict[int, tuple[int, ...]] = {
    math.prod(levels): levels
    for levels in (
        (8, 6, 5),
        (8, 5, 5, 5),
        (7, 5, 5, 5, 5),
        (8, 8, 8, 6, 5),
        (8, 8, 8, 5, 5, 5),
    )
}
"""Codebook size -> levels, as arXiv 2309.15505 (section 4.1, table 1) recommends for 2^8, 2^10, 2^12, 2^14, 2^16."""

MAX_CODES, MAX_CODEBOOKS = 2**20, 1000
"""Maximum codebook size of any kind, and maximum tokens per latent.

The library lists all codes, 250 MiB for 2^20 and 5 GiB for 2^24. fsq computes ids in float32, exact up to 2^24.
"""

MAX_LEVELS = 1000
"""Maximum number of levels per dimension of fsq; with more, its margin of 0.001 reaches the next level."""

_MOVING_AVERAGE: dict[str, Any] = {
    "codebook_dim": 32,
    "decay": 0.95,
    "kmeans_iterations": 10,
    "revive_below": 0.1,
    "commitment_weight": 1.0,
}

TRAINING_ONLY = ("decay", "kmeans_iterations", "revive_below", "commitment_weight", "entropy_weight", "spread_weight")
"""Fields that do not affect the meaning of ids; they may change when a checkpoint is used or resumed."""

KIND_DEFAULTS: dict[str, dict[str, Any]] = {
    "fsq": {"levels": (8, 5, 5, 5), "spread_weight": 0.0},
    "vq": {**_MOVING_AVERAGE, "distance": "cosine"},
    "lfq": {"entropy_weight": 0.1, "commitment_weight": 0.25},
    "bsq": {"entropy_weight": 0.1, "commitment_weight": 0.25},
    "simvq": {"codebook_dim": 32, "commitment_weight": 1.0},
    "product_vq": {**_MOVING_AVERAGE, "codebook_dim": 8, "distance": "cosine", "num_codebooks": 8},
    "memcodes": {"codebook_dim": 16, "num_codebooks": 8, "entropy_weight": 0.1},
    "residual_vq": {**_MOVING_AVERAGE, "num_codebooks": 4},
    "grouped_residual_vq": {**_MOVING_AVERAGE, "codebook_dim": 16, "num_codebooks": 4, "groups": 2},
    "residual_fsq": {"levels": (3,) * 6, "num_codebooks": 4, "spread_weight": 0.1},
    "residual_simvq": {"codebook_dim": 32, "commitment_weight": 1.0, "num_codebooks": 4},
}
"""Optional fields used by each kind and their defaults; fields of another kind are rejected.

Every step of residual_fsq rounds the same few numbers. With many dimensions of three levels the later steps still
reduce the error; with few dimensions of many levels they do not.
"""

_OPTIONAL = sorted({name for defaults in KIND_DEFAULTS.values() for name in defaults})


def unused_fields(kind: str) -> list[str]:
    """Return the optional fields that a kind rejects."""
    return [name for name in _OPTIONAL if name not in KIND_DEFAULTS.get(kind, _OPTIONAL)]


@dataclass(frozen=True, kw_only=True)
class QuantizerFields(Checked):
    """The keys of a quantizer besides its kind; None takes the default of the kind."""

    codebook_size: int = 0
    """Number of codes per codebook; 0: the family's default, or the product of `levels` for fsq kinds and 1024 for
    the others.

    lfq and bsq need a power of two; fsq kinds without `levels` need a size listed in FSQ_LEVELS.
    """
    levels: tuple[int, ...] | None = None
    """fsq kinds: number of values per dimension, each at least 3; their product is the codebook size."""
    num_codebooks: Annotated[int, Interval(f"[2, {MAX_CODEBOOKS}]")] | None = None
    """Kinds with several codes per latent: how many, in all groups together; at least 2."""
    groups: int | None = None
    """grouped_residual_vq: number of parts of a latent, each with its own residual codes; divides `num_codebooks`."""
    codebook_dim: PositiveInt | None = None
    """Kinds with a codebook: numbers per code; latents of another dim are projected in and out.

    Codes side by side make one vector of (codebooks or groups) x `codebook_dim` numbers.
    """
    distance: Literal["cosine", "euclidean"] | None = None
    """vq, product_vq: what "nearest" means; cosine trains codes of length 1, so residual codes are always euclidean."""
    decay: Annotated[float, Interval("(0, 1)")] | None = None
    """vq kinds: share of the old codebook that a training batch keeps, in (0, 1)."""
    kmeans_iterations: NonNegativeInt | None = None
    """vq kinds: k-means iterations on the first training batch to start the codebook; 0 starts from random codes."""
    revive_below: Annotated[float, Interval("[0, 1)")] | None = None
    """vq kinds: a code is replaced by a random latent when used less than this share of the mean code; 0 never does.

    Uses are moving averages over training batches.
    """
    commitment_weight: NonNegativeFloat | None = None
    """All but fsq kinds and memcodes: weight of the mean squared distance between latents and codes in the loss."""
    entropy_weight: NonNegativeFloat | None = None
    """lfq, bsq, memcodes: loss weight of the entropy per latent minus the entropy of the batch, nats."""
    spread_weight: NonNegativeFloat | None = None
    """fsq kinds: loss weight of the term that makes all levels about equally frequent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizerConfig(QuantizerFields):
    """How latents become tokens.

    Fields left at None take the default of their kind, so a configuration read back says everything. A field that its
    kind does not use is rejected. Raises ValueError that begins with the field's name.
    """

    kind: QuantizerKind = "fsq"
    """fsq: rounded numbers; vq: a codebook by moving averages; lfq: signs; bsq: signs on the unit sphere; simvq: a
    linear map of a fixed codebook. Several codes per latent: product_vq and memcodes (codebooks side by side),
    residual_vq, residual_fsq and residual_simvq (each codes the previous error), grouped_residual_vq (both)."""

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        defaults = KIND_DEFAULTS[self.kind]
        for name in unused_fields(self.kind):
            if getattr(self, name) is not None:
                users = ", ".join(kind for kind, used in KIND_DEFAULTS.items() if name in used)
                raise ValueError(f"{name}: used by kind {users} only, and kind is {self.kind}; leave it out")
        self._resolve_size()
        for name, default in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        if self.kind == "residual_fsq" and self.codebook_size * self.codes_per_position > 4 * MAX_CODES:
            raise ValueError(f"num_codebooks: expected at most {4 * MAX_CODES // self.codebook_size} of these levels")
        if self.groups is not None and (self.groups < 2 or self.codes_per_position % self.groups):
            raise ValueError(
                f"groups: expected at least 2 that divide num_codebooks {self.num_codebooks}, got {self.groups}"
            )

    @property
    def codes_per_position(self) -> int:
        """Tokens that one latent becomes."""
        return self.num_codebooks or 1

    def meaning(self) -> dict[str, Any]:
        """Return the fields that determine the meaning of ids: all except TRAINING_ONLY."""
        return {name: value for name, value in asdict(self).items() if name not in TRAINING_ONLY}

    def token_shape(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the tokens of one sample whose latents form `grid`: several codes per latent are one more axis."""
        return grid if self.codes_per_position == 1 else (*grid, self.codes_per_position)

    def _resolve_size(self) -> None:
        size, levels, name = self.codebook_size, self.levels, "levels" if self.levels else "codebook_size"
        if "levels" in KIND_DEFAULTS[self.kind]:
            if levels is None and size and size not in FSQ_LEVELS:
                sizes = ", ".join(map(str, FSQ_LEVELS))
                raise ValueError(f"{name}: no levels are recommended for {size}; take {sizes}, or give levels")
            if levels is None:
                levels = FSQ_LEVELS[size] if size else KIND_DEFAULTS[self.kind]["levels"]
            if not levels or min(levels) < 3 or max(levels) > MAX_LEVELS:
                raise ValueError(f"levels: expected one or more numbers of 3 to {MAX_LEVELS}, got {list(levels)}")
            if size and size != math.prod(levels):
                raise ValueError(f"codebook_size: {size} is not the product of levels {list(levels)}")
            size = math.prod(levels)
            object.__setattr__(self, "levels", tuple(levels))
        size = size or 1024
        if not 2 <= size <= MAX_CODES:
            raise ValueError(f"{name}: expected 2 to {MAX_CODES} codes, got {size}")
        if self.kind in ("lfq", "bsq") and size & (size - 1):
            near = 2 ** round(math.log2(size))
            raise ValueError(f"codebook_size: {self.kind} needs a power of two, got {size}; the nearest is {near}")
        object.__setattr__(self, "codebook_size", size)
