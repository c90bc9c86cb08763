"""settings.md: every key of registry.toml, of a backbone's and of a transfer's configuration, and of plans."""

from __future__ import annotations

import torch
from markdown_tables import keys_table, settings_tables, table, told_tables

from tokenizers_zoo.config import plain, tables_of
from tokenizers_zoo.registry import InstanceConfig, ZooConfig
from tokenizers_zoo.spec import GridLayout, ModalitySpec, ValueSpec
from zoo_backbone.cli.generate import SAMPLING
from zoo_backbone.config import PRESETS, ModelConfig, TrainConfig
from zoo_backbone.evaluation.config import EvaluationConfig, Pairs
from zoo_backbone.generate.plans import GenerationPlan
from zoo_backbone.model import FourM
from zoo_backbone.transfer.config import TUNING, TransferConfig

ANY = ModalitySpec(name="any", summary="any", value=ValueSpec(), layout=GridLayout(shape=(1, 1)), vocab_size=2)
"""A model has to have a modality; the blocks do not depend on which."""
INTRODUCTION = """# Settings

Generated from the code by `make docs`: every key that a file of settings may have. Those of modalities are on
[their pages](modalities/README.md), those of sources in `zoo source info NAME`. `--set key=value` takes the keys of the
table that the command's help names. A key that is not known is an error that names file, line and key. `-` stands for
an absent one.

| file | read by | tables |
| --- | --- | --- |
| [registry.toml](#registrytoml) | every command | `[zoo]`, `[vocabularies.NAME]`, `[modalities.NAME]` |
| [`--config` of a backbone](#a-backbone) | `zoo backbone train`, `grow` and `eval` | `[model]`, `[train]`, `[eval]` |
| [`--config` of a transfer](#a-transfer) | `zoo transfer train` | `[transfer]` |
| [a plan](#a-plan) | `zoo backbone generate --plan` | `[[targets]]`, `[guidance]`, `[inpaint]`, and keys above them |

## registry.toml"""
VOCABULARIES = "\n### `[vocabularies.NAME]`\n\nSee [shared vocabularies](modalities/README.md#shared-vocabularies)."
BACKBONE = """
## A backbone

[Training](training.md) says what the keys do, with figures. The size of a model is what `[model]` says; what it leaves
out is as in `zoo backbone train --preset NAME`, one of the sizes below; without `--preset` as in `nano`, or with
`--from` as in that run. The defaults in the table of `[model]` are those of `ModelConfig` in Python, not of the
command. All presets have `rotary = true`; their parameters are those of the blocks, without embeddings.
"""
TRANSFER = "\n## A transfer\n\n[Transfer](transfer.md) says what the keys do."
TUNINGS = "\nDefaults that go with `tuning`, in place of those above:\n"
PLAN = "\n## A plan\n\n[Generation](generation.md) says what the keys do. Without a plan, {} go with every target.\n"


def settings_page() -> str:
    """The page."""
    lines = [
        INTRODUCTION,
        *told_tables(ZooConfig, "zoo"),
        VOCABULARIES,
        *told_tables(InstanceConfig, "modalities.NAME"),
    ]
    lines += [BACKBONE, *presets(), *told_tables(ModelConfig, "model"), *told_tables(TrainConfig, "train")]
    lines += [*told_tables(EvaluationConfig, "eval"), *keys_table(next(tables_of(Pairs, "eval")))[2:]]
    lines += [TRANSFER, *told_tables(TransferConfig, "transfer"), TUNINGS, *tunings()]
    lines += [PLAN.format(" and ".join(f"`{key} = {plain(value)}`" for key, value in SAMPLING.items()))]
    lines += settings_tables(GenerationPlan, "")
    return "\n".join(lines) + "\n"


def presets() -> list[str]:
    """A row for each size."""
    rows = []
    for name, config in PRESETS.items():
        depths = f"{config.encoder_depth} + {config.decoder_depth}"
        ratio = f"{config.mlp_ratio:g}"
        rows.append((f"`{name}`", str(config.dim), depths, str(config.heads), ratio, f"{millions(config)} M"))
    return table(("preset", "dim", "encoder + decoder blocks", "heads", "mlp_ratio", "parameters"), rows)


def millions(config: ModelConfig) -> str:
    """Parameters of the blocks; no memory is taken for them."""
    with torch.device("meta"):
        count = FourM(config, [ANY]).transformer_parameters() / 1e6
    return f"{count:,.{0 if count > 100 else 1}f}"


def tunings() -> list[str]:
    """A row for each tuning with the keys that it sets."""
    rows = [
        (f"`{name}`", ", ".join(f"`{key} = {plain(value)}`" for key, value in keys.items()))
        for name, keys in TUNING.items()
    ]
    return table(("tuning", "defaults"), rows)
