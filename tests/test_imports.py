"""Imports between and within packages, no modality's name in the core, and no torch in a listing."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from examples import OURS, PLUGINS
from packaging.version import Version

ROOT = Path(__file__).parent.parent

CORE = {"tokenizers_zoo": ROOT / "tokenizers_zoo", "zoo_backbone": ROOT / "backbone" / "src" / "zoo_backbone"}
ALLOWED = {"tokenizers_zoo": {"tokenizers_zoo"}, "zoo_backbone": {"zoo_backbone", "tokenizers_zoo"}}
DISTRIBUTIONS = {
    "PIL": "pillow",
    "ai_edge_litert": "ai-edge-litert",
    "huggingface_hub": "huggingface-hub",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
}
"""Distributions whose name differs from their import name."""
# Words that have other meanings in models and files; only a literal of exactly this word counts as a modality's name.
GENERIC = {"caption", "clip", "depth", "metadata", "normal"}
EXCEPTIONS = {
    **{  # counts layers
        f"tokenizers_zoo/{file}": "depth"
        for file in (
            "tokenizers/nn/config.py", "families/features.py", "families/vectors.py", "families/objects.py",
            "tokenizers/autoencoder/config.py", "tokenizers/ml4m/architecture.py",
        )
    },
    "tokenizers_zoo/tokenizers/autoencoder/losses.py": "efficientnet-lite0",  # the name of a network, not of a modality
}  # fmt: skip


def packages() -> dict[str, Path]:
    return CORE | plugin_packages()


def files(package: str) -> list[Path]:
    return sorted(packages()[package].rglob("*.py"))


def plugin_packages() -> dict[str, Path]:
    return {path.name: path for path in sorted(ROOT.glob("plugins/*/src/*")) if path.is_dir()}


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Return line and full name of every import, including imports inside functions and for type checkers."""
    for node in ast.iter_child_nodes(tree):
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


@pytest.mark.parametrize("package", packages())
def test_packages_import_only_allowed_packages(package: str) -> None:
    ours = {"tokenizers_zoo", "bench", "plugins", "tests"}
    allowed = ALLOWED.get(package, {package, "tokenizers_zoo"})
    violations = []
    for path in files(package):
        for line, name in imports_of(path, packages()[package].parent):
            top = name.split(".")[0]
            if (top in ours or top.startswith("zoo_")) and top not in allowed:
                violations.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not violations, "\n".join(violations)


def graph(package: str) -> dict[str, set[str]]:
    """Return the modules that each module of a package imports.

    A name imported from a package counts as its submodule, if there is one.
    """
    root = packages()[package].parent
    modules = {module_name(path, root): path for path in files(package)}
    edges: dict[str, set[str]] = {}
    for module, path in modules.items():
        names = {name if name in modules else name.rpartition(".")[0] for _, name in imports_of(path, root)}
        edges[module] = {name for name in names if name in modules and name != module}
    return edges


@pytest.mark.parametrize("package", packages())
def test_no_circular_imports(package: str) -> None:
    TopologicalSorter(graph(package)).prepare()  # raises CycleError, which names the modules


def rooms_of(package: str) -> list[str]:
    """Return the folders of a package in the order of docs/architecture.md."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    _, _, table = page.partition(f"| `{package}/` | holds |\n")
    return re.findall(r"^\| `(\w+)/` \|", table.partition("\n\n")[0], re.MULTILINE)


@pytest.mark.parametrize("package", CORE)
def test_rooms_import_earlier_rooms_only(package: str) -> None:
    """From the package itself they import its version only: its other public names are those of later rooms."""
    rooms, root = rooms_of(package), CORE[package].parent
    position = {"__version__": -1, "errors": -1} | {room: number for number, room in enumerate(rooms)}
    violations, seen = [], set()
    for path in files(package):
        room = (module_name(path, root) + ".").split(".")[1]
        seen.add(room)
        for line, name in imports_of(path, root) if room else ():
            top, _, inner = name.partition(".")
            if top == package and position.get(inner.split(".")[0], len(rooms)) > position.get(room, -1):
                violations.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert seen - {"", "errors"} == set(rooms), "docs/architecture.md misses a folder, or names one that is gone"
    assert not violations, "\n".join(violations)


def declared(project: dict[str, Any]) -> list[tuple[str, str]]:
    """Return name and minimum version of each distribution that a project requires, including its extras."""
    requirements = [*project.get("dependencies", ()), *chain(*project.get("optional-dependencies", {}).values())]
    return [re.fullmatch(r"([\w.-]+)(?:\[[\w,]+\])?>=([\d.]+)", requirement).groups() for requirement in requirements]


@pytest.mark.parametrize("package", plugin_packages())
def test_plugins_declare_their_imports(package: str) -> None:
    """Exceptions: torch inside functions (a dependency of the core), and jaxtyping for type checkers."""
    root = plugin_packages()[package].parent
    declared_names = {name for name, _ in declared(PLUGINS[root.parent])}
    violations = []
    for path in files(package):
        lines = path.read_text(encoding="utf-8").splitlines()
        for line, name in imports_of(path, root):
            top = name.split(".")[0]
            if top in sys.stdlib_module_names or top.startswith(("tokenizers_zoo", "zoo_")):
                continue
            indented = lines[line - 1].startswith(" ")  # in a function or for type checkers
            if DISTRIBUTIONS.get(top, top) not in declared_names and not (top in ("torch", "jaxtyping") and indented):
                violations.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not violations, "\n".join(violations)


def test_packages_ask_for_the_same_releases() -> None:
    releases: dict[str, set[Version]] = {}
    core = [tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"] for folder in ("", "backbone")]
    for project in (*core, *PLUGINS.values()):
        for name, release in declared(project):
            releases.setdefault(name, set()).add(Version(release))
    assert {name: versions for name, versions in releases.items() if len(versions) > 1} == {}


def docstrings(tree: ast.AST) -> set[ast.AST]:
    """Return string expressions that are statements: docstrings of modules, classes, functions and fields."""
    return {
        node.value for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


def written_names(tree: ast.AST, names: set[str]) -> Iterator[tuple[int, str]]:
    """Return line and text of string literals that contain one of `names` as a word, and of equal identifiers."""
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


@pytest.mark.parametrize("package", CORE)
def test_no_modality_is_known_by_name(package: str) -> None:
    names = {name for name in OURS if len(name) > 3}
    assert names
    violations = []
    for path in files(package):
        source = str(path.relative_to(ROOT))
        for line, text in written_names(ast.parse(path.read_text(encoding="utf-8")), names):
            if EXCEPTIONS.get(source) != text:
                violations.append(f"{source}:{line} names a modality: {text[:60]!r}")
    for path in (path for path in CORE[package].rglob("*") if path.suffix not in (".py", ".pyc") and path.is_file()):
        mentions = any_of(names - GENERIC).findall(path.read_text(encoding="utf-8"))
        violations += [f"{path.relative_to(ROOT)} names a modality: {name}" for name in mentions]
    assert not violations, "\n".join(violations)


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
HEAVY = {
    "torch", "PIL", "scipy", "skimage", "sklearn", "mujoco", "diffusers", "pyarrow", "vector_quantize_pytorch",
    "tokenizers", "transformers",
}  # fmt: skip


UNCHECKED = {
    "tokenizers_zoo/records/io.py": "owns the opening of files",
    "tokenizers_zoo/cli/main.py": "/proc/loadavg",
    "tokenizers_zoo/build/workers.py": "the system's limits of processors",
    "tokenizers_zoo/report/pictures.py": "read whole before, by read_inside",
    "zoo_backbone/use/wheels.py": "metadata of installed distributions",
    "zoo_backbone/learn/train.py": "pictures that it has just written",
    "zoo_geometry/pose_labeller.py": "checked by PretrainedConfig.locate",
    "zoo_photos/photos.py": "pictures in a wheel",
}
"""Files that read others without `open_regular`, which refuses pipes and devices; each needs a reason."""


@pytest.mark.parametrize("package", packages())
def test_files_are_opened_by_one_function(package: str) -> None:
    direct_opens = []
    for path in files(package):
        file = f"{package}/{path.relative_to(packages()[package]).as_posix()}"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or file in UNCHECKED:
                continue
            name, arguments = ast.unparse(node.func), [ast.unparse(argument) for argument in node.args]
            mode = (arguments[1:2] or ["'r'"])[0]
            opens = name == "open" and mode.startswith(("'r'", "'rb'")) and arguments[0] != "handle"
            reads_file = (name.endswith(".read_bytes") and not arguments) or name.endswith(".read_text")
            picture = name.endswith("Image.open") and not arguments[0].startswith(("io.BytesIO(", "CountedReads("))
            if opens or reads_file or picture:
                direct_opens.append(f"{file}:{node.lineno}: {ast.unparse(node)}")
    assert not direct_opens, direct_opens


def test_listing_modalities_imports_no_torch() -> None:
    """Run `import tokenizers_zoo`, import every plugin's module and read all specs in a fresh interpreter."""
    script = f"HEAVY = {HEAVY!r}\n{LISTING}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    names, specs = map(int, done.stdout.split())
    assert names >= len(OURS) and specs > 0


def test_comparing_probes_imports_no_torch() -> None:
    """The figures of probes are read from files."""
    script = "import sys, zoo_backbone.use.transfer.results; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 0
