"""The tables of a record: all points, block sizes, and the lengths at D 64."""

from __future__ import annotations

from typing import Any

from bench.attention import points
from bench.attention.result import Result
from bench.common import formatting
from bench.report import model_report, provenance, verdict
from bench.report.records import MODELS, Record
from bench.report.verdict import Line

ISA_NAMES = {"avx2": "AVX2", "avx512": "AVX-512", "avx512-bf16": "AVX512-BF16", "amx": "AMX"}


def what(result: Result) -> str:
    """Direction, mask and option."""
    point = result.point
    parts = [points.DIRECTIONS[point.direction]]
    parts += ["causal"] if point.causal else []
    parts += [point.option] if point.option else []
    return ", ".join(parts)


def shape(result: Result) -> str:
    """Batch, heads, length, head_dim."""
    point = result.point
    return f"{point.batch} x {point.heads} x {point.length} x {point.head_dim}"


def limit(result: Result) -> str:
    """The rate of the limit: median, and quartiles where the record has them."""
    if result.limit == "copy":
        return f"copy {result.point.bytes / result.seconds['copy'] / 1e9:.1f} GB/s"
    text = f"{result.limit} {result.fma / 1e9:.1f}"
    if result.fma_quartiles is not None:
        low, high = (x / 1e9 for x in result.fma_quartiles)
        text += f" ({low:.1f}-{high:.1f})"
    cores = f" x {result.point.threads}" if result.point.threads > 1 else ""
    return f"{text}{cores} GFLOP/s"


def share_quartiles(result: Result) -> str:
    """Of the share of the limit, in percent."""
    if result.share_of_limit is None:
        return "-"
    low, _, high = result.share_of_limit
    return f"{100 * low:.0f}-{100 * high:.0f}"


def points_table(results: list[Result]) -> str:
    """One row per point and rival: ratio and share of the limit, with quartiles."""
    header = ["group", "what", "dtype", "B x H x L x D", "rival", "time", "rival's time", "ratio"]
    header += ["quartiles", "GFLOP/s", "limit", "% of limit", "quartiles", "% of torch.mm"]
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
                    formatting.seconds_text(result.seconds[result.subject]),
                    formatting.seconds_text(result.seconds[rival]),
                    f"{median:.2f}",
                    f"{low:.2f}-{high:.2f}",
                    f"{result.rate() / 1e9:.1f}",
                    limit(result),
                    f"{result.percent_of_limit:.0f}",
                    share_quartiles(result),
                    product,
                ]
            )
    return formatting.table(header, cells, left=5)


def block_table(results: list[Result]) -> str:
    """Time at each block size over that at the default; one result or more."""
    header = ["L", "what", "default", *results[0].ratio]
    cells = [
        [
            str(result.point.length),
            what(result),
            formatting.seconds_text(result.seconds["default"]),
            *(f"{median:.2f}x" for _, median, _ in result.ratio.values()),
        ]
        for result in results
    ]
    return formatting.table(header, cells, left=2)


def speed_results(record: Record, isa: str) -> list[Result]:
    """The results that `speed_table` shows."""
    return [
        result
        for result in record.of(isa, "grid")
        if result.point.dtype == "float32" and result.point.head_dim == 64
    ]


def speed_table(record: Record, isa: str) -> str:
    """float32, 8 heads, D 64: time of flash, and the rivals' times as multiples of it."""
    header = ["L", "what", "flash", "% of peak", "torch", "standard", "torch / flash"]
    header += ["standard / flash"]
    cells = []
    for result in speed_results(record, isa):
        point = result.point
        standard = result.seconds.get("standard")
        cells.append(
            [
                str(point.length),
                what(result),
                formatting.seconds_text(result.seconds["flash"]),
                f"{result.percent_of_limit:.0f}",
                formatting.seconds_text(result.seconds["torch"]),
                "-" if standard is None else formatting.seconds_text(standard),
                f"{result.times_as_fast('torch'):.2f}x",
                "-" if standard is None else f"{result.times_as_fast('standard'):.2f}x",
            ]
        )
    return formatting.table(header, cells, left=2)


def rates_text(run: dict[str, Any]) -> str:
    """Rates of the core on its own, with quartiles where the record has them."""
    spread = run.get("rate_quartiles", {})

    def text(name: str, rate: float) -> str:
        unit = "GB/s" if name == "copy" else "GFLOP/s"
        quartiles = ""
        if name in spread:
            low, high = spread[name]
            quartiles = f" ({low / 1e9:.1f}-{high / 1e9:.1f})"
        return f"{name} {rate / 1e9:.1f}{quartiles} {unit}"

    return "; ".join(text(name, rate) for name, rate in run["rates"].items())


def page(record: Record, lines: list[Line]) -> str:
    """One page of Markdown: the verdicts on `lines`, then everything that was measured."""
    parts = ["# Speed"]
    if lines:
        parts.append(verdict.report(lines))
    if MODELS in record.runs:
        parts += [
            "## Models",
            *provenance.of_runs({MODELS: record.runs[MODELS]}),
            model_report.text(record),
        ]
    for isa in record.isas:
        results = record.of(isa)
        runs = record.runs_of(results)
        parts += [f"## {ISA_NAMES[isa]}", *provenance.of_runs(runs)]
        for run in runs.values():
            rates = rates_text(run)
            parts.append(f"Median of {run['rounds']} rounds. The core on its own: {rates}.")
        blocks = record.of(isa, "block size")
        if others := [result for result in results if result not in blocks]:
            parts.append(points_table(others))
        if blocks:
            parts += ["Time at a block size over that at the default:", block_table(blocks)]
    return "\n\n".join(parts) + "\n"
