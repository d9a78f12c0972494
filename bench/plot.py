"""What the pictures of all scripts share, and those of `bench/google_benchmark.py`.

python bench/plot.py out/google_benchmark/results.json --output out/google_benchmark
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # pictures go to files: no display is needed
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

# Okabe and Ito's colours, which the colour-blind can tell apart; markers help in grey.
STYLES: dict[str, dict[str, Any]] = {
    "flash": {"color": "#0072B2", "marker": "o", "label": "flash (this project)"},
    "standard": {"color": "#D55E00", "marker": "s", "label": "standard"},
    "torch": {"color": "#009E73", "marker": "^", "label": "torch's own"},
}
DIRECTIONS = {"Forward": "forward", "Backward": "backward", "ForwardBackward": "forward + backward"}


def grid(
    rows: int, columns: int, title: str, subtitle: str, width: float = 5.6
) -> tuple[Figure, Any]:
    """A figure of rows x columns axes, each `width` inches wide, with a title and a small line
    below it for where it was measured."""
    figure, axes = plt.subplots(
        rows, columns, figsize=(width * columns, 3.9 * rows + 0.9), squeeze=False, dpi=110
    )
    # In inches from the top, so that tall and flat figures look alike.
    figure.text(0.5, 1 - 0.35 / figure.get_figheight(), title, ha="center", fontsize=14)
    figure.text(0.5, 1 - 0.6 / figure.get_figheight(), subtitle, ha="center", fontsize=8.5)
    return figure, axes


def length_axis(axes: Axes, lengths: Iterable[int]) -> None:
    """Logarithmic, with the measured lengths as ticks."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(lengths), [str(length) for length in lengths])
    axes.minorticks_off()
    axes.set_xlabel("sequence length L (positions)")
    axes.grid(True, which="major", alpha=0.3)


def save(figure: Figure, path: Path) -> Path:
    """Writes the picture and frees it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.65 / figure.get_figheight()))
    figure.savefig(path)
    plt.close(figure)
    return path


def select(results: list[dict[str, Any]], **wanted: object) -> list[dict[str, Any]]:
    """The rows in which every named field has the wanted value."""
    return [row for row in results if all(row[name] == value for name, value in wanted.items())]


def draw_against_length(record: dict[str, Any], dtype: str, output: Path) -> Path | None:
    """Time against length at D 64, forward and forward + backward, full and causal."""
    rows = select(record["results"], dtype=dtype, head_size=64)
    lengths = sorted({row["length"] for row in rows})
    directions = [d for d in DIRECTIONS if select(rows, direction=d)]
    if len(lengths) < 2:
        return None
    figure, axes = grid(
        len(directions), 2, f"Time of attention, {dtype}, 8 heads, D 64", record["where"]
    )
    for line, direction in enumerate(directions):
        for column, mask in enumerate(("full", "causal")):
            panel = axes[line][column]
            for method, style in STYLES.items():
                points = select(rows, direction=direction, mask=mask, method=method)
                points.sort(key=lambda row: row["length"])
                panel.plot(
                    [row["length"] for row in points],
                    [row["seconds"] * 1e3 for row in points],
                    **style,
                )
            panel.set_yscale("log")
            panel.set_ylabel("time of one call (ms)")
            panel.set_title(f"{DIRECTIONS[direction]}, {mask}")
            length_axis(panel, lengths)
    axes[0][0].legend()
    return save(figure, output / f"time_{dtype}.png")


def draw_against_head_size(record: dict[str, Any], output: Path) -> Path | None:
    """GFLOP/s against head size at L 1024, full."""
    rows = select(record["results"], length=1024, mask="full")
    sizes = sorted({row["head_size"] for row in rows})
    if len(sizes) < 2:
        return None
    dtypes = sorted({row["dtype"] for row in rows})
    title = "Arithmetic rate against head size, 8 heads, L 1024, full"
    figure, axes = grid(len(dtypes), 2, title, record["where"])
    for line, dtype in enumerate(dtypes):
        for column, direction in enumerate(("Forward", "ForwardBackward")):
            panel = axes[line][column]
            for method, style in STYLES.items():
                points = select(rows, direction=direction, dtype=dtype, method=method)
                points.sort(key=lambda row: row["head_size"])
                panel.plot(
                    [row["head_size"] for row in points],
                    [row["flops_per_second"] / 1e9 for row in points],
                    **style,
                )
            panel.set_xscale("log", base=2)
            panel.set_xticks(sizes, [str(size) for size in sizes])
            panel.minorticks_off()
            panel.set_ylim(bottom=0)
            panel.set_xlabel("head size D")
            panel.set_ylabel("GFLOP/s")
            panel.set_title(f"{DIRECTIONS[direction]}, {dtype}")
            panel.grid(True, alpha=0.3)
    axes[0][0].legend()
    return save(figure, output / "rate_by_head_size.png")


def draw(record: dict[str, Any], output: Path) -> list[Path]:
    """Every picture that the sweep of `record` is wide enough for."""
    dtypes = sorted({row["dtype"] for row in record["results"]})
    pictures = [draw_against_length(record, dtype, output) for dtype in dtypes]
    pictures.append(draw_against_head_size(record, output))
    return [picture for picture in pictures if picture is not None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("record", type=Path, help="results.json of bench/google_benchmark.py")
    output = Path("out/google_benchmark")
    parser.add_argument("--output", type=Path, default=output, help="folder of the PNGs")
    args = parser.parse_args()
    for picture in draw(json.loads(args.record.read_text()), args.output):
        print(picture)


if __name__ == "__main__":
    main()
