"""Indexes on disk: vectors in FAISS, the keys of their samples, and what they were made with.

    INDEX/config.json         "class", "run" and "fingerprint" of the backbone, "split", "embedding" (how vectors are
                              made), "codecs", "modalities" {name: vectors}, "together": samples, "search": exact or
                              approximate, "samples": sha256 of the samples' keys and tokens
    INDEX/model.safetensors   the space: `<modality>.mean` and `<modality>.projection`
    INDEX/keys.json           {name: [keys]}, in the order of the vectors; "" is all modalities together
    INDEX/together.faiss      a vector a sample: the mean of those of its modalities, at length 1
    INDEX/of-<name>.faiss     a vector for each sample that has the modality

One process at a time makes an index. It does so in `.INDEX.building` beside its place, where the index that it replaces
waits, too, and renames it when it is whole. A killed build leaves nothing that counts: the same command begins again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from backbone.retrieval.config import EmbeddingConfig, Search
from backbone.retrieval.embedding import Embedder
from backbone.retrieval.spaces import Affine, Vectors, unit
from backbone.training.data import TokenData
from tokenizers_zoo import checkpoint
from tokenizers_zoo.config import from_mapping
from tokenizers_zoo.data.tokens import samples_digest
from tokenizers_zoo.errors import CheckpointError, ConfigError, UnknownNameError, ZooError
from tokenizers_zoo.progress import progress_bar
from tokenizers_zoo.registry import Zoo

CLASS = "RetrievalIndex"
KEYS = "keys.json"
TOGETHER = ""
"""Names the vectors of all modalities together."""
SAMPLES = "samples"
"""Where config.json says which samples it is of; indexes of earlier versions do not."""
NEW, OLD = "new", "old"
"""In the folder beside an index: the one that is being built, and the one that it replaces."""
LARGE = 100_000
"""Vectors from which on an index is approximate where nothing else is asked for."""
LINKS, BUILD_WIDTH, SEARCH_WIDTH = 32, 200, 128
"""Of HNSW (arXiv 1603.09320): links a vector, and candidates kept while building and, at least, while searching."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hit:
    """A sample that was found, and its cosine to the query."""

    key: str
    cosine: float


def faiss() -> Any:
    """The library. Raises ZooError where it is not installed."""
    try:
        import faiss as library
    except ImportError:
        raise ZooError(
            "retrieval: faiss is not installed; pip install 'tokenizers-zoo[retrieval]' (or faiss-cpu)"
        ) from None
    return library


class Index:
    """An index on disk, opened. Raises CheckpointError where it is none, or damaged."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        tensors, self.config = checkpoint.load_checkpoint(self.folder, CLASS)
        keys = checkpoint.read_table(self.folder / KEYS, TOGETHER)
        self.keys: dict[str, list[str]] = {name: list(rows) for name, rows in keys.items()}
        try:
            self.embedding = from_mapping(EmbeddingConfig, self.config["embedding"])
            self.run, self.fingerprint = Path(self.config["run"]), str(self.config["fingerprint"])
            self.split, self.search_kind = str(self.config["split"]), str(self.config["search"])
            self.spaces = {
                name: Affine(mean=tensors[f"{name}.mean"].numpy(), projection=_numpy(tensors.get(f"{name}.projection")))
                for name in self.names
            }
        except (KeyError, TypeError, ValueError, ZooError) as error:
            raise CheckpointError(f"{self.folder}: config.json does not describe an index: {error}") from None
        self._opened: dict[str, Any] = {}

    @property
    def names(self) -> list[str]:
        """Its modalities."""
        return [name for name in self.keys if name != TOGETHER]

    def embedder(self, zoo: Zoo, device: str = "cpu") -> Embedder:
        """What makes vectors for this index. Raises CheckpointError where its backbone is another by now."""
        embedder = Embedder(self.run, zoo, self.embedding, device)
        if embedder.fingerprint != self.fingerprint:
            raise CheckpointError(
                f"{self.folder}: built by the backbone {self.fingerprint[:12]}, and {self.run} now holds "
                f"{embedder.fingerprint[:12]}; build the index again with --overwrite"
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
        return len(self.keys[find])

    def search(
        self, queries: Vectors, k: int, find: str = TOGETHER, without: Sequence[str | None] | None = None
    ) -> list[list[Hit]]:
        """The `k` samples closest to each query, `queries dims` of length 1, or all where there are fewer.

        `without` has for each query a key that is left out, or None.
        """
        keys, index = self.keys[find], self._open(find)
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

    def _open(self, find: str) -> Any:
        if find not in self._opened:
            path = self.folder / _file(find)
            try:
                index = faiss().read_index(str(path))
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                raise CheckpointError(
                    f"{path}: no sound FAISS index ({reason}); build it again with --overwrite"
                ) from None
            if index.ntotal != len(self.keys[find]):
                raise CheckpointError(
                    f"{path}: holds {index.ntotal} vectors, and {KEYS} has {len(self.keys[find])}; build it again with "
                    "--overwrite"
                )
            self._opened[find] = index
        return self._opened[find]


def build(
    run: Path,
    zoo: Zoo,
    out: Path,
    *,
    config: EmbeddingConfig,
    split: str = "test",
    modalities: Sequence[str] | None = None,
    search: Search | None = None,
    overwrite: bool = False,
    device: str = "cpu",
) -> Index:
    """Embed the stored samples of a split and write an index of them to `out`, which is whole or not there.

    An index that is there already and is the same is left as it is. Raises ConfigError where another one is there and
    is not to be replaced, CheckpointError where more than an index would be or another process builds it right now, and
    ZooErrors for what does not fit together.
    """
    library = faiss()
    embedder = Embedder(run, zoo, config, device)
    names = embedder.names(modalities, split)
    data = embedder.stored(split, names)
    kind: Search = search or ("approximate" if len(data) > LARGE else "exact")
    described = {
        "class": CLASS, "run": str(Path(run).resolve()), "fingerprint": embedder.fingerprint, "split": split,
        "embedding": dataclasses.asdict(config), "codecs": data.fingerprints | embedder.via_codec(), "search": kind,
        "modalities": {name: int((data.rows[:, column] >= 0).sum()) for column, name in enumerate(names)},
        "together": len(data), SAMPLES: samples_digest(data.columns),
    }  # fmt: skip
    place, tokens = out.resolve(), embedder.run.tokens / split
    if not overwrite and _holds(place) and not _beside(place).exists():
        return _same(out, described, tokens)
    with _only_build(out) as folder:
        if _holds(place):
            if not overwrite:
                return _same(out, described, tokens)
            _check_replaceable(out)
        _check_movable(out)
        embedder.fit(names, lambda total: progress_bar("fit the space", total))
        vectors, keys = _embedded(embedder, data, names)
        _write(library, folder / NEW, described, embedder.spaces, vectors, keys, kind)
        if _holds(place):
            os.replace(place, folder / OLD)
        os.replace(folder / NEW, place)
    return Index(out)


def _holds(place: Path) -> bool:
    """True for a folder in which something is."""
    return place.exists() and any(place.iterdir())


def _beside(place: Path) -> Path:
    return place.parent / f".{place.name}.building"


@contextlib.contextmanager
def _only_build(out: Path) -> Iterator[Path]:
    """A folder beside `out` with an empty NEW, for the only process that builds this index; removed after the block.

    An index that is set aside there as OLD comes back where none has taken its place, also where a kill left it. Raises
    CheckpointError where another process that is alive builds the index.
    """
    busy = f"{out}: another process builds this index right now; wait for its end, or stop it"
    place = out.resolve()
    folder = _beside(place)
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as until_done:
        try:
            found = folder.stat().st_ino
            until_done.enter_context(checkpoint.held(folder, busy))
            if folder.stat().st_ino != found:  # another's, in the place of the one that is locked now
                raise CheckpointError(busy)
            _tidy(folder, place)
            (folder / NEW).mkdir()
        except FileNotFoundError:  # the other removed its folder just now
            raise CheckpointError(busy) from None
        try:
            yield folder
        finally:
            _tidy(folder, place)
            checkpoint.remove_folder(folder)


def _tidy(folder: Path, place: Path) -> None:
    """Put OLD back where there is no index, and remove what else is there of a build."""
    if checkpoint.is_complete(folder / OLD) and not _holds(place):
        os.replace(folder / OLD, place)
    for name in (NEW, OLD):
        checkpoint.remove_folder(folder / name)


def _check_movable(out: Path) -> None:
    """Raise CheckpointError for a folder, even an empty one, in whose place no other can be put."""
    place = out.resolve()
    if place.exists() and Path.cwd().is_relative_to(place):
        raise CheckpointError(f"{out}: is where the command runs, and cannot be replaced; run it somewhere else")
    if place.is_mount():
        raise CheckpointError(f"{out}: is a disk of its own, and cannot be replaced; give a folder in it")


def _check_replaceable(out: Path) -> None:
    """Raise CheckpointError for a folder that is no index, or holds more than one: it would be lost."""
    names = checkpoint.load_config(out, CLASS).get("modalities", ())
    own = {checkpoint.CONFIG, checkpoint.WEIGHTS, checkpoint.CARD, KEYS, *map(_file, (TOGETHER, *names))}
    if foreign := sorted({path.name for path in out.iterdir()} - own):
        raise CheckpointError(
            f"{out}: holds {foreign[0]}, which is no part of an index and would be removed; move it away, or give "
            "another folder"
        )


def _same(out: Path, described: Mapping[str, Any], tokens: Path) -> Index:
    """The index that is there. Raises ConfigError where it is another one, or of other samples than `tokens` has, and
    CheckpointError where a file of vectors is damaged.
    """
    try:
        index = Index(out)
    except CheckpointError as error:
        raise ConfigError(
            f"{out}: is there, and is no index, or a damaged one ({error}); replace that with --overwrite, or give "
            "another folder"
        ) from None
    for key, value in described.items():
        if index.config.get(key) == value or (key == SAMPLES and key not in index.config):
            continue
        held = f"with {key} = {index.config.get(key)}, not {value}"
        if key in ("together", SAMPLES) or (key == "modalities" and set(value) == set(index.names)):
            held = f"of other samples than {tokens} has now (their number, keys or tokens)"
        raise ConfigError(f"{out}: holds an index {held}; replace it with --overwrite, or give another folder")
    for name in index.keys:
        index._open(name)
    return index


def _embedded(
    embedder: Embedder, data: TokenData, names: Sequence[str]
) -> tuple[dict[str, Vectors], dict[str, list[str]]]:
    """Vectors and keys of each modality, and of all together."""
    vectors: dict[str, Vectors] = {}
    keys: dict[str, list[str]] = {TOGETHER: data.keys}
    with progress_bar("embed", int((data.rows >= 0).sum())) as advance:
        for column, name in enumerate(names):
            has = np.flatnonzero(data.rows[:, column] >= 0)
            if not len(has):
                raise ConfigError(f"{name}: no sample of this split has it; leave it out of --modalities")
            vectors[name] = embedder.embed_stored(data, name, data.rows[has, column].tolist(), advance)
            keys[name] = [data.keys[sample] for sample in has]
            if TOGETHER not in vectors:
                vectors[TOGETHER] = np.zeros((len(data), vectors[name].shape[1]), np.float32)
            vectors[TOGETHER][has] += vectors[name]
    vectors[TOGETHER] = unit(vectors[TOGETHER])
    return vectors, keys


def _write(
    library: Any, folder: Path, described: Mapping[str, Any], spaces: Mapping[str, Affine],
    vectors: Mapping[str, Vectors], keys: Mapping[str, list[str]], kind: Search,
) -> None:  # fmt: skip
    """Fill an empty folder."""
    tensors = {f"{name}.mean": torch.from_numpy(space.mean) for name, space in spaces.items()}
    tensors |= {
        f"{name}.projection": torch.from_numpy(space.projection)
        for name, space in spaces.items() if space.projection is not None
    }  # fmt: skip
    for name, rows in vectors.items():
        library.write_index(_index_of(library, rows, kind), str(folder / _file(name)))
    checkpoint.write_json(folder / KEYS, dict(keys))
    checkpoint.save_checkpoint(folder, tensors, described, _card(described))


def _index_of(library: Any, vectors: Vectors, kind: Search) -> Any:
    """A FAISS index of unit vectors by inner product, the same whenever it is built."""
    dims = vectors.shape[1]
    if kind == "exact":
        index = library.IndexFlatIP(dims)
        index.add(vectors)
        return index
    index = library.IndexHNSWFlat(dims, LINKS, library.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = BUILD_WIDTH
    threads = library.omp_get_max_threads()
    library.omp_set_num_threads(1)  # threads link in the order in which they get there
    try:
        index.add(vectors)
    finally:
        library.omp_set_num_threads(threads)
    return index


def _file(name: str) -> str:
    return "together.faiss" if name == TOGETHER else f"of-{name}.faiss"


def _numpy(tensor: torch.Tensor | None) -> Vectors | None:
    return None if tensor is None else tensor.numpy()


def _card(described: Mapping[str, Any]) -> str:
    """README.md of an index."""
    rows = [f"| {name} | {count} |" for name, count in described["modalities"].items()]
    embedding = ", ".join(f"{key} {value}" for key, value in described["embedding"].items() if value != "")
    return f"""# An index of {described["together"]} samples

Built from the split `{described["split"]}` of the tokens of `{described["run"]}` ({embedding});
{described["search"]} search.

    zoo retrieve query THIS_FOLDER --keys KEY --given NAME

| modality | vectors |
|---|---|
{chr(10).join(rows)}
"""
