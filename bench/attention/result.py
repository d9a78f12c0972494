"""The measurement of one point, and the JSON row that keeps it."""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from bench.attention.points import Point
from bench.common.formatting import rounded

Quartiles = tuple[float, float, float]
"""Lower quartile, median, upper quartile."""

POINT_FIELDS = tuple(f.name for f in fields(Point))
DEFAULTS = {f.name: f.default for f in fields(Point) if f.default is not MISSING}


@dataclass(frozen=True)
class Result:
    """One point at one instruction set.

    Attributes:
        seconds: median time of one call of each candidate; the first candidate is the subject.
        ratio: time of every other candidate over the subject's, paired by round.
        fma: FLOP/s of multiply-adds alone, median over the rounds of this point.
        product: FLOP/s of torch.mm, where it was sampled.
        share: the subject's FLOP/s over those of the multiply-adds, paired by round; absent from
            older records.
        part: the `--group` whose own run measured it later; empty for the run of all groups.
    """

    isa: str
    point: Point
    seconds: dict[str, float]
    ratio: dict[str, Quartiles]
    fma: float
    product: float | None = None
    share: Quartiles | None = None
    part: str = ""

    @property
    def run(self) -> str:
        """Key in `Record.runs` of the run that measured it: `avx2`, or `avx2 decode`."""
        return f"{self.isa} {self.part}".strip()

    @property
    def subject(self) -> str:
        return next(iter(self.seconds))

    def times_as_fast(self, rival: str) -> float:
        """Median ratio of the rival's time to the subject's."""
        return self.ratio[rival][1]

    def rate(self, candidate: str | None = None) -> float:
        """FLOP/s, of the subject by default."""
        return self.point.flops / self.seconds[candidate or self.subject]

    def percent_of_peak(self, candidate: str | None = None) -> float:
        """`rate` as a percentage of the multiply-adds that the core did in the same rounds."""
        return 100 * self.rate(candidate) / self.fma

    def row(self, short: bool = False) -> dict[str, Any]:
        """For JSON; `short` omits what `from_row` can restore."""
        point = asdict(self.point)
        if short:
            point = {name: x for name, x in point.items() if DEFAULTS.get(name) != x}
        row: dict[str, Any] = {"isa": self.isa, **point}
        if self.part:
            row["part"] = self.part
        row["seconds"] = {name: rounded(x) for name, x in self.seconds.items()}
        row["ratio"] = {name: [rounded(x) for x in q] for name, q in self.ratio.items()}
        row["fma_gflops"] = rounded(self.fma / 1e9)
        if self.product is not None:
            row["product_gflops"] = rounded(self.product / 1e9)
        if self.share is not None:
            row["share"] = [rounded(x) for x in self.share]
        if not short:
            row["flops"] = self.point.flops
            row["bytes"] = self.point.bytes
            row["gflops"] = rounded(self.rate() / 1e9)
            row["percent_of_peak"] = rounded(self.percent_of_peak())
        return row


def from_row(row: dict[str, Any]) -> Result:
    """The inverse of `Result.row`."""
    product, share = row.get("product_gflops"), row.get("share")
    return Result(
        isa=row["isa"],
        point=Point(**{name: row[name] for name in POINT_FIELDS if name in row}),
        seconds=row["seconds"],
        ratio={name: tuple(quartiles) for name, quartiles in row["ratio"].items()},
        fma=row["fma_gflops"] * 1e9,
        product=None if product is None else product * 1e9,
        share=None if share is None else tuple(share),
        part=row.get("part", ""),
    )
