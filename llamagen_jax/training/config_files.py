"""Config files: found by path or by name, and run."""

import runpy
import traceback
from pathlib import Path

from ml_collections import ConfigDict

from llamagen_jax import configs
from llamagen_jax.errors import InputError, nearest

_BUNDLED = Path(configs.__file__).parent
_NOT_EXPERIMENTS = {"__init__.py", "common.py"}


def names() -> list[str]:
    """The config files that come with the package, such as "c2i.py"."""
    return sorted({path.name for path in _BUNDLED.glob("*.py")} - _NOT_EXPERIMENTS)


def load(config: str) -> ConfigDict:
    """What `get_config` of a config file returns, locked against new keys.

    Args:
      config: FILE.py or FILE.py:VARIANT. FILE.py is a path or, where there is no such file, one of
        `names`; VARIANT is handed to `get_config`.

    Raises:
      InputError: there is no such file, or it fails; the message tells where.
    """
    file, *variant = config.split(":", 1)
    path = _find(file)
    try:
        get_config = runpy.run_path(str(path)).get("get_config")
        if get_config is None:
            raise InputError(
                f"{path} has no function get_config: define it, returning a ConfigDict"
            )
        values = get_config(*variant)
    except InputError:
        raise
    # It is the user's program: anything may go wrong in it.
    except Exception as error:
        raise InputError(
            f"{_where(error, path)}: {type(error).__name__}: {message(error)}"
        ) from error
    if not isinstance(values, ConfigDict):
        kind = type(values).__name__
        raise InputError(f"get_config of {path} returns a {kind}: return a ConfigDict")
    return values.lock()


def message(error: BaseException) -> str:
    """The error's message in one line; of the error that ml_collections wrapped into another."""
    while error.args and isinstance(error.args[0], BaseException):
        error = error.args[0]
    # The text of a KeyError is the repr of its argument.
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(str(text).split())


def _find(file: str) -> Path:
    for path in (Path(file), _BUNDLED / file):
        if path.is_file():
            return path
    raise InputError(
        f"there is no config file '{file}', nor does one of that name come with the package; "
        f"{nearest(file, names())}"
    )


def _where(error: Exception, path: Path) -> str:
    """The file and the innermost line of it that the error passed."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    return f"{path}:{lines[-1]}" if lines else str(path)
