"""A slow, explicit implementation of 4M's forward pass; the tests compare the backbone with it."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_zoo.layouts import EmbeddingsLayout, GridLayout, PatchesLayout, SequenceLayout
from zoo_backbone.batch import PackedBatch, PackedInputs, PackedTargets
from zoo_backbone.model import FourM


class SlowTwin:
    """A slow 4M: one sample at a time, every position of every modality embedded, separate matrices and logits."""

    def __init__(self, model: FourM) -> None:
        self.model, self.config, self.layout = model, model.config, model.layout
        self.state = dict(model.state_dict())
        self.stored_modalities = model.layout.positions_of("stored")

    def norm(self, x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(dim=-1, keepdim=True)
        normed = centred / (centred.pow(2).mean(dim=-1, keepdim=True) + 1e-6).sqrt()
        bias = self.state.get(f"{name}.bias")
        return normed * self.state[f"{name}.weight"] + (0 if bias is None else bias)

    def linear(self, x: Tensor, name: str, part: int = 0, parts: int = 1) -> Tensor:
        weight = self.state[f"{name}.weight"].chunk(parts)[part]
        bias = self.state.get(f"{name}.bias")
        return x @ weight.T + (0 if bias is None else bias.chunk(parts)[part])

    def angles(self, name: str, position: int) -> Tensor:
        """Return the rotation angle of each channel pair of a head at a position.

        Three quarters of the pairs rotate, split evenly between the axes.
        """
        layout, pairs = self.layout.spec(name).layout, self.config.dim // self.config.heads // 2
        angles = [0.0] * pairs
        rotates = isinstance(layout, GridLayout | PatchesLayout) and name not in self.stored_modalities
        if self.config.rotary and rotates:
            assert isinstance(layout, GridLayout | PatchesLayout)
            share = 3 * pairs // 4 // len(layout.shape)
            for axis, (index, count) in enumerate(
                zip(np.unravel_index(position, layout.shape), layout.shape, strict=True)
            ):
                for number in range(share):
                    cycles = 0.25 * 32 ** (number / max(share - 1, 1))
                    angles[axis * share + number] = 2 * math.pi * cycles * (int(index) + 0.5) / count
        return torch.tensor(angles, dtype=torch.float32).double()

    def rotate(self, x: Tensor, angles: Tensor) -> Tensor:
        """Return one head's queries or keys as rotated complex numbers."""
        first, second = x.chunk(2, dim=1)
        result = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)
        return torch.cat([result.real, result.imag], dim=1)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, angles: tuple[Tensor, Tensor], allowed: Tensor, name: str
    ) -> Tensor:
        size = self.config.dim // self.config.heads
        outputs = []
        for head in range(self.config.heads):
            columns = slice(head * size, (head + 1) * size)
            q, k, v = query[:, columns], key[:, columns], value[:, columns]
            if self.config.qk_norm:
                q, k = self.norm(q, f"{name}.query_norm"), self.norm(k, f"{name}.key_norm")
            q, k = self.rotate(q, angles[0]), self.rotate(k, angles[1])
            scores = (q @ k.T / math.sqrt(size)).masked_fill(~allowed, -math.inf)
            outputs.append(scores.softmax(dim=-1).nan_to_num(0.0) @ v)
        return self.linear(torch.cat(outputs, dim=1), f"{name}.out")

    def mlp(self, x: Tensor, name: str) -> Tensor:
        activation = F.silu if self.config.activation == "silu" else F.gelu
        if self.config.gated_mlp:
            hidden = activation(self.linear(x, f"{name}.up", 0, 2)) * self.linear(x, f"{name}.up", 1, 2)
        else:
            hidden = activation(self.linear(x, f"{name}.up"))
        return self.linear(hidden, f"{name}.down")

    def position_embedding(self, name: str, position: int, *, target: bool = False) -> Tensor:
        """Return the embedding of a position (from formulas or stored) plus the embedding of the modality."""
        layout, dim = self.layout.spec(name).layout, self.config.dim
        if name in self.stored_modalities:
            table = self.state["target_positions" if target else "fixed_positions"]
            embedded = table[self.layout.positions[name].start + position]
        elif f"learned_positions.{name}" in self.state:
            embedded = self.state[f"learned_positions.{name}"][position]
        else:
            shape = layout.shape if isinstance(layout, GridLayout | PatchesLayout) else (1,)
            indices = np.unravel_index(position, shape) if len(shape) > 1 or shape != (1,) else (position,)
            length = self.config.position_lengths.get(name, layout.length)
            line = 2 * length + 2 if isinstance(layout, SequenceLayout) else length
            steps = shape if isinstance(layout, GridLayout | PatchesLayout) else (line,)
            share = dim // len(shape) // 2
            parts: list[float] = []
            for index, count in zip(indices, steps, strict=True):
                angles = [int(index) * math.pi / 2 / (2 * count) ** (i / max(share - 1, 1)) for i in range(share)]
                parts += [2 * math.sin(angle) for angle in angles] + [2 * math.cos(angle) for angle in angles]
            embedded = torch.tensor(parts + [0.0] * (dim - len(parts)), dtype=torch.float64)
        separate = target and "target_modality_embedding.weight" in self.state
        markers = self.state[f"{'target_' if separate else ''}modality_embedding.weight"]
        return embedded + markers[self.layout.index(name)]

    def token(self, name: str, local_id: int, *, target: bool = False) -> Tensor:
        separate = target and "read_embedding.weight" in self.state
        table = self.state[f"{'read' if separate else 'token'}_embedding.weight"]
        return table[self.layout.token_rows(name).start + local_id]

    def losses(self, batch: PackedBatch, sample: int) -> dict[str, list[Tensor]]:
        """Return the cross-entropy of each target of a sample, by modality."""
        content, position_embeddings, used, angles = self.all_inputs(batch.inputs, sample)
        registers = self.state.get("registers", content[:0])
        content = torch.cat([registers, content])
        position_embeddings = torch.cat([0 * registers, position_embeddings])
        angles = F.pad(angles, (0, 0, len(registers), 0))
        used = torch.cat([torch.ones(len(registers), dtype=torch.bool), used])
        x = content + position_embeddings
        for layer in range(self.config.encoder_depth):
            name = f"encoder.{layer}"
            y = self.norm(x, f"{name}.attention_norm")
            q, k, v = (self.linear(y, f"{name}.attention.qkv", part, 3) for part in range(3))
            x = x + self.attend(q, k, v, (angles, angles), used.expand(len(x), -1), f"{name}.attention")
            x = x + self.mlp(self.norm(x, f"{name}.mlp_norm"), f"{name}.mlp")
        context = self.linear(self.norm(x, "encoder_norm"), "context_projection") + position_embeddings
        targets = batch.targets
        losses: dict[str, list[Tensor]] = {}
        # Targets attend only to targets of the same modality; modalities share information only through the context.
        for kind in targets.modalities[sample][targets.mask[sample]].unique().tolist():
            name = self.layout.names[kind]
            selected = targets.mask[sample] & (targets.modalities[sample] == kind)
            losses[name] = self.modality(name, targets, sample, selected, context, used, angles)
        return losses

    def all_inputs(self, inputs: PackedInputs, sample: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        content, position_embeddings, used, angles = [], [], [], []
        for item in self.layout.specs:
            first = self.layout.positions[item.name].start
            slots = {}
            for slot in range(inputs.ids.shape[1]):
                if inputs.mask[sample, slot] and inputs.modalities[sample, slot] == self.layout.index(item.name):
                    slots[int(inputs.positions[sample, slot]) - first] = slot
            for position in range(self.layout.num_positions_of(item)):
                slot = slots.get(position)
                used.append(slot is not None)
                position_embeddings.append(self.position_embedding(item.name, position))
                angles.append(self.angles(item.name, position))
                if item.continuous:
                    content.append(self.vector(inputs, item.name, sample, slot))
                else:
                    rows = self.layout.token_rows(item.name)
                    content.append(
                        self.token(item.name, 0 if slot is None else int(inputs.ids[sample, slot]) - rows.start)
                    )
        return torch.stack(content), torch.stack(position_embeddings), torch.tensor(used), torch.stack(angles)

    def vector(self, inputs: PackedInputs, name: str, sample: int, slot: int | None) -> Tensor:
        layout = self.layout.spec(name).layout
        assert isinstance(layout, PatchesLayout | EmbeddingsLayout)
        value = torch.zeros(layout.dim, dtype=torch.float64)
        if slot is not None:
            index, vectors = inputs.vectors[name]
            value = vectors[(index == sample * inputs.ids.shape[1] + slot).nonzero()[0, 0]].double()
        return self.linear(value, f"projections.{name}")

    def modality(
        self, name: str, targets: PackedTargets, sample: int, selected: Tensor, context: Tensor, used: Tensor,
        angles: Tensor,
    ) -> list[Tensor]:  # fmt: skip
        start = self.layout.token_rows(name).start
        reads, target_ids = targets.read[sample][selected].tolist(), (targets.ids[sample][selected] - start).tolist()
        positions = (targets.positions[sample][selected] - self.layout.positions[name].start).tolist()
        mask_tokens = self.state["mask_embedding.weight"]
        mask_token = mask_tokens[self.layout.index(name) if len(mask_tokens) > 1 else 0]
        content = [mask_token if read < 0 else self.token(name, read - start, target=True) for read in reads]
        x = torch.stack(
            [c + self.position_embedding(name, p, target=True) for c, p in zip(content, positions, strict=True)]
        )
        target_angles = torch.stack([self.angles(name, p) for p in positions])
        allowed = torch.ones(len(x), len(x), dtype=torch.bool)
        if isinstance(self.layout.spec(name).layout, SequenceLayout):
            allowed = allowed.tril()
        for layer in range(self.config.decoder_depth):
            block = f"decoder.{layer}"
            y = self.norm(x, f"{block}.self_norm")
            q, k, v = (self.linear(y, f"{block}.self_attention.qkv", part, 3) for part in range(3))
            x = x + self.attend(q, k, v, (target_angles, target_angles), allowed, f"{block}.self_attention")
            q = self.linear(self.norm(x, f"{block}.query_norm"), f"{block}.cross_attention.q")
            y = self.norm(context, f"{block}.context_norm")
            k, v = (self.linear(y, f"{block}.cross_attention.kv", part, 2) for part in range(2))
            x = x + self.attend(q, k, v, (target_angles, angles), used.expand(len(x), -1), f"{block}.cross_attention")
            x = x + self.mlp(self.norm(x, f"{block}.mlp_norm"), f"{block}.mlp")
        output = self.state[f"output.{self.layout.table_of(self.layout.spec(name))}"]
        log_probabilities = (self.norm(x, "decoder_norm") @ output.T).log_softmax(dim=-1)
        return [-log_probabilities[index, token] for index, token in enumerate(target_ids)]
