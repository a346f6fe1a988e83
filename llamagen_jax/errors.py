"""The one exception that commands show as a single line instead of a traceback."""

import contextlib
import difflib
import os
import sys
import traceback
from collections.abc import Iterable, Iterator


class InputError(ValueError):
    """Something the user gave is wrong; the message names it and says what to do."""


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the process with status 1 and one line on stderr when an `InputError` escapes.

    With LLAMAGEN_TRACEBACK=1 in the environment, its traceback comes before that line.
    """
    try:
        yield
    except InputError as error:
        if os.environ.get("LLAMAGEN_TRACEBACK") == "1":
            traceback.print_exc()
        sys.exit(f"error: {error}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Words that end a "no such name" message: the closest known name, and the whole list."""
    known = list(map(str, known))
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.4)
    suggestion = f"did you mean '{close[0]}'? " if close else ""
    return f"{suggestion}known: {', '.join(known)}"
