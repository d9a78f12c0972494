"""Runs a function in a forked child, so that a crash or a hang only fails the test."""

from __future__ import annotations

import multiprocessing
import signal
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

# Far longer than any function takes, even on a busy machine.
SECONDS = 30.0


def _send_result(function: Callable[[], Any], connection: Connection) -> None:
    try:
        answer = ("returned", function())
    except Exception as error:  # raised again by the parent
        answer = ("raised", error)
    connection.send(answer)
    connection.close()


def run_forked(function: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """Returns or raises what `function` does in a forked child; it must be picklable.

    Raises:
        AssertionError: the child was killed by a signal or did not answer within `seconds`.
    """
    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(
        target=_send_result, args=(function, sender), daemon=True
    )
    with warnings.catch_warnings():
        # Since Python 3.12, forking a multithreaded process warns. These tests do so on purpose.
        warnings.simplefilter("ignore", DeprecationWarning)
        child.start()
    sender.close()
    try:
        if not receiver.poll(seconds):
            raise AssertionError(f"the child did not answer within {seconds} s")
        kind, answer = receiver.recv()
    except EOFError:
        child.join()
        assert child.exitcode is not None
        code = child.exitcode
        reason = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        raise AssertionError(f"the child was ended by {reason}") from None
    finally:
        child.kill()
        child.join()
        receiver.close()
    if kind == "raised":
        raise answer
    return answer
