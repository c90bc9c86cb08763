"""4M-21's text sequences for lists of objects: spelling, round trips, any order, damage, and import."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published_tokenizers import published as published_tokenizer
from published_tokenizers import twin
from stores import writing_values
from test_ml4m_backbone import VARIANTS, published
from test_ml4m_folders import WORDS, Workspace, run, text_file
from test_ml4m_tokenizers import body_at_rest
from tokenizers import Tokenizer

from tokenizers_zoo import ModalityHandle, Zoo
from tokenizers_zoo.build.tokenizers import train_tokenizer
from tokenizers_zoo.cli.main import zoo as command
from tokenizers_zoo.contract.samples import TrainingSamples
from tokenizers_zoo.contract.spec import Crop
from tokenizers_zoo.errors import CheckpointError, ConfigError
from tokenizers_zoo.files.checkpoint import load_config
from tokenizers_zoo.files.published import PublishedCheckpoint
from tokenizers_zoo.records.config import Settings
from tokenizers_zoo.records.io import read_table
from tokenizers_zoo.testing import conformance_results
from tokenizers_zoo.tokenizers.evaluate import evaluate_tokenizer
from tokenizers_zoo.tokenizers.text_vocab import TextVocabulary
from zoo_backbone.cli.ml4m import export_command, import_command
from zoo_backbone.learn.checkpoint import load_model
from zoo_geometry import body
from zoo_geometry.human_poses import plugin as poses
from zoo_semantics.instance_maps import Instance, point_within
from zoo_semantics.sam_instance import plugin as instances

POSES, MASKS = "human_poses", "sam_instance"
SPOKEN = ("human", "pose", "global", "camera", "shape", "none", "point", "polygon")
FIRST_WORD = 4204 + 1 + len(WORDS)
POSE_TOKENIZER: dict[str, Any] = {
    "class": "VQVAE", "enc_type": "BottleneckMLP/B_2-Wi_24", "dec_type": "BottleneckMLP/B_2-Wi_24", "image_size": 1,
    "patch_size": 1, "n_channels": 207, "latent_dim": 32, "codebook_size": 1024, "quant_type": "memcodes",
    "num_codebooks": 8,
}  # fmt: skip
MASK_TOKENIZER: dict[str, Any] = {
    "class": "VQVAE", "enc_type": "vit_t_enc", "dec_type": "vit_t_dec", "image_size": 64, "patch_size": 16,
    "n_channels": 1, "latent_dim": 8, "codebook_size": 1024,
}  # fmt: skip
DOMAINS = {
    **VARIANTS["gated"], "image_size": 224, "patch_size": 16, "domains_in": ["caption", POSES, MASKS],
    "domains_out": ["caption", POSES, MASKS],
}  # fmt: skip


def words_file(path: Path) -> Path:
    """Write a published vocabulary that contains the words of all sequences."""
    return text_file(path, **{word: FIRST_WORD + k for k, word in enumerate(SPOKEN)})


class World(Workspace):
    """Published checkpoints, and the folder that `zoo import-ml4m` imported them into."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.pose_tokenizer = published_tokenizer(**POSE_TOKENIZER)
        self.mask_tokenizer = published_tokenizer(**MASK_TOKENIZER)
        self.put("4M_tokenizers_human-poses_1k_8", self.pose_tokenizer)
        self.put("4M_tokenizers_sam-instance_1k_64", self.mask_tokenizer)
        self.put("4M-21_B", published(DOMAINS, human_poses=(263, 30_000), sam_instance=(290, 30_000)))
        self.words = Tokenizer.from_file(str(words_file(self.source / "words.json")))
        self.output = self.run_import()

    def ids(self, text: str) -> list[int]:
        """Encode a sequence with the published text tokenizer."""
        ids: list[int] = self.words.encode(text).ids
        return ids


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("published"))


def codes_as_text(checkpoint: PublishedCheckpoint, item: torch.Tensor) -> str:
    """Return the published codes of one item as text."""
    codes = twin(checkpoint, {"x": item[None]})["tokens"].flatten().tolist()
    return " ".join(f"v0={code}" if code < 512 else f"v1={code - 512}" for code in codes)


AT_REST = body_at_rest(body.ADULT)
"""3 m away, pelvis in the middle, a focal length of one side of the picture."""
REST_BLOCKS = {
    "global": "global v0=999 v0=500 v0=500 v0=500 v0=0 v0=500 v0=500 v0=500 v0=0",  # y and z are negated
    # a crop of 4/3 x 0.6 = 0.8 sides: scale 2 / 3 / 0.8 = 0.833; the pelvis is 0.22 m below the body's origin
    "camera": "camera v0=92 v0=50 v0=61",
    "shape": "shape" + " v0=500" * 10,
}
REST_BOX = "human v0=200 v1=200 v2=799 v3=799"


@pytest.fixture(scope="module")
def rest_blocks(world: World) -> dict[str, str]:
    """Return the four blocks of AT_REST."""
    still = torch.eye(3).repeat(23, 1, 1).flatten()[:, None, None]
    return {"pose": f"pose {codes_as_text(world.pose_tokenizer, still)}", **REST_BLOCKS}


def rectangles(*boxes: tuple[int, int, int, int], size: int = 224) -> np.ndarray:
    """Return a map of rectangles (top, left, bottom, right) with the ids 1, 2, ..."""
    value = np.zeros((size, size), np.int32)
    for index, (top, left, bottom, right) in enumerate(boxes, 1):
        value[top:bottom, left:right] = index
    return value


# ---------------------------------------------------------------------- written by hand


def test_people_are_spelled_as_published(world: World, rest_blocks: dict[str, str]) -> None:
    handle = world.zoo[POSES]
    text = " ".join((REST_BOX, *rest_blocks.values()))
    (ids,) = handle.encode([[AT_REST]])
    assert ids.tolist() == world.ids(text) and len(ids) == 39
    smaller = {**AT_REST, "box": [0.2, 0.2, 0.8, 0.75], "shape": [1.0, -3.0, 9.0, *[0.0] * 9]}
    # the box ends higher, its middle by 0.025 of the picture: the pelvis is seen 0.025 / (1 / 3) = 0.075 m below it
    spelled = rest_blocks | {"camera": "camera v0=92 v0=50 v0=65", "shape": "shape v0=666 v0=0 v0=999" + " v0=500" * 7}
    second = " ".join(("human v0=200 v1=200 v2=799 v3=749", *spelled.values()))
    (ids_of_two,) = handle.encode([[smaller, AT_REST]])
    assert ids_of_two.tolist() == world.ids(f"{text} {second}")  # the larger box first
    assert handle.encode([[]])[0].tolist() == world.ids("none") and handle.decode([world.ids("none")]) == [[]]


def test_instances_are_spelled_as_published(world: World) -> None:
    handle = world.zoo[MASKS]
    value = rectangles((56, 112, 112, 168), (200, 10, 210, 30))
    codes = codes_as_text(world.mask_tokenizer, torch.ones(1, 64, 64))
    text = f"point v0=83 v1=139 polygon v0=112 v1=56 v2=168 v3=112 {codes}"
    text += f" point v0=204 v1=19 polygon v0=10 v1=200 v2=30 v3=210 {codes}"
    (ids,) = handle.encode([value])
    assert ids.tolist() == world.ids(text) and len(ids) == 2 * 24
    empty = rectangles()
    assert handle.encode([empty])[0].tolist() == world.ids("point v0=112 v1=112 none")
    assert handle.decode(handle.encode([empty]))[0].max() == 0


def test_coordinates_refer_to_224_pixels_for_any_map_size(world: World) -> None:
    table = world.zoo.tables["modalities"][MASKS]
    tables = {**world.zoo.tables, "modalities": {MASKS: {**table, "image_size": 56}}}
    small = Zoo.from_tables({**tables, "zoo": {"checkpoints": "tokenizers"}}, world.registry)
    (ids,) = small[MASKS].encode([rectangles((14, 28, 28, 42), size=56)])
    pieces = TextVocabulary.load(world.out / "tokenizers" / "text").decode(ids)
    assert [str(piece) for piece in pieces[:8]] == [
        "point", "v0=82", "v1=138", "polygon", "v0=112", "v1=56", "v2=168", "v3=112",
    ]  # fmt: skip


def test_a_point_is_within_its_instance() -> None:
    ring = np.ones((5, 5), bool)
    ring[1:4, 1:4] = False
    assert point_within(Instance(10, 20, 15, 25, ring)) == (10, 22)
    assert point_within(Instance(0, 0, 2, 2, np.ones((2, 2), bool))) == (0, 0)


# ---------------------------------------------------------------------- there and back


def test_people_round_trip(world: World) -> None:
    rng = np.random.default_rng(0)
    handle = world.zoo[POSES]
    people = []
    for size, at, focal in ((1.0, (0.4, 0.1, -4.0), 1.2), (0.6, (-0.5, -0.2, -3.0), 0.8)):  # a grown-up and a child
        turns = rng.normal(0, 0.3, (1, 24, 3))
        joints = body.joints_of(turns, size * body.ADULT[None], np.array([at]))
        pelvis = 0.5 + focal * body.directions(joints[:, 0]) * (1, -1)
        image = body.image_of(joints, pelvis, np.full((1, 2), focal))[0]
        low, high = image.min(axis=0), image.max(axis=0)
        assert low.min() > 0 and high.max() < 1
        people.append({
            "joint_rotations": turns[0].tolist(), "joints_camera": joints[0].tolist(), "joints_image": image.tolist(),
            "box": [*low.tolist(), *high.tolist()], "shape": [0.5] * 10,
        })  # fmt: skip
    people.sort(key=lambda human: (human["box"][0] - human["box"][2]) * (human["box"][3] - human["box"][1]))
    (recovered,) = handle.decode(handle.encode([people]))
    for decoded, human in zip(recovered, people, strict=True):
        assert np.allclose(decoded["box"], human["box"], atol=0.0006) and np.allclose(decoded["shape"], 0.5, atol=0.004)
        first, second = (body.matrices_of(np.array(p["joint_rotations"][0])) for p in (decoded, human))
        assert np.allclose(first, second, atol=0.003)
        assert np.allclose(decoded["joints_image"][0], human["joints_image"][0], atol=0.006)
    # joints in the picture, computed from the coordinates and the true rotations
    options, fitted = poses.options(handle.settings), {"skeleton": body.ADULT}
    numbers = poses.coordinates(people, fitted, options)
    joined = poses.join(numbers, poses.items(people, options), fitted, options)
    for decoded, human in zip(joined, people, strict=True):
        errors = np.linalg.norm(np.subtract(decoded["joints_image"], human["joints_image"]), axis=1)
        assert errors.max() < 0.03 and errors[0] < 1e-9  # another focal length slightly bends the body
    assert joined[0]["joints_camera"][0][2] == pytest.approx(-4.0, rel=1e-6)  # computed with the assumed focal length
    assert poses.measure([joined], [people], options)["found_joint_error"] < 150  # the child is decoded as an adult


def test_box_and_position_of_a_cut_off_person_agree(world: World) -> None:
    (visible,) = poses.crop_value(
        [AT_REST], Crop(top=0, left=0.4, height=0.6, width=0.6), poses.options(world.zoo[POSES].settings)
    )
    (decoded,) = world.zoo[POSES].decode(world.zoo[POSES].encode([[visible]]))[0]
    assert np.allclose(decoded["box"], visible["box"], atol=0.0006)
    assert np.allclose(decoded["joints_image"][0], visible["joints_image"][0], atol=0.02)


def test_only_whole_objects_that_fit_are_written(world: World) -> None:
    people = [{**AT_REST, "box": [0.2, 0.2, 0.8, 0.8 - 0.02 * k]} for k in range(9)]
    (ids,) = world.zoo[POSES].encode([people])
    assert len(ids) == 6 * 39 and len(world.zoo[POSES].decode([ids])[0]) == 6
    tables = json.loads(json.dumps(world.zoo.tables))
    tables["modalities"][POSES]["max_length"] = 80
    few_people = Zoo.from_tables(tables, world.registry)[POSES]
    assert np.array_equal(few_people.encode([people])[0], ids[:78])


# ---------------------------------------------------------------------- read in any order, and damaged


def levels_of(world: World, name: str, text: str) -> tuple[np.ndarray, np.ndarray]:
    levels, codes = world.zoo[name].tokenizer.grammar.read(world.ids(text))
    return levels, codes


def test_complete_people_among_damaged_ones_are_read(world: World, rest_blocks: dict[str, str]) -> None:
    blocks = list(rest_blocks.values())
    complete = " ".join((REST_BOX, *blocks))

    def people(text: str) -> int:
        levels, _ = levels_of(world, POSES, text)
        decoded = world.zoo[POSES].decode([world.ids(text)])[0]
        assert len(decoded) == len(levels)
        return len(levels)

    reordered = " ".join((REST_BOX, *reversed(blocks)))
    for array, expected in zip(levels_of(world, POSES, reordered), levels_of(world, POSES, complete), strict=True):
        assert np.array_equal(array, expected) and len(array) == 1, "blocks may come in any order"
    assert people(f"{complete} {complete}") == 2
    assert people(" ".join(complete.split()[:-1])) == 0  # cut off
    assert people(f"{REST_BOX} {blocks[0]} {complete}") == 1  # the first person is incomplete
    halves = " ".join((REST_BOX, *blocks[:2])), " ".join((REST_BOX, *blocks[2:]))
    assert people(" ".join(halves)) == 0  # the halves belong to two people
    assert people(f"v0=3 dog {complete} none") == 1
    assert people(complete.replace("global v0=999", "global v2=999")) == 0
    assert people(complete.replace("camera", "camera v0=3")) == 0  # one number too many
    first = rest_blocks["pose"].split()[1]
    assert people(complete.replace(f"pose {first}", "pose v0=512", 1)) == 0  # not a code: code 512 is v1=0
    assert people(complete.replace(f"pose {first}", "pose v1=511", 1)) == 1


def test_complete_instances_among_damaged_ones_are_read(world: World) -> None:
    codes = "v0=5 v1=511 " * 8

    def polygon(left: int) -> str:
        return f"polygon v0={left} v1=20 v2=100 v3=120 {codes}"

    def boxes(text: str) -> list[list[int]]:
        levels, codes_read = levels_of(world, MASKS, text)
        assert (codes_read == [5, 1023] * 8).all()
        world.zoo[MASKS].check(world.zoo[MASKS].decode([world.ids(text)])[0])
        return levels[:, [0, 1, 2]].tolist()

    assert boxes(f"point v0=30 v1=40 {polygon(1)} {polygon(2)} point v0=9 v1=9 none") == [[30, 40, 1], [30, 40, 2]]
    twice = f"point v0=3 v1=4 {polygon(1)} {polygon(2)} point v0=5 v1=6 {polygon(1)}"
    assert boxes(twice) == [[3, 4, 1], [3, 4, 2]], "in the order in which they came first"
    assert boxes(f"point v0=3 v1=4 polygon v0=1 v0=5 {polygon(2)}") == [[3, 4, 2]]
    assert boxes(f"{polygon(1)} point v0=3 {polygon(2)} point v0=3 v1=4 {polygon(3)}") == [[3, 4, 3]]
    assert boxes(f"point v0=3 v1=4 {polygon(1)[:-7]}") == []


def test_boxes_without_area_in_the_picture_are_empty(world: World) -> None:
    codes = "v0=5 v1=511 " * 8
    for box in ("v0=500 v1=20 v2=900 v3=120", "v0=100 v1=20 v2=50 v3=120"):
        text = f"point v0=3 v1=4 polygon {box} {codes}"
        assert world.zoo[MASKS].decode([world.ids(text)])[0].max() == 0


# ---------------------------------------------------------------------- imported, trained, checked


def test_a_published_backbone_uses_the_installed_plugins(world: World, tmp_path: Path) -> None:
    assert "_4m" not in world.output and "other tokens" not in world.output
    assert world.zoo.names() == ["caption", POSES, MASKS] and world.zoo.problems() == {}
    model = load_model(world.backbone, [world.zoo[name].spec for name in world.zoo.names()])
    assert {spec.name for spec in model.layout.specs} == {"caption", POSES, MASKS}
    fingerprints = load_config(world.backbone)["fingerprints"]
    assert fingerprints == {name: world.zoo[name].fingerprint for name in world.zoo.names()}
    (tmp_path / "people.json").write_text(json.dumps([AT_REST]))
    generate = ("--registry", world.zoo.path, "backbone", "generate", world.backbone)
    arguments = ("--input", f"{POSES}={tmp_path / 'people.json'}", "--target", MASKS, "--set", "max_length=30")
    run(command, *generate, *arguments, "--out", tmp_path / "masks")
    assert len(list((tmp_path / "masks").rglob(f"{MASKS}.png"))) == 1
    run(export_command, world.backbone, tmp_path / "back")
    original = world.source / "4M-21_B" / "model.safetensors"
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == original.read_bytes()


def test_parts_may_be_imported_one_by_one_in_any_order(world: World, tmp_path: Path) -> None:
    """After the backbone alone, errors name the missing parts; once these are imported, the result is the same."""
    out = tmp_path / "out"

    def handle() -> ModalityHandle:
        return Zoo.from_toml(out / "registry.toml")[POSES]

    output = run(import_command, world.source / "4M-21_B", out)
    assert "no tokenizer yet: " in output and POSES in output.partition("no tokenizer yet: ")[2]
    assert handle().spec.own_tokenizer and not handle().has_tokenizer
    with pytest.raises(CheckpointError, match=r"human_poses: no tokenizer at .*/human_poses"):
        handle().encode([[AT_REST]])
    run(import_command, world.source / "4M_tokenizers_human-poses_1k_8", out)
    assert not handle().has_tokenizer
    with pytest.raises(CheckpointError, match=r"human_poses: no vocabulary text at .*text"):
        handle().encode([[AT_REST]])
    output = run(import_command, world.source / "words.json", out)
    assert POSES not in output
    assert handle().fingerprint == world.zoo[POSES].fingerprint
    codecs = read_table(out / "backbone/config.json")["fingerprints"]
    assert codecs[POSES] == handle().fingerprint and MASKS not in codecs
    assert np.array_equal(handle().encode([[AT_REST]])[0], world.zoo[POSES].encode([[AT_REST]])[0])
    assert load_model(out / "backbone", [handle().spec])


def test_fingerprints_change_with_the_vocabulary_but_not_with_growth(world: World, tmp_path: Path) -> None:
    handle = world.zoo[POSES]
    source = world.out / "tokenizers" / "text"
    words = TextVocabulary.load(source)
    words.grow(["<more>"]).save(tmp_path / "grown")
    assert handle.at(handle.checkpoint, tmp_path / "grown").fingerprint == handle.fingerprint
    text = text_file(tmp_path / "other.json", **{word: FIRST_WORD + k for k, word in enumerate(reversed(SPOKEN))})
    TextVocabulary(words.config, published=text.read_text()).save(tmp_path / "other")
    assert handle.at(handle.checkpoint, tmp_path / "other").fingerprint != handle.fingerprint
    TextVocabulary(words.config, published=text_file(tmp_path / "few.json").read_text()).save(tmp_path / "few")
    with pytest.raises(CheckpointError, match=r"human_poses: .*few: .* 'human'"):
        handle.at(handle.checkpoint, tmp_path / "few").encode([[]])


@pytest.mark.parametrize("name", [POSES, MASKS])
def test_a_vocabulary_that_is_too_small_is_refused(name: str) -> None:
    plugin = {POSES: poses, MASKS: instances}[name]
    with pytest.raises(ConfigError, match=rf"{name}: .*coordinate_bins .*1000 .*256"):
        plugin.modality_spec(Settings(name, {"layout": "4m"}, vocabularies={"text": {}}))


SMALL: dict[str, dict[str, Any]] = {
    POSES: {"layout": "4m"},
    MASKS: {"layout": "4m", "mask_size": 16, "tokenizer": {"patch_size": 8, "width": 16}},
}


def small(folder: Path, *names: str) -> Zoo:
    zoo = {"checkpoints": "tokenizers", "image_size": 32, "modalities": list(names)}
    tables = {"zoo": zoo, "modalities": SMALL, "vocabularies": {"text": {"preset": "4m"}}}
    return Zoo.from_tables(tables, folder / "registry.toml")


@pytest.mark.parametrize("name", [POSES, MASKS])
def test_published_sequences_keep_the_contract(name: str, tmp_path: Path) -> None:
    results = conformance_results(small(tmp_path, name), name)
    assert [f"{result.name}: {result.message}" for result in results if not result.passed] == []
    assert not (tmp_path / "tokenizers").exists()  # the checks remove their vocabulary


def test_one_sequence_modality_from_training_to_stored_tokens(tmp_path: Path) -> None:
    """Training also makes the vocabulary; stored tokens stay valid after the vocabulary has grown."""
    zoo = small(tmp_path, MASKS, "caption")
    value = rectangles((4, 4, 20, 20), size=32)
    for split in ("train", "test"):
        with writing_values(tmp_path / "data", split, MASKS) as shard:
            for key in "abc":
                data, extension = zoo[MASKS].write(value)
                shard.add(key, data, extension)
    folder = train_tokenizer(zoo, MASKS, tmp_path / "data", overrides={"steps": 2, "batch_size": 2, "eval_every": 2})
    assert folder == tmp_path / "tokenizers" / MASKS
    assert (tmp_path / "tokenizers" / "text" / "config.json").is_file()
    handle = zoo[MASKS]
    (ids,) = handle.encode([value])
    handle.check(handle.decode([ids])[0])
    old, identity = handle.tokenizer, handle.fingerprint
    words = TrainingSamples(train=["a dog"], test=[], special_tokens=("<more>",))
    zoo["caption"].train_tokenizer(words, tmp_path / "tokenizers" / "text", seed=0)
    assert handle.tokenizer is not old and handle.tokenizer.grammar.vocabulary.used > old.grammar.vocabulary.used
    assert handle.fingerprint == identity and np.array_equal(handle.encode([value])[0], ids)
    assert evaluate_tokenizer(zoo[MASKS], tmp_path / "data", write=True).samples == 3


def test_training_needs_no_vocabulary(tmp_path: Path) -> None:
    values = [[AT_REST], [], [AT_REST, AT_REST]] * 3
    handle = small(tmp_path, POSES)[POSES]
    overrides = {"steps": 2, "batch_size": 4, "eval_every": 2}
    folder = handle.train_tokenizer(TrainingSamples(train=values, test=values), tmp_path / "own", seed=0, **overrides)
    meaning = load_config(folder)["meaning"]
    assert meaning["bins"] == 1000 and len(meaning["axes"]) == 26
