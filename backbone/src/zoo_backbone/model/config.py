"""Settings of the backbone: model, masking, training, evaluation; and presets by size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from tokenizers_zoo.errors import SettingError, UnknownNameError
from tokenizers_zoo.records.config import Checked
from tokenizers_zoo.records.typed import Interval, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from tokenizers_zoo.tokenizers.nn.config import MOST_BLOCKS, WIDEST
from tokenizers_zoo.train.config import Batches, Decay, Seed


def expect(config: Any, key: str, holds: bool, expected: str) -> None:
    """Raise SettingError for a field that is not as `expected`."""
    if not holds:
        raise SettingError(f"{key}: expected {expected}, got {getattr(config, key)}")


Biased = Literal["qkv", "out", "mlp", "norm"]
"""Parts of a block that may have biases: projections to queries, keys and values, projections after attention, the
layers of the MLP, and layer norms."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig(Checked):
    """The shape of the Transformer (4M, arXiv 2312.06647, section 2.2 and appendix)."""

    dim: Annotated[int, Interval(f"[1, {WIDEST}]")] = 512
    """Width of the residual stream; a multiple of 4 (sin-cos positions) and of `heads`."""
    encoder_depth: Annotated[int, Interval(f"[1, {MOST_BLOCKS}]")] = 8
    """Encoder blocks."""
    decoder_depth: Annotated[int, Interval(f"[1, {MOST_BLOCKS}]")] = 8
    """Decoder blocks."""
    heads: PositiveInt = 8
    """Attention heads."""
    mlp_ratio: Annotated[float, Interval("(0, 100]")] = 4.0
    """Ratio of the MLP's hidden width to `dim`; a gated MLP has two thirds of that width, for the same cost."""
    activation: Literal["silu", "gelu"] = "silu"
    """Non-linearity of the MLP; "gelu" is exact, without the tanh approximation."""
    gated_mlp: bool = True
    """Gate the hidden units by a third projection (SwiGLU with "silu")."""
    bias: bool | tuple[Biased, ...] = False
    """Biases in linear layers and layer norms: all, none, or a list."""
    qk_norm: bool = False
    """Layer norm over the head size on queries and keys."""
    rotary: bool = False
    """Rotate queries and keys of grids by their place in the image (arXiv 2104.09864), in addition to added positions.
    All presets do."""
    position_lengths: Mapping[str, PositiveInt] = field(default_factory=dict)
    """Sequences whose positions are computed for the length of their first training, and that length. Set when a
    trained model is loaded for sequences of another length."""

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        divides = not (self.dim % 4 or self.dim % self.heads)
        expect(self, "dim", divides, f"a multiple of 4 and of heads ({self.heads})")
        even = not (self.rotary and self.dim // self.heads % 2)
        expect(self, "rotary", even, f"an even head size, dim over heads, which is {self.dim // self.heads}")
        expect(self, "mlp_ratio", self.mlp_hidden > 0, "a number that gives an MLP hidden units")

    def biased(self, part: Biased) -> bool:
        """Return whether a part of a block has biases."""
        return self.bias if isinstance(self.bias, bool) else part in self.bias

    @property
    def mlp_hidden(self) -> int:
        """Return the hidden units of an MLP; two thirds if gated, rounded as in 4M's code."""
        hidden = int(self.mlp_ratio * self.dim)
        return int(2 * hidden / 3) if self.gated_mlp else hidden


PRESETS: dict[str, ModelConfig] = {
    "nano": ModelConfig(dim=128, encoder_depth=3, decoder_depth=1, heads=4, mlp_ratio=2.0, rotary=True),
    "tiny": ModelConfig(dim=384, encoder_depth=6, decoder_depth=6, heads=6, rotary=True),
    "small": ModelConfig(dim=512, encoder_depth=8, decoder_depth=8, heads=8, rotary=True),
    "base": ModelConfig(dim=768, encoder_depth=12, decoder_depth=12, heads=12, rotary=True),
    "large": ModelConfig(dim=1024, encoder_depth=24, decoder_depth=24, heads=16, rotary=True),
    "xlarge": ModelConfig(dim=2048, encoder_depth=24, decoder_depth=24, heads=32, rotary=True),
}


def preset(name: str) -> ModelConfig:
    """Return the preset of this name. Raises UnknownNameError."""
    if name not in PRESETS:
        raise UnknownNameError.of("preset", name, PRESETS)
    return PRESETS[name]


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixture(Checked):
    """A component of the mixture of Dirichlets (4M, section 2.3): how a subset of the samples divides the budgets."""

    weight: PositiveFloat = 1.0
    """How often this component is drawn, relative to the others."""
    input_alpha: PositiveFloat = 1.0
    """Dirichlet concentration of the inputs: a small value concentrates them on few modalities."""
    target_alpha: PositiveFloat = 1.0
    """Dirichlet concentration of the targets."""
    inputs: tuple[str, ...] = ()
    """Modalities that may be inputs; empty: all."""
    targets: tuple[str, ...] = ()
    """Modalities that may be targets; empty: all discrete ones."""
    fallback_targets: tuple[str, ...] = ()
    """Modalities that use the rest of the target budget where `targets` leave some. They do not change the inputs."""
    single_input_prob: Annotated[float, Interval("[0, 1]")] = 0.0
    """Probability that a sample has a single input modality, however few tokens it has."""

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        alone = bool(self.targets or not self.fallback_targets)
        expect(self, "fallback_targets", alone, "targets as well; by default all modalities are targets")
        apart = not set(self.fallback_targets) & set(self.targets)
        expect(self, "fallback_targets", apart, f"others than in targets, {', '.join(self.targets)}")


FEW_INPUTS = Mixture(weight=3.0, input_alpha=0.1, single_input_prob=0.1), Mixture(single_input_prob=0.1)
"""Return the default mixture. It favours few input modalities, as in most requests to a trained model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskingConfig(Checked):
    """How tokens are drawn as inputs and targets."""

    input_budget: PositiveInt = 128
    """Maximum number of input tokens per sample."""
    target_budget: PositiveInt = 128
    """Maximum number of target tokens per sample."""
    min_input: NonNegativeInt | None = None
    """Each sample draws its input budget uniformly from `min_input` to `input_budget`. Default: an eighth of
    `input_budget`, so that the model also learns from few tokens; 0: always the full budget."""
    mixtures: tuple[Mixture, ...] = FEW_INPUTS
    """Components of the mixture. By default one modality has more than half of the input in most samples, and one in
    ten samples has a single input modality."""
    span_length: Annotated[float, Interval("[1, inf)")] = 3.0
    """Mean length, in tokens, of a masked span of a sequence (T5, arXiv 1910.10683, section 3.1.4)."""

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        expect(self, "min_input", (self.min_input or 0) <= self.input_budget, "0 to input_budget")
        expect(self, "mixtures", bool(self.mixtures), "at least one")

    @property
    def least_input(self) -> int:
        """Return the smallest input budget of a sample."""
        if self.min_input is None:
            return max(1, self.input_budget // 8)
        return self.min_input or self.input_budget


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingStore(Checked):
    """An additional token store to train on."""

    tokens: Path
    """The store's folder."""
    weight: PositiveFloat = 1.0
    """How many samples are drawn from it, relative to the other stores; the run's own store has weight 1."""
    modalities: tuple[str, ...] = ()
    """Modalities to read from it; empty: all modalities of the run that it contains."""
    mixtures: tuple[Mixture, ...] = ()
    """Masking mixtures for its samples; empty: the same as for the run's own store."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preview:
    """A picture during training: inputs, prediction and truth of some held-out samples."""

    inputs: tuple[str, ...]
    """Input modalities."""
    target: str
    """The predicted modality."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig(Checked):
    """Settings of the backbone's training loop."""

    steps: PositiveInt = 4000
    """Optimizer steps."""
    batch_size: Batches = 16
    """Samples per optimizer step. Short runs learn more from many small batches than from few large ones."""
    grad_accum_steps: Batches = 1
    """Gradient accumulation: the number of parts of a batch, whose gradients are summed. On a GPU they run one after
    another, for batches that do not fit into memory. On a CPU they run in parallel threads, which is faster for small
    models."""
    optimizer: Literal["adamw", "muon"] = "muon"
    """muon: Muon for the weight matrices of the blocks, AdamW for all other parameters; needs fewer steps. adamw: AdamW
    for all parameters, as in 4M."""
    learning_rate: PositiveFloat | None = None
    """Peak learning rate. Default: 5e-3 * sqrt(128 / dim) with muon, 1e-3 with adamw."""
    min_learning_rate: NonNegativeFloat = 0.0
    """Learning rate at the end of the schedule."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """cosine: decay from the end of warm-up to the last step. wsd (warm-up, stable, decay): constant, then decay over
    the last `decay_fraction` of the steps."""
    decay_fraction: Annotated[float, Interval("[0, 1]")] = 0.2
    """wsd: fraction of all steps in which the learning rate decays, at most all steps after warm-up; 0: no decay."""
    warmup_steps: NonNegativeInt = 100
    """Steps of linear warm-up, at most half of `steps`."""
    weight_decay: NonNegativeFloat = 0.05
    """Decoupled weight decay of matrices."""
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """Betas of AdamW."""
    gradient_clip: NonNegativeFloat = 1.0
    """Largest norm of the gradient; 0 turns clipping off."""
    loss: Literal["modality", "token"] = "token"
    """token: mean over all target tokens. modality: mean over the modalities' means."""
    loss_weights: Mapping[str, PositiveFloat] = field(default_factory=dict)
    """Weights of modalities in the loss, by name; 1 for the others."""
    balance: Literal["none", "uncertainty"] = "none"
    """uncertainty: learn the weights of the modalities; a high loss gets a low weight."""
    eval_every: PositiveInt = 200
    """Steps between two evaluations of the held-out loss."""
    eval_samples: PositiveInt = 128
    """Largest number of held-out samples per token store."""
    save_every: PositiveInt = 200
    """Steps between two saved training states; a killed run resumes from the last."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Autocast precision of the forward and backward pass."""
    loggers: tuple[str, ...] = ("tensorboard",)
    """Where curves and pictures go besides metrics.jsonl: tensorboard, wandb, or installed loggers
    (docs/training.md#loggers). They may change when a run resumes."""
    loader_workers: NonNegativeInt = 0
    """Processes that read, mask and pack batches, for each process of the training; 0: a thread. They do not change the
    batches, and may change when a run resumes."""
    loader_seconds: NonNegativeFloat = 600.0
    """Seconds after which a loader process that has not made a batch ends the training."""
    seed: Seed = 0
    """Seed of weights, masks and sample order."""
    lanes: PositiveInt = 64
    """Places in the data that are read side by side: at least one for each process. A batch has samples of all."""
    window_blocks: PositiveInt = 4
    """Blocks of 256 samples of a lane that are shuffled together. More of them need more memory."""
    ema_decay: Decay = 0.0
    """Decay per step of the exponential moving average (EMA) of the weights, which is the run's model if it is not 0.
    The last weights are saved in the subfolder `last`."""
    activation_checkpointing: bool = False
    """Recompute activations within blocks in the backward pass: less memory, more time."""
    compile: bool = False
    """Compile the blocks with torch.compile. If that fails, training prints the reason and continues without it."""
    preview_every: NonNegativeInt = 0
    """Steps between two previews of generated held-out samples; 0: none."""
    preview_samples: PositiveInt = 4
    """Samples in a preview."""
    previews: tuple[Preview, ...] = ()
    """Inputs and targets of previews. Default: two informative pairs."""
    freeze: bool = False
    """Train only embedding rows and projections that the start backbone does not have."""
    pretrained_lr_scale: Annotated[float, Interval("(0, 1]")] = 1.0
    """Factor of the learning rate for weights of the start backbone. The default of `zoo backbone grow` is 0.3."""
    datasets: tuple[TrainingStore, ...] = ()
    """Further token stores; the samples of a batch are distributed over all stores by weight."""
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    """Budgets and mixtures."""

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        expect(self, "preview_every", self.preview_every > 0 or not self.previews, "the steps between previews")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig(Checked):
    """Settings of an evaluation."""

    inputs: tuple[tuple[str, ...], ...] | None = None
    """Sets of input modalities; absent: each modality alone. `--input` overrides it."""
    targets: tuple[str, ...] | None = None
    """Modalities predicted from each set; absent: all discrete ones. `--target` overrides it."""
    samples: PositiveInt = 32
    """Held-out samples per pair."""
    baseline_samples: PositiveInt = 256
    """Training values that the constant baseline is fitted to."""
    loss_samples: PositiveInt = 256
    """Held-out samples for the cross-entropy."""
    batch_size: PositiveInt = 32
    """Samples generated and decoded at a time."""
    draws: PositiveInt = 16
    """Draws per sample. The scored prediction is the best single value for all draws (minimum expected error); 1: the
    most likely tokens, without sampling."""
    temperature: PositiveFloat = 0.7
    """Sampling temperature of the scored draws. Below 1, fewer draws are enough."""
    steps: PositiveInt = 1
    """Decoding steps of scored grids and vectors. More steps make the tokens of a draw more consistent."""
    gallery_pairs: NonNegativeInt = 24
    """Number of pairs with a gallery: the first ones."""
    gallery_samples: PositiveInt = 4
    """Samples in a gallery."""
    gallery_draws: PositiveInt = 3
    """Draws per sample in a gallery."""
    seed: NonNegativeInt = 0
    """Seed of the choice of samples, of masks and of draws."""

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        for key in ("inputs", "targets"):
            expect(self, key, getattr(self, key) != (), "at least one; leave the key out for the default")
