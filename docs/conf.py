"""Sphinx configuration: `make docs` writes the documentation as HTML to build/docs/html.

The source folder is the root of the repository, so that links between README.md, docs/ and the
sources are the same here as on GitHub. A link to a source file downloads it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from bench.report import pictures, records  # noqa: E402

project = "flash_attention"
release = version = re.search(
    r"^project\(\w+ VERSION ([\d.]+)", (ROOT / "CMakeLists.txt").read_text(), re.M
)[1]
copyright = "the flash_attention authors, Apache License 2.0"

root_doc = "docs/index"
include_patterns = ["README.md", "C*.md", "*/README.md", "csrc/*.md", "docs/**"]
exclude_patterns = [".*", "build*", "out", "docs/requirements*.txt"]

extensions = [
    "breathe",
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
maximum_signature_line_length = 100
autodoc_default_options = {"members": True}
default_role = "code"
napoleon_numpy_docstring = False
napoleon_use_param = False  # arguments that share a description stay together

breathe_projects = {"flash_attention": str(ROOT / "build/docs/doxygen/xml")}
breathe_default_project = "flash_attention"
# Each header declares the namespaces, and each model brings in the same forward().
suppress_warnings = ["duplicate_declaration.cpp"]

highlight_language = "none"  # of a block that names none
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = f"flash_attention {release}"
html_extra_path = ["redirect"]  # index.html at the root


def as_restructured_text(app, what, name, obj, options, lines: list[str]) -> None:
    """What reads well in a terminal, as Sphinx and napoleon expect it."""
    text = "\n".join(lines)
    # |position - key| is an absolute value, not a substitution.
    text = text.replace("|", r"\|")
    # `Module`s: markup has to end at the end of a word.
    text = re.sub(r"(`[^`\n]+`)(?=\w)", r"\1\\ ", text)
    # A list of arguments over several lines.
    text = re.sub(r"(?m)^( *\w+(?:, \w+)+,)\n +((?:\w+, )*\w+: )", r"\1 \2", text)
    # An example, indented below a colon.
    text = re.sub(r"(?m)^( *)(\S.*):\n\n(?=\1 +\w)", r"\1\2::\n\n", text)
    # Results and properties have no `type: ` in front.
    text = re.sub(r"(?m)^(Returns:\n +)", r"\1: ", text)
    if what == "property":
        text = ": " + text
    lines[:] = text.split("\n")


def link_folders(app, page: str, source: list[str]) -> None:
    """A link to a folder, of which GitHub lists the files and shows the README, as a link to that
    README, or as plain text if it has none."""
    here = (ROOT / page).parent

    def linked(match: re.Match[str]) -> str:
        text, folder = match.groups()
        readme = here / folder / "README.md"
        return f"[{text}]({folder}/README.md)" if readme.is_file() else text

    source[0] = re.sub(r"(?<!!)\[([^]]*)\]\(([\w./-]+)/\)", linked, source[0])


def add_pictures(app, page: str, source: list[str]) -> None:
    """Draws the records in bench/results below their tables; the repository has no pictures."""
    if page != "docs/benchmarks":
        return
    source[0] += "\n## Pictures\n"
    for record in sorted((ROOT / "bench/results").glob("*.json")):
        output = ROOT / "build/docs/pictures" / record.stem
        for picture in pictures.draw(records.read(record), output):
            title = picture.stem.replace("_", ", ")
            source[0] += f"\n![{title}](/{picture.relative_to(ROOT)})\n"


def setup(app) -> None:
    app.connect("source-read", link_folders)
    app.connect("source-read", add_pictures)
    app.connect("autodoc-process-docstring", as_restructured_text, priority=400)  # before napoleon
