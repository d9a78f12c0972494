"""Runs a function in a forked child: a crash or a hang ends the child, and the test fails."""

from __future__ import annotations

import multiprocessing
import signal
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

# Far more than any of the functions takes on a busy machine.
SECONDS = 30.0


def _send_result(function: Callable[[], Any], connection: Connection) -> None:
    try:
        answer = ("returned", function())
    except Exception as error:  # handed to the parent, which raises it
        answer = ("raised", error)
    connection.send(answer)
    connection.close()


def run_forked(function: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """What `function` returns or raises in a forked child; both must pickle.

    Raises:
        AssertionError: the child was killed by a signal, or had no answer after `seconds`.
    """
    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(
        target=_send_result, args=(function, sender), daemon=True
    )
    with warnings.catch_warnings():
        # From Python 3.12 on a fork beside threads warns; that it works is what is tested.
        warnings.simplefilter("ignore", DeprecationWarning)
        child.start()
    sender.close()
    try:
        if not receiver.poll(seconds):
            raise AssertionError(f"the child had no answer after {seconds} s")
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
