"""The tables of a run: every point, block sizes, the lengths at D 64 for the guide, the models."""

from __future__ import annotations

import measure
import model_targets
import points
import targets
from results import MODELS, Record, Result

ISA_NAMES = {"avx2": "AVX2", "avx512": "AVX-512"}


def what(result: Result) -> str:
    """Direction, mask and option."""
    point = result.point
    parts = [points.DIRECTIONS[point.direction]]
    parts += ["causal"] if point.causal else []
    parts += [point.option] if point.option else []
    return ", ".join(parts)


def shape(result: Result) -> str:
    """Batch, heads, length, head size."""
    point = result.point
    return f"{point.batch} x {point.heads} x {point.length} x {point.head_dim}"


def points_table(results: list[Result]) -> str:
    """One line a point and rival: ratio with quartiles, and shares of the peak."""
    header = ["group", "what", "dtype", "B x H x L x D", "beside", "time", "its time", "ratio"]
    header += ["quartiles", "GFLOP/s", "% of peak", "% of MKL's product"]
    cells = []
    for result in results:
        for rival, (low, median, high) in result.ratio.items():
            product = (
                "-" if result.product is None else f"{100 * result.rate() / result.product:.0f}"
            )
            cells.append(
                [
                    result.point.group,
                    what(result),
                    result.point.dtype,
                    shape(result),
                    rival,
                    measure.seconds_text(result.seconds[result.subject]),
                    measure.seconds_text(result.seconds[rival]),
                    f"{median:.2f}",
                    f"{low:.2f}-{high:.2f}",
                    f"{result.rate() / 1e9:.1f}",
                    f"{result.percent_of_peak():.0f}",
                    product,
                ]
            )
    return measure.table(header, cells, left=5)


def block_table(results: list[Result]) -> str:
    """Time at each block size over that at the default."""
    if not results:
        return "not measured"
    header = ["L", "what", "default", *results[0].ratio]
    cells = [
        [
            str(result.point.length),
            what(result),
            measure.seconds_text(result.seconds["default"]),
            *(f"{median:.2f}x" for _, median, _ in result.ratio.values()),
        ]
        for result in results
    ]
    return measure.table(header, cells, left=2)


def speed_table(record: Record, isa: str) -> str:
    """float32, 8 heads, D 64: flash and how many times its time the rivals take."""
    header = ["L", "what", "flash", "% of peak", "torch", "standard", "torch / flash"]
    header += ["standard / flash"]
    cells = []
    for result in record.of(isa, "grid"):
        point = result.point
        if point.dtype != "float32" or point.head_dim != 64:
            continue
        standard = result.seconds.get("standard")
        cells.append(
            [
                str(point.length),
                what(result),
                measure.seconds_text(result.seconds["flash"]),
                f"{result.percent_of_peak():.0f}",
                measure.seconds_text(result.seconds["torch"]),
                "-" if standard is None else measure.seconds_text(standard),
                f"{result.times_as_fast('torch'):.2f}x",
                "-" if standard is None else f"{result.times_as_fast('standard'):.2f}x",
            ]
        )
    return measure.table(header, cells, left=2)


def rates_text(rates: dict[str, float]) -> str:
    """What the core did by itself, in words."""
    units = {"copy": "GB/s"}
    return "; ".join(
        f"{name} {rate / 1e9:.1f} {units.get(name, 'GFLOP/s')}" for name, rate in rates.items()
    )


def page(record: Record) -> str:
    """Everything as one page of Markdown."""
    parts = ["# Speed"]
    if record.isas:
        parts.append(targets.report(targets.lines(record)))
    if record.models:
        parts += [
            "## Models",
            f"Measured: {record.runs[MODELS]['where']}.",
            model_targets.table(record.models),
        ]
    for isa in record.isas:
        run = record.runs[isa]
        parts += [
            f"## {ISA_NAMES[isa]}",
            f"Measured: {run['where']}; median of {run['rounds']} rounds.",
            f"The core by itself: {rates_text(run['rates'])}.",
            points_table([r for r in record.of(isa) if r.point.group != "block size"]),
            "Time at a block size over that at the default:",
            block_table(record.of(isa, "block size")),
        ]
    return "\n\n".join(parts) + "\n"
