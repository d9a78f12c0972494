"""Prints a one-line summary of `make test` from the JUnit XML files of GoogleTest and pytest.

python tests/summary.py FOLDER SECONDS
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from pathlib import Path


def count(path: Path) -> tuple[int, int]:
    """(tests that ran, tests that were skipped) in one file."""
    suites = ET.parse(path).getroot()
    cases = suites.findall(".//testcase")
    # GoogleTest also lists tests that it did not run.
    skipped = sum(c.find("skipped") is not None or c.get("status") == "notrun" for c in cases)
    return len(cases) - skipped, skipped


def main() -> None:
    folder, seconds = Path(sys.argv[1]), int(sys.argv[2])
    counts = {path.stem: count(path) for path in sorted(folder.glob("*.xml"))}
    if not counts:
        sys.exit(f"tests/summary.py: expected the results of tests in {folder}, found none")
    ran = ", ".join(f"{run} {name}" for name, (run, _) in counts.items())
    skipped = sum(skipped for _, skipped in counts.values())
    print(f"passed: {ran}; {skipped} skipped; {seconds // 60} min {seconds % 60} s")


if __name__ == "__main__":
    main()
