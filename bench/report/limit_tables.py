"""The tables of a record that show speed as a share of the limit."""

from __future__ import annotations

from bench.attention import points
from bench.attention.result import Result
from bench.common import formatting
from bench.report.records import Record

# The dtype whose multiply-adds are the peak at an instruction set.
DTYPES = {isa: "float32" for isa in ("avx2", "avx512")}
DTYPES |= {isa: "bfloat16" for isa in points.WITH_BFLOAT16}


def peak_results(record: Record) -> list[Result]:
    """The results that `peak_table` shows."""
    return [
        result
        for isa in record.isas
        for result in record.of(isa, "grid")
        if result.point.dtype == DTYPES[isa]
    ]


def peak_table(record: Record) -> str:
    """8 heads: percent of the peak of the core by length; one row per head_dim."""
    rows: dict[tuple[str, ...], dict[int, str]] = {}
    for result in peak_results(record):
        point = result.point
        mask = "causal" if point.causal else "full"
        row = (result.isa, f"{point.direction}, {mask}, {point.dtype}", str(point.head_dim))
        rows.setdefault(row, {})[point.length] = f"{result.percent_of_limit:.0f}"
    # By direction and mask; the sort is stable, so head_dims stay in the order of the plan.
    order = list(dict.fromkeys(row[:2] for row in rows))
    lengths = sorted({length for cells in rows.values() for length in cells})
    cells = [
        [*row, *(rows[row].get(length, "-") for length in lengths)]
        for row in sorted(rows, key=lambda row: order.index(row[:2]))
    ]
    return formatting.table(["ISA", "what", "D", *(f"L {n}" for n in lengths)], cells, left=2)


def decode_results(record: Record) -> list[Result]:
    """The results that `decode_table` shows."""
    return [result for isa in record.isas for result in record.of(isa, "decode")]


def decode_table(record: Record) -> str:
    """One query over many keys: what is read per second, and that as a share of a copy."""
    header = ["ISA", "dtype", "keys", "D", "threads", "flash", "read", "copied", "% of copy"]
    header += ["quartiles", "torch / flash"]
    cells = []
    for result in decode_results(record):
        point, quartiles = result.point, result.ratio["copy"]
        read, copied = (point.bytes / result.seconds[name] / 1e9 for name in ("flash", "copy"))
        cells.append(
            [
                result.isa,
                point.dtype,
                str(point.length),
                str(point.head_dim),
                str(point.threads),
                formatting.seconds_text(result.seconds["flash"]),
                f"{read:.1f} GB/s",
                f"{copied:.1f} GB/s",
                f"{result.percent_of_limit:.0f}",
                f"{100 * quartiles[0]:.0f}-{100 * quartiles[2]:.0f}",
                f"{result.times_as_fast('torch'):.2f}x",
            ]
        )
    return formatting.table(header, cells, left=2)
