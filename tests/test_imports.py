"""The arrows between packages, the order within them, no modality's name in the core, and no torch in a listing."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

ROOT = Path(__file__).parent.parent

# From the ground up: a line may import from the lines above it, and from itself. docs/architecture.md draws it.
ORDER = {
    "tokenizers_zoo": (
        "wording", "errors", "config", "keys", "disk", "records", "checkpoint", "intervals", "device", "pretrained",
        "modality", "source", "values", "data.samples", "data.tar", "data.provenance",
        "data.store_record", "hookspecs",
        "wordpieces", "ml4m.words", "vocabulary", "quantizers",
        "blocks", "progress", "step_log", "training", "training.config", "training.state", "training.task",
        "training.batches", "training.report", "training.loop", "ml4m", "families", "labellers", "data", "defaults",
        "discovery", "codec", "handle", "source_handle", "sharing", "registry", "pipeline", "report", "report.pictures",
        "report.samples", "report.retrieval", "report.transfer", "report.run", "report.zoo", "testing", "doctor", "cli",
    ),
    "backbone": (
        "config", "tables", "batch", "budgets", "spans", "placing", "masking", "positions", "numbers", "transformer",
        "model", "saving", "run", "training", "training.data", "training.mixing", "training.held_out", "training.muon",
        "training.optim", "training.average", "training.balance", "training.compiling", "training.distributed",
        "training.state", "training.identity", "training.starting", "training.log", "training.parts", "training.train",
        "packing", "codecs", "features", "generation", "evaluation", "evaluation.config", "evaluation.gallery",
        "evaluation.data", "evaluation.loss", "evaluation.pairs", "evaluation.table", "evaluation.evaluate",
        "evaluation.preview", "growing", "cli", "cli.config", "cli.run", "retrieval", "transfer.config",
        "transfer.metrics", "transfer.judging", "transfer.kinds", "transfer.tasks", "transfer.samples",
        "transfer.reading", "transfer.decoder", "transfer.heads", "transfer.lora", "transfer.probe",
        "transfer.keeping", "transfer.saving", "transfer.scores", "transfer.training", "transfer.compare",
        "transfer.predicting", "transfer.cli", "transfer", "ml4m", "cli.generate", "cli.grow", "cli.main",
    ),
}  # fmt: skip
FACADE = {"hookimpl": "hookspecs", "Zoo": "registry", "ModalityHandle": "registry", "__version__": ""}
ALLOWED = {"tokenizers_zoo": {"tokenizers_zoo"}, "backbone": {"backbone", "tokenizers_zoo"}}
DISTRIBUTIONS = {
    "PIL": "pillow",
    "ai_edge_litert": "ai-edge-litert",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
}
"""What is installed under another name than it is imported by."""
# Words that mean something else in a model or a file, too: only a literal of exactly that word names a modality.
GENERIC = {"caption", "clip", "depth", "metadata", "normal"}
EXCEPTIONS = {
    **{  # counts layers
        f"tokenizers_zoo/{file}": "depth"
        for file in (
            "blocks/config.py", "families/features.py", "families/vectors/settings.py",
            "families/spatial/diffusion_settings.py", "ml4m/architecture.py",
        )
    },
    "tokenizers_zoo/families/spatial/perceptual.py": "efficientnet-lite0",  # a network, not what it sees
}  # fmt: skip


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def plugin_packages() -> dict[str, Path]:
    return {path.name: path for path in sorted(ROOT.glob("plugins/*/src/*")) if path.is_dir()}


def modality_names() -> set[str]:
    names = set()
    for path in ROOT.glob("plugins/*/pyproject.toml"):
        names |= set(tomllib.loads(path.read_text())["project"].get("entry-points", {}).get("tokenizers_zoo", {}))
    return names


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Line and full name of every module or name imported, also inside functions, except for type checkers."""
    for node in ast.iter_child_nodes(tree):
        if is_type_checking(node):
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".") if is_package else module.split(".")[:-1]
            prefix = ".".join(base[: len(base) - node.level + 1]) + "." if node.level else ""
            source = (prefix + (node.module or "")).rstrip(".")
            yield from ((node.lineno, f"{source}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("import_module", "importlib.import_module"):
            yield from (
                (node.lineno, a.value) for a in node.args if isinstance(a, ast.Constant) and type(a.value) is str
            )
        yield from imports(node, module, is_package)


def imports_of(path: Path, root: Path) -> list[tuple[int, str]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return list(imports(tree, module_name(path, root), path.name == "__init__.py"))


def test_the_reader_of_imports_sees_all_kinds() -> None:
    source = """
from typing import TYPE_CHECKING
import a.b
from . import c
from ..d import e
if TYPE_CHECKING:
    import hidden
else:
    import g
def f():
    from h import i
    importlib.import_module("j.k")
"""
    found = [name for _, name in imports(ast.parse(source), "pack.sub.module", False)]
    assert found == ["typing.TYPE_CHECKING", "a.b", "pack.sub.c", "pack.d.e", "h.i", "j.k"]


@pytest.mark.parametrize("package", ["tokenizers_zoo", "backbone", *plugin_packages()])
def test_packages_import_along_the_arrows(package: str) -> None:
    root = plugin_packages()[package].parent if package in plugin_packages() else ROOT
    ours = {"tokenizers_zoo", "backbone", "bench", "plugins", "tests"}
    allowed = ALLOWED.get(package, {package, "tokenizers_zoo"})
    wrong = []
    for path in files(str(root / package)):
        for line, name in imports_of(path, root):
            top = name.split(".")[0]
            if (top in ours or top.startswith("zoo_")) and top not in allowed:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def declared(project: dict[str, Any]) -> list[tuple[str, str]]:
    """Name and least release of each distribution that a project asks for, by its extras, too."""
    asked = [*project.get("dependencies", ()), *chain(*project.get("optional-dependencies", {}).values())]
    return [re.fullmatch(r"([\w.-]+)>=([\d.]+)", one).groups() for one in asked]


@pytest.mark.parametrize("package", plugin_packages())
def test_plugins_declare_what_they_import(package: str) -> None:
    """Torch apart, where a function that is given tensors imports it: the core brings it."""
    root = plugin_packages()[package].parent
    project = tomllib.loads((root.parent / "pyproject.toml").read_text())["project"]
    known = {name for name, _ in declared(project)}
    wrong = []
    for path in files(str(root / package)):
        lines = path.read_text(encoding="utf-8").splitlines()
        for line, name in imports_of(path, root):
            top = name.split(".")[0]
            if top in sys.stdlib_module_names or top.startswith(("tokenizers_zoo", "zoo_")):
                continue
            in_function = lines[line - 1].startswith(" ")
            if DISTRIBUTIONS.get(top, top) not in known and not (top == "torch" and in_function):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_packages_ask_for_the_same_releases() -> None:
    releases: dict[str, set[Version]] = {}
    for path in (ROOT / "pyproject.toml", *ROOT.glob("plugins/*/pyproject.toml")):
        for name, release in declared(tomllib.loads(path.read_text())["project"]):
            releases.setdefault(name, set()).add(Version(release))
    assert {name: found for name, found in releases.items() if len(found) > 1} == {}


def place(name: str, order: tuple[str, ...]) -> str | None:
    """The line of the order that a module is on: the longest that it starts with."""
    fits = [line for line in order if name == line or name.startswith(line + ".")]
    return max(fits, key=len, default=None)


@pytest.mark.parametrize("package", ORDER)
def test_modules_import_from_below_only(package: str) -> None:
    order = ORDER[package]
    rank = {line: number for number, line in enumerate(order)}
    wrong = []
    for path in files(package):
        module = module_name(path, ROOT).removeprefix(package).removeprefix(".")
        if not module:
            continue  # the package's own __init__ is the facade
        mine = place(module, order)
        if mine is None:
            wrong.append(f"{path.relative_to(ROOT)} has no line in ORDER: say where it stands, here and in the docs")
            continue
        for line, name in imports_of(path, ROOT):
            if name.split(".")[0] != package:
                continue
            target = name.removeprefix(package).removeprefix(".")
            target = FACADE.get(target, target) if package == "tokenizers_zoo" else target
            theirs = place(target, order)
            if target and theirs is None:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}, which has no line in ORDER")
            elif theirs is not None and rank[theirs] > rank[mine]:
                wrong.append(f"{path.relative_to(ROOT)}:{line} ({mine}) imports {name}, which stands above it")
    assert not wrong, "\n".join(wrong)


def picture(page: str) -> dict[str, list[str]]:
    """The lines of the picture in docs/architecture.md, by package: the modules that each begins with, in order."""
    lines: dict[str, list[str]] = {}
    for line in page.partition("\n## The house, from the ground up\n")[2].partition("\n## ")[0].splitlines():
        if head := re.fullmatch(r" {4}(\w+)/", line):
            lines[head[1]] = []
        elif names := re.match(r" {6}([\w/]+(?:\.py|/)(?: {2}[\w/]+\.py)*)(?= |$)", line):
            found = [name.removesuffix(".py").strip("/").replace("/", ".") for name in names[1].split()]
            lines[list(lines)[-1]] += found
    return lines


def test_the_reader_of_the_picture_sees_names_and_no_words_about_them() -> None:
    page = """
## The house, from the ground up

Words of settings.md.

    core/
      a.py                    b.py is none
      c.py  low/d.py   two on a line
      low/                    e.py is none, and
                              f.py is none either
    house/
      cli/

## Another

      g.py                    of another picture
"""
    assert picture(page) == {"core": ["a", "c", "low.d", "low"], "house": ["cli"]}


@pytest.mark.parametrize("package", ORDER)
def test_the_picture_is_in_the_order_of_the_imports(package: str) -> None:
    """At the picture's own granularity: a line of it stands for lines of ORDER that follow each other."""
    drawn = picture((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))[package]
    folders = [ROOT / package / name.replace(".", "/") for name in drawn]
    assert not [path for path in folders if not path.is_dir() and not path.with_suffix(".py").is_file()]
    # A folder without modules, such as templates, has no place in ORDER.
    drawn = [name for name, path in zip(drawn, folders, strict=True) if not path.is_dir() or files(str(path))]
    wanted = [place(line, tuple(drawn)) or f"{line}, which has no line" for line in ORDER[package]]
    assert drawn == [name for name, before in zip(wanted, [None, *wanted], strict=False) if name != before]


def docstrings(tree: ast.AST) -> set[ast.AST]:
    """String expressions that are statements: docstrings of modules, classes, functions and fields."""
    return {
        node.value for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


def written_names(tree: ast.AST, names: set[str]) -> Iterator[tuple[int, str]]:
    """Line and text of every string literal that has one of `names` as a word, and of every identifier that is one."""
    skipped = docstrings(tree)
    word = any_of(names - GENERIC)
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Constant):
            text = node.value
            if isinstance(text, str) and node not in skipped and (text in names or word.search(text)):
                yield line, text
        else:
            fields = (getattr(node, field, None) for field in ("id", "attr", "arg", "name"))
            yield from ((line, field) for field in fields if isinstance(field, str) and field in names - GENERIC)


def any_of(names: set[str]) -> re.Pattern[str]:
    return re.compile(rf"(?<![A-Za-z])(?:{'|'.join(sorted(names))})(?![A-Za-z])")


def test_the_reader_of_names_sees_literals_and_identifiers() -> None:
    source = """
def f(canny):
    'A canny.'
    if name == "canny":
        return x.semseg + f"{y}: rgb_patches", "depth", "depth of it", depth, "uncanny"
"""
    found = [text for _, text in written_names(ast.parse(source), {"canny", "semseg", "rgb_patches", "depth"})]
    assert sorted(found) == [": rgb_patches", "canny", "canny", "depth", "semseg"]


@pytest.mark.parametrize("package", ["tokenizers_zoo", "backbone"])
def test_no_modality_is_known_by_name(package: str) -> None:
    names = {name for name in modality_names() if len(name) > 3}
    assert names
    wrong = []
    for path in files(package):
        where = str(path.relative_to(ROOT))
        for line, text in written_names(ast.parse(path.read_text(encoding="utf-8")), names):
            if EXCEPTIONS.get(where) != text:
                wrong.append(f"{where}:{line} names a modality: {text[:60]!r}")
    for path in (path for path in (ROOT / package).rglob("*") if path.suffix not in (".py", ".pyc") and path.is_file()):
        found = any_of(names - GENERIC).findall(path.read_text(encoding="utf-8"))
        wrong += [f"{path.relative_to(ROOT)} names a modality: {name}" for name in found]
    assert not wrong, "\n".join(wrong)


LISTING = """
import sys
import tokenizers_zoo
from tokenizers_zoo import Zoo
assert "numpy" not in sys.modules or "torch" not in sys.modules
zoo = Zoo.installed()
names = zoo.names()
loaded = [m for m in sys.modules if m.startswith("zoo_")]
assert not loaded, f"listing names imports {loaded}"
print(len(names), len([handle.spec for handle in zoo.handles()]))
zoo.problems()
import tokenizers_zoo.testing
heavy = sorted({m.split(".")[0] for m in sys.modules} & HEAVY)
assert not heavy, f"listing imports {heavy}"
"""
HEAVY = {"torch", "PIL", "scipy", "skimage", "sklearn", "mujoco", "diffusers", "pyarrow", "vector_quantize_pytorch"}


def test_listing_modalities_imports_no_torch() -> None:
    """`import tokenizers_zoo`, every plugin's module, and all specs: in a fresh interpreter."""
    script = f"HEAVY = {HEAVY!r}\n{LISTING}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    names, specs = map(int, done.stdout.split())
    assert names >= len(modality_names()) and specs > 0


def test_comparing_probes_imports_no_torch() -> None:
    """Their figures are in files."""
    script = "import sys, backbone.transfer.compare; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 0
