"""Match the modalities of a published backbone with installed plugins, or describe them by their tokens."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tokenizers_zoo.config import from_mapping
from tokenizers_zoo.errors import CheckpointError, ZooError
from tokenizers_zoo.ml4m.source import PublishedCheckpoint
from tokenizers_zoo.registry import Zoo
from tokenizers_zoo.spec import (
    EmbeddingsLayout,
    GridLayout,
    ModalitySpec,
    PatchesLayout,
    SequenceLayout,
    TokenLayout,
    ValueSpec,
    VectorLayout,
)
from tokenizers_zoo.text_vocab import VocabularyConfig

PRESET = "4m"
"""Preset of plugins and of the text vocabulary with their published sizes."""
TEXT = "text"
"""The vocabulary of published sequences."""
WORDS = from_mapping(VocabularyConfig, VocabularyConfig.presets[PRESET])
"""That vocabulary's ids."""
TOKENIZERS = "tokenizers"
"""Folder of imported tokenizers, next to the registry.toml."""
NO_CODEC = "tokens without a codec: no installed plugin makes them"
"""Value description of a modality without a plugin."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedModality:
    """A modality, as described by the tensors of a published backbone."""

    published: str
    """Its published name, such as `tok_x@224`."""
    read: bool
    """Whether the encoder reads it."""
    made: bool
    """Whether the decoder predicts it."""
    kind: Literal["tokens", "patches", "embeddings"]
    ids: int
    """Number of token ids; 0 for continuous modalities."""
    dim: int
    """Numbers per patch or embedding; 0 for tokens."""
    positions: int
    """Number of rows in its position table."""
    pixels: int
    """Pixels per patch, 0 for other kinds."""

    @property
    def size(self) -> int | None:
        """The resolution in its name, pixels."""
        return size_in(self.published)


def size_in(published: str) -> int | None:
    """The resolution in a published name, pixels."""
    size = published.partition("@")[2]
    return int(size) if size.isdigit() else None


def published_modalities(checkpoint: PublishedCheckpoint) -> list[PublishedModality]:
    """Return the modalities that a backbone reads or predicts, sorted by name.

    A modality without tensors on one side (inputs, targets) is absent there, even if the configuration lists it. Raises
    CheckpointError for a modality without tensors, invalid sizes, and embeddings of unknown kind or shape.
    """
    for key in ("domains_in", "domains_out"):
        given = checkpoint.config.get(key)
        if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
            raise CheckpointError(f"{checkpoint.place}: config.json: {key} {given!r}: expected a list of names")
    for key in ("image_size", "patch_size"):
        pixels = checkpoint.config.get(key, 1)
        if type(pixels) is not int or pixels < 1:
            raise CheckpointError(f"{checkpoint.place}: config.json: {key} {pixels!r}: expected a number of pixels")
    names = sorted({*checkpoint.config["domains_in"], *checkpoint.config["domains_out"]})
    found = []
    for name in names:
        inputs, targets = f"encoder_embeddings.{name}.", f"decoder_embeddings.{name}."
        read = name in checkpoint.config["domains_in"] and f"{inputs}pos_emb" in checkpoint.tensors
        made = name in checkpoint.config["domains_out"] and f"{targets}pos_emb" in checkpoint.tensors
        if not read and not made:
            raise CheckpointError(f"{checkpoint.place}: config.json names {name}, and there is no tensor of it")
        side = inputs if read else targets
        kinds = {"tokens": "token_emb.weight", "patches": "proj.weight", "embeddings": "emb_proj.weight"}
        kind = next((kind for kind, leaf in kinds.items() if side + leaf in checkpoint.tensors), None)
        if kind is None:
            raise CheckpointError(
                f"{checkpoint.place}: {name} has none of {', '.join(kinds.values())}: an embedding of another kind"
            )
        weight, table = checkpoint.tensors[side + kinds[kind]], checkpoint.tensors[f"{side}pos_emb"]
        if weight.ndim != 2 or table.ndim != 3 or not table.numel():
            raise CheckpointError(
                f"{checkpoint.place}: {name} has a table of {list(weight.shape)} and positions of {list(table.shape)};"
                " copy the folder again"
            )
        positions = table.shape[-2]
        size = size_in(name) or checkpoint.config.get("image_size", 0)
        if kind == "patches" and not size:
            raise CheckpointError(
                f"{checkpoint.place}: config.json: image_size: required, as the name {name} does not say its pixels"
            )
        pixels = size**2 // positions if kind == "patches" else 0
        if pixels and weight.shape[1] % pixels:
            raise CheckpointError(
                f"{checkpoint.place}: {name} has {weight.shape[1]} numbers per patch, and {positions} patches of"
                f" {size} x {size} pixels have {pixels} each"
            )
        found.append(
            PublishedModality(
                published=name,
                read=read,
                made=made,
                kind=kind,  # type: ignore[arg-type]
                ids=len(weight) if kind == "tokens" else 0,
                dim=0 if kind == "tokens" else weight.shape[1],
                positions=positions,
                pixels=pixels,
            )
        )
    return found


def by_published_name(installed: Zoo) -> dict[str, str]:
    """Map published names, and our names, to the installed modalities."""
    return {alias: handle.name for handle in installed.handles() for alias in (*handle.spec.aliases, handle.name)}


def registry_tables(
    config: Mapping[str, Any],
    modalities: Sequence[PublishedModality],
    installed: Zoo,
    known_tables: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return tables of a registry.toml with an instance of each installed plugin whose aliases include a published
    name.

    Also return the published name of each instance. A second resolution of a plugin is an instance `<plugin>_<size>`.
    Instances with a table in `known_tables` keep it.
    """
    ours = by_published_name(installed)
    tables: dict[str, dict[str, Any]] = {}
    published: dict[str, str] = {}
    for item in modalities:
        if item.published not in ours:
            continue
        handle = installed[ours[item.published]]
        known = handle.known_settings()
        table: dict[str, Any] = {"preset": PRESET} if "preset" in known else {}
        name = handle.name
        if name in tables:
            name, table["plugin"] = f"{handle.name}_{item.size}", handle.name
        if item.size is not None and item.size != config.get("image_size") and "image_size" in known:
            table["image_size"] = item.size
        tables[name], published[name] = dict(known_tables.get(name, table)), item.published
    shared = {key: config[key] for key in ("image_size", "patch_size") if key in config}
    return {
        "zoo": {**shared, "checkpoints": TOKENIZERS, "modalities": sorted(tables)},
        "vocabularies": {TEXT: {"preset": PRESET}},
        "modalities": tables,
    }, published


def specs_of(
    checkpoint: PublishedCheckpoint,
    modalities: Sequence[PublishedModality],
    installed: Zoo,
    path: Path,
    known_tables: Mapping[str, Any] | None = None,
    free: Collection[str] = (),
) -> tuple[dict[str, ModalitySpec], dict[str, Any], dict[str, str]]:
    """Return the spec of each published modality by its published name, tables of a registry.toml for `path`, and
    notes.

    A modality without a plugin, or whose plugin has other tokens, gets a separate spec and a note with the reason. New
    tables, and tables whose size is `free`, get the published size if only the size differs.
    """
    tables, published = registry_tables(checkpoint.config, modalities, installed, known_tables or {})
    zoo = Zoo.from_tables(tables, path)
    items = {item.published: item for item in modalities}
    specs: dict[str, ModalitySpec] = {}
    notes: dict[str, str] = {}
    fixed = set(known_tables or {}) - set(free)
    for name, theirs in published.items():
        spec, problem = fitting(zoo, name, items[theirs])
        if problem is not None and spec is not None and name not in fixed:
            table = tables["modalities"][name] | size_of(items[theirs], zoo[name].known_settings())
            resized = Zoo.from_tables({**tables, "modalities": {**tables["modalities"], name: table}}, path)
            again = fitting(resized, name, items[theirs])
            if again[1] is None:
                tables["modalities"][name], (spec, problem) = table, again
        if spec is not None and problem is None:
            specs[theirs] = spec
        else:
            notes[theirs] = f"the plugin {name} has other tokens: {problem}"
            del tables["modalities"][name]
    tables["zoo"]["modalities"] = sorted(tables["modalities"])
    taken = {spec.name for spec in specs.values()} | set(installed.names())
    for item in modalities:
        if item.published not in specs:
            notes.setdefault(item.published, "no installed plugin has this name among its aliases")
            specs[item.published] = plain_spec(item, checkpoint.config, taken)
    return specs, tables, notes


def fitting(zoo: Zoo, name: str, item: PublishedModality) -> tuple[ModalitySpec | None, str | None]:
    """Return the spec of a registry's modality, if any, and its mismatch with a published modality, if any."""
    try:
        spec = zoo[name].spec
    except ZooError as error:
        return None, str(error)
    return spec, misfit(spec, item)


def size_of(item: PublishedModality, known: Mapping[str, Any]) -> dict[str, int]:
    """Return the size of a published grid as a setting of its plugin: vectors by positions, pixels by name."""
    if item.kind != "tokens" or item.size is None:
        return {}
    if "map_size" in known:
        side = math.isqrt(item.positions)
        return {"map_size": side} if side * side == item.positions else {}
    return {"image_size": item.size} if "image_size" in known else {}


def misfit(spec: ModalitySpec, item: PublishedModality) -> str | None:
    """Return the mismatch of a spec with a published modality, None if it matches."""
    layout = spec.layout
    kind = {PatchesLayout: "patches", EmbeddingsLayout: "embeddings"}.get(type(layout), "tokens")
    if kind != item.kind:
        return f"{kind}, and these are {item.kind}"
    if spec.vocab_size != item.ids:
        return f"{spec.vocab_size} ids, and these are {item.ids}"
    if isinstance(layout, PatchesLayout | EmbeddingsLayout) and layout.dim != item.dim:
        return f"{layout.dim} numbers each, and these have {item.dim}"
    if isinstance(layout, SequenceLayout):
        ids = layout.end, layout.sentinel_start, layout.num_sentinels
        if ids != (WORDS.end, WORDS.sentinel_start, WORDS.sentinels) or spec.vocabulary != TEXT:
            return "ids that are not those of the published text vocabulary"
        return None if layout.length < item.positions else f"up to {layout.length}, and these have {item.positions}"
    if isinstance(layout, EmbeddingsLayout):
        return None if layout.length <= item.positions else f"up to {layout.length}, and these have {item.positions}"
    return None if layout.length == item.positions else f"{layout.length} tokens, and these have {item.positions}"


def plain_spec(item: PublishedModality, config: Mapping[str, Any], taken: set[str]) -> ModalitySpec:
    """Return a spec for a modality that no plugin fits, by its tensors and by 4M's naming.

    Names of grids begin with `tok_`; other tokens are sequences of the text vocabulary.
    """
    name = re.sub(r"[^a-z0-9_]+", "_", item.published.lower()).strip("_")
    name = name if re.match(r"[a-z]", name) else f"m_{name}"
    while name in taken:
        name += "_4m"
    taken.add(name)
    layout: TokenLayout
    vocabulary = name
    if item.kind == "embeddings":
        layout = EmbeddingsLayout(max_length=item.positions, dim=item.dim)
    elif item.kind == "patches":
        layout = PatchesLayout(shape=_square(item.positions), dim=item.dim)
    elif item.published.startswith("tok_"):
        shape = _square(item.positions)
        layout = GridLayout(shape=shape) if item.size else VectorLayout(length=item.positions)
    else:
        vocabulary = TEXT
        layout = SequenceLayout(
            max_length=item.positions - 1,
            end=WORDS.end,
            sentinel_start=WORDS.sentinel_start,
            num_sentinels=WORDS.sentinels,
        )
    return ModalitySpec(
        name=name,
        summary=f"tokens of {item.published}, as published",
        value=ValueSpec(kind="object", description=NO_CODEC),
        layout=layout,
        vocab_size=item.ids,
        vocabulary=vocabulary,
        aliases=(item.published,),
    )


def _square(count: int) -> tuple[int, ...]:
    """Return the sides of a square grid of `count` cells; `(count,)` if it is not a square number."""
    side = math.isqrt(count)
    return (side, side) if side * side == count else (count,)
