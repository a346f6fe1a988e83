"""How Sphinx builds the book (`make docs`)."""

import html.parser
import re
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util import logging

project = "llamagen_jax"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]

html_theme = "furo"
html_title = "llamagen_jax"
html_static_path = ["book.css"]
html_css_files = ["book.css"]
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
myst_heading_anchors = 3
myst_enable_extensions = ["deflist"]

# The notebook is committed with its pictures, and a test runs it.
nb_execution_mode = "off"

# Names in single backticks are links where the reference has them; pages name them in full, and
# those must be there.
default_role = "py:obj"
nitpicky = True
nitpick_ignore_regex = [("py:(?!obj$).*", ".*"), ("py:obj", r"(?!llamagen_jax\.).*")]
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_use_rtype = False
napoleon_custom_sections = [("Attributes", "params_style")]

# What Flax adds to the fields of every module.
_FLAX_FIELDS = re.compile(r", parent: .*name: str \| None = None")

# Pages may link to others, but what they show or run must come with them.
_FETCHING = {"img": "src", "script": "src", "iframe": "src", "source": "src", "link": "href"}
_ELSEWHERE = re.compile(r"(https?:)?//")
_CSS_ELSEWHERE = re.compile(r"""(@import\s|url\()\s*["']?(https?:)?//""")


class _Fetched(html.parser.HTMLParser):
    """Collects the addresses on other machines that a browser fetches to show a page."""

    def __init__(self):
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag, attrs):
        address = dict(attrs).get(_FETCHING.get(tag, ""))
        if address and _ELSEWHERE.match(address):
            self.addresses.append(address)


def _check_fetches_nothing(app: Sphinx, exception: Exception | None) -> None:
    logger = logging.getLogger(__name__)
    for page in Path(app.outdir).rglob("*.html"):
        fetched = _Fetched()
        fetched.feed(page.read_text())
        for address in fetched.addresses:
            logger.warning("%s fetches %s", page.name, address)
    for sheet in Path(app.outdir).rglob("*.css"):
        for found in _CSS_ELSEWHERE.finditer(sheet.read_text()):
            logger.warning("%s fetches %s", sheet.name, found.group())


def _shorten(app, what, name, obj, options, signature: str | None, returned: str | None):
    """The signature with types as they are written in the code, and none for a Protocol."""
    if what == "class" and signature == "(*args, **kwargs)":
        return "", returned
    if signature:
        signature = _FLAX_FIELDS.sub("", signature).replace("jaxlib._jax.Array", "Array")
    if returned:
        returned = returned.replace("jaxlib._jax.Array", "Array")
    return signature, returned


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-signature", _shorten)
    app.connect("build-finished", _check_fetches_nothing)
