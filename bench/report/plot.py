"""What all pictures share: colors, a grid of axes, and saving."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # writes files, needs no display
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

# The color-blind-safe palette of Okabe and Ito; the markers differ for printing in gray.
STYLES: dict[str, dict[str, Any]] = {
    "flash": {"color": "#0072B2", "marker": "o", "label": "flash (this project)"},
    "standard": {"color": "#D55E00", "marker": "s", "label": "standard"},
    "torch": {"color": "#009E73", "marker": "^", "label": "torch's own"},
}


def grid(
    rows: int,
    columns: int,
    title: str,
    subtitle: str,
    width: float = 5.6,
    height: float = 3.9,
    share_y: bool = False,
) -> tuple[Figure, Any]:
    """A figure of rows x columns axes, each `width` by `height` inches, with a title and, as a
    smaller line below it, where it was measured."""
    size = (width * columns, height * rows + 0.9)
    figure, axes = plt.subplots(rows, columns, figsize=size, sharey=share_y, squeeze=False, dpi=110)
    # Placed in inches from the top, so that figures of all heights look alike.
    figure.text(0.5, 1 - 0.35 / figure.get_figheight(), title, ha="center", fontsize=14)
    figure.text(0.5, 1 - 0.6 / figure.get_figheight(), subtitle, ha="center", fontsize=8.5)
    return figure, axes


def length_axis(axes: Axes, lengths: Iterable[int]) -> None:
    """A logarithmic axis with the measured lengths as ticks."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(lengths), [str(length) for length in lengths])
    axes.minorticks_off()
    axes.set_xlabel("sequence length L (positions)")
    axes.grid(True, which="major", alpha=0.3)


def save(figure: Figure, path: Path) -> Path:
    """Writes the picture and frees the figure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.65 / figure.get_figheight()))
    figure.savefig(path)
    plt.close(figure)
    return path
