"""The faults of `make mutants`.

A fault is text of the sources and its replacement: a wrong expression for an expression, or whole
statements, in which `ON` is true while the fault is active. `by` names the tests of `make test` to
run, in this order, until one fails: a C++ binary, some of its tests ("ops_test:Cache.*"), a file in
any folder of tests/python, or one of its tests ("test_vmap.py::test_x").
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """Replaces `old`, which must occur once in `file`, by `new` (an expression) or `text`."""

    what: str
    file: str
    old: str
    new: str = ""
    text: str = ""
    by: tuple[str, ...] = ()

    @property
    def layer(self) -> str:
        """The top-level folder, or "python" for the Python packages."""
        return "python" if self.file.endswith(".py") else self.file.split("/")[0]


def skipped(what: str, file: str, old: str, by: tuple[str, ...]) -> Fault:
    """A fault that skips a statement."""
    return Fault(what, file, old, text=f"if (!ON) {{ {old} }}", by=by)
