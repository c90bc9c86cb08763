"""Small networks of the classes that label pictures, with random weights, saved in the hub's format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

LABELS = {0: "wall", 1: "floor, flooring", 2: "sky"}
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "a", "red", "chair", "the", "room")
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}


def save(folder: Path, network: Any, *processors: Any) -> Path:
    """Save network and processor as a publisher does."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    for part in (network, *processors):
        part.save_pretrained(folder)
    return folder


def new(name: str, config: Any) -> Any:
    """Return a network of the transformers class with weights from seed 0."""
    import torch
    import transformers

    torch.manual_seed(0)
    return getattr(transformers, name)(config)


def named() -> dict[str, Any]:
    return {"id2label": LABELS, "label2id": {label: index for index, label in LABELS.items()}}


def dpt(folder: Path, metres: float | None = None) -> Path:
    """DPT; with `metres` its last layer outputs this number everywhere."""
    import torch
    from transformers import DPTConfig, DPTImageProcessorPil

    config = DPTConfig(
        **SMALL, num_hidden_layers=4, image_size=64, patch_size=16, backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8] * 4, fusion_hidden_size=8, is_hybrid=False,
    )  # fmt: skip
    network = new("DPTForDepthEstimation", config)
    if metres is not None:
        torch.nn.init.zeros_(network.head.head[4].weight)
        torch.nn.init.constant_(network.head.head[4].bias, metres)
    return save(folder, network, DPTImageProcessorPil(size={"height": 64, "width": 64}))


def depth_anything(folder: Path) -> Path:
    """Depth Anything with a config that declares metric depth up to 10 m."""
    from transformers import DepthAnythingConfig, Dinov2Config, DPTImageProcessorPil

    backbone = Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=28, patch_size=14,
        out_indices=[1, 2, 3, 4], reshape_hidden_states=False,
    )  # fmt: skip
    config = DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=16, neck_hidden_sizes=[8] * 4, fusion_hidden_size=8,
        head_hidden_size=8, depth_estimation_type="metric", max_depth=10,
    )  # fmt: skip
    return save(
        folder,
        new("DepthAnythingForDepthEstimation", config),
        DPTImageProcessorPil(size={"height": 28, "width": 28}, ensure_multiple_of=14),
    )


def segformer(folder: Path, winner: int | None = None) -> Path:
    """SegFormer; with `winner` this label has the largest logit everywhere."""
    import torch
    from transformers import SegformerConfig, SegformerImageProcessorPil

    config = SegformerConfig(
        hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=16, **named()
    )
    network = new("SegformerForSemanticSegmentation", config)
    if winner is not None:
        torch.nn.init.zeros_(network.decode_head.classifier.weight)
        network.decode_head.classifier.bias.data = torch.eye(3)[winner]
    return save(folder, network, SegformerImageProcessorPil(size={"height": 64, "width": 64}))


def mask2former(folder: Path) -> Path:
    from transformers import Mask2FormerConfig, Mask2FormerImageProcessorPil, SwinConfig

    backbone = SwinConfig(
        image_size=32, embed_dim=8, depths=[1] * 4, num_heads=[1, 1, 2, 2], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = Mask2FormerConfig(
        backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=16,
        encoder_layers=1, decoder_layers=2, num_attention_heads=2, dim_feedforward=16, num_queries=5, **named(),
    )  # fmt: skip
    network = new("Mask2FormerForUniversalSegmentation", config)
    return save(folder, network, Mask2FormerImageProcessorPil(size={"height": 64, "width": 64}))


def detr(folder: Path) -> Path:
    from transformers import DetrConfig, DetrImageProcessorPil, ResNetConfig

    backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4, out_features=["stage4"])
    config = DetrConfig(
        backbone_config=backbone, use_timm_backbone=False, use_pretrained_backbone=False, backbone=None,
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, num_queries=6, **named(),
    )  # fmt: skip
    size = {"shortest_edge": 64, "longest_edge": 64}
    return save(folder, new("DetrForObjectDetection", config), DetrImageProcessorPil(size=size))


def yolos(folder: Path) -> Path:
    """YOLOS that sees one kind of box, centre (0.25, 0.5), width 0.6, height 0.5, label 0 with a score of 0.96."""
    import torch
    from transformers import YolosConfig, YolosImageProcessorPil

    config = YolosConfig(
        **SMALL, num_hidden_layers=1, image_size=[64, 64], patch_size=16, num_detection_tokens=2, **named()
    )
    network = new("YolosForObjectDetection", config)
    box, label = network.bbox_predictor.layers[-1], network.class_labels_classifier.layers[-1]
    for layer in (box, label):
        torch.nn.init.zeros_(layer.weight)
    box.bias.data = torch.logit(torch.tensor([0.25, 0.5, 0.6, 0.5]))
    label.bias.data = torch.tensor([4.0, 0.0, 0.0, -1.0])
    size = {"shortest_edge": 64, "longest_edge": 64}
    return save(folder, network, YolosImageProcessorPil(size=size))


def sam(folder: Path) -> Path:
    from transformers import SamConfig, SamImageProcessorPil, SamProcessor

    vision = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 64, "patch_size": 16,
        "output_channels": 16, "num_pos_feats": 8, "mlp_dim": 16, "global_attn_indexes": [0], "window_size": 2,
    }  # fmt: skip
    prompts = {"hidden_size": 16, "image_size": 64, "patch_size": 16, "mask_input_channels": 4}
    decoder = {
        "hidden_size": 16, "mlp_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "iou_head_hidden_dim": 16
    }  # fmt: skip
    config = SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    images = SamImageProcessorPil(size={"longest_edge": 64}, pad_size={"height": 64, "width": 64})
    return save(folder, new("SamModel", config), SamProcessor(images))


def words() -> Any:
    from transformers import BertTokenizer

    return BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)}, additional_special_tokens=["[DEC]"])


def prefer(bias: Any, word: str | None) -> None:
    """Set the bias of the logits so that one word always wins, or only so that special tokens never do."""
    if word is None:
        bias[: WORDS.index("a")] = -100.0
    else:
        bias[WORDS.index(word)] = 100.0


def blip(folder: Path, word: str | None = None) -> Path:
    """BLIP; with `word` it repeats this word, otherwise it generates plain words without an end token."""
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipImageProcessorPil, BlipProcessor

    text = {
        **SMALL, "vocab_size": len(WORDS), "encoder_hidden_size": 16, "num_hidden_layers": 1, "projection_dim": 8,
        "bos_token_id": 5, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0,
    }  # fmt: skip
    vision = {**SMALL, "num_hidden_layers": 1, "image_size": 32, "patch_size": 16}
    network = new(BlipForConditionalGeneration.__name__, BlipConfig(text_config=text, vision_config=vision))
    prefer(network.text_decoder.cls.predictions.decoder.bias.data, word)
    images = BlipImageProcessorPil(size={"height": 32, "width": 32})
    return save(folder, network, BlipProcessor(images, words()))


def git(folder: Path) -> Path:
    """GIT that generates plain words without an end token."""
    from transformers import CLIPImageProcessorPil, GitConfig, GitProcessor

    vision = {**SMALL, "num_hidden_layers": 1, "image_size": 32, "patch_size": 16}
    config = GitConfig(
        **SMALL, vision_config=vision, vocab_size=len(WORDS), num_hidden_layers=1, bos_token_id=2, eos_token_id=3,
        pad_token_id=0,
    )  # fmt: skip
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    network = new("GitForCausalLM", config)
    prefer(network.output.bias.data, word=None)
    return save(folder, network, GitProcessor(images, words()))
