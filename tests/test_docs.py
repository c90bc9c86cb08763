"""The documentation is current: generated pages are fresh, links work, every setting is explained."""

from __future__ import annotations

import dataclasses
import math
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
from examples import OURS, PLUGINS

from tokenizers_zoo import Zoo
from tokenizers_zoo.cli.main import zoo as zoo_command
from tokenizers_zoo.contract.registry import InstanceConfig, ZooConfig
from tokenizers_zoo.families.spatial import SpatialSettings, TokenizerConfig
from tokenizers_zoo.records.config import field_docstrings, from_mapping, load_toml
from tokenizers_zoo.tokenizers.nn.config import BlockConfig
from tokenizers_zoo.tokenizers.quantizers.config import QuantizerConfig
from tokenizers_zoo.tokenizers.text_vocab import VocabularyConfig
from tokenizers_zoo.train.config import TrainConfig
from zoo_backbone.cli import TABLES
from zoo_backbone.generate import Guidance, TargetPlan
from zoo_backbone.generate.plans import GenerationPlan
from zoo_backbone.learn.optim import peak_rate
from zoo_backbone.model.config import (
    PRESETS,
    EvaluationConfig,
    MaskingConfig,
    Mixture,
    ModelConfig,
    Preview,
    TrainingStore,
)
from zoo_backbone.model.config import TrainConfig as BackboneTrainConfig
from zoo_backbone.use.retrieval import EmbeddingConfig
from zoo_backbone.use.transfer.config import TransferConfig

ROOT = Path(__file__).parent.parent
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "bench" / "README.md",
    ROOT / "studies" / "README.md",
    *sorted(ROOT.glob("plugins/*/README.md")),
]
CONFIGS = [
    BackboneTrainConfig, BlockConfig, TrainingStore, EmbeddingConfig, EvaluationConfig, Guidance, InstanceConfig,
    MaskingConfig, Mixture, ModelConfig, Preview, QuantizerConfig, GenerationPlan, SpatialSettings,
    TargetPlan, TokenizerConfig, TrainConfig, TransferConfig, VocabularyConfig, ZooConfig,
]  # fmt: skip


def test_generated_pages_are_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    runpy.run_path(str(ROOT / "docs" / "generate.py"), run_name="__main__")


def test_every_modality_of_this_repository_has_a_page(zoo: Zoo) -> None:
    """With metrics and all settings."""
    assert {path.stem for path in (ROOT / "docs" / "modalities").glob("*.md")} == {*OURS, "README"}
    for name in OURS:
        text = (ROOT / "docs" / "modalities" / f"{name}.md").read_text(encoding="utf-8")
        metrics, settings = (metric.name for metric in zoo[name].spec.metrics), zoo[name].known_settings()
        for part in (*metrics, *(f"`{key}`" for key in settings)):
            assert f"| {part} |" in text, (name, part)


def test_the_page_of_settings_has_every_table() -> None:
    text = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    for name in (*TABLES, "transfer", "zoo", "modalities.NAME", "train.masking", "guidance", "targets.guidance"):
        assert f"\n### `[{name}]`\n" in text, name
    for name in ("train.masking.mixtures", "train.datasets", "train.previews", "targets"):
        assert f"\n### `[[{name}]]`\n" in text, name
    sizes = {row[0]: row[-1] for row in re.findall(r"\| `(\w+)` \| (\d+) \| .* \| (\S+ M) \|", text)}
    assert sizes.keys() == PRESETS.keys()
    assert [sizes[name] for name in ("nano", "base", "xlarge")] == ["0.6 M", "198 M", "2,819 M"]


@pytest.mark.parametrize("folder", PLUGINS, ids=lambda folder: folder.name)
def test_every_plugin_readme_names_all_its_modalities_and_sources(folder: Path) -> None:
    project = PLUGINS[folder]
    text = (folder / project["readme"]).read_text(encoding="utf-8")
    assert text.startswith(f"# {project['name']}\n") and project["license"] in text
    assert f"pip install -e . -e plugins/{folder.name}\n" in text
    names = [name for group in project["entry-points"].values() for name in group]
    for name in [*names, *project.get("optional-dependencies", {})]:
        assert f"| `{name}` |" in text, name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_are_valid(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith("http"):
            file, _, anchor = target.partition("#")
            target_file = page.parent / file if file else page
            assert target_file.exists(), target
            assert not anchor or anchor in anchors(target_file), target


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page: its headings, as GitHub writes them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_on_pages_exist(page: Path) -> None:
    """Each command, with all its options."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in re.findall(r"(?:^ {4,}(?:\$ )?|^\$ |^|&& |[^`]`)(zoo [a-z-][^\n`]*)", text, re.MULTILINE):
        check_command(line.partition(" && ")[0].partition("  #")[0])


def check_command(line: str) -> None:
    """Raise AssertionError where a command line names a command or an option that does not exist."""
    words = re.sub(r"'[^']*'|\"[^\"]*\"", "TEXT", line).split()
    command, options = zoo_command, {option for part in zoo_command.params for option in part.opts}
    for word in words[1:]:
        if word.startswith("--"):
            options = options | {option for part in command.params for option in part.opts}
            assert word.partition("=")[0] in {*options, "--help", "--version"}, line
        elif isinstance(command, click.Group) and re.fullmatch(r"[a-z][a-z0-9-]*", word):
            inner = command.get_command(click.Context(command), word)
            assert inner is not None, line
            command = inner


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.__module__}.{config.__name__}")
def test_every_setting_is_explained(config: type) -> None:
    missing = {field.name for field in dataclasses.fields(config)} - field_docstrings(config).keys()
    assert missing <= {"tokenizer", "name"}, missing


def test_every_option_of_training_has_an_example_that_is_valid() -> None:
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    documented: set[str] = set()
    for block in re.findall(r"```toml\n(.*?)```", text, re.DOTALL):
        table = tomllib.loads(block)["train"]
        from_mapping(BackboneTrainConfig, table)
        documented |= table.keys()
    assert documented == {field.name for field in dataclasses.fields(BackboneTrainConfig)}


def test_the_examples_of_sizes_are_true() -> None:
    text = (ROOT / "docs" / "sizes.md").read_text(encoding="utf-8")
    checked = 0
    for block in re.findall(r"```toml\n(.*?)```", text, re.DOTALL):
        tables = tomllib.loads(block)
        if "train" in tables:
            from_mapping(BackboneTrainConfig, tables["train"])
            continue
        zoo = Zoo.from_tables(tables)
        assert zoo.problems() == {}
        for name, *sizes in re.findall(r"# (\w+): ([\d,]+) tokens of ([\d,]+) ids, ([\d,]+) bits", block):
            spec = zoo[name].spec
            tokens, ids, bits = (int(size.replace(",", "")) for size in sizes)
            assert (spec.layout.length, spec.vocab_size) == (tokens, ids), name
            assert bits == round(tokens * math.log2(ids)), name
            checked += 1
    assert checked == 9


def test_the_plain_settings_are_the_defaults() -> None:
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8").partition("## The plain settings")[2]
    match = re.search(r"```toml\n(.*?)```", text, re.DOTALL)
    assert match is not None
    explicit, default = from_mapping(BackboneTrainConfig, tomllib.loads(match[1])["train"]), BackboneTrainConfig()
    assert explicit.learning_rate == peak_rate(default, PRESETS["nano"].dim)
    assert explicit.masking.min_input == default.masking.least_input
    masking = dataclasses.replace(explicit.masking, min_input=None)
    assert dataclasses.replace(explicit, learning_rate=None, masking=masking) == default


@pytest.mark.parametrize(
    "path", [ROOT / "registry.toml", *sorted((ROOT / "configs").glob("*.toml"))], ids=lambda path: path.stem
)
def test_the_settings_files_are_read_whole(path: Path) -> None:
    from zoo_backbone.cli.main import read_tables

    if "zoo" in load_toml(path):
        zoo = Zoo.from_toml(path)
        assert zoo.problems() == {} and zoo.names() == sorted(load_toml(path)["zoo"]["modalities"])
        if "train" not in load_toml(path):
            return
    tables = read_tables(path)
    names = set(Zoo.installed().names())
    config = from_mapping(BackboneTrainConfig, tables["train"])
    inputs, targets = tables["eval"].pop("inputs"), tables["eval"].pop("targets", [])
    assert from_mapping(EvaluationConfig, tables["eval"])
    evaluated = [*targets, *(name for group in inputs for name in group)]
    mixed = [name for mixture in config.masking.mixtures for name in (*mixture.inputs, *mixture.targets)]
    assert evaluated and names.issuperset([*evaluated, *mixed])


@pytest.mark.parametrize("page", ["README.md", "docs/commands.md", "docs/export.md"])
def test_code_fits_the_column_of_the_site(page: str) -> None:
    """docs/site.css makes room for 100 columns."""
    fenced, columns = False, dict[str, int]()
    for line in (ROOT / page).read_text(encoding="utf-8").splitlines():
        fenced ^= line.startswith("```")
        if fenced or line.startswith("    "):
            columns[line] = len(line if fenced else line[4:])
    assert columns and not [line for line, width in columns.items() if width > 100]


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = {page: page.read_text(encoding="utf-8") for page in (tmp_path / "site").rglob("*.html")}
    assert not [page for page, text in pages.items() if "```" in text], "a block of code is no code on the site"
    assert "AnyToAny" in (tmp_path / "site" / "api" / "index.html").read_text(encoding="utf-8")
    assert (tmp_path / "site" / "index.html").is_file() and (tmp_path / "site" / "from-ml4m").is_dir()
