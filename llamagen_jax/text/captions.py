"""Caption cleaning: what the text encoder of the original LlamaGen was always given.

Its rules (github.com/FoundationVision/LlamaGen, `language/t5.py`, from DeepFloyd IF) remove what
web pages leave in captions: links, markup, file names, article numbers, sizes and shop phrases.
Released text-conditional weights were trained on captions cleaned so, hence the rules are kept one
for one and in their order, also where they are odd.
"""

import functools
import html
import re
import urllib.parse

from llamagen_jax.errors import InputError

_DOMAIN = r"[a-zA-Z0-9.\-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"
_FILE_TYPES = r"(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)"
_DASHES = (
    "\u002d\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0"
    "\ufe31\ufe32\ufe58\ufe63\uff0d"
)


def _compiled(*rules: tuple[str, str]) -> list[tuple[re.Pattern, str]]:
    return [(re.compile(pattern), replacement) for pattern, replacement in rules]


_LINKS = _compiled(
    (r"<person>", "person"),
    # The second pass finds what the first one joined.
    (rf"\b(?:https?:(?:/{{1,3}}|[a-zA-Z0-9%])|{_DOMAIN})", ""),
    (rf"\b(?:www:(?:/{{1,3}}|[a-zA-Z0-9%])|{_DOMAIN})", ""),
)
_SYMBOLS = _compiled(
    (r"@\w+\b", ""),  # nicknames
    (r"[\u31c0-\u9fff]+", ""),  # Chinese characters and their neighbours
    (rf"[{_DASHES}]+", "-"),
    (r"[`´«»“”¨]", '"'),  # noqa: RUF001
    (r"[‘’]", "'"),  # noqa: RUF001
    (r"&quot;?", ""),
    (r"&amp", ""),
    (r"\d{1,3}(?:\.\d{1,3}){3}", " "),  # IP addresses
    (r"\d:\d\d\s+$", ""),
    (r"\\n", " "),  # a backslash and an n, not a line break
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"\S+\.{_FILE_TYPES}", ""),
    (r"[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~()\[\]{}|\\/*]+", " "),
    (r"\s+\.\s+", " "),
)
_PHRASES = _compiled(
    # Article numbers: jc6640, jc6640vc, 6640vc231.
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),
    (r"\b\d+[a-zA-Z]+\d+\b", ""),
    (r"(?:worldwide\s+)?(?:free\s+)?shipping", ""),
    (r"(?:free\s)?download(?:\sfree)?", ""),
    (r"\bclick\s(?:for|on)\s\w+", ""),
    (rf"\b{_FILE_TYPES}(?:\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),
    (r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""),  # sizes  # noqa: RUF001
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
    # Spaces at the ends are still there and keep the next four rules from matching.
    (r"^[\"'](.+)[\"']$", r"\1"),
    (r"^['_,\-:;]", ""),
    (r"['_,\-:+]$", ""),
    (r"^\.\S+$", ""),
)
_JOINTS = re.compile(r"[-_]")
_MAX_JOINTS = 3


def clean(caption: str) -> str:
    """The caption in lower case without links, markup, numbers and phrases of web pages.

    As the original, applies its rules twice. Nothing may be left: "..." becomes "".

    Raises:
      InputError: ftfy or beautifulsoup4 is not installed.
    """
    return _clean_once(_clean_once(caption))


def _clean_once(text: str) -> str:
    parse_html, fix_text = _libraries()
    text = urllib.parse.unquote_plus(text).strip().lower()
    text = _apply(_LINKS, text)
    # The parser is slow and changes nothing else.
    if "<" in text or "&" in text:
        text = parse_html(text)
    text = _apply(_SYMBOLS, text)
    if len(_JOINTS.findall(text)) > _MAX_JOINTS:  # words-in-an-address or words_in_a_file_name
        text = _JOINTS.sub(" ", text)
    text = html.unescape(html.unescape(fix_text(text))).strip()
    return _apply(_PHRASES, text).strip()


def _apply(rules: list[tuple[re.Pattern, str]], text: str) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text


@functools.cache
def _libraries():
    """A function from HTML to its text, and ftfy's repair of wrongly decoded characters."""
    try:
        import bs4
        import ftfy
    except ImportError:
        raise InputError(
            'cleaning captions needs ftfy and beautifulsoup4: pip install "llamagen_jax[text]"'
        ) from None

    def parse_html(text: str) -> str:
        try:
            return bs4.BeautifulSoup(text, features="html.parser").text
        # The original stops at these, such as "<![a[b]]>".
        except bs4.ParserRejectedMarkup:
            return text

    return parse_html, ftfy.fix_text
