"""A published backbone as one of ours, and back, bit by bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenizers_zoo.checkpoint import load_checkpoint, save_checkpoint
from tokenizers_zoo.config import from_mapping, recorded
from tokenizers_zoo.errors import CheckpointError, ConfigError
from tokenizers_zoo.ml4m.source import PLAIN_METADATA, SAID, PublishedCheckpoint
from tokenizers_zoo.spec import ModalitySpec
from zoo_backbone.checkpoint import CLASS, PUBLISHED, model_card, model_tensors, spec_from_json, spec_to_json
from zoo_backbone.config import Biased, ModelConfig
from zoo_backbone.ml4m.modalities import PublishedModality, misfit, published_modalities
from zoo_backbone.ml4m.names import Pair, block_pairs, modality_pairs, norm_biases
from zoo_backbone.model import FourM

ACTIVATIONS = {"SiLU": "silu", "GELU": "gelu"}
BIASES: dict[str, Biased] = {"qkv_bias": "qkv", "proj_bias": "out", "mlp_bias": "mlp", "norm_bias": "norm"}
DEFAULTS: dict[str, Any] = {
    "encoder_depth": 12, "decoder_depth": 12, "num_heads": 12, "mlp_ratio": 4.0, "qkv_bias": True, "proj_bias": True,
    "mlp_bias": True, "norm_bias": True, "act_layer": "GELU", "gated_mlp": False, "qk_norm": False,
    "num_register_tokens": 0, "share_modality_embeddings": True, "decoder_causal_mask": False,
    "decoder_sep_mask": True,
}  # fmt: skip
"""What a published configuration means where it lacks a key."""
IGNORED = ("shared_drop_path", "drop_path_rate_encoder", "drop_path_rate_decoder", "use_act_checkpoint")
"""Keys that say how to train, and nothing about what the model computes."""
ABSENT = "absent"
"""Key of what an import keeps: the zeros that stand for biases of norms which the file leaves out."""
EXTRA = f"{PUBLISHED}."
"""How the names of tensors begin that a published file has and our model has no place for; they are kept to go back."""


def model_config(checkpoint: PublishedCheckpoint, modalities: Sequence[PublishedModality],
                 names: Mapping[str, str]) -> ModelConfig:  # fmt: skip
    """Our configuration of a published one; `names` are ours by published ones.

    Raises CheckpointError for what our model does not compute, and for keys that are unknown.
    """
    where = f"{checkpoint.place}/config.json"
    known = {*DEFAULTS, *IGNORED, "domains_in", "domains_out", "image_size", "patch_size", "dim"}
    if unknown := sorted(set(checkpoint.config) - known):
        raise CheckpointError(f"{where}: unknown key {unknown[0]}; expected the configuration of a 4M backbone")
    table = {**DEFAULTS, **checkpoint.config}
    for key, only in (("decoder_causal_mask", False), ("decoder_sep_mask", True)):
        if table[key] != only:
            raise CheckpointError(f"{where}: {key} = {table[key]}: published models have {only}, and so has ours")
    for key in (*BIASES, "share_modality_embeddings"):
        if not isinstance(table[key], bool):
            raise CheckpointError(f"{where}: {key} {table[key]!r}: expected true or false")
    if table["act_layer"] not in [*ACTIVATIONS]:
        raise CheckpointError(f"{where}: act_layer {table['act_layer']}: expected {' or '.join(ACTIVATIONS)}")
    tokens = [item for item in modalities if item.kind == "tokens"]
    try:
        return from_mapping(
            ModelConfig,
            {
                "dim": table.get("dim", 768),
                "encoder_depth": table["encoder_depth"],
                "decoder_depth": table["decoder_depth"],
                "heads": table["num_heads"],
                "mlp_ratio": table["mlp_ratio"],
                "activation": ACTIVATIONS[table["act_layer"]],
                "gated_mlp": table["gated_mlp"],
                "bias": tuple(part for key, part in BIASES.items() if table[key]),
                "qk_norm": table["qk_norm"],
                "tables": "separate",
                "modality_embeddings": "shared" if table["share_modality_embeddings"] else "separate",
                "mask_tokens": "shared",
                "patch_bias": False,
                "registers": table["num_register_tokens"],
                "stored_positions": {names[item.published]: item.positions for item in modalities},
                "marked_inputs": True,
                "inputs_only": tuple(names[item.published] for item in tokens if not item.made),
                "targets_only": tuple(names[item.published] for item in tokens if not item.read),
            },
        )
    except ConfigError as error:
        raise CheckpointError(f"{where}: {error}") from None


def pairs_of(config: ModelConfig, modalities: Sequence[PublishedModality], names: Mapping[str, str]) -> Iterator[Pair]:
    """Every tensor of a published backbone that our model has a place for."""
    yield from block_pairs(config)
    shared = config.modality_embeddings == "shared"
    for item in modalities:
        yield from modality_pairs(
            names[item.published], item.published, read=item.read, made=item.made, kind=item.kind, pixels=item.pixels,
            shared=shared,
        )  # fmt: skip


def import_backbone(
    checkpoint: PublishedCheckpoint,
    specs: Mapping[str, ModalitySpec],
    folder: Path,
    codecs: Mapping[str, str] | None = None,
) -> str:
    """Write a published backbone as one of ours, and give its fingerprint; `specs` are by published name.

    `codecs` are the fingerprints of tokenizers, by our names, whose tokens it was trained on, as far as they are known.
    Rows that the published model has not, because a modality is only read or only made, are zeros, and the
    configuration says whose (`inputs_only`, `targets_only`). Raises
    CheckpointError for missing, unknown and misshapen tensors, and for numbers that float32 does not hold; nothing is
    written then.
    """
    modalities = published_modalities(checkpoint)
    names = {item.published: specs[item.published].name for item in modalities}
    config = model_config(checkpoint, modalities, names)
    with torch.device("meta"):
        model = FourM(config, [specs[item.published] for item in modalities])
    shapes = {name: tensor.shape for name, tensor in model_tensors(model, model.state_dict()).items()}
    pairs = list(pairs_of(config, modalities, names))
    used = {theirs for pair in pairs for theirs in pair.theirs}
    for pair in pairs:
        for name, part in pair.split(torch.empty(shapes[pair.ours], device="meta")):
            dtype = checkpoint.tensor(name, *part.shape).dtype
            if not dtype.is_floating_point or dtype.itemsize > torch.float32.itemsize:
                raise CheckpointError(f"{checkpoint.place}: {name} is {dtype}, which float32 does not hold to the bit")
    extra = {name: tensor for name, tensor in checkpoint.tensors.items() if name not in used}
    _check_extra(checkpoint, config, extra)
    tensors = {pair.ours: pair.join(checkpoint.tensors).float() for pair in pairs}
    twice = {pair.ours for pair in pairs if not checkpoint.same_as.keys().isdisjoint(pair.theirs)}
    tensors |= {name: tensors[name].clone() for name in twice}  # here each is one of its own
    zeros = norm_biases_of(config)
    tensors |= {name: torch.zeros(shape) for name, shape in shapes.items() if name not in tensors}
    kept = {name for name in extra if name not in zeros and name not in checkpoint.same_as}
    absent = sorted(zeros - checkpoint.tensors.keys())
    stored = {
        "class": CLASS,
        "model": recorded(config),
        "specs": [spec_to_json(spec) for spec in model.layout.specs],
        "fingerprints": dict(codecs or {}),
        PUBLISHED: {
            "config": dict(checkpoint.config),
            "modalities": [dataclasses.asdict(item) for item in modalities],
            "names": names,
            "same_as": dict(checkpoint.same_as),
            **checkpoint.said(),
            **({ABSENT: absent} if absent else {}),
            "dtypes": {name: str(tensor.dtype) for name, tensor in checkpoint.tensors.items()
                       if tensor.dtype != torch.float32},
        },
    }  # fmt: skip
    return save_checkpoint(
        folder, tensors | {EXTRA + name: extra[name].clone() for name in sorted(kept)}, stored, model_card(model)
    )


def norm_biases_of(config: ModelConfig) -> set[str]:
    """Published names of the zeros that stand for the biases of norms without any."""
    return set() if config.biased("norm") else set(norm_biases(config))


def _check_extra(checkpoint: PublishedCheckpoint, config: ModelConfig, extra: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError for a tensor that means something to the published model and has no place in ours."""
    zeros = norm_biases_of(config)
    for name, tensor in sorted(extra.items()):
        if name in zeros:
            if tensor.any():
                raise CheckpointError(f"{checkpoint.place}: {name} is not zero, and config.json says norm_bias = false")
        elif not name.endswith(".mod_emb"):
            raise CheckpointError(
                f"{checkpoint.place}: unknown tensor {name}: not a 4M backbone, or config.json is of another"
            )


def export_backbone(folder: Path) -> PublishedCheckpoint:
    """A backbone that was imported, trained on or not, as it was published.

    Raises CheckpointError for one that was not imported, or that was trained with other modalities or other tokens of
    them than the published one.
    """
    tensors, stored = load_checkpoint(folder, CLASS)
    if PUBLISHED not in stored:
        raise CheckpointError(
            f"{folder}: was not imported from a published checkpoint; only those go back, trained on or not"
        )
    origin = stored[PUBLISHED]
    config = from_mapping(ModelConfig, stored["model"])
    specs = {spec["name"]: spec_from_json(spec) for spec in stored["specs"]}
    names: dict[str, str] = origin["names"]
    if added := sorted(set(specs) - set(names.values())):
        raise CheckpointError(f"{folder}: has the modality {added[0]}, which the published model has not")
    published: dict[str, Tensor] = {}
    modalities = [from_mapping(PublishedModality, item) for item in origin["modalities"]]
    for item in modalities:
        name = names[item.published]
        if name not in specs:
            raise CheckpointError(f"{folder}: was trained without the modality {name}, which the published model has")
        if problem := misfit(specs[name], item):
            raise CheckpointError(f"{folder}: {name} does not go back as {item.published}: it has {problem}")
    for pair in pairs_of(config, modalities, names):
        published |= dict(pair.split(tensors[pair.ours]))
    widths = {"q_norm": config.dim // config.heads, "k_norm": config.dim // config.heads}
    zeros = norm_biases_of(config) - set(origin.get(ABSENT, ()))
    published |= {name: torch.zeros(widths.get(name.split(".")[-2], config.dim)) for name in zeros}
    extra = {name.removeprefix(EXTRA): tensor for name, tensor in tensors.items() if name.startswith(EXTRA)}
    if "start" in stored and config.modality_embeddings == "shared":
        # A second copy of a marker that both sides share: in training the decoder's moved.
        extra = {
            name: published.get(name.replace("encoder_", "decoder_", 1), tensor).clone()
            for name, tensor in extra.items()
        }
    published |= extra
    same_as = {
        name: kept
        for name, kept in origin["same_as"].items()
        if name not in published or torch.equal(published[name], published[kept])  # else training took them apart
    }
    published |= {name: published[kept] for name, kept in same_as.items()}
    for name, dtype in origin["dtypes"].items():
        published[name] = published[name].to(getattr(torch, dtype.removeprefix("torch.")))
    return PublishedCheckpoint(
        config=origin["config"],
        tensors=published,
        same_as=same_as,
        metadata=origin.get(SAID, PLAIN_METADATA),
        place=str(folder),
    )
