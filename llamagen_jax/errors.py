"""How commands end early: in one line instead of a traceback, and what raises it."""

import atexit
import contextlib
import difflib
import io
import math
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

from llamagen_jax.interruption import Interrupted, interruptible


class InputError(ValueError):
    """Something the user gave is wrong; the message names it and says what to do."""


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the process in one line on stderr when an `InputError` or a signal stops it.

    Names of files may be no text in the terminal's encoding; printing them is no error meanwhile.
    The status is 1, or as of the shell 130 for SIGINT and 143 for SIGTERM. With
    LLAMAGEN_TRACEBACK=1 in the environment, the traceback comes before that line.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    with interruptible() as raised:
        try:
            yield
        except Interrupted as interrupted:
            _end_interrupted(interrupted)
        except Exception as error:
            if signum := raised():
                _end_interrupted(Interrupted(signum))
            reason = _reason(error)
            if not reason:
                raise
            _show_traceback()
            sys.exit(f"error: {reason}")


def _reason(error: Exception) -> str:
    """What to say of an error; "" for a fault of the program."""
    if isinstance(error, InputError):
        return str(error)
    return _no_device() if isinstance(error, RuntimeError | AssertionError) else ""


def _end_interrupted(interrupted: Interrupted) -> NoReturn:
    _show_traceback()
    print(interrupted, file=sys.stderr)
    end(128 + interrupted.signal)


def end(status: int) -> NoReturn:
    """Ends the process after its exit handlers, but without waiting for threads at work and without
    the interpreter's end, which crashes if XLA was interrupted while it compiled."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(status)


def _show_traceback() -> None:
    if os.environ.get("LLAMAGEN_TRACEBACK") == "1":
        traceback.print_exc()


def _no_device() -> str:
    """What to say where JAX finds no device of the kind asked for; "" where it finds some."""
    import jax

    try:
        jax.devices()
    # An AssertionError without a word where it does not even know the kind.
    except (RuntimeError, AssertionError) as error:
        platforms = jax.config.jax_platforms  # type: ignore[attr-defined]
        told = (str(error).splitlines() or ["no jax for it is installed"])[0]
        return (
            f"JAX_PLATFORMS={platforms} asks for a device that is not here ({told}); unset it to "
            'take what there is, or install "llamagen_jax[gpu]" or "llamagen_jax[tpu]"'
        )
    return ""


@contextlib.contextmanager
def naming(option: str) -> Iterator[None]:
    """Puts the option or key that a wrong value came from before the message of an `InputError`."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{option}: {error}") from error


def check_finite(config: Any) -> None:
    """Raises InputError where a field of the dataclass, or a number in one, is nan or infinite."""
    for name, value in vars(config).items():
        if not all(map(math.isfinite, _floats(value))):
            raise InputError(f"{name}={value} must be finite")


def _floats(value: Any) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _floats(part)


def nearest(name: str, known: Iterable[str]) -> str:
    """Words that end a "no such name" message: the closest known name, and the whole list."""
    known = list(map(str, known))
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.4)
    suggestion = f"did you mean '{close[0]}'? " if close else ""
    return f"{suggestion}known: {', '.join(known)}"
