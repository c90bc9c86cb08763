"""Files of vectors, each a FAISS index: compared with all of them, or along the links of a graph."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tokenizers_zoo.errors import CheckpointError, ZooError
from tokenizers_zoo.io import DISK_ERRORS, replacing_file
from zoo_backbone.retrieval.config import Search
from zoo_backbone.retrieval.spaces import Vectors

LINKS, BUILD_WIDTH = 32, 200
"""Of HNSW (arXiv 1603.09320): links a vector, and candidates kept while building."""
SEARCH_WIDTH = 128
"""Candidates kept, at least, while a graph is searched."""
LOOK = 1.0
"""Seconds between two looks at how far a graph is."""


def faiss() -> Any:
    """The library. Raises ZooError where it is not installed."""
    try:
        import faiss as library
    except ImportError:
        raise ZooError(
            "retrieval: faiss is not installed; pip install 'zoo-backbone[retrieval]' (or faiss-cpu)"
        ) from None
    return library


def index_of(vectors: Vectors, kind: Search, advance: Callable[[int], None] = lambda count: None) -> Any:
    """A FAISS index of unit vectors by inner product, the same whenever it is built.

    `advance` is told how many vectors of a graph have been linked since.
    """
    library, dims = faiss(), vectors.shape[1]
    if kind == "exact":
        index = library.IndexFlatIP(dims)
        index.add(vectors)
        return index
    index = library.IndexHNSWFlat(dims, LINKS, library.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = BUILD_WIDTH
    failed: list[BaseException] = []

    def add() -> None:
        try:
            library.omp_set_num_threads(1)  # of this thread: several link in the order in which they get there
            index.add(vectors)
        except BaseException as error:
            failed.append(error)

    # In one go: added in parts, vectors are linked in another order. So another thread does it, and this one looks on.
    thread = threading.Thread(target=add, name="links", daemon=True)
    thread.start()
    done, size = 0, 0
    while thread.is_alive():
        thread.join(LOOK)
        before, size = size, index.hnsw.neighbors.size()
        if size == before and thread.is_alive():  # else the memory of the links is not laid out yet
            linked = _linked(index, size)
            advance(linked - done)
            done = linked
    if failed:
        raise failed[0]
    advance(len(vectors) - done)
    return index


def _linked(index: Any, size: int) -> int:
    """How many vectors of a graph have a link; `size` is how many links there is room for."""
    if not size:
        return 0  # where the links begin is not laid out yet, either
    first = faiss().vector_to_array(index.hnsw.offsets)[:-1].astype(np.int64)
    return int((faiss().rev_swig_ptr(index.hnsw.neighbors.data(), size)[first] >= 0).sum())


def write_vectors(path: Path, vectors: Vectors, kind: Search, advance: Callable[[int], None]) -> None:
    """Write a file of vectors, whole or not at all; see `index_of`. Raises OSError where the disk is full."""
    index = index_of(vectors, kind, advance)
    with replacing_file(path) as temporary:
        try:
            faiss().write_index(index, str(temporary))
        except RuntimeError as error:  # which has what the system says, and not its number
            number = next((number for number in DISK_ERRORS if os.strerror(number) in str(error)), None)
            raise error if number is None else OSError(number, os.strerror(number)) from error


def written_vectors(path: Path, count: int) -> Vectors | None:
    """The vectors of a file that has so many; None where there is no such file, or it is damaged."""
    if path.is_file():
        with contextlib.suppress(RuntimeError):
            index = faiss().read_index(str(path))
            if index.ntotal == count:
                return np.asarray(index.reconstruct_n(0, count), np.float32)
    return None


def open_vectors(path: Path) -> Any:
    """The FAISS index in a file. Raises CheckpointError where it is damaged."""
    try:
        return faiss().read_index(str(path))
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: no sound FAISS index ({reason}); build it again with --overwrite") from None
