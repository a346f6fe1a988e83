"""A small world of captioned images: coloured shapes on white, one, some alike, or two related.

The images are true to their captions, so that how well samples follow their prompts can be read off
their pixels (`scenes.check`). Some combinations of two objects and their relation are held out:
no training scene shows them, and prompts of them ask for what a model has never seen together.
"""

import dataclasses
import itertools
import re

import numpy as np
from PIL import Image, ImageDraw

BACKGROUND = (255, 255, 255)
COLORS = {
    "red": (220, 40, 40),
    "green": (40, 160, 70),
    "blue": (40, 80, 220),
    "yellow": (240, 200, 40),
    "purple": (170, 50, 190),
}
SHAPES = ("circle", "square", "triangle")
# Radius of a shape as a fraction of the image's shorter side.
SIZES = {"small": 0.16, "large": 0.21}
# How the first of two objects lies to the second, and the second to the first.
RELATIONS = {"left of": "right of", "above": "below"}

_PHRASES = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
# Things keep to these places: the world then has few different patches, which a small codebook
# holds and a small generator soon learns.
_POSITIONS = {
    "in the middle": (0.5, 0.5),
    "on the left": (0.25, 0.5),
    "on the right": (0.75, 0.5),
    "at the top": (0.5, 0.25),
    "at the bottom": (0.5, 0.75),
    "at the top left": (0.25, 0.25),
    "at the top right": (0.75, 0.25),
    "at the bottom left": (0.25, 0.75),
    "at the bottom right": (0.75, 0.75),
}
# Of the first and the second of two related things.
_PLACES = {"left of": ("on the left", "on the right"), "above": ("at the top", "at the bottom")}
_CORNERS = list(itertools.product((0.25, 0.75), repeat=2))
_NUMBERS = {2: "two", 3: "three"}
# How far things are scattered, of the shorter side: one of 8 patches, for the same reason.
_STEP = 1 / 8
_SUPERSAMPLING = 4


@dataclasses.dataclass(frozen=True)
class Thing:
    """One shape; `x` and `y` of its centre are fractions of the image's width and height."""

    shape: str
    color: str
    size: str
    x: float
    y: float

    @property
    def kind(self) -> tuple[str, str]:
        return self.color, self.shape


@dataclasses.dataclass(frozen=True)
class Scene:
    """What an image shows.

    `relation` is a key of `RELATIONS` and tells how the first of two things lies to the second, or
    "" where it is not a scene of two different things. `position` is that of a single thing.
    `shift` moves all things right and down, by fractions of the shorter side.
    """

    things: tuple[Thing, ...]
    relation: str = ""
    position: str = ""
    shift: tuple[float, float] = (0.0, 0.0)


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A caption and a scene that it describes."""

    caption: str
    scene: Scene


def _combinations() -> list[tuple]:
    kinds = list(itertools.product(COLORS, SHAPES))
    pairs = itertools.permutations(kinds, 2)
    return [(first, relation, second) for first, second in pairs for relation in RELATIONS]


def _held_out(share: float = 0.2) -> frozenset[tuple]:
    every = _combinations()
    chosen = np.random.default_rng(0).permutation(len(every))[: round(share * len(every))]
    return frozenset(every[i] for i in chosen)


# (kind, relation, kind), a fifth of all. Relations are those of `RELATIONS`, so that "a left of b"
# and "b right of a" are the same combination.
HELD_OUT = _held_out()
_TRAINING = [combination for combination in _combinations() if combination not in HELD_OUT]


def random_scene(rng: np.random.Generator, *, held_out: bool = False) -> Scene:
    """60 % two related things, 30 % a single one, 10 % two or three alike; held out: all two."""
    if held_out:
        return _pair(sorted(HELD_OUT), rng)
    draw = rng.random()
    if draw < 0.6:
        return _pair(_TRAINING, rng)
    shape, color = rng.choice(SHAPES), rng.choice(list(COLORS))
    if draw < 0.9:
        position = str(rng.choice(list(_POSITIONS)))
        thing = _thing(shape, color, _size(rng), *_POSITIONS[position])
        return Scene((thing,), position=position)
    places = rng.permutation(_CORNERS)[: rng.integers(2, 4)]
    return Scene(tuple(_thing(shape, color, "small", *place) for place in places))


def _pair(combinations: list[tuple], rng: np.random.Generator) -> Scene:
    first, relation, second = combinations[rng.integers(len(combinations))]
    things = (
        _thing(shape, color, _size(rng), *_POSITIONS[place])
        for (color, shape), place in zip((first, second), _PLACES[relation], strict=True)
    )
    return Scene(tuple(things), relation)


def _size(rng: np.random.Generator) -> str:
    return str(rng.choice(list(SIZES)))


def _thing(shape: str, color: str, size: str, x: float, y: float) -> Thing:
    return Thing(str(shape), str(color), size, float(x), float(y))


def scattered(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with its things moved together where they have room; its captions stay true.

    In either direction in which all of them lie in the middle, they go back or forth by `_STEP`, or
    stay, each in a third of all cases.
    """
    across, down = (
        float(rng.choice((-_STEP, 0, _STEP))) if set(places) == {0.5} else 0.0
        for places in zip(*((thing.x, thing.y) for thing in scene.things), strict=True)
    )
    return dataclasses.replace(scene, shift=(across, down))


def captions(scene: Scene, rng: np.random.Generator) -> dict[str, str]:
    """Captions of a scene, "long" with sizes and positions and "short" without, worded by `rng`.

    Whether a pair is told from its first or its second thing is drawn too.
    """
    if scene.relation:
        return _pair_captions(scene, rng)
    thing = scene.things[0]
    if len(scene.things) == 1:
        short = _name(thing)
        long = f"{_name(thing, size=True)} {scene.position}"
    else:
        short, long = (
            f"{_NUMBERS[len(scene.things)]} {_name(thing, size=size)}s" for size in (False, True)
        )
        return {"long": f"A picture of {long}.", "short": short}
    return {"long": f"A picture of a {long}.", "short": f"a {short}"}


def _pair_captions(scene: Scene, rng: np.random.Generator) -> dict[str, str]:
    def worded(template: str, *, size: bool) -> str:
        (a, b), relation = scene.things, scene.relation
        if rng.random() < 0.5:
            a, b, relation = b, a, RELATIONS[relation]
        relation = rng.choice(_PHRASES[relation])
        return template.format(a=_name(a, size=size), relation=relation, b=_name(b, size=size))

    long = ("A {a} is {relation} a {b}.", "A picture of a {a} {relation} a {b}.")
    short = ("a {a} {relation} a {b}", "{a} {relation} {b}")
    return {
        "long": worded(str(rng.choice(long)), size=True),
        "short": worded(str(rng.choice(short)), size=False),
    }


def _name(thing: Thing, *, size: bool = False) -> str:
    return f"{thing.size} " * size + f"{thing.color} {thing.shape}"


_THING = rf"(?:({'|'.join(SIZES)}) )?({'|'.join(COLORS)}) ({'|'.join(SHAPES)})"
_RELATION_OF = {phrase: relation for relation, same in _PHRASES.items() for phrase in same}
_CAPTION = re.compile(
    rf"(?:A picture of )?(?:a |({'|'.join(_NUMBERS.values())}) )?{_THING}s?"
    rf"(?:(?: is)? ({'|'.join(_RELATION_OF)}) (?:a )?{_THING}| ({'|'.join(_POSITIONS)}))?\.?",
    re.IGNORECASE,
)


def described(caption: str) -> Scene | None:
    """A scene that a caption of `captions` describes; None for captions in other words.

    Where the caption tells no size or place, things are small and in the middle.
    """
    match = _CAPTION.fullmatch(caption.strip())
    if not match:
        return None
    number, size, color, shape, phrase, *second, position = match.groups()
    if phrase:
        kinds = [(size, color, shape), tuple(second)]
        relation = _RELATION_OF[phrase]
        if relation not in RELATIONS:
            kinds.reverse()
            relation = next(name for name, inverse in RELATIONS.items() if inverse == relation)
        places = [_POSITIONS[place] for place in _PLACES[relation]]
    else:
        position, relation = position or "in the middle", ""
        count = next((n for n, word in _NUMBERS.items() if word == number), 1)
        kinds = [(size, color, shape)] * count
        places = _CORNERS[:count] if number else [_POSITIONS[position]]
    things = (
        Thing(shape, color, size or "small", *place)
        for (size, color, shape), place in zip(kinds, places, strict=True)
    )
    return Scene(tuple(things), relation, position if len(kinds) == 1 else "")


def held_out_prompts(count: int, seed: int) -> list[Prompt]:
    """Different captions of held-out scenes, 70 % long and 30 % short."""
    rng = np.random.default_rng(seed)
    prompts: dict[str, Prompt] = {}
    while len(prompts) < count:
        scene = random_scene(rng, held_out=True)
        caption = captions(scene, rng)["long" if rng.random() < 0.7 else "short"]
        prompts.setdefault(caption, Prompt(caption, scene))
    return list(prompts.values())


def render(scene: Scene, size: int | tuple[int, int]) -> np.ndarray:
    """The scene as uint8 [height, width, 3], its edges smoothed.

    Args:
      size: side of a square, or (height, width), in pixels.
    """
    sides = (size, size) if isinstance(size, int) else size
    height, width = (side * _SUPERSAMPLING for side in sides)
    image = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(image)
    side = min(height, width)
    across, down = (part * side for part in scene.shift)
    for thing in scene.things:
        x, y = thing.x * width + across, thing.y * height + down
        r = SIZES[thing.size] * side
        color = COLORS[thing.color]
        if thing.shape == "circle":
            draw.ellipse((x - r, y - r, x + r, y + r), fill=color)
        elif thing.shape == "square":
            half = 0.9 * r
            draw.rectangle((x - half, y - half, x + half, y + half), fill=color)
        else:
            draw.polygon([(x, y - r), (x - r, y + 0.8 * r), (x + r, y + 0.8 * r)], fill=color)
    return np.asarray(image.reduce(_SUPERSAMPLING))
