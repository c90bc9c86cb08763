"""FourM against a slow reference; initial weights, embedding tables and refused configurations."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from backbone_samples import SMALL, all_layouts, packed_batch, sequence, spec
from torch import Tensor

from tokenizers_zoo.contract.layouts import EmbeddingsLayout, GridLayout, PatchesLayout, SequenceLayout
from tokenizers_zoo.contract.spec import ModalitySpec, OrderedIds
from tokenizers_zoo.errors import ConfigError, PluginError, UnknownNameError
from zoo_backbone.learn.checkpoint import architecture_for
from zoo_backbone.model.batch import PackedBatch, PackedInputs, PackedTargets
from zoo_backbone.model.config import ModelConfig, preset
from zoo_backbone.model.embedding_layout import EmbeddingLayout
from zoo_backbone.model.fourm import EMBEDDING_STD, OUTPUT_STD, FourM
from zoo_backbone.model.published import PublishedConfig, PublishedFourM, PublishedLayout
from zoo_backbone.model.transformer import ALIGNED, DecoderBlock, FusedLinear

CONFIGS = {
    "default": SMALL,
    "other": ModelConfig(
        dim=24, encoder_depth=1, decoder_depth=2, heads=3, gated_mlp=False, activation="gelu", bias=True, qk_norm=True,
        position_lengths={"words": 12, "vectors": 9},
    ),
    "rotary": ModelConfig(dim=48, encoder_depth=2, decoder_depth=2, heads=2, rotary=True, qk_norm=True),
    "published": PublishedConfig(
        dim=16, encoder_depth=1, decoder_depth=1, heads=2, bias=("qkv", "norm"), rotary=True,
        share_modality_embeddings=False, registers=2,
        stored_positions={"picture": 36, "code": 5, "words": 40, "pixels": 36, "vectors": 9},
    ),
}  # fmt: skip


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


def double_model(specs: Sequence[ModalitySpec], config: ModelConfig = SMALL) -> FourM:
    """Return a float64 model whose norms and biases have random values instead of ones and zeros."""
    model = architecture_for(config).seeded(config, specs, 0).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        for rows in model.layout.positions_of("stored").values():
            for table in (model.fixed_positions, model.target_positions):
                table[rows] = torch.randn(table[rows].shape, generator=generator, dtype=torch.float64)
    return model


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_selecting_first_is_embedding_all(config: ModelConfig) -> None:
    specs = all_layouts()
    model = double_model(specs, config)
    batch = packed_batch(specs, size=3, budget=40, seed=4, absent=0.5, layout=model.layout)
    assert not batch.inputs.mask.all() and not batch.targets.mask.all(), "padding changes no sample"
    twin = SlowTwin(model)
    by_modality: dict[str, list[Tensor]] = {}
    for sample in range(3):
        for name, losses in twin.losses(batch, sample).items():
            by_modality.setdefault(name, []).extend(losses)
    fast = model(batch, "modality")
    means = [torch.stack(losses).mean() for losses in by_modality.values()]
    torch.testing.assert_close(fast.loss, torch.stack(means).mean(), rtol=1e-7, atol=0)
    all_losses = torch.stack([loss for losses in by_modality.values() for loss in losses])
    torch.testing.assert_close(model(batch, "token").loss, all_losses.mean(), rtol=1e-7, atol=0)
    loss_by_modality = fast.per_modality(model.layout.names)
    assert set(loss_by_modality) == set(by_modality)
    for name, losses in by_modality.items():
        assert loss_by_modality[name] == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)


def test_a_sample_without_inputs_or_targets_is_harmless() -> None:
    specs = all_layouts()
    model = double_model(specs)
    batch = packed_batch(specs, size=2)
    inputs = dataclasses.replace(batch.inputs, mask=batch.inputs.mask & torch.tensor([[True], [False]]))
    losses = model(PackedBatch(inputs=inputs, targets=batch.targets))
    assert torch.isfinite(losses.loss)
    targets = dataclasses.replace(batch.targets, mask=torch.zeros_like(batch.targets.mask))
    losses = model(PackedBatch(inputs=batch.inputs, targets=targets), use_all=True)
    losses.loss.backward()
    assert losses.loss == 0 and not losses.counts.any()
    assert all(parameter.grad is not None for parameter in model.sometimes_used())


def test_stored_positions_have_to_suffice() -> None:
    specs = [spec("words", sequence(20), 100, "text"), spec("picture", GridLayout(shape=(6, 6)))]
    PublishedLayout(specs, PublishedConfig(stored_positions={"words": 21, "picture": 36}))
    for name, rows, least in (("words", 20, 21), ("picture", 35, 36)):
        with pytest.raises(ConfigError, match=f"{name} .* {least} .* {rows}"):
            PublishedLayout(specs, PublishedConfig(stored_positions={name: rows}))


def test_names_reserved_by_torch_are_refused() -> None:
    for reserved in (spec("type", GridLayout(shape=(2, 2))), spec("words", sequence(6), 100, "type")):
        with pytest.raises(ConfigError, match=r"'type'.*registry.toml"):
            FourM.seeded(SMALL, [reserved], 0)
    FourM.seeded(SMALL, [spec("type", sequence(6), 100, "text")], 0)  # no parameter has the modality's own name


@pytest.mark.parametrize(("name", "millions"), [("base", 198), ("large", 705), ("xlarge", 2819)])
def test_parameters_of_the_presets(name: str, millions: int) -> None:
    with torch.device("meta"):
        model = FourM(preset(name), all_layouts())
    assert round(model.transformer_parameters() / 1e6) == millions


def test_mlp_widths_and_bad_configurations() -> None:
    """A gated MLP is int(2 * int(5 * 60) / 3) = 200 wide, as in 4M; multiplying in turn gives 199.99."""
    assert ModelConfig(dim=60, heads=5, mlp_ratio=5.0).mlp_hidden == 200
    assert ModelConfig(dim=60, heads=5, mlp_ratio=5.0, gated_mlp=False).mlp_hidden == 300
    with pytest.raises(UnknownNameError, match="small"):
        preset("smal")
    for fields, message in (({"dim": 30, "heads": 5}, "multiple of 4"), ({"mlp_ratio": 0.001}, "mlp_ratio: expected")):
        with pytest.raises(ValueError, match=message):
            ModelConfig(**fields)


def test_each_modality_has_one_range_in_the_tables() -> None:
    specs = all_layouts()
    layout = EmbeddingLayout(specs)
    assert {name: (rows.start, rows.stop - rows.start) for name, rows in layout.token_tables.items()} == {
        "picture": (0, 50), "clip": (50, 40), "code": (90, 30), "text": (120, 100),
    }  # fmt: skip
    assert layout.positions["pixels"] == layout.positions["picture"]
    assert layout.num_positions_of(layout.spec("words")) == 42
    grown = EmbeddingLayout([*specs, spec("more", GridLayout(shape=(2, 2)))])
    assert all(grown.positions[name] == layout.positions[name] for name in layout.names)
    assert all(grown.token_tables[name] == rows for name, rows in layout.token_tables.items())
    with pytest.raises(ConfigError, match="text"):
        EmbeddingLayout([*specs, spec("more", sequence(), 99, "text")])
    with pytest.raises(ConfigError, match="each once"):
        EmbeddingLayout([specs[0], specs[0]])


def test_fused_layers_start_like_separate_ones() -> None:
    torch.manual_seed(0)
    model = FourM(ModelConfig(dim=64, encoder_depth=1, decoder_depth=1, heads=2), all_layouts())
    fused = [module for module in model.modules() if isinstance(module, FusedLinear)]
    assert len(fused) == 5
    cross = cast(DecoderBlock, model.decoder[0]).cross_attention
    for layer in fused:
        bound = math.sqrt(6 / (layer.in_features + layer.out_features / layer.parts))
        initial = layer.weight[64:] if layer is cross.kv else layer.weight  # keys are initialised from queries
        assert 0.95 * bound < initial.abs().max() <= bound
    torch.testing.assert_close(cross.kv.weight[:64], ALIGNED * cross.q.weight)
    assert model.token_embedding.weight.std().item() == pytest.approx(EMBEDDING_STD, rel=0.05)


def test_a_seed_gives_the_weights_and_leaves_the_global_state(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    monkeypatch.setattr("torch.cuda.manual_seed_all", lambda seed: pytest.fail("the devices' generators are seeded"))
    first, second = (FourM.seeded(SMALL, all_layouts(), 5) for _ in range(2))
    assert torch.equal(torch.rand(4), expected)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    other_seed = FourM.seeded(SMALL, all_layouts(), 6)
    assert not torch.equal(first.token_embedding.weight, other_seed.token_embedding.weight)


def test_rows_of_neighbouring_numbers_start_alike() -> None:
    config = dataclasses.replace(SMALL, dim=256)
    words = spec("words", sequence(), 300, "text")
    plain = [spec("tags", sequence(), 300, "text"), words, spec("picture", GridLayout(shape=(4, 4)))]
    plain.append(spec("labels", sequence(), 300, "text"))
    axes = OrderedIds(start=50, count=64), OrderedIds(start=114, count=3)
    ordered = [plain[0], dataclasses.replace(words, ordered_ids=axes), *plain[2:]]
    model, without = (FourM.seeded(config, specs, 3) for specs in (ordered, plain))
    rows = model.layout.token_rows("words")
    published = PublishedFourM.seeded(PublishedConfig(dim=256, encoder_depth=1, decoder_depth=1), ordered, 3)
    token_rows = published.read_embedding.weight[published.layout.token_rows("words")]
    for table, std in (
        (model.output["text"].detach(), OUTPUT_STD), (model.token_embedding.weight[rows].detach(), EMBEDDING_STD),
        (token_rows.detach(), EMBEDDING_STD),
    ):  # fmt: skip
        numbers = table[50:114]
        assert numbers.std() == pytest.approx(std, rel=0.1)
        assert (numbers.std(dim=1) / std).sub(1).abs().max() < 0.5
        likeness = torch.corrcoef(numbers)
        assert likeness.diagonal(1).min() > 0.9
        assert likeness.diagonal(16).abs().mean() < 0.4
        assert torch.corrcoef(table)[40:50, 50:114].abs().max() < 0.4
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, without.state_dict()[name])}
    assert changed == {"token_embedding.weight", "output.text"}
    same = torch.ones(len(rows_of := model.token_embedding.weight), dtype=torch.bool)
    same[rows.start + 50 : rows.start + 117] = False
    assert torch.equal(rows_of[same], without.token_embedding.weight[same])


@pytest.mark.parametrize("runs", [[(90, 11)], [(3, 5), (7, 2)]], ids=["beyond", "twice"])
def test_ordered_ids_are_ids_of_the_vocabulary(runs: list[tuple[int, int]]) -> None:
    words = spec("words", sequence(), 100, "text")
    ids = tuple(OrderedIds(start=start, count=count) for start, count in runs)
    with pytest.raises(PluginError, match="words: ModalitySpec ordered_ids"):
        dataclasses.replace(words, ordered_ids=ids)
    assert dataclasses.replace(words, ordered_ids=(OrderedIds(start=7, count=93), OrderedIds(start=0, count=7)))


def test_rotary_angles_are_not_stored() -> None:
    with pytest.raises(ValueError, match="rotary: expected an even"):
        ModelConfig(dim=12, heads=4, rotary=True)
    plain, rotary = (
        FourM.seeded(ModelConfig(dim=32, encoder_depth=1, decoder_depth=1, heads=2, rotary=on), all_layouts(), 0)
        for on in (False, True)
    )
    assert plain.state_dict().keys() == rotary.state_dict().keys()
    assert plain.rotations(torch.zeros(1, 1, dtype=torch.int64)) is None
