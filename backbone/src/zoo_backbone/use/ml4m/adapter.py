"""State-dict adapter: a published backbone as a `PublishedFourM`, and back, bit by bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from tokenizers_zoo.contract.spec import ModalitySpec
from tokenizers_zoo.errors import CheckpointError, ConfigError
from tokenizers_zoo.files.checkpoint import checkpoint_errors, load_config, load_record, save_checkpoint
from tokenizers_zoo.files.published import PLAIN_METADATA, PublishedCheckpoint
from tokenizers_zoo.records.config import from_mapping
from zoo_backbone.learn.checkpoint import (
    CLASS,
    PUBLISHED,
    model_card,
    model_config,
    model_tensors,
    stored_config,
)
from zoo_backbone.model.config import Biased
from zoo_backbone.model.published import PublishedConfig, PublishedFourM
from zoo_backbone.model.run import BackboneRecord
from zoo_backbone.use.ml4m.modalities import PublishedModality, misfit, published_modalities

ACTIVATIONS = {"SiLU": "silu", "GELU": "gelu"}
BIASES: dict[str, Biased] = {"qkv_bias": "qkv", "proj_bias": "out", "mlp_bias": "mlp", "norm_bias": "norm"}
DEFAULTS: dict[str, Any] = {
    "encoder_depth": 12,
    "decoder_depth": 12,
    "num_heads": 12,
    "mlp_ratio": 4.0,
    "qkv_bias": True,
    "proj_bias": True,
    "mlp_bias": True,
    "norm_bias": True,
    "act_layer": "GELU",
    "gated_mlp": False,
    "qk_norm": False,
    "num_register_tokens": 0,
    "share_modality_embeddings": True,
    "decoder_causal_mask": False,
    "decoder_sep_mask": True,
}
"""Defaults of ml-4m for keys that a published configuration lacks."""
TRAINING_KEYS = ("shared_drop_path", "drop_path_rate_encoder", "drop_path_rate_decoder", "use_act_checkpoint")
SHAPE_KEYS = ("domains_in", "domains_out", "image_size", "patch_size", "dim")
ABSENT = "absent"
"""Key in config.json: zero biases of norms that the published file leaves out."""
EXTRA = f"{PUBLISHED}."
"""Prefix of published tensors that our model does not have; they are stored to be exported again."""
MLP: dict[str, tuple[tuple[str, ...], Biased]] = {
    "mlp_norm": (("norm2",), "norm"),
    "mlp.up": (("mlp.fc1", "mlp.fc3"), "mlp"),
    "mlp.down": (("mlp.fc2",), "mlp"),
}


def _attention(ours: str, theirs: str, *projections: str) -> dict[str, tuple[tuple[str, ...], Biased]]:
    parts: dict[str, tuple[str, Biased]] = {name: (name, "qkv") for name in projections}
    parts |= {"out": ("proj", "out"), "query_norm": ("q_norm", "norm"), "key_norm": ("k_norm", "norm")}
    return {f"{ours}.{name}": ((f"{theirs}.{published}",), bias) for name, (published, bias) in parts.items()}


BLOCKS: dict[str, dict[str, tuple[tuple[str, ...], Biased]]] = {
    "encoder": {"attention_norm": (("norm1",), "norm"), **_attention("attention", "attn", "qkv"), **MLP},
    "decoder": {
        "self_norm": (("norm1",), "norm"),
        **_attention("self_attention", "self_attn", "qkv"),
        "query_norm": (("query_norm",), "norm"),
        "context_norm": (("context_norm",), "norm"),
        **_attention("cross_attention", "cross_attn", "q", "kv"),
        **MLP,
    },
}
"""Modules of a block: the published modules that they concatenate, and the key that gives them a bias."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One of our tensors, and the published tensors that it concatenates."""

    ours: str
    theirs: tuple[str, ...]
    pixels: int = 0
    """Pixels of a patch, for a patch projection. Its columns are pixel-major in 4M, channel-major here."""

    def join(self, tensors: Mapping[str, Tensor], shape: torch.Size) -> Tensor:
        """Return our tensor; published ones may have leading axes of length 1."""
        joined = torch.cat([tensors[name].reshape(-1, *shape[1:]) for name in self.theirs]).reshape(shape)
        return rearrange(joined, "d (p c) -> d (c p)", p=self.pixels) if self.pixels else joined

    def split(self, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield the published tensors by name."""
        if self.pixels:
            tensor = rearrange(tensor, "d (c p) -> d (p c)", p=self.pixels)
        for name, part in zip(self.theirs, tensor.chunk(len(self.theirs)), strict=True):
            single = name.endswith(".pos_emb") or name in ("mask_token", "register_tokens")
            axes = 2 if name.endswith(".mod_emb") else int(single)
            yield name, part.reshape(*(1,) * axes, *part.shape)


def pairs_of(
    config: PublishedConfig, modalities: Sequence[PublishedModality], names: Mapping[str, str]
) -> Iterator[Pair]:
    """Yield the tensors that our model and the published one both have; `names` maps published to our names."""
    for ours, theirs, bias in _modules(config):
        for leaf in ("weight", "bias") if config.biased(bias) else ("weight",):
            yield Pair(f"{ours}.{leaf}", tuple(f"{name}.{leaf}" for name in theirs))
    for leaf in ("weight", "bias"):
        yield Pair(f"context_projection.{leaf}", (f"decoder_proj_context.{leaf}",))
    yield Pair("mask_embedding.weight", ("mask_token",))
    if config.registers:
        yield Pair("registers", ("register_tokens",))
    for item in modalities:
        name = names[item.published]
        inputs, targets = f"encoder_embeddings.{item.published}", f"decoder_embeddings.{item.published}"
        if item.read:
            yield Pair(f"input_positions.{name}", (f"{inputs}.pos_emb",))
            if item.kind == "patches":
                yield Pair(f"projections.{name}.weight", (f"{inputs}.proj.weight",), item.pixels)
            elif item.kind == "embeddings":
                for leaf in ("weight", "bias"):
                    yield Pair(f"projections.{name}.{leaf}", (f"{inputs}.emb_proj.{leaf}",))
            else:
                yield Pair(f"tokens.{name}", (f"{inputs}.token_emb.weight",))
        if item.made:
            yield Pair(f"target_positions.{name}", (f"{targets}.pos_emb",))
            yield Pair(f"read.{name}", (f"{targets}.token_emb.weight",))
            yield Pair(f"output.{name}", (f"{targets}.to_logits.weight",))
        if config.share_modality_embeddings:  # a file may have two copies; ml-4m uses the decoder's
            yield Pair(f"modalities.{name}", (f"{targets if item.made else inputs}.mod_emb",))
        else:
            yield from [Pair(f"modalities.{name}", (f"{inputs}.mod_emb",))] if item.read else []
            yield from [Pair(f"target_modalities.{name}", (f"{targets}.mod_emb",))] if item.made else []


def _modules(config: PublishedConfig) -> Iterator[tuple[str, tuple[str, ...], Biased]]:
    """Yield the modules of the blocks and the final norms: our name, published names, and the key of the bias."""
    for side, depth in (("encoder", config.encoder_depth), ("decoder", config.decoder_depth)):
        for layer in range(depth):
            for ours, (theirs, bias) in BLOCKS[side].items():
                if "attention." in ours and ours.endswith("_norm") and not config.qk_norm:
                    continue
                used = theirs if config.gated_mlp else theirs[:1]
                yield f"{side}.{layer}.{ours}", tuple(f"{side}.{layer}.{name}" for name in used), bias
        yield f"{side}_norm", (f"{side}_norm",), "norm"


def zero_biases(config: PublishedConfig) -> dict[str, int]:
    """Return names and widths of the zero biases that published files have where norms have none."""
    head_size = config.dim // config.heads
    return {
        f"{theirs[0]}.bias": head_size if theirs[0].endswith((".q_norm", ".k_norm")) else config.dim
        for _, theirs, bias in _modules(config)
        if bias == "norm" and not config.biased("norm")
    }


def config_of(
    checkpoint: PublishedCheckpoint, modalities: Sequence[PublishedModality], names: Mapping[str, str]
) -> PublishedConfig:
    """Return our config of a published one. Raises CheckpointError for unknown keys and unsupported models."""
    config_path = f"{checkpoint.path}/config.json"
    if unknown := sorted(set(checkpoint.config) - {*DEFAULTS, *TRAINING_KEYS, *SHAPE_KEYS}):
        raise CheckpointError(f"{config_path}: unknown key {unknown[0]}; expected the configuration of a 4M backbone")
    table = {**DEFAULTS, **checkpoint.config}
    for key, only in (("decoder_causal_mask", False), ("decoder_sep_mask", True)):
        if table[key] != only:
            raise CheckpointError(f"{config_path}: {key} = {table[key]}: expected {only}, as in all published models")
    for key in (*BIASES, "share_modality_embeddings"):
        if not isinstance(table[key], bool):
            raise CheckpointError(f"{config_path}: {key} {table[key]!r}: expected true or false")
    if table["act_layer"] not in [*ACTIVATIONS]:
        raise CheckpointError(f"{config_path}: act_layer {table['act_layer']}: expected {' or '.join(ACTIVATIONS)}")
    tokens = [item for item in modalities if item.kind == "tokens"]
    same = "encoder_depth", "decoder_depth", "mlp_ratio", "gated_mlp", "qk_norm", "share_modality_embeddings"
    ours = {
        **{key: table[key] for key in same},
        "dim": table.get("dim", 768),
        "heads": table["num_heads"],
        "activation": ACTIVATIONS[table["act_layer"]],
        "bias": tuple(part for key, part in BIASES.items() if table[key]),
        "registers": table["num_register_tokens"],
        "stored_positions": {names[item.published]: item.positions for item in modalities},
        "inputs_only": tuple(names[item.published] for item in tokens if not item.made),
        "targets_only": tuple(names[item.published] for item in tokens if not item.read),
    }
    try:
        return from_mapping(PublishedConfig, ours)
    except ConfigError as error:
        raise CheckpointError(f"{config_path}: {error}") from None


def import_backbone(checkpoint: PublishedCheckpoint, specs: Mapping[str, ModalitySpec], folder: Path) -> str:
    """Write a published backbone as one of ours and return its fingerprint; `specs` are by published name.

    Rows that the published model lacks, for modalities that are only inputs or only targets, become zeros. Raises
    CheckpointError for missing, unknown and misshapen tensors, and for dtypes that float32 cannot hold, and then writes
    nothing.
    """
    modalities = published_modalities(checkpoint)
    names = {item.published: specs[item.published].name for item in modalities}
    config = config_of(checkpoint, modalities, names)
    with checkpoint_errors(checkpoint.path), torch.device("meta"):
        model = PublishedFourM(config, [specs[item.published] for item in modalities])
    shapes = {name: tensor.shape for name, tensor in model_tensors(model, model.state_dict()).items()}
    pairs = list(pairs_of(config, modalities, names))
    for pair in pairs:
        for name, part in pair.split(torch.empty(shapes[pair.ours], device="meta")):
            dtype = checkpoint.tensor(name, *part.shape).dtype
            if not dtype.is_floating_point or dtype.itemsize > torch.float32.itemsize:
                raise CheckpointError(f"{checkpoint.path}: {name} is {dtype}; expected float32 or a shorter float")
    zeros = zero_biases(config)
    used = {theirs for pair in pairs for theirs in pair.theirs}
    extra = {name: tensor for name, tensor in sorted(checkpoint.tensors.items()) if name not in used}
    for name, tensor in extra.items():
        if name in zeros and tensor.any():
            raise CheckpointError(f"{checkpoint.path}: {name} is not zero, and config.json says norm_bias = false")
        if name not in zeros and not name.endswith(".mod_emb"):
            raise CheckpointError(
                f"{checkpoint.path}: unknown tensor {name}: not a 4M backbone, or config.json is of another"
            )
    # Tensors that the file ties are separate here.
    tensors = {pair.ours: pair.join(checkpoint.tensors, shapes[pair.ours]).float().clone() for pair in pairs}
    tensors |= {name: torch.zeros(shape) for name, shape in shapes.items() if name not in tensors}
    tensors |= {
        EXTRA + name: tensor.clone()
        for name, tensor in extra.items()
        if name not in zeros and name not in checkpoint.same_as
    }
    absent = sorted(zeros.keys() - checkpoint.tensors.keys())
    origin = {
        "config": dict(checkpoint.config),
        "modalities": [dataclasses.asdict(item) for item in modalities],
        "names": names,
        "same_as": dict(checkpoint.same_as),
        **checkpoint.extra_metadata(),
        **({ABSENT: absent} if absent else {}),
        "dtypes": {
            name: str(tensor.dtype) for name, tensor in checkpoint.tensors.items() if tensor.dtype != torch.float32
        },
    }
    config_json = stored_config(config, model.layout.specs)
    config_json |= {"fingerprints": {}, PUBLISHED: origin}
    return save_checkpoint(folder, tensors, config_json, model_card(model))


def export_backbone(folder: Path) -> PublishedCheckpoint:
    """Return an imported backbone, trained further or not, as a published checkpoint.

    Raises CheckpointError for any other backbone, and after a training with other modalities or vocabularies.
    """
    tensors, record = load_record(folder, CLASS, BackboneRecord)
    if (origin := record.ml4m) is None:
        raise CheckpointError(f"{folder}: was not imported from a published checkpoint, and cannot be exported as one")
    config = model_config(record)
    assert isinstance(config, PublishedConfig)
    specs = {spec.name: spec for spec in record.specs}
    names = origin.names
    modalities = [from_mapping(PublishedModality, item) for item in origin.modalities]
    if added := sorted(set(specs) - set(names.values())):
        raise CheckpointError(f"{folder}: has the modality {added[0]}, which the published model does not have")
    for item in modalities:
        name = names[item.published]
        if name not in specs:
            raise CheckpointError(f"{folder}: was trained without the modality {name}, which the published model has")
        if mismatch := misfit(specs[name], item):
            raise CheckpointError(f"{folder}: {name} cannot be exported as {item.published}: it has {mismatch}")
    published: dict[str, Tensor] = {}
    for pair in pairs_of(config, modalities, names):
        published |= dict(pair.split(tensors[pair.ours]))
    published |= {name: torch.zeros(width) for name, width in zero_biases(config).items() if name not in origin.absent}
    is_trained = "start" in load_config(folder)
    for name in [name.removeprefix(EXTRA) for name in tensors if name.startswith(EXTRA)]:
        published[name] = tensors[EXTRA + name]
        if is_trained and config.share_modality_embeddings:  # trained: the second copy follows the decoder
            published[name] = published.get(name.replace("encoder_", "decoder_", 1), published[name]).clone()
    same_as = {
        name: original
        for name, original in origin.same_as.items()
        if name not in published or torch.equal(published[name], published[original])  # else training separated them
    }
    published |= {name: published[original] for name, original in same_as.items()}
    for name, dtype in origin.dtypes.items():
        published[name] = published[name].to(getattr(torch, dtype.removeprefix("torch.")))
    return PublishedCheckpoint(
        config=origin.config,
        tensors=published,
        same_as=same_as,
        metadata=PLAIN_METADATA if origin.file_metadata is None else origin.file_metadata,
        path=str(folder),
    )
