"""Features of a frozen encoder: computed when a sample is first asked for, and kept as long as they fit in memory."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_zoo.progress import progress_bar
from zoo_backbone.packing import Tokens, Used, shown_end
from zoo_backbone.transfer.probe import Network
from zoo_backbone.transfer.reading import unpadded
from zoo_backbone.transfer.samples import Part

KEPT_BYTES = 4 << 30
"""Memory that the kept features of a part take at most."""
ROWS = 16
"""Samples, at most, that are encoded at a time."""


class KeptFeatures:
    """The features of a part's samples, as the head of `network` reads them, on the CPU.

    They are a function of sample and part alone, whichever are asked for together and whatever is kept: always `rows`
    samples are encoded, the last one again and again where there are fewer, and sequences are filled up to the longest
    of the part, as kernels round otherwise for other sizes. Nothing is thrown out once kept, as in `LazyValues`.
    Threads may share it.
    """

    def __init__(self, network: Network, part: Part, rows: int = ROWS) -> None:
        self.network, self.part, self.rows = network, part, min(rows, ROWS)
        self.kept: dict[int, Tensor] = {}
        self.room = KEPT_BYTES
        self.widths = longest(network, part)
        self.lock = threading.Lock()

    def of(self, places: Sequence[int]) -> list[Tensor]:
        """Of the samples at these places."""
        with self.lock:
            found: dict[int, Tensor] = {}
            missing = [place for place in dict.fromkeys(places) if place not in self.kept]
            for start in range(0, len(missing), self.rows):
                here = missing[start : start + self.rows]
                found.update(zip(here, self._computed(here), strict=True))
            for place, features in found.items():
                if features.nbytes <= self.room:
                    self.room -= features.nbytes
                    self.kept[place] = features
            return [found[place] if place in found else self.kept[place] for place in places]

    def keep(self, places: Sequence[int]) -> None:
        """Compute those of these places now, with progress, and keep what fits."""
        with progress_bar("features", len(places)) as advance:
            for start in range(0, len(places), self.rows):
                here = places[start : start + self.rows]
                self.of(here)
                advance(len(here))

    def _computed(self, places: Sequence[int]) -> list[Tensor]:
        """A row of features for each of up to `rows` places, none of which shares its memory with another."""
        filled = [*places, *[places[-1]] * (self.rows - len(places))]
        # Tensors of inference mode, which evaluations are in, could not be learned from.
        with torch.inference_mode(False), torch.no_grad():
            tokens, used = self.network.encoder.prepare(self.part.tokens(filled))
            features, mask = self.network.read(*widened(tokens, used, self.widths))
            rows = unpadded(features.cpu(), None if mask is None else mask.cpu())
            return [row.clone() for row in rows[: len(places)]]


def longest(network: Network, part: Part) -> dict[str, int]:
    """By modality of variable length the tokens that a sample of the part has at most, as the encoder is given them."""
    layout, inputs = network.encoder.layout, part.inputs
    found = {}
    for spec in inputs.specs:
        most = inputs.columns[spec.name].longest
        marked = int(shown_end(layout, spec) is not None)
        found[spec.name] = min(most + marked, spec.layout.length)
    return found


def widened(tokens: Tokens, used: Used, widths: dict[str, int]) -> tuple[Tokens, Used]:
    """What `FourMEncoder.prepare` gives, with modalities of variable length filled up to these widths."""
    tokens, used = dict(tokens), dict(used)
    for name, mask in used.items():
        more = widths[name] - mask.shape[1]
        used[name] = F.pad(mask, (0, more))
        value = tokens[name]
        tokens[name] = F.pad(value, (0, more) if value.ndim == 2 else (0, 0, 0, more))
    return tokens, used
