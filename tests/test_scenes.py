"""The `scenes` source: determinism, settings, and consistency between the modalities of a sample."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import random
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest

import zoo_scenes
from tokenizers_zoo.config import Settings, field_docstrings
from zoo_scenes import captions
from zoo_scenes.compose import compose
from zoo_scenes.observe import observe
from zoo_scenes.render import render
from zoo_scenes.scene import CLASSES, COLOURS, Body, SceneSettings
from zoo_scenes.stage import build


def samples(split: str = "train", count: int = 40, seed: int = 0, **table: Any) -> Any:
    return zoo_scenes.scenes.samples(split, count, seed, Settings("scenes", table))


def digest(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return hashlib.sha256(value.tobytes() + str((value.dtype, value.shape)).encode()).hexdigest()
    if isinstance(value, dict):
        return hashlib.sha256("".join(f"{k}{digest(value[k])}" for k in sorted(value)).encode()).hexdigest()
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


@pytest.fixture(scope="module")
def scene_samples() -> list[tuple[str, Any]]:
    return list(samples(count=40))


# -- consistency between modalities -----------------------------------------------------------------------------------


def test_pictures_are_varied(scene_samples: list[tuple[str, Any]]) -> None:
    present = np.unique(np.concatenate([np.unique(sample["semseg"]) for _, sample in scene_samples]))
    assert set(present) == set(range(1, len(CLASSES)))
    assert 0.3 < np.mean([sample["metadata"]["brightness"] for _, sample in scene_samples]) < 0.8
    assert len({sample["caption"] for _, sample in scene_samples}) == len(scene_samples)


def test_boxes_are_those_of_the_largest_instances(scene_samples: list[tuple[str, Any]]) -> None:
    for _, sample in scene_samples:
        instances, size = sample["sam_instance"], 64
        counts = np.bincount(instances.reshape(-1))[1:]
        assert (np.diff(counts) <= 0).all() and counts.min() > 0
        visible_count = int((counts >= 0.003 * size * size).sum())
        assert len(sample["boxes"]) == min(8, visible_count)
        for number, box in enumerate(sample["boxes"], 1):
            rows, columns = np.nonzero(instances == number)
            expected = [columns.min() / size, rows.min() / size, (columns.max() + 1) / size, (rows.max() + 1) / size]
            assert box["box"] == expected
            assert {CLASSES[k] for k in np.unique(sample["semseg"][instances == number])} == {box["label"]}
        background = sample["semseg"][instances == 0]
        assert {CLASSES[k] for k in np.unique(background)} <= {"floor", "wall", "ceiling"}


NOUNS = {
    "table": "table", "chair": "chair", "armchair": "sofa", "sofa": "sofa", "bookcase": "shelf", "books": "books",
    "lamp": "lamp", "plant": "plant", "box": "box", "ball": "ball", "cylinder": "cylinder", "person": "person",
    "people": "person", "window": "window", "door": "door", "picture": "picture", "rug": "rug", "floor": "floor",
    "walls": "wall",
}  # fmt: skip


def test_captions_name_only_what_is_seen() -> None:
    settings = SceneSettings(image_size=48)
    mentioned: Counter[str] = Counter()
    for number in range(60):
        stage = build(compose(random.Random(f"caption {number}"), settings))
        _, _, visible, shares = observe(stage, render(stage, settings.image_size), settings.min_visible)
        text = captions.caption(random.Random(number), stage.scene, visible, shares)
        assert re.fullmatch(r"([A-Z][a-z ,:]+\. ?){1,4}", text) and not re.search(r"  | \.| ,", text), text
        plain_text = re.sub(r"^The picture shows |\. The picture shows ", " ", text).lower()
        words = re.findall(r"[a-z]+", plain_text)
        counts = Counter(item.body.label for item in visible)
        for word in words:
            name = NOUNS.get(word) or NOUNS.get(word.removesuffix("s")) or NOUNS.get(word.removesuffix("es"))
            if name in ("floor", "wall"):
                assert shares[name] > 0.03
            elif name:
                mentioned[name] += 1
                assert counts[name], text
        for colour, noun in re.findall(rf"\b({'|'.join(COLOURS)}) (ball|box|cylinder|sofa|chair)\b", plain_text):
            assert any((item.body.colour, item.body.noun) == (colour, noun) for item in visible), text
        for number_word, noun in re.findall(r"\b(two|three|four|five) (window|picture)s\b", plain_text):
            assert counts[noun] == {"two": 2, "three": 3, "four": 4, "five": 5}[number_word]
    assert set(mentioned) == set(NOUNS.values()) - {"floor", "wall"}


def test_a_layout_names_each_box_and_where_it_reaches() -> None:
    described = samples(count=30, image_size=48)
    for (key, sample), (_, plain) in zip(samples(count=30, image_size=48, captions="layout"), described, strict=True):
        first, *sentences = sample["caption"].removesuffix(".").split(". ")
        assert re.fullmatch(r"An? (empty )?room( with [a-z ]+)?", first), first
        by_area = sorted(sample["boxes"], key=lambda box: -np.prod(np.subtract(box["box"][2:], box["box"][:2])))
        assert len(sentences) == len(by_area), key
        for sentence, entry in zip(sentences, by_area, strict=True):
            match = re.fullmatch(r"((?:A|An) [a-z ]+?|Books) (?:(?:on|in) the|from) ([a-z ]+), ([a-z ]+)", sentence)
            assert match, sentence
            noun = match[1].removeprefix("A ").partition(" in ")[0].split()[-1].lower()
            assert NOUNS[noun] == entry["label"], sentence
            left, top, right, bottom = entry["box"]
            for words, steps, low, high in (
                (match[2], captions._ACROSS, left, right), (match[3], captions._DOWN, top, bottom)
            ):  # fmt: skip
                first_step, _, last_step = words.partition(" to ")
                begins, ends = steps.index(first_step), steps.index(last_step or first_step)
                assert begins / 7 <= low < (begins + 1) / 7 and ends / 7 < high <= (ends + 1) / 7, sentence
        assert {name: digest(value) for name, value in sample.items() if name != "caption"} == {
            name: digest(value) for name, value in plain.items() if name != "caption"
        }


def test_how_a_layout_names_places_people_and_an_empty_room() -> None:
    assert captions._extent(visible_item("box", (0.3, 0.9, 0.4, 1), 3)) == "in the left centre, bottom"
    assert captions._extent(visible_item("box", (0, 0, 0.1, 0.1), 3)) == "on the far left, top"
    person = dataclasses.replace(visible_item("standing", (0, 0, 0.1, 0.1), 3, "person"), clear=False)
    scene = compose(random.Random(0), SceneSettings())
    for clear, words in ((False, "A person on"), (True, "A person in a red shirt on")):
        assert words in captions.layout(scene, [dataclasses.replace(person, clear=clear)], {})
    assert re.fullmatch(r"An empty room with [a-z ]+\.", captions.layout(scene, [], {"wall": 0.5, "floor": 0.2}))


def visible_item(
    noun: str, box: tuple[float, float, float, float], depth: float, label: str = "box"
) -> captions.VisibleBody:
    item = Body(label, noun, "red", [], (0.1, 0.1, 0.1))
    return captions.VisibleBody(0, item, 10, box, depth, True)


def test_relations_are_those_of_the_boxes_and_depths() -> None:
    left, right = visible_item("box", (0.1, 0.5, 0.3, 0.7), 3.0), visible_item("ball", (0.6, 0.5, 0.8, 0.7), 3.0)
    assert captions.position_phrase(left) == "on the left" and captions.position_phrase(right) == "on the right"
    assert captions.position_phrase(visible_item("box", (0.3, 0, 0.6, 1), 1.5)) == "in the middle close by"
    assert captions.position_phrase(visible_item("box", (0.7, 0, 0.8, 1), 4.5)) == "on the right at the back"
    assert captions.position_phrase(visible_item("box", (0.8, 0, 0.9, 1), 3)) == "on the far right"
    wide, rug = visible_item("sofa", (0.1, 0, 0.45, 1), 3), visible_item("rug", (0.0, 0, 1.0, 1), 4.5)
    assert captions.position_phrase(wide) == "from the far left to the middle"
    assert captions.position_phrase(rug) == "from the far left to the far right at the back"
    assert captions.group_phrase([right, left]) == "on the left and on the right"
    assert captions.group_phrase([left, left]) == "on the left" and captions.group_phrase([right]) == "on the right"
    assert captions.group_phrase([left, right, wide]) == ""
    assert captions.relation(left, right) == "is to the left of"
    assert captions.relation(right, left) == "is to the right of"
    near = visible_item("box", (0.15, 0.6, 0.4, 0.9), 1.5)
    assert captions.relation(near, left) == "is in front of"
    assert captions.relation(left, near) == "is behind"
    beside = visible_item("box", (0.32, 0.5, 0.4, 0.7), 3.1)
    assert captions.relation(beside, left) == "is next to"
    picture = visible_item("picture", (0.1, 0.1, 0.3, 0.3), 4, "picture")
    sofa = visible_item("sofa", (0.1, 0.5, 0.6, 0.8), 3, "sofa")
    assert captions.relation(picture, sofa) == "is above"
    assert captions.relation(sofa, picture) == ""


def test_books_are_many() -> None:
    books = dataclasses.replace(
        visible_item("books", (0.1, 0.5, 0.3, 0.7), 3, "books"), body=Body("books", "books", "", [], (1, 1, 1))
    )
    lamp = dataclasses.replace(visible_item("floor lamp", (0.6, 0.5, 0.8, 0.7), 3, "lamp"), index=1, pixels=20)
    speaker = captions._Speaker(random.Random(0), [books, lamp])
    assert speaker.relations() == ["Books are to the left of a floor lamp."]
    assert speaker.relations() == ["The books are to the left of the floor lamp."]
    speaker = captions._Speaker(random.Random(0), [books, dataclasses.replace(lamp, pixels=5)])
    assert speaker.relations() == ["A floor lamp is to the right of books."]
    assert speaker.relations() == ["The floor lamp is to the right of the books."]
    assert captions.counted("books", 1) == captions.counted("books", 2) == captions.article("books") == "books"


def test_phrases_by_hand() -> None:
    table = Body("table", "round table", "dark wooden", [], (1, 1, 1))
    orange = Body("box", "box", "orange", [], (1, 1, 1))
    person = Body("person", "waving", "blue", [], (1, 1, 1))
    words = [
        captions.phrase(captions.VisibleBody(0, item, 1, (0, 0, 1, 1), 1.0, True)) for item in (table, orange, person)
    ]
    assert words == ["round dark wooden table", "orange box", "person in a blue shirt"]
    assert captions.counted(words[1], 1) == "an orange box"
    assert captions.counted(words[1], 3) == "three orange boxes"
    assert captions.counted(words[2], 2) == "two people in blue shirts"
    assert captions.definite(words[2]) == "the person in the blue shirt"


def test_colour_names_are_the_colours_seen() -> None:
    """The mean hue of plain balls and boxes is closest to the hue of their colour name."""
    settings, right, wrong = SceneSettings(image_size=48), 0, 0
    vivid = ("red", "yellow", "green", "blue", "purple", "orange")

    def hue(colour: Any) -> float:
        r, g, b = (float(part) for part in colour)
        return math.atan2(math.sqrt(3) * (g - b), 2 * r - g - b)

    for number in range(90):
        stage = build(compose(random.Random(f"colour {number}"), settings))
        view = render(stage, settings.image_size)
        for item in observe(stage, view, settings.min_visible)[2]:
            part = item.body.parts[0]
            if item.body.free and item.body.colour in vivid and part.surface.texture == "plain" and item.pixels > 20:
                mean = view.rgb[:, view.geoms == stage.owners.index(item.index)].mean(1)
                errors = {name: abs(math.remainder(hue(mean) - hue(COLOURS[name]), 2 * math.pi)) for name in vivid}
                good = min(errors, key=lambda name: errors[name]) == item.body.colour
                right, wrong = right + good, wrong + (not good)
    assert right > 20 and right > 12 * wrong


# -- settings and contract --------------------------------------------------------------------------------------------


def test_documented_ranges_of_settings_are_the_checked_ones() -> None:
    meanings = field_docstrings(SceneSettings)
    for name in ("image_size", "people", "clutter", "min_fov", "max_boxes", "min_visible"):
        with pytest.raises(ValueError, match=name) as caught:
            SceneSettings(**{name: -1})
        low, high = map(float, re.findall(r"in \[(\S+), (\S+)\]", str(caught.value))[0])
        assert f"{low:g} to {high:g}" in meanings[name], name


def test_settings_change_the_scenes() -> None:
    for _, sample in samples(count=8, people=0, clutter=0, max_boxes=3, image_size=32):
        assert not {"person", "box", "ball", "cylinder"} & {CLASSES[k] for k in np.unique(sample["semseg"])}
        assert len(sample["boxes"]) <= 3
    for table, low, high in (({}, 62, 68), ({"min_fov": 40.0, "max_fov": 41.0}, 40, 41)):
        lenses = [sample["metadata"]["camera_fov"] for _, sample in samples(count=6, **table)]
        assert low <= min(lenses) < max(lenses) <= high
    (_, usual), (_, lit), (_, strict) = (
        samples(1, **table)[0] for table in ({}, {"shadows": False}, {"min_visible": 0.1})
    )
    assert (lit["rgb"] >= usual["rgb"]).all() and (lit["rgb"] > usual["rgb"] + 0.02).any()
    assert np.array_equal(lit["depth"], usual["depth"]) and np.array_equal(strict["rgb"], usual["rgb"])
    assert strict["boxes"] == usual["boxes"][: len(strict["boxes"])] != usual["boxes"]
