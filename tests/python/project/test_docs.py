"""The documentation: every Python block runs, every C++ block is compiled, every command exists.

docs_test (tests/docs) compiles and runs the C++ blocks; the test here only checks that it includes
every page. CMake blocks must equal the file in tests/install that install_test builds.
"""

from __future__ import annotations

import functools
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tests" / "docs"))
from cpp_examples import FENCE, blocks, translation_unit  # noqa: E402

pytestmark = pytest.mark.once

README, CONTRIBUTING = ROOT / "README.md", ROOT / "CONTRIBUTING.md"
PAGES = [README, CONTRIBUTING, *sorted((ROOT / "docs").glob("*.md"))]
# "text" blocks are not checked; the others are run or checked below.
LANGUAGES = {"python", "cpp", "cmake", "bash", "text"}
WORDS = re.compile(r"[\w./=-]+")


# They need packages that are not in .venv: make test-originals runs them.
IN_ORIGINALS = {"neuralforecast.md", "transformers.md"}
KERNELS = "from kernels import"
PYTHON_BLOCKS = [
    pytest.param(page, line, text, id=f"{page.name}:{line}")
    for page in PAGES
    if page.name not in IN_ORIGINALS
    for line, text in blocks(page, "python")
    if KERNELS not in text
]


def shell_commands() -> Iterator[list[str]]:
    """The words of each line of each bash block, without comments."""
    for page in PAGES:
        for _, text in blocks(page, "bash"):
            for line in text.replace("\\\n", " ").splitlines():
                if words := WORDS.findall(line.split(" #")[0]):
                    yield words


@pytest.fixture
def restored_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs examples in a temporary folder, as torchrun starts one process; restores threads."""
    monkeypatch.chdir(tmp_path)
    one_process = {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 0}
    for name, value in one_process.items():
        monkeypatch.setenv(name, str(value))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("restored_state")
@pytest.mark.parametrize(("page", "line", "text"), PYTHON_BLOCKS)
def test_python_block_runs(page: Path, line: int, text: str) -> None:
    # Leading empty lines make line numbers in errors match those of the page.
    code = compile("\n" * (line - 1) + text, str(page), "exec")
    exec(code, {"__name__": "__main__"})


def test_every_block_has_a_checked_language() -> None:
    found = {(page.name, match[1]) for page in PAGES for match in FENCE.finditer(page.read_text())}
    assert {language for _, language in found} <= LANGUAGES, found
    fences = [len(re.findall(r"^```", page.read_text(), re.M)) for page in PAGES]
    matched = [len(FENCE.findall(page.read_text())) for page in PAGES]
    assert fences == [2 * count for count in matched], "a fence without a language or a closing one"


def test_every_page_with_cpp_is_compiled_by_docs_test() -> None:
    listed = (ROOT / "tests" / "docs" / "CMakeLists.txt").read_text()
    pages = re.search(r"set\(pages ([^)]*)\)", listed)[1].split()
    with_cpp = {str(page.relative_to(ROOT)) for page in PAGES if blocks(page, "cpp")}
    assert with_cpp
    assert with_cpp <= set(pages)
    unit = translation_unit(PAGES)
    assert unit.count("\nTEST(") == sum(len(blocks(page, "cpp")) for page in PAGES)


def test_cmake_blocks_match_the_install_test_project() -> None:
    tested = (ROOT / "tests" / "install" / "CMakeLists.txt").read_text()
    shown = [text for page in PAGES for _, text in blocks(page, "cmake")]
    assert shown
    assert all(text == tested for text in shown)


def make_targets() -> set[str]:
    """The phony targets of the Makefile."""
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    return set(" ".join(re.findall(r"^\.PHONY: (.*)$", makefile, re.M)).split())


def test_make_targets_in_shell_blocks_exist() -> None:
    targets = {words[1] for words in shell_commands() if words[0] == "make"}
    assert targets >= {"demo", "test", "bench"}
    assert targets <= make_targets()


def test_contributing_describes_every_make_target() -> None:
    described = set(re.findall(r"^\| `make ([\w-]+)` \|", CONTRIBUTING.read_text(), re.M))
    internal = {"system", "compile", "compile-all"}  # steps of the others
    assert described == make_targets() - internal


# It needs neuralforecast, which the tests do not, so its options are read from its source.
NOT_RUN = "tests/fixtures/make_fixtures.py"


@functools.cache
def options_of(script: str) -> set[str]:
    """The options listed by the script's --help."""
    if script == NOT_RUN:
        return set(re.findall(r'"(--[\w-]+)"', (ROOT / script).read_text()))
    command = [sys.executable, ROOT / script, "--help"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return set(re.findall(r"--[\w-]+", text))


def test_script_options_in_shell_blocks_exist() -> None:
    checked = 0
    for words in shell_commands():
        for i, word in enumerate(words):
            if not word.endswith(".py"):
                continue
            options = {w.split("=")[0] for w in words[i + 1 :] if w.startswith("--")}
            assert (ROOT / word).is_file(), words
            assert not options or options <= options_of(word), words
            checked += 1
    assert checked > 0


def test_flash_train_options_in_shell_blocks_exist() -> None:
    sources = "".join(p.read_text() for p in sorted((ROOT / "models" / "train").rglob("*.cpp")))
    used = {
        word.split("=")[0]
        for words in shell_commands()
        if any(word.endswith("flash_train") for word in words)
        for word in words
        if word.startswith("--") and word != "--help"
    }
    assert used
    assert {option for option in used if f'"{option}"' not in sources} == set()


def test_relative_links_resolve() -> None:
    checked = 0
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if target.startswith(("http://", "https://")):
                continue
            path, _, anchor = target.partition("#")
            linked = (page.parent / path).resolve() if path else page
            assert linked.exists(), f"{page.name}: {target}"
            if anchor and linked.suffix == ".md":
                prose = FENCE.sub("", linked.read_text())
                headings = re.findall(r"^#+ (.+)$", prose, re.M)
                anchors = {re.sub(r"[^\w\- ]", "", h).lower().replace(" ", "-") for h in headings}
                assert anchor in anchors, f"{page.name}: {target}"
            checked += 1
    assert checked > 0


def test_every_benchmark_table_is_filled_in() -> None:
    marker = re.compile(
        r"<!-- table: ([\w-]+)(?: of ([\w-]+))? -->\n(.*?)<!-- end of table -->", re.S
    )
    source = (ROOT / "bench" / "tables.py").read_text()
    tables = [match for page in PAGES for match in marker.finditer(page.read_text())]
    assert tables
    for name, record, body in (match.groups() for match in tables):
        assert f'"{name}":' in source, f"bench/tables.py does not know the table {name}"
        assert record is None or (ROOT / "bench" / "results" / f"{record}.json").is_file()
        assert re.search(r"^Measured( \(.* only\))?: ", body, re.M), (
            f"run python bench/tables.py --only {name} --write ..."
        )


def test_names_in_the_table_of_what_to_add_exist() -> None:
    (table,) = re.findall(r"^\| you use \| add \|\n((?:\|.*\n)+)", README.read_text(), re.M)
    names = re.findall(r"`[^`]*?(flash_attention(?:\.\w+)+)", table)
    assert len(names) >= 4
    for name in names:
        module, _, function = name.rpartition(".")
        assert callable(getattr(importlib.import_module(module), function))
    assert "flash_attention" in torch.nn.attention.list_flash_attention_impls()
    assert callable(importlib.import_module("flash_attention").flex_attention)
    headers = (ROOT / "ops" / "include" / "flash_attention").glob("*.h")
    code = "".join(header.read_text() for header in headers)
    for name in re.findall(r"flash::(\w+)", table):
        assert re.search(rf"\bclass (?:FLASH_API )?{name}\b", code), name


def test_readme_figures_are_in_the_benchmark_tables() -> None:
    text = README.read_text()
    pages, rows = re.search(r"<!-- figures of (.*) -->\n((?:\|.*\n)+)", text).groups()
    measured = "".join((ROOT / page).read_text() for page in pages.split())
    shown, known = (set(re.findall(r"\d[\d.]*(?:x|%| [KMG]iB)", t)) for t in (rows, measured))
    assert len(shown) > 20
    assert shown <= known
    counts = re.findall(r"(\d+) of (\d+) targets reached", measured)
    reached, targets = (sum(map(int, column)) for column in zip(*counts, strict=True))
    assert f"{reached} of {targets} are met" in text
