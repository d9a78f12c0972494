"""Draws the results of `google_benchmark.py`.

.venv/bin/python bench/attention/google_pictures.py out/google_benchmark/results.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from bench.report import plot

DIRECTIONS = {"Forward": "forward", "Backward": "backward", "ForwardBackward": "forward + backward"}


def select(results: list[dict[str, Any]], **wanted: object) -> list[dict[str, Any]]:
    """The rows whose named fields have these values."""
    return [row for row in results if all(row[name] == value for name, value in wanted.items())]


def draw_methods(
    panel: Axes, rows: list[dict[str, Any]], across: str, up: str, factor: float
) -> None:
    """A line for each method: the field `up`, times `factor`, against the field `across`."""
    for method, style in plot.STYLES.items():
        points = sorted(select(rows, method=method), key=lambda row: row[across])
        panel.plot([row[across] for row in points], [row[up] * factor for row in points], **style)


def draw_against_length(record: dict[str, Any], dtype: str, output: Path) -> Path | None:
    """Time against length at D 64, forward and forward + backward, full and causal."""
    rows = select(record["results"], dtype=dtype, head_dim=64)
    lengths = sorted({row["length"] for row in rows})
    directions = [d for d in DIRECTIONS if select(rows, direction=d)]
    if len(lengths) < 2:
        return None
    figure, axes = plot.grid(
        len(directions), 2, f"Time of attention, {dtype}, 8 heads, D 64", record["where"]
    )
    for line, direction in enumerate(directions):
        for column, mask in enumerate(("full", "causal")):
            panel = axes[line][column]
            chosen = select(rows, direction=direction, mask=mask)
            draw_methods(panel, chosen, "length", "seconds", 1e3)
            panel.set_yscale("log")
            panel.set_ylabel("time of one call (ms)")
            panel.set_title(f"{DIRECTIONS[direction]}, {mask}")
            plot.length_axis(panel, lengths)
    axes[0][0].legend()
    return plot.save(figure, output / f"time_{dtype}.png")


def draw_against_head_dim(record: dict[str, Any], output: Path) -> Path | None:
    """GFLOP/s against head_dim at L 1024, full."""
    rows = select(record["results"], length=1024, mask="full")
    sizes = sorted({row["head_dim"] for row in rows})
    if len(sizes) < 2:
        return None
    dtypes = sorted({row["dtype"] for row in rows})
    title = "Arithmetic rate against head_dim, 8 heads, L 1024, full"
    figure, axes = plot.grid(len(dtypes), 2, title, record["where"])
    for line, dtype in enumerate(dtypes):
        for column, direction in enumerate(("Forward", "ForwardBackward")):
            panel = axes[line][column]
            chosen = select(rows, direction=direction, dtype=dtype)
            draw_methods(panel, chosen, "head_dim", "flops_per_second", 1e-9)
            panel.set_xscale("log", base=2)
            panel.set_xticks(sizes, [str(size) for size in sizes])
            panel.minorticks_off()
            panel.set_ylim(bottom=0)
            panel.set_xlabel("head_dim D")
            panel.set_ylabel("GFLOP/s")
            panel.set_title(f"{DIRECTIONS[direction]}, {dtype}")
            panel.grid(True, alpha=0.3)
    axes[0][0].legend()
    return plot.save(figure, output / "rate_by_head_dim.png")


def draw(record: dict[str, Any], output: Path) -> list[Path]:
    """Every picture for which the sweep has enough points."""
    dtypes = sorted({row["dtype"] for row in record["results"]})
    pictures = [draw_against_length(record, dtype, output) for dtype in dtypes]
    pictures.append(draw_against_head_dim(record, output))
    return [picture for picture in pictures if picture is not None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("record", type=Path, help="results.json of google_benchmark.py")
    output = Path("out/google_benchmark")
    parser.add_argument("--output", type=Path, default=output, help="folder of the PNGs")
    args = parser.parse_args()
    for picture in draw(json.loads(args.record.read_text()), args.output):
        print(picture)


if __name__ == "__main__":
    main()
