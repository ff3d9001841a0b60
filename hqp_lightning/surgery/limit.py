"""A time limit that really interrupts Python code, in whatever thread it runs."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["time_limit"]


class _TimeIsUpError(BaseException):  # not an Exception: code that catches those must not catch this
    pass


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Interrupt the code inside after ``seconds``; it needs to run bytecode, a single long call into C is waited for.

    Raises:
        TimeoutError: the time is over.
    """
    thread, lock, done = threading.get_ident(), threading.Lock(), threading.Event()

    def watch() -> None:
        if not done.wait(seconds):
            while True:  # code that swallows it is told again
                with lock:
                    if done.is_set():
                        return
                    _raise_in(thread, _TimeIsUpError)
                if done.wait(1.0):
                    return

    threading.Thread(target=watch, name="hqp-time-limit", daemon=True).start()
    try:
        try:
            yield
        finally:
            while not done.is_set():
                try:
                    with lock:
                        done.set()
                        _raise_in(thread, None)  # what was not delivered yet
                except _TimeIsUpError:  # arrived between two of these lines
                    continue
    except _TimeIsUpError as late:
        raise TimeoutError(f"not finished after {seconds:g} s").with_traceback(late.__traceback__) from None


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    raised = ctypes.py_object(error) if error is not None else None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), raised)
