"""A small grammar for English captions: the room, things with counts, colours and places, relations.

Only what covers enough of the picture is named. Left and right are the viewer's.
"""

from __future__ import annotations

import bisect
import itertools
import math
import random
from collections.abc import Mapping

from zoo_scenes.observe import VisibleBody
from zoo_scenes.scene import Scene

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")
_SIDES = ("far left", "left", "middle", "right", "far right")
_PLURALS = {"box": "boxes", "person": "people", "books": "books"}


def caption(rng: random.Random, scene: Scene, visible: list[VisibleBody], shares: Mapping[str, float]) -> str:
    """Write one to four sentences about the picture; `shares` are the classes' shares of the picture."""
    visible = [item for item in visible if item.clear]
    speaker = _Speaker(rng, visible)
    of_room = room(scene, shares)
    pitch = math.degrees(scene.camera.pitch)
    direction = "straight ahead" if pitch > -7 else "slightly down" if pitch > -15 else "down"
    view = [f"The camera looks {direction}."] if rng.random() < 0.8 else []
    if not visible:
        return " ".join([f"An empty room{of_room}.", *view])
    relations = speaker.relations()
    shape = rng.random()
    if shape < 0.2 and relations:
        details = [f"The room has{of_room.removeprefix(' with')}."] if of_room else []
        return " ".join([relations[0], *rng.choice((details, relations[1:])), *view])
    speaker.mentioned.clear()
    listed = speaker.listing(rng.choice((2, 3, 4, 4)))
    if shape < 0.5:
        inside = "In a room{room} there {are} {things}."
        opener = rng.choice(("A room{room}: {things}.", "{Things} in a room{room}.", inside))
    elif shape < 0.75:
        opener = rng.choice(("There {are} {things}.", "The picture shows {things}.", "We see {things}."))
    else:
        opener = rng.choice(("A room{room}. There {are} {things}.", "This room{has}. It contains {things}."))
    has = f" has{of_room.removeprefix(' with')}" if of_room else " is indoors"
    are = "are" if speaker.plural_first else "is"
    text = opener.format(room=of_room, things=listed, Things=capital(listed), are=are, has=has)
    details = speaker.relations()[: rng.choice((0, 1)) if len(speaker.mentioned) < 4 else 0]
    return " ".join([text, *details, *view])


class _Speaker:
    """Names the things of one picture, with "a" first and "the" after."""

    def __init__(self, rng: random.Random, visible: list[VisibleBody]) -> None:
        self.rng = rng
        self.visible = visible
        self.groups: dict[str, list[VisibleBody]] = {}
        for item in visible:
            self.groups.setdefault(phrase(item), []).append(item)
        self.mentioned: set[str] = set()
        self.plural_first = False

    def listing(self, max_groups: int) -> str:
        """Up to `max_groups` groups of things, the larger ones likelier, with counts and mostly with places."""
        groups = [words for words in self.groups if words != "books"] or list(self.groups)
        mentions = groups[:max_groups]
        if self.rng.random() < 0.2:
            mentions = sorted(self.rng.sample(groups, min(max_groups, len(groups))), key=groups.index)
        self.mentioned.update(mentions)
        parts = []
        for words in mentions:
            group = self.groups[words]
            location = group_phrase(group) if self.rng.random() < 0.9 else ""
            parts.append(f"{counted(words, len(group))} {location}".rstrip())
        first = self.groups[mentions[0]]
        self.plural_first = len(first) > 1 or first[0].body.label == "books"
        return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"

    def name(self, item: VisibleBody) -> str:
        """ "a red ball", "the red ball" once it was mentioned, or "one of the red balls"; "books", "the books"."""
        words = phrase(item)
        count = len(self.groups[words])
        if words not in self.mentioned:
            self.mentioned.add(words)
            return article(words)
        return definite(words) if count == 1 else f"one of the {plural(words)}"

    def relations(self) -> list[str]:
        """Sentences about pairs of things and about people, in random order; no thing is the subject twice."""
        by_index = {item.index: item for item in self.visible}
        candidates: list[tuple[float, VisibleBody, str, VisibleBody | None]] = []
        for item in self.visible:
            carrier = by_index.get(item.body.on) if item.body.on is not None else None
            if carrier is None:
                continue
            if item.body.label == "person":
                pattern = self.rng.choice(("{a} is sitting on {b}", "{a} sits on {b}"))
            elif item.body.label == "books":
                pattern = "{b} is filled with books"
            else:
                pattern = self.rng.choice(("{a} is on {b}", "{a} lies on {b}", "on {b} there is {a}"))
            candidates.append((self.rng.random() + 0.5, item, pattern, carrier))
        for item in self.visible:
            if item.body.label == "person" and item.body.on is None:
                candidates.append((self.rng.random() + 0.3, item, f"{{a}} is {item.body.noun}", None))
        for item, neighbour in itertools.product(self.visible[:7], repeat=2):
            apart = item.body.on != neighbour.index and neighbour.body.on != item.index
            if item.pixels < neighbour.pixels and apart and (pattern := relation(item, neighbour)):
                candidates.append((self.rng.random(), item, f"{{a}} {pattern} {{b}}", neighbour))
        self.rng.shuffle(candidates)
        candidates.sort(key=lambda entry: -entry[0])
        subjects: set[int] = set()
        sentences = []
        for _, subject, pattern, partner in candidates:
            if subject.index in subjects:
                continue
            subjects.add(subject.index)
            a = self.name(subject)
            b = self.name(partner) if partner else ""
            if a in ("books", "the books"):
                pattern = pattern.replace("{a} is ", "{a} are ")
            sentences.append(capital(pattern.format(a=a, b=b)) + ".")
            if len(sentences) == 2:
                break
        return sentences


def room(scene: Scene, shares: Mapping[str, float]) -> str:
    """ " with cream walls and a wooden floor", of what can be seen; "" for neither."""
    words = []
    if shares.get("wall", 0) > 0.03:
        kind, colour = scene.wall_kind, scene.wall_colour
        words.append("brick walls" if kind == "brick" else f"{kind} {colour} walls".strip())
    if shares.get("floor", 0) > 0.03:
        words.append(article(f"{scene.floor_kind} floor"))
    return f" with {' and '.join(words)}" if words else ""


def position_phrase(item: VisibleBody) -> str:
    """Where a thing is for the viewer, such as "on the left" or "in the middle at the back"."""
    return f"{side(item)} at the back" if item.depth > 4 else f"{side(item)} close by" if item.depth < 2 else side(item)


def side(item: VisibleBody) -> str:
    """Where a thing is from left to right: a place by the middle of its box, from where to where if that is wide."""
    left, _, right, _ = item.box
    if right - left > 0.3 and (start := _SIDES[_step(left)]) != (end := _SIDES[_step(right)]):
        return f"from the {start} to the {end}"
    side_name = _SIDES[_step((left + right) / 2)]
    return f"in the {side_name}" if side_name == "middle" else f"on the {side_name}"


def _step(x: float) -> int:
    """Return which of the five sides a place in [0, 1] is on."""
    return bisect.bisect((0.18, 0.38, 0.62, 0.82), x)


def group_phrase(group: list[VisibleBody]) -> str:
    """Where the things of a group are: one place, two sides, or "" where it would take more words."""
    if len(group) == 1:
        return position_phrase(group[0])
    sides = list(dict.fromkeys(side(item) for item in sorted(group, key=lambda item: item.box[0] + item.box[2])))
    return " and ".join(sides) if len(sides) <= 2 else ""


def relation(item: VisibleBody, neighbour: VisibleBody) -> str:
    """How `item` lies to `neighbour` for the viewer, "" where nothing simple holds."""
    left, _, right, bottom = item.box
    other_left, other_top, other_right, _ = neighbour.box
    overlap = min(right, other_right) - max(left, other_left)
    shift = (left + right - other_left - other_right) / 2
    hangs = item.body.label in ("window", "picture")
    stands = neighbour.body.label in ("table", "chair", "sofa", "shelf")
    if hangs and stands and overlap > 0.05 and bottom < other_top + 0.02:
        return "is above"
    if hangs or neighbour.body.label in ("window", "picture", "rug") or item.body.label == "rug":
        return ""
    if overlap > 0.02 and abs(item.depth - neighbour.depth) > 0.5:
        return "is in front of" if item.depth < neighbour.depth else "is behind"
    if overlap < 0 and abs(item.depth - neighbour.depth) < 0.45 and -overlap < 0.08:
        return "is next to"
    if overlap < -0.02:
        return "is to the left of" if shift < 0 else "is to the right of"
    return ""


def phrase(item: VisibleBody) -> str:
    """Name a thing without an article: "red ball", "person in a blue shirt"."""
    body = item.body
    if body.label == "person":
        return f"person in {article(f'{body.colour} shirt')}"
    if body.label in ("plant", "lamp"):
        return body.noun
    first, _, rest = body.noun.rpartition(" ")
    before, after = (f"{first} ", "") if first in ("low", "round", "striped") else ("", f"{first} " if first else "")
    colour = f"{body.colour} " if body.colour else ""
    return f"{before}{colour}{after}{rest}"


def definite(words: str) -> str:
    """ "the red ball", "the person in the red shirt"."""
    head, separator, rest = words.partition(" in ")
    return f"the {head}{separator}the {rest.split(' ', 1)[1]}" if separator else f"the {words}"


def plural(words: str) -> str:
    """ "red boxes", "people in blue shirts"."""
    head, separator, rest = words.partition(" in ")
    if separator:
        return f"people in {rest.split(' ', 1)[1]}s"
    *first, last = head.split(" ")
    return " ".join([*first, _PLURALS.get(last, f"{last}s")])


def counted(words: str, count: int) -> str:
    """ "a red ball", "two red balls", "several red balls"."""
    if words.endswith("books"):
        return "books"
    if count == 1:
        return article(words)
    number = _NUMBERS[count] if count < len(_NUMBERS) else "several"
    return f"{number} {plural(words)}"


def article(words: str) -> str:
    """The words with "a" or "an"; "books" as they are."""
    return words if words == "books" else f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def capital(text: str) -> str:
    """The text with a capital letter first."""
    return text[0].upper() + text[1:]


_ACROSS = ("far left", "left", "left centre", "centre", "right centre", "right", "far right")
_DOWN = ("top", "high", "upper middle", "middle", "lower middle", "low", "bottom")


def layout(scene: Scene, boxed: list[VisibleBody], shares: Mapping[str, float]) -> str:
    """A sentence about the room, and one for each thing; `shares` are the classes' shares of the picture."""
    sentences = [f"A room{room(scene, shares)}." if boxed else f"An empty room{room(scene, shares)}."]
    for item in sorted(boxed, key=lambda item: (item.box[0] - item.box[2]) * (item.box[3] - item.box[1])):
        name = phrase(item) if item.clear else item.body.label  # "a person" whose shirt cannot be seen
        sentences.append(f"{capital(article(name))} {_extent(item)}.")
    return " ".join(sentences)


def _extent(item: VisibleBody) -> str:
    """Describe the extent of a thing's box: "from left to centre, high to middle", or "on the left, low"."""
    left, top, right, bottom = item.box
    steps = len(_DOWN)
    low_x, low_y = (min(int(edge * steps), steps - 1) for edge in (left, top))
    high_x, high_y = (max(math.ceil(edge * steps) - 1, 0) for edge in (right, bottom))
    first, last, upper, lower = _ACROSS[low_x], _ACROSS[high_x], _DOWN[low_y], _DOWN[high_y]
    across = f"from {first} to {last}" if first != last else f"{'in' if 'centre' in first else 'on'} the {first}"
    return f"{across}, {upper if upper == lower else f'{upper} to {lower}'}"
