"""Run an imported backbone on the inputs of a parity fixture; results have the fixture's names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tokenizers_zoo.contract.layouts import PatchesLayout, SequenceLayout
from tokenizers_zoo.contract.registry import Zoo
from tokenizers_zoo.files.published import PublishedCheckpoint
from zoo_backbone.learn.checkpoint import load_model
from zoo_backbone.model.batch import PackedInputs, PackedTargets
from zoo_backbone.model.fourm import FourM
from zoo_backbone.use.ml4m.adapter import import_backbone
from zoo_backbone.use.ml4m.modalities import published_modalities, specs_of


@torch.inference_mode()
def backbone_results(
    checkpoint: PublishedCheckpoint, inputs: Mapping[str, Tensor], work_dir: Path
) -> dict[str, Tensor]:
    """Import a published backbone through the public import and run it on `<modality>/<name>` inputs.

    Masks are True where a token is not used. Results are named as in the fixtures' README.
    """
    published = published_modalities(checkpoint)
    specs, _, _ = specs_of(checkpoint, published, Zoo.installed(), work_dir / "registry.toml")
    import_backbone(checkpoint, specs, work_dir / "backbone")
    model = load_model(work_dir / "backbone").eval()
    names = {item.published: specs[item.published].name for item in published}
    read = [item.published for item in published if item.read and f"{item.published}/input_mask" in inputs]
    packed = packed_inputs(model, {theirs: names[theirs] for theirs in read}, inputs)
    encoded: list[Tensor] = []
    model.encoder_norm.register_forward_hook(lambda norm, arguments, hidden: encoded.append(hidden))
    context = model.context(packed)
    hidden = encoded[0][:, -packed.mask.shape[1] :]
    results = {"encoder/hidden": hidden[packed.mask], "encoder/num_valid": packed.mask.sum(1)}
    losses = []
    for item in published:
        if not item.made:
            continue
        theirs, name = item.published, names[item.published]
        ids = inputs[f"{theirs}/tensor"].flatten(1).long() if f"{theirs}/tensor" in inputs else None
        mask = inputs.get(f"{theirs}/target_mask")
        streams = [] if ids is None or mask is None else target_streams(model, name, ids, ~mask.flatten(1))
        if not any(len(ids) for ids, _, _ in streams):
            losses.append(torch.zeros(()))
            results[f"loss/{theirs}"] = torch.zeros(1)
            results |= {f"target/{theirs}/{part}": torch.zeros(0) for part in ("logsumexp", "logprob")}
            results |= {f"target/{theirs}/{part}": torch.zeros(0, dtype=torch.long) for part in ("ids", "argmax")}
            continue
        target_ids, tokens_read, ranks = (
            pad_sequence(list(part), batch_first=True) for part in zip(*streams, strict=True)
        )
        used = pad_sequence([torch.ones(len(ids), dtype=torch.bool) for ids, _, _ in streams], batch_first=True)
        start, kind = model.layout.token_rows(name).start, torch.full_like(target_ids, model.layout.index(name))
        targets = PackedTargets(
            ids=target_ids + start, read=torch.where(tokens_read < 0, -1, tokens_read + start),
            positions=ranks + model.layout.positions[name].start, modalities=kind, mask=used,
        )  # fmt: skip
        x = model.embed_targets(targets.read, targets.positions, targets.modalities)
        decoded = model.decode(x, model.rotations(targets.positions), context, model.target_mask(targets))
        logits = model.logits(decoded, model.layout.table_of(model.layout.spec(name)))[used]
        flat = target_ids[used]
        log_probabilities = logits.log_softmax(-1)
        loss = F.cross_entropy(logits, flat)
        losses.append(loss)
        results |= {
            f"target/{theirs}/ids": flat,
            f"target/{theirs}/argmax": logits.argmax(-1),
            f"target/{theirs}/margin": logits.topk(2).values.diff(dim=1).abs()[:, 0],
            f"target/{theirs}/logsumexp": logits.logsumexp(-1),
            f"target/{theirs}/logprob": log_probabilities.gather(1, flat[:, None])[:, 0],
            f"loss/{theirs}": loss[None],
        }
    results["loss/mod_mean"] = torch.stack(losses).mean()[None]
    return results


def packed_inputs(model: FourM, names: Mapping[str, str], inputs: Mapping[str, Tensor]) -> PackedInputs:
    """Pack the used inputs of each sample at the front, modality by modality, each in order of position."""
    rows: list[list[tuple[int, int, int]]] = []
    vectors: dict[str, tuple[list[tuple[int, int]], list[Tensor]]] = {}
    batch = len(next(iter(inputs.values())))
    for sample in range(batch):
        slots: list[tuple[int, int, int]] = []
        for theirs, name in names.items():
            used = (~inputs[f"{theirs}/input_mask"].flatten(1)[sample]).nonzero()[:, 0]
            spec, start = model.layout.spec(name), model.layout.positions[name].start
            value = inputs[f"{theirs}/tensor"]
            ranked = isinstance(spec.layout, SequenceLayout) or spec.layout.kind == "embeddings"
            slot_positions = torch.arange(len(used)) if ranked else used
            if spec.continuous:
                content = value
                if isinstance(spec.layout, PatchesLayout):
                    side = value.shape[-1] // spec.layout.shape[-1]
                    content = rearrange(value, "b c (h p) (w q) -> b (h w) (c p q)", p=side, q=side)
                index, chunks = vectors.setdefault(name, ([], []))
                index += [(sample, len(slots) + i) for i in range(len(used))]
                chunks.append(content[sample][used])
                rows_read = [0] * len(used)
            else:
                rows_read = (value.flatten(1)[sample][used].long() + model.layout.token_rows(name).start).tolist()
            number = model.layout.index(name)
            slots += [(i, int(position) + start, number) for i, position in zip(rows_read, slot_positions, strict=True)]
        rows.append(slots)
    width = max(map(len, rows))
    table = torch.tensor([slots + [(0, 0, 0)] * (width - len(slots)) for slots in rows])
    mask = torch.tensor([[i < len(slots) for i in range(width)] for slots in rows])
    flat = {
        name: (torch.tensor([sample * width + slot for sample, slot in index]), torch.cat(chunks))
        for name, (index, chunks) in vectors.items()
    }
    ids, positions, modalities = table.unbind(-1)
    return PackedInputs(ids=ids, positions=positions, modalities=modalities, mask=mask, vectors=flat)


def target_streams(model: FourM, name: str, ids: Tensor, used: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return for each sample the ids to predict, the ids read (-1: the mask token) and the positions."""
    streams = []
    for row, mask in zip(ids, used, strict=True):
        remaining_ids = row[mask]
        if isinstance(model.layout.spec(name).layout, SequenceLayout):
            streams.append((remaining_ids[1:], remaining_ids[:-1], torch.arange(max(len(remaining_ids) - 1, 0))))
        else:
            streams.append((remaining_ids, torch.full_like(remaining_ids, -1), mask.nonzero()[:, 0]))
    return streams
