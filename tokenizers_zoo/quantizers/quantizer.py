"""The quantizer that tokenizers use: projections around an adapter, in float32 whatever the surroundings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from tokenizers_zoo.config import from_mapping
from tokenizers_zoo.errors import CheckpointError, ConfigError, InvalidValueError, is_of_the_machine
from tokenizers_zoo.quantizers.adapter import take_first_process
from tokenizers_zoo.quantizers.composite import ADAPTERS
from tokenizers_zoo.quantizers.config import TRAINING_ONLY, QuantizerConfig
from tokenizers_zoo.quantizers.usage import COLLAPSED, RecentUsage

if TYPE_CHECKING:
    from jaxtyping import Float, Int, UInt8

CONFIG_KEY = "_extra_state"
"""Torch's name for what `get_extra_state` gives."""


class Quantized(NamedTuple):
    """What `Quantizer.forward` gives."""

    codes: Float[Tensor, "batch *grid dim"]
    """Quantised vectors, float32; in training their gradient passes straight through to the latents."""
    tokens: Int[Tensor, "batch *grid_codes"]
    """int64 ids in [0, codebook_size): (batch, *grid), with a last axis of codes if a latent has several."""
    loss: Float[Tensor, ""]
    """What to add to the reconstruction loss (commitment, entropy, spread), weighted; 0 in eval mode."""


class Quantizer(nn.Module):
    """Map latents of `dim` numbers, on a grid of any number of axes, to tokens and codes.

    Everything runs in float32, also under autocast: bfloat16 latents near a border would otherwise change their token.
    In eval mode it is deterministic, changes no state, and `forward(x).codes` equals `decode(encode(x))` exactly. In
    distributed training all processes hold the same codebooks if gradients are averaged (DDP).

    The state dict also holds the configuration, because the weights do not determine it (no tensor holds the levels of
    fsq). `load_state_dict` raises CheckpointError for a different configuration. It accepts a state dict without one,
    as in older files.
    """

    def __init__(self, config: QuantizerConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        self.dim = dim
        self.adapter = ADAPTERS[config.kind](config)
        code_dim = self.adapter.code_dim
        self.project_in = nn.Linear(dim, code_dim) if code_dim != dim else nn.Identity()
        self.project_out = nn.Linear(code_dim, dim) if code_dim != dim else nn.Identity()
        self.recent = RecentUsage(config.codebook_size, config.codes_per_position)
        """Which codes the last training batches of this process used."""
        self._agreed = False

    @property
    def codebook_size(self) -> int:
        """Number of codes of one codebook; tokens are below it."""
        return self.config.codebook_size

    @property
    def codes_per_position(self) -> int:
        """Tokens per latent: the last axis of tokens, which one token per latent has not."""
        return self.config.codes_per_position

    def forward(self, latents: Float[Tensor, "batch *grid dim"]) -> Quantized:
        """Quantise. Raises CheckpointError in eval mode if the codebook was never trained."""
        if latents.shape[-1] != self.dim:
            raise InvalidValueError(
                f"latents: expected {self.dim} numbers each (the last axis), got {tuple(latents.shape)}"
            )
        places = latents.shape[:-1]
        with torch.autocast(latents.device.type, enabled=False):
            flat = latents.float().reshape(1, -1, self.dim)  # one long row: some kernels loop over a batch
            codes, tokens, loss = self._train(flat) if self.training else self._eval(flat)
            return Quantized(codes.view(*places, self.dim), tokens.view(*places, *tokens.shape[2:]), loss)

    def _train(self, latents: Float[Tensor, "1 n dim"]) -> tuple[Tensor, Tensor, Tensor]:
        if not self._agreed:
            take_first_process(self)
            self._agreed = True
        codes, tokens, loss = self.adapter.quantize(self.project_in(latents))
        self.recent.update(tokens)
        return self.project_out(codes), tokens, loss

    def _eval(self, latents: Float[Tensor, "1 n dim"]) -> tuple[Tensor, Tensor, Tensor]:
        tokens = self.adapter.tokens(self.project_in(latents))
        codes = self.project_out(self.adapter.lookup(tokens))
        return codes, tokens, codes.new_zeros(())

    @torch.no_grad()
    def encode(self, latents: Float[Tensor, "batch *grid dim"]) -> Int[Tensor, "batch *grid_codes"]:
        """Token ids of latents, as eval mode gives them whatever the mode; no state changes."""
        was_training = self.training
        self.eval()
        try:
            return self(latents).tokens
        finally:
            self.train(was_training)

    def decode(self, tokens: Int[Tensor, "batch *grid_codes"]) -> Float[Tensor, "batch *grid dim"]:
        """Return the codes of tokens. Raises InvalidValueError for ids outside [0, codebook_size) or a wrong shape."""
        count = self.codes_per_position
        if count > 1 and (tokens.ndim < 2 or tokens.shape[-1] != count):
            raise InvalidValueError(f"tokens: expected {count} per latent (the last axis), got {tuple(tokens.shape)}")
        if tokens.numel() and not (tokens.min() >= 0 and tokens.max() < self.codebook_size):
            raise InvalidValueError(
                f"tokens: expected ids in [0, {self.codebook_size}), got {int(tokens.min())} to {int(tokens.max())}"
            )
        places = tokens.shape if count == 1 else tokens.shape[:-1]
        flat = tokens.reshape(1, -1, *tokens.shape[len(places) :])
        with torch.autocast(tokens.device.type, enabled=False):
            return self.project_out(self.adapter.lookup(flat)).view(*places, self.dim)

    def get_extra_state(self) -> UInt8[Tensor, "bytes"]:
        """Return configuration and dim as JSON, in a tensor so that any tensor format can store it."""
        given = {name: value for name, value in asdict(self.config).items() if value is not None}
        return torch.tensor(list(json.dumps({"dim": self.dim, **given}).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Check the configuration of a saved state. Raises CheckpointError if ids would have another meaning."""
        saved, own = _read_config(state), _read_config(self.get_extra_state())
        for name in ("kind", *sorted({*saved, *own} - {"kind", *TRAINING_ONLY})):
            if saved.get(name) != own.get(name):
                raise CheckpointError(
                    f"quantizer: the saved state is of {name} {saved.get(name)}, not {own.get(name)};"
                    " build it with the configuration that it was saved with"
                )

    def _load_from_state_dict(self, state_dict: Any, prefix: str, metadata: Any, strict: bool, *lists: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, *lists)
        missing: list[str] = lists[0]
        if prefix + CONFIG_KEY in missing:
            missing.remove(prefix + CONFIG_KEY)


def _read_config(state: Tensor) -> dict[str, Any]:
    """Parse the JSON of `get_extra_state`."""
    try:
        found = json.loads(bytes(state.tolist()))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"quantizer: the configuration in the saved state is damaged: {error}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"quantizer: expected a table as configuration in the saved state, got {found!r}")
    return found


def build_quantizer(config: QuantizerConfig, dim: int) -> Quantizer:
    """Build the quantizer of `config` for latents of `dim` numbers."""
    return Quantizer(config, dim)


def restore_quantizer(state: Mapping[str, Tensor]) -> Quantizer:
    """Restore a quantizer from a `state_dict` that holds its configuration.

    Raises CheckpointError if the configuration is missing or does not match the tensors.
    """
    if CONFIG_KEY not in state:
        raise CheckpointError("quantizer: the saved state has no configuration; build it, and load the state into it")
    table = _read_config(state[CONFIG_KEY])
    try:
        dim = table.pop("dim")
        quantizer = build_quantizer(from_mapping(QuantizerConfig, table), dim)
        quantizer.load_state_dict(dict(state))
    except (ConfigError, KeyError, TypeError, RuntimeError) as error:
        if is_of_the_machine(error):
            raise
        reason = " ".join(str(error).split())
        raise CheckpointError(f"quantizer: the saved state does not fit its configuration: {reason}") from None
    return quantizer


def collapse_warning(module: nn.Module, threshold: float = COLLAPSED) -> str | None:
    """Return a line about the first quantizer in `module` whose codebook collapses in training, or None.

    See `RecentUsage.collapsed`.
    """
    for name, part in module.named_modules():
        if isinstance(part, Quantizer) and part.recent.collapsed(threshold):
            recent = part.recent
            return (
                f"the codebook of {name or 'the quantizer'} collapses: {recent.usage:.1%} of {part.codebook_size} codes"
                f" are used by the last {len(recent.counts)} batches, which could reach {recent.reachable:.0%}"
            )
    return None
