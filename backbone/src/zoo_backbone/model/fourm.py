"""FourM: embed the selected tokens, encode, decode, predict (4M, arXiv 2312.06647, section 2)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from tokenizers_zoo.contract.layouts import TokenLayout
from tokenizers_zoo.contract.registry import ModalityHandle
from tokenizers_zoo.contract.spec import ModalitySpec
from tokenizers_zoo.errors import ConfigError
from zoo_backbone.model.batch import PackedBatch, PackedInputs, PackedTargets
from zoo_backbone.model.config import ModelConfig
from zoo_backbone.model.embedding_layout import (
    EmbeddingLayout,
    init_ordered_ids,
    learned_rows,
    position_table,
    rotation_table,
)
from zoo_backbone.model.run import BackboneRecord
from zoo_backbone.model.transformer import DecoderBlock, EncoderBlock, KeyValueCache, initialise, layer_norm

OUTPUT_STD = 0.02
EMBEDDING_STD = 0.3
"""For tokens, modality embeddings and mask tokens. They are added to sin-cos positions with a root mean square of 1.4;
at the usual 0.02 a small model spends much of a short training on making them larger."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """The encoded inputs as the decoder sees them: keys and values per decoder block, and the mask of used inputs.

    `mask` is bool `batch 1 1 inputs`, or None where all are used.
    """

    keys_and_values: tuple[tuple[Tensor, Tensor], ...]
    mask: Tensor | None

    def select(self, rows: Tensor) -> Context:
        """Return the context of the samples `rows` (indices into the batch)."""
        selected = tuple((key[rows], value[rows]) for key, value in self.keys_and_values)
        return Context(keys_and_values=selected, mask=None if self.mask is None else self.mask[rows])


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Cross-entropies of a batch in nats: the loss to train on, and the sum and count of targets per modality."""

    loss: Tensor
    sums: Tensor
    counts: Tensor

    def per_modality(self, names: Sequence[str]) -> dict[str, float]:
        """Return the mean cross-entropy of each modality that had targets."""
        return {
            name: total / count
            for name, total, count in zip(names, self.sums.tolist(), self.counts.tolist(), strict=True)
            if count
        }


class FourM(nn.Module):
    """The encoder-decoder of 4M over the modalities of `specs`.

    Cost depends on the token budgets, not on the number of modalities: tokens are selected before they are embedded,
    and logits are computed for selected targets over their own vocabulary only.
    """

    layout_class: ClassVar[type[EmbeddingLayout]] = EmbeddingLayout
    config_class: ClassVar[type[ModelConfig]] = ModelConfig
    table_rows: ClassVar[Mapping[str, str]] = {"token_embedding.weight": "tokens"}
    """Entries of the state dict with all embedding tables, and their names on disk (`checkpoint.model_tensors`)."""
    modality_rows: ClassVar[Mapping[str, str]] = {
        "modality_embedding.weight": "modalities",
        "mask_embedding.weight": "masks",
    }
    """Entries with one row per modality."""
    stored_rows: ClassVar[Mapping[str, str]] = {}
    """Entries with one row per stored position."""
    decoder_only: ClassVar[frozenset[str]] = frozenset(
        ("mask_embedding", "context_projection", "decoder", "decoder_norm", "output")
    )
    """Modules and tensors that the encoder does not need."""
    record: BackboneRecord | None = None
    """The config.json that the model was loaded with; empty for a new model."""

    fixed_positions: Tensor
    rotation_rows: Tensor
    learned_rows: Tensor

    def __init__(self, config: ModelConfig, specs: Sequence[ModalitySpec]) -> None:
        super().__init__()
        self.config = config
        self.layout = layout = self.layout_class(specs, config)
        _check_names(layout)
        dim = config.dim
        self.token_embedding = nn.Embedding(layout.num_tokens, dim)
        self.modality_embedding = nn.Embedding(len(layout), dim)
        self.mask_embedding = nn.Embedding(len(layout), dim)
        self.register_buffer("fixed_positions", position_table(layout, dim), persistent=False)
        if config.rotary:
            self.register_buffer("rotation_rows", rotation_table(layout, dim // config.heads), persistent=False)
        self.register_buffer("learned_rows", learned_rows(layout), persistent=False)
        learned = layout.positions_of("learned").items()
        self.learned_positions = nn.ParameterDict(
            {name: nn.Parameter(torch.empty(rows.stop - rows.start, dim)) for name, rows in learned}
        )
        self.projections = nn.ModuleDict(
            {spec.name: nn.Linear(spec.layout.numbers_per_token, dim) for spec in specs if spec.continuous}
        )
        self.encoder = nn.ModuleList(EncoderBlock(config) for _ in range(config.encoder_depth))
        self.encoder_norm = layer_norm(dim, config)
        self.context_projection = nn.Linear(dim, dim)
        self.decoder = nn.ModuleList(DecoderBlock(config) for _ in range(config.decoder_depth))
        self.decoder_norm = layer_norm(dim, config)
        self.output = nn.ParameterDict(
            {name: nn.Parameter(torch.empty(rows.stop - rows.start, dim)) for name, rows in layout.token_tables.items()}
        )
        self.apply(initialise)
        for block in self.decoder:
            cast(DecoderBlock, block).cross_attention.align()
        embeddings = self.token_embedding.weight, self.modality_embedding.weight, self.mask_embedding.weight
        for table in (*embeddings, *self.learned_positions.values()):
            nn.init.normal_(table, std=EMBEDDING_STD)
        for table in self.output.values():
            nn.init.normal_(table, std=OUTPUT_STD)
        for name, runs in layout.ordered_ids.items():
            init_ordered_ids(self.token_embedding.weight[layout.token_tables[name]], runs, EMBEDDING_STD)
            init_ordered_ids(self.output[name], runs, OUTPUT_STD)

    @classmethod
    def seeded(cls, config: ModelConfig, specs: Sequence[ModalitySpec], seed: int) -> Self:
        """Return a new model with weights drawn from `seed`, leaving the global random state as it is."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # the CPU's only, which draws all weights
            return cls(config, specs)

    @property
    def vocabulary_prefixes(self) -> tuple[str, ...]:
        """Prefixes on disk of the tensors with one row per id of a vocabulary."""
        return tuple(f"{prefix}." for prefix in (*self.table_rows.values(), "output"))

    @property
    def trained_on(self) -> Mapping[str, str]:
        """Fingerprints of the tokenizers at its training, by modality; empty if they are unknown."""
        return self.record.fingerprints if self.record else {}

    @property
    def weights_sha256(self) -> str:
        """sha256 (hex) of the weights that were loaded; empty for a new model."""
        return self.record.weights_sha256 if self.record else ""

    def check_tokenizer(self, handle: ModalityHandle) -> None:
        """Raise DataError unless the model was trained on tokens and the layout of this tokenizer, which may have grown
        since."""
        check_handle(handle, self.trained_on.get(handle.name), self.layout.spec(handle.name).layout)

    def transformer_parameters(self) -> int:
        """Return the number of parameters of the blocks, without embeddings, projections and output rows."""
        return sum(p.numel() for block in (*self.encoder, *self.decoder) for p in block.parameters())

    def sometimes_used(self) -> list[nn.Parameter]:
        """Return the parameters without a gradient where a batch has nothing of their vocabulary or modality."""
        parameters = [*self.output.values(), *self.projections.parameters()]
        return [parameter for parameter in parameters if parameter.requires_grad]

    # ------------------------------------------------------------------ embeddings

    def embed_positions(self, rows: Tensor, fixed: Tensor) -> Tensor:
        """Return the embeddings of position rows: `fixed` ones, which are zero for learned positions, plus learned."""
        embedded = F.embedding(rows, fixed)
        if not self.learned_positions:
            return embedded
        # All fixed positions use row 0, so that the cost does not depend on their number.
        learned = [self.learned_positions[name] for name in self.layout.positions_of("learned")]
        table = torch.cat([self.fixed_positions.new_zeros(1, self.config.dim), *learned])
        return embedded + F.embedding(self.learned_rows[rows], table, padding_idx=0)

    def rotations(self, positions: Tensor) -> Tensor | None:
        """Return the rotations of queries and keys at position rows, `batch tokens head_size`; None without rotary."""
        return F.embedding(positions, self.rotation_rows) if self.config.rotary else None

    def embed_inputs(self, inputs: PackedInputs) -> tuple[Tensor, Tensor]:
        """Return content, and position plus modality, of the selected tokens: each `batch inputs dim`."""
        content = self.token_embedding(inputs.ids)
        if inputs.vectors:
            flat = rearrange(content, "b n d -> (b n) d")
            for name in sorted(inputs.vectors):
                index, vectors = inputs.vectors[name]
                projected = self.projections[name](vectors.to(flat.dtype))
                flat = flat.index_copy(0, index, projected.to(flat.dtype))
            content = flat.view_as(content)
        position = self.embed_positions(inputs.positions, self.fixed_positions)
        return content, position + self.modality_embedding(inputs.modalities)

    def embed_targets(self, read: Tensor, positions: Tensor, modalities: Tensor) -> Tensor:
        """Return the decoder's inputs `batch targets dim`: the token read, or the modality's mask token where -1."""
        masked = (read < 0).unsqueeze(-1)
        content = torch.where(masked, self.mask_embedding(modalities), self.token_embedding(read.clamp(min=0)))
        position = self.embed_positions(positions, self.fixed_positions)
        return content + (position + self.modality_embedding(modalities))

    def encoder_inputs(self, inputs: PackedInputs) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Return content, place, rotations and mask of the encoder's tokens; the inputs come last."""
        content, position = self.embed_inputs(inputs)
        return content, position, self.rotations(inputs.positions), inputs.mask

    # ------------------------------------------------------------------ encoder

    def encode(self, inputs: PackedInputs) -> Tensor:
        """Return the normed output of the encoder, `batch inputs dim`; it is undefined at unused inputs."""
        content, position, rotation, mask = self.encoder_inputs(inputs)
        return self._encode(content + position, rotation, _key_mask(mask))[:, -inputs.ids.shape[1] :]

    def _encode(self, x: Tensor, rotation: Tensor | None, mask: Tensor | None) -> Tensor:
        for block in self.encoder:
            x = block(x, rotation, mask)
        return self.encoder_norm(x)

    def context(self, inputs: PackedInputs) -> Context:
        """Encode the inputs for the decoder.

        For a sample without any input, cross-attention returns zero, as in 4M: unconditional outputs depend on no row
        of the tables, and so not on the order of the modalities.
        """
        content, position, rotation, used = self.encoder_inputs(inputs)
        mask = _key_mask(used)
        x = self.context_projection(self._encode(content + position, rotation, mask)) + position
        blocks = cast(Iterable[DecoderBlock], self.decoder)
        pairs = tuple(block.keys_and_values(x, rotation) for block in blocks)
        if mask is not None and not bool((conditioned := used.any(dim=1)).all()):
            pairs = tuple((key, value * rearrange(conditioned, "b -> b 1 1 1")) for key, value in pairs)
        return Context(keys_and_values=pairs, mask=mask)

    # ------------------------------------------------------------------ decoder

    def decode(
        self,
        x: Tensor,
        rotation: Tensor | None,
        context: Context | Sequence[Context],
        mask: Tensor | None,
        caches: Sequence[KeyValueCache] | None = None,
    ) -> Tensor:
        """Map embedded targets, with their rotations, to the normed output of the decoder, `batch targets dim`.

        `mask` is bool, broadcast to `batch heads targets keys` (see `target_mask`). With `caches`, one per block, `x`
        has the new tokens only, and keys are all tokens so far. Several contexts, of different lengths, are for equal
        shares of the rows of `x`, in this order.
        """
        contexts = [context] if isinstance(context, Context) else context
        for i, block in enumerate(self.decoder):
            block_contexts = [(*part.keys_and_values[i], part.mask) for part in contexts]
            x = block(x, rotation, block_contexts, mask, None if caches is None else caches[i])
        return self.decoder_norm(x)

    def target_mask(self, targets: PackedTargets) -> Tensor:
        """Return the decoder's self-attention mask, bool `batch 1 targets targets`.

        Targets attend to their own modality, and within a sequence to earlier tokens only (4M, section 2.2).
        """
        kind, used = targets.modalities, targets.mask
        causal = torch.as_tensor(self.layout.causal, device=kind.device)[kind]
        same = (kind.unsqueeze(2) == kind.unsqueeze(1)) & used.unsqueeze(1)
        size = kind.shape[1]
        earlier = torch.ones(size, size, dtype=torch.bool, device=kind.device).tril()
        allowed = same & (earlier | ~causal.unsqueeze(2))
        # An unused slot attends to itself: a row without any key would give NaN.
        return (allowed | torch.eye(size, dtype=torch.bool, device=kind.device)).unsqueeze(1)

    def logits(self, hidden: Tensor, table: str) -> Tensor:
        """Map `... dim` to logits `... vocab_size` over one embedding table (see `EmbeddingLayout.table_of`)."""
        return F.linear(hidden, self.output[table])

    def decode_targets(self, batch: PackedBatch) -> Tensor:
        """Return the output of the decoder for a packed batch, `batch targets dim`."""
        targets = batch.targets
        x = self.embed_targets(targets.read, targets.positions, targets.modalities)
        rotation = self.rotations(targets.positions)
        return self.decode(x, rotation, self.context(batch.inputs), self.target_mask(targets))

    # ------------------------------------------------------------------ loss

    def target_counts(self, targets: PackedTargets) -> Tensor:
        """Return the number of targets per modality, float32 `modalities`."""
        return torch.bincount(targets.modalities[targets.mask], minlength=len(self.layout)).float()

    def forward(
        self,
        batch: PackedBatch,
        loss: str = "modality",
        batch_counts: Tensor | None = None,
        use_all: bool = False,
        weights: Tensor | None = None,
    ) -> Losses:
        """Return the cross-entropy of the targets.

        `loss` is "modality" (mean over modalities with targets, 4M section 2.3) or "token" (mean over targets). Where
        the batch is a part of a larger one, `batch_counts` has the `target_counts` of the larger one: the losses of the
        parts add up to its loss. `weights` (`modalities`) scale the terms of each modality. With `use_all` every
        parameter gets a gradient, as processes that exchange gradients need.
        """
        targets = batch.targets
        hidden = self.decode_targets(batch)
        used = targets.mask.flatten()
        hidden = rearrange(hidden, "b n d -> (b n) d")[used]
        ids, kinds = targets.ids.flatten()[used], targets.modalities.flatten()[used]
        groups = torch.as_tensor(self.layout.table_index, device=kinds.device)[kinds]
        order = torch.argsort(groups, stable=True)
        sizes = torch.bincount(groups, minlength=len(self.layout.token_tables)).tolist()
        # At least float32, whatever autocast says: the sum over a vocabulary loses too much in bfloat16.
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        rows_of, ids_of = torch.split(hidden[order], sizes), torch.split(ids[order], sizes)
        token_losses = [
            F.cross_entropy(self.logits(rows, name).to(dtype), target_ids - span.start, reduction="none")
            for (name, span), rows, target_ids in zip(self.layout.token_tables.items(), rows_of, ids_of, strict=True)
            if len(rows)
        ]
        kinds = kinds[order]
        zeros = hidden.new_zeros(len(self.layout), dtype=dtype)
        sums = zeros.index_add(0, kinds, torch.cat(token_losses)) if token_losses else zeros + hidden.sum()
        counts = self.target_counts(targets).to(dtype)
        batch_counts = counts if batch_counts is None else batch_counts
        weighted = sums if weights is None else sums * weights
        if loss == "token":
            mean = weighted.sum() / batch_counts.sum().clamp(min=1)
        else:
            mean = (weighted / batch_counts.clamp(min=1)).sum() / (batch_counts > 0).sum().clamp(min=1)
        if use_all:
            mean = mean + sum(0 * parameter[:1].sum() for parameter in self.sometimes_used())
        return Losses(loss=mean, sums=sums.detach(), counts=counts)


def _check_names(layout: EmbeddingLayout) -> None:
    """Raise ConfigError for a vocabulary or modality that PyTorch cannot hold under its name, such as `type`."""
    reserved = {*dir(nn.ParameterDict()), *dir(nn.ModuleDict())}
    projected = [spec.name for spec in layout.specs if spec.continuous]
    for name in (*layout.token_tables, *layout.positions_of("learned"), *projected):
        if name in reserved:
            advice = f'such as [modalities.{name}_tokens] plugin = "{name}" in registry.toml'
            reason = f"cannot be called {name!r}, which is an attribute of PyTorch modules"
            raise ConfigError(f"backbone: a modality or vocabulary {reason}; give it another name, {advice}")


def _key_mask(mask: Tensor) -> Tensor | None:
    """Return bool `batch 1 1 keys`, or None where all are used, as attention is faster without a mask.

    A sample without any input attends to its first, empty slot: a row without any key would give NaN.
    """
    if bool(mask.all()):
        return None
    empty = ~mask.any(dim=1, keepdim=True)
    first = torch.arange(mask.shape[1], device=mask.device) == 0
    return rearrange(mask | (empty & first), "b n -> b 1 1 n")


def check_handle(handle: ModalityHandle, fingerprint: str | None, layout: TokenLayout | None = None) -> None:
    """Raise DataError unless a model was trained with the handle's tokenizer, and on this layout.

    A vocabulary may have grown since. None: the tokenizer, or the layout, is unknown.
    """
    prefix = f"{handle.name}: the model was trained on"
    handle.check_tokens_of(prefix, fingerprint, layout, remedy="use the registry of its training")
