"""Writes the C++ blocks of the documentation as one GoogleTest source file.

    python tests/docs/cpp_examples.py README.md docs/guide.md > docs_examples.cpp

A block is either a list of statements, which becomes the body of a test, or a program with its own
`int main()`, which the test calls and which must return 0. The includes move to the top.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

FENCE = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```", re.M | re.S)


def blocks(path: Path, language: str) -> list[tuple[int, str]]:
    """(number of its first line, text) of each fenced block in `language`."""
    text = path.read_text()
    return [
        (text.count("\n", 0, match.start(2)) + 1, match[2])
        for match in FENCE.finditer(text)
        if match[1] == language
    ]


def example(path: Path, line: int, text: str) -> tuple[list[str], str]:
    """The includes of one block, and a test with the rest of it."""
    lines = text.splitlines()
    includes = [row for row in lines if row.startswith("#include")]
    body = "\n".join("" if row.startswith("#include") else row for row in lines)
    suite = re.sub(r"\W+", "_", path.stem)
    location = f'#line {line} "{path}"'
    if "int main()" not in text:
        return includes, f"TEST({suite}, Line{line}) {{\n{location}\n{body}\n}}\n"
    scope = f"{suite}_line_{line}"
    return includes, (
        f"namespace {scope} {{\n{location}\n{body}\n}}  // namespace {scope}\n"
        f"TEST({suite}, Line{line}) {{ EXPECT_EQ({scope}::main(), 0); }}\n"
    )


def translation_unit(paths: list[Path]) -> str:
    """The source file with all examples."""
    examples = [example(path, *block) for path in paths for block in blocks(path, "cpp")]
    includes = sorted({include for found, _ in examples for include in found})
    tests = "\n".join(test for _, test in examples)
    return "#include <gtest/gtest.h>\n" + "\n".join(includes) + "\n\n" + tests


if __name__ == "__main__":
    print(translation_unit([Path(name) for name in sys.argv[1:]]), end="")
