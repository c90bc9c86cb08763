"""Shared by the backbone's benchmarks: modalities as in the 4M papers, random samples, and a clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from tokenizers_zoo.contract.layouts import GridLayout, PatchesLayout, SequenceLayout, TokenLayout, VectorLayout
from tokenizers_zoo.contract.spec import ModalitySpec, ValueSpec
from zoo_backbone.model.batch import RawBatch

TEXT = SequenceLayout(max_length=256, end=1, sentinel_start=2, num_sentinels=200)


def modalities(count: int, side: int = 14, vocab_size: int = 1000, text_size: int = 4096) -> list[ModalitySpec]:
    """`count` modalities: of seven, four grids, one vector, one text and pixels; all texts share one vocabulary."""
    kinds: list[TokenLayout] = [
        GridLayout(shape=(side, side)), GridLayout(shape=(side, side)), TEXT,
        PatchesLayout(shape=(side, side), dim=768), GridLayout(shape=(side, side)), VectorLayout(length=16),
        GridLayout(shape=(side, side)),
    ]  # fmt: skip
    specs = []
    for number in range(count):
        layout = kinds[number % len(kinds)]
        text = layout is TEXT
        # Pixels are one modality, however many others there are.
        if isinstance(layout, PatchesLayout) and number > len(kinds):
            layout = kinds[0]
        specs.append(
            ModalitySpec(
                name=f"m{number}", summary="benchmark", value=ValueSpec(kind="object"), layout=layout,
                vocab_size=0 if isinstance(layout, PatchesLayout) else text_size if text else vocab_size,
                vocabulary="text" if text else "",
            )
        )  # fmt: skip
    return specs


def samples(specs: Sequence[ModalitySpec], size: int, seed: int = 0) -> RawBatch:
    """Random samples that have every modality; texts of 10 to 60 tokens."""
    rng = np.random.default_rng(seed)
    lengths = np.array([[spec.layout.length for spec in specs]] * size)
    tokens: dict[str, np.ndarray] = {}
    for column, spec in enumerate(specs):
        if isinstance(spec.layout, PatchesLayout):
            tokens[spec.name] = rng.standard_normal((size, spec.layout.length, spec.layout.dim), np.float32)
        else:
            tokens[spec.name] = rng.integers(0, spec.vocab_size, (size, spec.layout.length))
        if isinstance(spec.layout, SequenceLayout):
            lengths[:, column] = rng.integers(10, 61, size)
    return RawBatch(tokens=tokens, lengths=lengths, present=np.ones(lengths.shape, bool))


def seconds(works: Sequence[Callable[[], object]], repeats: int) -> list[tuple[float, float]]:
    """Return the shortest wall and processor time of each task over several interleaved runs."""
    wall: list[list[float]] = [[] for _ in works]
    busy: list[list[float]] = [[] for _ in works]
    for turn in range(repeats + 1):
        for number, work in enumerate(works):
            start, start_busy = time.perf_counter(), time.process_time()
            work()
            if turn:  # the first warms up
                wall[number].append(time.perf_counter() - start)
                busy[number].append(time.process_time() - start_busy)
    return [(min(a), min(b)) for a, b in zip(wall, busy, strict=True)]
