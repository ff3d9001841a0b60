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
    thread, lock = threading.get_ident(), threading.Lock()
    done, late = threading.Event(), threading.Event()

    def watch() -> None:
        if not done.wait(seconds):
            while True:  # code that swallows it is told again
                with lock:
                    if done.is_set():
                        return
                    late.set()
                    _raise_in(thread)
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
                    if late.is_set():  # one may be on its way still: another takes its place, and is waited for
                        _raise_in(thread)
                        while True:
                            pass
                except _TimeIsUpError:
                    continue
    except _TimeIsUpError as error:
        raise TimeoutError(f"not finished after {seconds:g} s").with_traceback(error.__traceback__) from None


def _raise_in(thread: int) -> None:
    # It is never taken back: CPython 3.11 does not run on after that under a profiler, debugger or coverage.
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(_TimeIsUpError))
