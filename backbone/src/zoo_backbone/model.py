"""FourM: embed the selected tokens, encode, decode, predict; one flat table each for tokens, positions, modalities."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tokenizers_zoo.errors import ConfigError
from tokenizers_zoo.spec import EmbeddingsLayout, ModalitySpec, PatchesLayout
from zoo_backbone.batch import PackedBatch, PackedInputs, PackedTargets
from zoo_backbone.config import ModelConfig
from zoo_backbone.embedding_layout import EmbeddingLayout
from zoo_backbone.numbers import start_alike
from zoo_backbone.positions import learned_rows, position_table, turn_table, unturned
from zoo_backbone.transformer import DecoderBlock, EncoderBlock, KeyValueCache, initialise, layer_norm

OUTPUT_STD = 0.02
EMBEDDING_STD = 0.3
"""Of tokens, modalities and mask tokens. They are added to sin-cos positions of root mean square 1.4: at 0.02, the
usual choice, they are drowned at first, and a small model spends much of a short training on raising them."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """What the decoder sees of the inputs: per decoder block keys and values, and which inputs are used.

    `mask` is bool `batch 1 1 inputs`, or None where all are used.
    """

    keys_and_values: tuple[tuple[Tensor, Tensor], ...]
    mask: Tensor | None

    def select(self, rows: Tensor) -> Context:
        """The context of the samples `rows` (indices into the batch)."""
        kept = tuple((key[rows], value[rows]) for key, value in self.keys_and_values)
        return Context(keys_and_values=kept, mask=None if self.mask is None else self.mask[rows])


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Cross-entropies of a batch in nats: the loss to train on, and the sum and count of targets per modality."""

    loss: Tensor
    sums: Tensor
    counts: Tensor

    def per_modality(self, names: Sequence[str]) -> dict[str, float]:
        """Mean cross-entropy of each modality that had targets."""
        return {
            name: total / count
            for name, total, count in zip(names, self.sums.tolist(), self.counts.tolist(), strict=True)
            if count
        }


class Undrawn(TorchFunctionMode):
    """Within it, tensors that are to be filled with random numbers stay as they are."""

    DRAWS = nn.init.kaiming_uniform_, nn.init.uniform_, nn.init.normal_, Tensor.uniform_, Tensor.normal_

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """What `func` gives; of one that draws, its tensor."""
        kwargs = kwargs or {}
        if func in self.DRAWS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


class FourM(nn.Module):
    """The encoder-decoder of 4M over the modalities of `specs`.

    Cost depends on the token budgets, not on how many modalities there are: ids are selected before anything is
    embedded, and each group of targets meets only the output rows of its own vocabulary.
    """

    fixed_positions: Tensor
    target_positions: Tensor
    turn_rows: Tensor
    learned_rows: Tensor

    def __init__(self, config: ModelConfig, specs: Sequence[ModalitySpec]) -> None:
        super().__init__()
        self.config = config
        self.layout = EmbeddingLayout(specs, config)
        _check_names(self.layout)
        dim = config.dim
        self.token_embedding = nn.Embedding(self.layout.num_tokens, dim)
        self.modality_embedding = nn.Embedding(len(self.layout), dim)
        self.mask_embedding = nn.Embedding(len(self.layout) if config.mask_tokens == "modality" else 1, dim)
        if config.tables == "separate":
            self.read_embedding = nn.Embedding(self.layout.num_tokens, dim)
        if config.modality_embeddings == "separate":
            self.target_modality_embedding = nn.Embedding(len(self.layout), dim)
        stored = bool(self.layout.stored_positions)
        self.register_buffer("fixed_positions", position_table(self.layout, dim), persistent=stored)
        if stored:
            self.register_buffer("target_positions", self.fixed_positions.clone())
        if config.rotary:
            self.register_buffer("turn_rows", turn_table(self.layout, dim // config.heads), persistent=False)
        self.register_buffer("learned_rows", learned_rows(self.layout), persistent=False)
        self.learned_positions = nn.ParameterDict(
            {name: nn.Parameter(torch.empty(rows.count, dim))
             for name, rows in self.layout.positions_of("learned").items()}
        )  # fmt: skip
        self.projections = nn.ModuleDict(
            {spec.name: nn.Linear(spec.layout.dim, dim, config.patch_bias or isinstance(spec.layout, EmbeddingsLayout))
             for spec in specs if isinstance(spec.layout, PatchesLayout | EmbeddingsLayout)}
        )  # fmt: skip
        if config.registers:
            self.registers = nn.Parameter(torch.empty(config.registers, dim))
        self.encoder = nn.ModuleList(EncoderBlock(config) for _ in range(config.encoder_depth))
        self.encoder_norm = layer_norm(dim, config)
        self.context_projection = nn.Linear(dim, dim)
        self.decoder = nn.ModuleList(DecoderBlock(config) for _ in range(config.decoder_depth))
        self.decoder_norm = layer_norm(dim, config)
        self.output = nn.ParameterDict(
            {name: nn.Parameter(torch.empty(rows.count, dim)) for name, rows in self.layout.token_tables.items()}
        )
        self.apply(initialise)
        for block in self.decoder:
            cast(DecoderBlock, block).cross_attention.align()
        for table in (*self._embeddings(), *self.learned_positions.values()):
            nn.init.normal_(table, std=EMBEDDING_STD)
        for table in self.output.values():
            nn.init.normal_(table, std=OUTPUT_STD)
        for name, runs in self.layout.ordered_ids.items():
            rows = self.layout.token_tables[name].slice
            for embedding in dict.fromkeys((self.token_embedding, self._read_embedding)):
                start_alike(embedding.weight[rows], runs, EMBEDDING_STD)
            start_alike(self.output[name], runs, OUTPUT_STD)

    @classmethod
    def seeded(cls, config: ModelConfig, specs: Sequence[ModalitySpec], seed: int) -> FourM:
        """A new model whose weights follow from `seed`; the global random state stays as it is."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # the CPU's alone, which draws all weights
            return cls(config, specs)

    @classmethod
    def unfilled(cls, config: ModelConfig, specs: Sequence[ModalitySpec]) -> FourM:
        """A model whose weights are all to be copied into it: none is drawn, and until then they hold anything."""
        with torch.random.fork_rng(devices=[]), Undrawn():
            return cls(config, specs)

    def _embeddings(self) -> list[Tensor]:
        """All tables but those of positions, and the registers."""
        tables = [part.weight for part in self.children() if isinstance(part, nn.Embedding)]
        return [*tables, self.registers] if self.config.registers else tables

    @property
    def _read_embedding(self) -> nn.Embedding:
        """The table of the tokens that the decoder reads."""
        return self.read_embedding if self.config.tables == "separate" else self.token_embedding

    @property
    def _target_modality_embedding(self) -> nn.Embedding:
        separate = self.config.modality_embeddings == "separate"
        return self.target_modality_embedding if separate else self.modality_embedding

    def transformer_parameters(self) -> int:
        """Number of parameters of the blocks: without embeddings, projections of inputs, and output rows."""
        return sum(p.numel() for block in (*self.encoder, *self.decoder) for p in block.parameters())

    def sometimes_used(self) -> list[nn.Parameter]:
        """The parameters that have no gradient where a batch has nothing of their vocabulary or modality."""
        parameters = [*self.output.values(), *self.projections.parameters()]
        return [parameter for parameter in parameters if parameter.requires_grad]

    def _positions(self, rows: Tensor, fixed: Tensor) -> Tensor:
        """Embeddings of position rows: `fixed` ones, which are zero for learned positions, plus learned ones."""
        embedded = F.embedding(rows, fixed)
        if not self.learned_positions:
            return embedded
        # Row 0 stands for all fixed positions, so that the cost does not depend on how many positions there are.
        learned = [self.learned_positions[name] for name in self.layout.positions_of("learned")]
        table = torch.cat([self.fixed_positions.new_zeros(1, self.config.dim), *learned])
        return embedded + F.embedding(self.learned_rows[rows], table, padding_idx=0)

    def turns(self, positions: Tensor) -> Tensor | None:
        """How far attention turns the tokens at position rows, `batch tokens head_size`; None where it does not."""
        return F.embedding(positions, self.turn_rows) if self.config.rotary else None

    def embed_inputs(self, inputs: PackedInputs) -> tuple[Tensor, Tensor]:
        """The content of the selected tokens, and where and what they are: each `batch inputs dim`."""
        content = self.token_embedding(inputs.ids)
        if inputs.vectors:
            flat = rearrange(content, "b n d -> (b n) d")
            for name in sorted(inputs.vectors):
                index, vectors = inputs.vectors[name]
                projected = self.projections[name](vectors.to(flat.dtype))
                flat = flat.index_copy(0, index, projected.to(flat.dtype))
            content = flat.view_as(content)
        place = self._positions(inputs.positions, self.fixed_positions) + self.modality_embedding(inputs.modalities)
        return content, place

    def encode(self, inputs: PackedInputs) -> Tensor:
        """The encoder's normed output, `batch inputs dim`; what it holds at unused inputs has no meaning."""
        content, place, turns, mask = self.encoder_inputs(inputs)
        return self._encode(content + place, turns, _key_mask(mask))[:, self.config.registers :]

    def encoder_inputs(self, inputs: PackedInputs) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """The embedded inputs, their turns and their mask, after the registers, which have no place."""
        content, place = self.embed_inputs(inputs)
        turns, mask = self.turns(inputs.positions), inputs.mask
        count = self.config.registers
        if not count:
            return content, place, turns, mask
        registers = self.registers.to(content.dtype).expand(len(content), -1, -1)
        content, place = torch.cat([registers, content], 1), F.pad(place, (0, 0, count, 0))
        return content, place, None if turns is None else unturned(turns, count), F.pad(mask, (count, 0), value=True)

    def _encode(self, x: Tensor, turns: Tensor | None, mask: Tensor | None) -> Tensor:
        for block in self.encoder:
            x = block(x, turns, mask)
        result: Tensor = self.encoder_norm(x)
        return result

    def context(self, inputs: PackedInputs) -> Context:
        """Encode the inputs and keep what each decoder block needs of them.

        To a sample without any input, cross-attention gives zero, as 4M's does: what a model makes of nothing depends
        on no row of its tables, and so on no order of its modalities.
        """
        content, place, turns, used = self.encoder_inputs(inputs)
        mask = _key_mask(used)
        x = self.context_projection(self._encode(content + place, turns, mask)) + place
        blocks = cast(Iterable[DecoderBlock], self.decoder)
        kept = tuple(block.keys_and_values(x, turns) for block in blocks)
        if mask is not None and not bool((given := used.any(dim=1)).all()):
            kept = tuple((key, value * rearrange(given, "b -> b 1 1 1")) for key, value in kept)
        return Context(keys_and_values=kept, mask=mask)

    def embed_targets(self, read: Tensor, positions: Tensor, modalities: Tensor) -> Tensor:
        """What the decoder starts from, `batch targets dim`: the token read, or the modality's mask token where -1."""
        masked = (read < 0).unsqueeze(-1)
        mask_token = self.mask_embedding(modalities if len(self.mask_embedding.weight) > 1 else 0 * modalities)
        content = torch.where(masked, mask_token, self._read_embedding(read.clamp(min=0)))
        fixed = self.target_positions if self.layout.stored_positions else self.fixed_positions
        place = self._positions(positions, fixed) + self._target_modality_embedding(modalities)
        result: Tensor = content + place
        return result

    def decode(
        self,
        x: Tensor,
        turns: Tensor | None,
        context: Context | Sequence[Context],
        mask: Tensor | None,
        caches: Sequence[KeyValueCache] | None = None,
    ) -> Tensor:
        """Embedded targets, and the turns of their positions, to the decoder's normed output, `batch targets dim`.

        `mask` is bool, broadcast to `batch heads targets keys` (see `target_mask`); with `caches`, one a block, `x`
        holds the new tokens only and keys are all tokens so far. Several contexts, of different lengths, are for equal
        shares of the rows of `x`, in this order.
        """
        several = not isinstance(context, Context)
        contexts = [context] if isinstance(context, Context) else context
        masks = [part.mask for part in contexts]
        for i, block in enumerate(self.decoder):
            seen = [part.keys_and_values[i] for part in contexts]
            cache = None if caches is None else caches[i]
            x = block(x, turns, seen if several else seen[0], mask, masks if several else masks[0], cache)
        result: Tensor = self.decoder_norm(x)
        return result

    def target_mask(self, targets: PackedTargets) -> Tensor:
        """bool `batch 1 targets targets`: who sees whom: within a modality all, within a sequence earlier ones."""
        kind, used = targets.modalities, targets.mask
        causal = torch.as_tensor(self.layout.causal, device=kind.device)[kind]
        same = (kind.unsqueeze(2) == kind.unsqueeze(1)) & used.unsqueeze(1)
        size = kind.shape[1]
        earlier = torch.ones(size, size, dtype=torch.bool, device=kind.device).tril()
        allowed = same & (earlier | ~causal.unsqueeze(2))
        # An unused slot sees itself: a row without any key would give NaN.
        return (allowed | torch.eye(size, dtype=torch.bool, device=kind.device)).unsqueeze(1)

    def logits(self, hidden: Tensor, table: str) -> Tensor:
        """`... dim` to `... vocab_size`, over the ids of one token table (see `EmbeddingLayout.table_of`)."""
        return F.linear(hidden, self.output[table])

    def target_counts(self, targets: PackedTargets) -> Tensor:
        """float32 `modalities`: how many targets there are of each."""
        return torch.bincount(targets.modalities[targets.mask], minlength=len(self.layout)).float()

    def decode_targets(self, batch: PackedBatch) -> Tensor:
        """The decoder's output for a packed batch, `batch targets dim`."""
        targets = batch.targets
        x = self.embed_targets(targets.read, targets.positions, targets.modalities)
        turns = self.turns(targets.positions)
        return self.decode(x, turns, self.context(batch.inputs), self.target_mask(targets))

    def forward(
        self,
        batch: PackedBatch,
        loss: str = "modality",
        whole: Tensor | None = None,
        use_all: bool = False,
        weights: Tensor | None = None,
    ) -> Losses:
        """Cross-entropy of the targets: `loss` is "modality" (mean over modalities that have targets) or "token".

        Where the batch is a part of a larger one, `whole` holds that one's `target_counts`: the losses of the parts
        add up to that of the whole. `weights` (`modalities`) are factors of each one's share. With `use_all` every
        parameter has a gradient, as processes that exchange gradients need.
        """
        targets = batch.targets
        hidden = self.decode_targets(batch)
        used = targets.mask.flatten()
        hidden = rearrange(hidden, "b n d -> (b n) d")[used]
        ids, kinds = targets.ids.flatten()[used], targets.modalities.flatten()[used]
        groups = torch.as_tensor(self.layout.table_index, device=kinds.device)[kinds]
        order = torch.argsort(groups, stable=True)
        sizes = torch.bincount(groups, minlength=len(self.layout.token_tables)).tolist()
        # At least float32, whatever the autocast says: the sum over a vocabulary loses too much in bfloat16.
        exact = torch.promote_types(hidden.dtype, torch.float32)
        rows_of, ids_of = torch.split(hidden[order], sizes), torch.split(ids[order], sizes)
        each = [
            F.cross_entropy(self.logits(rows, name).to(exact), wanted - span.start, reduction="none")
            for (name, span), rows, wanted in zip(self.layout.token_tables.items(), rows_of, ids_of, strict=True)
            if len(rows)
        ]
        kinds = kinds[order]
        zeros = hidden.new_zeros(len(self.layout), dtype=exact)
        sums = zeros.index_add(0, kinds, torch.cat(each)) if each else zeros + hidden.sum()
        counts = self.target_counts(targets).to(exact)
        whole = counts if whole is None else whole
        counted = sums if weights is None else sums * weights
        if loss == "token":
            mean = counted.sum() / whole.sum().clamp(min=1)
        else:
            mean = (counted / whole.clamp(min=1)).sum() / (whole > 0).sum().clamp(min=1)
        if use_all:
            mean = mean + sum(0 * parameter[:1].sum() for parameter in self.sometimes_used())
        return Losses(loss=mean, sums=sums.detach(), counts=counts)


def _check_names(layout: EmbeddingLayout) -> None:
    """Raise ConfigError for a vocabulary or modality whose weights PyTorch cannot hold under its name, as `type`."""
    projected = [spec.name for spec in layout.specs if spec.continuous]
    parameters = [*layout.token_tables, *layout.positions_of("learned")]
    held = (nn.ParameterDict(), parameters), (nn.ModuleDict(), projected)
    for container, names in held:
        for name in names:
            if hasattr(container, name):
                raise ConfigError(
                    f"backbone: a modality or vocabulary cannot be called {name!r}, a name that PyTorch's modules have "
                    f'for something else; give it another, such as [modalities.{name}_tokens] plugin = "{name}" in '
                    "registry.toml"
                )


def _key_mask(mask: Tensor) -> Tensor | None:
    """bool `batch 1 1 keys`, or None where all are used: attention is faster without a mask.

    A sample without any input sees its first, empty slot: a row without any key would give NaN.
    """
    if bool(mask.all()):
        return None
    empty = ~mask.any(dim=1, keepdim=True)
    first = torch.arange(mask.shape[1], device=mask.device) == 0
    return rearrange(mask | (empty & first), "b n -> b 1 1 n")


def uniform_loss(vocab_size: int) -> float:
    """The cross-entropy, in nats, of knowing nothing: log of the number of ids."""
    return math.log(vocab_size)
