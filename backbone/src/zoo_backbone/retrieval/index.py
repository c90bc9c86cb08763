"""Indexes on disk: vectors in FAISS, the keys of their samples, and what they were made with.

INDEX/config.json         "class", "run" (where its backbone was last) and "fingerprint" of the backbone, "split",
                          "embedding" (how vectors are made), "codecs", "modalities" {name: vectors}, "together":
                          samples, "search": exact or approximate, "samples": sha256 of the samples' keys and tokens
INDEX/model.safetensors   the space: `<modality>.mean` and `<modality>.projection`
INDEX/keys.json           "keys": those of all samples; "lacks": {name: numbers of the samples without the modality}
INDEX/together.faiss      a vector a sample: the mean of those of its modalities, at length 1
INDEX/of-<name>.faiss     a vector for each sample that has the modality, in the order of the keys
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tokenizers_zoo import checkpoint
from tokenizers_zoo.config import from_mapping
from tokenizers_zoo.errors import CheckpointError, UnknownNameError, ZooError
from tokenizers_zoo.io import read_table
from tokenizers_zoo.registry import Zoo
from zoo_backbone.retrieval.config import EmbeddingConfig
from zoo_backbone.retrieval.embedding import Embedder
from zoo_backbone.retrieval.spaces import Affine, Vectors
from zoo_backbone.retrieval.vector_files import SEARCH_WIDTH, faiss, open_vectors

CLASS = "RetrievalIndex"
KEYS = "keys.json"
TOGETHER = ""
"""Names the vectors of all modalities together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hit:
    """A sample that was found, and its cosine to the query."""

    key: str
    cosine: float


class Index:
    """An index on disk, opened. Raises CheckpointError where it is none, or damaged.

    `run` is where its backbone is now; by default where it was last.
    """

    def __init__(self, folder: Path, run: Path | None = None) -> None:
        self.folder = Path(folder)
        if not (self.folder / checkpoint.CONFIG).is_file():
            raise CheckpointError(f"{folder}: no index here; make one with zoo retrieve build RUN --out {folder}")
        tensors, self.config = checkpoint.load_checkpoint(self.folder, CLASS)
        self.keys, self._lacks = _read_keys(self.folder / KEYS)
        try:
            self.embedding = from_mapping(EmbeddingConfig, self.config["embedding"])
            self.run, self.fingerprint = Path(run or self.config["run"]), str(self.config["fingerprint"])
            self.split, self.search_kind = str(self.config["split"]), str(self.config["search"])
            self.spaces = spaces_of(tensors, self.names)
        except (KeyError, TypeError, ValueError, ZooError) as error:
            raise CheckpointError(f"{self.folder}: config.json does not describe an index: {error}") from None
        self._opened: dict[str, Any] = {}

    @property
    def names(self) -> list[str]:
        """Its modalities."""
        return list(self._lacks)

    def check_run(self) -> None:
        """Raise CheckpointError where its backbone is not where it was."""
        if not self.run.is_dir():
            raise CheckpointError(f"{self.folder}: its backbone was in {self.run}, which is gone; give --run FOLDER")

    def embedder(self, zoo: Zoo, device: str = "cpu") -> Embedder:
        """What makes vectors for this index. Raises CheckpointError where its backbone is another by now."""
        self.check_run()
        embedder = Embedder(self.run, zoo, self.embedding, device)
        if embedder.fingerprint != self.fingerprint:
            raise CheckpointError(
                f"{self.folder}: built by the backbone {self.fingerprint[:12]}, and {self.run} now holds "
                f"{embedder.fingerprint[:12]}; give the folder of that backbone with --run, or build the index again "
                "with --overwrite"
            )
        for name, codec in embedder.via_codec().items():
            if self.config["codecs"].get(name) != codec:
                raise CheckpointError(
                    f"{self.folder}: built with another tokenizer of {name} than the one in {zoo[name].checkpoint}; "
                    "build the index again with --overwrite"
                )
        embedder.spaces = dict(self.spaces)
        return embedder

    def check(self, names: Sequence[str]) -> None:
        """Raise UnknownNameError for the first modality that the index has not."""
        for name in names:
            if name not in self.names:
                raise UnknownNameError.of("modality of this index", name, self.names)

    def size(self, find: str = TOGETHER) -> int:
        """Samples that can be found by the modality `find`, or by all together."""
        return len(self.keys) - len(self._lacks.get(find, ()))

    def keys_of(self, find: str) -> Sequence[str]:
        """The keys of the samples that can be found by the modality `find`, in the order of its vectors."""
        if self.size(find) == len(self.keys):
            return self.keys
        return [self.keys[sample] for sample in np.delete(np.arange(len(self.keys)), self._lacks[find])]

    def search(
        self, queries: Vectors, k: int, find: str = TOGETHER, without: Sequence[str | None] | None = None
    ) -> list[list[Hit]]:
        """The `k` samples closest to each query, `queries dims` of length 1, or all where there are fewer.

        `without` has for each query a key that is left out, or None.
        """
        keys, index = self.keys_of(find), self.open(find)
        dropped = list(without or [None] * len(queries))
        wanted = min(k + any(key is not None for key in dropped), len(keys))
        options = {}
        if self.search_kind == "approximate":
            options["params"] = faiss().SearchParametersHNSW(efSearch=max(SEARCH_WIDTH, 2 * wanted))
        cosines, rows = index.search(np.ascontiguousarray(queries, np.float32), wanted, **options)
        return [
            [
                Hit(key=keys[row], cosine=float(cosine))
                for row, cosine in zip(found.tolist(), close.tolist(), strict=True)
                if row >= 0 and keys[row] != left_out
            ][:k]
            for found, close, left_out in zip(rows, cosines, dropped, strict=True)
        ]

    def open(self, find: str) -> Any:
        """The vectors by which the modality `find` is searched. Raises CheckpointError where they are damaged."""
        if find not in self._opened:
            path = self.folder / file_of(find)
            index = open_vectors(path)
            if index.ntotal != self.size(find):
                raise CheckpointError(
                    f"{path}: holds {index.ntotal} vectors, and {KEYS} has {self.size(find)}; build it again with "
                    "--overwrite"
                )
            self._opened[find] = index
        return self._opened[find]


def file_of(name: str) -> str:
    """The file of a modality's vectors."""
    return "together.faiss" if name == TOGETHER else f"of-{name}.faiss"


def spaces_of(tensors: Mapping[str, torch.Tensor], names: Sequence[str]) -> dict[str, Affine]:
    """The space in model.safetensors. Raises KeyError."""
    return {
        name: Affine(mean=tensors[f"{name}.mean"].numpy(), projection=_numpy(tensors.get(f"{name}.projection")))
        for name in names
    }


def _numpy(tensor: torch.Tensor | None) -> Vectors | None:
    return None if tensor is None else tensor.numpy()


def _read_keys(path: Path) -> tuple[list[str], dict[str, npt.NDArray[np.int64]]]:
    """All keys, and by modality the numbers of the samples that lack it. Raises CheckpointError."""
    table = read_table(path)
    try:
        if TOGETHER in table:  # of an earlier version, which repeated the keys for each modality
            keys = list(table.pop(TOGETHER))
            had = {name: set(own) for name, own in table.items()}
            lacked = {name: [n for n, key in enumerate(keys) if key not in own] for name, own in had.items()}
        else:
            keys, lacked = list(table["keys"]), table["lacks"]
        lacks = {name: np.array(numbers, np.int64) for name, numbers in lacked.items()}
        for name, numbers in lacks.items():
            if numbers.size and not ((np.diff(numbers) > 0).all() and numbers[0] >= 0 and numbers[-1] < len(keys)):
                raise ValueError(f"{name} lacks what is no sample")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"without {error}" if isinstance(error, KeyError) else error
        raise CheckpointError(f"{path}: damaged ({reason}); build the index again with --overwrite") from None
    return keys, lacks
