import pytest

from llamagen_jax.errors import InputError, one_line_errors


def fail():
    with one_line_errors():
        raise InputError("the file is missing") from OSError("unplugged")


def test_an_input_error_ends_the_process_in_one_line(capsys, monkeypatch):
    monkeypatch.delenv("LLAMAGEN_TRACEBACK", raising=False)
    with pytest.raises(SystemExit, match=r"^error: the file is missing$"):
        fail()
    assert capsys.readouterr().err == ""


def test_the_traceback_is_shown_where_asked_for(capsys, monkeypatch):
    monkeypatch.setenv("LLAMAGEN_TRACEBACK", "1")
    with pytest.raises(SystemExit, match=r"^error: the file is missing$"):
        fail()
    shown = capsys.readouterr().err
    assert "OSError: unplugged" in shown
    assert 'raise InputError("the file is missing")' in shown


def test_other_errors_pass():
    with pytest.raises(KeyError), one_line_errors():
        raise KeyError("a bug")
