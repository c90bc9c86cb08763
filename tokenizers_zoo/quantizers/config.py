"""What a quantizer is made of: one frozen configuration for all kinds, saved beside the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

QuantizerKind = Literal["fsq", "vq", "lfq", "simvq"]

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

MAX_CODES = 2**24
"""The most codes of any kind: ids of fsq are computed in float32, whose whole numbers end here."""

KIND_DEFAULTS: dict[str, dict[str, Any]] = {
    "fsq": {"levels": (8, 5, 5, 5)},
    "vq": {
        "codebook_dim": 32,
        "distance": "cosine",
        "decay": 0.95,
        "kmeans_iterations": 10,
        "revive_below": 0.1,
        "commitment_weight": 1.0,
    },
    "lfq": {"entropy_weight": 0.1, "commitment_weight": 0.25},
    "simvq": {"codebook_dim": 32, "commitment_weight": 1.0},
}
"""Per kind, the optional fields that it uses and their defaults; a field of another kind is rejected."""

_OPTIONAL = sorted({name for defaults in KIND_DEFAULTS.values() for name in defaults})


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizerConfig:
    """How latents become tokens.

    Fields left at None take the default of their kind, so a configuration read back says everything. A field that its
    kind does not use is rejected. Raises ValueError that begins with the field's name.
    """

    kind: QuantizerKind = "fsq"
    """fsq: rounded numbers; vq: a codebook by moving averages; lfq: signs; simvq: a linear map of a fixed codebook."""
    codebook_size: int = 0
    """Number of codes; 0 takes the product of `levels` for fsq and 1024 for the others.

    lfq needs a power of two; fsq without `levels` needs one of the sizes of FSQ_LEVELS.
    """
    levels: tuple[int, ...] | None = None
    """fsq: number of values per dimension, each at least 3; their product is the codebook size."""
    codebook_dim: int | None = None
    """vq, simvq: numbers per code; latents of another dim are projected in and out."""
    distance: Literal["cosine", "euclidean"] | None = None
    """vq: what "nearest" means; cosine codes have length 1."""
    decay: float | None = None
    """vq: share of the old codebook that a training step keeps, in (0, 1)."""
    kmeans_iterations: int | None = None
    """vq: k-means iterations on the first training batch to initialise the codebook; 0 starts from random codes."""
    revive_below: float | None = None
    """vq: a code is replaced by a random latent when it is used less than this share of the mean code; 0 never does.

    Uses are moving averages over training batches.
    """
    commitment_weight: float | None = None
    """vq, lfq, simvq: weight of the mean squared distance between latents and codes in the loss."""
    entropy_weight: float | None = None
    """lfq: weight of (entropy per latent - entropy of the batch) in the loss, nats."""

    def __post_init__(self) -> None:
        if self.kind not in KIND_DEFAULTS:
            raise ValueError(f"kind: expected one of {', '.join(KIND_DEFAULTS)}, got {self.kind!r}")
        defaults = KIND_DEFAULTS[self.kind]
        for name in _OPTIONAL:
            if name not in defaults and getattr(self, name) is not None:
                users = ", ".join(kind for kind, used in KIND_DEFAULTS.items() if name in used)
                raise ValueError(f"{name}: used by kind {users} only, and kind is {self.kind}; leave it out")
        self._resolve_size()
        for name, default in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        self._check_ranges()

    def _resolve_size(self) -> None:
        size = self.codebook_size
        if size < 0 or size == 1:
            raise ValueError(f"codebook_size: expected at least 2 codes (or 0 for the default), got {size}")
        if size > MAX_CODES:
            raise ValueError(f"codebook_size: expected at most {MAX_CODES}, got {size}")
        if self.kind == "lfq" and size & (size - 1):
            near = 2 ** round(math.log2(size))
            raise ValueError(f"codebook_size: lfq needs a power of two, got {size}; the nearest is {near}")
        if self.kind != "fsq":
            object.__setattr__(self, "codebook_size", size or 1024)
            return
        levels = self.levels
        if levels is None and size and size not in FSQ_LEVELS:
            known = ", ".join(map(str, FSQ_LEVELS))
            raise ValueError(f"codebook_size: fsq has no recommended levels for {size}; take {known}, or give levels")
        if levels is None:
            levels = FSQ_LEVELS[size] if size else KIND_DEFAULTS["fsq"]["levels"]
        if not levels or min(levels) < 3:
            raise ValueError(f"levels: expected one or more numbers of at least 3, got {list(levels)}")
        if size and size != math.prod(levels):
            raise ValueError(f"codebook_size: {size} is not the product of levels {list(levels)} ({math.prod(levels)})")
        if math.prod(levels) > MAX_CODES:
            raise ValueError(f"levels: at most {MAX_CODES} codes, got the product {math.prod(levels)}")
        object.__setattr__(self, "levels", tuple(levels))
        object.__setattr__(self, "codebook_size", math.prod(levels))

    def _check_ranges(self) -> None:
        if self.codebook_dim is not None and self.codebook_dim < 1:
            raise ValueError(f"codebook_dim: expected at least 1, got {self.codebook_dim}")
        if self.distance not in (None, "cosine", "euclidean"):
            raise ValueError(f"distance: expected cosine or euclidean, got {self.distance!r}")
        if self.decay is not None and not 0 < self.decay < 1:
            raise ValueError(f"decay: expected a number in (0, 1), got {self.decay}")
        if self.revive_below is not None and not 0 <= self.revive_below < 1:
            raise ValueError(f"revive_below: expected a share in [0, 1), got {self.revive_below}")
        for name in ("kmeans_iterations", "commitment_weight", "entropy_weight"):
            value = getattr(self, name)
            if value is not None and not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{name}: expected a finite number of at least 0, got {value}")
