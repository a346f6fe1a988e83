import dataclasses
import math

import jax
import pytest

from llamagen_jax.errors import InputError, check_finite, one_line_errors


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


def test_no_number_of_a_configuration_is_nan_or_infinite():
    @dataclasses.dataclass
    class Config:
        rate: float = 0.5
        weights: tuple = (("a", 0.5), ("b", 1))

    check_finite(Config())
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(InputError, match=f"^rate={value} must be finite$"):
            check_finite(Config(rate=value))
        with pytest.raises(InputError, match=r"^weights=.* must be finite$"):
            check_finite(Config(weights=(("a", value),)))


def test_a_missing_device_is_told_in_one_line(monkeypatch):
    def devices():
        raise RuntimeError("Unable to initialize backend 'tpu': no libtpu\nmore")

    monkeypatch.setattr(jax, "devices", devices)
    message = (
        r"^error: JAX_PLATFORMS=\S+ asks for .* \(Unable to initialize backend 'tpu': no libtpu\);"
    )
    with pytest.raises(SystemExit, match=message), one_line_errors():
        jax.devices()


def test_other_errors_pass():
    with pytest.raises(RuntimeError), one_line_errors():
        raise RuntimeError("a bug")
    with pytest.raises(KeyError), one_line_errors():
        raise KeyError("a bug")
