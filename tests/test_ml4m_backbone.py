"""Published backbones: every variant is imported, compared with 4M's arithmetic, and exported again."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from backbone_samples import SMALL, TRAINING, all_layouts, spec, write_store
from parity import drawn
from safetensors.torch import load_file
from torch import Tensor

from tokenizers_zoo.contract.layouts import GridLayout, SequenceLayout
from tokenizers_zoo.contract.registry import Zoo
from tokenizers_zoo.contract.spec import ModalitySpec
from tokenizers_zoo.errors import CheckpointError
from tokenizers_zoo.files.published import PublishedCheckpoint, read_published, write_published
from tokenizers_zoo.records.io import metadata_of
from zoo_backbone.learn.checkpoint import load_model, save_model
from zoo_backbone.learn.train import train
from zoo_backbone.model.fourm import FourM
from zoo_backbone.model.packing import padded
from zoo_backbone.use.ml4m.adapter import export_backbone, import_backbone
from zoo_backbone.use.ml4m.modalities import published_modalities, specs_of

DIM, HEADS, SIDE, PATCH, WORDS, CODES = 24, 3, 4, 8, 30_000, 50
BASE: dict[str, Any] = {
    "dim": DIM, "num_heads": HEADS, "encoder_depth": 1, "decoder_depth": 2, "mlp_ratio": 4, "image_size": SIDE * PATCH,
    "patch_size": PATCH, "domains_in": ["caption", "rgb@32", "tok_thing@32"],
    "domains_out": ["caption", "rgb@32", "tok_other@32", "tok_thing@32"],
}  # fmt: skip
PLAIN = {"qkv_bias": False, "proj_bias": False, "mlp_bias": False, "norm_bias": False}
VARIANTS: dict[str, dict[str, Any]] = {
    "gated": {**BASE, **PLAIN, "gated_mlp": True, "act_layer": "SiLU"},
    "normed": {**BASE, "qk_norm": True, "norm_bias": True, "mlp_bias": False, "gated_mlp": True},
    "registers": {**BASE, **PLAIN, "num_register_tokens": 3, "qkv_bias": True, "share_modality_embeddings": False},
    "one_register": {**BASE, "num_register_tokens": 1, "proj_bias": False, "encoder_depth": 2},
}


SIZES = {
    "caption": (300, WORDS), "rgb@32": (SIDE**2, 3 * PATCH**2), "rgb@224": (196, 768), "tok_depth@224": (196, 8192),
    "t5_caption": (77, 4096),
}  # fmt: skip
"""For each domain: rows of its position table, and the number of ids, or numbers per patch or vector."""
PROJECTED = {"rgb@32": "proj", "rgb@224": "proj", "t5_caption": "emb_proj"}
"""Input-only domains, and the names of their projections."""


def shapes_of(config: dict[str, Any], sizes: dict[str, tuple[int, int]]) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a published backbone's tensors."""
    shapes: dict[str, tuple[int, ...]] = {"mask_token": (1, 1, DIM), "decoder_proj_context.weight": (DIM, DIM)}
    shapes["decoder_proj_context.bias"] = (DIM,)
    gated = config.get("gated_mlp", False)
    hidden = int(config["mlp_ratio"] * DIM)
    hidden = int(2 * hidden / 3) if gated else hidden

    def linear(name: str, outputs: int, inputs: int, key: str) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs)
        if config.get(key, True):
            shapes[f"{name}.bias"] = (outputs,)

    def norm(name: str, width: int = DIM) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    def attention(name: str, parts: tuple[tuple[str, int], ...]) -> None:
        for part, count in parts:
            linear(f"{name}.{part}", count * DIM, DIM, "qkv_bias")
        linear(f"{name}.proj", DIM, DIM, "proj_bias")
        if config.get("qk_norm"):
            norm(f"{name}.q_norm", DIM // HEADS)
            norm(f"{name}.k_norm", DIM // HEADS)

    for side in ("encoder", "decoder"):
        norm(f"{side}_norm")
        for layer in range(config[f"{side}_depth"]):
            block = f"{side}.{layer}"
            for name in ("norm1", "norm2") + (("query_norm", "context_norm") if side == "decoder" else ()):
                norm(f"{block}.{name}")
            attention(f"{block}.{'attn' if side == 'encoder' else 'self_attn'}", (("qkv", 3),))
            if side == "decoder":
                attention(f"{block}.cross_attn", (("q", 1), ("kv", 2)))
            for name in ("fc1", "fc3") if gated else ("fc1",):
                linear(f"{block}.mlp.{name}", hidden, DIM, "mlp_bias")
            linear(f"{block}.mlp.fc2", DIM, hidden, "mlp_bias")
    if registers := config.get("num_register_tokens", 0):
        shapes["register_tokens"] = (1, registers, DIM)
    for side, domains in (("encoder", config["domains_in"]), ("decoder", config["domains_out"])):
        for domain in domains:
            prefix = f"{side}_embeddings.{domain}"
            if domain in PROJECTED and side == "decoder":
                continue
            rows, ids = {**SIZES, **sizes}.get(domain, (SIDE**2, CODES))
            shapes[f"{prefix}.pos_emb"], shapes[f"{prefix}.mod_emb"] = (1, rows, DIM), (1, 1, DIM)
            if projection := PROJECTED.get(domain):
                shapes[f"{prefix}.{projection}.weight"] = (DIM, ids)
                shapes |= {f"{prefix}.emb_proj.bias": (DIM,)} if projection == "emb_proj" else {}
            else:
                shapes[f"{prefix}.token_emb.weight"] = (ids, DIM)
            if side == "decoder":
                shapes[f"{prefix}.to_logits.weight"] = (ids, DIM)
    return shapes


def published(config: dict[str, Any], seed: str = "a", **sizes: tuple[int, int]) -> PublishedCheckpoint:
    """Make a backbone with weights seeded by tensor names; `sizes` as in SIZES, `@` written as `_at_`."""
    tensors = {}
    changed = {name.replace("_at_", "@"): size for name, size in sizes.items()}
    for name, shape in shapes_of(config, changed).items():
        tensor = drawn(f"{seed}/{name}", list(shape))
        if len(shape) == 1:
            tensor = tensor * 0.1 + float(name.endswith("norm.weight") or "norm" in name.split(".")[-2])
            if not config.get("norm_bias", True) and "norm" in name.split(".")[-2] and name.endswith("bias"):
                tensor = torch.zeros(shape)
        elif len(shape) == 2:
            tensor = tensor / shape[1] ** 0.5
        tensors[name] = tensor
    if config.get("share_modality_embeddings", True):
        for domain in set(config["domains_in"]) & set(config["domains_out"]) - set(PROJECTED):
            tensors[f"encoder_embeddings.{domain}.mod_emb"] = tensors[f"decoder_embeddings.{domain}.mod_emb"].clone()
    return PublishedCheckpoint(config=config, tensors=tensors)


@pytest.mark.parametrize("variant", ["normed", "registers"])
def test_norms_and_registers_are_imported_under_their_names(variant: str, tmp_path: Path) -> None:
    """No parity fixture has them. test_parity.py compares the results of other variants with the public code."""
    checkpoint = published(VARIANTS[variant])
    imported(checkpoint, tmp_path)
    ours = load_file(tmp_path / "backbone" / "model.safetensors")
    blocks = {"encoder.0.attention": "encoder.0.attn"}
    blocks |= {f"decoder.0.{name}_attention": f"decoder.0.{name}_attn" for name in ("self", "cross")}
    published_names = {
        "normed": {
            f"{block}.{norm}_norm.{leaf}": f"{blocks[block]}.{norm[0]}_norm.{leaf}"
            for block in blocks for norm in ("query", "key") for leaf in ("weight", "bias")
        },
        "registers": {
            "registers": "register_tokens",
            "modalities.tok_thing_32": "encoder_embeddings.tok_thing@32.mod_emb",
            "target_modalities.tok_thing_32": "decoder_embeddings.tok_thing@32.mod_emb",
        },
    }  # fmt: skip
    for name, theirs in published_names[variant].items():
        assert torch.equal(ours[name].flatten(), checkpoint.tensors[theirs].flatten()), name


def round_trip(checkpoint: PublishedCheckpoint, folder: Path) -> PublishedCheckpoint:
    """Write, import and export a checkpoint; return the export after checking that its files are the same."""
    write_published(checkpoint, folder / "published")
    imported(read_published(folder / "published"), folder)
    exported = export_backbone(folder / "backbone")
    write_published(exported, folder / "again")
    for name in ("config.json", "model.safetensors"):
        assert (folder / "again" / name).read_bytes() == (folder / "published" / name).read_bytes()
    return exported


MARKERS = {"encoder_embeddings.caption.mod_emb": "decoder_embeddings.caption.mod_emb"}
LOGITS, TABLE = (f"decoder_embeddings.caption.{leaf}.weight" for leaf in ("to_logits", "token_emb"))


def gated(
    change: Callable[[str, Tensor], Tensor | None] = lambda name, tensor: tensor,
    config: Mapping[str, Any] = MappingProxyType({}),
    **fields: Any,
) -> Callable[[], PublishedCheckpoint]:
    """Return a function that makes a checkpoint with changed tensors (None: left out) and fields."""

    def make() -> PublishedCheckpoint:
        complete = published({**VARIANTS["gated"], **config})
        tensors = {name: change(name, tensor) for name, tensor in complete.tensors.items()}
        remaining = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        tied = {name: remaining[source] for name, source in fields.get("same_as", {}).items()}
        return dataclasses.replace(complete, tensors=remaining | tied, **fields)

    return make


CASES: dict[str, Callable[[], PublishedCheckpoint]] = {
    **{name: (lambda config=config: published(config)) for name, config in VARIANTS.items()},
    "half precision": gated(lambda name, tensor: tensor.bfloat16() if ".mlp." in name else tensor, same_as=MARKERS),
    "tied tables": gated(same_as={LOGITS: TABLE}),  # the default of ml-4m's decoders
    "zeros left out": gated(lambda name, tensor: tensor if tensor.any() else None, config={"norm_bias": False}),
    "no metadata": gated(metadata={}),
    "metadata in order": gated(
        metadata={**{f"key{n}": f'"{n}" ü\n' for n in (3, 1, 4, 0)}, "key": "", **MARKERS, "format": "pt"},
        same_as=MARKERS,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_import_then_export_gives_every_bit_back(case: str, tmp_path: Path) -> None:
    checkpoint = CASES[case]()
    exported = round_trip(checkpoint, tmp_path)
    assert (exported.config, exported.same_as) == (checkpoint.config, checkpoint.same_as)
    assert exported.tensors.keys() == checkpoint.tensors.keys()
    for name, tensor in checkpoint.tensors.items():
        assert exported.tensors[name].dtype == tensor.dtype and torch.equal(exported.tensors[name], tensor), name
    if "metadata" in case:
        stored_checkpoint = read_published(tmp_path / "published")
        assert {**stored_checkpoint.metadata, **stored_checkpoint.same_as} == checkpoint.metadata
        assert list(metadata_of(tmp_path / "published" / "model.safetensors")) == list(checkpoint.metadata)


def imported(checkpoint: PublishedCheckpoint, folder: Path) -> dict[str, str]:
    specs, _, notes = specs_of(checkpoint, published_modalities(checkpoint), Zoo.installed(), folder / "registry.toml")
    import_backbone(checkpoint, specs, folder / "backbone")
    return notes


def test_training_may_untie_tables(tmp_path: Path) -> None:
    round_trip(CASES["tied tables"](), tmp_path)
    run = trained_on(tmp_path, load_model(tmp_path / "backbone").layout.specs)
    trained, run_tensors = export_backbone(run), load_file(run / "model.safetensors")
    assert trained.same_as == {} and torch.equal(trained.tensors[LOGITS], run_tensors["output.caption"])
    assert not torch.equal(trained.tensors[LOGITS], trained.tensors[TABLE])


def test_sequences_begin_and_end_as_published_models_were_trained(tmp_path: Path) -> None:
    """Sentinels start at [S_1], id 5; a whole input sequence ends with [EOS], id 3."""
    notes = imported(published(VARIANTS["gated"]), tmp_path)
    assert notes["tok_thing@32"] == "no installed plugin has this name among its aliases"
    model = load_model(tmp_path / "backbone")
    layout = model.layout.spec("caption").layout
    assert isinstance(layout, SequenceLayout)
    assert (layout.end, layout.sentinel_start, layout.num_sentinels) == (3, 5, 199)
    content, _ = padded(model.layout, {"caption": [np.array([7000, 8000])]})
    assert content["caption"].tolist() == [[7000, 8000, 3]]


def test_the_decoders_modality_embedding_wins_where_two_exist(tmp_path: Path) -> None:
    checkpoint = published(VARIANTS["gated"])
    inputs, targets = (f"{side}_embeddings.caption.mod_emb" for side in ("encoder", "decoder"))
    changed = dataclasses.replace(checkpoint, tensors={**checkpoint.tensors, inputs: checkpoint.tensors[inputs] + 1})
    imported(changed, tmp_path)
    weights = load_file(tmp_path / "backbone" / "model.safetensors")
    assert torch.equal(weights["modalities.caption"].flatten(), changed.tensors[targets].flatten())
    assert torch.equal(export_backbone(tmp_path / "backbone").tensors[inputs], changed.tensors[inputs])


def trained_on(folder: Path, specs: Sequence[ModalitySpec], **changes: Any) -> Path:
    """Train the backbone imported into `folder` for one step on `specs`."""
    write_store(folder / "tokens", list(specs), 8)
    config = dataclasses.replace(TRAINING, steps=1, batch_size=4, warmup_steps=0, **changes)
    start = folder / "backbone"
    return train(folder / "run", folder / "tokens", specs, load_model(start).config, config, start=start)


def test_a_trained_backbone_is_exported(tmp_path: Path) -> None:
    checkpoint = published(VARIANTS["gated"])
    imported(checkpoint, tmp_path)
    before = load_model(tmp_path / "backbone")
    assert {spec.name for spec in before.layout.specs} >= {"tok_thing_32", "tok_other_32"}
    run = trained_on(tmp_path, before.layout.specs, ema_decay=0.5)
    for folder in (run, run / "last"):
        exported = export_backbone(folder)
        assert exported.config == checkpoint.config
        shapes = {name: tensor.shape for name, tensor in exported.tensors.items()}
        assert shapes == {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
        changed = {
            name for name, tensor in exported.tensors.items() if not torch.equal(tensor, checkpoint.tensors[name])
        }
        assert changed >= {"encoder.0.mlp.fc1.weight", "decoder_embeddings.tok_thing@32.to_logits.weight"}
        assert not any(name.endswith("pos_emb") for name in changed)
        markers = [f"{side}_embeddings.tok_thing@32.mod_emb" for side in ("encoder", "decoder")]
        assert changed >= set(markers) and torch.equal(*map(exported.tensors.get, markers))  # type: ignore[arg-type]
        back = tmp_path / "again" / folder.name
        imported(exported, back)
        loaded, trained = (load_file(path / "model.safetensors") for path in (back / "backbone", folder))
        assert loaded.keys() == trained.keys()
        different = {name for name, tensor in trained.items() if not torch.equal(loaded[name], tensor)}
        assert different == {name for name in trained if name.startswith("ml4m.")}, "second copies of markers"
        assert not trained["tokens.tok_other_32"].any(), "what the published model only makes is no input in training"


def test_a_backbone_trained_with_other_modalities_is_not_exported(tmp_path: Path) -> None:
    imported(published(VARIANTS["gated"]), tmp_path)
    specs = load_model(tmp_path / "backbone").layout.specs
    (tmp_path / "less").mkdir()
    shutil.copytree(tmp_path / "backbone", tmp_path / "less" / "backbone")
    with pytest.raises(CheckpointError, match=f"run: .* without the modality {specs[-1].name}"):
        export_backbone(trained_on(tmp_path / "less", specs[:-1]))
    with pytest.raises(CheckpointError, match="run: has the modality height"):
        export_backbone(trained_on(tmp_path, [*specs, spec("height", GridLayout(shape=(4, 4)), 21)]))
    shutil.rmtree(tmp_path / "run")
    longer = [dataclasses.replace(item, vocab_size=51) if item.name == "tok_thing_32" else item for item in specs]
    with pytest.raises(CheckpointError, match=r"tok_thing_32 .* tok_thing@32: .* 51 ids"):
        export_backbone(trained_on(tmp_path, longer))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config, tensors: tensors.pop("encoder.0.mlp.fc1.weight"), r"no tensor encoder\.0\.mlp\.fc1"),
        (lambda config, tensors: tensors.update(odd=torch.ones(2)), "unknown tensor odd"),
        (lambda config, tensors: tensors.update({"decoder_norm.weight": torch.ones(3)}), r"decoder_norm.* \[3\]"),
        (lambda config, tensors: tensors.update(mask_token=tensors["mask_token"].double()), r"mask_token .*float64"),
        (lambda config, tensors: tensors.update({"encoder_norm.bias": torch.ones(DIM)}), r"encoder_norm.bias is not"),
        (lambda config, tensors: config.pop("domains_out"), "domains_out None"),
        (lambda config, tensors: config["domains_in"].append("det"), "names det"),
        (lambda config, tensors: config.update(depth=3), "unknown key depth"),
        (lambda config, tensors: config.update(act_layer="ReLU"), "act_layer ReLU"),
        (lambda config, tensors: config.update(decoder_causal_mask=True), "decoder_causal_mask = True"),
        (lambda config, tensors: config.update(num_heads=5), "multiple of 4 and of heads"),
        (lambda config, tensors: config.update(norm_bias="no"), "norm_bias 'no'"),
        (lambda config, tensors: config.update(patch_size=0), "patch_size 0"),
    ],
)  # fmt: skip
def test_bad_checkpoints_are_refused_and_nothing_is_written(change: Any, message: str, tmp_path: Path) -> None:
    checkpoint = published(VARIANTS["gated"])
    config, tensors = json.loads(json.dumps(checkpoint.config)), dict(checkpoint.tensors)
    change(config, tensors)
    with pytest.raises(CheckpointError, match=message):
        imported(PublishedCheckpoint(config=config, tensors=tensors, path="here"), tmp_path)
    assert not (tmp_path / "backbone").exists()


def test_only_imported_backbones_are_exported(tmp_path: Path) -> None:
    save_model(FourM.seeded(SMALL, all_layouts(), 0), tmp_path)
    with pytest.raises(CheckpointError, match="was not imported"):
        export_backbone(tmp_path)
