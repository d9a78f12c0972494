"""The code of the pages on other packages runs where these are installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from project.test_docs import IN_ORIGINALS, ROOT, blocks

pytestmark = [pytest.mark.once, pytest.mark.filterwarnings("ignore")]

BLOCKS = [
    pytest.param(page, line, text, id=f"{page}:{line}")
    for page in sorted(IN_ORIGINALS)
    for line, text in blocks(ROOT / "docs" / page, "python")
]


@pytest.mark.parametrize(("page", "line", "text"), BLOCKS)
def test_python_block_runs(
    page: str, line: int, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # Leading empty lines make line numbers in errors match those of the page.
    code = compile("\n" * (line - 1) + text, page, "exec")
    exec(code, {"__name__": "__main__"})
