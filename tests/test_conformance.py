"""Every installed modality keeps the contract, and the conformance kit detects violations."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from examples import OURS, only, trained, values
from small_modalities import VECTORS_ALONE
from stores import writing_values

from tokenizers_zoo import Zoo
from tokenizers_zoo.errors import DataError
from tokenizers_zoo.records.io import read_table
from tokenizers_zoo.testing import CheckResult, check_modality, conformance_results
from tokenizers_zoo.testing.checks import CHECKS
from tokenizers_zoo.testing.results import Skipped
from tokenizers_zoo.testing.subject import Subject
from tokenizers_zoo.tokenizers.evaluate import evaluate_tokenizer

ROOT = Path(__file__).parent.parent
SMALL = Zoo.from_tables(
    {"zoo": {"image_size": 32, "patch_size": 8}, "modalities": {"audio": {"iterations": 4}}}  # of Griffin-Lim, slow
)
Install = Callable[..., Path]


def test_the_plugins_of_this_repository_are_installed() -> None:
    assert OURS, "plugins/*/pyproject.toml declare no modality"
    assert set(OURS) <= set(SMALL.names()), "run: pip install -e plugins/*"
    assert {name: SMALL[name].distribution.split()[0] for name in OURS} == OURS
    assert SMALL.problems() == {}


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Subject]:
    """One subject per modality, so that its checks share sample values and tokenizer."""
    subjects_by_name: dict[str, Subject] = {}

    def of(name: str) -> Subject:
        if name not in subjects_by_name:
            subjects_by_name[name] = Subject(zoo=SMALL, name=name, workdir=tmp_path_factory.mktemp(name))
        return subjects_by_name[name]

    return of


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", SMALL.names())
def test_installed_modalities_pass_every_check(name: str, check: str, subjects: Callable[[str], Subject]) -> None:
    try:
        CHECKS[check](subjects(name))
    except Skipped as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize(("count", "expected"), [(8, (6, 2)), (3, (1, 2)), (2, (1, 1))])
def test_no_value_is_both_trained_on_and_held_out(count: int, expected: tuple[int, int]) -> None:
    subject = Subject(zoo=Zoo.installed(), name="depth", workdir=Path(), samples=[])
    subject.values = list(range(count))
    samples = subject.training_samples
    assert (len(samples.train), len(samples.test)) == expected
    assert [*samples.train, *samples.test] == subject.values


def results(name: str, device: str = "auto") -> dict[str, CheckResult]:
    return {result.name: result for result in conformance_results(Zoo.installed(), name, device=device)}


ARRAY = 'ValueSpec(shape=(1, side, side), low=0, high=1, unit="brightness")'
GRID = "layout=GridLayout(shape=(side // 4, side // 4))"
DECODED = 'repeat(tokenizer[tokens], "batch h w -> batch 1 (h p) (w q)", p=4, q=4)'
NUMBER = {
    ARRAY: 'ValueSpec(shape=(), dtype="int64", low=0, high=15, unit="points")',
    GRID: "layout=VectorLayout(length=1)",
    "import GridLayout": "import VectorLayout",
    "return (means * (len(tokenizer) - 1)).round().long()": "return values[:, None]",
    "means = reduce(": "0 and reduce(",
    f"return {DECODED}": "return tokens[:, 0]",
    "height, width = value.shape[-2:]": "return value",
    "Image.fromarray((value[0] * 255).astype(np.uint8))": "str(value)",
}
BITS = {
    ARRAY: 'ValueSpec(shape=(1, side, side), dtype="uint16", high=60000, unit="centikelvin")',
    "means = reduce(values,": "means = reduce(values.float() / 60000,",
    "return repeat(tokenizer[tokens]": "return repeat((tokenizer[tokens] * 60000).cpu().numpy().astype(np.uint16)",
    "np.abs(p - t)": "np.abs(p.astype(float) - t)",
}
PATCHES = {
    "import GridLayout": "import PatchesLayout",
    "vocab_size=config.levels": "vocab_size=0",
    "(means * (len(tokenizer) - 1)).round().long()": "means.flatten(1)[..., None]",
    GRID: "layout=PatchesLayout(shape=(side // 4, side // 4), dim=1)",
    DECODED: "repeat(tokens.reshape(-1, side(tokens), side(tokens)), 'batch h w -> batch 1 (h p) (w q)', p=4, q=4)",
    "plugin = Example()": "def side(tokens):\n    return int(tokens.shape[1] ** 0.5)\n\nplugin = Example()",
}
SOUND: dict[str, tuple[dict[str, str], set[str]]] = {
    "map": ({}, set()), "number": (NUMBER, {"crop_geometry"}), "bits": (BITS, set()),
    "patches": (PATCHES, {"any_tokens"}),
    "vectors": (VECTORS_ALONE, {"any_tokens", "decode", "deterministic", "save_and_load"}),
}  # fmt: skip
"""Changes of the example plugin, and the checks that do not apply then."""


@pytest.mark.parametrize("kind", SOUND)
def test_a_sound_plugin_passes(kind: str, install_example: Install) -> None:
    changes, skipped = SOUND[kind]
    install_example(f"example_{kind}", changes)
    check_results = check_modality(Zoo.installed(), f"example_{kind}")
    assert [result.name for result in check_results] == list(CHECKS)
    without = {result.name for result in check_results if result.skipped} - {"devices"}  # where there is no accelerator
    assert without == {"derive", "long_inputs"} | skipped


def test_vectors_without_a_decoder_are_evaluated(install_example: Install, tmp_path: Path) -> None:
    install_example("vectors_map", VECTORS_ALONE)
    zoo = only(zoo={"checkpoints": str(tmp_path / "tokenizers")})
    handle = zoo["vectors_map"]
    trained(zoo, "vectors_map", handle.checkpoint)
    with writing_values(tmp_path / "data", "test", "vectors_map") as shard:
        for number, value in enumerate(values(70)):
            shard.add(f"test-{number:03}", *handle.write(value))
    result = evaluate_tokenizer(zoo["vectors_map"], tmp_path / "data")
    assert (result.samples, result.tokens_per_sample, result.usage) == (70, 16, None)
    assert list(result.metrics) == ["mae"] and np.isnan(result.metrics["mae"])
    assert read_table(handle.checkpoint / "evaluation.json")["metrics"] == {"mae": None}


READ = "    @hookimpl\n    def read_value(self, data):\n"
WRITE = "    @hookimpl\n    def write_value(self, value):\n"
DERIVE = "    @hookimpl\n    def derive(self, sample):\n"
SCORE = "    @hookimpl\n    def score("
MISTAKES = {
    "a plugin that does not load": ("loads", {"plugin = Example()": "plugin = 3 /"}),
    "another spec each time": ("spec", {'summary="brightness"': 'summary=f"{np.random.rand()}"'}),
    "samples beyond the range": (
        "sample_values", {"        height, width = value.shape[-2:]\n": "        return value + 2\n"}
    ),
    "another constant each time": (
        "constant_baseline",
        {SCORE: "    @hookimpl\n    def constant_baseline(self):\n"
         f"        return np.random.rand(1, 16, 16).astype(np.float32)\n\n{SCORE}"},
    ),
    "values beyond the range": ("decode", {"repeat(tokenizer[tokens]": "repeat(1.5 * tokenizer[tokens] + 0.01"}),
    "ids beyond the vocabulary": ("encode", {".round().long()": ".round().long() + 1"}),
    "decodes what it encodes only": ("any_tokens", {"tokenizer[tokens]": "tokenizer[tokens] * 1.001"}),
    "a random encoder": (
        "deterministic",
        {".round().long()": ".mul(__import__('torch').rand(1)).round().long()"},
    ),
    "statistics over the batch": ("batches", {"means = reduce(values,": "means = reduce(values - values.mean() / 2,"}),
    "a checkpoint that is not what was trained": (
        "save_and_load",
        {'tensors["codes"].to(device)': 'tensors["codes"].roll("copy" in str(checkpoint))'},
    ),
    "training that never ends the same": (
        "train_again",
        {"torch.arange(levels, dtype=torch.float32)": "torch.arange(levels, dtype=torch.float32) * np.random.rand()"},
    ),
    "another value each time it is written": (
        "files",
        {SCORE: f"{WRITE}        return np.random.rand(256).astype(np.float32).tobytes(), 'raw'\n\n"
         f"{READ}        return np.frombuffer(data, np.float32).reshape(1, 16, 16) * np.float32(0.5)\n\n{SCORE}"},
    ),
    "files read without a look": (
        "files", {SCORE: f"{READ}        return np.zeros((1, 16, 16), np.float32)\n\n{SCORE}"}
    ),
    "height and width swapped": (
        "crop_geometry",
        {"rows = (crop.top + (np.arange(side) + 0.5) / side * crop.height)":
         "rows = (crop.left + (np.arange(side) + 0.5) / side * crop.width)"},
    ),
    "upside down scores": ("score", {"higher_is_better=False": "higher_is_better=True"}),
    "a flip in place": (
        "transform",
        {"        height, width = value.shape[-2:]\n": "        height, width = value.shape[-2:]\n"
         "        if crop.flip:\n            value[:] = value[..., ::-1].copy()\n",
         "if crop.flip else": "if False else"},
    ),
    "a score that tells nothing": (
        "score", {"float(np.mean([np.abs(p - t).mean() for p, t in zip(predicted, target, strict=True)]))": "0.0"},
    ),
    "nothing to see": ("render", {"return Image.fromarray((value[0] * 255).astype(np.uint8))": "return ''"}),
    "a batch of three that is not one": (
        "batches",
        {".round().long()": ".round().long()[: 2 if len(values) == 3 else None]"},
    ),
    "threads that share a place": (
        "threads",
        {"        means = reduce(values,": "        import time\n\n        self.kept = values\n"
         "        time.sleep(0.02)\n        means = reduce(self.kept,"},
    ),
    "special tokens twice": (
        "vocabulary",
        {SCORE: f"    @hookimpl\n    def vocabulary_tokens(self):\n        return ['[A]', '[A]']\n\n{SCORE}"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_kit_detects_mistakes(mistake: str, install_example: Install) -> None:
    check, changes = MISTAKES[mistake]
    install_example("mistaken", changes)
    result = next(result for result in conformance_results(Zoo.installed(), "mistaken") if result.name == check)
    assert not result.passed and result.message and "\n" not in result.message


def derived_subject(install_example: Install, workdir: Path, body: str, levels: Sequence[float]) -> Subject:
    """Return a subject of pictures of these levels, derived by the lines of a hook."""
    install_example("base")
    install_example("lit", {"metrics=(": 'derived_from=("base",), metrics=(', SCORE: f"{DERIVE}{body}\n{SCORE}"})
    pictures = [{"base": np.full((1, 16, 16), level, np.float32)} for level in levels]
    return Subject(zoo=Zoo.installed(), name="lit", workdir=workdir, samples=pictures)


@pytest.mark.parametrize("change", ["sample['base'] *= 0.5", "del sample['base']", "sample['more'] = 1"])
def test_derive_hook_that_modifies_its_sample_is_detected(
    change: str, install_example: Install, tmp_path: Path
) -> None:
    body = f"        value = sample['base'].copy()\n        {change}\n        return value\n"
    with pytest.raises(AssertionError, match=r"^derive changes"):
        CHECKS["derive"](derived_subject(install_example, tmp_path, body, (0.2, 0.9)))


def test_samples_dropped_by_derive_are_accepted(install_example: Install, tmp_path: Path) -> None:
    body = """        from tokenizers_zoo.errors import DataError
        if sample["base"].mean() < 0.5:
            raise DataError("too dark")
        return sample["base"]
"""
    subject = derived_subject(install_example, tmp_path, body, (0.1, 0.6, 0.2, 0.9))
    CHECKS["derive"](subject)
    assert [float(value[0, 0, 0]) for value in subject.values] == [np.float32(0.6), np.float32(0.9)]
    dark = Subject(zoo=Zoo.installed(), name="lit", workdir=tmp_path, samples=subject.samples[:1])
    with pytest.raises(DataError, match="too dark"):
        CHECKS["derive"](dark)


def test_devices_are_compared(install_example: Install) -> None:
    """The CPU under another name stands in for the accelerator."""
    install_example("steady")
    devices_check = results("steady", device="cpu:0")["devices"]
    assert devices_check.passed and not devices_check.skipped
    assert results("steady", device="cpu")["devices"].skipped
    install_example(
        "moody", {'return tensors["codes"].to(device)': 'return tensors["codes"][: 8 if device != "cpu" else 16]'}
    )
    assert "tokens differ between cpu and cpu:0" in results("moody", device="cpu:0")["devices"].message


def test_arrays_of_free_length_are_made_far_too_long(install: Install) -> None:
    page = (ROOT / "docs" / "writing-a-plugin.md").read_text(encoding="utf-8")
    (module,) = (text for text in re.findall(r"^```python\n(.*?)^```", page, re.M | re.S) if "Landmarks()" in text)
    install("zoo-sound", {"tokenizers_zoo": {"sound": "zoo_sound:plugin"}}, {"zoo_sound": module})
    uncut = module.replace("[:most]", "")
    install("zoo-uncut", {"tokenizers_zoo": {"uncut": "zoo_uncut:plugin"}}, {"zoo_uncut": uncut})
    assert all(result.passed for result in results("sound").values())
    assert "of up to 96" in results("uncut")["long_inputs"].message


def test_check_modality_names_all_failures(install_example: Install) -> None:
    install_example("mistaken", {"higher_is_better=False": "higher_is_better=True", "if crop.flip": "if False"})
    expected = rf"mistaken .* 2 of {len(CHECKS)} .*\ncrop_geometry: .*\nscore: mae"
    with pytest.raises(AssertionError, match=expected):
        check_modality(Zoo.installed(), "mistaken")


def test_the_pytest_plugin_runs_each_check_as_a_test(install_example: Install, tmp_path: Path) -> None:
    """`pytest --zoo-plugin NAME` in an empty folder: every check is a test, and fails with one line."""
    folder = install_example("mistaken", {"if crop.flip else": "if False else"})
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        slow_to_start = ("cacheprovider", "hypothesispytest", "jaxtyping")  # and not needed here
        without = [part for name in slow_to_start for part in ("-p", f"no:{name}")]
        command = [sys.executable, "-m", "pytest", *without, "-rA", *arguments]
        return subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True)

    done = run("--zoo-plugin", "mistaken", "-k", "crop_geometry or spec or derive")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "PASSED zoo-plugin/mistaken::spec" in done.stdout
    assert "FAILED zoo-plugin/mistaken::crop_geometry" in done.stdout
    assert "mistaken: crop_geometry: mistaken: Crop(" in done.stdout
    assert "1 failed, 1 passed, 1 skipped" in done.stdout
    unknown = run("--zoo-plugin", "mistakes")
    assert unknown.returncode == 4 and "unknown modality 'mistakes'; did you mean mistaken" in unknown.stderr
