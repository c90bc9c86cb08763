"""The registry: listing without imports, lazy loading, and an error for each kind of mistake."""

from __future__ import annotations

import pickle
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from examples import EVERYTHING_ELSE, only, values, write_registry
from stores import writing_values
from toy_plugins import SOURCE, derived

from tokenizers_zoo import Zoo
from tokenizers_zoo.build.tokenizers import TokenizerJob, overrides_of_each, train_tokenizer, train_tokenizers
from tokenizers_zoo.contract.samples import TrainingSamples
from tokenizers_zoo.errors import ConfigError, DataError, PluginError, UnknownNameError
from tokenizers_zoo.families.spatial import SpatialSettings, TokenizerConfig
from tokenizers_zoo.files.checkpoint import fingerprint, is_complete
from tokenizers_zoo.records.config import Settings

Install = Callable[..., Path]
PAGE = Path(__file__).parent.parent / "docs" / "writing-a-plugin.md"
# ---------------------------------------------------------------- discovery


def test_a_disabled_plugin_is_never_imported(install_example: Install) -> None:
    install_example("explosive", {"from __future__ import annotations": "raise RuntimeError('boom')"})
    assert only().names() == ["explosive"], "names are listed without an import"
    zoo = only({"explosive": {"enabled": False}})
    assert "explosive" not in zoo and not any("explosive" in key for key in zoo.problems())
    assert "zoo_explosive" not in sys.modules
    with pytest.raises(UnknownNameError, match=r"'explosive' .* \[modalities.explosive\] enabled"):
        zoo["explosive"]


def test_a_duplicate_name_is_an_error_naming_both_distributions(install_example: Install) -> None:
    install_example("twice", distribution="zoo-first")
    install_example("twice", distribution="zoo-second")
    install_example("sound")
    zoo = only()
    assert zoo.names() == ["sound", "twice"]
    assert zoo["sound"].spec.name == "sound"
    with pytest.raises(PluginError, match=r"twice: .*zoo-first 1.0 .* zoo-second 1.0"):
        zoo["twice"]
    assert "zoo-second 1.0" in zoo.problems()["twice"]
    assert [handle.name for handle in zoo.handles()] == ["sound"]
    assert not any("twice" in key for key in only({"twice": {"enabled": False}}).problems())


# ---------------------------------------------------------------- plugins that break the contract

BROKEN = {
    "no import": (
        {"from __future__ import annotations": "import no_such_module_anywhere"},
        r"fails to import: ModuleNotFoundError: No module named 'no_such_module_anywhere' \(.*zoo_broken.py:\d+\)",
    ),
    "a class": ({"plugin = Example()": "plugin = Example"}, r"is a class; point the entry point at an instance"),
    "missing hook": (
        {"    @hookimpl\n    def decode(": "    def decode("},
        r"decode is not marked with @tokenizers_zoo.hookimpl",
    ),
    "no hooks": ({"plugin = Example()": "plugin = object()"}, r"modality_spec is missing; train_tokenizer is missing"),
    "unknown argument": (
        {"def encode(self, tokenizer, values)": "def encode(self, tokenizer, values, batch_size)"},
        r"encode takes batch_size, expected arguments of encode\(tokenizer, values, settings\) by name",
    ),
    "another name": ({"name=settings.name": 'name="other"'}, r"expected a ModalitySpec named 'broken' .*, got Mod"),
    "unsound spec": ({"vocab_size=config.levels": "vocab_size=0"}, r"vocab_size 0: .*; declared by plugin 'broken'"),
    "derive without inputs": (
        {"    @hookimpl\n    def render(": "    @hookimpl\n    def derive(self): ...\n    @hookimpl\n    def render("},
        r"derived_from \(\), but the hook derive is implemented",
    ),
    "metrics without score": (
        {"    @hookimpl\n    def score(": "    def mark("},
        r"declares metrics mae, but the hook score is not implemented",
    ),
    "another contract": (
        {"class Example:\n": "class Example:\n    contract = 2\n"},
        r"made for version 2 of the plugin contract, this is version 1; pip install --upgrade tokenizers-zoo",
    ),
    "an older contract": (
        {"class Example:\n": "class Example:\n    contract = 0\n"},
        r"made for version 0 of the plugin contract, this is version 1; pip install --upgrade zoo-broken",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plugin_is_named_and_the_others_work(case: str, install_example: Install) -> None:
    changes, message = BROKEN[case]
    install_example("broken", changes)
    install_example("sound")
    zoo = only()
    with pytest.raises(PluginError, match=message) as caught:
        zoo["broken"]
    assert str(caught.value).startswith("broken: ") and "zoo-broken 1.0" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert zoo.problems()["broken"] == str(caught.value)
    assert [handle.name for handle in zoo.handles()] == ["sound"]


# ---------------------------------------------------------------- registry.toml


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[modalitys.x]\nplugin = 'x'", r"registry.toml(:1)? .*modalitys: unknown key; did you mean modalities"),
        ("[modalities.x]\n\nenabled = 'no'", r"registry.toml:3 \[modalities.x\] enabled: expected bool, got str"),
        ("[modalities.x]\nsha256 = 'abc'", r"registry.toml:2 \[modalities.x\] sha256: sha256 'abc': expected 64"),
        (f"x = {'[' * 10**6}", r"registry.toml: is nested too deeply: 100 levels at most"),
        (f"[{'.'.join('a' * 5000)}]", r"registry.toml: is nested too deeply: 100 levels at most"),
        (f"\ufeffx = {{ y = 1, {chr(34) + chr(92) + chr(34) + chr(34)}{'.a' * 5000} = 1 }}", r"is nested too deeply"),
        (f"""{'."a, b"' * 50_000} = 1"""[1:], r"registry.toml: is nested too deeply: 100 levels at most"),
        (f"# {'a' * 2**20}", r"registry.toml: expected at most 1,048,576 bytes, got 1,0"),
        ("[modalities]\nx = 3", r"registry.toml:2 \[modalities\] x: expected a table, got int 3"),
        ("\ufeff[zoo]\nimage_size = 'big'", r"registry.toml:2 \[zoo\] image_size: expected"),
    ],
)
def test_registry_errors_name_file_and_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        Zoo.from_toml(write_registry(tmp_path / "registry.toml", text))


def test_another_quantizer_drops_the_settings_of_the_first() -> None:
    zoo = Zoo.from_toml(Path(__file__).parent.parent / "registry.toml")
    assert "levels" in zoo["depth"].settings["tokenizer"]
    zoo["depth"].check_overrides({"quantizer": "vq"})
    overrides = {"quantizer": "vq", "codebook_size": 512}
    overrides_by_modality = overrides_of_each(zoo, ["caption", "depth", "rgb"], overrides)
    assert overrides_by_modality == {"caption": {}, "depth": overrides, "rgb": overrides}
    with pytest.raises(ConfigError, match=r"^\[modalities.depth.tokenizer\] levels: .* vq"):
        zoo["depth"].check_overrides({"quantizer": "vq", "levels": [8, 8]})
    with pytest.raises(ConfigError, match=r"^\[modalities.\*.tokenizer\] codebok_size: .*codebook_size"):
        overrides_of_each(zoo, ["caption", "depth"], {"steps": 3, "codebok_size": 512})


@dataclass(frozen=True, kw_only=True)
class PatientConfig(TokenizerConfig):
    patience: int | None = 5


@dataclass(frozen=True, kw_only=True)
class InstanceDefaults(SpatialSettings):
    tokenizer: TokenizerConfig = PatientConfig(steps=5000, quantizer="residual_vq", num_codebooks=2)


def test_a_table_replaces_only_its_own_keys_of_plugin_defaults() -> None:
    settings = Settings("x", {"tokenizer": {"learning_rate": 1e-4}})
    config = settings.take(InstanceDefaults).tokenizer
    assert config == PatientConfig(steps=5000, quantizer="residual_vq", num_codebooks=2, learning_rate=1e-4)
    assert settings.changed(tokenizer={"steps": 3}).take(InstanceDefaults).tokenizer == replace(config, steps=3)
    assert Settings("x").take(InstanceDefaults) == InstanceDefaults()
    with pytest.raises(ConfigError, match=r"\[tokenizer\] lr: unknown key"):
        Settings("x", {"tokenizer": {"lr": 1}}).take(InstanceDefaults)


def test_another_quantizer_in_a_table_drops_settings_of_the_default() -> None:
    """The same holds for a preset's quantizer, and for a table's quantizer on top of a preset."""

    def kind(**table: object) -> tuple[str, int | None]:
        tokenizer = Settings("x", table).take(InstanceDefaults).tokenizer
        return tokenizer.quantizer, tokenizer.num_codebooks

    assert kind() == kind(tokenizer={"quantizer": "residual_vq"}) == ("residual_vq", 2)
    assert kind(tokenizer={"quantizer": "fsq"}) == ("fsq", None)
    assert kind(tokenizer={"quantizer": "product_vq"}) == ("product_vq", 2)
    assert kind(preset="4m") == ("vq", None)
    assert kind(preset="4m", tokenizer={"quantizer": "residual_vq", "num_codebooks": 3}) == ("residual_vq", 3)
    assert kind(preset="4m", tokenizer={"quantizer": "lfq"}) == ("lfq", None)
    for table in (
        {"tokenizer": {"quantizer": "fsq", "num_codebooks": 3}},
        {"preset": "4m", "tokenizer": {"levels": [3]}},
    ):
        with pytest.raises(ConfigError, match=r"^\[tokenizer\] (num_codebooks|levels): used by "):
            kind(**table)


def test_enabled_modalities_may_be_listed(install_example: Install, tmp_path: Path) -> None:
    for name in ("small", "other", "off"):
        install_example(name)
    text = "[zoo]\nmodalities = ['small', 'large', 'off']\n[modalities.large]\nplugin = 'small'\n"
    zoo = Zoo.from_toml(write_registry(tmp_path / "registry.toml", f"{text}[modalities.off]\nenabled = false\n"))
    assert zoo.names() == ["large", "small"] and "other" not in zoo and not zoo.problems()
    assert zoo.disabled() == sorted([*EVERYTHING_ELSE, "off", "other"])
    with pytest.raises(UnknownNameError, match=r"'other' .*registry.toml:2 \[zoo\] modalities"):
        zoo["other"]
    with pytest.raises(UnknownNameError, match=r"'off' .*registry.toml:6 \[modalities.off\]"):
        zoo["off"]
    registry_path = write_registry(tmp_path / "wrong.toml", "[zoo]\nmodalities = ['smal']\n")
    with pytest.raises(UnknownNameError, match=r"wrong.toml:2 \[zoo\] .*'smal'; did you mean small"):
        Zoo.from_toml(registry_path)
    write_registry(registry_path, "[zoo]\nmodalities = ['small', 'smoke']\n")  # of a plugin that is not installed here
    with pytest.raises(UnknownNameError, match=r"wrong.toml:2 \[zoo\] .*'smoke': .*pip install"):
        Zoo.from_toml(registry_path)


def test_an_entry_without_a_plugin_offers_close_names(install_example: Install, tmp_path: Path) -> None:
    install_example("brightness")
    text = "[modalities.brihtness]\nimage_size = 16\n[modalities.big]\nplugin = 'britness'\n"
    zoo = Zoo.from_toml(write_registry(tmp_path / "registry.toml", text))
    errors = zoo.problems()
    assert "registry.toml" in errors["brihtness"] and "did you mean brightness?" in errors["brihtness"]
    assert "registry.toml:4 [modalities.big] plugin: unknown plugin 'britness'" in errors["big"]
    with pytest.raises(UnknownNameError, match="did you mean brightness"):
        zoo["big"]
    assert zoo["brightness"].name == "brightness"
    path = write_registry(tmp_path / "more.toml", "[modalities.thermal]\n")
    error = Zoo.from_toml(path).problems()["thermal"]
    assert "did you mean" not in error and "pip install zoo-" in error and "enabled = false" in error


def test_modalities_of_one_vocabulary_have_to_agree(install_example: Install) -> None:
    shared = {"vocab_size=config.levels": 'vocab_size=config.levels, vocabulary="levels"'}
    install_example("one", shared)
    install_example("two", shared)
    assert only().vocabularies() == {"levels": ["one", "two"]}
    assert only()["one"].checkpoint == only()["two"].checkpoint == Path("runs/tokenizers/levels")
    assert "one" not in only().problems() and "two" not in only().problems()
    errors = only({"two": {"levels": 8}}).problems()
    assert "vocab_size 8 where one has 16" in errors["two"]
    assert "has checkpoint" in only({"two": {"checkpoint": "elsewhere"}}).problems()["two"]


def test_only_modalities_sharing_a_vocabulary_share_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    tables = {name: {"plugin": "rgb_patches", "checkpoint": str(folder)} for name in ("left", "right")}
    zoo = Zoo.from_tables({"zoo": {"image_size": 16, "patch_size": 8, "modalities": [*tables]}, "modalities": tables})
    pictures = [np.repeat(value, 3, axis=0) for value in values()]
    before = zoo["left"].train_tokenizer(TrainingSamples(train=pictures, test=pictures), folder, 0)
    with pytest.raises(ConfigError, match=r"^right: .*mine holds .* left"):
        train_tokenizer(zoo, "right", tmp_path / "absent", overwrite=True)  # raised before any value is read
    (before / "config.json").unlink()  # as during training
    with pytest.raises(ConfigError, match=r"^right: .*mine holds .* left"):
        train_tokenizer(zoo, "right", tmp_path / "absent", overwrite=True)
    with pytest.raises(DataError, match="absent"):
        train_tokenizer(zoo, "left", tmp_path / "absent")


HANDS = """
import dataclasses
from tokenizers_zoo.families.vectors import NUMBER_METRICS, VectorModality

class Hand(VectorModality):
    summary, dim, loss, metrics = "angles", 4, "smooth_l1", NUMBER_METRICS

    def spec_of(self, settings, *spec, **more):
        return dataclasses.replace(super().spec_of(settings, *spec, **more), vocabulary="hands")

plugin = Hand()
"""


def test_a_shared_tokenizer_is_trained_once(install: Install, tmp_path: Path) -> None:
    """It is trained once, whether the names are given together or one after the other."""
    hands = ("left_hand", "right_hand")
    install("zoo-hands", {"tokenizers_zoo": dict.fromkeys(hands, "zoo_hands:plugin")}, {"zoo_hands": HANDS})
    small = {"steps": 2, "batch_size": 4, "width": 8, "depth": 1, "num_codebooks": 2, "codebook_size": 4}
    zoo = only({name: {"tokenizer": small} for name in hands}, zoo={"checkpoints": str(tmp_path / "tokenizers")})
    angles, data = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32), tmp_path / "data"
    for split, name in ((split, name) for split in ("train", "test") for name in hands):
        with writing_values(data, split, name) as shard:
            for number, value in enumerate(angles):
                shard.add(f"{split}-{number}", *zoo[name].write(value))

    def run(*names: str, **options: Any) -> list[bool]:
        """Return for each of the names whether the tokenizer is still the same."""
        folder, unchanged = tmp_path / "tokenizers/hands", list[bool]()
        before = fingerprint(folder) if is_complete(folder) else None
        for _, checkpoint in train_tokenizers(zoo, [TokenizerJob(name=name, data=data, **options) for name in names]):
            assert checkpoint == folder
            unchanged.append(fingerprint(folder) == before)
        return unchanged

    assert run(*hands) == [False, False] and run(*hands) == [True, True]
    assert (zoo["left_hand"].encode(list(angles)) == zoo["right_hand"].encode(list(angles))).all()
    assert run(*hands, seed=1, overwrite=True) == [False, False]
    assert run("right_hand", overwrite=True) == [False] and run(*hands) == [True, True]
    (tmp_path / "tokenizers/hands/config.json").unlink()  # as during training
    with pytest.raises(ConfigError, match=r"^left_hand: .*half-trained .* right_hand"):
        run("left_hand")
    assert run("right_hand", "left_hand") == [False, False]


# ---------------------------------------------------------------- derive, wrappers, sources


def test_derive_names_missing_inputs(install_example: Install) -> None:
    install_example("bright")
    install_example("dark", derived("bright"))
    zoo = only()
    value = values(side=24)[0]
    np.testing.assert_array_equal(zoo["dark"].derive({"bright": value}), 1 - value)
    with pytest.raises(DataError, match=r"dark: .*bright"):
        zoo["dark"].derive({})
    with pytest.raises(PluginError, match=r"derive .*'dark' .* outside the range"):
        zoo["dark"].derive({"bright": -value})


def test_wrappers_see_the_hook_calls_of_a_training(install: Install, tmp_path: Path) -> None:
    hooks = "\n".join(
        f"    @hookimpl(wrapper=True)\n    def {hook}(self, settings):\n        self.calls.add({hook!r})\n"
        "        return (yield)\n"
        for hook in ("modality_spec", "transform", "encode", "decode", "score", "render")
    )
    spy = f"from tokenizers_zoo import hookimpl\n\nclass Spy:\n    calls = set()\n{hooks}\nplugin = Spy()\n"
    install("zoo-spy", {"tokenizers_zoo.wrappers": {"spy": "zoo_spy:plugin"}}, {"zoo_spy": spy})
    zoo = Zoo.from_tables({"modalities": {"rgb": {"image_size": 16}, "rgb_patches": {"image_size": 16}}})
    pictures = [np.random.default_rng(i).random((3, 16, 16), dtype=np.float32) for i in range(4)]
    samples = TrainingSamples(train=pictures, test=pictures)
    for name, overrides in (("rgb", {"steps": 1, "flip": True}), ("rgb_patches", {})):
        handle = zoo[name]
        calls = sys.modules["zoo_spy"].plugin.calls
        calls.clear()
        handle.train_tokenizer(samples, tmp_path / name, 0, device="cpu", **overrides)
        assert calls == {"modality_spec", "encode", "decode", "score", "render"} | (
            {"transform"} if overrides else set()
        )


def test_an_invalid_wrapper_is_refused_and_the_others_work(install: Install, install_example: Install) -> None:
    thief = """
from tokenizers_zoo import hookimpl

class Thief:
    @hookimpl
    def encode(self, tokenizer, values):
        return values

plugin = Thief()
"""
    install("zoo-thief", {"tokenizers_zoo.wrappers": {"thief": "zoo_thief:plugin"}}, {"zoo_thief": thief})
    install_example("one")
    zoo = only()
    assert zoo["one"].name == "one"
    assert "encode has to be a wrapper" in zoo.problems()["wrapper thief"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name="toy"', 'name="steep"', r"source_spec .* gave the name 'steep', expected a SourceSpec named 'toy'"),
        ("def samples(", "def sample(", r"there is no hook 'sample'; did you mean 'samples'\?; samples is missing"),
        ("return self.count", "return self.count + 1", r"4 samples where 3 were asked for"),
        ('"other": 1', '"two": 1', r"sample 0 .* has two, which its spec does not declare"),
        ("{self.split}-{i", "{self.split}.{i", r"sample 0 .* has the key 'train.0000': .* no dot"),
    ],
)
def test_a_broken_source_is_named(old: str, new: str, message: str, install: Install) -> None:
    assert old in SOURCE
    text = SOURCE.replace(old, new)
    install("zoo-toy", {"tokenizers_zoo.sources": {"toy": "zoo_toy:source"}}, {"zoo_toy": text})
    with pytest.raises(PluginError, match=message) as caught:
        only().source("toy").samples("train", 3, 0)[0]
    assert str(caught.value).startswith("toy: ") and "zoo-toy 1.0" in str(caught.value)


def test_the_documented_source_works(install: Install) -> None:
    section = PAGE.read_text(encoding="utf-8").split("## A source")[1]
    example = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert example is not None
    install("zoo-dunes", {"tokenizers_zoo.sources": {"dunes": "zoo_dunes:source"}}, {"zoo_dunes": example[1]})
    source = only().source("dunes")
    with pytest.raises(ConfigError, match=r"crest: .*did you mean crests"):
        source.samples("train", 3, 0, {"crest": 1})
    samples = source.samples("train", 4, 0, {"crests": 3})
    assert [key for key, _ in samples] == [f"train-00000{number}" for number in range(4)]
    key, sample = pickle.loads(pickle.dumps(samples[1:][1:]))[0]
    assert key == "train-000002" and (sample["heightmap"] == samples[2][1]["heightmap"]).all()
    test_heights = source.samples("test", 4, 0, {"crests": 3})[2][1]["heightmap"]
    assert test_heights.shape == (1, 64, 64) and (test_heights != sample["heightmap"]).any()
    with pytest.raises(ConfigError, match=r"dunes: .*say how many samples"):
        source.samples("train", None, 0)
