"""Match the modalities of a published backbone with installed plugins, or describe them by their tokens."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tokenizers_zoo.contract.layouts import (
    EmbeddingsLayout,
    GridLayout,
    PatchesLayout,
    SequenceLayout,
    TokenLayout,
    VectorLayout,
)
from tokenizers_zoo.contract.registry import Zoo
from tokenizers_zoo.contract.spec import ModalitySpec, ValueSpec
from tokenizers_zoo.errors import CheckpointError, ConfigError, ZooError
from tokenizers_zoo.files.published import PublishedCheckpoint
from tokenizers_zoo.records.config import from_mapping
from tokenizers_zoo.tokenizers.text_vocab import VocabularyConfig

PRESET = "4m"
"""Preset of plugins and of the text vocabulary with their published sizes."""
TEXT = "text"
"""The vocabulary of published sequences."""
WORDS = from_mapping(VocabularyConfig, VocabularyConfig.presets[PRESET])
"""That vocabulary's ids."""
TOKENIZERS = "tokenizers"
"""Folder of imported tokenizers, next to the registry.toml."""
NO_TOKENIZER = "tokens without a tokenizer: no installed plugin makes them"
"""Value description of a modality without a plugin."""
SIZES = ("image_size", "map_size")
"""Settings that determine the number of tokens of a grid."""
Kind = Literal["tokens", "patches", "embeddings"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedModality:
    """A modality, as described by the tensors of a published backbone."""

    published: str
    """Its published name, such as `tok_x@224`."""
    read: bool
    """Whether the encoder reads it."""
    made: bool
    """Whether the decoder predicts it."""
    kind: Kind
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


KINDS: dict[str, Kind] = {"token_emb.weight": "tokens", "proj.weight": "patches", "emb_proj.weight": "embeddings"}
"""Tensors of an embedding that tell its kind."""


def size_in(published: str) -> int | None:
    """The resolution in a published name, pixels."""
    size = published.partition("@")[2]
    return int(size) if size.isdecimal() and len(size) < 10 else None


def published_modalities(checkpoint: PublishedCheckpoint) -> list[PublishedModality]:
    """Return the modalities that a backbone reads or predicts, sorted by name.

    A modality without tensors on one side (inputs, targets) is absent there, even if the configuration lists it. Raises
    CheckpointError for a modality without tensors, invalid sizes, and embeddings of unknown kind or shape.
    """
    config, tensors = checkpoint.config, checkpoint.tensors

    def error(text: str) -> CheckpointError:
        return CheckpointError(f"{checkpoint.path}: {text}")

    for key in ("domains_in", "domains_out"):
        names = config.get(key)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise error(f"config.json: {key} {names!r}: expected a list of names")
    for key in ("image_size", "patch_size"):
        pixels = config.get(key, 1)
        if type(pixels) is not int or pixels < 1:
            raise error(f"config.json: {key} {pixels!r}: expected a number of pixels")
    modalities = []
    for name in sorted({*config["domains_in"], *config["domains_out"]}):
        inputs, targets = f"encoder_embeddings.{name}.", f"decoder_embeddings.{name}."
        read = name in config["domains_in"] and f"{inputs}pos_emb" in tensors
        predicted = name in config["domains_out"] and f"{targets}pos_emb" in tensors
        if not read and not predicted:
            raise error(f"config.json names {name}, and there is no tensor of it")
        side = inputs if read else targets
        leaf = next((leaf for leaf in KINDS if side + leaf in tensors), None)
        if leaf is None:
            raise error(f"{name} has none of {', '.join(KINDS)}: an embedding of another kind")
        kind, weight, table = KINDS[leaf], tensors[side + leaf], tensors[f"{side}pos_emb"]
        if weight.ndim != 2 or table.ndim != 3 or not table.numel():
            shapes = f"a table of {list(weight.shape)} and positions of {list(table.shape)}"
            raise error(f"{name} has {shapes}; copy the folder again")
        positions, pixels = table.shape[-2], 0
        if kind == "patches":
            size = size_in(name) or config.get("image_size", 0)
            if not size:
                raise error(f"config.json: image_size: required, as the name {name} does not say its pixels")
            pixels = size**2 // positions
            if pixels and weight.shape[1] % pixels:
                grid = f"{positions} patches of {size} x {size} pixels have {pixels} each"
                raise error(f"{name} has {weight.shape[1]} numbers per patch, and {grid}")
        modalities.append(
            PublishedModality(
                published=name,
                read=read,
                made=predicted,
                kind=kind,
                ids=len(weight) if kind == "tokens" else 0,
                dim=0 if kind == "tokens" else weight.shape[1],
                positions=positions,
                pixels=pixels,
            )
        )
    return modalities


def by_published_name(installed: Zoo) -> dict[str, str]:
    """Map published names, and our names, to the installed modalities."""
    return {alias: handle.name for handle in installed.handles() for alias in (*handle.spec.aliases, handle.name)}


def specs_of(
    checkpoint: PublishedCheckpoint,
    modalities: Sequence[PublishedModality],
    installed: Zoo,
    path: Path,
    entries: Mapping[str, Any] | None = None,
    resizable: Collection[str] = (),
) -> tuple[dict[str, ModalitySpec], dict[str, Any], dict[str, str]]:
    """Return the spec of each published modality by its published name, tables of a registry.toml for `path`, and
    notes.

    A published name is an instance of the installed plugin that has it among its aliases; a second resolution of a
    plugin is an instance `<plugin>_<size>`. A modality without a plugin, or whose plugin has other tokens, gets a
    separate spec and a note with the reason. `entries` are tables that stay, except for sizes of `resizable`
    modalities. Other tables get the published size where only the size differs.
    """
    config, entries, ours = checkpoint.config, entries or {}, by_published_name(installed)
    tables: dict[str, Any] = {
        "zoo": {
            **{key: config[key] for key in ("image_size", "patch_size") if key in config},
            "checkpoints": TOKENIZERS,
        },
        "vocabularies": {TEXT: {"preset": PRESET}},
        "modalities": {},
    }
    specs: dict[str, ModalitySpec] = {}
    notes: dict[str, str] = {}
    instances = set[str]()

    def check_fit(name: str, table: dict[str, Any], item: PublishedModality) -> tuple[ModalitySpec | None, str]:
        zoo = Zoo.from_tables({**tables, "modalities": {name: table}}, path)
        try:
            return zoo[name].spec, misfit(zoo[name].spec, item)
        except ZooError as error:
            return None, str(error)

    for item in modalities:
        if item.published not in ours:
            notes[item.published] = "no installed plugin has this name among its aliases"
            continue
        handle = installed[ours[item.published]]
        settings = handle.known_settings()
        name = handle.name
        table: dict[str, Any] = {"preset": PRESET} if "preset" in settings else {}
        if name in instances:
            name, table["plugin"] = f"{handle.name}_{item.size}", handle.name
        instances.add(name)
        if item.size is not None and item.size != config.get("image_size") and "image_size" in settings:
            table["image_size"] = item.size
        table = dict(entries.get(name, table))
        spec, mismatch = check_fit(name, table, item)
        may_resize = item.kind == "tokens" and (name not in entries or name in resizable)
        if mismatch and spec is not None and may_resize and item.size:
            # The size of a grid as a setting of its plugin: vectors by positions, pixels by name.
            side = math.isqrt(item.positions) if "map_size" in settings else item.size
            key = "map_size" if "map_size" in settings else "image_size"
            if key in settings and (key == "image_size" or side * side == item.positions):
                resized = check_fit(name, table | {key: side}, item)
                if not resized[1]:
                    table, (spec, mismatch) = table | {key: side}, resized
        if spec is not None and not mismatch:
            specs[item.published], tables["modalities"][name] = spec, table
        else:
            notes[item.published] = f"the plugin {name} has other tokens: {mismatch}"
    tables["zoo"]["modalities"] = sorted(tables["modalities"])
    used_names = {spec.name for spec in specs.values()} | set(installed.names())
    for item in modalities:
        if item.published not in specs:
            specs[item.published] = plain_spec(item, used_names)
            used_names.add(specs[item.published].name)
    return specs, tables, notes


def misfit(spec: ModalitySpec, item: PublishedModality) -> str:
    """Return the mismatch of a spec with a published modality, empty if it matches."""
    layout = spec.layout
    kind = layout.kind if layout.continuous else "tokens"
    if kind != item.kind:
        return f"{kind}, and these are {item.kind}"
    if spec.vocab_size != item.ids:
        return f"{spec.vocab_size} ids, and these are {item.ids}"
    if layout.continuous and layout.numbers_per_token != item.dim:
        return f"{layout.numbers_per_token} numbers each, and these have {item.dim}"
    longest = item.positions
    if layout.causal:
        ids = tuple(layout.special.values())
        if ids != (WORDS.end, WORDS.sentinel_start, WORDS.sentinels) or spec.vocabulary != TEXT:
            return "ids that are not those of the published text vocabulary"
        longest -= 1
    if layout.variable:
        return "" if layout.length <= longest else f"up to {layout.length}, and these have {item.positions}"
    return "" if layout.length == item.positions else f"{layout.length} tokens, and these have {item.positions}"


def plain_spec(item: PublishedModality, used_names: Collection[str]) -> ModalitySpec:
    """Return a spec for a modality that no plugin fits, by its tensors and by 4M's naming.

    Names of grids begin with `tok_`; other tokens are sequences of the text vocabulary.
    """
    name = re.sub(r"[^a-z0-9_]+", "_", item.published.lower()).strip("_")
    name = name if re.match(r"[a-z]", name) else f"m_{name}"
    while name in used_names:
        name += "_4m"
    side = math.isqrt(item.positions)
    shape = (side, side) if side * side == item.positions else (item.positions,)
    layout: TokenLayout
    vocabulary = name
    if item.kind == "embeddings":
        layout = EmbeddingsLayout(max_length=item.positions, dim=item.dim)
    elif item.kind == "patches":
        layout = PatchesLayout(shape=shape, dim=item.dim)
    elif item.published.startswith("tok_"):
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
        value=ValueSpec(kind="object", description=NO_TOKENIZER),
        layout=layout,
        vocab_size=item.ids,
        vocabulary=vocabulary,
        aliases=(item.published,),
    )


# --- sizes of tokenizers: as stated in the registry, else from the name, else as built


def size_text(size: Mapping[str, Any]) -> str:
    """Return the size among settings in the form of registry.toml."""
    return ", ".join(f"{key} = {size[key]}" for key in SIZES if key in size)


def size_for(
    zoo: Zoo, name: str, entry: Mapping[str, Any], built: Mapping[str, Any], title: str, pixels: Any
) -> tuple[dict[str, Any], bool, str]:
    """Return the size for a tokenizer's modality as settings, whether the registry states it, and a note about it.

    `entry` are the modality's settings, `built` the size that the tokenizer was built for. Published tokenizers were
    trained at several sizes and built for the largest, `pixels`; the 4M models use the smallest, as in the name
    `rgb_16k_224-448`. `zoo` is the registry before the import, `title` the tokenizer's name.
    """
    old_entry = zoo.tables["modalities"].get(name, {})
    stated = [key for key in built if key in old_entry or "preset" in old_entry or key in zoo.tables["zoo"]]
    overrides: dict[str, Any] = {}
    if stated:
        settings = zoo[name].known_settings()
        overrides = {key: list(settings[key]) if isinstance(settings[key], tuple) else settings[key] for key in stated}
    else:
        for low, high in (map(int, sizes) for sizes in re.findall(r"(?<![^_.-])(\d+)-(\d+)(?![^_.-])", title)):
            divisible = all(isinstance(side, int) and side * low % high == 0 for side in built.values())
            if high == pixels and 0 < low < high and divisible:
                overrides = {key: side * low // high for key, side in built.items()}
                break
    size = {**built, **overrides}
    if all(size[key] in (built[key], [built[key]] * 2) for key in overrides):
        return size, bool(stated), ""
    source = "as the registry says" if stated else "as the 4M models use it"
    try:
        _ = Zoo.from_tables({**zoo.tables, "modalities": {name: {**entry, **overrides}}}, zoo.path)[name]
    except ConfigError as error:
        reason = str(error).removeprefix(f"{zoo.path}: ")
        note = f"{size_text(built)}, its own: {size_text(overrides)}, {source}, does not do: {reason}"
        return dict(built), False, note
    return size, bool(stated), f"{size_text(overrides)}, {source}; it was built for {size_text(built)}"
