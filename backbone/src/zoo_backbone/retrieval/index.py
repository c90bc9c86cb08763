"""Indexes: vectors of stored samples, per modality and of all modalities together, which FAISS searches.

run.json            see `RunFolder`; "places" has the run, "finished" the sha256 of the vector files
config.json         the identity: "fingerprint" of the backbone, "split", "embedding", "search", "tokenizers",
                    "modalities" {name: number of vectors}, "samples": sha256 of keys and tokens
model.safetensors   the space: `<modality>.mean` and `<modality>.projection`
keys.json           "keys" of all samples; "lacks": {name: numbers of the samples without the modality}
of-<name>.safetensors   a vector for each sample with the modality
together.safetensors    a vector for each sample: the normalised sum over its modalities

A vector file has `vectors` float32 `(n, dims)`. For approximate search it also has an inverted file: `centroids`
float32 `(cells, dims)`, `cells` int32 `(n,)`, the cell of each vector, and `probes` int32 `(1,)`, the number of cells
that a query searches. FAISS gets checked arrays, and reads no file: it trusts the links and lengths of its formats.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from tokenizers_zoo.checkpoint import CARD, CONFIG, WEIGHTS, load_checkpoint, load_record, save_checkpoint
from tokenizers_zoo.config import from_mapping
from tokenizers_zoo.errors import CheckpointError, ConfigError, UnknownNameError, ZooError
from tokenizers_zoo.io import as_record, file_digest, read_record, replacing_file, write_table, write_tensors
from tokenizers_zoo.progress import progress_bar
from tokenizers_zoo.registry import Zoo
from tokenizers_zoo.run_folder import RUN, RunFolder, RunKind, read_run
from tokenizers_zoo.samples import TEST
from zoo_backbone.data import TokenData
from zoo_backbone.pipeline import AnyToAny
from zoo_backbone.retrieval import EmbeddingConfig, Search
from zoo_backbone.retrieval.embed import Affine, Embedder, Vectors, unit
from zoo_backbone.run import Run

CLASS = "RetrievalIndex"
KEYS = "keys.json"
TOGETHER = ""
"""The name of the vectors of all modalities together."""
INDEX = RunKind(
    name="index",
    files=(WEIGHTS, CONFIG, CARD, KEYS, "of-*.safetensors", "together.safetensors"),
    state="space.json",
    results=(WEIGHTS, CONFIG, KEYS),
)
"""`space.json` marks that the space is fitted, and has the sha256 of the complete vector files, which a build
that resumes reuses."""
LARGE = 100_000
"""Indexes of more samples are approximate by default."""
RECALL = 0.97
"""Share of the ten nearest that stored vectors find as queries; it decides how many cells a query searches."""
REBUILD = "build it again with --overwrite"


@dataclass(frozen=True, kw_only=True)
class IndexRecord:
    """config.json of an index."""

    fingerprint: str
    """The backbone's."""
    split: str
    search: Search
    embedding: Mapping[str, Any]
    tokenizers: Mapping[str, str]
    modalities: Mapping[str, int]
    """Number of samples that have each modality."""


@dataclass(frozen=True, kw_only=True)
class VectorFiles:
    """The complete vector files of an index."""

    files: Mapping[str, str]
    """sha256 by name."""


@dataclass(frozen=True, kw_only=True)
class KeysRecord:
    """keys.json of an index."""

    keys: list[str]
    lacks: Mapping[str, list[int]]
    """Numbers of the samples that lack a modality, by modality."""


def faiss() -> Any:
    """Import FAISS. Raises ZooError if it is not installed."""
    try:
        import faiss as library
    except ImportError:
        raise ZooError("retrieval: faiss is not installed; pip install 'zoo-backbone[retrieval]'") from None
    return library


# ---------------------------------------------------------------- building


def build(
    run: Run, zoo: Zoo, out: Path, *, config: EmbeddingConfig, split: str = TEST,
    modalities: Sequence[str] | None = None, search: Search | None = None, overwrite: bool = False, device: str = "cpu",
) -> Index:  # fmt: skip
    """Embed the stored samples of a split and write an index to `out`. Resumes a killed build.

    A finished, equal index is kept, with the path of its run updated. Raises FolderError if `out` holds something else.
    """
    faiss()
    out, embedder = Path(out), Embedder(AnyToAny.load(run, zoo, device=device), config)
    names = embedder.names(modalities, split)
    samples = embedder.load_split(split, names)
    present = samples.present(samples.rows(np.arange(len(samples))))
    counts = dict(zip(names, present.sum(0).tolist(), strict=True))
    if empty := [name for name, count in counts.items() if not count]:
        raise ConfigError(f"{empty[0]}: no sample of the split {split} has it; leave it out of --modalities")
    kind: Search = search or ("approximate" if len(samples) > LARGE else "exact")
    identity = {
        "fingerprint": embedder.fingerprint, "split": split, "embedding": dataclasses.asdict(config), "search": kind,
        "modalities": counts, "tokenizers": embedder.tokenizers(samples), "samples": samples.contents(),
    }  # fmt: skip
    with RunFolder(out, INDEX, identity, {"run": str(embedder.run.folder.resolve())}).open(overwrite) as folder:
        complete = folder.finished is not None
        if not complete:
            if folder.resuming:
                embedder.spaces = _spaces(load_checkpoint(out, CLASS)[0], names)
            else:
                embedder.fit(names)
                tensors = {
                    f"{name}.{part}": torch.from_numpy(array)
                    for name, space in embedder.spaces.items() for part, array in vars(space).items()
                    if array is not None
                }  # fmt: skip
                save_checkpoint(out, tensors, {"class": CLASS, **identity}, _card(identity, len(samples)))
                write_table(out / INDEX.state, VectorFiles(files={}))
            files = _write_vectors(out, embedder, samples, present, names, kind)
            folder.finish(samples=len(samples), files=files)
    index = Index(out)
    for name in (TOGETHER, *index.names) if complete else ():
        index.open(name)  # raises CheckpointError if it is damaged
    return index


def _write_vectors(
    out: Path, embedder: Embedder, samples: TokenData, present: npt.NDArray[np.bool_], names: Sequence[str],
    kind: Search,
) -> dict[str, str]:  # fmt: skip
    """Write keys and vectors, one modality after the other, and return the sha256 of the vector files by name.

    Complete files are kept.
    """
    files = dict(read_record(out / INDEX.state, VectorFiles).files)
    together = np.zeros(0, np.float32)
    with progress_bar(f"embed {max(names, key=len)}", int(present.sum())) as advance:
        for name, has in zip(names, present.T, strict=True):
            path, indices = out / file_of(name), np.flatnonzero(has)
            try:
                vectors = read_vectors(path, len(indices), files.get(path.name), kind)["vectors"]
                advance(len(indices))
            except CheckpointError:
                vectors = embedder.embed_stored(samples, name, indices, partial(advance, title=f"embed {name}"))
                write_vectors(path, vectors, kind)
                files[path.name] = file_digest(path)
                write_table(out / INDEX.state, VectorFiles(files=files))
            if not len(together):
                together = np.zeros((len(samples), vectors.shape[1]), np.float32)
            together[indices] += vectors
            del vectors  # before the next modality is embedded
    write_vectors(out / file_of(TOGETHER), unit(together), kind)
    files[file_of(TOGETHER)] = file_digest(out / file_of(TOGETHER))
    missing = {name: np.flatnonzero(~has).tolist() for name, has in zip(names, present.T, strict=True)}
    write_table(out / KEYS, KeysRecord(keys=samples.sample_keys(), lacks=missing))
    return files


def write_vectors(path: Path, vectors: Vectors, kind: Search) -> None:
    """Write unit vectors, and their cells for approximate search. Equal vectors give an equal file."""
    arrays = {"vectors": vectors, **(_cells(vectors) if kind == "approximate" else {})}
    with replacing_file(path) as temporary:
        write_tensors(temporary, {name: torch.from_numpy(array) for name, array in arrays.items()})


def _cells(vectors: Vectors) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of an inverted file: k-means on the sphere, and as many probes as reach RECALL."""
    library, (count, dims) = faiss(), vectors.shape
    threads = library.omp_get_max_threads()
    library.omp_set_num_threads(1)  # several threads may round differently
    try:
        means = library.Kmeans(dims, math.isqrt(count), niter=10, seed=0, spherical=True, min_points_per_centroid=1,
                               max_points_per_centroid=64)  # fmt: skip
        means.train(vectors)
        arrays = {"centroids": means.centroids, "cells": means.assign(vectors)[1].astype(np.int32)}
        queries = vectors[:: -(-count // 256)]
        tenth = new_index(vectors).search(queries, 10)[0][:, -1:] - 1e-6  # equal vectors are equally near
        index = new_index(vectors, **arrays, probes=np.ones(1, np.int32))
        while index.nprobe < index.nlist and (index.search(queries, 10)[0] >= tenth).mean() < RECALL:
            index.nprobe = min(2 * index.nprobe, index.nlist)
    finally:
        library.omp_set_num_threads(threads)
    return {**arrays, "probes": np.array([index.nprobe], np.int32)}


def new_index(vectors: Vectors, centroids: Any = None, cells: Any = None, probes: Any = None) -> Any:
    """Return the FAISS index of the arrays of a vector file, by inner product."""
    library = faiss()
    flat = library.IndexFlatIP(vectors.shape[1])
    flat.add(vectors if centroids is None else centroids)
    if centroids is None:
        return flat
    index, cells = library.IndexIVFFlat(flat, flat.d, flat.ntotal, library.METRIC_INNER_PRODUCT), cells.astype(np.int64)
    index.add_core(len(vectors), library.swig_ptr(vectors), None, library.swig_ptr(cells))
    index.nprobe = int(probes[0])
    return index


def read_vectors(path: Path, count: int, sha256: str | None, kind: Search) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of a file of `count` vectors. Raises CheckpointError if it is missing or damaged."""
    if not path.exists() or file_digest(path) != sha256:
        raise CheckpointError(f"{path}: missing, or damaged: not the file that was written; {REBUILD}")
    try:
        arrays = {name: tensor.numpy() for name, tensor in load_file(path).items()}
    except (SafetensorError, OSError, TypeError, ValueError) as error:  # numpy has no bfloat16
        raise CheckpointError(f"{path}: damaged: {error}; {REBUILD}") from None
    sizes = {name: (str(array.dtype), *array.shape) for name, array in arrays.items()}
    dims, cell_count = sizes.get("vectors", (0,))[-1], sizes.get("centroids", (0, 0))[1:2]
    expected: dict[str, tuple[Any, ...]] = {"vectors": ("float32", count, dims)}
    if kind == "approximate":
        expected |= {"centroids": ("float32", *cell_count, dims), "cells": ("int32", count), "probes": ("int32", 1)}
    if sizes != expected:
        raise CheckpointError(f"{path}: damaged: has {sizes}, expected {expected}; {REBUILD}")
    sound = all(array.size and math.isfinite(np.vdot(array, array)) for array in arrays.values())
    if sound and kind == "approximate":
        cells, probes = arrays["cells"], arrays["probes"]
        sound = cells.min() >= 0 and cells.max() < len(arrays["centroids"]) and probes[0] > 0
    if not sound:
        raise CheckpointError(f"{path}: damaged: numbers are missing, out of range, or not finite; {REBUILD}")
    return arrays


def _card(identity: Mapping[str, Any], samples: int) -> str:
    return f"""# An index of {samples} samples

Modalities: {", ".join(identity["modalities"])}. Built from the split `{identity["split"]}` of a run's tokens.

    zoo retrieve query THIS_FOLDER --keys KEY --input NAME
"""


# ---------------------------------------------------------------- searching


@dataclass(frozen=True, kw_only=True, slots=True)
class Hit:
    """A sample that was found, and its cosine similarity to the query."""

    key: str
    cosine: float


class Index:
    """An opened index. Raises CheckpointError if there is none, if it is damaged, or if its backbone is gone.

    `run` is the folder of its backbone, if it was moved.
    """

    def __init__(self, folder: Path, run: Path | None = None) -> None:
        self.folder = Path(folder)
        record = read_run(self.folder)
        if record is None or record.kind != INDEX.name or record.finished is None:
            raise CheckpointError(
                f"{folder}: no finished index; run zoo retrieve build RUN --out {shlex.quote(str(folder))}"
            )
        tensors, config = load_record(self.folder, CLASS, IndexRecord)
        self._files = as_record(record.finished, VectorFiles, self.folder / RUN, remedy=REBUILD).files
        self.keys, self._missing = _read_keys(self.folder / KEYS)
        self.run = run or Path(record.places.get("run") or "nowhere")
        if not self.run.is_dir():
            raise CheckpointError(f"{self.folder}: its backbone was in {self.run}, which is gone; give --run RUN")
        self.embedding = from_mapping(EmbeddingConfig, config.embedding)
        self.fingerprint, self.split, self.search_kind = config.fingerprint, config.split, config.search
        self.tokenizers = config.tokenizers
        self.names = list(config.modalities)
        try:
            self._spaces = _spaces(tensors, self.names)
        except KeyError as error:
            raise CheckpointError(f"{self.folder}: its space lacks {error}; {REBUILD}") from None
        self._opened: dict[str, Any] = {}

    def embedder(self, model: AnyToAny) -> Embedder:
        """Return the embedder for queries. Raises CheckpointError if backbone or `via` tokenizer have changed."""
        embedder = Embedder(model, self.embedding)
        if embedder.fingerprint != self.fingerprint:
            raise CheckpointError(
                f"{self.folder}: built by the backbone {self.fingerprint[:12]}, and {model.run.folder} holds "
                f"{embedder.fingerprint[:12]}; give --run RUN, or build the index again with --overwrite"
            )
        if (via := self.embedding.via) and self.tokenizers.get(via) != embedder.via.fingerprint:
            raise CheckpointError(f"{self.folder}: built with another tokenizer of {via}; {REBUILD}")
        embedder.spaces = dict(self._spaces)
        return embedder

    def check(self, names: Sequence[str]) -> None:
        """Raise UnknownNameError for a modality that the index does not have; TOGETHER stands for all of them."""
        for name in names:
            if name not in (TOGETHER, *self.names):
                raise UnknownNameError.of("modality of this index", name, self.names)

    def size(self, find: str = TOGETHER) -> int:
        """Return the number of samples with the modality `find`, or of all samples."""
        return len(self.keys) - len(self._missing.get(find, ()))

    def keys_of(self, find: str) -> Sequence[str]:
        """Return the keys of the samples with the modality `find`, in the order of its vectors."""
        if self.size(find) == len(self.keys):
            return self.keys
        return [self.keys[sample] for sample in np.delete(np.arange(len(self.keys)), self._missing[find])]

    def search(
        self, queries: Vectors, k: int, find: str = TOGETHER, exclude: Sequence[str] | None = None
    ) -> list[list[Hit]]:
        """Return the k nearest samples of each unit vector, by the modality `find`; `exclude` has a key per query."""
        keys, index = self.keys_of(find), self.open(find)
        if queries.shape[1] != index.d:
            raise CheckpointError(
                f"{self.folder}: has vectors of {index.d} numbers, expected {queries.shape[1]}; {REBUILD}"
            )
        hit_count = min(k + (exclude is not None), len(keys))
        options = {}
        if self.search_kind == "approximate":  # all cells for a quarter of the vectors
            probes = index.nprobe + 4 * hit_count * index.nlist // len(keys)
            options["params"] = faiss().SearchParametersIVF(nprobe=probes)
        cosines, rows = index.search(np.ascontiguousarray(queries, np.float32), hit_count, **options)
        hits_by_query = []
        for number, (near, similar) in enumerate(zip(rows.tolist(), cosines.tolist(), strict=True)):
            hits = [Hit(key=keys[row], cosine=cosine) for row, cosine in zip(near, similar, strict=True) if row >= 0]
            hits_by_query.append([hit for hit in hits if exclude is None or hit.key != exclude[number]][:k])
        return hits_by_query

    def open(self, find: str) -> Any:
        """Return the FAISS index of a modality. Raises CheckpointError if its file is damaged."""
        if find not in self._opened:
            path = self.folder / file_of(find)
            arrays = read_vectors(path, self.size(find), self._files.get(path.name), self.search_kind)
            self._opened[find] = new_index(**arrays)
        return self._opened[find]


def file_of(name: str) -> str:
    """Return the file name of a modality's vectors."""
    return "together.safetensors" if name == TOGETHER else f"of-{name}.safetensors"


def _spaces(tensors: Mapping[str, Any], names: Sequence[str]) -> dict[str, Affine]:
    """Return the map of each modality, from the tensors of model.safetensors. Raises KeyError."""
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    return {name: Affine(mean=arrays[f"{name}.mean"], projection=arrays.get(f"{name}.projection")) for name in names}


def _read_keys(path: Path) -> tuple[list[str], dict[str, npt.NDArray[np.int64]]]:
    """Return all keys, and the numbers of the samples that lack each modality. Raises CheckpointError."""
    record = read_record(path, KeysRecord)
    for name, numbers in record.lacks.items():
        if numbers != sorted(set(numbers)) or not all(0 <= number < len(record.keys) for number in numbers):
            raise CheckpointError(f"{path}: damaged (bad sample numbers of {name}); {REBUILD}")
    return record.keys, {name: np.array(numbers, np.int64) for name, numbers in record.lacks.items()}
