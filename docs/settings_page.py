"""settings.md: every key of registry.toml, of a backbone's and of a transfer's configuration, and of plans."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from tokenizers_zoo.contract.layouts import GridLayout
from tokenizers_zoo.contract.registry import InstanceConfig, ZooConfig
from tokenizers_zoo.contract.spec import ModalitySpec, ValueSpec
from tokenizers_zoo.records.config import ITS_TABLE, REQUIRED, UNSET, Table, tables_of, toml_text
from tokenizers_zoo.records.limits import Limits
from zoo_backbone.generate.plans import GenerationPlan
from zoo_backbone.generate.schemes import SCHEMES
from zoo_backbone.model.config import PRESETS, EvaluationConfig, ModelConfig, TrainConfig
from zoo_backbone.model.fourm import FourM
from zoo_backbone.use.transfer.config import TUNING, TransferConfig


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """Return the lines of a table."""
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *escaped)]


def settings_tables(cls: type, name: str) -> list[str]:
    """Return the keys of a settings dataclass as the table `name`, then each inner table under a heading."""
    first, *inner = tables_of(cls, name)
    lines = keys_table(first)
    for below in inner:
        lines += [f"\n### `{below.header}`\n", *absence(below), *keys_table(below)]
    return lines


def documented_tables(cls: type, name: str) -> list[str]:
    """Return all tables with headings and the docstrings of their classes."""
    lines = []
    for table in tables_of(cls, name):
        lines += [f"\n### `{table.header}`\n", f"{table.about}\n", *absence(table), *keys_table(table)]
    return lines


def absence(table: Table) -> list[str]:
    """Return a note for a table that is absent by default."""
    return ["Absent by default.\n"] if table.absent else []


def keys_table(keys: Table) -> list[str]:
    """Return the keys of a table with type, default and meaning."""
    rows = [
        (
            f"`{key.name}`",
            key.type,
            default_text(key.default),
            key.meaning or ("See below." if key.inner else ""),
        )
        for key in keys.keys
    ]
    return table(("key", "type", "default", "meaning"), rows)


def default_text(default: str) -> str:
    """Return a default, values as code."""
    return default if default in (UNSET, REQUIRED, ITS_TABLE) else f"`{default}`"


def preset_sections(cls: type) -> list[str]:
    """Return the presets of a settings class with their keys."""
    lines = []
    for name, keys in getattr(cls, "presets", {}).items():
        lines.append(f'\n### `preset = "{name}"`\n\nSets these keys; explicit keys take precedence.\n\n```toml')
        lines += [*toml_lines(keys), "```"]
    return lines


def toml_lines(keys: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return keys and values; inner tables get dotted keys."""
    lines = []
    for key, value in keys.items():
        name = f"{prefix}{key}"
        lines += toml_lines(value, f"{name}.") if isinstance(value, Mapping) else [f"{name} = {toml_text(value)}"]
    return lines


ANY = ModalitySpec(name="any", summary="any", value=ValueSpec(), layout=GridLayout(shape=(1, 1)), vocab_size=2)
"""Any modality, because a model needs one."""
INTRODUCTION = """# Settings

Generated from the code by `make docs`: all keys of settings files. Modalities have their own
[pages](modalities/README.md), and `zoo source info NAME` shows a source's settings. `--set key=value` takes the keys of
the table that the command's help names. An unknown key is an error that names file, line and key. `-` means that the
key is absent.

| file | read by | tables |
| --- | --- | --- |
| [registry.toml](#registrytoml) | every command | `[zoo]`, `[vocabularies.NAME]`, `[modalities.NAME]`, `[limits]` |
| [`--config` of a backbone](#a-backbone) | `zoo backbone train`, `grow` and `eval` | `[model]`, `[train]`, `[eval]` |
| [`--config` of a transfer](#a-transfer) | `zoo transfer train` | `[transfer]` |
| [a plan](#a-plan) | `zoo backbone generate --plan` | `[[targets]]`, `[guidance]`, `[inpaint]`, and keys above them |

## registry.toml"""
VOCABULARIES = "\n### `[vocabularies.NAME]`\n\nSee [shared vocabularies](modalities/README.md#shared-vocabularies)."
BACKBONE = """
## A backbone

[Training](training.md) explains the keys with figures. Keys missing from `[model]` come from `zoo backbone train
--preset NAME`, a size of the table below (default: `nano`), or with `--from` from that run. The defaults of
`[model]` belong to `ModelConfig` in Python, not to the command. All presets have `rotary = true`; their parameters are
counted without embeddings.
"""
TRANSFER = "\n## A transfer\n\n[Transfer](transfer.md) explains the keys."
TUNINGS = "\nDefaults that depend on `tuning`:\n"
SCHEMES_OF_GRIDS = "\n### Schemes of grids and vectors\n\nThe first is the default.\n"
PLAN = "\n## A plan\n\n[Generation](generation.md) explains the keys.\n"


def settings_page() -> str:
    """The page."""
    lines = [
        INTRODUCTION,
        *documented_tables(ZooConfig, "zoo"),
        VOCABULARIES,
        *documented_tables(InstanceConfig, "modalities.NAME"),
        *documented_tables(Limits, "limits"),
    ]
    lines += [BACKBONE, *presets(), *documented_tables(ModelConfig, "model"), *documented_tables(TrainConfig, "train")]
    lines += documented_tables(EvaluationConfig, "eval")
    lines += [TRANSFER, *documented_tables(TransferConfig, "transfer"), TUNINGS, *tunings()]
    lines += [PLAN, *settings_tables(GenerationPlan, ""), SCHEMES_OF_GRIDS, *schemes()]
    return "\n".join(lines) + "\n"


def presets() -> list[str]:
    """Return a row per size."""
    rows = []
    for name, config in PRESETS.items():
        depths = f"{config.encoder_depth} + {config.decoder_depth}"
        ratio = f"{config.mlp_ratio:g}"
        rows.append((f"`{name}`", str(config.dim), depths, str(config.heads), ratio, f"{millions(config)} M"))
    return table(("preset", "dim", "encoder + decoder blocks", "heads", "mlp_ratio", "parameters"), rows)


def millions(config: ModelConfig) -> str:
    """Return the number of the blocks' parameters, without allocating them."""
    with torch.device("meta"):
        count = FourM(config, [ANY]).transformer_parameters() / 1e6
    return f"{count:,.{0 if count > 100 else 1}f}"


def tunings() -> list[str]:
    """Return a row per tuning with its keys."""
    rows = [
        (f"`{name}`", ", ".join(f"`{key} = {toml_text(value)}`" for key, value in keys.items()))
        for name, keys in TUNING.items()
    ]
    return table(("tuning", "defaults"), rows)


def schemes() -> list[str]:
    """Return a row per decoding scheme, with the first line of its docstring."""
    rows = [
        (f"`{name}`", (inspect.getdoc(scheme) or "").partition("\n")[0], str(scheme.default_steps or "one per token"))
        for name, scheme in SCHEMES.items()
    ]
    return table(("scheme", "order of the tokens", "default steps"), rows)
