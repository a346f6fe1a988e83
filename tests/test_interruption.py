"""Signals in commands, in this process but for the one that ends it."""

import signal
import sys

import pytest

from llamagen_jax import errors
from llamagen_jax.interruption import Interrupted, deferred, interruptible

SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture(autouse=True)
def _attentive():
    """In the background of a script SIGINT is ignored, which is not what is tested here."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def ended(monkeypatch):
    """Statuses with which this process would have ended."""
    statuses = []

    def end(status):
        statuses.append(status)
        sys.exit(status)

    monkeypatch.setattr(errors, "end", end)
    return statuses


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_command_ends_in_one_line_and_with_the_status_of_its_signal(ended, capsys, signum):
    with pytest.raises(SystemExit), errors.one_line_errors():
        signal.raise_signal(signum)
    assert ended == [128 + signum]
    line = f"stopped by {signum.name}: start the same command again\n"
    assert capsys.readouterr().err == line


def test_a_library_may_make_another_exception_of_it(ended):
    """As DuckDB does."""
    with pytest.raises(SystemExit), errors.one_line_errors():
        try:
            signal.raise_signal(signal.SIGTERM)
        except Interrupted:
            raise RuntimeError("query interrupted") from None
    assert ended == [143]


@pytest.mark.parametrize("signum", SIGNALS)
def test_the_second_signal_ends_the_process_at_once(signum):
    with pytest.raises(Interrupted), interruptible():
        try:
            signal.raise_signal(signum)
        finally:
            actions = [signal.getsignal(s) for s in SIGNALS]
    assert actions == [signal.SIG_DFL, signal.SIG_DFL]
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_a_signal_waits_while_it_is_deferred():
    with pytest.raises(Interrupted, match="SIGTERM"), interruptible(), deferred() as received:
        assert received() is None
        signal.raise_signal(signal.SIGTERM)
        assert received() == signal.SIGTERM


def test_what_the_process_was_started_to_ignore_is_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interruptible():
        signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
