"""SIGINT and SIGTERM in commands: an exception at once or, while it is deferred, when asked for."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator

# `timeout` sends its signal to the command and then to the command's group.
_ECHO_SECONDS = 0.1


class Interrupted(KeyboardInterrupt):
    """A command was told to stop; the message says how to go on.

    It is a KeyboardInterrupt for the libraries that clean up after one.

    Args:
      signum: SIGINT or SIGTERM.
      kept: says what the command goes on from; "" where it begins anew.
    """

    def __init__(self, signum: int, kept: str = ""):
        self.signal = signal.Signals(signum)
        again = "start the same command again"
        go_on = f"{kept}; {again} to go on" if kept else again
        super().__init__(f"stopped by {self.signal.name}: {go_on}")


class _Handler:
    """Answers the first of its signals; the second one ends the process at once."""

    def __init__(self, signals: list[signal.Signals]):
        self._signals = signals
        self.deferred = False
        self.raised: signal.Signals | None = None
        self.received: signal.Signals | None = None

    def __call__(self, signum: int, frame) -> None:
        self._set(signal.SIG_IGN)
        time.sleep(_ECHO_SECONDS)
        self._set(signal.SIG_DFL)
        if self.deferred:
            self.received = signal.Signals(signum)
        else:
            self.raised = signal.Signals(signum)
            raise Interrupted(signum)

    def _set(self, action: signal.Handlers) -> None:
        for signum in self._signals:
            signal.signal(signum, action)


_handler = _Handler([])


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], signal.Signals | None]]:
    """Meanwhile the first SIGINT or SIGTERM raises `Interrupted`, a second one ends the process.

    Yields a function that returns the signal for which it was raised, or None: a library through
    which it passes may make another exception of it.

    Signals that the process was started to ignore, as by `nohup`, are ignored further. Does nothing
    outside of the main thread, which alone may handle signals.
    """
    global _handler
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    before = {s: action for s, action in before.items() if action != signal.SIG_IGN}
    outer, handler = _handler, _Handler(list(before))
    _handler = handler
    for signum in before:
        signal.signal(signum, handler)
    try:
        yield lambda: handler.raised
    finally:
        _handler = outer
        for signum, action in before.items():
            signal.signal(signum, action)


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], signal.Signals | None]]:
    """Meanwhile a signal that would raise `Interrupted` waits until it is asked for.

    Yields a function that returns the signal that came, or None. One that came and was not answered
    by an exception raises `Interrupted` at the end.
    """
    handler = _handler
    handler.deferred = True
    try:
        yield lambda: handler.received
    finally:
        handler.deferred = False
    if handler.received:
        raise Interrupted(handler.received)


@contextlib.contextmanager
def told_kept(kept: str) -> Iterator[None]:
    """Lets an `Interrupted` that passes say what the command goes on from."""
    try:
        yield
    except Interrupted as interrupted:
        raise Interrupted(interrupted.signal, kept) from interrupted
