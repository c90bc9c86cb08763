"""Small image and text encoders with random weights, in their published formats."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from labeller_networks import new, save


def clip(folder: Path) -> Path:
    """A CLIP (image and text encoder) with patches of 8 pixels, in the hub's format."""
    from transformers import CLIPConfig

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        vision_config={**small, "image_size": 32, "patch_size": 8},
        text_config={**small, "vocab_size": 30, "bos_token_id": 0, "eos_token_id": 1},
        projection_dim=512,
    )
    return save(folder, new("CLIPModel", config))


def dinov2(folder: Path) -> Path:
    """A DINOv2 with 14 x 14 patches of 2 pixels."""
    from transformers import Dinov2Config

    config = Dinov2Config(
        hidden_size=768, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=1, image_size=28, patch_size=2
    )
    return save(folder, new("Dinov2Model", config))


def t5(folder: Path, words: Sequence[str], dim: int) -> Path:
    """A T5 encoder with a word-level tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config

    ids = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(ids, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=64
    )
    config = T5Config(vocab_size=max(32, len(ids)), d_model=dim, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
    return save(folder, new("T5EncoderModel", config), fast)


def imagebind_tensors(dim: int = 1280) -> dict[str, torch.Tensor]:
    """Return random tensors with ImageBind's names, for patches of 2 pixels, and one tensor of another modality."""
    generator = torch.Generator().manual_seed(0)
    inputs, trunk, head = (f"modality_{part}.vision." for part in ("preprocessors", "trunks", "heads"))
    shapes: dict[str, tuple[int, ...]] = {
        f"{inputs}cls_token": (1, 1, dim),
        f"{inputs}rgbt_stem.proj.1.weight": (dim, 3, 2, 2, 2),
        f"{inputs}pos_embedding_helper.pos_embed": (1, 1 + 16 * 16, dim),
        f"{trunk}pre_transformer_layer.0.weight": (dim,),
        f"{trunk}pre_transformer_layer.0.bias": (dim,),
        f"{head}0.weight": (dim,),
        f"{head}0.bias": (dim,),
        f"{head}2.weight": (1024, dim),
        "modality_trunks.text.blocks.0.norm_1.weight": (4,),
    }
    for i in range(2):
        block = f"{trunk}blocks.{i}."
        shapes |= {f"{block}attn.in_proj_weight": (3 * dim, dim), f"{block}attn.in_proj_bias": (3 * dim,)}
        shapes |= {f"{block}attn.out_proj.weight": (dim, dim), f"{block}attn.out_proj.bias": (dim,)}
        shapes |= {f"{block}mlp.fc1.weight": (16, dim), f"{block}mlp.fc1.bias": (16,)}
        shapes |= {f"{block}mlp.fc2.weight": (dim, 16), f"{block}mlp.fc2.bias": (dim,)}
        shapes |= {f"{block}norm_{n}.{part}": (dim,) for n in (1, 2) for part in ("weight", "bias")}
    return {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}
