import re

import pytest

from llamagen_jax.errors import InputError
from llamagen_jax.training import config_files

MINE = """
from ml_collections import ConfigDict


def get_config(variant="none"):
    return ConfigDict({"variant": variant})
"""


def write(folder, text, name="mine.py"):
    (folder / name).write_text(text)
    return folder / name


def test_found_by_name_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config_files.load("digits.py:tokenizer").model.base_channels == 32


def test_a_path_wins_over_a_name(tmp_path, monkeypatch):
    write(tmp_path, MINE, "digits.py")
    monkeypatch.chdir(tmp_path)
    assert config_files.load("digits.py:tokenizer").variant == "tokenizer"
    assert config_files.load("./digits.py").variant == "none"


def test_everything_after_the_first_colon_is_the_variant(tmp_path):
    assert config_files.load(f"{write(tmp_path, MINE)}:a:b=c").variant == "a:b=c"


def test_a_missing_file_lists_what_there_is(tmp_path):
    with pytest.raises(InputError) as error:
        config_files.load("c2j.py:B-256")
    assert "no config file 'c2j.py'" in str(error.value)
    assert "did you mean 'c2i.py'? known: c2i.py," in str(error.value)
    for path in (tmp_path, tmp_path / "configs" / "c2i.py", "configs/c2j.py"):
        with pytest.raises(InputError, match=r"known: c2i\.py,"):
            config_files.load(str(path))


def test_refuses_new_keys(tmp_path):
    config = config_files.load(str(write(tmp_path, MINE)))
    with pytest.raises(AttributeError):
        config.varaint = "a"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nosuch", ":1: ModuleNotFoundError: No module named 'nosuch'"),
        ("def get_config(:", ": SyntaxError: invalid syntax (mine.py, line 1)"),
        ("def get_config():\n  a = 1\n  return a.b", ":3: AttributeError: 'int' object has no"),
        ("def get_config():\n  return {}['a\\n  b']", ":2: KeyError: a b"),
        ("def get_config():\n  raise OSError('gone')", ":2: OSError: gone"),
        ("def f(): assert False\ndef get_config():\n  f()", ":1: AssertionError: "),
        # The line of the file, not of the library that it calls.
        ("import json\ndef get_config():\n  json.loads('{')", ":3: JSONDecodeError: Expecting"),
        # ml_collections wraps the KeyError that has the message.
        (MINE.replace("})", "}).varaint"), ":6: AttributeError: 'varaint' Did you mean"),
        ("def get_config():\n  return {}", "mine.py returns a dict: return a ConfigDict"),
        ("def config():\n  return {}", "mine.py has no function get_config"),
    ],
)
def test_a_mistake_in_the_file_is_told_in_one_line(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(InputError, match=re.escape(message)) as error:
        config_files.load(str(path))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
