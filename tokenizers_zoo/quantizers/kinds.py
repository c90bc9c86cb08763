"""From a kind's name to its adapter.

A new kind: its name in `QuantizerKind`, its fields in `KIND_DEFAULTS` (new ones in `QuantizerConfig` and
`QuantizedTrainConfig`, too, and in `TRAINING_ONLY` where ids do not depend on them), an adapter, a line here.
"""

from __future__ import annotations

from collections.abc import Callable

from tokenizers_zoo.quantizers.adapter import Adapter
from tokenizers_zoo.quantizers.binary import Binary
from tokenizers_zoo.quantizers.codebooks import MemoryCodes, MovingAverage, SimpleVector
from tokenizers_zoo.quantizers.composite import Residual, SideBySide
from tokenizers_zoo.quantizers.config import QuantizerConfig
from tokenizers_zoo.quantizers.scalar import FiniteScalar, ResidualFiniteScalar


def _product_vq(config: QuantizerConfig) -> Adapter:
    return SideBySide([MovingAverage(config) for _ in range(config.codes_per_position)])


def _residual_vq(config: QuantizerConfig) -> Adapter:
    return Residual([MovingAverage(config) for _ in range(config.codes_per_position)])


def _grouped_residual_vq(config: QuantizerConfig) -> Adapter:
    """Groups of residual codes (arXiv 2305.02765)."""
    assert config.groups is not None
    steps = config.codes_per_position // config.groups
    if steps == 1:  # nothing is left over for a second step
        return _product_vq(config)
    return SideBySide([Residual([MovingAverage(config) for _ in range(steps)]) for _ in range(config.groups)])


def _residual_simvq(config: QuantizerConfig) -> Adapter:
    """Each step starts at half the size of the one before: codes larger than what is left over would never be used."""
    return Residual([SimpleVector(config, 0.5**step) for step in range(config.codes_per_position)])


ADAPTERS: dict[str, Callable[[QuantizerConfig], Adapter]] = {
    "fsq": FiniteScalar,
    "vq": MovingAverage,
    "lfq": Binary,
    "bsq": Binary,
    "simvq": SimpleVector,
    "product_vq": _product_vq,
    "memcodes": MemoryCodes,
    "residual_vq": _residual_vq,
    "grouped_residual_vq": _grouped_residual_vq,
    "residual_fsq": ResidualFiniteScalar,
    "residual_simvq": _residual_simvq,
}
