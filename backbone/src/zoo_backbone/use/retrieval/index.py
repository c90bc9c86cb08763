"""Indexes: vectors of stored samples, per modality and of all modalities together, which are searched exactly.

run.json            see `RunFolder`; "places" has the run, "finished" the sha256 of the vector files
config.json         the identity: "fingerprint" of the backbone, "embedding", "tokenizers", "samples": sha256 of keys
                    and tokens
model.safetensors   the space: `<modality>.mean` and `<modality>.projection`
keys.json           "keys" of all samples; "lacks": {name: numbers of the samples without the modality}
of-<name>.safetensors   a vector for each sample with the modality
together.safetensors    a vector for each sample: the normalised sum over its modalities

A vector file has `vectors` float32 `(n, dims)`. It is mapped into memory and searched in blocks.
"""

from __future__ import annotations

import dataclasses
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
from torch import Tensor

from tokenizers_zoo.contract.registry import Zoo
from tokenizers_zoo.errors import CheckpointError, ConfigError, UnknownNameError, ZooError
from tokenizers_zoo.files.checkpoint import CARD, CONFIG, WEIGHTS, load_checkpoint, load_record, save_checkpoint
from tokenizers_zoo.files.run_folder import RUN, RunFolder, RunKind, read_run
from tokenizers_zoo.machine.progress import progress_bar
from tokenizers_zoo.records.io import as_record, file_digest, read_record, replacing_file, write_table, write_tensors
from tokenizers_zoo.records.typed import as_dicts
from zoo_backbone.learn.data import TokenData
from zoo_backbone.model.run import Run
from zoo_backbone.use.any_to_any import AnyToAny
from zoo_backbone.use.retrieval import TOGETHER, EmbeddingConfig
from zoo_backbone.use.retrieval.embed import Affine, Embedder, Vectors, unit

CLASS = "RetrievalIndex"
KEYS = "keys.json"
INDEX = RunKind(
    name="index",
    files=(WEIGHTS, CONFIG, CARD, KEYS, "of-*.safetensors", "together.safetensors"),
    state="space.json",
    results=(WEIGHTS, CONFIG, KEYS),
)
"""`space.json` marks that the space is fitted, and has the sha256 of the complete vector files, which a build
that resumes reuses."""
BLOCK_BYTES = 64 << 20
"""Memory for a block of vectors, and for the cosines of all queries with it."""
REBUILD = "build it again with --overwrite"


@dataclass(frozen=True, kw_only=True)
class IndexRecord:
    """config.json of an index."""

    fingerprint: str
    """The backbone's."""
    embedding: EmbeddingConfig
    tokenizers: Mapping[str, str]
    samples: str
    """sha256 of the keys and tokens."""


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


# ---------------------------------------------------------------- building


def build(
    run: Run, zoo: Zoo, out: Path, config: EmbeddingConfig, *, overwrite: bool = False, device: str = "cpu"
) -> Index:
    """Embed the stored samples of a split and write an index to `out`. Resumes a killed build.

    A finished, equal index is kept, with the path of its run updated. Raises FolderError if `out` holds something else.
    """
    out, embedder = Path(out), Embedder(AnyToAny.load(run, zoo, device=device), config)
    names = embedder.names()
    samples = embedder.load_split(config.split, names)
    present = samples.present(samples.rows(np.arange(len(samples))))
    for name, has in zip(names, present.T, strict=True):
        if not has.any():
            raise ConfigError(f"{name}: no sample of the split {config.split} has it; leave it out of --modalities")
    record = IndexRecord(
        fingerprint=embedder.fingerprint,
        embedding=dataclasses.replace(config, modalities=tuple(names)),
        tokenizers=embedder.tokenizers(samples),
        samples=samples.contents(),
    )
    identity = as_dicts(record)
    with RunFolder(out, INDEX, identity, {"run": str(embedder.run.folder.resolve())}).open(overwrite) as folder:
        if folder.finished is None:
            if folder.resuming:
                embedder.spaces = _spaces(load_checkpoint(out, CLASS)[0], names)
            else:
                embedder.fit(names)
                tensors = {
                    f"{name}.{part}": torch.from_numpy(array)
                    for name, space in embedder.spaces.items()
                    for part, array in vars(space).items()
                    if array is not None
                }
                save_checkpoint(out, tensors, {"class": CLASS, **identity}, _card(record.embedding, len(samples)))
                write_table(out / INDEX.state, VectorFiles(files={}))
            files = _write_vectors(out, embedder, samples, present, names)
            folder.finish(samples=len(samples), files=files)
    index = Index(out)
    for name in (TOGETHER, *index.names):
        index.vectors(name)  # raises CheckpointError if an earlier file is damaged
    return index


def _write_vectors(
    out: Path, embedder: Embedder, samples: TokenData, present: npt.NDArray[np.bool_], names: Sequence[str]
) -> dict[str, str]:
    """Write keys and vectors, one modality after the other, and return the sha256 of the vector files by name.

    Complete files are kept.
    """
    files = dict(read_record(out / INDEX.state, VectorFiles).files)
    together = np.zeros(0, np.float32)
    with progress_bar(f"embed {max(names, key=len)}", int(present.sum())) as advance:
        for name, has in zip(names, present.T, strict=True):
            path, indices = out / file_of(name), np.flatnonzero(has)
            try:
                vectors = read_vectors(path, len(indices), files.get(path.name)).numpy()
                advance(len(indices))
            except CheckpointError:
                vectors = embedder.embed_stored(samples, name, indices, partial(advance, title=f"embed {name}"))
                files[path.name] = write_vectors(path, vectors)
                write_table(out / INDEX.state, VectorFiles(files=files))
            if not len(together):
                together = np.zeros((len(samples), vectors.shape[1]), np.float32)
            together[indices] += vectors
            del vectors  # before the next modality is embedded
    files[file_of(TOGETHER)] = write_vectors(out / file_of(TOGETHER), unit(together))
    missing = {name: np.flatnonzero(~has).tolist() for name, has in zip(names, present.T, strict=True)}
    write_table(out / KEYS, KeysRecord(keys=samples.sample_keys(), lacks=missing))
    return files


def write_vectors(path: Path, vectors: Vectors) -> str:
    """Write unit vectors `(n, dims)` and return the sha256 of the file."""
    with replacing_file(path) as temporary:
        write_tensors(temporary, {"vectors": torch.from_numpy(vectors)})
    return file_digest(path)


def read_vectors(path: Path, count: int, sha256: str | None) -> Tensor:
    """Return the vectors `(count, dims)` of a file, mapped into memory. Raises CheckpointError if it is damaged."""
    if not path.exists() or file_digest(path) != sha256:
        raise CheckpointError(f"{path}: missing, or damaged: not the file that was written; {REBUILD}")
    try:
        vectors = load_file(path)["vectors"]
    except (SafetensorError, OSError, KeyError) as error:
        raise CheckpointError(f"{path}: damaged: {error}; {REBUILD}") from None
    if vectors.dtype != torch.float32 or vectors.ndim != 2 or len(vectors) != count:
        actual = f"{vectors.dtype} {tuple(vectors.shape)}"
        raise CheckpointError(f"{path}: damaged: has {actual}, expected {count} vectors of float32; {REBUILD}")
    return vectors


def nearest(vectors: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the cosines and the rows `(queries, k)` of the nearest unit vectors `(n, dims)`, the nearest first.

    The vectors are read in blocks of BLOCK_BYTES, so that memory does not depend on their number.
    """
    cosines, rows = queries.new_empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
    step = max(1, BLOCK_BYTES // (vectors.element_size() * max(vectors.shape[1], len(queries), 1)))
    for start in range(0, len(vectors), step):
        block = queries @ vectors[start : start + step].T
        near = block.topk(min(k, block.shape[1]))
        cosines = torch.cat([cosines, near.values], 1)
        cosines, order = cosines.topk(min(k, cosines.shape[1]))
        rows = torch.cat([rows, near.indices + start], 1).gather(1, order)
    return cosines, rows


def _card(config: EmbeddingConfig, samples: int) -> str:
    return f"""# An index of {samples} samples

Modalities: {", ".join(config.modalities)}. Built from the split `{config.split}` of a run's tokens.

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
        self.embedding, self.fingerprint, self.tokenizers = config.embedding, config.fingerprint, config.tokenizers
        self.split, self.names = config.embedding.split, list(config.embedding.modalities)
        try:
            self._spaces = _spaces(tensors, self.names)
        except KeyError as error:
            raise CheckpointError(f"{self.folder}: its space lacks {error}; {REBUILD}") from None
        self._vectors: dict[str, Tensor] = {}

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
        keys, vectors = self.keys_of(find), self.vectors(find)
        if queries.shape[1] != vectors.shape[1]:
            raise CheckpointError(
                f"{self.folder}: has vectors of {vectors.shape[1]} numbers, expected {queries.shape[1]}; {REBUILD}"
            )
        hit_count = k + (exclude is not None)
        cosines, rows = nearest(vectors, torch.from_numpy(np.ascontiguousarray(queries, np.float32)), hit_count)
        if not torch.isfinite(cosines).all():
            raise CheckpointError(f"{self.folder / file_of(find)}: damaged: has numbers that are not finite; {REBUILD}")
        hits_by_query = []
        for number, (near, similar) in enumerate(zip(rows.tolist(), cosines.tolist(), strict=True)):
            hits = [Hit(key=keys[row], cosine=cosine) for row, cosine in zip(near, similar, strict=True)]
            hits_by_query.append([hit for hit in hits if exclude is None or hit.key != exclude[number]][:k])
        return hits_by_query

    def vectors(self, find: str = TOGETHER) -> Tensor:
        """Return the vectors of a modality, float32 `(samples, dims)`; row i is the sample `keys_of(find)[i]`.

        They are mapped into memory. Raises CheckpointError if their file is damaged.
        """
        if find not in self._vectors:
            path = self.folder / file_of(find)
            self._vectors[find] = read_vectors(path, self.size(find), self._files.get(path.name))
        return self._vectors[find]

    def to_faiss(self, find: str = TOGETHER, factory: str = "Flat") -> Any:
        """Return a FAISS index of the vectors of a modality, by inner product, in memory.

        `factory` is FAISS's description of an index, such as "HNSW32" or "IVF1024,Flat". Raises ZooError if FAISS is
        not installed.
        """
        try:
            import faiss
        except ImportError:
            raise ZooError("to_faiss: faiss is not installed; pip install 'zoo-backbone[retrieval]'") from None
        vectors = self.vectors(find).numpy()
        index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        index.train(vectors)
        index.add(vectors)
        return index


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
