"""Plans: defaults for each layout, files, plans that 4M published, and errors that name the problem."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backbone_samples import spec
from generation_samples import PUBLISHED, SPECS, random_inputs, sharp_model

from tokenizers_zoo import Zoo
from tokenizers_zoo.contract.layouts import GridLayout, PatchesLayout
from tokenizers_zoo.errors import ConfigError, InvalidValueError, UnknownNameError
from tokenizers_zoo.records.config import from_mapping
from zoo_backbone.generate import Guidance, TargetPlan, generate
from zoo_backbone.generate.plans import GenerationPlan, read_plan, resolved_plan, written_plan
from zoo_backbone.generate.sampling import temperatures, tokens_per_step
from zoo_backbone.generate.sources import inputs_of, sources_of, written_sources
from zoo_backbone.model.embedding_layout import EmbeddingLayout

PLANS = sorted((Path(__file__).parent.parent / "configs" / "plans").glob("*.toml"))
PLAN = """
inputs = ["light", 'words="a = b"', "dark=pictures/one.npy"]
draws = 3
[inpaint]
dark = "not:mask:masks/one.npy"
light = "box:0,0,1,0.5"
[guidance]
scale = 2
[[targets]]
name = "light"
steps = 4
[[targets]]
name = "dark"
guidance = { weights = { light = 3.0, words = -1 } }
[[targets]]
name = "other"
guidance.scale = 1.0
"""


def test_plan_defaults_follow_the_layout() -> None:
    grid = TargetPlan(name="left").resolved(SPECS[0])
    assert (grid.scheme, grid.steps) == ("maskgit", 6)
    assert TargetPlan(name="right").resolved(SPECS[2]).steps == 8
    words = TargetPlan(name="words", max_length=99).resolved(SPECS[1])
    assert (words.scheme, words.max_length) == ("autoregressive", 6)


LEFT, VECTORS = ({name: random_inputs(1)[name]} for name in ("left", "vectors"))
RIGHT = TargetPlan(name="right")
GUIDED_BY_BAG = dataclasses.replace(RIGHT, guidance=Guidance(weights={"bag": 2.0}))
GUIDED_BY_WORDS = dataclasses.replace(RIGHT, guidance=Guidance(scale=2, always=("words",)))


@pytest.mark.parametrize(
    ("inputs", "plan", "options", "error", "message"),
    [
        (LEFT, [TargetPlan(name="words", scheme="maskgit")], {}, ConfigError, "words: scheme 'maskgit'"),
        (LEFT, [RIGHT], {"partial": {"left": torch.full((1, 2, 3), -1)}}, ConfigError, "left: .* whole and in part"),
        (LEFT, [RIGHT], {"partial": VECTORS}, ConfigError, "vectors: .* inpainted"),
        (LEFT, [], {}, ConfigError, "at least one target"),
        ({}, [RIGHT], {}, ConfigError, "samples: expected"),
        (LEFT, [RIGHT], {"draws": 3, "samples": range(4)}, ConfigError, "draws 3, 4 numbers"),
        (LEFT, [GUIDED_BY_BAG, TargetPlan(name="bag")], {}, ConfigError, "right: guidance weights: bag .* left"),
        (LEFT, [GUIDED_BY_WORDS], {}, ConfigError, "guidance always: words"),
        (LEFT, [TargetPlan(name="rihgt")], {}, UnknownNameError, "rihgt.*did you mean right"),
        ({"left": torch.full((1, 2, 3), 7)}, [RIGHT], {}, InvalidValueError, "left: expected int64"),
        ({"words": [np.array([3])]}, [RIGHT], {}, InvalidValueError, "words: .*item 0 .*sentinel"),
        ({**LEFT, "words": [np.array([9])] * 2}, [RIGHT], {}, InvalidValueError, "2 samples"),
    ],
)  # fmt: skip
def test_errors_name_the_problem(
    inputs: dict[str, Any], plan: list[TargetPlan], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        generate(sharp_model(), inputs, plan, 0, **options)


NAN = float("nan")


@pytest.mark.parametrize(
    ("settings", "key", "wrong"),
    [
        (TargetPlan, "steps", (-1, 1.5, True)), (TargetPlan, "top_p", (0, 2, NAN)), (TargetPlan, "scheme", ("best",)),
        (TargetPlan, "temperature", (-1, NAN, "hot", None)), (TargetPlan, "guidance", (3.0,)),
        (Guidance, "scale", (NAN, 1e30, 10**400, "2")), (Guidance, "weights", ({"left": NAN}, {"left": "2"})),
        (GenerationPlan, "draws", (0, True)), (GenerationPlan, "seed", (-1, 0.5)), (GenerationPlan, "crop", ("left",)),
        (GenerationPlan, "samples", ("0", 4)),
    ],
)  # fmt: skip
def test_wrong_settings_are_named_in_python(settings: Any, key: str, wrong: tuple[Any, ...]) -> None:
    required = {TargetPlan: {"name": "left"}, GenerationPlan: {"targets": (TargetPlan(name="left"),)}}
    for value in wrong:
        with pytest.raises(ConfigError, match=key) as caught:
            settings(**required.get(settings, {}), **{key: value})
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    with pytest.raises(ConfigError, match="weights: expected either scale or weights"):
        Guidance(scale=2, weights={"left": 1.0})
    assert TargetPlan(name="left", temperature=np.float32(0.5), steps=np.int64(3)).temperature == 0.5


def test_input_only_and_output_only_modalities_are_respected() -> None:
    config = dataclasses.replace(PUBLISHED, inputs_only=("left",), targets_only=("right", "words"))
    model, input_tokens = sharp_model(config=config), random_inputs(2)
    left, right, bag = input_tokens["left"], TargetPlan(name="right", steps=2), TargetPlan(name="bag", steps=2)
    assert model.layout.discrete == ("words", "right", "bag")
    assert model.layout.readable == ("left", "bag", "pixels", "vectors")
    with pytest.raises(ConfigError, match=r"left: .* only an input .* words, right, bag"):
        generate(model, {"pixels": input_tokens["pixels"]}, [TargetPlan(name="left")], 0)
    grid = torch.zeros(2, 3, 3, dtype=torch.int64)
    for inputs, partial in (({"right": grid}, {}), ({"left": left}, {"right": torch.full_like(grid, -1)})):
        with pytest.raises(ConfigError, match=r"right: .* only a target .* left"):
            generate(model, inputs, [bag], 0, partial=partial)
    with pytest.raises(ConfigError, match="guidance always: right"):
        generate(model, {"left": left}, [right, dataclasses.replace(bag, guidance=Guidance(always=("right",)))], 0)
    chained = generate(model, {"left": left}, [right, TargetPlan(name="words"), bag], 0)
    assert torch.equal(chained["bag"], generate(model, {"left": left}, [bag], 0)["bag"])
    assert chained["right"].shape == (2, 3, 3) and len(chained["words"]) == 2


# --- files


def read(path: Path) -> GenerationPlan:
    return from_mapping(GenerationPlan, read_plan(path, Zoo.installed()))


def test_plan_in_the_documentation_is_valid(tmp_path: Path) -> None:
    text = (PLANS[0].parents[2] / "docs" / "generation.md").read_text(encoding="utf-8")
    (tmp_path / "plan.toml").write_text(text.partition("## A plan\n\n```toml\n")[2].partition("```")[0])
    recipe = read(tmp_path / "plan.toml")
    assert recipe.targets and recipe.inpaint


def test_plan_round_trips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one.toml").write_text(PLAN)
    recipe = read(tmp_path / "one.toml")
    assert recipe.inputs == ("light", 'words="a = b"', f"dark={tmp_path}/pictures/one.npy")
    assert recipe.inpaint == {"dark": f"not:mask:{tmp_path}/masks/one.npy", "light": "box:0,0,1,0.5"}
    light, dark, unguided = recipe.target_plans()
    assert (light.steps, light.guidance) == (4, Guidance(scale=2.0))
    assert dark.guidance == Guidance(weights={"light": 3.0, "words": -1.0}) and unguided.guidance == Guidance()
    text = written_plan(recipe, {"made by": "a run"})
    assert text.startswith("# made by: a run\n") and "seed" not in text
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "two.toml").write_text(text)
    assert read(tmp_path / "other" / "two.toml") == recipe
    odd = GenerationPlan(targets=recipe.targets, inputs=('words="a \\ tab\t, bell\a and delete\x7f"',))
    (tmp_path / "odd.toml").write_text(written_plan(odd, {}))
    assert read(tmp_path / "odd.toml") == odd
    monkeypatch.chdir(tmp_path)  # paths from a caller are relative to the caller's working directory
    called = GenerationPlan(targets=recipe.targets, inputs=("dark=one.npy",), inpaint={"dark": "not:mask:m.png"})
    sources = sources_of(called.inputs, Zoo.installed(), Path.cwd())
    called = called.with_absolute_paths(Path.cwd(), sources)
    (tmp_path / "other" / "three.toml").write_text(written_plan(called, {}))
    reread = read(tmp_path / "other" / "three.toml")
    assert reread.inputs == (f"dark={tmp_path}/one.npy",)
    assert reread.inpaint == {"dark": f"not:mask:{tmp_path}/m.png"}


@pytest.mark.parametrize(
    ("written", "kind"),
    [
        ("rgb=[2024] trip/a.jpg", "file"), ("rgb=./[2024] trip/a.jpg", "file"), ("rgb={}/[2024] trip/a.jpg", "file"),
        ("rgb=[2024] trip", "files"), ("rgb=[2024] trip/[a-z].jpg", "files"), ("rgb=[2025] trip/a.jpg", "files"),
        ("rgb=b.jpg", "file"), ("depth=tokens.json", "tokens"), ("depth", "stored"),
        ("boxes=[0].json", "file"), ("boxes=[]", "json"), ("boxes=[{{", "json"), ("metadata={{}}", "json"),
        ("boxes=[0-9].json", "files"), ("palette=[[0, 0, 1]]", "files"),
        ("caption=[draft] a red sofa", "text"), ("caption={{}}", "text"), ("caption='b.txt'", "text"),
        ("caption=b.txt", "file"), ("caption=c.txt", "file"), ("caption=/a b", "file"), ("caption=*.txt", "files"),
        ("caption=c*.txt", "files"), ("caption=what? [sic]", "text"), ('caption="[2024] trip"', "text"),
        ('caption=say "a"', "text"), ('caption="a', "text"),
    ],
)  # fmt: skip
def test_sources_are_decided_by_files_and_the_modality(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str, kind: str
) -> None:
    """Also in folders with brackets in their names; a plan's text has the same meaning elsewhere."""
    folder = tmp_path / "[x]"
    (folder / "[2024] trip").mkdir(parents=True)
    for name in ("[2024] trip/a.jpg", "b.txt", "[0].json", "1.json"):
        (folder / name).write_text("{}")
    (folder / "tokens.json").write_text('{"modality": "depth", "fingerprint": "", "tokens": []}')
    zoo = Zoo.installed()
    sources = sources_of([written.format(folder)], zoo, folder)
    (source,) = sources.values()
    assert source.kind == kind
    monkeypatch.chdir(tmp_path)
    assert sources_of(inputs_of(sources), zoo, Path.cwd()) == sources


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("draws = 3", "drawz = 3", "one.toml:3 drawz: .* did you mean draws"),
        ("steps = 4", "top_p = 1.5", r"one.toml \[targets\] top_p"),
        ("scale = 2", 'scale = "much"', r"one.toml:8 \[guidance\] scale: expected float"),
        ("scale = 2", "scale = 2\nweights = { light = 1 }", "either scale or weights"),
        ('"light",', '"light", "light=x.npy",', "light .* twice"),
        ('"light",', '"=x",', "expected NAME, NAME=FILE"),
        ("draws = 3", 'samples = "0"', "samples: expected"),
        ("draws = 3", "draws = [", "not valid TOML"),
    ],
)
def test_a_mistake_in_a_plan_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    (tmp_path / "one.toml").write_text(PLAN.replace(old, new))
    with pytest.raises(ConfigError, match=message):
        read(tmp_path / "one.toml")


def test_samples_are_a_count_or_indices() -> None:
    targets = (TargetPlan(name="x"),)
    assert list(GenerationPlan(targets=targets).numbers()) == [0, 1, 2, 3]
    assert list(GenerationPlan(targets=targets, samples="0-2,7").numbers()) == [0, 1, 2, 7]
    assert list(GenerationPlan(targets=targets, samples="2").numbers()) == [0, 1]
    for samples, message in (("2-1", "expected numbers"), ("a", "expected numbers"), ("1,0-2", "twice")):
        with pytest.raises(ConfigError, match=message):
            GenerationPlan(targets=targets, samples=samples).numbers()


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_published_plans_suit_the_installed_modalities(path: Path) -> None:
    recipe = read(path)
    clip, rgb = {"plugin": "clip", "map_size": 28}, {"plugin": "rgb", "image_size": 448}
    zoo = Zoo.from_tables({"modalities": {"clip_448": clip, "rgb_448": rgb}})  # of the super-resolution plan
    names = [*written_sources(recipe.inputs), *(target.name for target in recipe.targets)]
    layout = EmbeddingLayout([zoo[name].spec for name in names])
    plan = resolved_plan(layout, recipe.target_plans(), list(written_sources(recipe.inputs)))
    assert len(plan) == len(recipe.targets) >= 2


def test_the_published_chain_from_text_to_pictures() -> None:
    """49 and 25 steps over 196 tokens, guidance 3, temperature from 6 towards 0.5, then 0.5."""
    (path,) = (path for path in PLANS if path.stem == "caption-to-rgb")
    features, picture = read(path).target_plans()
    assert [tokens_per_step(196, plan.steps, plan.schedule) for plan in (features,)] == [[4] * 49]
    assert set(tokens_per_step(196, picture.steps, picture.schedule)) == {7, 8}
    heat = temperatures([4] * 49, features.temperature, features.final_temperature, features.temperature_schedule)
    assert heat[0] == pytest.approx(0.5 + 5.5 * 192 / 196) and heat[-1] == 0.5
    assert sorted(heat, reverse=True) == heat and heat[10] < 2.6
    assert (picture.temperature, picture.temperature_schedule) == (0.5, "constant")
    assert features.guidance == picture.guidance == Guidance(scale=3.0)


def test_guidance_means_an_earlier_target_or_else_the_input_form() -> None:
    grids = [spec(name, GridLayout(shape=(4, 4))) for name in ("dark", "light", "letters")]
    patches = dataclasses.replace(spec("light_patches", PatchesLayout(shape=(4, 4), dim=3)), input_form_of="light")
    layout = EmbeddingLayout([*grids, patches])
    targets = tuple(TargetPlan(name=grid.name) for grid in grids)
    for own, common in ((Guidance(weights={"light": 2.0}), Guidance()), (None, Guidance(weights={"light": 2.0}))):
        guided = tuple(dataclasses.replace(target, guidance=own) for target in targets)
        plan = GenerationPlan(targets=guided, guidance=common)
        resolved = resolved_plan(layout, plan.target_plans(), ["light_patches"])
        weights = [target.guidance and target.guidance.weights for target in resolved]
        assert weights == [{"light_patches": 2.0}, {"light_patches": 2.0}, {"light": 2.0}]


@pytest.mark.parametrize(("scheme", "steps"), [("maskgit", 8), ("roar", 8), ("autoregressive", 16)])
def test_each_scheme_has_its_usual_number_of_steps(scheme: str, steps: int) -> None:
    modality = spec("grid", GridLayout(shape=(4, 4)))
    assert TargetPlan(name="grid", scheme=scheme).resolved(modality).steps == steps
    assert TargetPlan(name="grid", scheme=scheme, steps=99).resolved(modality).steps == 16
