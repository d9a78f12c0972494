"""What `make mutants` plants.

A fault is text of the sources and what takes its place: for an expression the wrong expression, for
statements whole text in which `ON` is true while the fault is switched on. `by` names the tests of
`make test` that are tried, in this order, until one fails: a C++ binary, or some of its tests
("ops_test:Cache.*"), or a file of tests/python, or a test of it ("test_vmap.py::test_x").
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """`old`, which `file` holds once, becomes `new` (an expression) or `text` (with ON)."""

    what: str
    file: str
    old: str
    new: str = ""
    text: str = ""
    by: tuple[str, ...] = ()

    @property
    def layer(self) -> str:
        """Top-level folder; "python" for the packages."""
        return "python" if self.file.endswith(".py") else self.file.split("/")[0]


def skipped(what: str, file: str, old: str, by: tuple[str, ...]) -> Fault:
    """A statement that is left out."""
    return Fault(what, file, old, text=f"if (!ON) {{ {old} }}", by=by)
