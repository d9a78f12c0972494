"""Draws a record of `bench/run.py`: ratio against length, the roofline, and the models.

.venv/bin/python bench/report/pictures.py bench/results/<cpu>.json --output out/bench
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import StrMethodFormatter

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from bench.attention.result import Result
from bench.models.result import ModelResult
from bench.report import plot
from bench.report.records import MODELS, Record, read

# Colors of the same palette as `plot.STYLES`, one per head_dim.
HEAD_DIM_STYLES = {
    16: {"color": "#0072B2", "marker": "o"},
    32: {"color": "#E69F00", "marker": "s"},
    64: {"color": "#009E73", "marker": "^"},
    128: {"color": "#CC79A7", "marker": "D"},
}
PANELS = [(direction, causal) for direction in ("forward", "backward") for causal in (False, True)]


def title(direction: str, causal: bool) -> str:
    return f"{direction}, {'causal' if causal else 'full'}"


def where(record: Record, results: list[Result]) -> str:
    """The runs that measured these results, for the line below the title."""
    return "; ".join(run["where"] for run in record.runs_of(results).values())


def ratio_panel(panel: Axes, results: list[Result]) -> None:
    """One line per head_dim; at the dashed line both take the same time."""
    for head_dim, style in HEAD_DIM_STYLES.items():
        line = [result for result in results if result.point.head_dim == head_dim]
        if not line:
            continue
        lengths = [result.point.length for result in line]
        ratios = [result.times_as_fast("torch") for result in line]
        panel.plot(lengths, ratios, label=f"D {head_dim}", **style)
    panel.axhline(1, color="0.4", linestyle="--", linewidth=1)
    panel.set_ylim(bottom=0)
    panel.set_ylabel("torch's time / flash's")
    plot.length_axis(panel, sorted({result.point.length for result in results}))


def draw_ratios(record: Record, isa: str, dtype: str, output: Path) -> Path | None:
    """Ratio against length, forward and backward, full and causal."""
    results = [r for r in record.of(isa, "grid") if r.point.dtype == dtype]
    if not results:
        return None
    heading = f"torch's time over flash's: {dtype}, 8 heads, {isa}"
    figure, axes = plot.grid(2, 2, heading, where(record, results))
    for panel, (direction, causal) in zip(axes.flat, PANELS, strict=True):
        chosen = [r for r in results if (r.point.direction, r.point.causal) == (direction, causal)]
        ratio_panel(panel, chosen)
        panel.set_title(title(direction, causal))
    axes[0][0].legend()
    return plot.save(figure, output / f"ratio_{isa}_{dtype}.png")


def roof(panel: Axes, peak: float, bandwidth: float, intensities: list[float]) -> None:
    """The bound of the core: memory bandwidth on the slope, then multiply-adds."""
    edge = peak / bandwidth
    left, right = min([edge / 2, *intensities]), max([edge * 2, *intensities])
    panel.plot(
        [left, edge, right],
        [left * bandwidth / 1e9, peak / 1e9, peak / 1e9],
        color="0.3",
        label=f"measured: {bandwidth / 1e9:.0f} GB/s copied, {peak / 1e9:.0f} GFLOP/s",
    )


def draw_roofline(record: Record, isa: str, dtype: str, output: Path) -> Path | None:
    """GFLOP/s against FLOPs per byte of inputs and outputs."""
    results = [r for r in record.of(isa, "grid") if r.point.dtype == dtype]
    if not results:
        return None
    rates = record.runs[results[0].run]["rates"]
    heading = f"Roofline of one core: {dtype}, 8 heads, {isa}"
    figure, axes = plot.grid(2, 2, heading, where(record, results), share_y=True)
    for panel, (direction, causal) in zip(axes.flat, PANELS, strict=True):
        chosen = [r for r in results if (r.point.direction, r.point.causal) == (direction, causal)]
        intensities = [r.point.flops / r.point.bytes for r in chosen]
        roof(panel, rates[f"fma {dtype}"], rates["copy"], intensities)
        for method in ("flash", "torch"):
            gflops = [r.rate(method) / 1e9 for r in chosen]
            style = plot.STYLES[method] | {"linestyle": "none", "alpha": 0.7}
            panel.plot(intensities, gflops, **style)
        panel.set_xscale("log", base=2)
        panel.set_yscale("log", base=2)
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        panel.set_xlabel("FLOPs per byte of inputs and outputs")
        panel.set_ylabel("GFLOP/s")
        panel.set_title(title(direction, causal))
        panel.grid(True, alpha=0.3)
    axes[0][0].legend()
    return plot.save(figure, output / f"roofline_{isa}_{dtype}.png")


def bars(panel: Axes, names: list[str], values: list[float], heading: str) -> None:
    """One bar per shape, from top to bottom; at the dashed line both sides are equal."""
    drawn = panel.barh(names, values, color="#0072B2")
    panel.bar_label(drawn, [f"{value:.2f}x" for value in values], padding=3, fontsize=8)
    panel.axvline(1, color="0.4", linestyle="--", linewidth=1)
    panel.invert_yaxis()
    panel.margins(x=0.12, y=0.02)
    panel.set_title(heading)
    panel.grid(True, axis="x", alpha=0.3)


def draw_models(record: Record, output: Path) -> Path | None:
    """Speed-up and memory saving of a training step over neuralforecast's."""
    found: list[ModelResult] = record.models
    if not found:
        return None
    heading = "Training step against neuralforecast's: forward, backward, Adam"
    height = 0.7 + 0.3 * len(found)
    figure, axes = plot.grid(1, 2, heading, record.runs[MODELS]["where"], 7.0, height)
    names = [result.shape.label for result in found]
    bars(axes[0][0], names, [r.times_as_fast for r in found], "neuralforecast's time / ours")
    shares = [r for r in found if r.memory_share is not None]
    names = [result.shape.label for result in shares]
    values = [1 / result.memory_share for result in shares]
    bars(axes[0][1], names, values, "neuralforecast's peak memory / ours")
    return plot.save(figure, output / "models.png")


def draw(record: Record, output: Path) -> list[Path]:
    """Every picture for which the record has enough points."""
    pictures = [
        draw_one(record, isa, dtype, output)
        for isa in record.isas
        for dtype in ("float32", "float64")
        for draw_one in (draw_ratios, draw_roofline)
    ]
    pictures.append(draw_models(record, output))
    return [picture for picture in pictures if picture is not None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("record", type=Path, help="JSON written by bench/run.py")
    parser.add_argument("--output", type=Path, default=Path("out/bench"), help="folder of the PNGs")
    args = parser.parse_args()
    for picture in draw(read(args.record), args.output):
        print(picture)


if __name__ == "__main__":
    main()
