"""Run an imported published tokenizer through the public import, for tests that compare its outputs with numbers.

The tokenizer is imported as an installed modality whose values fit. Candidates named in the configuration's `domain`
come first, then candidates named in the folder name, then all others. If none fits (because of the number of channels,
for example), a neutral modality of the right family is made here.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from tokenizers_zoo import Zoo
from tokenizers_zoo.contract.handle import ModalityHandle
from tokenizers_zoo.contract.hookspecs import REQUIRED
from tokenizers_zoo.contract.plugins import MODALITIES, Claim, Plugins
from tokenizers_zoo.contract.tokenizer_files import TokenizerFiles
from tokenizers_zoo.families.features import FeatureMapModality
from tokenizers_zoo.families.objects import SpelledSettings
from tokenizers_zoo.families.spatial import SpatialModality, SpatialSettings
from tokenizers_zoo.families.vectors import VectorModality
from tokenizers_zoo.files.published import PublishedCheckpoint
from tokenizers_zoo.records.config import Origin, Settings
from tokenizers_zoo.tokenizers.autoencoder.importer import NotThisKind
from tokenizers_zoo.tokenizers.ml4m.architecture import Architecture, read_architecture
from tokenizers_zoo.tokenizers.quantizers.kinds import MemoryCodes, MovingAverage
from tokenizers_zoo.tokenizers.quantizers.quantizer import Quantizer

NEUTRAL = "neutral"


def tokenizer_results(
    published: PublishedCheckpoint, inputs: dict[str, Tensor], work_dir: Path, names: tuple[str, ...] | None = None
) -> dict[str, Tensor]:
    """Return `latent`, `tokens`, `quant`, and `decoded` or `decoder_output` for `x` (with `noise` and `timesteps`).

    `names` are the installed modalities to try; all by default.
    """
    handle = imported(published, work_dir, names)
    module = handle.tokenizer.module
    with torch.inference_mode():
        return module_results(module, inputs)


def module_results(module: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the results of a loaded module. `x` is not standardised with the statistics of our own values."""
    x = inputs["x"]
    if not x.is_floating_point():
        x = rearrange(module.embedding(x.long()), "b h w c -> b c h w")
    size = x.shape[-2:]
    vectors = not module.config.patch
    if vectors:  # an MLP processes each position separately
        latent = rearrange(
            module.encoder(rearrange(x, "b c h w -> (b h w) c")), "(b h w) d -> b d h w", h=size[0], w=size[1]
        )
    else:
        latent = module.encoder(x)
    quantized = module.quantizer(rearrange(latent, "b d h w -> b h w d"))
    several = quantized.tokens.ndim == 4
    quant = rearrange(module.quantizer.decode(quantized.tokens), "b h w d -> b d h w")
    assert torch.equal(quant, rearrange(quantized.codes, "b h w d -> b d h w"))
    results = {"latent": latent, "quant": quant}
    margins = margins_of(module.quantizer, rearrange(latent, "b d h w -> b h w d"))
    for name, tokens in (("tokens", quantized.tokens), ("tokens/margin", margins)):
        results[name] = rearrange(tokens, "b h w k -> b k h w") if several else tokens
    if "noise" in inputs:
        noisy = 0.5 * inputs["x"] + 0.5 * inputs["noise"]
        results["decoder_output"] = module.denoiser(noisy, inputs["timesteps"], quant, None)
    elif vectors:
        decoded = module.decoder(rearrange(quant, "b d h w -> (b h w) d"))
        results["decoded"] = rearrange(decoded, "(b h w) c -> b c h w", h=size[0], w=size[1])
    else:
        results["decoded"] = module.decoder(quant)
    return results


def margins_of(quantizer: Quantizer, latents: Tensor) -> Tensor:
    """Return the margin of each latent's best code over the second best, in the shape of the tokens.

    A margin is a difference of scores. For memory codes it is relative to the largest score.
    """
    adapter = quantizer.adapter
    projected = quantizer.project_in(latents)
    if isinstance(adapter, MemoryCodes):
        parts = rearrange(projected, "b h w (k d) -> b h w k d", k=adapter.num_codebooks)
        scores = torch.einsum("bhwkd,kcd->bhwkc", parts, adapter.keys)
        best = scores.topk(2).values
        return (best[..., 0] - best[..., 1]) / scores.abs().amax(-1)
    assert isinstance(adapter, MovingAverage)
    codes = adapter.vq.codebook
    if quantizer.config.distance == "cosine":
        projected, codes = F.normalize(projected, dim=-1), F.normalize(codes, dim=-1)
    scores = projected @ codes.T - (0 if quantizer.config.distance == "cosine" else codes.square().sum(1) / 2)
    best = scores.topk(2).values
    return best[..., 0] - best[..., 1]


def imported(published: PublishedCheckpoint, work_dir: Path, names: tuple[str, ...] | None = None) -> ModalityHandle:
    """Import a published tokenizer to `work_dir` and return the handle of the modality that accepts it."""
    for handle in candidates(published, names):
        try:
            table = handle.import_published(published, work_dir)
        except NotThisKind:
            if handle.plugin_name == NEUTRAL:
                raise
            continue
        if handle.plugin_name == NEUTRAL:
            return neutral(read_architecture(published), table, work_dir)
        tables = {"modalities": {handle.name: {**table, "checkpoint": str(work_dir.resolve())}}}
        return Zoo.from_tables(tables)[handle.name]
    raise AssertionError("the neutral modality takes all that can be read")


def candidates(published: PublishedCheckpoint, names: tuple[str, ...] | None = None) -> Iterator[ModalityHandle]:
    """Yield the installed modalities that can import a tokenizer, the best match first and the neutral one last.

    Modalities that spell tokens as text use plain ids here, which need no vocabulary.
    """
    zoo = Zoo.installed()
    spelled = [h.name for h in zoo.handles() if any(isinstance(c, SpelledSettings) for c in h.plugin_settings())]
    zoo = Zoo.from_tables({"modalities": {name: {"layout": "codes"} for name in spelled}})
    hints = str(published.config.get("domain", "")), Path(published.path).name.replace("-", "_")
    handles = [zoo[name] for name in (zoo.names() if names is None else names)]
    able = [handle for handle in handles if handle.implements("import_published") and not handle.spec.continuous]
    called = {handle.name: (handle.name, *handle.spec.aliases) for handle in able}
    yield from sorted(
        able,
        key=lambda handle: (
            hints[0] not in called[handle.name],
            not any(name in hints[1] for name in called[handle.name]),
            handle.name,
        ),
    )
    yield neutral(read_architecture(published), {}, Path())


def neutral(architecture: Architecture, table: dict[str, Any], checkpoint: Path) -> ModalityHandle:
    """Return a modality for any values that an architecture accepts, with its tokenizer at `checkpoint`."""
    family: type[Any]
    body: dict[str, Any]
    if not hasattr(architecture.encoder, "heads"):
        family, body = VectorModality, {"dim": architecture.channels}
    elif architecture.classes:
        labels = tuple(f"class {k}" for k in range(architecture.classes))
        family, body = SpatialModality, {"kind": "classes", "class_names": lambda self, options: labels}
    else:
        family = FeatureMapModality if architecture.patch_size == 1 else SpatialModality
        body = {"channels": architecture.channels, "metrics": FeatureMapModality.metrics}
    if family is SpatialModality:
        body |= {"metrics": FeatureMapModality.metrics, "settings_class": SpatialSettings}
    plugin = type("Neutral", (family,), {"summary": "values of any kind", **body})()
    entry_point = EntryPoint(name=NEUTRAL, group=MODALITIES, value="parity_tokenizers:neutral")
    claim = Claim(name=NEUTRAL, group=MODALITIES, distribution="tests", entry_point=entry_point)
    plugins = Plugins()
    return ModalityHandle(
        plugin=plugins.add(claim, plugin, REQUIRED), settings=Settings(NEUTRAL, table),
        files=lambda spec: TokenizerFiles(spec=spec, checkpoint=checkpoint, origin=Origin()),
    )  # fmt: skip
